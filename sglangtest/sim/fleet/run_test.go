package fleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func TestTimesOfOneRequest(t *testing.T) {
	p := steady()
	p.Ingest, p.IngestToken, p.Egress = 2*ms, 10*time.Microsecond, 3*ms
	col := play(t, requests{ask(0, 5*ms, 100, 3)}, new(policy.RoundRobin), Equal(1, p))
	r := results(col)[0]
	// It reaches the scheduler at 5 + 2 + 1 ms; steps end at 18, 28 and 38; the client sees tokens 3 ms later.
	require.Equal(t, []time.Duration{21 * ms, 31 * ms, 41 * ms}, tokenTimes(&r))
	require.Equal(t, load.RouteNote{By: "policy.RoundRobin", Attempt: 1}, *r.Route)
	require.Equal(t, 5*ms, r.Routed)
	r.Chunks, r.Route, r.Routed = load.Chunks{}, nil, 0
	require.Equal(t, load.Result{Arrival: 5 * ms, Due: 5 * ms, Released: 5 * ms, Send: 5 * ms, FirstToken: 21 * ms, FirstTokens: 1, LastToken: 41 * ms, Completion: 41 * ms,
		Sent: true, Reused: true, API: load.Generate, Streamed: true, Outcome: load.OutcomeOK, Status: 200, InputLen: 100, OutputLen: 3,
		PromptTokens: 100, OutputTokens: 3, FinishReason: "length", Worker: "server-0", SimulatedBy: "steady"}, r)
}

// crowded is a workload on a pool that is too small for it, so that requests are retracted.
func crowded(n int) (requests, sim.Profile, sim.EngineConfig) {
	p := sim.H100Llama8B()
	cfg := p.EngineConfig()
	cfg.MaxTotalTokens, cfg.ChunkedPrefillSize, cfg.MaxRunningRequests = 4000, 256, 40
	rng := rand.New(rand.NewPCG(1, 2))
	var src requests
	var at time.Duration
	for i := range n {
		at += time.Duration(rng.ExpFloat64() * float64(30*ms))
		r := ask(i, at, 1+rng.IntN(100), 1+rng.IntN(1000))
		if i%50 != 0 {
			no := false
			r.Sampling = &load.SamplingParams{IgnoreEOS: &no} // admission then gambles on the length, and retracts
		}
		src = append(src, r)
	}
	return src, p, cfg
}

// stamps drives a loop of its own and notes the time of every token as it comes, and the number of retractions.
func stamps(t *testing.T, src requests, p sim.Profile, cfg sim.EngineConfig) (want [][]time.Duration, retractions int) {
	e, err := sim.NewEngine(cfg)
	require.NoError(t, err)
	loop := sim.NewLoop(e, p)
	want = make([][]time.Duration, len(src))
	reqs := make([]sim.Request, len(src))
	due := func(i int) time.Duration {
		return src[i].Arrival + p.Ingest + time.Duration(src[i].InputLen)*p.IngestToken
	}
	var order []int // of reaching the scheduler
	for i := range src {
		order = append(order, i)
		for k := len(order) - 1; k > 0 && due(order[k]) < due(order[k-1]); k-- {
			order[k], order[k-1] = order[k-1], order[k]
		}
	}
	for k := 0; ; {
		now, busy := loop.Next()
		if k < len(order) && (!busy || due(order[k]) <= now) {
			i := order[k]
			reqs[i] = sim.Request{Prompt: src[i].Prompt, InputLen: src[i].InputLen, MaxNewTokens: src[i].OutputLen, IgnoreEOS: src[i].Sampling == nil, Owner: i}
			loop.Add(due(i), &reqs[i])
			k++
		} else if busy {
			for _, o := range loop.Advance() {
				i := o.Request.Owner.(int)
				for range o.Tokens {
					want[i] = append(want[i], now+p.Egress)
				}
				if o.Finish != nil {
					retractions += o.Request.Retractions()
				}
			}
		} else {
			return want, retractions
		}
	}
}

func TestTokenTimesAreThoseOfTheLoop(t *testing.T) {
	for name, change := range map[string]func(*sim.EngineConfig){
		"overlap":    func(*sim.EngineConfig) {},
		"no overlap": func(c *sim.EngineConfig) { c.DisableOverlap = true },
		"mixed":      func(c *sim.EngineConfig) { c.EnableMixedChunk = true },
		"old rules":  func(c *sim.EngineConfig) { c.Rules = sim.Rules0515; c.EnableMixedChunk = true },
		"no cache":   func(c *sim.EngineConfig) { c.DisableRadixCache = true },
	} {
		t.Run(name, func(t *testing.T) {
			src, p, cfg := crowded(500)
			change(&cfg)
			want, retractions := stamps(t, src, p, cfg)
			require.Greater(t, retractions, 5, "the pool is too large for this test")

			col := play(t, src, new(policy.RoundRobin), []Engine{{Profile: p, Config: cfg}})
			got := 0
			for i, r := range results(col) {
				require.Equal(t, load.OutcomeOK, r.Outcome)
				require.Equal(t, want[i], tokenTimes(&r), "request %d", i)
				require.Equal(t, len(want[i]), r.OutputTokens)
				require.Equal(t, want[i][0], r.FirstToken)
				require.Equal(t, want[i][len(want[i])-1], r.LastToken)
				got += r.Retractions
			}
			require.Equal(t, retractions, got)

			// What a request has got when its engine is killed is what it would have got by then.
			rng := rand.New(rand.NewPCG(3, 4))
			for range 8 {
				at := time.Duration(rng.Int64N(int64(src[len(src)-1].Arrival)))
				cut := 0
				for i, r := range results(play(t, src, new(policy.RoundRobin), []Engine{{Profile: p, Config: cfg}}, WithAction(at, 0, Kill()))) {
					var by []time.Duration
					for _, token := range want[i] {
						if token <= at {
							by = append(by, token)
						}
					}
					require.Equal(t, by, tokenTimes(&r), "request %d, killed at %v", i, at)
					require.Equal(t, len(by), r.OutputTokens)
					if len(by) > 0 {
						require.Equal(t, by[len(by)-1], r.LastToken)
					}
					if r.Outcome == load.OutcomeTruncated {
						cut++
					}
				}
				require.Positive(t, cut)
			}
		})
	}
}

func TestCachedTokens(t *testing.T) {
	shared := load.Segment{Stream: 99, Length: 100}
	var src requests
	for i, own := range []int{50, 20, 30} {
		src = append(src, load.Request{ID: i, Arrival: time.Duration(i) * 100 * ms, InputLen: 100 + own, OutputLen: 3,
			Prompt: load.Prompt{Segments: []load.Segment{shared, {Stream: uint64(i) + 1, Length: own}}}})
	}
	rs := results(play(t, src, new(policy.RoundRobin), Equal(1, steady())))
	require.Equal(t, []int{0, 100, 100}, []int{rs[0].CachedTokens, rs[1].CachedTokens, rs[2].CachedTokens})
	rs = results(play(t, src, new(policy.RoundRobin), Equal(2, steady())))
	require.Equal(t, []int{0, 0, 100}, []int{rs[0].CachedTokens, rs[1].CachedTokens, rs[2].CachedTokens}, "each engine has its own cache")
}

// A turn whose prompt holds an earlier answer finds it in the cache of the engine that gave it, but for its last token, which
// that engine never read.
func TestASecondTurnFindsTheAnswer(t *testing.T) {
	first, second := ask(0, 0, 50, 20), ask(1, time.Second, 80, 1)
	second.Prompt.Segments = []load.Segment{first.Prompt.Segments[0], {Stream: 0, Length: 20, Answer: true}, {Stream: 7, Length: 10}}
	src := requests{first, second}
	rs := results(play(t, src, new(policy.RoundRobin), Equal(1, steady())))
	require.Equal(t, 50+20-1, rs[1].CachedTokens)
	rs = results(play(t, src, new(policy.RoundRobin), Equal(2, steady())))
	require.Zero(t, rs[1].CachedTokens, "another engine gave the answer")
}

func TestWithoutTokenTimesOnlyITLIsMissing(t *testing.T) {
	src := requests{ask(0, 0, 100, 50), ask(1, 35*ms, 100, 2000), ask(2, 44*ms, 1, 1)}
	with := play(t, src, new(policy.RoundRobin), Equal(1, steady())).Summary()
	without := play(t, src, new(policy.RoundRobin), Equal(1, steady()), WithTokenTimes(false)).Summary()
	require.Equal(t, 2048, with.ITL.Count)
	require.Zero(t, without.ITL.Count)
	require.Equal(t, 2, without.Streams.Uncounted)
	for _, s := range []*metrics.Summary{with, without} {
		require.Equal(t, "steady", s.Simulation.Profile)
		require.True(t, s.Client.OK, s.Client.Reasons)
	}
	require.Equal(t, with.TTFT, without.TTFT)
	require.Equal(t, with.TPOT, without.TPOT)
	require.Equal(t, with.TotalLatency, without.TotalLatency)
	require.Equal(t, with.Throughput, without.Throughput)
}

func TestMixedFleet(t *testing.T) {
	p := steady()
	engines := []Engine{{Profile: p}, {Name: "slow", Profile: p, Speed: 0.5}, {Profile: p, Config: func() sim.EngineConfig {
		c := p.EngineConfig()
		c.MaxRunningRequests = 1
		return c
	}()}}
	src := requests{ask(0, 0, 10, 4), ask(1, 0, 10, 4), ask(2, 0, 10, 4), ask(3, 0, 10, 4), ask(4, 0, 10, 4), ask(5, 0, 10, 4)}
	rs := results(play(t, src, new(policy.RoundRobin), engines))
	var names []string
	var ends []time.Duration
	for _, r := range rs {
		names, ends = append(names, r.Worker), append(ends, r.Completion)
	}
	require.Equal(t, []string{"server-0", "slow", "server-2", "server-0", "slow", "server-2"}, names)
	require.Equal(t, []time.Duration{40 * ms, 80 * ms, 40 * ms, 40 * ms, 80 * ms, 80 * ms}, ends)
}

func TestArgumentFaultsAreReportedTogether(t *testing.T) {
	_, err := Run(context.Background(), requests{}, nil, []Engine{{Name: "a", Profile: steady(), Speed: -1}, {Name: "a", Profile: steady()}},
		nil, WithPolling(0), WithMaxConcurrency(0), WithTimeout(0), WithAction(time.Second, 7, Kill()))
	for _, want := range []string{"no policy", "speed -1", `name "a" is that of engine 0`, "polling every 0s", "max concurrency 0", "timeout 0s", "engine 7: want 0 to 1"} {
		require.ErrorContains(t, err, want)
	}
}

func TestPromptsThatDoNotFit(t *testing.T) {
	src := requests{ask(0, 0, 10_000, 4), ask(1, 0, 9_000, 2_000), ask(2, 0, 10, 1)}
	rs := results(play(t, src, new(policy.RoundRobin), Equal(1, steady())))
	require.Equal(t, load.OutcomeEngine, rs[0].Outcome)
	require.Contains(t, rs[0].Message, "longer than the model's context length")
	require.Contains(t, rs[1].Message, "Requested token count exceeds")
	require.Equal(t, load.OutcomeOK, rs[2].Outcome)
}

func TestTextPromptsAreCountedAsByTheServer(t *testing.T) {
	src := requests{{OutputLen: 1, Prompt: load.Prompt{Text: "twelve bytes"}}, {OutputLen: 1, Prompt: load.Prompt{Messages: []load.Message{{Role: "user", Content: "four"}}}}}
	rs := results(play(t, src, new(policy.RoundRobin), Equal(1, steady())))
	require.Equal(t, []int{3, 5}, []int{rs[0].PromptTokens, rs[1].PromptTokens})
}

func TestMaxConcurrency(t *testing.T) {
	src := requests{ask(0, 0, 10, 2), ask(1, 0, 10, 3), ask(2, 1*ms, 10, 1)}
	rs := results(play(t, src, new(policy.RoundRobin), Equal(1, steady()), WithMaxConcurrency(2)))
	require.Equal(t, rs[0].Completion, rs[2].Due, "it gets the place of the first that ends")
	require.Equal(t, rs[2].Due, rs[2].Send)
	require.Equal(t, 19*ms, rs[2].QueueTime())
	require.Zero(t, rs[2].Lateness())
}

func TestTimeoutAbortsOnTheEngine(t *testing.T) {
	src := requests{ask(0, 0, 10, 1000), ask(1, 1*ms, 10, 2)}
	col := play(t, src, new(policy.RoundRobin), Equal(1, steady()), WithTimeout(95*ms), WithSamples(50*ms))
	rs := results(col)
	require.Equal(t, load.OutcomeTimeout, rs[0].Outcome)
	require.Equal(t, 95*ms, rs[0].Completion)
	require.Equal(t, len(tokenTimes(&rs[0])), rs[0].OutputTokens)
	require.Less(t, rs[0].LastToken, 95*ms)
	require.Equal(t, load.OutcomeOK, rs[1].Outcome)
}

func TestSamples(t *testing.T) {
	src := requests{ask(0, 0, 100, 20), ask(1, 0, 100, 20)}
	col := play(t, src, new(policy.RoundRobin), Equal(2, steady()), WithSamples(50*ms))
	var at []time.Duration
	for _, s := range col.Samples() {
		if s.Source == "server-1" {
			at = append(at, s.At)
		}
	}
	require.Equal(t, []time.Duration{0, 50 * ms, 100 * ms, 150 * ms, 200 * ms}, at)
	sum := col.Summary()
	require.Len(t, sum.Samplers, 2)
	require.Equal(t, 1.0, sum.Samplers[1].Running.Max)
}

func TestCancel(t *testing.T) {
	var src requests
	for i := range 3000 {
		src = append(src, ask(i, time.Duration(i)*10*ms, 10, 1000))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("enough")
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	_, err = Run(ctx, src, new(policy.RoundRobin), Equal(2, steady()), col, WithProgress(1, func() { cancel(why) }))
	require.ErrorIs(t, err, why)
	sum := col.Summary()
	require.Equal(t, sum.Requests.Arrived, sum.Requests.OK+sum.Requests.Unfinished)
	require.Positive(t, sum.Requests.Unfinished)
	require.Less(t, sum.Requests.Arrived, 3000)
}

// Whatever a scheduler of SGLang would admit ends, also where a pass plans nothing: a batch at its limit that ends as a
// whole, and passes that are to try no prefill.
func TestEnginesDoNotFallAsleep(t *testing.T) {
	full, interval := steady().EngineConfig(), steady().EngineConfig()
	full.Rules, full.DisableOverlap, full.MaxRunningRequests = sim.Rules0518, true, 1
	interval.ChunkedPrefillSize, interval.PrefillDecodeInterval = 64, 4
	for name, cfg := range map[string]sim.EngineConfig{"limit": full, "interval": interval} {
		e := Equal(1, steady())
		e[0].Config = cfg
		col := play(t, requests{ask(0, 0, 200, 2), ask(1, 0, 200, 2), ask(2, 1*ms, 10, 1)}, new(policy.RoundRobin), e,
			WithAction(2*ms, 0, SetLimit(1)))
		require.Equal(t, []load.Outcome{load.OutcomeOK, load.OutcomeOK, load.OutcomeOK}, outcomes(col), name)
	}
}

func TestElapsedIsVirtualTime(t *testing.T) {
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	var elapsed []time.Duration
	src := requests{ask(0, time.Minute, 100, 3), ask(1, time.Hour, 100, 3)}
	stats, err := Run(t.Context(), src, new(policy.RoundRobin), Equal(1, steady()), col, WithProgress(1, func() { elapsed = append(elapsed, col.Progress().Elapsed) }))
	require.NoError(t, err)
	rs := results(col)
	require.Equal(t, []time.Duration{rs[0].Completion, rs[1].Completion}, elapsed)
	require.Equal(t, stats.End, col.Progress().Elapsed)
}
