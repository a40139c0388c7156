package server

import (
	"context"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// forVersions runs a test against the recordings of each version, attached to.
func forVersions(t *testing.T, test func(t *testing.T, version string, w *playback, s *Server)) {
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			refdata.Path(t, "sglang-cpu/"+v.name+"/server_info.txt")
			synctest.Test(t, func(t *testing.T) {
				w := newPlayback(t).record(v.name, v.hasReady)
				test(t, v.name, w, launch(t, newManager(t, Attach("http://recorded/"), w), Config{}))
			})
		})
	}
}

func recording(t *testing.T, version, name string) answer {
	return answer{file: refdata.Path(t, "sglang-cpu/"+version+"/"+name+".txt")}
}

func TestRecordedInfo(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		require.Equal(t, "http://recorded", s.URL())
		require.Equal(t, Info{
			Version: version, ModelPath: "tiny-llama", ServedModelName: "tiny-llama", ContextLength: 4096, MaxInputLen: 4090,
			MaxTotalTokens: 20000, MaxRunningRequests: 64, DPSize: 1,
		}, s.Info())
		for _, v := range versions {
			if v.name == version {
				require.Equal(t, !v.hasReady, len(w.made("GET /health")) == 1, "/health costs a generation: asked only where /ready is missing")
			}
		}
	})
}

func TestRecordedConfig(t *testing.T) {
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			m := newManager(t, Attach("http://recorded"), newPlayback(t).record(v.name, v.hasReady))
			launch(t, m, Config{ModelPath: "tiny-llama", TokenizerPath: "tiny-llama", ServedModelName: "tiny-llama", Host: "127.0.0.1", Port: v.port,
				MaxRunningRequests: 64, MaxTotalTokens: 20000, ContextLength: 4096, MemFractionStatic: 0.1, MaxPrefillTokens: 16384, ScheduleConservativeness: 1,
				APIKey: "secret", Args: Args{"page_size": 1, "device": "cpu"}})
			_, err := m.Launch(context.Background(), Config{ModelPath: "other", Host: "0.0.0.0", Port: 30000, MaxRunningRequests: 65, ContextLength: 2048,
				MaxQueuedRequests: 9, MemFractionStatic: 0.5, EnableTorchCompile: true, GPUs: []int{0}, APIKey: "secret",
				Args: Args{"device": "cuda"}})
			require.EqualError(t, err, `server: launch server-1: the server already runs and its settings differ from the config:
gpus: the server already runs, so its GPUs cannot be chosen
context_length: the running server has 4096, not 2048
device: the running server has cpu, not cuda
enable_torch_compile: the running server has false, not true
host: the running server has 127.0.0.1, not 0.0.0.0
max_queued_requests: the running server does not tell this setting, so 9 cannot be checked
max_running_requests: the running server has 64, not 65
mem_fraction_static: the running server has 0.1, not 0.5
model_path: the running server has tiny-llama, not other
port: the running server has `+strconv.Itoa(v.port)+`, not 30000`)
			require.Len(t, m.Servers(), 1)
		})
	}
}

func TestRecordedLoads(t *testing.T) {
	busy := map[string]Load{
		"0.5.15.post1": {NumRunning: 2, NumUsedTokens: 265, MaxTotalTokens: 20000, TokenUsage: 0.0132, GenThroughput: 135.5},
		"0.5.18":       {NumRunning: 2, NumUsedTokens: 700, MaxTotalTokens: 20000, TokenUsage: 0.035, GenThroughput: 451.14},
		"0.5.21":       {NumRunning: 2, NumUsedTokens: 67, MaxTotalTokens: 20000, TokenUsage: 0.0034, GenThroughput: 1.91},
		"0.5.23":       {NumRunning: 2, NumUsedTokens: 547, MaxTotalTokens: 20000, TokenUsage: 0.0273, GenThroughput: 322.34},
	}
	forVersions(t, func(t *testing.T, version string, _ *playback, s *Server) {
		idle, err := s.Loads(context.Background())
		require.NoError(t, err)
		told := version != "0.5.15.post1" // it does not tell the time of its snapshot
		require.Equal(t, told, idle[0].Age > 0)
		require.Equal(t, told, idle[0].PrefilledTokens != nil)
		idle[0].Age, idle[0].PrefilledTokens = 0, nil
		require.Equal(t, []Load{{MaxTotalTokens: 20000}}, idle)
		loads, err := s.Loads(context.Background())
		require.NoError(t, err)
		want := busy[version]
		require.Less(t, loads[0].Age, time.Second)
		loads[0].PrefilledTokens = nil
		want.Age = loads[0].Age
		require.Equal(t, []Load{want}, loads)
		require.Equal(t, s.Name(), s.Sampler().Name())
		sample, err := s.Sampler().Sample(context.Background())
		require.NoError(t, err)
		require.Equal(t, told, sample[metrics.SnapshotAge] > 0)
		delete(sample, metrics.SnapshotAge)
		require.Equal(t, map[string]float64{
			metrics.NumRunning: 2, metrics.NumWaiting: 0, metrics.NumUsedTokens: float64(want.NumUsedTokens), metrics.MaxTokens: 20000,
			metrics.TokenUsage: want.TokenUsage, metrics.GenThroughput: want.GenThroughput,
		}, sample)
	})
}

func TestRecordedUpdateParam(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		w.on("POST /set_internal_state", answer{file: refdata.Path(t, "sglang-cpu/"+version+"/set_internal_state_4.txt"), after: 20 * ms})
		w.on("GET /server_info", answer{file: refdata.Path(t, "sglang-cpu/"+version+"/server_info_after_set.txt"), after: 30 * ms})
		start := time.Now()
		u, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 4)
		require.NoError(t, err)
		require.Equal(t, ParamUpdate{Server: "server-0", Name: "max_running_requests", Value: 4, Previous: 64, ReadBack: 4, Running: []int{0}, Mechanism: "set_internal_state pp_max_micro_batch_size",
			Asked: start, Accepted: start.Add(20 * ms), Verified: start.Add(50 * ms)}, u)
		require.JSONEq(t, `{"server_args":{"pp_max_micro_batch_size":4}}`, w.made("POST /set_internal_state")[0].body)

		w.on("POST /set_internal_state", recording(t, version, "set_internal_state_64")).on("GET /server_info", recording(t, version, "server_info"))
		u, err = s.UpdateParam(context.Background(), ParamMaxRunningRequests, 64)
		require.NoError(t, err)
		require.Equal(t, []int{4, 64}, []int{u.Previous, u.ReadBack})
		require.Equal(t, 64, s.Info().MaxRunningRequests)
	})
}

func TestRecordedRefusal(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		w.on("POST /set_internal_state", recording(t, version, "set_internal_state_out_of_range"))
		u, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, 32)
		require.EqualError(t, err, "server: cannot set max_running_requests to 32: the server refused it (its log says why)")
		require.ErrorAs(t, err, new(*ParamError))
		require.Zero(t, u.Accepted)
		require.Len(t, w.made("POST /set_internal_state"), 1, "a refusal is sent once")

		w.on("POST /set_internal_state", recording(t, version, "set_internal_state_4")) // confirmed, but the server still has 64
		_, err = s.UpdateParam(context.Background(), ParamMaxRunningRequests, 4)
		require.EqualError(t, err, "server: cannot set max_running_requests to 4: the server confirmed it but then says 64")
		u, _ = s.UpdateParam(context.Background(), ParamMaxRunningRequests, 4)
		require.Equal(t, 64, u.Previous, "what the server said, not what it confirmed")

		if version != "0.5.15.post1" {
			w.on("POST /set_internal_state", recording(t, version, "set_internal_state_null"))
			_, err = s.UpdateParam(context.Background(), ParamMaxRunningRequests, 4)
			require.ErrorContains(t, err, "set max_running_requests: POST /set_internal_state: HTTP status 400: 3 validation errors:")
			require.Less(t, len(err.Error()), 700)
		}
	})
}

func TestRecordedFlushCache(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		busy := recording(t, version, "flush_cache_busy")
		w.on("POST /flush_cache", busy, busy, recording(t, version, "flush_cache"))
		start := time.Now()
		require.NoError(t, s.FlushCache(context.Background()))
		require.Equal(t, 200*ms, time.Since(start))
		require.Len(t, w.made("POST /flush_cache"), 3)

		w.on("POST /flush_cache", busy)
		ctx, cancel := context.WithTimeout(context.Background(), 350*ms)
		defer cancel()
		err := s.FlushCache(ctx)
		require.EqualError(t, err, "server: server-0: flush cache: the server did not become idle: POST /flush_cache: HTTP status 400: Flush cache failed.: context deadline exceeded")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Len(t, w.made("POST /flush_cache"), 3+4)

		w.on("POST /flush_cache", busy, answer{after: time.Hour})
		ctx, cancel = context.WithTimeout(context.Background(), 350*ms)
		defer cancel()
		require.ErrorContains(t, s.FlushCache(ctx), "the server did not become idle", "also if the last try got no answer")

		w.on("POST /flush_cache", answer{status: http.StatusUnauthorized, body: `{"error":"Unauthorized"}`})
		require.ErrorContains(t, s.FlushCache(context.Background()), "HTTP status 401: Unauthorized: set the server's key with WithAPIKey, or with WithAdminAPIKey if it has an admin key")
	})
}

func TestRecordedAbort(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		w.on("POST /abort_request", recording(t, version, "abort_request"), recording(t, version, "abort_request_all"))
		require.NoError(t, s.Abort(context.Background(), "r-1"))
		require.NoError(t, s.AbortAll(context.Background()))
		require.EqualError(t, s.Abort(context.Background(), ""), "server: abort: empty request id; AbortAll ends all requests")
		calls := w.made("POST /abort_request")
		require.Len(t, calls, 2)
		require.JSONEq(t, `{"rid":"r-1"}`, calls[0].body)
		require.JSONEq(t, `{"rid":"","abort_all":true}`, calls[1].body)
	})
}

// A limit that an earlier experiment left behind would cap the next one.
func TestRecordedLoweredLimit(t *testing.T) {
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			w := newPlayback(t).record(v.name, v.hasReady).on("GET /server_info", recording(t, v.name, "server_info_after_set"))
			m := newManager(t, Attach("http://recorded"), w)
			_, err := m.Launch(context.Background(), Config{MaxRunningRequests: 64})
			require.ErrorContains(t, err, "max_running_requests: the limit in force at the running server is only 4: leave this setting out and use UpdateParam")
			s := launch(t, m, Config{})
			require.Equal(t, 64, s.Info().MaxRunningRequests)
		})
	}
}
