package sim

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
)

// bubbleWaiter is a waiter on the clock of a synctest bubble.
type bubbleWaiter chan struct{}

func (w bubbleWaiter) Wait(d time.Duration) {
	if d < 0 {
		<-w
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-w:
	case <-t.C:
	}
}

func (w bubbleWaiter) Wake() {
	select {
	case w <- struct{}{}:
	default:
	}
}

func (w bubbleWaiter) Close() error { return nil }

// bubbleServer is a server without a socket whose steps take 10 ms.
func bubbleServer(t *testing.T, opts ...Option) *Server {
	p := quick()
	p.Model = Linear{DecodeBase: 10, PrefillBase: 10}
	s, err := NewServer(p, server.Config{MaxRunningRequests: 8, Args: map[string]any{"enable_metrics": true}}, opts...)
	require.NoError(t, err)
	s.host.waiter = make(bubbleWaiter, 1)
	require.NoError(t, s.host.begin())
	s.Up()
	close(s.served)
	t.Cleanup(func() { s.finish(nil) })
	return s
}

// visit sends a request whose client leaves after a time, and returns a channel that is closed when its handler has ended.
func visit(s *Server, path, body string, leaves time.Duration) <-chan struct{} {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		defer func() { _ = recover() }() // as net/http does
		time.AfterFunc(leaves, cancel)
		r := httptest.NewRequestWithContext(ctx, "POST", path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		s.ServeHTTP(httptest.NewRecorder(), r)
	}()
	return done
}

// idleAfter returns when the scheduler has nothing to do any more.
func idleAfter(s *Server, begin time.Time) time.Duration {
	for {
		s.host.mu.Lock()
		busy := s.host.loops.Loops[0].Engine.Busy()
		s.host.mu.Unlock()
		if !busy {
			return time.Since(begin)
		}
		time.Sleep(5 * time.Millisecond) // of the bubble's clock
	}
}

// A client that leaves is noticed when SGLang notices it. Without, the answer takes 20 s. The real 0.5.23 on a CPU, left after
// 0.5 s, aborted streams of /generate (one, two prompts, n = 2) and of a chat within 0.1 s, and the same not streamed 3.55 s to
// 3.58 s later.
func TestClientsThatLeaveAreNoticedAsBySGLang(t *testing.T) {
	const end = 20 * time.Second
	body := func(prompt, more string) string {
		return `{"text":` + prompt + more + `,"sampling_params":{"max_new_tokens":2000,"ignore_eos":true%s}}`
	}
	const stream = `,"stream":true`
	plain, streamed := body(`"x"`, ""), body(`"x"`, stream)
	for _, c := range []struct {
		name, version, path, body string
		leaves, aborted           time.Duration
		calls                     float64 // num_aborted_requests_total
	}{
		{"stream", "0.5.15.post1", "/generate", streamed, 500, 2500, 1},
		{"stream", "0.5.18", "/generate", streamed, 500, 0, 0},
		{"stream", "0.5.21", "/generate", streamed, 500, 500, 1},
		{"stream", "0.5.23", "/generate", streamed, 500, 500, 1},
		{"stream of two", "0.5.15.post1", "/generate", body(`["x","y"]`, stream), 500, 2500, 2},
		{"stream of two", "0.5.23", "/generate", body(`["x","y"]`, stream), 500, 500, 2},
		{"stream, n=2", "0.5.15.post1", "/generate", fmt.Sprintf(streamed, `,"n":2`), 500, 0, 0},
		{"stream, n=2", "0.5.23", "/generate", fmt.Sprintf(streamed, `,"n":2`), 500, 500, 2},
		{"plain", "0.5.15.post1", "/generate", plain, 500, 4000, 1},
		{"plain", "0.5.18", "/generate", plain, 500, 4000, 1},
		{"plain", "0.5.23", "/generate", plain, 500, 4000, 1},
		{"plain, later", "0.5.23", "/generate", plain, 4500, 8000, 1},
		{"plain, two", "0.5.23", "/generate", body(`["x","y"]`, ""), 500, 4000, 2},
		{"plain, n=2", "0.5.15.post1", "/generate", fmt.Sprintf(plain, `,"n":2`), 500, 4020, 2}, // after the request for none
		{"chat stream", "0.5.23", "/v1/chat/completions", `{"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":2000,"ignore_eos":true}`, 500, 500, 1},
		{"chat", "0.5.23", "/v1/chat/completions", `{"messages":[{"role":"user","content":"x"}],"max_tokens":2000,"ignore_eos":true}`, 500, 4000, 1},
		{"chat stream without an output", "0.5.23", "/v1/chat/completions", `{"messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":2000,"ignore_eos":true}`, 5, 10, 1},
	} {
		t.Run(c.version+" "+c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := bubbleServer(t, WithVersion(c.version))
				begin := time.Now()
				if strings.Contains(c.body, "%s") {
					c.body = fmt.Sprintf(c.body, "")
				}
				done := visit(s, c.path, c.body, c.leaves*time.Millisecond)
				time.Sleep(c.leaves * time.Millisecond) // a call with n > 1 has a gap at its begin
				got, want := idleAfter(s, begin), c.aborted*time.Millisecond
				if want == 0 {
					want = end
				}
				require.InDelta(t, want.Seconds(), got.Seconds(), 0.04) // two steps are under way
				<-done
				require.NoError(t, s.WaitIdle(t.Context()))
				require.Equal(t, c.calls, total(parseMetrics(t, string(s.host.meter.page())), "num_aborted_requests_total"))
			})
		})
	}
}

// A stream of the OpenAI API that has had no output is looked after every four seconds, one of /generate at once.
func TestClientThatLeavesTheQueue(t *testing.T) {
	for path, want := range map[string]time.Duration{"/generate": time.Second, "/v1/completions": 4 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s := bubbleServer(t)
			var busy []<-chan struct{}
			for range 8 {
				busy = append(busy, visit(s, "/generate", `{"text":"x","sampling_params":{"max_new_tokens":2000}}`, time.Hour))
			}
			synctest.Wait()
			begin := time.Now()
			done := visit(s, path, `{"text":"x","prompt":"x","stream":true}`, time.Second)
			synctest.Wait()
			<-done
			require.Equal(t, want, time.Since(begin))
			time.Sleep(20 * time.Millisecond) // the scheduler reads its messages between steps
			require.Len(t, s.InFlight(), 8)
			for _, b := range busy {
				<-b
			}
		})
	}
}

// Whoever left during a pause is not sent to the scheduler if the answer is a stream; otherwise SGLang looks for the client four
// seconds after the pause.
func TestClientThatLeavesDuringAPause(t *testing.T) {
	for more, want := range map[string]int{`,"stream":true`: 0, "": 1} {
		synctest.Test(t, func(t *testing.T) {
			s := bubbleServer(t, WithVersion("0.5.15.post1"))
			s.host.pause(0)
			visit(s, "/generate", `{"text":"x"`+more+`,"sampling_params":{"max_new_tokens":2000}}`, time.Second)
			time.Sleep(time.Minute)
			require.Len(t, s.InFlight(), want)
			begin := time.Now()
			s.host.resume()
			synctest.Wait()
			if want > 0 {
				require.InDelta(t, 4, idleAfter(s, begin).Seconds(), 0.04)
			}
			synctest.Wait()
			require.Empty(t, s.InFlight())
		})
	}
}

// The task that aborts later does not outlive the server.
func TestCloseDoesNotWaitForLaterAborts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := bubbleServer(t, WithVersion("0.5.15.post1"))
		<-visit(s, "/generate", `{"text":"x","stream":true,"sampling_params":{"max_new_tokens":2000}}`, time.Second)
		begin := time.Now()
		require.Len(t, s.InFlight(), 1)
		s.finish(nil)
		require.Zero(t, time.Since(begin))
	})
}

// What 0.5.18 has forgotten does not keep it from draining, and nobody counts its answer.
func TestForgottenStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watcher{}
		s := bubbleServer(t, WithVersion("0.5.18"), WithObserver(w))
		begin := time.Now()
		<-visit(s, "/generate", `{"text":"x","stream":true,"sampling_params":{"max_new_tokens":2000}}`, time.Second)
		require.NoError(t, s.WaitIdle(t.Context()))
		require.Equal(t, time.Second, time.Since(begin))
		require.InDelta(t, 20, idleAfter(s, begin).Seconds(), 0.04)
		require.Nil(t, w.results[len(w.results)-1].Finish)
		require.Zero(t, total(parseMetrics(t, string(s.host.meter.page())), "num_requests_total"))
	})
}
