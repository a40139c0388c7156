package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// generate sends n requests of the given number of output tokens at once, and returns a function that aborts them and waits
// for their ends.
func generate(t *testing.T, s *server.Server, n, tokens int) (abort func()) {
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{}}
	for i := range n {
		wg.Go(func() {
			body := fmt.Sprintf(`{"rid": "latch-%03d", "input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": %d, "ignore_eos": true}}`, i, tokens)
			resp, err := client.Post(s.URL()+"/generate", "application/json", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode != http.StatusOK {
				t.Error(resp.Status)
			}
		})
	}
	return func() {
		for i := range n {
			if err := s.Abort(context.Background(), fmt.Sprintf("latch-%03d", i)); err != nil {
				t.Error(err)
			}
		}
		wg.Wait()
		client.CloseIdleConnections()
	}
}

// awaitLoad waits until the load is as wanted.
func awaitLoad(t *testing.T, s *server.Server, wanted func(server.Load) bool) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		loads, err := s.Loads(ctx)
		require.NoError(t, err)
		if wanted(loads[0]) {
			return
		}
	}
}

// latch fills a batch at a small limit and raises the limit, which the server accepts at once, but which is not in force before
// a request has finished. It returns the raise. Other clients of the server may be there.
func latch(t *testing.T, s *server.Server, low, high, requests, tokens int) server.ParamUpdate {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	set := func(limit int) server.ParamUpdate {
		u, err := s.UpdateParam(ctx, server.ParamMaxRunningRequests, limit)
		require.NoError(t, err)
		u, err = s.WaitInForce(ctx, u)
		require.NoError(t, err)
		t.Logf("%d → %d with %v running: accepted after %v, in force after %v to %v", u.Previous, u.Value, u.Running,
			u.Accepted.Sub(u.Asked), u.NotBefore.Sub(u.Asked), u.InForce.Sub(u.Asked))
		require.True(t, u.Asked.Before(u.Accepted) && u.Accepted.Before(u.InForce))
		return u
	}
	set(low)
	defer generate(t, s, requests, tokens)()
	awaitLoad(t, s, func(l server.Load) bool { return l.NumRunning >= low && l.NumWaiting > 0 })
	raise := set(high)
	awaitLoad(t, s, func(l server.Load) bool { return l.NumRunning == high })
	return raise
}

func TestSimulatedLatch(t *testing.T) {
	ctx := context.Background()
	m, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B()))
	require.NoError(t, err)
	defer m.StopAll(ctx)
	s, err := m.Launch(ctx, server.Config{MaxRunningRequests: 64})
	require.NoError(t, err)
	u := latch(t, s, 4, 16, 24, 200)
	require.Equal(t, []int{4}, u.Running)
	require.False(t, u.NotBefore.Before(u.Accepted), "it was not in force when the server accepted it")
}

func TestRealSGLangLatch(t *testing.T) {
	_, s := attachReal(t)
	most := s.Info().MaxRunningRequests
	t.Cleanup(func() {
		_, err := s.UpdateParam(context.Background(), server.ParamMaxRunningRequests, most)
		require.NoError(t, err)
	})
	latch(t, s, 4, 16, 24, 400)
}

func TestRealSGLangTelemetry(t *testing.T) {
	_, s := attachReal(t)
	series, err := s.Metrics(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, series)
	sample, err := s.MetricsSampler().Sample(t.Context())
	require.NoError(t, err)
	t.Logf("%d series, of which a sample has %v", len(series), sample)
	require.Contains(t, sample, "sglang:num_running_reqs")
	require.NoError(t, s.SetLogLevel(t.Context(), "info"))
	err = s.LoadLoRA(t.Context(), server.LoRA{Name: "none", Path: "/none"})
	require.Error(t, err)
	t.Log(err)
	_, err = s.UpdateParam(t.Context(), "chunked_prefill_size", 512)
	require.ErrorAs(t, err, new(*server.NotChangeableError))
}

// What no run-time mechanism changes, a restart does, where it is allowed: on the same port.
func TestSimulatedUpdateByRestart(t *testing.T) {
	ctx := t.Context()
	m, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B()))
	require.NoError(t, err)
	defer m.StopAll(context.Background())
	s, err := m.Launch(ctx, server.Config{MaxRunningRequests: 64})
	require.NoError(t, err)
	url := s.URL()
	_, err = s.UpdateParam(ctx, "chunked_prefill_size", 512)
	require.ErrorAs(t, err, new(*server.NotChangeableError))
	for name, value := range map[string]int{"chunked_prefill_size": 512, server.ParamMaxRunningRequests: 96} {
		u, err := s.UpdateParam(ctx, name, value, server.WithRestart())
		require.NoError(t, err)
		require.Equal(t, "restart", u.Mechanism)
		require.Equal(t, value, u.ReadBack)
		require.True(t, u.Asked.Before(u.Accepted) && !u.Verified.Before(u.Accepted))
	}
	require.Equal(t, url, s.URL())
	require.Equal(t, 96, s.Info().MaxRunningRequests)
	u, err := s.UpdateParam(ctx, server.ParamMaxRunningRequests, 8, server.WithRestart())
	require.NoError(t, err)
	require.Equal(t, "set_internal_state pp_max_micro_batch_size", u.Mechanism, "no restart where less will do")
	_, err = s.UpdateParam(ctx, "no_such_argument", 8, server.WithRestart())
	require.ErrorContains(t, err, "no_such_argument")
	require.Equal(t, server.StateReady, s.State(), "a faulty change must not stop the server")
}

func TestSimulatedPause(t *testing.T) {
	ctx := t.Context()
	m, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B()))
	require.NoError(t, err)
	defer m.StopAll(context.Background())
	s, err := m.Launch(ctx, server.Config{})
	require.NoError(t, err)
	for _, mode := range []server.PauseMode{server.PauseInPlace, server.PauseRetract, server.PauseAbort} {
		require.NoError(t, s.Pause(ctx, mode))
		require.NoError(t, s.Continue(ctx))
	}
	require.NoError(t, s.SlowDown(ctx, time.Millisecond))
	require.NoError(t, s.SlowDown(ctx, 0))
	require.NoError(t, s.FlushCache(ctx))
}
