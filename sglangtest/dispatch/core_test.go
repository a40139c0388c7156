package dispatch

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/batching"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

const ms = time.Millisecond

// pick is a policy that is a function.
type pick func(r *policy.Request, v *policy.View) policy.Decision

func (f pick) Pick(r *policy.Request, v *policy.View) (policy.Decision, error) { return f(r, v), nil }

// bench is a core with what a test needs around it.
type bench struct {
	*Core
	t    *testing.T
	asks []int // the IDs that the policy was asked about
}

// newBench returns a core of n workers whose policy notes what it is asked.
func newBench(t *testing.T, n int, p policy.Policy, opts ...Option) *bench {
	b := &bench{t: t}
	f := pick(func(r *policy.Request, v *policy.View) policy.Decision {
		b.asks = append(b.asks, r.ID)
		d, err := p.Pick(r, v)
		require.NoError(t, err)
		return d
	})
	c, err := New(f, opts...)
	require.NoError(t, err)
	b.Core = c
	for range n {
		b.AddWorker(0, Worker{})
	}
	return b
}

func (b *bench) arrive(now time.Duration, id int) *Ticket {
	t := &Ticket{}
	t.Request.Request = &load.Request{ID: id, Arrival: now, InputLen: 10, Prompt: load.Prompt{Segments: []load.Segment{{Length: 10}}}}
	b.Arrive(now, t)
	return t
}

// asked returns the IDs asked about since the last call.
func (b *bench) asked() []int {
	a := b.asks
	b.asks = nil
	return a
}

// did returns what there is to do, in words.
func (b *bench) did() (out []string) {
	for {
		a, ok := b.Next()
		if !ok {
			return out
		}
		s := fmt.Sprintf("%d: %v", a.Ticket.Request.ID, a.Verdict)
		if a.Verdict == policy.VerdictDispatch {
			s += fmt.Sprintf(" to %d", a.Worker)
		} else {
			s += fmt.Sprintf(" %d", a.Status)
		}
		if a.Held {
			s += fmt.Sprintf(", due %v", a.Due)
		}
		if a.Batch > 0 {
			s += fmt.Sprintf(", batch %d", a.Batch)
		}
		out = append(out, s)
	}
}

var ok = &load.Result{Outcome: load.OutcomeOK}

func TestAnEventAsksOnlyWhoNamedItAndStops(t *testing.T) {
	wakes := map[int]policy.Wake{0: {On: policy.Sample}, 1: {On: policy.Freed}, 2: {On: policy.Freed}, 3: {On: policy.Arrival}, 4: {On: policy.Fleet, Worker: 2},
		5: {On: policy.Freed, Worker: 2}}
	let := -1 // who may leave
	b := newBench(t, 2, pick(func(r *policy.Request, v *policy.View) policy.Decision {
		if r.ID == let || r.ID >= 10 {
			return policy.Dispatch(1 + r.ID%2)
		}
		return policy.Hold(wakes[r.ID])
	}))
	running := []*Ticket{b.arrive(0, 10), b.arrive(0, 11), b.arrive(0, 12)} // on workers 1, 2, 1
	require.Equal(t, []int{10, 11, 12}, b.asked())
	for id := range 6 {
		b.arrive(ms, id)
	}
	require.Equal(t, []int{0, 1, 2, 3, 3, 4, 3, 5}, b.asked(), "each arrival asks about 3, which is held again, and the new one once in any case")
	b.did()

	b.End(2*ms, running[0], ok)
	require.Equal(t, []int{1}, b.asked(), "the first that waits for an end is held again; the others are not asked")
	let = 1
	b.End(3*ms, running[1], ok)
	require.Equal(t, []int{1, 2}, b.asked(), "1 leaves, 2 is held again")
	require.Equal(t, []string{"1: dispatch to 2, due 3ms"}, b.did())
	let = 5
	b.Cancel(3*ms, findWaiting(b, 2))
	b.End(4*ms, running[2], ok)
	require.Empty(t, b.asked(), "an end on worker 1 is not what 5 waits for")
	b.Sample(5*ms, []Sample{{Slot: 1}})
	require.Equal(t, []int{0}, b.asked())
	b.Health(6*ms, 1, false)
	require.Empty(t, b.asked(), "4 waits for worker 2")
	b.SetFacts(6*ms, 2, policy.Facts{MaxRunning: 9})
	require.Equal(t, []int{4}, b.asked())
}

// findWaiting returns the ticket of a held request.
func findWaiting(b *bench, id int) *Ticket {
	for _, k := range b.classes {
		for _, e := range k.items {
			if e.tickets[0].Request.ID == id {
				return e.tickets[0]
			}
		}
	}
	b.t.Fatalf("request %d is not held", id)
	return nil
}

func TestHeldForAnotherEventAsksOn(t *testing.T) {
	b := newBench(t, 1, pick(func(r *policy.Request, v *policy.View) policy.Decision {
		if r.ID == 0 && r.Waited > 0 {
			return policy.Hold(policy.Wake{On: policy.Freed | policy.Sample})
		}
		if v.InFlight == 0 {
			return policy.Dispatch(1)
		}
		return policy.Hold(policy.Wake{On: policy.Freed})
	}))
	first := b.arrive(0, 9)
	b.arrive(0, 0)
	b.arrive(0, 1)
	b.asked()
	b.End(ms, first, ok)
	require.Equal(t, []int{0, 1}, b.asked(), "0 waits for other events than before, so 1 is next")
}

func TestTimes(t *testing.T) {
	b := newBench(t, 1, pick(func(r *policy.Request, v *policy.View) policy.Decision {
		if r.Waited < time.Duration(10-r.ID)*ms {
			return policy.Hold(policy.Wake{On: policy.Freed, At: v.Now - r.Waited + time.Duration(10-r.ID)*ms})
		}
		return policy.Dispatch(1)
	}))
	for id := range 3 {
		b.arrive(0, id)
	}
	at, is := b.Wake()
	require.True(t, is)
	require.Equal(t, 8*ms, at)
	b.asked()
	b.Tick(9500 * time.Microsecond) // late: 2 and 1 are due, in the order of the queue
	require.Equal(t, []int{1, 2}, b.asked())
	require.Equal(t, []string{"1: dispatch to 1, due 9ms", "2: dispatch to 1, due 8ms"}, b.did(), "each when its own time had come")
	b.Tick(10 * ms)
	require.Equal(t, []string{"0: dispatch to 1, due 10ms"}, b.did())
	_, is = b.Wake()
	require.False(t, is)
}

func TestLimits(t *testing.T) {
	b := newBench(t, 2, new(policy.RoundRobin), WithLimits(Limits{InFlight: 2, Queue: 2, RetryAfter: time.Second}))
	var ts []*Ticket
	for id := range 5 {
		ts = append(ts, b.arrive(time.Duration(id), id))
	}
	require.Equal(t, []int{0, 1}, b.asked(), "without room there is nothing to ask")
	require.Equal(t, []string{"0: dispatch to 1", "1: dispatch to 2", "4: reject 429"}, b.did())
	b.End(ms, ts[1], ok)
	require.Equal(t, []string{"2: dispatch to 1, due 1ms"}, b.did())
	require.NoError(t, b.SetLimits(2*ms, Limits{InFlight: 3}))
	require.Equal(t, []string{"3: dispatch to 2, due 2ms"}, b.did())
	require.ErrorContains(t, b.SetLimits(2*ms, Limits{Queue: -2}), "NoQueue")
	require.NoError(t, b.SetLimits(2*ms, Limits{InFlight: 3, Queue: NoQueue}))
	b.arrive(3*ms, 6)
	require.Equal(t, []string{"6: reject 429"}, b.did())
}

func TestAFullWorkerIsWaitedFor(t *testing.T) {
	b := newBench(t, 2, pick(func(r *policy.Request, _ *policy.View) policy.Decision { return policy.Dispatch(1 + r.ID%2) }))
	b.SetLimit(0, 1, 1)
	b.SetLimit(0, 2, 1)
	var ts []*Ticket
	for _, id := range []int{0, 2, 1} {
		ts = append(ts, b.arrive(0, id))
	}
	require.Equal(t, []string{"0: dispatch to 1", "1: dispatch to 2"}, b.did(), "2 waits for worker 1, which is full")
	b.asked()
	b.End(ms, ts[2], ok)
	require.Empty(t, b.did(), "a place on another worker")
	b.SetLimit(2*ms, 1, 2)
	require.Equal(t, []string{"2: dispatch to 1, due 2ms"}, b.did())
}

func TestStaticBatches(t *testing.T) {
	s, err := batching.NewStatic(4)
	require.NoError(t, err)
	b := newBench(t, 2, new(policy.RoundRobin), WithStrategy(s))
	var ts []*Ticket
	for id := range 4 {
		ts = append(ts, b.arrive(time.Duration(id)*ms, id))
	}
	require.Equal(t, []int{0}, b.asked(), "the batch is routed whole")
	require.Equal(t, []string{"0: dispatch to 1, due 3ms, batch 1", "1: dispatch to 1, due 3ms, batch 1", "2: dispatch to 1, due 3ms, batch 1",
		"3: dispatch to 1, batch 1"}, b.did())
	for id := 4; id < 7; id++ {
		ts = append(ts, b.arrive(time.Duration(id)*ms, id))
	}
	b.Cancel(7*ms, ts[5])
	b.arrive(8*ms, 8)
	require.Empty(t, b.did())
	b.arrive(9*ms, 9)
	require.Len(t, b.did(), 4)
	require.Equal(t, 8, b.View().InFlight)
	require.Zero(t, b.View().Waiting)
}

func TestRetries(t *testing.T) {
	var seen []string
	b := newBench(t, 2, pick(func(r *policy.Request, _ *policy.View) policy.Decision {
		seen = append(seen, fmt.Sprint(r.Attempt, r.Tried))
		return policy.Dispatch(r.Attempt)
	}), WithRetries(2, func(res *load.Result) bool { return res.Outcome == load.OutcomeRefused }))
	tk := b.arrive(0, 0)
	refused := &load.Result{Outcome: load.OutcomeRefused}
	require.True(t, b.End(ms, tk, refused))
	b.Arrive(ms, tk)
	require.False(t, b.End(2*ms, tk, refused), "two attempts")
	require.Equal(t, []string{"1 []", "2 [1]"}, seen)
	tk = b.arrive(3*ms, 1)
	require.False(t, b.End(4*ms, tk, &load.Result{Outcome: load.OutcomeTimeout}), "not what is tried again")
}

func TestPrefillAndDecodeApart(t *testing.T) {
	var log feedbackLog
	c, err := New(&log)
	require.NoError(t, err)
	c.AddWorker(0, Worker{Role: policy.RolePrefill})
	c.AddWorker(0, Worker{Role: policy.RoleDecode})
	tk := &Ticket{}
	tk.Request.Request = &load.Request{Prompt: load.Prompt{Segments: []load.Segment{{Length: 10}}}}
	c.Arrive(0, tk)
	v := c.View()
	require.Equal(t, []int{10, 0}, []int{v.Workers[0].PrefillTokens, v.Workers[1].PrefillTokens})
	require.Equal(t, []int{1, 1}, []int{v.Workers[0].InFlight, v.Workers[1].InFlight})
	c.FirstToken(ms, tk)
	c.End(2*ms, tk, ok)
	require.Equal(t, []policy.Stage{policy.StagePrefill, policy.StagePrefill, policy.StageDecode}, log.stages)
	require.Equal(t, []int{0, 0, 0}, []int{v.Workers[0].PrefillTokens, v.Workers[0].InFlight, v.Workers[1].InFlight})
}

type feedbackLog struct{ stages []policy.Stage }

func (l *feedbackLog) Pick(*policy.Request, *policy.View) (policy.Decision, error) {
	return policy.DispatchPair(1, 2), nil
}
func (l *feedbackLog) Dispatched(_ *policy.Request, f policy.Feedback) {
	l.stages = append(l.stages, f.Stage)
}
func (l *feedbackLog) FirstToken(_ *policy.Request, f policy.Feedback) {
	l.stages = append(l.stages, f.Stage)
}
func (l *feedbackLog) Done(_ *policy.Request, f policy.Feedback, _ *load.Result) {
	l.stages = append(l.stages, f.Stage)
}

func TestUnseenRequests(t *testing.T) {
	b := newBench(t, 1, new(policy.RoundRobin))
	b.SetFacts(0, 1, policy.Facts{Ingest: 5 * ms, IngestToken: ms}) // 15 ms for 10 tokens
	sample := func(at time.Duration) int {
		b.Sample(at, []Sample{{Slot: 1, Load: policy.Load{At: at}}})
		return b.View().Workers[0].Unseen
	}
	first := b.arrive(0, 0)
	b.arrive(10*ms, 1)
	require.Equal(t, 2, sample(15*ms), "the first is just arriving")
	require.Equal(t, 1, sample(16*ms), "the second is on its way")
	b.End(17*ms, first, ok)
	require.Equal(t, 1, b.View().Workers[0].Unseen)
	require.Equal(t, 0, sample(26*ms))
}

func TestEpochs(t *testing.T) {
	b := newBench(t, 1, new(policy.RoundRobin))
	b.Sample(0, []Sample{{Slot: 1, Load: policy.Load{Running: 3}}})
	b.NewEpoch(ms, 1, false)
	w := b.View().Worker(1)
	require.Equal(t, []int{1, 3}, []int{w.Epoch, w.Load.Running}, "a flushed cache is no other process")
	b.NewEpoch(2*ms, 1, true)
	require.Equal(t, 2, w.Epoch)
	require.False(t, w.Load.Sampled)
}

type needy struct{ pick }

func (needy) Needs() policy.Needs {
	return policy.Needs{Samples: true, Chunks: true, Predictions: true}
}

// wanting notes what requests look like to a policy that wants everything that the core itself can make.
type wanting struct{ seen []string }

func (*wanting) Needs() policy.Needs { return policy.Needs{Keys: true, Text: true, Predictions: true} }

func (p *wanting) Pick(r *policy.Request, _ *policy.View) (policy.Decision, error) {
	p.seen = append(p.seen, fmt.Sprint(r.PromptTokens, " ", r.Key.Len(), " ", r.Text, " ", r.Predicted))
	return policy.Dispatch(1), nil
}

func TestWhatAPolicyIsGiven(t *testing.T) {
	p := new(wanting)
	c, err := New(p, WithPredictor(func(r *load.Request) int { return r.OutputLen / 2 }))
	require.NoError(t, err)
	c.AddWorker(0, Worker{})
	for i, r := range []load.Request{
		{OutputLen: 8, Prompt: load.Prompt{Segments: []load.Segment{{Length: 30}}}},
		{OutputLen: 8, Prompt: load.Prompt{Text: "twelve bytes"}},
		{OutputLen: 8, Prompt: load.Prompt{Text: "twelve bytes"}, InputLen: 2},
		{OutputLen: 8, Prompt: load.Prompt{Messages: []load.Message{{Role: "user", Content: "one"}, {Role: "assistant", Content: "two"}}}},
	} {
		r.ID = i
		tk := &Ticket{}
		tk.Request.Request = &r
		c.Arrive(0, tk)
	}
	require.Equal(t, []string{"30 30  4", "3 3 twelve bytes 4", "2 2 twelve bytes 4", "10 10 one two 4"}, p.seen)

	q := newBench(t, 1, pick(func(r *policy.Request, _ *policy.View) policy.Decision {
		require.Nil(t, r.Key)
		require.Empty(t, r.Text)
		require.Zero(t, r.Predicted)
		return policy.Dispatch(1)
	}))
	q.arrive(0, 0)
	require.NoError(t, q.Err())
}

func TestWhatIsRefused(t *testing.T) {
	s, err := batching.NewStatic(2)
	require.NoError(t, err)
	_, err = New(nil, WithLimits(Limits{InFlight: -1}), WithRetries(1, nil), WithPredictor(nil), WithStrategy(nil))
	for _, want := range []string{"no policy", "limits", "want ≥ 2", "WithPredictor(nil)", "WithStrategy(nil)"} {
		require.ErrorContains(t, err, want)
	}
	_, err = New(needy{})
	for _, want := range []string{"load samples", "each chunk", "predicted output lengths", "no method Chunk"} {
		require.ErrorContains(t, err, want)
	}
	_, err = New(inOrder{}, WithStrategy(s))
	require.ErrorContains(t, err, "leave one out")
}

func TestFaultsOfThePolicy(t *testing.T) {
	for want, d := range map[string]policy.Decision{
		"policy: request 7: decision":         {},
		"dispatch to slots 4 and 0 of 3":      policy.Dispatch(4),
		"which is draining":                   policy.Dispatch(2),
		"which is gone":                       policy.Dispatch(3),
		"want a worker for prefill":           policy.DispatchPair(2, 1),
		"want an event or a later time":       policy.Hold(policy.Wake{}),
		"at 1ms: want an event":               policy.Hold(policy.Wake{At: ms}),
		"and a slot of 1 to 3":                policy.Hold(policy.Wake{On: policy.Freed, Worker: 4}),
		"hold until {On:128 Worker:0 At:0s} ": policy.Hold(policy.Wake{On: 128}),
	} {
		b := newBench(t, 3, pick(func(*policy.Request, *policy.View) policy.Decision { return d }))
		b.Drain(0, 2)
		b.RemoveWorker(0, 3)
		tk := b.arrive(ms, 7)
		require.ErrorContains(t, b.Err(), want)
		require.Empty(t, b.did())
		require.True(t, tk.Waits())
		b.arrive(2*ms, 8)
		b.asked()
		b.Cancel(3*ms, tk)
		require.Empty(t, b.asked(), "nothing is decided any more")
	}
	c, err := New(broken{})
	require.NoError(t, err)
	c.AddWorker(0, Worker{})
	tk := &Ticket{}
	tk.Request.Request = &load.Request{Prompt: load.Prompt{Text: "x"}}
	c.Arrive(0, tk)
	require.ErrorIs(t, c.Err(), errBroken)
}

var errBroken = errors.New("out of ideas")

type broken struct{}

func (broken) Pick(*policy.Request, *policy.View) (policy.Decision, error) {
	return policy.Decision{}, errBroken
}

func TestWorkersComeAndGo(t *testing.T) {
	b := newBench(t, 1, new(policy.RoundRobin))
	require.Equal(t, 2, b.AddWorker(0, Worker{}))
	b.Drain(0, 1)
	b.Health(0, 1, true)
	require.Equal(t, policy.Draining, b.View().Worker(1).State, "good health does not end the draining")
	tk := b.arrive(0, 0)
	b.RemoveWorker(ms, 2)
	b.arrive(ms, 1)
	require.Equal(t, []string{"0: dispatch to 2", "1: reject 503"}, b.did())
	b.End(2*ms, tk, ok)
	require.Zero(t, b.View().Worker(2).InFlight, "what a worker had when it went ends all the same")
	require.Equal(t, 3, b.AddWorker(3*ms, Worker{}), "slots are not used again")
}

// counter checks that each dispatch is followed by one end.
type counter struct {
	t    testing.TB
	rng  *rand.Rand
	open map[*policy.Request]int
	done int
	most int // of a batch: one that is larger than a limit leaves alone
}

func (p *counter) Pick(r *policy.Request, v *policy.View) (policy.Decision, error) {
	if v.Waiting < 1 {
		p.t.Fatal("nobody waits, but one is asked about")
	}
	for i := range v.Workers {
		w := &v.Workers[i]
		if min(w.InFlight, w.PromptTokens, w.PrefillTokens, w.Unseen) < 0 || w.PrefillTokens > w.PromptTokens || w.Unseen > w.InFlight || w.Limit > 0 && w.InFlight > max(w.Limit, p.most) {
			p.t.Fatalf("worker %+v", *w)
		}
	}
	switch p.rng.IntN(8) {
	case 0:
		return policy.Reject("no"), nil
	case 1, 2, 3:
		return policy.Hold(policy.Wake{On: policy.Events(1 + p.rng.IntN(15)), Worker: p.rng.IntN(1 + len(v.Workers)), At: v.Now + time.Duration(1+p.rng.IntN(9))*ms}), nil
	}
	var open []int
	for w := range v.Open() {
		open = append(open, w.Slot)
	}
	if len(open) == 0 {
		return policy.Hold(policy.Wake{On: policy.Fleet, At: v.Now + 5*ms}), nil
	}
	return policy.Dispatch(open[p.rng.IntN(len(open))]), nil
}

func (p *counter) Dispatched(r *policy.Request, _ policy.Feedback) {
	if p.open[r]++; p.open[r] != 1 {
		p.t.Fatal("dispatched twice")
	}
}

func (p *counter) Done(r *policy.Request, f policy.Feedback, _ *load.Result) {
	if p.open[r] != 1 {
		p.t.Fatal("an end without a dispatch")
	}
	delete(p.open, r)
	p.done++
}

// randomly feeds a core with chance inputs and then lets all come to an end.
func randomly(t testing.TB, seed uint64, n int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	p := &counter{t: t, rng: rng, open: map[*policy.Request]int{}}
	opts := []Option{WithRetries(3, func(*load.Result) bool { return rng.IntN(2) == 0 })}
	if rng.IntN(3) == 0 {
		p.most = 1 + rng.IntN(4)
		s, err := batching.NewStatic(p.most)
		require.NoError(t, err)
		opts = append(opts, WithStrategy(s))
	}
	if rng.IntN(2) == 0 {
		opts = append(opts, WithLimits(Limits{InFlight: rng.IntN(6), Queue: rng.IntN(12) - 1}))
	}
	c, err := New(p, opts...)
	require.NoError(t, err)
	now := time.Duration(0)
	var waiting, sent []*Ticket
	dispatched, rejected, cancelled, arrived := 0, 0, 0, 0
	drain := func() {
		for {
			a, ok := c.Next()
			if !ok {
				break
			}
			i := slices.Index(waiting, a.Ticket)
			require.GreaterOrEqual(t, i, 0, "an action for what does not wait")
			waiting = slices.Delete(waiting, i, i+1)
			if a.Verdict == policy.VerdictDispatch {
				dispatched++
				sent = append(sent, a.Ticket)
			} else {
				rejected++
			}
			if a.Held {
				require.LessOrEqual(t, a.Due, now)
				require.GreaterOrEqual(t, a.Due, a.Ticket.arrived)
			}
		}
		require.NoError(t, c.Err())
		require.Equal(t, len(waiting), c.View().Waiting)
		require.Equal(t, len(sent), c.View().InFlight)
		if at, ok := c.Wake(); ok {
			require.Greater(t, at, now-9*ms-1)
		}
	}
	end := func() {
		i := rng.IntN(len(sent))
		tk := sent[i]
		sent = slices.Delete(sent, i, i+1)
		outcome := []load.Outcome{load.OutcomeOK, load.OutcomeReset, load.OutcomeCancelled}[rng.IntN(3)]
		if c.End(now, tk, &load.Result{Outcome: outcome}) {
			waiting = append(waiting, tk)
			if rng.IntN(3) == 0 {
				c.Cancel(now, tk)
				waiting = waiting[:len(waiting)-1]
				cancelled++
			} else {
				c.Arrive(now, tk)
			}
		}
	}
	workers := 1
	c.AddWorker(0, Worker{Limit: rng.IntN(3)})
	for range n {
		now += time.Duration(rng.IntN(3)) * ms / 2
		if at, ok := c.Wake(); ok && at <= now {
			c.Tick(now)
			drain()
		}
		slot := 1 + rng.IntN(workers)
		switch rng.IntN(16) {
		case 0, 1, 2, 3, 4:
			tk := &Ticket{}
			tk.Request.Request = &load.Request{ID: arrived, Prompt: load.Prompt{Segments: []load.Segment{{Length: 1 + rng.IntN(9)}}}}
			arrived++
			waiting = append(waiting, tk)
			c.Arrive(now, tk)
		case 5, 6, 7, 8:
			if len(sent) > 0 {
				end()
			}
		case 9:
			if len(sent) > 0 {
				c.Chunk(now, sent[rng.IntN(len(sent))], 1)
			}
		case 10:
			if len(waiting) > 0 {
				i := rng.IntN(len(waiting))
				c.Cancel(now, waiting[i])
				waiting = slices.Delete(waiting, i, i+1)
				cancelled++
			}
		case 11:
			c.Sample(now, []Sample{{Slot: slot, Load: policy.Load{At: now}}})
		case 12:
			c.Health(now, slot, rng.IntN(2) == 0)
		case 13:
			c.SetLimit(now, slot, c.View().Worker(slot).InFlight+rng.IntN(3))
		case 14:
			if workers < 6 {
				workers++
				c.AddWorker(now, Worker{Limit: rng.IntN(3)})
			} else if rng.IntN(3) == 0 {
				c.Drain(now, slot)
			}
		case 15:
			require.NoError(t, c.SetLimits(now, Limits{InFlight: rng.IntN(6)}))
		}
		drain()
	}
	for len(sent) > 0 {
		end()
		drain()
	}
	for _, tk := range waiting {
		c.Cancel(now, tk)
		cancelled++
	}
	require.Zero(t, c.View().Waiting)
	require.Empty(t, p.open)
	require.Equal(t, dispatched, p.done)
	require.Zero(t, c.held)
	for i := range c.View().Workers {
		w := &c.View().Workers[i]
		require.Equal(t, [4]int{}, [4]int{w.InFlight, w.PromptTokens, w.PrefillTokens, w.Unseen})
	}
}

func TestInvariants(t *testing.T) {
	for seed := range uint64(300) {
		randomly(t, seed, 400)
	}
}

func FuzzInvariants(f *testing.F) {
	f.Add(uint64(1), uint16(100))
	f.Fuzz(func(t *testing.T, seed uint64, n uint16) { randomly(t, seed, int(n)) })
}
