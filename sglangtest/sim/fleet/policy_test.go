package fleet

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// pickFunc is a policy that is a function.
type pickFunc func(r *policy.Request, v *policy.View) policy.Decision

func (f pickFunc) Pick(r *policy.Request, v *policy.View) (policy.Decision, error) {
	return f(r, v), nil
}

func TestViewOfThePolicy(t *testing.T) {
	p := steady()
	p.Ingest, p.Egress = 1*ms, 2*ms
	src := requests{ask(0, 0, 100, 3), ask(1, 5*ms, 50, 1), ask(2, 14*ms, 10, 1), ask(3, 33*ms, 10, 1), ask(4, 34*ms, 10, 1), ask(5, 74*ms, 10, 1)}
	var views []policy.Worker
	play(t, src, pickFunc(func(_ *policy.Request, v *policy.View) policy.Decision {
		views = append(views, v.Workers[0])
		return policy.Dispatch(1)
	}), Equal(1, p), WithPolling(20*ms))
	// Request 0 runs from 1 ms; its tokens are seen at 13, 23 and 33 ms. Request 1 comes during its first step and
	// runs in the third one.
	base := policy.Worker{Slot: 1, Name: "server-0", Facts: policy.Facts{MaxRunning: 64, KVTokens: 100_000, Speed: 1, Ingest: 1 * ms}, Load: policy.Load{Sampled: true}}
	want := make([]policy.Worker, 6)
	for i := range want {
		want[i] = base
	}
	set := func(i, inFlight, prompt, prefill, sincePoll int) {
		want[i].InFlight, want[i].PromptTokens, want[i].PrefillTokens, want[i].Unseen = inFlight, prompt, prefill, sincePoll
	}
	set(0, 0, 0, 0, 0)
	set(1, 1, 100, 100, 1)
	set(2, 2, 150, 50, 2)
	for i := range 3 {
		require.Equal(t, want[i], views[i], "request %d", i)
	}
	require.Equal(t, 20*ms, views[3].Load.At)
	require.Equal(t, []int{2, 1}, []int{views[3].Load.Running + views[3].Load.Waiting - 1, views[4].Unseen}, "polled at 20 ms: 0, 1 and 2; dispatched since: 3")
	require.Equal(t, 60*ms, views[5].Load.At)
	require.Zero(t, views[5].InFlight)
	require.Zero(t, views[5].PrefillTokens)
	require.Zero(t, views[5].Unseen)
}

// observer notes the feedback that it gets.
type observer struct {
	policy.RoundRobin
	log []string
	at  []time.Duration
}

func (o *observer) note(at time.Duration, what string) {
	o.log, o.at = append(o.log, what), append(o.at, at)
}

func (o *observer) Dispatched(_ *policy.Request, f policy.Feedback) { o.note(f.Now, "dispatched") }
func (o *observer) FirstToken(_ *policy.Request, f policy.Feedback) { o.note(f.Now, "first token") }
func (o *observer) Done(_ *policy.Request, f policy.Feedback, res *load.Result) {
	o.note(f.Now, string(res.Outcome))
}

func TestFeedback(t *testing.T) {
	p := steady()
	p.Egress = 2 * ms
	o := new(observer)
	play(t, requests{ask(0, 1*ms, 10, 2), ask(1, 2*ms, 10, 900)}, o, Equal(2, p), WithAction(40*ms, 1, Kill()))
	require.Equal(t, []string{"dispatched", "dispatched", "first token", "first token", "ok", "truncated"}, o.log)
	require.Equal(t, []time.Duration{1 * ms, 2 * ms, 13 * ms, 14 * ms, 23 * ms, 40 * ms}, o.at)
}

func TestHeldRequestsWaitForAnEnd(t *testing.T) {
	src := requests{ask(0, 0, 10, 3), ask(1, 1*ms, 10, 1), ask(2, 2*ms, 10, 1)}
	rs := results(play(t, src, pickFunc(func(_ *policy.Request, v *policy.View) policy.Decision {
		if v.Workers[0].InFlight > 0 {
			return policy.Hold(policy.Wake{On: policy.Freed})
		}
		return policy.Dispatch(1)
	}), Equal(1, steady())))
	require.Equal(t, []time.Duration{0, 30 * ms, 40 * ms}, []time.Duration{rs[0].Send, rs[1].Send, rs[2].Send})
	require.Equal(t, 38*ms, rs[2].QueueTime())
	require.Zero(t, rs[2].Lateness(), "a hold is the policy's doing, not the client's")
}

func TestHeldRequestsWaitForATime(t *testing.T) {
	rs := results(play(t, requests{ask(0, 3*ms, 10, 1)}, pickFunc(func(r *policy.Request, v *policy.View) policy.Decision {
		if v.Now < 50*ms {
			return policy.Hold(policy.Wake{At: v.Now + 20*ms})
		}
		return policy.Dispatch(1)
	}), Equal(1, steady())))
	require.Equal(t, 63*ms, rs[0].Send)
}

func TestAHoldWithoutEndIsAFault(t *testing.T) {
	hold := pickFunc(func(*policy.Request, *policy.View) policy.Decision {
		return policy.Hold(policy.Wake{On: policy.Arrival | policy.Freed | policy.Sample | policy.Fleet})
	})
	for name, opts := range map[string][]Option{"no polls": nil, "polls": {WithPolling(time.Second)}, "samples": {WithSamples(time.Second)}, "both": {WithSamples(7 * ms), WithPolling(time.Second)}, "a full house": {WithMaxConcurrency(1)}} {
		t.Run(name, func(t *testing.T) {
			col, err := metrics.NewCollector()
			require.NoError(t, err)
			src := requests{ask(0, 0, 10, 1), ask(1, 0, 10, 1)}
			_, err = Run(context.Background(), src, hold, Equal(1, steady()), col, opts...)
			require.ErrorContains(t, err, "nothing is left that could end the wait")
			require.Equal(t, []load.Outcome{load.OutcomeCancelled, load.OutcomeCancelled}, outcomes(col))
		})
	}
}

func TestAPolicyThatReadsSamplesNeedsPolling(t *testing.T) {
	for _, signal := range []policy.Signal{policy.Polled, policy.PolledPlusOwn} {
		pol, err := policy.NewLeastOutstanding(signal)
		require.NoError(t, err)
		_, err = Run(context.Background(), requests{}, pol, Equal(2, steady()), nil)
		require.ErrorContains(t, err, "WithPolling")
		play(t, requests{}, pol, Equal(2, steady()), WithPolling(time.Second))
	}
	pol, err := policy.NewLeastOutstanding(policy.Local)
	require.NoError(t, err)
	play(t, requests{}, pol, Equal(2, steady()))
}

func TestReject(t *testing.T) {
	rs := results(play(t, requests{ask(0, 3*ms, 10, 1)}, pickFunc(func(*policy.Request, *policy.View) policy.Decision {
		return policy.Reject("too much to do")
	}), Equal(1, steady())))
	require.Equal(t, load.Result{Arrival: 3 * ms, Due: 3 * ms, Released: 3 * ms, Send: 3 * ms, Completion: 3 * ms, API: load.Generate,
		Outcome: load.OutcomeRejected, Message: "too much to do", InputLen: 10, OutputLen: 1,
		CachedTokens: load.NotReported, Retractions: load.NotReported}, rs[0])
}

// faulty is a policy that fails at its second request.
type faulty struct{ n int }

func (p *faulty) Pick(*policy.Request, *policy.View) (policy.Decision, error) {
	if p.n++; p.n == 2 {
		return policy.Decision{}, errors.New("out of ideas")
	}
	return policy.Dispatch(1), nil
}

func TestAFaultOfThePolicyEndsTheRun(t *testing.T) {
	src := requests{ask(0, 0, 10, 9), ask(1, 1*ms, 10, 9), ask(2, 2*ms, 10, 9)}
	for name, c := range map[string]struct {
		pol  policy.Policy
		want string
	}{
		"error":   {new(faulty), "request 1: out of ideas"},
		"nothing": {pickFunc(func(*policy.Request, *policy.View) policy.Decision { return policy.Decision{} }), "make it with policy.Dispatch"},
		"nobody":  {pickFunc(func(*policy.Request, *policy.View) policy.Decision { return policy.Dispatch(2) }), "of 1 workers"},
		"too late": {pickFunc(func(_ *policy.Request, v *policy.View) policy.Decision {
			return policy.Hold(policy.Wake{At: v.Now})
		}), "a later time"},
	} {
		t.Run(name, func(t *testing.T) {
			col, err := metrics.NewCollector()
			require.NoError(t, err)
			_, err = Run(context.Background(), src, c.pol, Equal(1, steady()), col)
			require.ErrorContains(t, err, c.want)
			require.Zero(t, col.Progress().InFlight, "what had arrived is recorded")
		})
	}
}

// With a view that is never fresh, all requests between two polls go to one worker; own dispatches repair it
// (the shape is published: simulations of llm-d's routers, and of this package's reference material).
func TestStaleLoadsHerdAndOwnDispatchesRepair(t *testing.T) {
	var src requests
	for i := range 400 {
		src = append(src, ask(i, time.Duration(i)*5*ms, 50, 20))
	}
	p99 := func(s policy.Signal, opts ...Option) float64 {
		pol, err := policy.NewLeastOutstanding(s)
		require.NoError(t, err)
		p := steady()
		p.MaxRunning = 8
		d := play(t, src, pol, Equal(8, p), opts...).Summary().TTFT
		return float64(d.Max)
	}
	local, polled, own := p99(policy.Local), p99(policy.Polled, WithPolling(500*ms)), p99(policy.PolledPlusOwn, WithPolling(500*ms))
	require.Less(t, own, 2*local)
	require.Greater(t, polled, 5*local)
}

// chatty counts the tokens that it is told of.
type chatty struct {
	policy.RoundRobin
	tokens map[int]int
}

func (*chatty) Needs() policy.Needs { return policy.Needs{Chunks: true} }

func (p *chatty) Chunk(r *policy.Request, _ policy.Feedback, tokens int) { p.tokens[r.ID] += tokens }

// A policy that is told of each token costs time, but changes nothing.
func TestChunks(t *testing.T) {
	src, p, cfg := crowded(200)
	pol := &chatty{tokens: map[int]int{}}
	engines := []Engine{{Profile: p, Config: cfg}}
	told := results(play(t, src, pol, engines, WithTimeout(3*time.Second)))
	quiet := results(play(t, src, new(policy.RoundRobin), engines, WithTimeout(3*time.Second)))
	for i := range told {
		require.Equal(t, told[i].OutputTokens, pol.tokens[told[i].ID], "request %d", told[i].ID)
		told[i].Route, quiet[i].Route = nil, nil
	}
	require.Equal(t, quiet, told)
}

// follower notes what changes of its first worker.
type follower struct {
	policy.RoundRobin
	log []string
}

func (f *follower) FleetChanged(v *policy.View) {
	w := v.Worker(1)
	f.log = append(f.log, fmt.Sprintf("%v: %v, at most %d, epoch %d, sampled %v", v.Now, w.State, w.MaxRunning, w.Epoch, w.Load.Sampled))
}

// What the harness does itself is known at once; what happens to an engine only when it is asked.
func TestChangesOfWorkers(t *testing.T) {
	f := new(follower)
	play(t, requests{ask(0, 0, 10, 30), ask(1, 290*ms, 10, 1)}, f, Equal(1, steady()), WithPolling(40*ms), WithAction(50*ms, 0, SetLimit(3)),
		WithAction(100*ms, 0, Kill()), WithAction(210*ms, 0, Restart()))
	require.Equal(t, []string{"0s: up, at most 64, epoch 0, sampled false", "50ms: up, at most 3, epoch 0, sampled true",
		"120ms: down, at most 3, epoch 0, sampled true", "210ms: down, at most 64, epoch 0, sampled true",
		"240ms: down, at most 64, epoch 1, sampled false", "240ms: up, at most 64, epoch 1, sampled false"}, f.log)
}
