//go:build !race

// The race detector makes a real-time host too slow to keep its times.

package fleet

import (
	"context"
	"reflect"
	"slices"
	"testing"
	"time"

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
	virtual := stepsOf(results(play(t, src, new(policy.RoundRobin), Equal(1, p))), step)
	// A machine that is later than half a step makes another schedule; it gets some chances.
	var real []tokenSteps
	for range 6 {
		if real = stepsOf(overHTTP(t, p, src), step); slices.EqualFunc(virtual, real, tokenSteps.equal) {
			return
		}
	}
	require.Equal(t, virtual, real)
}

// tokenSteps says of one request which step brought each of its tokens.
type tokenSteps struct {
	Steps                  []int
	Prompt, Output, Cached int
	Retractions            int
	Outcome                load.Outcome
	FinishReason           string
}

func (a tokenSteps) equal(b tokenSteps) bool { return reflect.DeepEqual(a, b) }

func stepsOf(rs []load.Result, step time.Duration) []tokenSteps {
	start := rs[0].FirstToken - step // the first step begins when the first request arrives
	var all []tokenSteps
	for i := range rs {
		r := &rs[i]
		of := tokenSteps{nil, r.PromptTokens, r.OutputTokens, r.CachedTokens, r.Retractions, r.Outcome, r.FinishReason}
		for _, at := range tokenTimes(r) {
			of.Steps = append(of.Steps, int((at-start+step/2)/step))
		}
		all = append(all, of)
	}
	return all
}

// overHTTP replays src against a real-time host.
func overHTTP(t *testing.T, p sim.Profile, src load.Source) []load.Result {
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
	return results(col)
}
