package server

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
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
		{"schedule_policy", 1, "server: cannot set schedule_policy to 1: a stock server cannot change it while it runs; it can change max_running_requests"},
		{ParamMaxRunningRequests, 0, "server: cannot set max_running_requests to 0: want at least 1"},
		{ParamMaxRunningRequests, -3, "server: cannot set max_running_requests to -3: want at least 1"},
		{ParamMaxRunningRequests, 65, "server: cannot set max_running_requests to 65: the limit at start-up is 64 and cannot be exceeded; start the server with a larger max_running_requests"},
	} {
		_, err := s.UpdateParam(context.Background(), c.name, c.value)
		require.EqualError(t, err, c.want)
		require.ErrorAs(t, err, new(*ParamError))
	}
	require.Empty(t, w.made("POST /set_internal_state"))
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

// A change whose answer is lost may have been made: the value before the next one is not known.
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
		require.Zero(t, u.Previous)
	})
}

func TestRetries(t *testing.T) {
	broken := answer{err: errBroken}
	t.Run("visible", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, seen := newPlayback(t).tiny(), &events{}
			s := launch(t, newManager(t, launches(newInstance()), w, WithEvents(seen.add)), Config{})
			w.on("POST /set_internal_state", broken, broken, answer{status: 200, body: `[true]`}).on("GET /server_info", answer{status: 200, body: tinyInfo(8)})
			start := time.Now()
			_, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 8)
			require.NoError(t, err)
			require.Equal(t, 150*ms, time.Since(start))
			require.Equal(t, []string{"server-0 retry POST /set_internal_state, attempt 2", "server-0 retry POST /set_internal_state, attempt 3"}, seen.all()[2:])
			for _, c := range w.made("POST /set_internal_state") {
				require.JSONEq(t, `{"server_args":{"pp_max_micro_batch_size":8}}`, c.body, "whole at each attempt")
			}
		})
	})
	t.Run("bounded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, seen := newPlayback(t).tiny().on("POST /flush_cache", broken), &events{}
			s := launch(t, newManager(t, launches(newInstance()), w, WithEvents(seen.add)), Config{})
			require.EqualError(t, s.FlushCache(context.Background()), "server: server-0: flush cache: POST /flush_cache: connection reset by peer")
			require.Len(t, w.made("POST /flush_cache"), 4)
			require.Len(t, seen.all(), 2+3)
		})
	})
	t.Run("ended by the context", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newPlayback(t).tiny().on("POST /flush_cache", broken)
			s := launch(t, newManager(t, launches(newInstance()), w), Config{})
			ctx, cancel := context.WithTimeout(context.Background(), 60*ms)
			defer cancel()
			require.EqualError(t, s.FlushCache(ctx), "server: server-0: flush cache: POST /flush_cache: context deadline exceeded")
			require.Len(t, w.made("POST /flush_cache"), 2)
		})
	})
	t.Run("never after an answer", func(t *testing.T) {
		for _, status := range []int{400, 404, 408, 429, 500, 502, 503, 504} {
			w, seen := newPlayback(t).tiny().on("POST /set_internal_state", answer{status: status, body: `{"error":{"message":"no"}}`}), &events{}
			s := launch(t, newManager(t, launches(newInstance()), w, WithEvents(seen.add)), Config{})
			var got *StatusError
			_, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 8)
			require.ErrorAs(t, err, &got)
			require.Equal(t, StatusError{Method: "POST", Path: "/set_internal_state", Status: status, Body: "no"}, *got)
			require.Len(t, w.made("POST /set_internal_state"), 1)
			require.Len(t, seen.all(), 2)
		}
	})
	t.Run("not of aborts", func(t *testing.T) { // a second one would end requests that came after the first
		w := newPlayback(t).tiny().on("POST /abort_request", broken)
		s := launch(t, newManager(t, launches(newInstance()), w), Config{})
		require.EqualError(t, s.AbortAll(context.Background()), "server: server-0: abort all: POST /abort_request: connection reset by peer")
		require.Len(t, w.made("POST /abort_request"), 1)
	})
	t.Run("not of samples", func(t *testing.T) {
		w := newPlayback(t).tiny().on("GET /v1/loads", broken)
		s := launch(t, newManager(t, launches(newInstance()), w), Config{})
		_, err := s.Sampler().Sample(context.Background())
		require.EqualError(t, err, "server: server-0: loads: GET /v1/loads: connection reset by peer")
		require.Len(t, w.made("GET /v1/loads"), 1)
	})
}

// The same over a socket: the server drops the first connection of a call.
func TestRetryOverSocket(t *testing.T) {
	var calls atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) {})
	for path, body := range map[string]string{"/model_info": `{"model_path":"m","is_generation":true}`, "/server_info": tinyInfo(64), "/v1/models": `{"data":[]}`} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(body)) })
	}
	mux.HandleFunc("/flush_cache", func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			conn.(*net.TCPConn).SetLinger(0) // a reset, not an end
			conn.Close()
		}
	})
	host := httptest.NewServer(mux)
	defer host.Close()
	seen := &events{}
	s := launch(t, newManager(t, Attach(host.URL), nil, WithEvents(seen.add)), Config{})
	require.NoError(t, s.FlushCache(context.Background()))
	require.EqualValues(t, 2, calls.Load())
	require.Equal(t, "server-0 retry POST /flush_cache, attempt 2", seen.all()[2])
}

func TestAPIKey(t *testing.T) {
	w := newPlayback(t).tiny().on("GET /v1/loads", answer{status: 200, body: `{"loads":[{}]}`}).
		on("POST /flush_cache", answer{status: 200}).on("POST /abort_request", answer{status: 200})
	s := launch(t, newManager(t, launches(newInstance()), w, WithAPIKey("secret")), Config{})
	_, err := s.Loads(context.Background())
	require.NoError(t, err)
	require.NoError(t, s.FlushCache(context.Background()))
	require.NoError(t, s.AbortAll(context.Background()))
	require.Len(t, w.made(""), 7)
	for _, c := range w.made("") {
		require.Equal(t, "Bearer secret", c.auth, c.what)
	}
	open := newPlayback(t).tiny()
	launch(t, newManager(t, launches(newInstance()), open), Config{})
	for _, c := range open.made("") {
		require.Empty(t, c.auth)
	}
}

func TestSampler(t *testing.T) {
	w := newPlayback(t).tiny().on("GET /v1/loads", answer{status: 200, body: `{"loads":[
		{"dp_rank":0,"num_running_reqs":1,"num_waiting_reqs":2,"num_used_tokens":30,"max_total_num_tokens":100,"token_usage":0.25,"gen_throughput":5},
		{"dp_rank":1,"num_running_reqs":10,"num_waiting_reqs":20,"num_used_tokens":300,"max_total_num_tokens":100,"token_usage":0.75,"gen_throughput":50}]}`})
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	sample, err := s.Sampler().Sample(context.Background())
	require.NoError(t, err)
	require.Equal(t, map[string]float64{metrics.NumRunning: 11, metrics.NumWaiting: 22, metrics.NumUsedTokens: 330, metrics.MaxTokens: 200, metrics.TokenUsage: 0.5},
		sample, "without --enable-metrics the server's throughput means nothing")

	for body, want := range map[string]string{
		`{"loads":[]}`: "server: server-0: loads: GET /v1/loads names no rank",
		`[]`:           "server: server-0: loads: GET /v1/loads: the answer is not what SGLang sends",
	} {
		w.on("GET /v1/loads", answer{status: 200, body: body})
		_, err := s.Sampler().Sample(context.Background())
		require.ErrorContains(t, err, want)
	}
}

func TestSamplerTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := launch(t, newManager(t, launches(newInstance()), newPlayback(t).tiny().on("GET /v1/loads", answer{after: time.Hour})), Config{})
		start := time.Now()
		_, err := s.Sampler().Sample(context.Background())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 2*time.Second, time.Since(start))
	})
}

func TestAttachURL(t *testing.T) {
	for _, url := range []string{"", "127.0.0.1:30000", "ftp://gpu-7", "http://", "http://%"} {
		_, err := newManager(t, Attach(url), nil).Launch(context.Background(), Config{})
		require.ErrorContains(t, err, `want a base URL such as "http://127.0.0.1:30000"`, url)
	}
}
