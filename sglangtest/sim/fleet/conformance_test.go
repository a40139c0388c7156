package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/batching"
	"github.com/sglangtest/harness/sglangtest/dispatch"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// The drivers of the dispatcher must give it the same inputs in the same order, and so get the same
// decisions: a fleet in virtual time, the client in real time (a bubble's), and the bare core fed by hand.
// The fleet comes first; how long its engines took with each request is the script that the servers of the
// others keep to.
func TestEveryDriverDecidesAlike(t *testing.T) {
	failed := func(res *load.Result) bool {
		return res.Outcome == load.OutcomeRefused || res.Outcome == load.OutcomeReset
	}
	for name, c := range map[string]struct {
		policy  func() policy.Policy
		options func() []dispatch.Option
		fleet   []Option
		limit   int  // of each worker
		held    bool // some request must have waited
		again   bool // some request must have had another attempt, and all succeed
	}{
		"random":            {policy: func() policy.Policy { p, _ := policy.NewRandom(rand.NewPCG(3, 4)); return p }},
		"round robin":       {policy: func() policy.Policy { return new(policy.RoundRobin) }},
		"least outstanding": {policy: func() policy.Policy { p, _ := policy.NewLeastOutstanding(policy.Local); return p }},
		"hold for a place": {held: true, policy: func() policy.Policy {
			return pickFunc(func(_ *policy.Request, v *policy.View) policy.Decision {
				for w := range v.Open() {
					if w.InFlight == 0 {
						return policy.Dispatch(w.Slot)
					}
				}
				return policy.Hold(policy.Wake{On: policy.Freed})
			})
		}},
		"hold for a time": {held: true, policy: func() policy.Policy {
			return pickFunc(func(r *policy.Request, v *policy.View) policy.Decision {
				if r.Waited < 30*ms {
					return policy.Hold(policy.Wake{At: v.Now + 7*ms})
				}
				return policy.Dispatch(1 + r.ID%3)
			})
		}},
		"hold for the next one": {held: true, policy: func() policy.Policy {
			return pickFunc(func(r *policy.Request, v *policy.View) policy.Decision {
				if v.Waiting < 3 && r.Waited < 100*ms {
					return policy.Hold(policy.Wake{On: policy.Arrival, At: v.Now + 100*ms})
				}
				return policy.Dispatch(1 + r.ID%3)
			})
		}},
		"limits": {held: true, policy: func() policy.Policy { return new(policy.RoundRobin) }, options: func() []dispatch.Option {
			return []dispatch.Option{dispatch.WithLimits(dispatch.Limits{InFlight: 4, Queue: 3, RetryAfter: time.Second})}
		}},
		"limits of workers": {held: true, limit: 2, policy: func() policy.Policy { return new(policy.RoundRobin) }},
		"a worker of its own": {held: true, limit: 1, policy: func() policy.Policy {
			return pickFunc(func(r *policy.Request, _ *policy.View) policy.Decision { return policy.Dispatch(1 + r.ID%3) })
		}},
		"shortest first": {held: true, limit: 1, policy: func() policy.Policy { return shortest{new(policy.RoundRobin)} }},
		"static batches": {held: true, policy: func() policy.Policy { return new(policy.RoundRobin) }, options: func() []dispatch.Option {
			s, _ := batching.NewStatic(4)
			return []dispatch.Option{dispatch.WithStrategy(s)}
		}},
		"static batches, limited": {held: true, limit: 5, policy: func() policy.Policy { return new(policy.RoundRobin) }, options: func() []dispatch.Option {
			s, _ := batching.NewStatic(4)
			return []dispatch.Option{dispatch.WithStrategy(s)}
		}},
		"retries": {again: true, policy: func() policy.Policy { return new(policy.RoundRobin) }, options: func() []dispatch.Option {
			return []dispatch.Option{dispatch.WithRetries(3, failed)}
		}, fleet: []Option{WithAction(150*ms+137, 1, Kill())}},
		"failures": {policy: func() policy.Policy { return new(policy.RoundRobin) }, fleet: []Option{WithAction(150*ms+137, 1, Kill())}},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			var src requests
			at := time.Duration(0)
			for i := range 60 { // no two events at one time: what comes first must not be chance
				at += time.Duration(rng.Int64N(int64(25 * ms)))
				src = append(src, ask(i, at, 10+rng.IntN(50), 1+rng.IntN(6)))
			}
			options := c.options
			if options == nil {
				options = func() []dispatch.Option { return nil }
			}
			p := steady()
			p.MaxRunning = 1
			engines := Equal(3, p)
			for i := range engines {
				engines[i].Limit, engines[i].Speed = c.limit, []float64{1, 0.937, 0.871}[i]
			}
			virtual := watched(c.policy())
			want := results(play(t, src, virtual, engines, append(c.fleet, WithDispatch(options()...))...))
			if c.held {
				require.True(t, slices.ContainsFunc(want, func(r load.Result) bool { return r.Due > r.Arrival }))
			}
			if c.again {
				require.True(t, slices.ContainsFunc(want, func(r load.Result) bool { return r.Route.Attempt > 1 }))
				require.False(t, slices.ContainsFunc(want, func(r load.Result) bool { return !r.OK() }))
			}
			script := virtual.log().timings

			bare := watched(c.policy())
			byHand(t, src, bare, c.limit, script, options())
			require.Equal(t, virtual.log().asks, bare.log().asks, "bare core")

			synctest.Test(t, func(t *testing.T) {
				live := watched(c.policy())
				got, col := client(t, src, live, c.limit, script, options())
				require.Equal(t, virtual.log().asks, live.log().asks, "client")
				for i := range want {
					w, g := &want[i], &got[i]
					require.Equal(t, []any{w.Worker, w.Outcome, w.Due, w.Send, w.Completion, w.Sent, w.Message, w.Routed, w.Route}, []any{g.Worker, g.Outcome, g.Due, g.Send, g.Completion, g.Sent, g.Message, g.Routed, g.Route},
						"request %d", i)
					require.Zero(t, g.Lateness())
				}
				require.True(t, col.Summary().Client.OK, col.Summary().Client.Reasons)
			})
		})
	}
}

// shortest lets the request with the shortest answer go first.
type shortest struct{ policy.Policy }

func (shortest) Less(a, b *policy.Request) bool { return a.OutputLen < b.OutputLen }

// A watch notes what a policy is asked, what it answers, and when its requests began and ended.
type watch struct {
	policy.Policy
	asks    []string
	timings map[[2]int]timing // by ID and attempt
}

type timing struct {
	sent, first, end time.Duration
	outcome          load.Outcome
	message          string
}

type watcher interface {
	policy.Policy
	log() *watch
}

func watched(p policy.Policy) watcher {
	w := &watch{Policy: p, timings: map[[2]int]timing{}}
	if o, ok := p.(policy.Orderer); ok {
		return orderedWatch{w, o}
	}
	return w
}

type orderedWatch struct {
	*watch
	policy.Orderer
}

func (w *watch) log() *watch { return w }

func (w *watch) Pick(r *policy.Request, v *policy.View) (policy.Decision, error) {
	d, err := w.Policy.Pick(r, v)
	loads := ""
	for i := range v.Workers {
		x := &v.Workers[i]
		loads += fmt.Sprintf(" %d/%d/%d/%d", x.InFlight, x.PromptTokens, x.PrefillTokens, x.Unseen)
	}
	w.asks = append(w.asks, fmt.Sprintf("%v: request %d, attempt %d, tried %v, waited %v; %d wait, %d in flight, workers%s: %v %d until %v",
		v.Now, r.ID, r.Attempt, r.Tried, r.Waited, v.Waiting, v.InFlight, loads, d.Verdict, d.Worker, d.Wake))
	return d, err
}

func (w *watch) change(r *policy.Request, f func(*timing)) {
	k := [2]int{r.ID, r.Attempt}
	at := w.timings[k]
	f(&at)
	w.timings[k] = at
}

func (w *watch) Dispatched(r *policy.Request, f policy.Feedback) {
	w.change(r, func(t *timing) { t.sent = f.Now })
}

func (w *watch) FirstToken(r *policy.Request, f policy.Feedback) {
	w.change(r, func(t *timing) { t.first = f.Now })
}

func (w *watch) Done(r *policy.Request, f policy.Feedback, res *load.Result) {
	w.change(r, func(t *timing) { t.end, t.outcome, t.message = f.Now, res.Outcome, res.Message })
}

// byHand feeds a bare core.
func byHand(t *testing.T, src requests, p policy.Policy, limit int, script map[[2]int]timing, opts []dispatch.Option) {
	core, err := dispatch.New(p, opts...)
	require.NoError(t, err)
	for range 3 {
		core.AddWorker(0, dispatch.Worker{Limit: limit})
	}
	type event struct {
		at   time.Duration
		kind int // arrival, first token, end
		*dispatch.Ticket
	}
	var events []event
	for i := range src {
		tk := &dispatch.Ticket{}
		tk.Request.Request = &src[i]
		events = append(events, event{src[i].Arrival, 0, tk})
	}
	for {
		next := -1
		for i := range events {
			if next < 0 || events[i].at < events[next].at {
				next = i
			}
		}
		if at, ok := core.Wake(); ok && (next < 0 || at <= events[next].at) {
			core.Tick(at)
		} else if next < 0 {
			break
		} else {
			e := events[next]
			events = slices.Delete(events, next, next+1)
			switch e.kind {
			case 0:
				core.Arrive(e.at, e.Ticket)
			case 1:
				core.FirstToken(e.at, e.Ticket)
			case 2:
				of := script[[2]int{e.Request.ID, e.Request.Attempt}]
				if core.End(e.at, e.Ticket, &load.Result{Outcome: of.outcome}) {
					events = append(events, event{e.at, 0, e.Ticket})
				}
			}
		}
		for {
			a, ok := core.Next()
			if !ok {
				break
			}
			if a.Verdict == policy.VerdictDispatch {
				of := script[[2]int{a.Ticket.Request.ID, a.Ticket.Request.Attempt}]
				now := core.View().Now
				if of.first > 0 {
					events = append(events, event{now + of.first - of.sent, 1, a.Ticket})
				}
				events = append(events, event{now + of.end - of.sent, 2, a.Ticket})
			}
		}
	}
	require.NoError(t, core.Err())
	require.Zero(t, core.View().InFlight)
}

// scripted is a Doer whose answers take as long as the script says.
type scripted struct {
	script map[[2]int]timing
	mu     sync.Mutex
	tried  map[int]int
}

func (s *scripted) Do(context.Context, load.Clock, *load.Request, *load.Result) { panic("no target") }

func (s *scripted) CheckTarget(load.Target) error { return nil }

func (s *scripted) DoTo(_ context.Context, clock load.Clock, p *load.Placement, req *load.Request, res *load.Result) {
	s.mu.Lock()
	s.tried[req.ID]++
	of := s.script[[2]int{req.ID, s.tried[req.ID]}]
	s.mu.Unlock()
	res.Worker = p.Target.Name
	res.Released = clock.Now()
	res.Send, res.Sent = res.Released, of.outcome != load.OutcomeRefused
	if of.first > 0 {
		time.Sleep(of.first - of.sent)
		p.FirstToken(clock.Now())
		res.FirstToken, res.LastToken, res.OutputTokens = clock.Now(), clock.Now(), 1
		time.Sleep(of.end - of.first)
	} else {
		time.Sleep(of.end - of.sent)
	}
	res.Completion, res.Outcome, res.Message = clock.Now(), of.outcome, of.message
	if !res.Sent {
		res.Send = res.Completion
	}
}

// client runs the workload against scripted servers, in the bubble's time.
func client(t *testing.T, src requests, p policy.Policy, limit int, script map[[2]int]timing, opts []dispatch.Option) ([]load.Result, *metrics.Collector) {
	var workers []dispatch.Worker
	for i := range 3 {
		workers = append(workers, dispatch.Worker{Name: fmt.Sprintf("server-%d", i), URL: "http://nowhere", Limit: limit})
	}
	route, err := dispatch.NewLive(p, workers, opts...)
	require.NoError(t, err)
	defer route.Close()
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	do := &scripted{script: script, tried: map[int]int{}}
	require.NoError(t, load.Run(t.Context(), src, do, col, load.WithRoute(route), load.WithWaiter(load.TimerWaiter{})))
	rs := results(col)
	return rs, col
}
