package metrics

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// queue makes n Poisson arrivals at a server that works on c requests at once, each for a time of mean 100 ms that grows with its
// output, at rho times its capacity. The first token comes after a tenth of it.
func queue(seed uint64, n, c int, rho float64, work func(*rand.Rand) float64) []load.Result {
	rng := rand.New(rand.NewPCG(seed, 1))
	var at time.Duration
	free := make([]time.Duration, c)
	return each(n, 0, func(i int, _ time.Duration) load.Result {
		at += time.Duration(rng.ExpFloat64() / (rho * float64(c)) * float64(100*msec))
		w := work(rng)
		k := slices.Index(free, slices.Min(free))
		start := max(at, free[k])
		free[k] = start + time.Duration(w*float64(100*msec)) + 1
		r := answer(i, at, 0, start-at+(free[k]-start)/10, (free[k]-start)*9/10, 2)
		r.OutputLen, r.OutputTokens = 1+int(100*w), 1+int(100*w)
		return r
	})
}

func fixed(*rand.Rand) float64         { return 1 }
func exponential(r *rand.Rand) float64 { return r.ExpFloat64() }

// A queue below its capacity is not called overloaded, however it wanders; one above it is, if the run is long enough to tell.
func TestOverloadedVerdict(t *testing.T) {
	overloaded := func(n, c, seeds int, rho float64, work func(*rand.Rand) float64) (hits int) {
		for seed := range seeds {
			col := collect(t, load.Plan{}, queue(uint64(seed), n, c, rho, work), nil)
			b := &builder{c: col, rs: col.finished("the test")}
			if b.waiting().grew() {
				hits++
			}
		}
		return hits
	}
	for _, n := range []int{20, 60, 200, 600} {
		for _, rho := range []float64{0.5, 0.7, 0.8, 0.9} {
			for _, c := range []int{1, 16} {
				require.Zero(t, overloaded(n, c, 100, rho, fixed), "fixed work, n %d, load %g, %d at once", n, rho, c)
				require.LessOrEqual(t, overloaded(n, c, 100, rho, exponential), 1, "exponential work, n %d, load %g, %d at once", n, rho, c)
			}
		}
	}
	for _, c := range []int{1, 16} {
		require.Equal(t, 100, overloaded(200, c, 100, 2, fixed))
		require.Equal(t, 50, overloaded(1000, c, 50, 1.3, fixed))
		require.Equal(t, 50, overloaded(1000, c, 50, 1.5, exponential))
	}
}

func TestVerdicts(t *testing.T) {
	ok := func(i int, at time.Duration) load.Result { return answer(i, at, 0, msec, msec, 2) }
	s := summaryOf(t, load.Plan{}, each(100, 10*msec, ok))
	require.Equal(t, VerdictOK, s.Verdict)
	require.Empty(t, s.VerdictReasons)
	require.True(t, strings.HasPrefix(s.String(), "verdict       ok\n"))

	s = summaryOf(t, load.Plan{}, queue(1, 400, 4, 2, fixed))
	require.Equal(t, VerdictOverloaded, s.Verdict)
	require.Regexp(t, `^verdict overloaded: more came than was served: the requests that waited for their first token grew from 2[0-9.]+ in the first quarter of the arrivals to 17[0-9.]+ in the last`,
		strings.Join(strings.Fields(s.String()), " "))

	// All at once, or a queue that drains: that is what was asked for.
	require.Equal(t, VerdictOK, summaryOf(t, load.Plan{}, each(400, 0, func(i int, _ time.Duration) load.Result { return answer(i, 0, 0, time.Duration(i+1)*msec, msec, 2) })).Verdict)
	// A burst at the very end waits, but nothing grew.
	burst := each(600, 10*msec, func(i int, at time.Duration) load.Result {
		if i >= 300 {
			at = 2990*msec + time.Duration(i)*msec/100
			return answer(i, at, 0, time.Duration(i-299)*10*msec, msec, 2)
		}
		return ok(i, at)
	})
	require.Equal(t, VerdictOK, summaryOf(t, load.Plan{}, burst).Verdict)
	// Long answers: ever more are under way, but none waits for its first token.
	require.Equal(t, VerdictOK, summaryOf(t, load.Plan{}, each(400, 10*msec, func(i int, at time.Duration) load.Result { return answer(i, at, 0, 20*msec, 60*time.Second, 2) })).Verdict)

	hang := each(200, 10*msec, func(i int, at time.Duration) load.Result {
		if i < 100 {
			return ok(i, at)
		}
		r := failure(i, at, load.OutcomeTimeout, 0, "no end within 30s")
		r.Completion = at + 30*time.Second
		return r
	})
	s = summaryOf(t, load.Plan{}, hang)
	require.Equal(t, VerdictStalled, s.Verdict, "nothing shows that more load was the reason")
	require.Equal(t, "no request got its first token in the last 0.497 s of arrivals, while 50 arrived", s.VerdictReasons[0])

	// The same latency for each request, on a run too short for it: what waits is what that latency explains, and nothing stopped.
	for _, latency := range []time.Duration{600 * msec, 900 * msec, 1500 * msec, 10 * time.Second} {
		for _, streamed := range []bool{true, false} {
			slow := each(200, 5*msec, func(i int, at time.Duration) load.Result {
				r := answer(i, at, 0, latency+time.Duration(i%7)*msec, 0, 1)
				r.Streamed = streamed
				return r
			})
			require.Equal(t, VerdictOK, summaryOf(t, load.Plan{}, slow).Verdict, "latency %v, streamed %v", latency, streamed)
		}
	}

	some := each(100, 10*msec, ok)
	some[3] = failure(3, 30*msec, load.OutcomeHTTP, 503, "full")
	require.Equal(t, VerdictErrors, summaryOf(t, load.Plan{}, some).Verdict)
	require.Equal(t, VerdictFailed, summaryOf(t, load.Plan{}, []load.Result{some[3]}).Verdict)
	require.Equal(t, VerdictFailed, summaryOf(t, load.Plan{}, nil).Verdict)
	require.Equal(t, VerdictFailed, summaryOf(t, load.Plan{}, some, Event{Kind: KindServerEnded, Source: "server-0", At: time.Second}).Verdict)
	late := each(100, 10*msec, func(i int, at time.Duration) load.Result {
		r := answer(i, at, 30*msec, msec, msec, 2)
		r.Released = r.Send
		return r
	})
	require.Equal(t, VerdictClient, summaryOf(t, load.Plan{}, late).Verdict)
}

// A run that is stopped on purpose has figures as of the stop: what was under way counts apart.
func TestAStoppedRun(t *testing.T) {
	stopped := each(110, 10*msec, func(i int, at time.Duration) load.Result {
		if i < 100 {
			return answer(i, at, 0, 50*msec, 0, 1)
		}
		r := failure(i, at, load.OutcomeCancelled, 0, "seen enough")
		r.Completion = 1100 * msec
		if i%2 == 0 {
			r.FirstToken, r.LastToken = at+5*msec, at+5*msec
		}
		return r
	})
	stopped[105].Sent, stopped[105].Send = false, 1100*msec
	run := func(events ...Event) *Summary { return summaryOf(t, load.Plan{Requests: 500}, stopped, events...) }
	s := run()
	require.Equal(t, VerdictStopped, s.Verdict)
	require.Equal(t, []string{"the run was stopped with 10 requests under way and 390 yet to come: figures are as of the stop"}, s.VerdictReasons)
	require.Equal(t, []int{110, 100, 0, 10, 10}, []int{s.Requests.Arrived, s.Requests.OK, s.Requests.Failed, s.Requests.Censored, s.Requests.Unfinished})
	for _, d := range []Distribution{s.TTFT, s.ServerTTFT, s.TotalLatency, s.ServerLatency} {
		require.Equal(t, []int{100, 0}, []int{d.Count, d.Failed})
		require.InDelta(t, 50, float64(d.Percentiles[3].Value), 1e-9)
	}
	require.Equal(t, []int{109, 0}, []int{s.QueueTime.Count, s.QueueTime.Failed}, "of those that were sent it is known")
	require.NotContains(t, s.String(), " failed    failed")
	require.NoError(t, s.Check(AtLeast(SuccessShare, 1)))
	require.Contains(t, s.Notes, "10 requests were under way when the run was stopped, for up to 0.100 s: latencies are of those that had ended, which favours short ones; "+
		"with them TTFT would be at least, in ms: p99 68.2 instead of 50.0, p99.9 87.8 instead of 50.0; "+
		"with them E2E would be at least, in ms: p99 89.1 instead of 50.0, p99.9 98.9 instead of 50.0")

	// What a server's end cut off has failed.
	s = run(Event{Kind: KindServerEnded, Source: "server-0", At: 1100 * msec})
	require.Equal(t, VerdictFailed, s.Verdict)
	require.Equal(t, []int{10, 0}, []int{s.Requests.Failed, s.Requests.Censored})
	require.Equal(t, 10, s.TTFT.Failed)
	require.Error(t, s.Check(AtLeast(SuccessShare, 1)))
}

// A closed loop in which all arrive at once points to the latencies from the send.
func TestAClosedLoopPointsToServerTTFT(t *testing.T) {
	c := collect(t, load.Plan{}, each(100, 0, func(i int, _ time.Duration) load.Result {
		r := answer(i, 0, time.Duration(i/4)*time.Second, 51*msec, msec, 2)
		r.Due, r.Released = r.Send, r.Send
		return r
	}), nil)
	c.info.MaxConcurrency = 4
	require.Contains(t, c.Summary().Notes, "TTFT and E2E count from the arrival, so that the wait for one of the 4 places is in them: TTFT p50 12051.0 ms, server TTFT p50, from the send, 51.0 ms")
}
