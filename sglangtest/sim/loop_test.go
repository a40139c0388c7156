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

func TestEngineConfigFaultsAreReportedTogether(t *testing.T) {
	_, err := NewEngine(EngineConfig{})
	for _, f := range []string{"max_total_tokens", "context_length", "max_running_requests", "max_prefill_tokens", "schedule_conservativeness"} {
		require.ErrorContains(t, err, f)
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
