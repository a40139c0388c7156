package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

// constant is a profile with steps of 10 ms (decode) and 20 ms (prefill).
func constant() Profile {
	p := quick()
	p.Model = Linear{DecodeBase: 10, PrefillBase: 20}
	return p
}

// run drives a loop to its end and returns when each request got its tokens.
func runLoop(t testing.TB, p Profile, cfg EngineConfig, arrivals []time.Duration, reqs []*Request) map[*Request][]time.Duration {
	e, err := NewEngine(cfg)
	require.NoError(t, err)
	l := NewLoop(e, p)
	got := map[*Request][]time.Duration{}
	for i := 0; ; {
		at, busy := l.Next()
		switch {
		case i < len(reqs) && (!busy || arrivals[i] <= at):
			l.Add(arrivals[i], reqs[i])
			i++
		case busy:
			for _, o := range l.Advance() {
				if o.Tokens > 0 {
					got[o.Request] = append(got[o.Request], at)
				}
			}
		default:
			return got
		}
	}
}

func TestOverlapTimes(t *testing.T) {
	p := constant()
	a := &Request{InputLen: 10, MaxNewTokens: 9}
	b := &Request{InputLen: 10, MaxNewTokens: 2}
	got := runLoop(t, p, p.EngineConfig(), []time.Duration{0, 35 * ms}, []*Request{a, b})
	// a: prefill 0-20, decodes 20-30, 30-40, 40-50 (planned at 30). b arrives at 35, is first seen at 40, when the step
	// of 40-50 is planned already, and runs 50-70; the step planned next, at 50, decodes both from 70 on.
	require.Equal(t, []time.Duration{20 * ms, 30 * ms, 40 * ms, 50 * ms, 80 * ms, 90 * ms, 100 * ms, 110 * ms, 120 * ms}, got[a])
	require.Equal(t, []time.Duration{70 * ms, 80 * ms}, got[b])
}

func TestLaunchBindsShortPrefills(t *testing.T) {
	p := constant()
	p.LaunchPrefill = 25 * ms
	a := &Request{InputLen: 10, MaxNewTokens: 3}
	got := runLoop(t, p, p.EngineConfig(), []time.Duration{0}, []*Request{a})
	require.Equal(t, []time.Duration{25 * ms, 35 * ms, 45 * ms}, got[a])
}

func TestArrivalsInOneStepShareAPrefill(t *testing.T) {
	p := constant()
	reqs := []*Request{{InputLen: 10, MaxNewTokens: 5}, {InputLen: 10, MaxNewTokens: 1}, {InputLen: 10, MaxNewTokens: 1}}
	got := runLoop(t, p, p.EngineConfig(), []time.Duration{0, 21 * ms, 29 * ms}, reqs)
	require.Equal(t, []time.Duration{60 * ms}, got[reqs[1]]) // 30-40 is planned at 20; seen at 30, run 40-60
	require.Equal(t, got[reqs[1]], got[reqs[2]])
}

func TestTimesWithoutOverlap(t *testing.T) {
	p := constant()
	cfg := p.EngineConfig()
	cfg.DisableOverlap = true
	a := &Request{InputLen: 10, MaxNewTokens: 4}
	b := &Request{InputLen: 10, MaxNewTokens: 2}
	got := runLoop(t, p, cfg, []time.Duration{0, 35 * ms}, []*Request{a, b})
	// a: prefill 0-20, decodes 20-30, 30-40. b arrives at 35 and is planned at 40: prefill 40-60, then both decode.
	require.Equal(t, []time.Duration{20 * ms, 30 * ms, 40 * ms, 70 * ms}, got[a])
	require.Equal(t, []time.Duration{60 * ms, 70 * ms}, got[b])
}

// A batch at its limit that ends as a whole makes place for those behind it, although the pass after it plans nothing.
func TestLoopPlansAgainAfterAnEmptyPass(t *testing.T) {
	for rules := Rules0523; rules <= Rules0515; rules++ {
		for _, sync := range []bool{false, true} {
			p := constant()
			cfg := p.EngineConfig()
			cfg.Rules, cfg.DisableOverlap, cfg.MaxRunningRequests = rules, sync, 1
			a, b := &Request{InputLen: 10, MaxNewTokens: 2}, &Request{InputLen: 10, MaxNewTokens: 2}
			got := runLoop(t, p, cfg, []time.Duration{0, 0}, []*Request{a, b})
			require.Equal(t, []time.Duration{20 * ms, 30 * ms}, got[a], "rules %d", rules)
			at := 50 * ms // b's prefill begins when a has ended
			if rules.old() && !sync {
				at = 60 * ms // after a wasted step
			}
			require.Equal(t, []time.Duration{at, at + 10*ms}, got[b], "rules %d, overlap disabled %v", rules, sync)
		}
	}
}

// The passes that are to try no prefill take no time on an engine that has nothing else to do.
func TestPrefillDecodeIntervalOfAnIdleEngine(t *testing.T) {
	for _, sync := range []bool{false, true} {
		p := constant()
		cfg := p.EngineConfig()
		cfg.ChunkedPrefillSize, cfg.PrefillDecodeInterval, cfg.DisableOverlap = 64, 4, sync
		a := &Request{InputLen: 200, MaxNewTokens: 2} // four chunks
		got := runLoop(t, p, cfg, []time.Duration{0}, []*Request{a})
		require.Equal(t, []time.Duration{80 * ms, 90 * ms}, got[a])
	}
}

// An abort is read before the next batch is planned, when the result that is due then has been processed: it ends a
// running request with the result after that.
func TestAbortTimes(t *testing.T) {
	for sync, want := range map[bool][]time.Duration{false: {20 * ms, 30 * ms, 40 * ms, 50 * ms}, true: {20 * ms, 30 * ms, 40 * ms, 50 * ms}} {
		p := constant()
		cfg := p.EngineConfig()
		cfg.DisableOverlap = sync
		e, err := NewEngine(cfg)
		require.NoError(t, err)
		l := NewLoop(e, p)
		r := &Request{InputLen: 10, MaxNewTokens: 9}
		l.Add(0, r)
		var got []time.Duration
		aborted := false
		for {
			at, busy := l.Next()
			if !busy {
				break
			}
			if !aborted && at > 35*ms {
				aborted = true
				l.Abort(35*ms, r)
			}
			for _, o := range l.Advance() {
				got = append(got, at)
				require.Equal(t, at == 50*ms, o.Finish != nil)
			}
		}
		require.Equal(t, want, got)
	}
}

// The ratio starts anew when a loop has nothing left, and only then.
func TestRatioOfAnIdleLoop(t *testing.T) {
	p := constant()
	e, err := NewEngine(p.EngineConfig())
	require.NoError(t, err)
	l := NewLoop(e, p)
	drive(l, []time.Duration{0}, []Request{{InputLen: 10, MaxNewTokens: 20}})
	require.Equal(t, e.initRatio, e.State().NewTokenRatio)
	e.ratio = 0.5
	stuck := &Request{InputLen: 10, MaxNewTokens: 1}
	e.Add(stuck)
	e.Idle()
	require.Equal(t, 0.5, e.State().NewTokenRatio)
}

// overfull is an engine with five decodes that outgrow the pool while they ride with the chunks of a long prompt.
func overfull() (cfg EngineConfig, reqs []*Request) {
	cfg = EngineConfig{MaxTotalTokens: 3004, ContextLength: 10_000, MaxRunningRequests: 8, MaxPrefillTokens: 1000, ScheduleConservativeness: 0.3,
		ChunkedPrefillSize: 8, EnableMixedChunk: true}
	for range 5 {
		reqs = append(reqs, &Request{InputLen: 10, MaxNewTokens: 600})
	}
	return cfg, append(reqs, &Request{InputLen: 1500, MaxNewTokens: 1})
}

// A continuing chunk is chosen whether there is memory for it or not, and before 0.5.23 so are the decodes that ride with it:
// the scheduler dies when it allocates.
func TestSchedulerDiesOfMixedChunks(t *testing.T) {
	for rules, what := range map[Rules]StepKind{Rules0523: PrefillStep, Rules0521: DecodeStep, Rules0518: DecodeStep, Rules0515: DecodeStep} {
		cfg, reqs := overfull()
		cfg.Rules = rules
		e, err := NewEngine(cfg)
		require.NoError(t, err)
		l := NewLoop(e, constant())
		for _, r := range reqs {
			l.Add(0, r)
		}
		for _, busy := l.Next(); busy; _, busy = l.Next() {
			for _, o := range l.Advance() {
				require.Nil(t, o.Finish)
			}
		}
		var oom *OutOfMemoryError
		require.ErrorAs(t, e.Err(), &oom, "rules %d", rules)
		require.Equal(t, what, oom.Step)
		require.Less(t, oom.Free, oom.Want)
		require.Nil(t, e.Plan())
		require.True(t, e.Settled())
	}
}

// Real servers of both versions died in this run with "Out of memory. Try to lower your batch size. Try to allocate 3 tokens",
// and 1 was free (--max-total-tokens 300 --chunked-prefill-size 8 --max-running-requests 8 --schedule-conservativeness 0.3
// --enable-mixed-chunk; five requests of 10 and 60 tokens at first, one of 60 and 1 before batch 28).
func TestSchedulerDiesAsRecorded(t *testing.T) {
	for _, rules := range []Rules{Rules0523, Rules0515} {
		cfg, reqs := overfull()
		cfg.Rules, cfg.MaxTotalTokens = rules, 300
		e, err := NewEngine(cfg)
		require.NoError(t, err)
		l := NewLoop(e, constant())
		for range 5 {
			l.Add(0, &Request{InputLen: 10, MaxNewTokens: 60})
		}
		l.receive = func() {
			if l.Steps() == 28 && reqs != nil {
				e.Add(&Request{InputLen: 60, MaxNewTokens: 1})
				reqs = nil
			}
		}
		for _, busy := l.Next(); busy; _, busy = l.Next() {
			l.Advance()
		}
		require.Equal(t, &OutOfMemoryError{Step: PrefillStep, Want: 3, Free: 1}, e.Err(), "rules %d", rules)
	}
}

func TestSlowDown(t *testing.T) {
	p := constant()
	e, err := NewEngine(p.EngineConfig())
	require.NoError(t, err)
	l := NewLoop(e, p)
	l.SlowDown(5 * ms)
	l.Add(0, &Request{InputLen: 10, MaxNewTokens: 3})
	var got []time.Duration
	for {
		at, busy := l.Next()
		if !busy {
			break
		}
		for range l.Advance() {
			got = append(got, at)
		}
	}
	require.Equal(t, []time.Duration{25 * ms, 40 * ms, 55 * ms}, got)
}

func TestPause(t *testing.T) {
	for mode, want := range map[PauseMode][]time.Duration{
		// Paused from 35 to 100. In place, the result of 30-40 is processed at 100, while the step planned at 30 is done.
		PauseInPlace: {20 * ms, 30 * ms, 100 * ms, 100 * ms, 110 * ms},
		// With retract, the results under way come at 35; 15 tokens are computed again from 100 on.
		PauseRetract: {20 * ms, 30 * ms, 35 * ms, 35 * ms, 120 * ms},
	} {
		p := constant()
		e, err := NewEngine(p.EngineConfig())
		require.NoError(t, err)
		l := NewLoop(e, p)
		r := &Request{InputLen: 10, MaxNewTokens: 5}
		l.Add(0, r)
		var got []time.Duration
		note := func(at time.Duration, outputs []Output) {
			for _, o := range outputs {
				for range o.Tokens {
					got = append(got, at)
				}
			}
		}
		paused := false
		for {
			at, busy := l.Next()
			if !paused && at > 35*ms {
				paused = true
				note(35*ms, l.Pause(mode))
				_, busy = l.Next()
				require.False(t, busy)
				l.Continue(100 * ms)
				continue
			}
			if !busy {
				break
			}
			note(at, l.Advance())
		}
		require.Equal(t, want, got, "mode %d", mode)
		require.Equal(t, mode == PauseRetract, r.Retractions() == 1)
	}
}

func TestRanksTakeTurns(t *testing.T) {
	p := constant()
	d, err := NewRanks(2, p.EngineConfig(), p)
	require.NoError(t, err)
	for i := range 4 {
		require.Equal(t, i%2, d.Add(0, &Request{InputLen: 10, MaxNewTokens: 2}))
	}
	require.Equal(t, []bool{true, true}, d.SetLimit(0, 1))
	ended := 0
	for {
		at, busy := d.Next()
		if !busy {
			require.Equal(t, 4, ended)
			return
		}
		for _, o := range d.Advance() {
			if o.Finish != nil {
				require.Contains(t, []time.Duration{30 * ms, 60 * ms, 70 * ms}, at)
				ended++
			}
		}
	}
}

func TestEngineConfigFaultsAreReportedTogether(t *testing.T) {
	_, err := NewEngine(EngineConfig{PageSize: -1, SchedulePolicy: "priority", EvictionPolicy: "tlru", EnableMixedChunk: true})
	for _, f := range []string{"max_total_tokens", "context_length", "max_running_requests", "max_prefill_tokens", "schedule_conservativeness",
		"page_size", "schedule_policy", "radix_eviction_policy", "enable_mixed_chunk"} {
		require.ErrorContains(t, err, f)
	}
}

func TestRulesOf(t *testing.T) {
	for v, want := range map[string]Rules{"0.5.15.post1": Rules0515, "0.5.18": Rules0518, "0.5.21": Rules0521, "0.5.20": Rules0518, "0.5.23": Rules0523} {
		got, err := RulesOf(v)
		require.NoError(t, err)
		require.Equal(t, want, got, v)
	}
	for _, v := range []string{"", "0.5.9", "0.5.22", "0.5.24", "0.6.0"} {
		_, err := RulesOf(v)
		require.ErrorContains(t, err, "want 0.5.15", v)
	}
}

// workload is Poisson arrivals with prompts and answers of the lengths of a chat.
func workload(n int, rate float64) ([]time.Duration, []Request) {
	rng := rand.New(rand.NewPCG(1, 2))
	at, arrivals, reqs := 0.0, make([]time.Duration, n), make([]Request, n)
	for i := range reqs {
		at += rng.ExpFloat64() / rate
		arrivals[i] = time.Duration(at * 1e9)
		reqs[i] = Request{InputLen: 50 + rng.IntN(2000), MaxNewTokens: 1 + rng.IntN(400), IgnoreEOS: true}
	}
	return arrivals, reqs
}

// drive runs a workload and returns the number of tokens.
func drive(l *Loop, arrivals []time.Duration, reqs []Request) (tokens int) {
	for i := 0; ; {
		at, busy := l.Next()
		switch {
		case i < len(reqs) && (!busy || arrivals[i] <= at):
			l.Add(arrivals[i], &reqs[i])
			i++
		case busy:
			tokens += len(l.Advance())
		default:
			return tokens
		}
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	p := H100Llama8B()
	e, err := NewEngine(p.EngineConfig())
	require.NoError(t, err)
	l := NewLoop(e, p)
	arrivals, reqs := workload(4000, 12)
	drive(l, arrivals[:2000], reqs[:2000])
	next := 2000
	allocs := testing.AllocsPerRun(1, func() {
		drive(l, arrivals[next:next+900], reqs[next:next+900])
		next += 900
	})
	require.Less(t, allocs, 50.0, "for 900 requests and some 180,000 tokens")
}

// BenchmarkEngine measures the speed of the engine in virtual time.
func BenchmarkEngine(b *testing.B) {
	p := H100Llama8B()
	requests, tokens := 0, 0
	for b.Loop() {
		b.StopTimer()
		e, err := NewEngine(p.EngineConfig())
		require.NoError(b, err)
		arrivals, reqs := workload(5000, 12)
		b.StartTimer()
		tokens += drive(NewLoop(e, p), arrivals, reqs)
		requests += len(reqs)
	}
	b.ReportMetric(float64(requests)/b.Elapsed().Seconds(), "requests/s")
	b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
}
