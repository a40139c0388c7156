package dispatch

import (
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

func simple(t testing.TB) map[string]policy.Policy {
	random, err := policy.NewRandom(rand.NewPCG(1, 2))
	require.NoError(t, err)
	least, err := policy.NewLeastOutstanding(policy.Local)
	require.NoError(t, err)
	return map[string]policy.Policy{"random": random, "round robin": new(policy.RoundRobin), "least outstanding": least}
}

// steps fills a dispatcher with 16 requests for each worker; each step dispatches one more and ends the oldest.
func steps(t testing.TB, p policy.Policy, workers int) (step func()) {
	c, err := New(p)
	require.NoError(t, err)
	for range workers {
		c.AddWorker(0, Worker{})
	}
	req := &load.Request{InputLen: 100, OutputLen: 100, Prompt: load.Prompt{Segments: []load.Segment{{Stream: 1, Length: 100}}}}
	ring := make([]Ticket, 16*workers)
	res := &load.Result{Outcome: load.OutcomeOK}
	now, i := time.Duration(0), 0
	step = func() {
		now += time.Millisecond
		k := &ring[i%len(ring)]
		if i >= len(ring) {
			c.End(now, k, res)
		}
		*k = Ticket{Request: policy.Request{Request: req}}
		c.Arrive(now, k)
		for {
			a, ok := c.Next()
			if !ok {
				break
			}
			c.FirstToken(now, a.Ticket)
		}
		i++
	}
	for range len(ring) + 1 {
		step()
	}
	return step
}

func TestARequestAllocatesNothing(t *testing.T) {
	for name, p := range simple(t) {
		step := steps(t, p, 8)
		require.Zero(t, testing.AllocsPerRun(1000, step), name)
	}
}

// BenchmarkRequest is a request's whole way through the core: arrival, dispatch, first token, end.
func BenchmarkRequest(b *testing.B) {
	for name, p := range simple(b) {
		for _, n := range []int{8, 1000} {
			b.Run(name+"/"+strconv.Itoa(n), func(b *testing.B) {
				step := steps(b, p, n)
				b.ReportAllocs()
				for b.Loop() {
					step()
				}
			})
		}
	}
}

// patient holds requests while 64 are in flight, and names a time too, which differs for each.
type patient struct{}

func (patient) Pick(_ *policy.Request, v *policy.View) (policy.Decision, error) {
	if v.InFlight < 64 {
		return policy.Dispatch(1), nil
	}
	return policy.Hold(policy.Wake{On: policy.Freed, At: v.Now + time.Hour}), nil
}

// inOrder is patient with an order of its own: the last request first.
type inOrder struct{ patient }

func (inOrder) Less(a, b *policy.Request) bool { return a.ID > b.ID }

// BenchmarkHeld holds 16,000 requests back and has them all leave, one after another, as places are freed.
func BenchmarkHeld(b *testing.B) {
	for name, p := range map[string]policy.Policy{"first come": patient{}, "own order": inOrder{}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				held(b, p, 16_000)
			}
		})
	}
}

func held(t testing.TB, p policy.Policy, n int) (order []int) {
	c, err := New(p)
	require.NoError(t, err)
	c.AddWorker(0, Worker{})
	reqs, ts := make([]load.Request, n), make([]Ticket, n)
	for i := range ts {
		reqs[i].ID = i
		ts[i].Request.Request = &reqs[i]
		c.Arrive(time.Duration(i), &ts[i])
	}
	res := &load.Result{Outcome: load.OutcomeOK}
	now := time.Duration(n)
	for {
		a, ok := c.Next()
		if !ok {
			break
		}
		order = append(order, a.Ticket.Request.ID)
		now++
		c.End(now, a.Ticket, res)
	}
	require.NoError(t, c.Err())
	require.Zero(t, c.View().Waiting+c.View().InFlight)
	return order
}

// asked counts the questions to a policy.
type asked struct {
	policy.Policy
	n int
}

func (p *asked) Pick(r *policy.Request, v *policy.View) (policy.Decision, error) {
	p.n++
	return p.Policy.Pick(r, v)
}

// Each request is asked about when it comes and when it leaves, and each end is answered by at most one that waits on.
func TestHeldRequestsCostNoMoreThanWhatLeaves(t *testing.T) {
	p := &asked{Policy: patient{}}
	held(t, p, 2000)
	require.LessOrEqual(t, p.n, 3*2000)
}

func TestHeldRequestsLeaveInOrder(t *testing.T) {
	order := held(t, patient{}, 1000)
	for i, id := range order {
		require.Equal(t, i, id)
	}
	order = held(t, inOrder{}, 1000)
	for i, id := range order[64:] { // the first 64 found room
		require.Equal(t, 999-i, id)
	}
}
