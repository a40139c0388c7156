package metrics

import (
	"context"
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// Work by hand: ten requests, one a second, of 100 prompt tokens, half of them cached, and 20 output tokens.
func TestWorkloadByHand(t *testing.T) {
	c := Capacity{PrefillTokenMS: 0.2, DecodeTokenMS: 0.3, DecodeContextMS: 0.01}
	var d []Demand
	for i := range 10 {
		d = append(d, Demand{At: time.Duration(i) * time.Second, Prompt: 100, Cached: 50, Output: 20})
	}
	// Of each, prefill 50 · 0.2 = 10 ms, decode 20 · (0.3 + 110 · 0.01) = 28 ms; two in each fifth of the 9 s.
	w := c.Workload(d, 1)
	require.InDelta(t, 38.0*9/9000, w.Load, 1e-12)
	require.InDelta(t, 76.0/1800, w.Peak, 1e-12)
	require.InDelta(t, 10.0/38, w.Prefill, 1e-12)
	require.Equal(t, []float64{0.5, 100, 20}, []float64{w.Cached, w.Prompt, w.Output})
	require.InDelta(t, w.Load/4, c.Workload(d, 4).Load, 1e-12, "shared by 4 engines")
	require.InDelta(t, w.Peak/4, c.Workload(d, 4).Peak, 1e-12)
	for i := range d {
		d[i].At = 5
	}
	require.Equal(t, []float64{AllAtOnce, AllAtOnce}, []float64{c.Workload(d, 1).Load, c.Workload(d, 1).Peak})
	require.Equal(t, float64(AllAtOnce), c.Workload(d[:1], 1).Load)
	require.Equal(t, Workload{Load: AllAtOnce, Peak: AllAtOnce}, c.Workload(nil, 1))

	// A load that grows from nothing is 1.8 times its mean in its last fifth.
	d = d[:0]
	for i := range 1000 {
		d = append(d, Demand{At: time.Duration(math.Sqrt(float64(i)) * 1e9), Prompt: 100, Output: 20})
	}
	w = c.Workload(d, 1)
	require.InDelta(t, 1.8, w.Peak/w.Load, 0.01)
}

var typical = Workload{Requests: 500, Load: 0.5, Peak: 0.55, Prefill: 0.5, Prompt: 1000, Output: 200}

func measured(name string, ttft99, tpot50 float64, change func(*Workload)) ValidatedRun {
	w := typical
	if change != nil {
		change(&w)
	}
	return ValidatedRun{Name: name, Workload: w, TTFT: [3]float64{0.05, -0.1, ttft99}, TPOT: [3]float64{tpot50, 0.01, -0.02}, E2E: [3]float64{0.01, 0.01, 0.01}}
}

func TestBoundOfRunsThatAreLike(t *testing.T) {
	inf := math.Inf(1)
	for name, c := range map[string]struct {
		runs            []ValidatedRun
		ttft, tpot, e2e [3]float64
		like            []string
		statement       string
	}{
		"several: the largest error and a quarter, of p50 and p90 together": {
			[]ValidatedRun{measured("a", -0.2, 0.06, nil), measured("b", -0.15, -0.08, nil)},
			[3]float64{0.125, 0.125, 0.25}, [3]float64{0.1, 0.1, 0.1}, [3]float64{0.05, 0.05, 0.05}, []string{"a", "b"},
			"TTFT ±13 % (p99 ±25 %), TPOT ±10 %, E2E ±5 %, by 2 measured runs like this one (a, b)",
		},
		"one: its largest error for all": {
			[]ValidatedRun{measured("a", -0.2, 0.06, nil)},
			[3]float64{0.25, 0.25, 0.25}, [3]float64{0.075, 0.075, 0.075}, [3]float64{0.05, 0.05, 0.05}, []string{"a"},
			"TTFT ±25 %, TPOT ±8 %, E2E ±5 %, by the only measured run like this one (a)",
		},
		"errors grow with the load": { // spare 0.7 beside 0.5: 1.4 times
			[]ValidatedRun{measured("a", -0.2, 0.06, func(w *Workload) { w.Load, w.Peak = 0.3, 0.3 })},
			[3]float64{0.35, 0.35, 0.35}, [3]float64{0.105, 0.105, 0.105}, [3]float64{0.05, 0.05, 0.05}, []string{"a"},
			"TTFT ±35 %, TPOT ±11 %, E2E ±5 %, by the only measured run like this one (a)",
		},
		"and are not taken as smaller below": {
			[]ValidatedRun{measured("a", -0.2, 0.06, func(w *Workload) { w.Load, w.Peak = 0.6, 0.6 })},
			[3]float64{0.25, 0.25, 0.25}, [3]float64{0.075, 0.075, 0.075}, [3]float64{0.05, 0.05, 0.05}, []string{"a"},
			"TTFT ±25 %, TPOT ±8 %, E2E ±5 %, by the only measured run like this one (a)",
		},
		"engines of one run are one": {
			[]ValidatedRun{measured("a", -0.2, 0.06, nil), measured("a", 0, 0.1, nil)},
			[3]float64{0.25, 0.25, 0.25}, [3]float64{0.125, 0.125, 0.125}, [3]float64{0.05, 0.05, 0.05}, []string{"a"},
			"TTFT ±25 %, TPOT ±13 %, E2E ±5 %, by the only measured run like this one (a)",
		},
		"one stands out": {
			[]ValidatedRun{measured("a", -0.4, 0.06, nil), measured("b", -0.12, 0.06, nil), measured("c", 0.1, 0.06, nil)},
			[3]float64{0.125, 0.125, inf}, [3]float64{0.075, 0.075, 0.075}, [3]float64{0.05, 0.05, 0.05}, []string{"a", "b", "c"},
			"TTFT ±13 % (p99 no bound: -40 % in a), TPOT ±8 %, E2E ±5 %, by 3 measured runs like this one (a, b, c)",
		},
		"too large to be one": {
			[]ValidatedRun{measured("a", -0.9, 0.06, nil)},
			[3]float64{inf, inf, inf}, [3]float64{0.075, 0.075, 0.075}, [3]float64{0.05, 0.05, 0.05}, []string{"a"},
			"TTFT no bound: -90 % in a, TPOT ±8 %, E2E ±5 %, by the only measured run like this one (a)",
		},
		"others do not count": {
			[]ValidatedRun{measured("a", -0.2, 0.06, nil), measured("b", -0.9, 0.9, func(w *Workload) { w.Cached = 0.8 })},
			[3]float64{0.25, 0.25, 0.25}, [3]float64{0.075, 0.075, 0.075}, [3]float64{0.05, 0.05, 0.05}, []string{"a"},
			"TTFT ±25 %, TPOT ±8 %, E2E ±5 %, by the only measured run like this one (a)",
		},
	} {
		b := (&Validation{Runs: c.runs}).Bound(typical)
		require.Empty(t, b.Uncovered, name)
		require.Equal(t, c.like, b.Like, name)
		for i, want := range [][3]float64{c.ttft, c.tpot, c.e2e} {
			got := [][3]float64{b.TTFT, b.TPOT, b.E2E}[i]
			for q := range 3 {
				if math.IsInf(want[q], 1) {
					require.Equal(t, want[q], got[q], "%s: %d, %d", name, i, q)
				} else {
					require.InDelta(t, want[q], got[q], 1e-9, "%s: %d, %d", name, i, q)
				}
			}
		}
		require.Equal(t, c.statement, b.Statement(), name)
	}
}

func TestWorkloadsThatNoRunCovers(t *testing.T) {
	v := &Validation{Runs: []ValidatedRun{measured("a", -0.2, 0.06, nil), measured("b", -0.2, 0.06, func(w *Workload) { w.Load, w.Peak = 0.7, 0.7 })}}
	for want, change := range map[string]func(*Workload){
		"it differs from b, the most similar, in load 1.20 (there 0.70)":                              func(w *Workload) { w.Load, w.Peak = 1.2, 1.2 },
		"it differs from b, the most similar, in load 0.80 (there 0.70)":                              func(w *Workload) { w.Load, w.Peak = 0.8, 0.8 },
		"it differs from a, the most similar, in load 0.10 (there 0.50)":                              func(w *Workload) { w.Load, w.Peak = 0.1, 0.1 },
		"it differs from b, the most similar, in load all at once (there 0.70)":                       func(w *Workload) { w.Load, w.Peak = AllAtOnce, AllAtOnce },
		"it differs from a, the most similar, in prefill 95 % of the work (there 50 %)":               func(w *Workload) { w.Prefill = 0.95 },
		"it differs from a, the most similar, in 20 % of the prompt tokens cached (there 0 %)":        func(w *Workload) { w.Cached = 0.2 },
		"it differs from a, the most similar, in prompts of 2100 tokens in the mean (there 1000)":     func(w *Workload) { w.Prompt = 2100 },
		"it differs from a, the most similar, in outputs of 90 tokens in the mean (there 200)":        func(w *Workload) { w.Output = 90 },
		"it differs from a, the most similar, in outputs of 0 tokens in the mean (there 200)":         func(w *Workload) { w.Output = 0 },
		"in arrivals that wait for requests in flight (there: arrivals that wait for nothing)":        func(w *Workload) { w.Held, w.Load, w.Peak = true, AllAtOnce, AllAtOnce },
		"prefill 95 % of the work (there 50 %), outputs of 10 tokens in the mean (there 200)":         func(w *Workload) { w.Prefill, w.Output = 0.95, 10 },
		"it differs from a, the most similar, in a load that rises to 1.8 times its mean (there 1.1)": func(w *Workload) { w.Peak = 0.9 },
		"99 requests are too few to compare quantiles, want 100":                                      func(w *Workload) { w.Requests = 99 },
	} {
		w := typical
		change(&w)
		b := v.Bound(w)
		require.Contains(t, b.Statement(), "not covered by any measured run: ")
		require.Contains(t, b.Statement(), want)
		require.Empty(t, b.Like)
	}
	require.Equal(t, "not covered by any measured run: there is none", (&Validation{}).Bound(typical).Statement())

	near := func(a, b float64) bool {
		x := typical
		x.Load, x.Peak = b, b
		w := typical
		w.Load, w.Peak = a, a
		return len(w.differences(x)) == 0
	}
	require.True(t, near(0.92, 0.99), "no load is told from another that near to capacity")
	require.False(t, near(0.99, 1.01), "a queue that grows is another kind")
	require.True(t, near(1.1, 1.5))
	require.False(t, near(1.1, 1.6))
	require.True(t, near(AllAtOnce, AllAtOnce))
}

func TestValidationNamesWhatWasNotMeasured(t *testing.T) {
	v := &Validation{Runs: []ValidatedRun{measured("a", 0, 0, nil), measured("a", 0, 0, nil), measured("b", 0, 0, func(w *Workload) { w.Cached, w.Load, w.Peak = 0.8, 0.9, 0.9 })}}
	require.Equal(t, "by kind of workload, from 2 measured runs (a, b) with load 0.50 to 0.90 of capacity, prefill 50 to 50 % of the work, "+
		"mean lengths of 1000 to 1000 and 200 to 200 tokens, cached prompt tokens: 80 % in b; not measured: closed loops, mostly prefill (above 80 % of the work), "+
		"mostly decode (above 80 %), prompts partly in the prefix cache (20 to 70 % of the tokens)", v.String())
	require.Equal(t, "no run was measured", (&Validation{}).String())
}

// A run of 200 requests, 10 s, that is like the measured one, and what makes it unlike.
func TestSummaryStatesTheErrorOfItsWorkload(t *testing.T) {
	v := Validation{Capacity: Capacity{PrefillTokenMS: 0.025, DecodeTokenMS: 0.04, DecodeContextMS: 4e-5}, Runs: []ValidatedRun{measured("a", -0.2, 0.06, nil)}}
	run := func(v Validation, info load.Info, edit func(*load.Result), events ...Event) *Summary {
		c, err := NewCollector(WithSimulation(Simulation{Profile: "h100", KnownError: "general", Validation: &v}))
		require.NoError(t, err)
		require.NoError(t, c.Begin(context.Background(), info))
		c.Start(load.NewClock(time.Now()))
		for i := range 200 {
			at := time.Duration(i) * 50 * time.Millisecond
			r := load.Result{ID: i, Arrival: at, Due: at, Released: at, Send: at, Sent: true, FirstToken: at + 40*time.Millisecond, LastToken: at + 2*time.Second, Completion: at + 2*time.Second,
				Outcome: load.OutcomeOK, PromptTokens: 500, OutputTokens: 250, CachedTokens: 0, Retractions: load.NotReported, Streamed: true}
			edit(&r)
			c.Arrived(&load.Request{ID: i, Arrival: at})
			c.Record(&r)
		}
		for _, e := range events {
			c.Event(e)
		}
		require.NoError(t, c.End(context.Background()))
		s := c.Summary()
		require.Equal(t, s.Simulation, c.Summary().Simulation)
		require.Equal(t, &v, s.Simulation.Validation)
		require.Contains(t, s.String(), "known error   "+s.Simulation.KnownError[:20])
		return s
	}
	// 20/s of 500 tokens, 12.5 ms, and 250 tokens, 250 · (0.04 + 625 · 4e-5) = 16.25 ms: load 0.575, prefill 43 %. The measured
	// run had a load of 0.5, so its errors are taken 1.18 times.
	same := func(*load.Result) {}
	require.Equal(t, "TTFT ±30 %, TPOT ±9 %, E2E ±5 %, by the only measured run like this one (a)", run(v, load.Info{}, same).Simulation.KnownError)
	require.Contains(t, run(v, load.Info{MaxConcurrency: 10}, same).Simulation.KnownError, "not covered by any measured run: it differs from a, the most similar, in arrivals that wait for requests in flight")
	require.NotContains(t, run(v, load.Info{MaxConcurrency: 1000}, same).Simulation.KnownError, "not covered", "a cap that never held any back")
	// Where the answers do not tell it, the engines' count of prefilled tokens does; nothing told is not nothing cached.
	silent := func(r *load.Result) { r.CachedTokens = load.NotReported }
	require.Contains(t, run(v, load.Info{}, silent, Event{Kind: KindPrefilled, Data: map[string]any{"tokens": 20_000}}).Simulation.KnownError,
		"80 % of the prompt tokens cached (there 0 %)")
	require.NotContains(t, run(v, load.Info{}, silent, Event{Kind: KindPrefilled, Data: map[string]any{"tokens": 100_000}}).Simulation.KnownError, "not covered")
	require.Contains(t, run(v, load.Info{}, silent).Simulation.KnownError, "not covered by any measured run: how many prompt tokens came from the prefix cache is not told")
	require.Contains(t, run(v, load.Info{}, func(r *load.Result) { r.CachedTokens = 400 }).Simulation.KnownError, "80 % of the prompt tokens cached (there 0 %)")
	require.Contains(t, run(v, load.Info{}, func(r *load.Result) {
		if r.ID < 3 {
			r.Outcome = load.OutcomeAbort
		}
	}).Simulation.KnownError, "not covered by any measured run: 3 of 200 requests failed")
	limit := Event{At: 5 * time.Second, Kind: KindParamUpdate, Source: "server-0", Data: map[string]any{"name": "max_running_requests", "value": 8}}
	require.Contains(t, run(v, load.Info{}, same, limit).Simulation.KnownError, "not covered by any measured run: run-time parameters were changed")
	ramp := func(r *load.Result) { // a hundred in 8 s, then a hundred in 2 s
		later := time.Duration(min(r.ID, 200-r.ID)) * 30 * time.Millisecond
		for _, t := range []*time.Duration{&r.Arrival, &r.Due, &r.Released, &r.Send, &r.FirstToken, &r.LastToken, &r.Completion} {
			*t += later
		}
	}
	require.Contains(t, run(v, load.Info{}, ramp).Simulation.KnownError, "in a load that rises to 2.5 times its mean (there 1.1)")
	four := v
	four.Engines, four.Caveat = 4, "of single engines"
	require.Contains(t, run(four, load.Info{}, same).Simulation.KnownError, "in load 0.14 (there 0.50)")
	one := v
	one.Engines, one.Caveat = 1, "of single engines"
	require.Contains(t, run(one, load.Info{}, same).Simulation.KnownError, "(a); of single engines")
}

func TestSimulationsAreEqualByWhatTheySay(t *testing.T) {
	s := Simulation{Profile: "h100", KnownError: "general", Validation: &Validation{Runs: []ValidatedRun{measured("a", -0.2, 0.06, nil)}}}
	b, err := json.Marshal(s)
	require.NoError(t, err)
	var back Simulation
	require.NoError(t, json.Unmarshal(b, &back))
	require.True(t, s.Equal(back))
	back.Validation.Runs[0].TTFT[2] = 0
	require.False(t, s.Equal(back))
}
