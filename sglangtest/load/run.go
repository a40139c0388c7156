package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/precise"
)

// startLead is the time between the creation of a run's clock and offset 0. It covers Recorder.Start and the start of
// background tasks, so that the first arrivals are not late.
const startLead = 50 * time.Millisecond

// A Waiter waits for a moment. The default is exact to some tens of microseconds on Linux; see [WithWaiter].
type Waiter interface {
	// WaitUntil returns nil when t has come, or the cause of ctx's end. It is not called concurrently.
	WaitUntil(ctx context.Context, t time.Time) error
}

// TimerWaiter is a [Waiter] on the runtime's timers, which can be 1 ms late but follow a synctest bubble's clock.
type TimerWaiter = precise.Timer

// endTimeout is what Recorder.End gets, so that a sampler or a disk that hangs does not hold the run for ever.
const endTimeout = 30 * time.Second

type runConfig struct {
	open           *int
	maxConcurrency int
	warmup         int
	afterWarmup    func(context.Context) error
	background     []func(context.Context, Clock) error
	waiter         Waiter
	route          Route
}

// A RunOption configures [Run].
type RunOption func(*runConfig) error

// WithMaxConcurrency caps the requests in flight at n. A request that finds no place free waits for one, in
// order of arrival; the wait counts as QueueTime, and the time at which it got its place is Result.Due. Waiting
// requests are held in memory, about 200 bytes each. Default: no cap.
func WithMaxConcurrency(n int) RunOption {
	return func(c *runConfig) error {
		if n <= 0 {
			return fmt.Errorf("max concurrency %d: want > 0", n)
		}
		c.maxConcurrency = n
		return nil
	}
}

// WithOpenConnections has a Doer that is an [Opener] open n connections before the run's clock starts; 0: none. Default: as
// many as requests arrive at the first moment, as in a closed loop or a burst, and fit under the cap; none if that is one.
// Run refuses what this machine cannot have ([Opener]).
func WithOpenConnections(n int) RunOption {
	return func(c *runConfig) error {
		if n < 0 {
			return fmt.Errorf("%d open connections: want ≥ 0", n)
		}
		c.open = &n
		return nil
	}
}

// WithWarmup sends n requests before the run, to each target if there are several (see [WithRoute]), one after the other, and
// waits for their end. They are requests of their own ([WarmupRequest]), not rows of the workload, and are not recorded. If
// one fails, so does the run. Default: 0.
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
	return func(c *runConfig) error {
		if f == nil {
			return errors.New("WithAfterWarmup(nil)")
		}
		c.afterWarmup = f
		return nil
	}
}

// WithBackground runs f in a goroutine of its own from the run's start until the last request has ended; then
// f's context is done and Run waits for f. It is the place of scheduled actions. An error of f does not stop
// the run, but Run returns it, unless it only says that the context was done. It may be given more than once.
func WithBackground(f func(context.Context, Clock) error) RunOption {
	return func(c *runConfig) error {
		if f == nil {
			return errors.New("WithBackground(nil)")
		}
		c.background = append(c.background, f)
		return nil
	}
}

// WithWaiter replaces the waiter that times the releases. Tests in a synctest bubble need [TimerWaiter].
func WithWaiter(w Waiter) RunOption {
	return func(c *runConfig) error {
		if w == nil {
			return errors.New("WithWaiter(nil)")
		}
		c.waiter = w
		return nil
	}
}

// WithRoute makes r decide where each request goes and how long it waits before: r stands between the cap and the Doer, which
// must be a [TargetDoer]. The wait counts as QueueTime and moves Result.Due, so that it is never the client's lateness.
// Warm-up requests go to each target in turn, without r. Default: the Doer knows where to send.
func WithRoute(r Route) RunOption {
	return func(c *runConfig) error {
		if r == nil {
			return errors.New("WithRoute(nil)")
		}
		c.route = r
		return nil
	}
}

// checkRoute reports what the Doer cannot send.
func checkRoute(r Route, do Doer) error {
	if r == nil {
		if s, ok := do.(*Sender); ok && s.own.Target.URL == "" {
			return errors.New("the sender sends where a route says, and there is none: add WithRoute, or make it with NewSender")
		}
		return nil
	}
	d, ok := do.(TargetDoer)
	if !ok {
		return fmt.Errorf("a route needs a Doer that sends where it is told (load.TargetDoer), which %T is not", do)
	}
	targets := r.Targets()
	if len(targets) == 0 {
		return errors.New("the route has no targets")
	}
	var faults []error
	for _, t := range targets {
		faults = append(faults, d.CheckTarget(t))
	}
	return errors.Join(faults...)
}

// Run carries out the workload src: it releases each request to do at its intended time (open loop) and returns
// when all have ended. Every request that arrived is recorded exactly once with rec.
//
// Faults of the workload are returned before anything is sent. If ctx is done, requests in flight are recorded
// as cancelled, no more arrive, and Run returns ctx's cause. Failures of single requests are results, not errors.
//
// Run knows no servers: when one dies, its requests fail, and those to come are released all the same. To end the run
// then, cancel ctx from a [WithBackground] function that waits for server.Server.Exited, with server.ExitedError as the cause.
func Run(ctx context.Context, src Source, do Doer, rec Recorder, opts ...RunOption) (err error) {
	var cfg runConfig
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(&cfg))
	}
	faults = append(faults, checkRoute(cfg.route, do))
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("load: run: %w", err)
	}
	plan, err := src.Plan()
	if err != nil {
		return fmt.Errorf("load: run: %w", err)
	}
	var delays *Delays
	probe := func() (stop func()) { return func() {} }
	if cfg.waiter == nil {
		releases, err := precise.New()
		if err != nil {
			return fmt.Errorf("load: run: %w", err)
		}
		defer releases.Close()
		probes, err := precise.New()
		if err != nil {
			return fmt.Errorf("load: run: %w", err)
		}
		defer probes.Close()
		cfg.waiter, delays = releases, new(Delays)
		probe = func() func() { return delays.probe(probes) }
	}
	line := newLine(src.Requests(), do)
	defer line.close()
	line.fill()
	opener, _ := do.(Opener)
	atOnce := line.atOnce(plan, cfg.maxConcurrency)
	if opener != nil && atOnce > 1 {
		if err := opener.CanOpen(atOnce); err != nil {
			return fmt.Errorf("load: run: %d requests are due at the same moment: %w", atOnce, err)
		}
	}
	if opener != nil && cfg.open != nil && *cfg.open > 0 {
		if err := opener.CanOpen(*cfg.open); err != nil {
			return fmt.Errorf("load: run: %d connections are to be opened beforehand: %w", *cfg.open, err)
		}
	}
	if err := warmUp(ctx, do, plan.Seed, &cfg); err != nil {
		return err
	}

	// All that can take its time comes first, then the run's clock starts.
	if err := rec.Begin(ctx, Info{Plan: plan, MaxConcurrency: cfg.maxConcurrency, Delays: delays}); err != nil {
		return fmt.Errorf("load: run: %w", err)
	}
	defer func() {
		endCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		err = errors.Join(err, rec.End(endCtx))
	}()

	line.settle()
	if cfg.open != nil {
		atOnce = *cfg.open
	}
	if opener != nil && (atOnce > 1 || cfg.open != nil) {
		opener.Open(ctx, atOnce)
	}

	defer probe()()
	clock := NewClock(time.Now().Add(startLead))
	rec.Start(clock)
	stopBackground := startBackground(ctx, clock, cfg.background)
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var breach error
	var once sync.Once
	j := job{ctx: ctx, clock: clock, do: do, rec: rec, waiter: cfg.waiter, line: line, route: cfg.route, end: end,
		breach: func(err error) { once.Do(func() { breach = err }) }}
	if cfg.maxConcurrency > 0 {
		err = (&places{job: j, cap: cfg.maxConcurrency}).run()
	} else {
		err = (&relay{job: j}).run()
	}
	if err == nil && ctx.Err() != nil { // cancelled when everything had arrived
		err = context.Cause(ctx)
	}
	if err = errors.Join(err, breach); err != nil {
		err = fmt.Errorf("load: run: %w", err)
	}
	return errors.Join(err, stopBackground())
}

func warmUp(ctx context.Context, do Doer, seed uint64, cfg *runConfig) error {
	clock := NewClock(time.Now())
	var targets []Target
	if cfg.route != nil {
		targets = cfg.route.Targets()
	}
	for i := range cfg.warmup * max(1, len(targets)) {
		req := WarmupRequest(seed, i)
		now := clock.Now()
		res := Result{ID: req.ID, Arrival: now, Due: now, InputLen: req.InputLen, OutputLen: req.OutputLen}
		if targets != nil {
			do.(TargetDoer).DoTo(ctx, clock, &Placement{Target: targets[i%len(targets)]}, &req, &res)
		} else {
			do.Do(ctx, clock, &req, &res)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !res.OK() {
			return fmt.Errorf("load: warm-up request %d of %d failed: %s (HTTP status %d): %s", i+1, cfg.warmup*max(1, len(targets)), res.Outcome, res.Status, res.Message)
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
		wg.Go(func() {
			err := f(bctx, clock)
			if bctx.Err() == nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.Cause(bctx)) {
				errs[i] = err
			}
		})
	}
	return func() error {
		cancel()
		wg.Wait()
		return errors.Join(errs...)
	}
}
