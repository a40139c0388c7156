package server

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

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
	for path, body := range map[string]string{"/model_info": `{"model_path":"m","is_generation":true}`, "/server_info": tinyInfo(64), "/v1/models": `{"data":[]}`, "/generate": oneToken.body} {
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

// SGLang's table of keys (utils/auth.py): with an admin key alone the other calls are open, and with both keys each call takes
// one only.
func TestKeys(t *testing.T) {
	for name, c := range map[string]struct {
		opts          []Option
		normal, admin string
	}{
		"none":  {nil, "", ""},
		"api":   {[]Option{WithAPIKey("a")}, "Bearer a", "Bearer a"},
		"admin": {[]Option{WithAdminAPIKey("b")}, "", "Bearer b"},
		"both":  {[]Option{WithAPIKey("a"), WithAdminAPIKey("b")}, "Bearer a", "Bearer b"},
	} {
		t.Run(name, func(t *testing.T) {
			ok := answer{status: 200}
			w := newPlayback(t).tiny().on("GET /v1/loads", answer{status: 200, body: `{"loads":[{}]}`}).on("GET /metrics", answer{status: 200, body: "sglang:num_running_reqs 1"})
			normal := []string{"GET /ready", "GET /model_info", "GET /server_info", "GET /v1/models", "GET /v1/loads", "GET /metrics"}
			s := launch(t, newManager(t, launches(newInstance()), w, c.opts...), Config{})
			ctx := context.Background()
			for path, call := range map[string]func() error{
				"/flush_cache": func() error { return s.FlushCache(ctx) }, "/abort_request": func() error { return s.AbortAll(ctx) },
				"/pause_generation": func() error { return s.Pause(ctx, PauseInPlace) }, "/continue_generation": func() error { return s.Continue(ctx) },
				"/slow_down": func() error { return s.SlowDown(ctx, time.Second) }, "/start_profile": func() error { return s.StartProfile(ctx, Profile{}) },
				"/stop_profile": func() error { return s.StopProfile(ctx) }, "/configure_logging": func() error { return s.SetLogLevel(ctx, "info") },
				"/load_lora_adapter": func() error { return s.LoadLoRA(ctx, LoRA{Name: "a", Path: "p"}) }, "/unload_lora_adapter": func() error { return s.UnloadLoRA(ctx, "a") },
				"/set_internal_state": func() error { _, err := s.UpdateParam(ctx, ParamMaxRunningRequests, 64); return err },
				"/update_x":           func() error { _, err := s.UpdateParam(ctx, "x", 1); return err },
			} {
				if path != "/set_internal_state" {
					ok.body = `{"success":true}`
					w.on("POST "+path, ok)
				}
				require.NoError(t, call())
				require.Equal(t, c.admin, w.made("POST " + path)[0].auth, path)
			}
			_, err := s.Loads(ctx)
			require.NoError(t, err)
			_, err = s.Metrics(ctx)
			require.NoError(t, err)
			for _, what := range normal {
				require.NotEmpty(t, w.made(what))
				for _, made := range w.made(what) {
					require.Equal(t, c.normal, made.auth, what)
				}
			}
		})
	}
}

func TestControl(t *testing.T) {
	ctx := context.Background()
	w := newPlayback(t).tiny()
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	for _, c := range []struct {
		path, body string
		call       func() error
	}{
		{"/pause_generation", `{"mode":"retract"}`, func() error { return s.Pause(ctx, PauseRetract) }},
		{"/continue_generation", `{}`, func() error { return s.Continue(ctx) }},
		{"/slow_down", `{"forward_sleep_time":0.05}`, func() error { return s.SlowDown(ctx, 50*ms) }},
		{"/slow_down", `{"forward_sleep_time":null}`, func() error { return s.SlowDown(ctx, 0) }},
		{"/start_profile", `{"output_dir":"/d","num_steps":5,"activities":["CPU"]}`, func() error {
			return s.StartProfile(ctx, Profile{OutputDir: "/d", Steps: 5, Activities: []string{"CPU"}})
		}},
		{"/configure_logging", `{"log_level":"warning"}`, func() error { return s.SetLogLevel(ctx, "warning") }},
		{"/load_lora_adapter", `{"lora_name":"a","lora_path":"p","pinned":true}`, func() error { return s.LoadLoRA(ctx, LoRA{"a", "p", true}) }},
		{"/unload_lora_adapter", `{"lora_name":"a"}`, func() error { return s.UnloadLoRA(ctx, "a") }},
	} {
		w.on("POST "+c.path, answer{status: 200, body: `{"success":true}`})
		require.NoError(t, c.call())
		calls := w.made("POST " + c.path)
		require.JSONEq(t, c.body, calls[len(calls)-1].body)
	}
	for want, call := range map[string]func() error{
		`server: pause: mode "drain"; want one of ["abort" "retract" "in_place"]`:                          func() error { return s.Pause(ctx, "drain") },
		"server: slow down: -1s: want ≥ 0; 0 for full speed":                                               func() error { return s.SlowDown(ctx, -time.Second) },
		`server: set log level: "INFO"; want one of debug, info, warning, error, critical`:                 func() error { return s.SetLogLevel(ctx, "INFO") },
		"server: start profile: -1 steps: want ≥ 0":                                                        func() error { return s.StartProfile(ctx, Profile{Steps: -1}) },
		"server: load LoRA: want a name and a path":                                                        func() error { return s.LoadLoRA(ctx, LoRA{Name: "a"}) },
		"server: unload LoRA: want a name":                                                                 func() error { return s.UnloadLoRA(ctx, "") },
		"server: server-0: unload LoRA b: POST /unload_lora_adapter: HTTP status 400: LoRA is not enabled": func() error { return s.UnloadLoRA(ctx, "b") },
		"server: server-0: load LoRA b: the server refused it: no such path":                               func() error { return s.LoadLoRA(ctx, LoRA{Name: "b", Path: "p"}) },
	} {
		w.on("POST /unload_lora_adapter", answer{status: 400, body: `{"success":false,"error_message":"LoRA is not enabled","loaded_adapters":null}`}).
			on("POST /load_lora_adapter", answer{status: 200, body: `{"success":false,"error_message":"no such path"}`})
		require.EqualError(t, call(), want)
	}
}

func TestRecordedControl(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		ctx := context.Background()
		w.on("POST /pause_generation", recording(t, version, "pause_in_place")).on("POST /continue_generation", recording(t, version, "continue")).
			on("POST /slow_down", recording(t, version, "slow_down"), recording(t, version, "slow_down_off"))
		require.NoError(t, s.Pause(ctx, PauseInPlace))
		require.NoError(t, s.Continue(ctx))
		require.NoError(t, s.SlowDown(ctx, time.Second))
		require.NoError(t, s.SlowDown(ctx, 0))
	})
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
	for url, want := range map[string]string{
		"http://gpu-7/v1":                       `/v1 belongs to the route and is added to the base URL: leave it out and use "http://gpu-7"`,
		"http://me:secret@gpu-7/team/v1/":       `use "http://me:xxxxx@gpu-7/team"`,
		"http://gpu-7/team/v1/chat/completions": `use "http://gpu-7/team"`,
		"http://gpu-7/generate?x=secret":        "neither a query nor a fragment",
		"http://me:secret@gpu-7:port":           "want a base URL",
	} {
		_, err := newManager(t, Attach(url), newPlayback(t)).Launch(context.Background(), Config{})
		require.ErrorContains(t, err, want)
		require.NotContains(t, strings.ReplaceAll(err.Error(), "x=secret", ""), "secret")
	}
}
