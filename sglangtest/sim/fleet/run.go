package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// Stats says what a run amounted to. It holds nothing that depends on the machine.
type Stats struct {
	Requests int           // that arrived and were recorded
	Steps    uint64        // of all engines
	End      time.Duration // virtual time of the last event
}

// Run carries out the workload src on simulated engines, in virtual time: it routes each request with pol at its
// arrival and returns when all have ended. Every request that arrived is recorded exactly once with rec, in order of
// its end.
//
// A recorder that has these methods, as metrics.Collector does, gets more: AddSimulation(metrics.Simulation) error is
// called before Begin, so that whatever comes of the run says that it is simulated; Event(metrics.Event) gets what
// scheduled actions did; AddSample(metrics.Sample) gets the samples of [WithSamples]. The clock that rec is handed
// says only when the run began on the wall clock. What a recorder reads from it is not virtual time.
//
// Faults of the arguments are reported together before anything is recorded. If ctx is done, the requests under way
// are recorded as cancelled and Run returns ctx's cause. Failures of single requests are results, not errors.
func Run(ctx context.Context, src load.Source, pol policy.Policy, engines []Engine, rec load.Recorder, opts ...Option) (stats Stats, err error) {
	s := &run{ctx: ctx, pol: pol, rec: rec, tree: newTournament(len(engines))}
	if err := s.configure(engines, opts); err != nil {
		return Stats{}, fmt.Errorf("fleet: run: %w", err)
	}
	if ctx.Err() != nil {
		return Stats{}, context.Cause(ctx)
	}
	plan, err := src.Plan()
	if err != nil {
		return Stats{}, err
	}
	if r, ok := rec.(interface {
		AddSimulation(metrics.Simulation) error
	}); ok {
		if err := r.AddSimulation(Simulation(engines)); err != nil {
			return Stats{}, fmt.Errorf("fleet: run: %w", err)
		}
	}
	if err := rec.Begin(ctx, load.Info{Clock: load.NewClock(time.Now()), Plan: plan, MaxConcurrency: s.cfg.cap}); err != nil {
		return Stats{}, fmt.Errorf("fleet: run: %w", err)
	}
	defer func() { err = errors.Join(err, rec.End(context.WithoutCancel(ctx))) }()
	err = s.play(src)
	for _, w := range s.workers {
		s.stats.Steps += w.steps + w.loop.Steps()
	}
	s.stats.End = s.now
	return s.stats, err
}

// A run is the state of [Run]. now never goes back.
type run struct {
	ctx context.Context
	cfg config
	pol policy.Policy
	rec load.Recorder

	dispatched policy.DispatchObserver // pol, if it is one
	firstToken policy.FirstTokenObserver
	done       policy.DoneObserver
	events     interface{ Event(metrics.Event) } // rec, if it is one
	samples    interface{ AddSample(metrics.Sample) }

	now     time.Duration
	workers []*worker
	view    policy.View
	tree    tournament // of the workers' next events
	timers  timers

	live     int       // requests that arrived and have not ended
	held     []*flight // of these, by the policy, in order of arrival
	offer    bool      // something has happened that held requests wait for
	deadline fifo[*flight]
	drained  bool // the source has ended
	idle     int  // polls since anything was under way

	res   load.Result // scratch
	err   error       // why the run cannot go on
	ticks int         // events carried out
	ended int         // requests recorded, counted for progress only
	stats Stats
}

func (s *run) configure(engines []Engine, opts []Option) error {
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(&s.cfg))
	}
	if s.pol == nil {
		faults = append(faults, errors.New("no policy: want one, such as new(policy.RoundRobin)"))
	}
	engines, err := normalise(engines)
	faults = append(faults, err)
	for _, a := range s.cfg.actions {
		if a.worker < 0 || a.worker >= len(engines) {
			faults = append(faults, fmt.Errorf("action at %v on engine %d: want 0 to %d", a.at, a.worker, len(engines)-1))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	for i, e := range engines {
		w, err := newWorker(i, e, !s.cfg.noTimes)
		if err != nil {
			return err
		}
		s.workers = append(s.workers, w)
		s.view.Workers = append(s.view.Workers, policy.Worker{Name: e.Name, Healthy: true, Speed: e.Speed,
			MaxRunning: w.loop.Engine.Config().MaxRunningRequests, KVTokens: w.loop.Engine.Config().MaxTotalTokens})
	}
	s.timers.plan(&s.cfg)
	s.dispatched, _ = s.pol.(policy.DispatchObserver)
	s.firstToken, _ = s.pol.(policy.FirstTokenObserver)
	s.done, _ = s.pol.(policy.DoneObserver)
	s.events, _ = s.rec.(interface{ Event(metrics.Event) })
	s.samples, _ = s.rec.(interface{ AddSample(metrics.Sample) })
	if s.samples == nil {
		s.timers.at[sampleTimer] = never
	}
	return nil
}

// play pulls the requests from the source as their time comes and carries out what happens in between.
func (s *run) play(src load.Source) error {
	for req, err := range src.Requests() {
		if err != nil {
			return s.abandon(err)
		}
		f := &flight{load: req, prompt: promptTokens(&req.Prompt)}
		for s.step(req.Arrival) {
		}
		if s.err != nil {
			return s.abandon(s.err)
		}
		s.now = max(s.now, req.Arrival)
		s.rec.Arrived(&f.load)
		s.stats.Requests++
		for s.cfg.cap > 0 && s.live >= s.cfg.cap {
			if !s.step(never) {
				s.live++ // f, which has arrived and must be recorded
				s.held = append(s.held, f)
				return s.abandon(s.stuck())
			}
		}
		s.live++
		f.due = s.now
		s.place(f)
		s.offerHeld()
	}
	s.drained = true
	for s.live > 0 && s.step(never) {
	}
	if s.live > 0 || s.err != nil {
		return s.abandon(s.stuck())
	}
	return nil
}

// stuck returns why the run cannot go on.
func (s *run) stuck() error {
	if s.err != nil {
		return s.err
	}
	return fmt.Errorf("fleet: the policy holds %d requests at %v, but nothing is left that could end the wait: reject them, or hold them until a time", len(s.held), s.now)
}

// step carries out the next event: one of the timers up to and at limit, or one of a worker before it. It reports
// false if there is none, or if the run cannot go on.
func (s *run) step(limit time.Duration) bool {
	if s.err != nil {
		return false
	}
	if s.ticks++; s.ticks&1023 == 0 && s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
		return false
	}
	w, t := s.tree.first(), s.timers.next
	switch {
	case t <= w.at && t <= limit && t != never:
		s.now = t
		s.timer()
	case w.at < limit:
		s.now = w.at
		bound := s.now
		// Until the next arrival nothing can come between the steps of an engine, unless the policy or the cap waits for
		// what happens on another.
		if limit != never && len(s.held) == 0 {
			bound = min(limit, t)
		}
		s.advance(s.workers[w.index], bound)
	default:
		return false
	}
	s.offerHeld()
	return s.err == nil
}

// advance carries out the next event of a worker, which is due now, and the steps of its engine behind it that bring
// nothing, as long as they come before bound.
func (s *run) advance(w *worker, bound time.Duration) {
	if a := w.coming.front(); a != nil && a.at <= s.now {
		s.admit(w, w.coming.pop().flight)
	} else if d := w.going.front(); d != nil && d.at <= s.now {
		s.deliver(w, w.going.pop())
	} else {
		s.outputs(w, bound)
	}
	s.reschedule(w)
}

func (s *run) reschedule(w *worker) { s.tree.set(w.index, w.next()) }

// outputs advances the loop of w, from now on and before bound, until it brings something, and notes what it brought.
func (s *run) outputs(w *worker, bound time.Duration) {
	egress := w.Profile.Egress
	if a := w.coming.front(); a != nil {
		bound = min(bound, a.at)
	}
	var outputs []sim.Output
	at := s.now
	for {
		outputs = w.loop.Advance()
		if w.loop.Engine.DecodeSteps() > int64(w.log.steps) { // by one: Advance processes one result
			w.log.add(at, egress)
		}
		next, busy := w.loop.Next()
		if len(outputs) > 0 || !busy || next >= bound {
			break
		}
		at = next
	}
	for i := range outputs {
		o := &outputs[i]
		f := o.Request.Owner.(*flight)
		if f.ended {
			continue
		}
		switch {
		case o.Tokens == 0:
		case o.Decode > 0:
			f.decoded(o.Tokens, o.Decode)
		default:
			if f.prefilled(at, &w.log); f.tokens == 1 {
				w.going.push(delivery{at: at + egress, flight: f})
			}
		}
		if o.Finish != nil {
			w.going.push(delivery{at: at + egress, flight: f, finish: o.Finish})
		}
	}
}
