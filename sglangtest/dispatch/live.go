package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// Live drives a [Core] in real time, for many goroutines: a request that is held waits in its own goroutine.
// It is a load.Route, so that one load.Run spreads over several servers:
//
//	route, err := dispatch.NewLive(new(policy.RoundRobin), []dispatch.Worker{{Name: "a", URL: urlA}, {Name: "b", URL: urlB}})
//	defer route.Close()
//	sender, err := load.NewRoutedSender()
//	err = load.Run(ctx, gen, sender, col, load.WithRoute(route))
//
// It is for one run. All methods are safe for concurrent use.
type Live struct {
	mu      sync.Mutex
	core    *Core
	targets []load.Target // by slot
	clock   load.Clock
	started bool // clock is set
	closed  bool
	again   map[*load.Request]*seat // between two attempts
	timer   *time.Timer
	armed   time.Duration // what the timer is set to; 0: to nothing
	failed  chan struct{} // closed when the core cannot go on
	err     error
}

// NewLive returns a route to the given workers. Close it after the run. Faults of the arguments are reported
// together.
func NewLive(p policy.Policy, workers []Worker, opts ...Option) (*Live, error) {
	// A policy that reads samples is served if whoever runs it takes them: the options say so.
	core, err := New(p, append([]Option{Provides(policy.Needs{Chunks: true})}, opts...)...)
	faults := []error{err}
	if len(workers) == 0 {
		faults = append(faults, errors.New("no workers: want at least one"))
	}
	for i, w := range workers {
		if w.URL == "" {
			faults = append(faults, fmt.Errorf("worker %d (%q): no URL", i, w.Name))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("dispatch: live: %w", err)
	}
	l := &Live{core: core, again: map[*load.Request]*seat{}, failed: make(chan struct{})}
	for _, w := range workers {
		l.add(0, w)
	}
	return l, nil
}

func (l *Live) add(now time.Duration, w Worker) (slot int) {
	l.targets = append(l.targets, load.Target{URL: w.URL, Name: w.Name})
	return l.core.AddWorker(now, w)
}

// AddWorker adds a worker while the run goes on, and returns its slot.
func (l *Live) AddWorker(w Worker) (slot int, err error) {
	if w.URL == "" {
		return 0, fmt.Errorf("dispatch: live: worker %q: no URL", w.Name)
	}
	l.Update(func(now time.Duration, _ *Core) { slot = l.add(now, w) })
	return slot, nil
}

// Update calls f with the present time and the core, for load samples, health and what else changes of
// workers and limits, and then carries out what follows. f must not keep the core, nor hand requests to it,
// nor add workers: use [Live.AddWorker].
func (l *Live) Update(f func(now time.Duration, c *Core)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.now(), l.core)
	l.carryOut()
}

// now is the time of the run, 0 before it.
func (l *Live) now() time.Duration {
	if !l.started {
		return 0
	}
	return max(0, l.clock.Now())
}

// Close stops the timer. Requests that wait are not released by it: end the run before.
func (l *Live) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
}

// Targets implements load.Route.
func (l *Live) Targets() []load.Target {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]load.Target(nil), l.targets...)
}

// A seat is a request in Live.
type seat struct {
	live   *Live
	ticket Ticket
	out    chan Action // its action; one fits in
	sent   bool        // and not ended
}

// Place implements load.Route.
func (l *Live) Place(ctx context.Context, clock load.Clock, r *load.Request) (load.Placement, error) {
	s, err := l.arrive(clock, r)
	if err != nil {
		return load.Placement{}, err
	}
	select {
	case a := <-s.out:
		return l.placed(s, a)
	default:
	}
	select {
	case a := <-s.out:
		return l.placed(s, a)
	case <-ctx.Done():
		return load.Placement{}, l.leave(s, context.Cause(ctx))
	case <-l.failed:
		return load.Placement{}, l.leave(s, l.err)
	}
}

// arrive hands the request over.
func (l *Live) arrive(clock load.Clock, r *load.Request) (*seat, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, errors.New("dispatch: live: it is closed")
	case l.err != nil:
		return nil, l.err
	case l.started && clock != l.clock:
		return nil, errors.New("dispatch: live: it is for one run, and this is another: make a new one, with a new policy")
	}
	l.clock, l.started = clock, true
	s := l.again[r]
	if s == nil {
		s = &seat{live: l, out: make(chan Action, 1)}
		s.ticket.Owner, s.ticket.Request.Request = s, r
	}
	delete(l.again, r)
	l.core.Arrive(l.now(), &s.ticket)
	l.carryOut()
	return s, nil
}

// carryOut hands out what the core has decided, and sets the timer. l.mu is held.
func (l *Live) carryOut() {
	for {
		a, ok := l.core.Next()
		if !ok {
			break
		}
		s := a.Ticket.Owner.(*seat)
		s.sent = a.Verdict == policy.VerdictDispatch
		s.out <- a
	}
	if err := l.core.Err(); err != nil && l.err == nil {
		l.err = err
		close(l.failed)
	}
	at, ok := l.core.Wake()
	switch {
	case l.closed:
	case !ok:
		if l.armed = 0; l.timer != nil {
			l.timer.Stop()
		}
	case at != l.armed:
		l.armed = at
		if d := time.Until(l.clock.Time(at)); l.timer == nil {
			l.timer = time.AfterFunc(d, l.tick)
		} else {
			l.timer.Reset(d)
		}
	}
}

// tick is called by the timer.
func (l *Live) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.armed = 0
	l.core.Tick(l.now())
	l.carryOut()
}

// placed makes the placement of a request that was dispatched.
func (l *Live) placed(s *seat, a Action) (load.Placement, error) {
	var p load.Placement
	if a.Held {
		p.Due = a.Due
	}
	if a.Verdict == policy.VerdictReject {
		return p, a.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.ticket.Request.Attempt > 1 && !a.Held {
		p.Due = s.ticket.arrived // what went before is not the client's lateness
	}
	p.At, p.Note = s.ticket.sentAt, a.Note
	p.Target = l.targets[a.Worker-1]
	if a.Prefill != 0 {
		p.Prefill = l.targets[a.Prefill-1]
	}
	p.FirstToken, p.Done = s.firstToken, s.done
	if l.core.Needs().Chunks {
		p.FirstToken, p.Chunk = nil, s.chunk
	}
	return p, nil
}

// leave gives up a request whose client has gone, or that nobody will decide about any more.
func (l *Live) leave(s *seat, cause error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.ticket.Waits() {
		l.core.Cancel(l.now(), &s.ticket)
	} else if s.sent { // at the last moment
		now := l.now()
		s.end(now, &load.Result{ID: s.ticket.Request.ID, Arrival: s.ticket.Request.Arrival, Due: now, Released: now, Send: now, Completion: now,
			Outcome: load.OutcomeCancelled, Message: cause.Error()})
		l.drop(s)
	}
	l.carryOut()
	return cause
}

// drop forgets an attempt that will not be made.
func (l *Live) drop(s *seat) {
	if r := s.ticket.Request.Request; l.again[r] != nil {
		delete(l.again, r)
		l.core.Cancel(l.now(), &s.ticket)
	}
}

// end is the end of an attempt. The lock is held.
func (s *seat) end(at time.Duration, res *load.Result) (again bool) {
	s.sent = false
	if again = s.live.core.End(at, &s.ticket, res); again {
		s.live.again[s.ticket.Request.Request] = s
	}
	return again
}

func (s *seat) firstToken(at time.Duration) {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	s.live.core.FirstToken(at, &s.ticket)
}

func (s *seat) chunk(at time.Duration, tokens int) {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	s.live.core.Chunk(at, &s.ticket, tokens)
}

// done is the Done of a placement; a second call does nothing.
func (s *seat) done(res *load.Result) (again bool) {
	l := s.live
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.sent {
		return false
	}
	again = s.end(res.Completion, res)
	if again && (l.err != nil || res.Outcome == load.OutcomeCancelled) {
		l.drop(s)
		again = false
	}
	l.carryOut()
	return again
}
