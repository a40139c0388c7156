package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

func TestReadyPolls(t *testing.T) {
	refused, starting, none := answer{err: errors.New("connection refused")}, answer{status: 503}, answer{status: 404, body: `{"detail":"Not Found"}`}
	t.Run("ready route", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newPlayback(t).tiny().on("GET /ready", refused, refused, starting, answer{status: 200})
			launch(t, newManager(t, launches(newInstance()), w), Config{})
			require.Equal(t, []time.Duration{0, 100 * ms, 200 * ms, 300 * ms}, w.times("GET /ready"))
			require.Equal(t, []time.Duration{300 * ms}, w.times("GET /model_info"))
			require.Empty(t, w.times("GET /health"))
		})
	})
	t.Run("health route", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newPlayback(t).tiny().on("GET /ready", refused, none).on("GET /health", starting, starting, answer{status: 200, after: time.Second})
			m := newManager(t, launches(newInstance()), w)
			launch(t, m, Config{})
			require.Equal(t, []time.Duration{0, 100 * ms}, w.times("GET /ready"), "asked no more once it is known to be missing")
			require.Equal(t, []time.Duration{100 * ms, 200 * ms, 300 * ms}, w.times("GET /health"))
			require.Equal(t, []time.Duration{100 * ms, 1300 * ms}, w.times("GET /model_info"), "what it is, and its facts when it is ready")
			require.Equal(t, []time.Duration{1300 * ms}, w.times("GET /server_info"), "no scheduler round trip during the warm-up")
		})
	})
	t.Run("facts fail at first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newPlayback(t).tiny()
			info := w.answers["GET /server_info"][0]
			w.on("GET /server_info", answer{status: 500, body: "scheduler busy"}, info)
			s := launch(t, newManager(t, launches(newInstance()), w), Config{})
			require.Equal(t, 64, s.Info().MaxRunningRequests)
			require.Len(t, w.times("GET /ready"), 2)
		})
	})
}

func TestReadyTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		answers map[string]answer
		want    string
	}{
		"paused": {map[string]answer{"GET /ready": {status: 503}},
			"server: launch server-0: not ready: waited for /ready (503 while the server starts, ends or is paused); last: GET /ready: HTTP status 503; ended by the time-out of 1s: context deadline exceeded"},
		"nothing listens": {map[string]answer{"GET /ready": {err: errors.New("connection refused")}},
			"server: launch server-0: not ready: waited for /ready (503 while the server starts, ends or is paused); last: GET /ready: connection refused; ended by the time-out of 1s: context deadline exceeded"},
		"hangs": {map[string]answer{"GET /ready": {after: time.Hour}},
			"server: launch server-0: not ready: waited for /ready (503 while the server starts, ends or is paused); last: no answer yet; ended by the time-out of 1s: context deadline exceeded"},
		"warm-up goes on": {map[string]answer{"GET /ready": {status: 404}, "GET /health": {status: 503}},
			"server: launch server-0: not ready: waited for /health (503 while the server starts or ends; this SGLang has no /ready); last: GET /health: HTTP status 503; ended by the time-out of 1s: context deadline exceeded"},
		"facts hang": {map[string]answer{"GET /server_info": {after: time.Hour}},
			"server: launch server-0: not ready: waited for /ready (503 while the server starts, ends or is paused); last: no answer yet; ended by the time-out of 1s: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPlayback(t).tiny()
				for what, a := range c.answers {
					w.on(what, a)
				}
				i := newInstance()
				m := newManager(t, launches(i), w, WithReadyTimeout(time.Second))
				_, err := m.Launch(context.Background(), Config{})
				require.EqualError(t, err, c.want)
				require.Equal(t, time.Second, time.Since(w.start))
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorAs(t, err, new(*NotReadyError))
				require.Len(t, i.stops, 1)
				require.Empty(t, m.Servers(), "nothing is left")
			})
		})
	}
	t.Run("a look that hangs is given up", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newPlayback(t).tiny().on("GET /ready", answer{after: time.Hour}, answer{status: 503})
			_, err := newManager(t, launches(newInstance()), w, WithReadyTimeout(time.Minute)).Launch(context.Background(), Config{})
			require.ErrorContains(t, err, "HTTP status 503")
			require.Equal(t, 30*time.Second, w.times("GET /ready")[1])
		})
	})
}

func TestLaunchCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("the user gave up")
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(time.Second, func() { cancel(why) })
		i := newInstance()
		_, err := newManager(t, launches(i), newPlayback(t).on("GET /ready", answer{status: 503})).Launch(ctx, Config{})
		require.ErrorIs(t, err, why)
		require.Len(t, i.stops, 1)
	})
}

func TestEndWhileWaitedFor(t *testing.T) {
	crash := errors.New("exit status 1: CUDA out of memory")
	for name, answers := range map[string]map[string]answer{
		"refused":         {"GET /ready": {err: errors.New("connection refused")}},
		"no answer":       {"GET /ready": {after: time.Hour}},
		"slow health":     {"GET /ready": {status: 404}, "GET /health": {after: time.Hour}},
		"reading facts":   {"GET /server_info": {after: time.Hour}},
		"facts and crash": {"GET /v1/models": {after: 250 * ms, err: errBroken}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPlayback(t).tiny()
				for what, a := range answers {
					w.on(what, a)
				}
				i, seen := newInstance(), &events{}
				time.AfterFunc(250*ms, func() { i.end(crash) })
				m := newManager(t, launches(i), w, WithEvents(seen.add))
				_, err := m.Launch(context.Background(), Config{})
				require.EqualError(t, err, "server: launch server-0: the server has ended: "+crash.Error())
				require.ErrorIs(t, err, crash)
				require.ErrorAs(t, err, new(*ExitedError))
				require.Equal(t, 250*ms, time.Since(w.start), "at once")
				require.Contains(t, seen.all(), "server-0 state failed")
				require.NotContains(t, seen.all(), "server-0 state ready")
				require.Empty(t, m.Servers())
			})
		})
	}
	t.Run("between the last answer and the end of the launch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i, seen := newInstance(), &events{}
			w := newPlayback(t).tiny().on("GET /v1/models", answer{status: 200, body: `{}`, during: func() {
				i.end(crash)
				synctest.Wait() // the end has been noted, and the answer comes all the same
			}})
			_, err := newManager(t, launches(i), w, WithEvents(seen.add)).Launch(context.Background(), Config{})
			require.EqualError(t, err, "server: launch server-0: the server has ended: "+crash.Error())
			require.Equal(t, []string{"server-0 state starting", "server-0 state failed"}, seen.all())
		})
	})
}

// Answers over HTTP are no proof that tokens come, of a server that already runs neither.
func TestServerThatNeverGenerates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPlayback(t).tiny().on("GET /health", answer{status: 200}).on("POST /generate", answer{after: time.Hour})
		m := newManager(t, Attach("http://instance"), w)
		_, err := m.Launch(context.Background(), Config{})
		var not *NotReadyError
		require.ErrorAs(t, err, &not)
		require.Equal(t, DefaultAttachTimeout, time.Since(w.start))
		require.ErrorContains(t, err, "waited for one generated token (POST /generate; HTTP answers, but the scheduler may hang or have a long queue)")
		require.Empty(t, m.Servers())

		s := launch(t, newManager(t, Attach("http://instance"), w, WithoutProof()), Config{})
		require.Equal(t, StateReady, s.State())
	})
}

// What a launched server has in force otherwise than asked is told with both values.
func TestSettingsInForceOtherwise(t *testing.T) {
	info := func(members string) answer {
		return answer{status: 200, body: `{"version":"0.5.23",` + members + `}`}
	}
	state := func(limit string) string {
		return `"internal_states":[{"pp_max_micro_batch_size":` + limit + `,"effective_max_running_requests_per_dp":` + limit + `}]`
	}
	for name, c := range map[string]struct {
		cfg  Config
		info answer
		want []string
	}{
		"a limit beyond half of the pool": {Config{MaxRunningRequests: 5000, MaxTotalTokens: 2048},
			info(`"max_running_requests":5000,"max_total_tokens":2048,"max_total_num_tokens":2048,` + state("1024")),
			[]string{"max_running_requests: 5000 was asked for, 1024 is in force"}},
		"a smaller pool": {Config{MaxTotalTokens: 1 << 20}, info(`"max_total_tokens":1048576,"max_total_num_tokens":410620,` + state("64")),
			[]string{"max_total_tokens: 1048576 was asked for, 410620 is in force"}},
		"whole pages": {Config{MaxTotalTokens: 2050, Args: Args{"page_size": 16}}, info(`"page_size":16,"max_total_tokens":2050,"max_total_num_tokens":2048,` + state("64")), nil},
		"ranks share": {Config{MaxRunningRequests: 64, DPSize: 2, TPSize: 2, Args: Args{"enable_dp_attention": true}},
			info(`"enable_dp_attention":true,"dp_size":2,"tp_size":2,"max_running_requests":64,"internal_states":[{"effective_max_running_requests_per_dp":32},{"effective_max_running_requests_per_dp":32}]`), nil},
		"chosen again": {Config{AttentionBackend: "fa3", ChunkedPrefillSize: 8192}, info(`"attention_backend":"triton","chunked_prefill_size":4096,` + state("64")),
			[]string{"attention_backend: fa3 was asked for, triton is in force", "chunked_prefill_size: 8192 was asked for, 4096 is in force"}},
		"auto, and what is not told": {Config{DType: "auto", SchedulePolicy: "lpm"}, info(`"dtype":"bfloat16",` + state("64")), nil},
		"as asked":                   {Config{MaxRunningRequests: 64, ModelPath: "m", APIKey: "secretkey"}, info(`"model_path":"m","max_running_requests":64,"api_key":"other",` + state("64")), nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := &events{}
				w := newPlayback(t).tiny().on("GET /server_info", c.info)
				launch(t, newManager(t, launches(newInstance()), w, WithEvents(seen.add)), c.cfg)
				var got []string
				for _, e := range seen.all() {
					if text, ok := strings.CutPrefix(e, "server-0 warning "); ok {
						got = append(got, text)
					}
				}
				require.Equal(t, c.want, got)
			})
		})
	}
}

func TestNotSGLang(t *testing.T) {
	html := answer{status: 200, body: "<html>hello</html>"}
	for name, c := range map[string]struct {
		answers map[string]answer
		want    string
	}{
		"another server": {map[string]answer{"GET /ready": {status: 404}, "GET /model_info": {status: 404, body: "404 page not found"}},
			"http://instance is not an SGLang server: GET /model_info: HTTP status 404: 404 page not found (nor has SGLang before about 0.5.6 this route)"},
		"a web page":       {map[string]answer{"GET /ready": html, "GET /model_info": html}, "is not an SGLang server: GET /model_info: the answer is not what SGLang sends"},
		"another JSON":     {map[string]answer{"GET /model_info": {status: 200, body: `[1]`}}, "is not an SGLang server: GET /model_info: the answer is not what SGLang sends"},
		"members lacking":  {map[string]answer{"GET /model_info": {status: 200, body: `{"status":"ok"}`}}, "is not an SGLang server: GET /model_info has no model_path and is_generation"},
		"embedding model":  {map[string]answer{"GET /model_info": {status: 200, body: `{"model_path":"bge","is_generation":false}`}}, "the model bge does not generate text"},
		"key wanted":       {map[string]answer{"GET /model_info": {status: 401, body: `{"error":"Unauthorized"}`}}, "GET /model_info: HTTP status 401: Unauthorized: set the server's key with WithAPIKey"},
		"key wanted early": {map[string]answer{"GET /ready": {status: 401, body: `{"error":"Unauthorized"}`}}, "GET /ready: HTTP status 401: Unauthorized: set the server's key with WithAPIKey"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newPlayback(t).tiny()
				for what, a := range c.answers {
					w.on(what, a)
				}
				_, err := newManager(t, launches(newInstance()), w).Launch(context.Background(), Config{})
				require.ErrorContains(t, err, c.want)
				require.Zero(t, time.Since(w.start), "at once, since no waiting helps")
				var not *NotSGLangError
				require.Equal(t, errors.As(err, &not), c.answers["GET /model_info"].status != http.StatusUnauthorized && name != "embedding model" && name != "key wanted early")
			})
		})
	}
}
