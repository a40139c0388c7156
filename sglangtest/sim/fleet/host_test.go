package fleet

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// TestSameStepsAsTheRealTimeHost replays one trace over HTTP against the real-time host and in virtual time. Steps
// take 80 ms and arrivals fall in the middle of them, so that a machine that is late by some tens of milliseconds
// still makes the same schedule: the number of the step that brought each token must be equal.
func TestSameStepsAsTheRealTimeHost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes three seconds of real time")
	}
	const step = 80 * ms
	p := steady()
	p.Model = sim.Linear{DecodeBase: 80, PrefillBase: 80}
	p.MaxRunning, p.ChunkedSize = 3, 64
	src := requests{
		ask(0, 0, 20, 30),        // keeps the engine busy
		ask(1, step*5/2, 150, 4), // three chunks
		ask(2, step*7/2, 10, 1),  // behind the chunks
		ask(3, step*9/2, 30, 6),  // waits for a place
		ask(4, step*11/2, 30, 6), // likewise
		ask(5, step*27/2, 100, 3),
		ask(6, step*29/2, 5, 2),
	}
	virtual := results(play(t, src, new(policy.RoundRobin), Equal(1, p)))

	srv, err := sim.NewServer(p, server.Config{})
	require.NoError(t, err)
	require.NoError(t, srv.Start(t.Context()))
	defer srv.Close(context.Background())
	sender, err := load.NewSender(srv.URL())
	require.NoError(t, err)
	defer sender.Close()
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	require.NoError(t, load.Run(t.Context(), src, sender, col))
	real := results(col)

	steps := func(rs []load.Result) [][]int {
		start := rs[0].FirstToken - step // the first step begins when the first request arrives
		var all [][]int
		for i := range rs {
			require.Equal(t, load.OutcomeOK, rs[i].Outcome)
			var of []int
			for _, at := range tokenTimes(&rs[i]) {
				of = append(of, int((at-start+step/2)/step))
			}
			all = append(all, of)
		}
		return all
	}
	// On a busy machine an event can come late, or together with the next one; it never comes before its step.
	exact, all := 0, 0
	for i, want := range steps(virtual) {
		got := steps(real)[i]
		require.Len(t, got, len(want))
		for k := range want {
			require.GreaterOrEqual(t, got[k], want[k], "request %d, token %d", i, k)
			all++
			if got[k] == want[k] {
				exact++
			}
		}
	}
	require.Greater(t, exact, all*3/4)
	for i := range real {
		v, r := &virtual[i], &real[i]
		require.Equal(t, []int{v.PromptTokens, v.OutputTokens, v.CachedTokens, v.Retractions},
			[]int{r.PromptTokens, r.OutputTokens, r.CachedTokens, r.Retractions})
		require.Equal(t, v.FinishReason, r.FinishReason)
	}
}
