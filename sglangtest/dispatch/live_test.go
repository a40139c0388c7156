package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// asks is a workload of requests that arrive at given times.
type asks []time.Duration

func (a asks) Plan() (load.Plan, error) { return load.Plan{Requests: len(a)}, nil }

func (a asks) Requests() iter.Seq2[load.Request, error] {
	return func(yield func(load.Request, error) bool) {
		for i, at := range a {
			if !yield(load.Request{ID: i, Arrival: at, OutputLen: 2, Prompt: load.Prompt{Text: "hello"}}, nil) {
				return
			}
		}
	}
}

// records keeps results by ID.
type records struct {
	mu      sync.Mutex
	results map[int]load.Result
	twice   bool
}

func (r *records) Begin(context.Context, load.Info) error {
	r.results = map[int]load.Result{}
	return nil
}
func (r *records) Start(load.Clock)          {}
func (r *records) Arrived(*load.Request)     {}
func (r *records) End(context.Context) error { return nil }
func (r *records) Record(res *load.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, before := r.results[res.ID]
	r.twice = r.twice || before
	r.results[res.ID] = *res
}

// takes is a Doer whose answers take a time.
type takes time.Duration

func (takes) Do(context.Context, load.Clock, *load.Request, *load.Result) { panic("no target") }
func (takes) CheckTarget(load.Target) error                               { return nil }
func (d takes) DoTo(ctx context.Context, clock load.Clock, p *load.Placement, _ *load.Request, res *load.Result) {
	res.Released = clock.Now()
	res.Send, res.Sent, res.Worker, res.Outcome = res.Released, true, p.Target.Name, load.OutcomeOK
	t := time.NewTimer(time.Duration(d))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		res.Outcome, res.Message = load.OutcomeCancelled, context.Cause(ctx).Error()
	}
	if p.FirstToken != nil {
		p.FirstToken(clock.Now())
	}
	res.Completion = clock.Now()
}

func newLive(t *testing.T, p policy.Policy, n int, opts ...Option) *Live {
	var workers []Worker
	for i := range n {
		workers = append(workers, Worker{Name: fmt.Sprintf("server-%d", i), URL: "http://nowhere"})
	}
	l, err := NewLive(p, workers, opts...)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

// Whatever ends a run, each request has its result, and nothing stays in the dispatcher.
func TestLiveRunsThatBreakOff(t *testing.T) {
	why := errors.New("enough")
	for name, c := range map[string]struct {
		policy policy.Policy
		want   error
	}{
		"cancelled while held": {pick(func(r *policy.Request, v *policy.View) policy.Decision {
			if v.InFlight > 1 {
				return policy.Hold(policy.Wake{On: policy.Freed, At: v.Now + time.Hour})
			}
			return policy.Dispatch(1)
		}), why},
		"a policy at fault": {pick(func(r *policy.Request, v *policy.View) policy.Decision {
			switch {
			case r.ID == 4:
				return policy.Decision{}
			case r.ID > 1:
				return policy.Hold(policy.Wake{On: policy.Freed})
			}
			return policy.Dispatch(1)
		}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLive(t, c.policy, 1)
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(why) })
				rec := &records{}
				err := load.Run(ctx, asks{0, ms, 2 * ms, 3 * ms, 4 * ms}, takes(time.Minute), rec, load.WithRoute(l), load.WithWaiter(load.TimerWaiter{}))
				if c.want != nil {
					require.ErrorIs(t, err, c.want)
				} else {
					require.ErrorContains(t, err, "policy: request 4: decision")
				}
				require.Len(t, rec.results, 5)
				require.False(t, rec.twice)
				for id, r := range rec.results {
					require.Equal(t, load.OutcomeCancelled, r.Outcome, id)
				}
				require.Zero(t, l.core.View().Waiting+l.core.View().InFlight+l.core.held)
			})
		})
	}
}

func TestLiveFollowsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLive(t, new(policy.RoundRobin), 1, Provides(policy.Needs{Samples: true}))
		l.Update(func(now time.Duration, c *Core) { c.SetLimit(now, 1, 1) })
		time.AfterFunc(200*ms, func() {
			_, err := l.AddWorker(Worker{Name: "late", URL: "http://late"})
			require.NoError(t, err)
		})
		rec := &records{}
		require.NoError(t, load.Run(t.Context(), asks{0, ms, 2 * ms}, takes(time.Second), rec, load.WithRoute(l), load.WithWaiter(load.TimerWaiter{})))
		late := rec.results[1]
		require.Equal(t, "late", late.Worker)
		require.Equal(t, late.Due, late.Send)
		require.Greater(t, late.Due, 100*ms, "the run's clock starts some moments after this test")
		require.Equal(t, "late", rec.results[2].Worker)
		require.Len(t, l.Targets(), 2)
		require.Equal(t, &load.RouteNote{By: "policy.RoundRobin", Attempt: 1}, late.Route)

		err := load.Run(t.Context(), asks{0}, takes(0), rec, load.WithRoute(l), load.WithWaiter(load.TimerWaiter{}))
		require.ErrorContains(t, err, "it is for one run")
	})
}

func TestLiveRejections(t *testing.T) {
	l := newLive(t, pick(func(*policy.Request, *policy.View) policy.Decision {
		return policy.Decision{Verdict: policy.VerdictReject, Status: 429, RetryAfter: time.Second, Reason: "too much to do"}
	}), 1)
	_, err := l.Place(t.Context(), load.NewClock(time.Now()), &load.Request{Prompt: load.Prompt{Text: "x"}})
	var rejected *load.RejectedError
	require.ErrorAs(t, err, &rejected)
	require.Equal(t, load.RejectedError{Status: 429, RetryAfter: time.Second, Reason: "too much to do"}, *rejected)
	require.EqualError(t, err, "too much to do (rejected with status 429, retry after 1s)")
}

// Thousands of requests at once on a narrow limit all leave, and the limit holds.
func TestLiveUnderABurst(t *testing.T) {
	l := newLive(t, new(policy.RoundRobin), 4, WithLimits(Limits{InFlight: 64}))
	do := &counting{}
	rec := &records{}
	require.NoError(t, load.Run(t.Context(), make(asks, 8000), do, rec, load.WithRoute(l)))
	require.Len(t, rec.results, 8000)
	require.LessOrEqual(t, do.most.Load(), int64(64))
	require.Zero(t, l.core.View().Waiting+l.core.View().InFlight)
}

// counting is a Doer that notes how many requests were under way at once.
type counting struct {
	takes
	now, most atomic.Int64
}

func (d *counting) DoTo(ctx context.Context, clock load.Clock, p *load.Placement, req *load.Request, res *load.Result) {
	n := d.now.Add(1)
	defer d.now.Add(-1)
	for {
		most := d.most.Load()
		if n <= most || d.most.CompareAndSwap(most, n) {
			break
		}
	}
	d.takes.DoTo(ctx, clock, p, req, res)
}

func TestLiveArguments(t *testing.T) {
	_, err := NewLive(nil, nil)
	require.ErrorContains(t, err, "no policy")
	require.ErrorContains(t, err, "no workers")
	_, err = NewLive(new(policy.RoundRobin), []Worker{{Name: "a"}})
	require.ErrorContains(t, err, `worker 0 ("a"): no URL`)
	polled, err := policy.NewLeastOutstanding(policy.Polled)
	require.NoError(t, err)
	_, err = NewLive(polled, []Worker{{Name: "a", URL: "http://a"}})
	require.ErrorContains(t, err, "reads load samples")
}

// chatty wants to be told of each chunk.
type chatty struct {
	policy.RoundRobin
	tokens map[int]int // by worker
}

func (*chatty) Needs() policy.Needs { return policy.Needs{Chunks: true} }

func (p *chatty) Chunk(_ *policy.Request, f policy.Feedback, tokens int) {
	p.tokens[f.Worker] += tokens
}

// A sender with a route sends to several servers, and tells the policy what it reads.
func TestSenderOverSeveralServers(t *testing.T) {
	var workers []Worker
	warm := make([]atomic.Int64, 3)
	for i := range 3 {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			warm[i].Add(1)
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, `data: {"text":"a","meta_info":{"completion_tokens":1,"finish_reason":null}}`+"\n\n")
			io.WriteString(w, `data: {"text":"ab","meta_info":{"completion_tokens":2,"finish_reason":{"type":"length"}}}`+"\n\ndata: [DONE]\n\n")
		}))
		t.Cleanup(srv.Close)
		workers = append(workers, Worker{Name: fmt.Sprintf("server-%d", i), URL: srv.URL})
	}
	p := &chatty{tokens: map[int]int{}}
	l, err := NewLive(p, workers)
	require.NoError(t, err)
	defer l.Close()
	sender, err := load.NewRoutedSender()
	require.NoError(t, err)
	defer sender.Close()
	rec := &records{}
	require.NoError(t, load.Run(t.Context(), make(asks, 6), sender, rec, load.WithRoute(l), load.WithWarmup(2)))
	by := map[string]int{}
	for _, r := range rec.results {
		require.Equal(t, load.OutcomeOK, r.Outcome, r.Message)
		by[r.Worker]++
	}
	require.Equal(t, map[string]int{"server-0": 2, "server-1": 2, "server-2": 2}, by)
	require.Equal(t, map[int]int{1: 4, 2: 4, 3: 4}, p.tokens)
	require.Equal(t, []int64{4, 4, 4}, []int64{warm[0].Load(), warm[1].Load(), warm[2].Load()}, "two of each are warm-up")

	err = load.Run(t.Context(), asks{0}, sender, rec)
	require.ErrorContains(t, err, "add WithRoute")
	fixed, err := load.NewSender("http://here")
	require.NoError(t, err)
	err = load.Run(t.Context(), asks{0}, fixed, rec, load.WithRoute(l))
	require.ErrorContains(t, err, "make it with NewRoutedSender")
	bad, err := NewLive(new(policy.RoundRobin), []Worker{{Name: "a", URL: "nonsense"}})
	require.NoError(t, err)
	defer bad.Close()
	require.Error(t, load.Run(t.Context(), asks{0}, sender, rec, load.WithRoute(bad)))
}
