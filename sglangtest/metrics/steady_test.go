package metrics

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// The cases are closed loops with failures, and what sglang/benchmark/steady_state.py of SGLang 0.5.23 made of them with the ratio
// 0.8. Times are in units of 1/1024 s, which floating point holds exactly.
func TestSteadyStateAsSGLang(t *testing.T) {
	raw, err := os.ReadFile("testdata/steady/cases.json")
	require.NoError(t, err)
	var cases []struct {
		Requests []struct {
			Start, TTFT, Gap, Tokens int
			OK                       bool
		}
		Start       float64 `json:"window_start"`
		End         float64 `json:"window_end"`
		Completed   int
		Throughput  float64 `json:"output_throughput"`
		Concurrency float64 `json:"average_concurrency"`
	}
	require.NoError(t, json.Unmarshal(raw, &cases))
	require.Len(t, cases, 4)
	const unit = time.Second / 1024
	for i, c := range cases {
		var rs []load.Result
		for id, q := range c.Requests {
			at := func(n int) time.Duration { return time.Duration(n) * time.Second / 1024 }
			r := answer(id, 0, at(q.Start), at(q.TTFT), 0, 1)
			r.Chunks = load.Chunks{}
			for k := range q.Tokens {
				r.LastToken = at(q.Start + q.TTFT + k*q.Gap)
				r.Chunks.Append(load.Chunk{At: r.LastToken, Tokens: 1, TextBytes: 1})
			}
			r.Due, r.Released, r.OutputTokens, r.Completion = r.Send, r.Send, q.Tokens, r.LastToken
			if !q.OK {
				r = failure(id, 0, load.OutcomeTransport, 0, "no route") // it does not count, neither there
				r.Sent, r.Send = false, r.Completion
			}
			rs = append(rs, r)
		}
		s := collect(t, load.Plan{}, rs, nil).Summary()
		if s.Steady == nil { // too few; 64 requests in 64 places: nothing follows the first wave
			require.Contains(t, []int{0, 2}, i)
			require.Contains(t, s.NoSteadyState, "requests ended in it, fewer than 20")
			continue
		}
		require.Equal(t, SteadyConcurrency, s.Steady.Rule)
		require.InDelta(t, c.Start, s.Steady.From.Seconds(), unit.Seconds()/1e3)
		require.InDelta(t, c.End, s.Steady.To.Seconds(), unit.Seconds()/1e3)
		require.Equal(t, c.Completed, s.Steady.Completed)
		require.InEpsilon(t, c.Throughput, s.Steady.OutputTokensPerS, 0.01)
		require.InEpsilon(t, c.Concurrency, s.Steady.InFlight, 1e-6)
	}
}

// One request that hangs, or a run that is short, does not move the steady state of an open loop.
func TestSteadyStateOfOpenLoops(t *testing.T) {
	run := func(n int, latency, hang time.Duration, opts ...Option) *Summary {
		rs := each(n, 10*msec, func(i int, at time.Duration) load.Result {
			if i == n/2 && hang > 0 {
				return answer(i, at, 0, msec, hang, 2)
			}
			return answer(i, at, 0, msec, (latency-msec)/4, 5)
		})
		return collect(t, load.Plan{}, rs, nil, opts...).Summary()
	}
	s := run(500, 50*msec, 10*time.Second, WithGoodput(SLO{E2E: time.Second}))
	require.Less(t, s.Throughput.Requests, 41.0, "the whole run with its drain")
	require.Equal(t, SteadyArrivals, s.Steady.Rule)
	require.InEpsilon(t, 100, s.Steady.Requests, 0.01)
	require.InEpsilon(t, 500, s.Steady.OutputTokensPerS, 0.01)
	require.Less(t, s.Goodput.PerSecond, 41.0)
	require.InEpsilon(t, 100, *s.Goodput.SteadyPerSecond, 0.01)
	require.Equal(t, 4990*msec, s.Steady.To)
	require.Contains(t, s.String(), "\nsteady state  100 ok requests/s, 499.")
	require.Contains(t, s.Notes, "throughput and goodput are over 12.50 s, of which 7.51 s are drain, in which no load was added: the steady state leaves that out")

	// Half of what came in three seconds needs longer than that.
	s = run(30, 4*time.Second, 0)
	require.Nil(t, s.Steady)
	require.Contains(t, s.NoSteadyState, "requests ended in it, fewer than 20")
	require.Contains(t, s.String(), "\nsteady state  none: the longest time with at least 80 % of the peak in flight")
	// Latencies that take most of the arrivals: what ended in their second half is still the beginning.
	s = run(300, 2*time.Second, 0)
	require.Nil(t, s.Steady)
	require.Contains(t, s.NoSteadyState, "requests ended in its first half")
	require.Nil(t, collect(t, load.Plan{}, nil, nil).Summary().Steady)
}
