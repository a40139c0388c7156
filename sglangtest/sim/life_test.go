package sim

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

func (c client) status(method, path string, header ...string) int {
	a := c.ask(c.t.Context(), method, path, "{}", header...)
	var status int
	fmt.Sscanf(a.line, "HTTP/1.1 %d", &status)
	return status
}

func TestVersionChoosesRoutesAndRules(t *testing.T) {
	_, err := NewServer(quick(), server.Config{}, WithVersion("0.5.14"))
	require.ErrorContains(t, err, "0.5.14")
	_, err = NewServer(quick(), server.Config{}, WithVersion("0.5.18"), WithServerArgs(map[string]any{"launch_command": "x"}))
	require.ErrorContains(t, err, `"launch_command" is not an argument of SGLang 0.5.18`)
	for version, want := range map[string][3]int{"0.5.16": {404, 404, 405}, "0.5.20": {404, 404, 405}, "0.5.21": {200, 404, 404}, "0.5.23": {200, 404, 404}} {
		s, c := start(t, quick(), server.Config{}, WithVersion(version))
		for i, path := range []string{"/ready", "/weight_version"} {
			require.Equal(t, want[i], c.status("GET", path), version+path)
		}
		require.Equal(t, want[2], c.status("POST", "/weight_version"), version)
		require.Equal(t, version, info(t, c)["version"])
		rules, err := RulesOf(version)
		require.NoError(t, err)
		require.Equal(t, rules, s.EngineConfig().Rules)
	}
}

func TestLifeOfAServer(t *testing.T) {
	for version, ping := range map[string]int{"0.5.21": 200, "0.5.23": 503} {
		s, c := start(t, slow(), server.Config{}, WithVersion(version), WithStarting())
		generate := func() {
			status, body := c.post("/generate", `{"text":"x","sampling_params":{"max_new_tokens":2}}`)
			require.Equal(t, 200, status, body)
		}
		unhealthy := func() {
			require.Equal(t, 503, c.status("GET", "/health"))
			require.Equal(t, 503, c.status("GET", "/ready"))
			require.Equal(t, ping, c.status("GET", "/ping"))
			generate()
		}
		unhealthy()
		s.Up()
		begin := time.Now()
		require.Equal(t, 200, c.status("GET", "/health"))
		require.GreaterOrEqual(t, time.Since(begin), healthPoll)
		require.Equal(t, 200, c.status("GET", "/ready"))

		s.Drain()
		s.Up()
		unhealthy()
		resp := c.open(t.Context(), "POST", "/generate", `{"text":"x","rid":"last","stream":true,"sampling_params":{"max_new_tokens":20}}`)
		require.Equal(t, []string{"last"}, s.InFlight())
		done, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, s.WaitIdle(done), context.Canceled)
		require.NoError(t, s.WaitIdle(t.Context()))
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Contains(t, string(b), "[DONE]")
		resp.Body.Close()
	}
}

func TestHealthOfAHungScheduler(t *testing.T) {
	_, c := start(t, slow(), server.Config{})
	c.post("/pause_generation", `{"mode":"in_place"}`)
	require.Equal(t, 503, c.status("GET", "/ready"))
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", c.url+"/health", nil)
	require.NoError(t, err)
	_, err = c.http.Do(req)
	require.ErrorIs(t, err, context.DeadlineExceeded, "no result has come")
}

func TestStringKillsOldScheduler(t *testing.T) {
	for _, value := range []string{`"8"`, `null`, `[1]`} {
		s, c := start(t, quick(), server.Config{}, WithVersion("0.5.15.post1"))
		_, body := c.post("/set_internal_state", `{"server_args":{"schedule_policy":"lpm"}}`)
		require.Equal(t, "[false]", body)
		_, err := c.http.Post(c.url+"/set_internal_state", "application/json", strings.NewReader(`{"server_args":{"pp_max_micro_batch_size":`+value+`}}`))
		require.Error(t, err)
		<-s.Exited()
		require.ErrorIs(t, s.Err(), ErrSchedulerDied)
		require.ErrorContains(t, s.Err(), "the scheduler died of pp_max_micro_batch_size")
	}
}

func TestKeys(t *testing.T) {
	for _, tc := range []struct {
		api, admin                string
		normalNone, normalAPI     int
		normalAdmin               int
		controlNone, controlAPI   int
		controlAdmin, healthyNone int
	}{
		{"", "", 200, 200, 200, 200, 200, 200, 200},
		{"a", "", 401, 200, 401, 401, 200, 401, 200},
		{"", "b", 200, 200, 200, 401, 401, 200, 200},
		{"a", "b", 401, 200, 401, 401, 401, 200, 200},
	} {
		_, c := start(t, quick(), server.Config{APIKey: tc.api, AdminAPIKey: tc.admin})
		api, admin := []string{"Authorization", "Bearer a"}, []string{"Authorization", "bearer b"}
		require.Equal(t, tc.normalNone, c.status("GET", "/v1/models"))
		require.Equal(t, tc.normalAPI, c.status("GET", "/v1/models", api...))
		require.Equal(t, tc.normalAdmin, c.status("GET", "/v1/models", admin...))
		require.Equal(t, tc.controlNone, c.status("POST", "/flush_cache"))
		require.Equal(t, tc.controlAPI, c.status("POST", "/flush_cache", api...))
		require.Equal(t, tc.controlAdmin, c.status("POST", "/flush_cache", admin...))
		require.Equal(t, tc.healthyNone, c.status("GET", "/ready"))
		if tc.api != "" {
			a := c.ask(t.Context(), "GET", "/nope", "")
			require.Equal(t, "HTTP/1.1 401 Unauthorized", a.line)
			require.Equal(t, `{"error":"Unauthorized"}`, a.body)
		}
	}
}

func TestPauseHoldsNewRequests(t *testing.T) {
	s, c := start(t, slow(), server.Config{})
	c.post("/pause_generation", `{"mode":"abort"}`)
	held := make(chan string, 1)
	go func() {
		_, body := c.post("/generate", `{"text":"x","rid":"held","sampling_params":{"max_new_tokens":3}}`)
		held <- body
	}()
	require.NoError(t, s.waitInFlight(t.Context(), func(n int) bool { return n > 0 }))
	c.post("/abort_request", `{"abort_all":true}`) // the scheduler does not know it
	ctx, cancel := context.WithCancel(t.Context())
	gone := c.open(ctx, "POST", "/generate", `{"text":"x","rid":"gone","stream":true,"sampling_params":{"max_new_tokens":3}}`)
	require.Len(t, s.InFlight(), 2)
	cancel()
	gone.Body.Close()
	require.NoError(t, s.waitInFlight(t.Context(), func(n int) bool { return n < 2 }))
	c.post("/continue_generation", `{}`)
	require.Contains(t, <-held, `"completion_tokens":3`)
}

func TestFlushWhilePausedByVersion(t *testing.T) {
	for version, want := range map[string]int{"0.5.18": 400, "0.5.21": 200} {
		w := newTokensOf()
		_, c := start(t, slow(), server.Config{}, WithVersion(version), WithObserver(w))
		resp := c.open(t.Context(), "POST", "/generate", `{"text":"x","rid":"r","stream":true,"sampling_params":{"max_new_tokens":300,"ignore_eos":true}}`)
		w.wait("r", 2)
		require.Equal(t, 400, c.status("POST", "/flush_cache"))
		c.post("/pause_generation", `{"mode":"retract"}`)
		require.Equal(t, want, c.status("POST", "/flush_cache"))
		c.post("/continue_generation", `{}`)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		require.Contains(t, string(b), `"num_retractions":1`)
		require.Equal(t, 200, c.status("POST", "/flush_cache?timeout=5"))
		require.Equal(t, 400, c.status("POST", "/flush_cache?timeout=-1"))
	}
}

// watcher notes what an observer is told.
type watcher struct {
	mu          sync.Mutex
	batches     []Batch
	results     []Result
	retractions []Retraction
	losses      []Loss
}

func (w *watcher) Batch(b Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.batches = append(w.batches, b)
}

func (w *watcher) Retraction(r Retraction) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retractions = append(w.retractions, r)
}

func (w *watcher) Lost(l Loss) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.losses = append(w.losses, l)
}

func (w *watcher) Result(r Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.results = append(w.results, r)
}

func TestObserver(t *testing.T) {
	w := &watcher{}
	var paths []string
	log := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			paths = append(paths, r.URL.Path)
			next.ServeHTTP(rw, r)
		})
	}
	s, c := start(t, slow(), server.Config{}, WithObserver(w), WithMiddleware(log))
	for range 2 {
		_, body := c.post("/generate", `{"input_ids":[1,2,3,4,5],"rid":"r","sampling_params":{"max_new_tokens":4}}`)
		require.Contains(t, body, `"completion_tokens":4`)
	}
	require.Equal(t, []string{"/generate", "/generate"}, paths)
	require.NoError(t, s.WaitIdle(t.Context()))
	w.mu.Lock()
	defer w.mu.Unlock()
	var prefills []Batch
	tokens := 0
	for _, b := range w.batches {
		if b.Kind == PrefillStep {
			prefills = append(prefills, b)
		} else {
			require.Equal(t, 1, b.Requests)
		}
	}
	require.Len(t, prefills, 2)
	require.Equal(t, []int{1, 5, 0}, []int{prefills[0].Requests, prefills[0].NewTokens, prefills[0].CachedTokens})
	require.Equal(t, []int{1, 1, 4}, []int{prefills[1].Requests, prefills[1].NewTokens, prefills[1].CachedTokens})
	require.Equal(t, time.Millisecond, prefills[1].Took)
	for i, r := range w.results {
		tokens += r.New
		require.Equal(t, "r", r.RID)
		require.Equal(t, i == 3 || i == 7, r.Finish != nil)
		require.Equal(t, i%4 == 0, r.Previous.IsZero())
	}
	require.Equal(t, 8, tokens)
}

// raw opens a connection and sends what is given.
func (c client) raw(sent string) net.Conn {
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	require.NoError(c.t, err)
	_, err = io.WriteString(conn, sent)
	require.NoError(c.t, err)
	return conn
}

func TestClientsThatHoldThingsUp(t *testing.T) {
	hold := func(t *testing.T, body, write time.Duration) (*Server, *tokensOf, client) {
		w := newTokensOf()
		s, c := start(t, slow(), server.Config{}, WithObserver(w))
		s.bodyTimeout, s.writeTimeout = body, write
		return s, w, c
	}
	const head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

	t.Run("slow body", func(t *testing.T) {
		_, _, c := hold(t, 50*time.Millisecond, time.Minute)
		conn := c.raw(head + "Content-Length: 100\r\n\r\n{")
		defer conn.Close()
		answer, _ := io.ReadAll(conn) // ends when the server closes it
		require.Empty(t, answer)
	})
	t.Run("body that nobody reads", func(t *testing.T) {
		_, _, c := hold(t, 50*time.Millisecond, time.Minute)
		for _, path := range []string{"/model_info", "/nope"} {
			conn := c.raw("GET " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
			defer conn.Close()
			_, _ = io.ReadAll(conn) // ends when the server closes it
		}
	})
	t.Run("huge body", func(t *testing.T) {
		_, _, c := hold(t, time.Minute, time.Minute)
		conn := c.raw(head + fmt.Sprintf("Content-Length: %d\r\n\r\n", maxBody+1))
		defer conn.Close()
		line, err := bufio.NewReader(conn).ReadString('\n') // none of it need come
		require.NoError(t, err)
		require.Contains(t, line, "413")
	})
	t.Run("half closed", func(t *testing.T) {
		s, w, c := hold(t, time.Minute, time.Minute)
		const body = `{"text":"x","rid":"half","stream":true,"sampling_params":{"max_new_tokens":100000}}`
		conn := c.raw(head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))
		defer conn.Close()
		w.wait("half", 1)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite()) // uvicorn takes it for a client that has gone, too
		require.NoError(t, s.WaitIdle(t.Context()))
	})
	t.Run("no reader", func(t *testing.T) {
		s, w, c := hold(t, time.Minute, 50*time.Millisecond)
		rid := strings.Repeat("r", 1<<20)
		body := fmt.Sprintf(`{"text":"x","rid":"%s","stream":true,"sampling_params":{"max_new_tokens":100000}}`, rid)
		conn := c.raw(head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))
		defer conn.Close()
		w.wait(rid, 1)
		require.NoError(t, s.WaitIdle(t.Context())) // a megabyte in each event fills the socket at once
	})
}
