package load

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/precise"
)

// startLead is the time between the creation of a run's clock and offset 0. It covers Recorder.Begin, so that
// the first arrivals are not late.
const startLead = 50 * time.Millisecond

// A Waiter waits for a moment. The default is exact to some tens of microseconds on Linux; see [WithWaiter].
type Waiter interface {
	// WaitUntil returns nil when t has come, or the cause of ctx's end. It is not called concurrently.
	WaitUntil(ctx context.Context, t time.Time) error
}

// TimerWaiter waits on the runtime's timers, which can be 1 ms late but follow a synctest bubble's clock.
var TimerWaiter Waiter = precise.Timer{}

type runConfig struct {
	maxConcurrency int
	warmup         int
	afterWarmup    func(context.Context) error
	background     []func(context.Context, Clock) error
	waiter         Waiter
}

// A RunOption configures [Run].
type RunOption func(*runConfig) error

// WithMaxConcurrency caps the requests in flight at n. A request that finds no place free waits for one, in
// order of arrival; the wait counts as QueueTime, and the time at which it got its place is Result.Due.
// Default: no cap.
func WithMaxConcurrency(n int) RunOption {
	return func(c *runConfig) error {
		if n <= 0 {
			return fmt.Errorf("max concurrency %d: want > 0", n)
		}
		c.maxConcurrency = n
		return nil
	}
}

// WithWarmup sends n requests before the run, one after the other, and waits for their end. They are requests
// of their own ([WarmupRequest]), not rows of the workload, and are not recorded. If one fails, so does the run.
// Default: 0.
func WithWarmup(n int) RunOption {
	return func(c *runConfig) error {
		if n < 0 {
			return fmt.Errorf("warm-up of %d requests: want ≥ 0", n)
		}
		c.warmup = n
		return nil
	}
}

// WithAfterWarmup calls f between the warm-up and the run's start, to flush caches for instance. An error ends the run.
func WithAfterWarmup(f func(context.Context) error) RunOption {
	return func(c *runConfig) error { c.afterWarmup = f; return nil }
}

// WithBackground runs f in a goroutine of its own from the run's start until the last request has ended; then
// f's context is done and Run waits for f. It is the place of scheduled actions. An error of f does not stop
// the run, but Run returns it. It may be given more than once.
func WithBackground(f func(context.Context, Clock) error) RunOption {
	return func(c *runConfig) error { c.background = append(c.background, f); return nil }
}

// WithWaiter replaces the waiter that times the releases. Tests in a synctest bubble need [TimerWaiter].
func WithWaiter(w Waiter) RunOption {
	return func(c *runConfig) error { c.waiter = w; return nil }
}

// Run carries out the workload src: it releases each request to do at its intended time (open loop) and returns
// when all have ended. Every request that arrived is recorded exactly once with rec.
//
// Faults of the workload are returned before anything is sent. If ctx is done, requests in flight are recorded
// as cancelled, no more arrive, and Run returns ctx's cause. Failures of single requests are results, not errors.
func Run(ctx context.Context, src Source, do Doer, rec Recorder, opts ...RunOption) (err error) {
	var cfg runConfig
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(&cfg))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("load: run: %w", err)
	}
	plan, err := src.Plan()
	if err != nil {
		return err
	}
	if cfg.waiter == nil {
		w, err := precise.New()
		if err != nil {
			return err
		}
		defer w.Close()
		cfg.waiter = w
	}
	if err := warmUp(ctx, do, plan.Seed, &cfg); err != nil {
		return err
	}

	clock := NewClock(time.Now().Add(startLead))
	if err := rec.Begin(ctx, Info{Clock: clock, Plan: plan, MaxConcurrency: cfg.maxConcurrency}); err != nil {
		return fmt.Errorf("load: run: %w", err)
	}
	defer func() { err = errors.Join(err, rec.End(context.WithoutCancel(ctx))) }()

	stopBackground := startBackground(ctx, clock, cfg.background)
	r := &runner{ctx: ctx, clock: clock, do: do, rec: rec, waiter: cfg.waiter, cap: cfg.maxConcurrency}
	err = r.run(src)
	return errors.Join(err, stopBackground())
}

func warmUp(ctx context.Context, do Doer, seed uint64, cfg *runConfig) error {
	clock := NewClock(time.Now())
	for i := range cfg.warmup {
		req := WarmupRequest(seed, i)
		now := clock.Now()
		res := Result{ID: req.ID, Arrival: now, Due: now, InputLen: req.InputLen, OutputLen: req.OutputLen}
		do.Do(ctx, clock, &req, &res)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !res.OK() {
			return fmt.Errorf("load: warm-up request %d of %d failed: %s (HTTP status %d): %s", i+1, cfg.warmup, res.Outcome, res.Status, res.Message)
		}
	}
	if cfg.afterWarmup != nil {
		if err := cfg.afterWarmup(ctx); err != nil {
			return fmt.Errorf("load: after warm-up: %w", err)
		}
	}
	return nil
}

// startBackground starts fs and returns a function that stops them, waits, and returns what they returned.
func startBackground(ctx context.Context, clock Clock, fs []func(context.Context, Clock) error) func() error {
	bctx, cancel := context.WithCancel(ctx)
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f(bctx, clock) })
	}
	return func() error {
		cancel()
		wg.Wait()
		return errors.Join(errs...)
	}
}

// A runner is a group of workers of which one leads at any time: it takes the next request, waits for its
// arrival, makes another worker the leader and carries the request out itself. So the goroutine that wakes up
// in time is the one that sends, and a release costs no hand-over. Under a cap the workers are the places: when
// all are busy nobody leads, and the first to end takes over.
type runner struct {
	ctx    context.Context
	clock  Clock
	do     Doer
	rec    Recorder
	waiter Waiter
	cap    int // 0: no cap

	next func() (Request, error, bool) // used by the leader only

	wg sync.WaitGroup

	mu      sync.Mutex
	workers int
	idle    []chan struct{} // parked workers; a value makes its receiver the leader
	vacant  bool            // the workload has not ended and nobody leads
	taken   int             // places given out so far, at most cap
	freed   []time.Duration // when places that were given back became free, in that order; unused without a cap
	ended   bool            // there is nothing left to lead
	err     error           // why the workload ended early
}

func (r *runner) run(src Source) error {
	next, stop := iter.Pull2(src.Requests())
	defer stop()
	r.next = next
	r.workers = 1
	r.wg.Go(r.work)
	r.wg.Wait()
	return r.err
}

// work is the life of a worker. It begins as the leader.
func (r *runner) work() {
	var (
		res  Result
		wake = make(chan struct{}, 1)
	)
	for {
		req, ok := r.lead()
		if !ok {
			return
		}
		chunks := res.Chunks
		chunks.Reset()
		res = Result{
			ID: req.ID, Conversation: req.Conversation, Turn: req.Turn,
			Arrival: req.Arrival, Due: max(req.Arrival, r.place()),
			InputLen: req.InputLen, OutputLen: req.OutputLen, Chunks: chunks,
		}
		r.promote()
		r.do.Do(r.ctx, r.clock, &req, &res)
		r.rec.Record(&res)
		if !r.follow(wake, res.Completion) {
			return
		}
	}
}

// lead takes the next request and waits for its arrival; false if there is none or the run is over.
func (r *runner) lead() (Request, bool) {
	req, err, ok := r.next()
	if ok && err == nil {
		if err = r.waiter.WaitUntil(r.ctx, r.clock.Time(req.Arrival)); err == nil {
			r.rec.Arrived(&req)
			return req, true
		}
		if r.ctx.Err() != nil {
			r.abandon(req)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended, r.err = true, err
	for _, wake := range r.idle {
		close(wake)
	}
	r.idle = nil
	return Request{}, false
}

// abandon records the requests that had arrived when the run was cancelled but had not been released, first req.
func (r *runner) abandon(req Request) {
	now := r.clock.Now()
	for ok, err := true, error(nil); ok && err == nil && req.Arrival <= now; req, err, ok = r.next() {
		r.rec.Arrived(&req)
		res := Result{
			ID: req.ID, Conversation: req.Conversation, Turn: req.Turn, InputLen: req.InputLen, OutputLen: req.OutputLen,
			Arrival: req.Arrival, Due: now, Released: now,
		}
		res.fail(OutcomeCancelled, context.Cause(r.ctx).Error())
		res.complete(now)
		r.rec.Record(&res)
	}
}

// promote passes the lead on: to a parked worker, to another one if the cap allows it, or else to whoever ends first.
func (r *runner) promote() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch n := len(r.idle); {
	case n > 0:
		r.idle[n-1] <- struct{}{}
		r.idle = r.idle[:n-1]
	case r.cap == 0 || r.workers < r.cap:
		r.workers++
		r.wg.Go(r.work)
	default:
		r.vacant = true
	}
}

// place takes the place that the next request gets and returns when it became free: requests get places in the
// order in which places are given back. It is 0 for a place that nobody has had.
func (r *runner) place() time.Duration {
	if r.cap == 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken < r.cap {
		r.taken++
		return 0
	}
	at := r.freed[0] // there is one: the leader's own at least
	r.freed = r.freed[:copy(r.freed, r.freed[1:])]
	return at
}

// follow gives back the place of a request that ended at the given time, and takes the lead if nobody has it, or
// waits for it; false means that the run is over.
func (r *runner) follow(wake chan struct{}, ended time.Duration) bool {
	r.mu.Lock()
	if r.cap > 0 {
		r.freed = append(r.freed, ended)
	}
	if r.ended || r.vacant {
		lead := !r.ended
		r.vacant = false
		r.mu.Unlock()
		return lead
	}
	r.idle = append(r.idle, wake)
	r.mu.Unlock()
	_, ok := <-wake
	return ok
}
