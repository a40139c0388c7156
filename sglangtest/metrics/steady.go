package metrics

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A SteadyState is the part of a run in which neither its beginning nor its drain is: throughput over it does not depend on
// how long the run was, nor on a last request that hung.
type SteadyState struct {
	From time.Duration `json:"from_ns"`
	To   time.Duration `json:"to_ns"`
	// Rule says how the window was found: [SteadyArrivals] or [SteadyConcurrency].
	Rule string `json:"rule"`

	Completed        int     `json:"completed"` // successes that ended in the window
	Requests         float64 `json:"requests_per_s"`
	OutputTokensPerS float64 `json:"output_tokens_per_s"` // tokens of successes, when they were read
	InFlight         float64 `json:"in_flight_mean"`
}

// The rules by which a steady window is found.
const (
	// SteadyArrivals ends with the last arrival. It begins when nine of ten requests that came first had ended: the 90th percentile
	// of the total latency after the first arrival; at half of the arrivals if that is earlier, as for a server that cannot keep up.
	SteadyArrivals = "while requests arrived"
	// SteadyConcurrency is for runs in which that is not steady, such as closed loops. It is the rule of SGLang 0.5.23
	// (sglang/benchmark/steady_state.py), with the ratio 0.8 of its example: the longest time in which at least 80 % of the largest number of successful requests were
	// under way, from when they were due to completion.
	SteadyConcurrency = "at least 80 % of the peak in flight"
)

// steadyRatio is the concurrency ratio of [SteadyConcurrency].
const steadyRatio = 0.8

// A window is steady if at least so many requests ended in it, and as many in its first half as in its second, but for so many
// standard deviations of a Poisson process. A single wave of requests, or the beginning of a run, is not.
const (
	steadyRequests = 20
	steadySpread   = 3
)

// steady finds the steady window and what was served in it.
func (b *builder) steady() {
	var latencies []float64
	for _, r := range b.rs {
		if r.OK() {
			latencies = append(latencies, float64(r.TotalLatency()))
		}
	}
	if len(latencies) == 0 {
		b.sum.NoSteadyState = "no request succeeded"
		return
	}
	slices.Sort(latencies)
	p90 := time.Duration(quantile(latencies, 0, 0.9))
	rule, from, to := SteadyArrivals, b.c.firstArr+min(p90, (b.c.lastArr-b.c.firstArr)/2), b.c.lastArr
	n, why := b.evenly(from, to)
	if why != "" {
		rule = SteadyConcurrency
		from, to = b.busiest()
		if n, why = b.evenly(from, to); why != "" {
			b.sum.NoSteadyState = fmt.Sprintf("the longest time with %s is %.3f s to %.3f s, and %s", rule, from.Seconds(), to.Seconds(), why)
			return
		}
	}
	s := &SteadyState{From: from, To: to, Rule: rule, Completed: n}
	length := (to - from).Seconds()
	var tokens float64
	var flight time.Duration
	for _, r := range b.rs {
		if r.Sent {
			flight += max(0, min(r.Completion, to)-max(r.Send, from))
		}
		if r.OK() {
			tokens += tokensIn(r, from, to)
		}
	}
	s.Requests, s.OutputTokensPerS, s.InFlight = float64(n)/length, tokens/length, flight.Seconds()/length
	b.sum.Steady = s
}

// evenly returns how many successes ended in [from, to], and why they are no steady stream: "" if they are.
func (b *builder) evenly(from, to time.Duration) (n int, why string) {
	var half [2]int
	for _, r := range b.rs {
		if r.OK() && r.Completion >= from && r.Completion <= to {
			n++
			if r.Completion-from < (to-from)/2 {
				half[0]++
			} else {
				half[1]++
			}
		}
	}
	switch diff := half[0] - half[1]; {
	case n < steadyRequests || to <= from:
		why = fmt.Sprintf("%d requests ended in it, fewer than %d", n, steadyRequests)
	case float64(diff*diff) > steadySpread*steadySpread*float64(n):
		why = fmt.Sprintf("%d requests ended in its first half, %d in its second", half[0], half[1])
	}
	return n, why
}

// busiest returns the longest time in which at least steadyRatio of the largest number of successes were under way at once; the
// first of several.
func (b *builder) busiest() (from, to time.Duration) {
	type step struct {
		at time.Duration
		by int
	}
	var steps []step
	for _, r := range b.rs {
		// Under a cap a request is due when the place of another becomes free, and released a moment later: with few places
		// each such moment would cut the time into pieces.
		if r.OK() && r.Completion > r.Due {
			steps = append(steps, step{r.Due, 1}, step{r.Completion, -1})
		}
	}
	slices.SortFunc(steps, func(x, y step) int { return int(min(1, max(-1, x.at-y.at))) })
	// Only a number that lasts counts: what ends and begins at one moment is taken together.
	var levels []step // the number from a moment on
	n, peak := 0, 0
	for i, s := range steps {
		n += s.by
		if i+1 == len(steps) || steps[i+1].at > s.at {
			levels = append(levels, step{s.at, n})
			peak = max(peak, n)
		}
	}
	least := max(1, int(math.Ceil(float64(peak)*steadyRatio)))
	var since time.Duration
	open := false
	for _, l := range levels {
		switch busy := l.by >= least; {
		case busy && !open:
			since, open = l.at, true
		case !busy && open:
			if open = false; l.at-since > to-from {
				from, to = since, l.at
			}
		}
	}
	return from, to
}

// tokensIn returns how many output tokens of r were read in [from, to]. Those of an answer whose events have no counts are spread
// evenly from the first to the last.
func tokensIn(r *load.Result, from, to time.Duration) float64 {
	counted, in := 0, 0
	for ch := range r.Chunks.All() {
		counted += ch.Tokens
		if ch.At >= from && ch.At <= to {
			in += ch.Tokens
		}
	}
	if counted == r.OutputTokens {
		return float64(in)
	}
	if r.LastToken <= r.FirstToken {
		if r.FirstToken >= from && r.FirstToken <= to {
			return float64(r.OutputTokens)
		}
		return 0
	}
	part := max(0, min(r.LastToken, to)-max(r.FirstToken, from))
	return float64(r.OutputTokens) * float64(part) / float64(r.LastToken-r.FirstToken)
}
