package sim

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

// A server in real time answers whatever SGLang would admit: passes that plan nothing, limits that change, pauses and
// aborts leave no request behind.
func TestServerAnswersAll(t *testing.T) {
	for name, tc := range map[string]struct {
		version string
		args    server.Args
	}{
		"limit 1, overlap":           {"0.5.21", server.Args{"max_running_requests": 1}},
		"limit 1":                    {"0.5.21", server.Args{"max_running_requests": 1, "disable_overlap_schedule": true}},
		"limit 1, new rules":         {"0.5.23", server.Args{"max_running_requests": 1, "disable_overlap_schedule": true}},
		"prefill-decode interval":    {"0.5.23", server.Args{"prefill_decode_interval": 5, "chunked_prefill_size": 16}},
		"the same without overlap":   {"0.5.23", server.Args{"prefill_decode_interval": 5, "chunked_prefill_size": 16, "disable_overlap_schedule": true}},
		"ranks":                      {"0.5.21", server.Args{"dp_size": 2, "max_running_requests": 2, "disable_overlap_schedule": true}},
		"random order in small pool": {"0.5.23", server.Args{"schedule_policy": "random", "max_total_tokens": 100}},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := start(t, quick(), server.Config{Args: tc.args}, WithVersion(tc.version))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var all sync.WaitGroup
			for i := range 12 {
				all.Go(func() {
					status, body := c.post("/generate", fmt.Sprintf(`{"input_ids":[%s1],"sampling_params":{"max_new_tokens":%d,"ignore_eos":true}}`,
						strings.Repeat("7,", 10+5*i), 1+i%3))
					require.Equal(t, 200, status, body)
				})
			}
			most := s.EngineConfig().MaxRunningRequests
			for i := range 6 {
				switch i % 3 {
				case 0:
					c.post("/set_internal_state", fmt.Sprintf(`{"server_args":{"pp_max_micro_batch_size":%d}}`, 1+i%most))
				case 1:
					c.post("/pause_generation", fmt.Sprintf(`{"mode":%q}`, []string{"in_place", "retract"}[i/3]))
					c.post("/continue_generation", `{}`)
				default:
					c.post("/abort_request", `{"rid":"none"}`)
				}
			}
			require.NoError(t, s.WaitIdle(ctx), "requests are left: %v", s.InFlight())
			all.Wait()
		})
	}
}

// stepWatch tells of each step.
type stepWatch struct {
	*watcher
	done chan struct{}
}

func (w *stepWatch) Batch(b Batch) {
	w.watcher.Batch(b)
	w.done <- struct{}{}
}

// A request that the scheduler loses, as SGLang before 0.5.23 can, is told: by the label and to observers.
func TestLostRequestIsTold(t *testing.T) {
	w := &stepWatch{watcher: &watcher{}, done: make(chan struct{}, 1000)}
	s, c := start(t, slow(), server.Config{Args: server.Args{"max_running_requests": 2, "max_total_tokens": 1000, "enable_priority_scheduling": true}},
		WithVersion("0.5.15.post1"), WithObserver(w))
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	post := func(rid string, in, out, priority int) { // to a paused server, which takes them at once when it goes on
		n := len(s.InFlight())
		all.Go(func() {
			req, err := http.NewRequestWithContext(ctx, "POST", c.url+"/generate", strings.NewReader(fmt.Sprintf(
				`{"rid":%q,"input_ids":[%s1],"priority":%d,"sampling_params":{"max_new_tokens":%d,"ignore_eos":true}}`,
				rid, strings.Repeat(fmt.Sprint(in, ","), in-1), priority, out))) // nothing shared
			require.NoError(t, err)
			req.Header.Set("Content-Type", "application/json")
			if resp, err := c.http.Do(req); err == nil {
				resp.Body.Close()
			}
		})
		require.NoError(t, s.waitInFlight(t.Context(), func(now int) bool { return now == n+1 }))
	}
	pause := func() { c.post("/pause_generation", `{"mode":"in_place"}`) }
	resume := func() { c.post("/continue_generation", `{}`) }
	pause()
	post("a", 100, 300, 0)
	post("b", 400, 280, 100)
	resume()
	for range 3 {
		<-w.done
	}
	pause()
	require.NotContains(t, s.SimulatedBy(), "lost")
	post("c", 580, 5, 100)
	resume()
	require.NoError(t, s.waitInFlight(t.Context(), func(n int) bool { return n == 1 }))
	require.Equal(t, []string{"a"}, s.InFlight(), "it never ends")
	require.Contains(t, s.SimulatedBy(), "a preempted request lost as SGLang before 0.5.23 does")
	w.mu.Lock()
	require.Len(t, w.losses, 1)
	require.Equal(t, "a", w.losses[0].RID)
	w.mu.Unlock()
	cancel()
	all.Wait()
}

// A scheduler that dies for want of memory takes the server with it.
func TestServerDiesOfMemory(t *testing.T) {
	cfg, reqs := overfull()
	s, c := start(t, quick(), server.Config{Args: server.Args{"max_running_requests": cfg.MaxRunningRequests, "max_total_tokens": cfg.MaxTotalTokens,
		"chunked_prefill_size": cfg.ChunkedPrefillSize, "enable_mixed_chunk": true, "schedule_conservativeness": cfg.ScheduleConservativeness}},
		WithVersion("0.5.21"))
	c.post("/pause_generation", `{"mode":"in_place"}`) // so that they come at once, in this order
	var all sync.WaitGroup
	for i, r := range reqs {
		all.Go(func() {
			_, err := c.http.Post(c.url+"/generate", "application/json", strings.NewReader(fmt.Sprintf(
				`{"input_ids":[%s1],"sampling_params":{"max_new_tokens":%d}}`, strings.Repeat(fmt.Sprint(i, ","), r.InputLen-1), r.MaxNewTokens)))
			require.Error(t, err)
		})
		require.NoError(t, s.waitInFlight(t.Context(), func(n int) bool { return n == i+1 }))
	}
	c.post("/continue_generation", `{}`)
	all.Wait()
	<-s.Exited()
	require.ErrorIs(t, s.Err(), ErrSchedulerDied)
	var oom *OutOfMemoryError
	require.ErrorAs(t, s.Err(), &oom)
}
