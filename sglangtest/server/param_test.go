package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

func TestUpdateParamRefusedBeforehand(t *testing.T) {
	w := newPlayback(t).tiny()
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	for _, c := range []struct {
		name  string
		value int
		want  string
	}{
		{"Chunked-Prefill", 1, "server: cannot set Chunked-Prefill to 1: this is not the name of a parameter, such as max_running_requests"},
		{ParamMaxRunningRequests, 0, "server: cannot set max_running_requests to 0: want at least 1"},
		{ParamMaxRunningRequests, -3, "server: cannot set max_running_requests to -3: want at least 1"},
		{ParamMaxRunningRequests, 65, "server: cannot set max_running_requests to 65: the limit at start-up is 64 and cannot be exceeded; start the server with a larger max_running_requests"},
	} {
		_, err := s.UpdateParam(context.Background(), c.name, c.value)
		require.EqualError(t, err, c.want)
		require.ErrorAs(t, err, new(*ParamError))
	}
	require.Empty(t, w.made("POST /set_internal_state"))

	// With pipeline parallelism the micro-batches share the limit.
	w = newPlayback(t).tiny().on("GET /server_info", answer{status: 200, body: `{"pp_size":4,` + tinyInfo(16)[1:]})
	s = launch(t, newManager(t, launches(newInstance()), w), Config{})
	_, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 17)
	require.ErrorContains(t, err, "the limit at start-up is 16 and cannot be exceeded")
}

func TestUpdateParamRanks(t *testing.T) {
	for name, c := range map[string]struct{ taken, info, want string }{
		"all":          {`[true,true]`, tinyInfo(8, 8), ""},
		"one refuses":  {`[true,false]`, tinyInfo(8, 64), "server: cannot set max_running_requests to 8: the server refused it (its log says why)"},
		"no rank":      {`[]`, tinyInfo(8, 8), "server: cannot set max_running_requests to 8: the server refused it (its log says why)"},
		"one differs":  {`[true,true]`, tinyInfo(8, 64), "server: cannot set max_running_requests to 8: the server confirmed it but then says 64"},
		"not told":     {`[true,true]`, tinyInfo(), "server: cannot set max_running_requests to 8: the server confirmed it but then says 0"},
		"other answer": {`{"success":true}`, tinyInfo(8, 8), "server: server-0: set max_running_requests: POST /set_internal_state: the answer is not what SGLang sends: json: cannot unmarshal object into Go value of type []bool"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newPlayback(t).tiny()
			w.on("GET /server_info", answer{status: 200, body: tinyInfo(64, 64)})
			s := launch(t, newManager(t, launches(newInstance()), w), Config{})
			require.Equal(t, 2, s.Info().DPSize)
			w.on("POST /set_internal_state", answer{status: 200, body: c.taken}).on("GET /server_info", answer{status: 200, body: c.info})
			u, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 8)
			if c.want != "" {
				require.EqualError(t, err, c.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, 8, u.ReadBack)
		})
	}
}

// A change whose answer is lost may have been made: before the next one the server is asked.
func TestUpdateParamLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPlayback(t).tiny()
		s := launch(t, newManager(t, launches(newInstance()), w), Config{})
		w.on("POST /set_internal_state", answer{after: time.Hour}, answer{status: 200, body: `[true]`}).on("GET /server_info", answer{status: 200, body: tinyInfo(8)})
		start := time.Now()
		_, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 8)
		require.EqualError(t, err, "server: server-0: set max_running_requests: POST /set_internal_state: not within 30s: context deadline exceeded")
		require.Equal(t, 30*time.Second, time.Since(start))
		u, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 8)
		require.NoError(t, err)
		require.Equal(t, 8, u.Previous)
	})
}

// A server before 0.5.4 knows the limit by another name, and says so.
func TestUpdateParamOldKey(t *testing.T) {
	old := func(limit string) answer {
		return answer{status: 200, body: `{"version":"0.5.1","internal_states":[{"max_micro_batch_size":` + limit + `,"effective_max_running_requests_per_dp":64}]}`}
	}
	w := newPlayback(t).tiny().on("GET /server_info", old("64"))
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	w.on("POST /set_internal_state", answer{status: 200, body: `[false]`}, answer{status: 200, body: `[true]`}).on("GET /server_info", old("8"))
	u, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 8)
	require.NoError(t, err)
	require.Equal(t, []any{64, 8, "set_internal_state max_micro_batch_size"}, []any{u.Previous, u.ReadBack, u.Mechanism})
	calls := w.made("POST /set_internal_state")
	require.Len(t, calls, 2)
	require.JSONEq(t, `{"server_args":{"pp_max_micro_batch_size":8}}`, calls[0].body)
	require.JSONEq(t, `{"server_args":{"max_micro_batch_size":8}}`, calls[1].body)
}

func TestUpdateParamNotChangeable(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		w.on("POST /update_chunked_prefill_size", recording(t, version, "not_found"))
		_, err := s.UpdateParam(context.Background(), "chunked_prefill_size", 4096)
		var no *NotChangeableError
		require.ErrorAs(t, err, &no)
		require.EqualError(t, err, "server: cannot set chunked_prefill_size to 4096 while the server runs: SGLang reads it at start only; tried: set_internal_state "+
			"(it takes max_running_requests only), POST /update_chunked_prefill_size (the server has no such route); a restart with the new value would do: see WithRestart")
		require.Len(t, w.made("POST /update_chunked_prefill_size"), 1)

		_, err = s.UpdateParam(context.Background(), "stream_interval", 4)
		require.ErrorContains(t, err, "a request can choose its own")
		_, err = s.UpdateParam(context.Background(), "gpu_clock", 4)
		require.EqualError(t, err, "server: cannot set gpu_clock to 4 while the server runs: it is not a parameter that SGLang is known to change while it runs; "+
			"tried: set_internal_state (it takes max_running_requests only), POST /update_gpu_clock (the server has no such route)")

		// SGLang has routes of this form for weights; a number must not reach them.
		_, err = s.UpdateParam(context.Background(), "weight_version", 4, WithRestart())
		require.ErrorAs(t, err, &no)
		require.Empty(t, w.made("POST /update_weight_version"))
	})
}

// A patched server has a route for a parameter.
func TestUpdateParamByRoute(t *testing.T) {
	const path = "POST /update_stream_interval"
	states := func(interval string) answer {
		return answer{status: 200, body: `{"stream_interval":1,"internal_states":[{"stream_interval":8},{` + interval + `}]}`}
	}
	for name, c := range map[string]struct {
		reply    answer
		info     answer
		readBack int
		want     string
	}{
		"taken":         {answer{status: 200, body: `{"success":true}`}, states(`"stream_interval":8`), 8, ""},
		"text":          {answer{status: 200, body: "done"}, states(`"stream_interval":8`), 8, ""},
		"not told":      {answer{status: 200}, answer{status: 200, body: `{"stream_interval":1,"internal_states":[{}]}`}, 0, ""},
		"one differs":   {answer{status: 200}, states(`"stream_interval":1`), 1, "server: cannot set stream_interval to 8: the server confirmed it but then says 1"},
		"refused":       {answer{status: 200, body: `{"success":false,"message":"busy"}`}, answer{}, 0, "server: cannot set stream_interval to 8: the server refused it: busy"},
		"bad request":   {answer{status: 400, body: `{"error":{"message":"too large"}}`}, answer{}, 0, "server: server-0: set stream_interval: POST /update_stream_interval: HTTP status 400: too large"},
		"unauthorised":  {answer{status: 401}, answer{}, 0, "server: server-0: set stream_interval: POST /update_stream_interval: HTTP status 401: set the server's key with WithAPIKey, or with WithAdminAPIKey if it has an admin key"},
		"other methods": {answer{status: 405}, answer{}, 0, "server: cannot set stream_interval to 8 while the server runs"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newPlayback(t).tiny()
			s := launch(t, newManager(t, launches(newInstance()), w), Config{})
			w.on(path, c.reply).on("GET /server_info", c.info)
			u, err := s.UpdateParam(context.Background(), "stream_interval", 8)
			require.JSONEq(t, `{"stream_interval":8}`, w.made(path)[0].body)
			require.Equal(t, c.readBack, u.ReadBack)
			require.Equal(t, c.readBack == 0, u.Verified.IsZero())
			if c.want != "" {
				require.ErrorContains(t, err, c.want)
				return
			}
			require.NoError(t, err)
			require.Equal(t, path, u.Mechanism)
			require.False(t, u.Accepted.Before(u.Asked))
		})
	}
}

func TestConfigSet(t *testing.T) {
	shared := Args{"page_size": 1}
	cfg := Config{ModelPath: "m", MaxRunningRequests: 8, GPUs: []int{1}, Args: shared}
	require.NoError(t, cfg.set("chunked_prefill_size", 2048))
	require.NoError(t, cfg.set("max_running_requests", 16))
	require.NoError(t, cfg.set("page_size", 16))
	require.NoError(t, cfg.set("decode_log_interval", 1))
	require.Equal(t, Config{ModelPath: "m", MaxRunningRequests: 16, ChunkedPrefillSize: 2048, GPUs: []int{1}, Args: Args{"page_size": 16, "decode_log_interval": 1}}, cfg)
	require.Equal(t, Args{"page_size": 1}, shared)
	before := cfg
	require.ErrorContains(t, cfg.set("model_path", 1), "model_path: 1; want a string")
	require.Equal(t, before, cfg)
}

// What a change yields goes into a time line: made or not, seen in force or not.
func TestParamUpdateEvents(t *testing.T) {
	start := time.Now()
	offset := func(at time.Time) time.Duration { return at.Sub(start) }
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	const ms = int64(time.Millisecond)
	u := ParamUpdate{Server: "server-1", Name: ParamMaxRunningRequests, Value: 8, Previous: 64, ReadBack: 8, Mechanism: "m", Asked: at(10), Accepted: at(12),
		NotBefore: at(20), InForce: at(30)}
	require.Equal(t, metrics.Event{At: 12 * time.Millisecond, Kind: metrics.KindParamUpdate, Source: "server-1", Data: map[string]any{
		"name": ParamMaxRunningRequests, "value": 8, "asked_ns": 10 * ms, "accepted_ns": 12 * ms, "previous": 64, "read_back": 8, "mechanism": "m"}}, u.Event(offset, nil))
	require.Equal(t, metrics.Event{At: 30 * time.Millisecond, Kind: metrics.KindParamInForce, Source: "server-1", Data: map[string]any{
		"name": ParamMaxRunningRequests, "value": 8, "asked_ns": 10 * ms, "accepted_ns": 12 * ms, "not_before_ns": 20 * ms}}, u.InForceEvent(offset, nil))

	failed := u.InForceEvent(offset, errors.New("no"))
	require.Equal(t, metrics.KindParamNotInForce, failed.Kind)
	require.Equal(t, "no", failed.Data["reason"])
	failed = u.Event(offset, errors.New("no"))
	require.Equal(t, "param_update_failed", failed.Kind)
	require.Equal(t, map[string]any{"name": ParamMaxRunningRequests, "value": 8, "accepted_ns": 12 * ms, "error": "no"}, failed.Data, "it was accepted")
	u.Accepted = time.Time{}
	require.NotContains(t, u.Event(offset, errors.New("no")).Data, "accepted_ns")
}
