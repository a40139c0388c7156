package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// slowStart is a Recorder whose Begin takes its time.
type slowStart struct {
	*ledger
	began, started time.Time
}

func (s *slowStart) Begin(context.Context, Info) error {
	time.Sleep(250 * ms)
	s.began = time.Now()
	return nil
}
func (s *slowStart) Start(clock Clock) { s.started = clock.Start() }

func TestTheClockStartsWhenAllIsPrepared(t *testing.T) {
	for _, opts := range [][]RunOption{nil, {WithMaxConcurrency(3)}} {
		synctest.Test(t, func(t *testing.T) {
			rec := &slowStart{ledger: newLedger(t)}
			do := &preparing{encode: 100 * ms}
			require.NoError(t, Run(t.Context(), arrivalsAt{0, 0, 0, 10 * ms}, do, rec, append(opts, WithWaiter(TimerWaiter{}))...))
			require.Len(t, rec.results, 4)
			for id, r := range rec.results {
				require.Zero(t, r.Lateness(), id)
			}
			require.Equal(t, rec.began.Add(150*ms+startLead), rec.started, "250 ms of Begin, meanwhile and then four bodies of 100 ms")
		})
	}
}

// preparing is a Preparer whose bodies take encode to make; its requests take service.
type preparing struct {
	encode, service time.Duration
	done            atomic.Int64

	mu        sync.Mutex
	did       map[int]bool // by ID
	ready     map[int]bool // prepared and not done
	mostAhead int          // of ready
}

func (p *preparing) Prepare(req *Request) Doer {
	time.Sleep(p.encode)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready == nil {
		p.did, p.ready = map[int]bool{}, map[int]bool{}
	}
	if !p.did[req.ID] { // what comes too late is dropped
		p.ready[req.ID] = true
		p.mostAhead = max(p.mostAhead, len(p.ready))
	}
	return &prepared{of: p, id: req.ID}
}

func (p *preparing) Do(ctx context.Context, clock Clock, req *Request, res *Result) {
	p.Prepare(req).Do(ctx, clock, req, res)
}

type prepared struct {
	of   *preparing
	id   int
	used atomic.Bool
}

func (b *prepared) Do(ctx context.Context, clock Clock, req *Request, res *Result) {
	if b.used.Swap(true) || b.id != req.ID {
		panic(fmt.Sprintf("request %d was done with what had been prepared for %d", req.ID, b.id))
	}
	b.of.done.Add(1)
	b.of.mu.Lock()
	b.of.did[b.id] = true
	delete(b.of.ready, b.id)
	b.of.mu.Unlock()
	serviceTime(b.of.service).Do(ctx, clock, req, res)
}

func TestBodiesAreEncodedBeforeTheMomentOfRelease(t *testing.T) {
	burst := make(arrivalsAt, 600)
	var steady arrivalsAt
	for i := range 3000 { // 3 ms of encoding every 5 ms; pairs come together
		steady = append(steady, time.Duration(i/2)*10*ms)
	}
	for _, tc := range []struct {
		name    string
		src     arrivalsAt
		service time.Duration
		opts    []RunOption
	}{
		{"open loop", steady, 20 * ms, nil},
		{"a cap that does not bind", steady, 20 * ms, []RunOption{WithMaxConcurrency(100)}},
		{"burst", burst, 0, nil},
		{"closed loop", burst, 20 * ms, []RunOption{WithMaxConcurrency(4)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rec := newLedger(t)
				do := &preparing{encode: 3 * ms, service: tc.service}
				require.NoError(t, Run(t.Context(), tc.src, do, rec, append(tc.opts, WithWaiter(TimerWaiter{}))...))
				require.Len(t, rec.results, len(tc.src))
				for id, r := range rec.results {
					require.Zero(t, r.Lateness(), id)
				}
			})
		})
	}
}

// counted yields requests of the given size and counts them.
type counted struct {
	n, tokens int
	taken     atomic.Int64
}

func (c *counted) Plan() (Plan, error) { return Plan{Requests: c.n}, nil }
func (c *counted) Requests() iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		for i := range c.n {
			c.taken.Add(1)
			req := Request{ID: i, Arrival: time.Duration(i/3) * ms, Prompt: Prompt{Segments: []Segment{{Length: c.tokens}}}, OutputLen: 1}
			if !yield(req, nil) {
				return
			}
		}
	}
}

// ahead notes how many requests have been taken and have not arrived.
type ahead struct {
	*ledger
	src  *counted
	most int64
}

func (a *ahead) Arrived(req *Request) {
	a.most = max(a.most, a.src.taken.Load()-int64(req.ID))
	a.ledger.Arrived(req)
}

func TestLookingAheadIsBounded(t *testing.T) {
	for _, tc := range []struct{ tokens, most int }{{1, aheadRequests}, {100_000, aheadBytes/600_000 + 1}, {10_000_000, 1}} {
		for _, opts := range [][]RunOption{nil, {WithMaxConcurrency(2)}} {
			synctest.Test(t, func(t *testing.T) {
				src := &counted{n: 4000, tokens: tc.tokens}
				rec := &ahead{ledger: newLedger(t), src: src}
				do := &preparing{service: ms}
				require.NoError(t, Run(t.Context(), src, do, rec, append(opts, WithWaiter(TimerWaiter{}))...))
				require.Len(t, rec.results, src.n)
				require.LessOrEqual(t, rec.most, int64(tc.most)+1)
				require.LessOrEqual(t, do.mostAhead, tc.most+4, "one is being made, and those that arrive together are on their way to be sent")
			})
		}
	}
}

// In real time requests are released, withdrawn and prepared in any order.
func TestEachRequestIsDoneWithItsOwnBody(t *testing.T) {
	for _, opts := range [][]RunOption{nil, {WithMaxConcurrency(7)}} {
		rec := newLedger(t)
		require.NoError(t, Run(t.Context(), &counted{n: 3000, tokens: 1000}, &preparing{service: 50 * time.Microsecond}, rec, opts...))
		require.Len(t, rec.results, 3000)
		for _, r := range rec.results {
			require.Equal(t, OutcomeOK, r.Outcome)
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		rec = newLedger(t)
		stop := &stopAfter{preparing: preparing{service: time.Millisecond}, n: 500, stop: sync.OnceFunc(func() { cancel(io.ErrNoProgress) })}
		err := Run(ctx, &counted{n: 3000, tokens: 1000}, stop, rec, opts...)
		require.True(t, errors.Is(err, io.ErrNoProgress), err)
	}
}

// stopAfter ends the run after n requests.
type stopAfter struct {
	preparing
	n    int64
	stop func()
}

func (s *stopAfter) Prepare(req *Request) Doer {
	if s.done.Load() > s.n {
		s.stop()
	}
	return s.preparing.Prepare(req)
}

func TestAPreparedRequestSaysWhatIsWrongWithIt(t *testing.T) {
	s, err := NewSender("http://127.0.0.1:1")
	require.NoError(t, err)
	bad := Request{Prompt: Prompt{Messages: []Message{{Role: "user", Content: "hi"}}}, OutputLen: 1}
	res := Result{}
	s.Prepare(&bad).Do(t.Context(), NewClock(time.Now()), &bad, &res)
	checkTimes(t, &res)
	require.Equal(t, OutcomeRejected, res.Outcome)
	require.Contains(t, res.Message, "use the API chat_completions")
}
