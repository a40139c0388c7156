package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/dispatch"
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
	// Shortened is how many answers ended with fewer tokens than were asked for since the engine's KV pool, or its context,
	// holds no more, as SGLang has it. A recorder gets an event of metrics.KindServerWarning for each engine of which some are.
	Shortened int
}

// Run carries out the workload src on simulated engines, in virtual time: it routes each request with pol at its
// arrival and returns when all have ended. Every request that arrived is recorded exactly once with rec, in order of
// its end.
//
// A recorder that has these methods, as metrics.Collector does, gets more: AddSimulation(metrics.Simulation) error is
// called before Begin, so that whatever comes of the run says that it is simulated; Event(metrics.Event) gets what
// scheduled actions did, and which were not done; AddSample(metrics.Sample) gets the samples of [WithSamples]. The clock that rec is handed
// tells the virtual time, and when the run began on the wall clock. It does not wait for anyone; so a collector must
// have no samplers of its own (metrics.WithSampler), whose samples would not belong to the time line. Run cannot see them.
//
// Faults of the arguments are reported together before anything is recorded. If ctx is done, the requests that have
// arrived and not ended are recorded as cancelled and Run returns ctx's cause. It ends in the same way, with an error
// that says why, if the policy, an action or the workload is at fault, or if the run is stuck: everything has arrived
// and nothing but polls and samples is left to happen. A policy that holds requests then is asked at two more polls; one
// that waits for a time has to say so (policy.HoldUntil). Failures of single requests are results, not errors.
//
// A request of the workload needs a valid prompt and OutputLen ≥ 1. Of its sampling parameters only ignore_eos is
// simulated; n, beam_width and stream_interval above 1 are errors. So are an adapter, a rank other than 0 and extra members of
// the body. Its priority reaches the engines; headers have no effect.
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
	if err := rec.Begin(ctx, load.Info{Plan: plan, MaxConcurrency: s.cfg.cap}); err != nil {
		return Stats{}, fmt.Errorf("fleet: run: %w", err)
	}
	defer func() { err = errors.Join(err, rec.End(context.WithoutCancel(ctx))) }()
	var clock load.Clock
	clock, s.clock = load.NewVirtualClock(time.Now())
	rec.Start(clock)
	err = s.play(src)
	s.clock(s.now)
	for _, a := range s.timers.actions {
		data := maps.Clone(a.action.says)
		data["planned_ns"], data["reason"] = int64(a.at), metrics.ReasonRunEnded
		if a.action.limit {
			s.event(metrics.KindParamUpdateNotMade, s.workers[a.worker], data)
		} else {
			s.event(metrics.KindServerFaultNotMade, s.workers[a.worker], data)
		}
	}
	for _, w := range s.workers {
		s.limitUnseen(w, metrics.ReasonRunEnded)
		s.stats.Steps += w.steps + w.loop.Steps()
		s.stats.Shortened += w.short
		if w.short > 0 {
			s.event(metrics.KindServerWarning, w, map[string]any{"message": fmt.Sprintf("%d answers are shorter than asked for, since a prompt and its answer "+
				"may have no more than the pool of %d KV tokens or the context of %d", w.short, w.loop.Engine.Config().MaxTotalTokens, w.loop.Engine.Config().ContextLength)})
		}
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

	core    *dispatch.Core
	events  interface{ Event(metrics.Event) } // rec, if it is one
	samples interface{ AddSample(metrics.Sample) }

	now     time.Duration
	clock   func(now time.Duration) // sets the recorder's, before it is told of anything
	workers []*worker
	tree    tournament // of the workers' next events
	timers  timers

	queue     fifo[*flight] // arrived, without a place under the cap
	live      int           // requests that had a place and have not ended
	waiting   flights       // of these, in the dispatcher
	deadline  fifo[*flight]
	polled    []dispatch.Sample // scratch
	idle      int               // polls since anything else happened, when all has arrived
	abandoned bool

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
	core, err := dispatch.New(s.pol, append(s.cfg.dispatch, dispatch.Provides(policy.Needs{Samples: s.cfg.poll > 0, Chunks: true}))...)
	faults = append(faults, err)
	s.core = core
	engines, err = normalise(engines)
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
		w, err := newWorker(i, e, !s.cfg.noTimes, core.Needs().Chunks)
		if err != nil {
			return err
		}
		w.known = w.starts
		s.workers = append(s.workers, w)
		core.AddWorker(0, dispatch.Worker{Name: e.Name, Facts: w.facts(), Limit: e.Limit})
	}
	s.timers.plan(&s.cfg)
	s.events, _ = s.rec.(interface{ Event(metrics.Event) })
	s.samples, _ = s.rec.(interface{ AddSample(metrics.Sample) })
	if s.samples == nil {
		s.timers.set(sampleTimer, never)
	}
	return nil
}

// play pulls the requests from the source as their time comes and carries out what happens in between. If the run
// breaks off, those whose time has come still arrive, to be recorded.
func (s *run) play(src load.Source) error {
	for req, err := range src.Requests() {
		if err == nil {
			err = check(&req)
		}
		if err != nil {
			s.err = cmp.Or(s.err, err)
			break
		}
		f := newFlight(req)
		for s.step(req.Arrival) {
		}
		if s.err != nil && req.Arrival > s.now {
			break
		}
		s.now = max(s.now, req.Arrival)
		s.clock(s.now)
		s.rec.Arrived(&f.load)
		s.stats.Requests++
		s.queue.push(f)
		s.decide()
	}
	s.idle = 0
	for s.err == nil && s.live+s.queue.len() > 0 && s.step(never) {
	}
	if s.live+s.queue.len() > 0 || s.err != nil {
		return s.abandon(s.stuck())
	}
	return nil
}

// check refuses a request of the workload that no engine could carry out, or not as it says.
func check(r *load.Request) error {
	err := r.Prompt.Validate()
	switch p := r.Sampling; {
	case err != nil:
	case r.OutputLen < 1:
		err = fmt.Errorf("output length %d: want at least 1", r.OutputLen)
	case p != nil && p.N != nil && *p.N > 1:
		err = fmt.Errorf("sampling parameter n is %d: a fleet simulates one answer per request", *p.N)
	case p != nil && p.BeamWidth != nil && *p.BeamWidth > 1:
		err = fmt.Errorf("sampling parameter beam_width is %d: a fleet simulates no beam search", *p.BeamWidth)
	case p != nil && p.StreamInterval != nil && *p.StreamInterval > 1:
		err = fmt.Errorf("sampling parameter stream_interval is %d: a fleet simulates an event for each token", *p.StreamInterval)
	default:
		err = checkCarried(r)
	}
	if err != nil {
		return fmt.Errorf("fleet: workload: request %d: %w", r.ID, err)
	}
	return nil
}

// checkCarried refuses what a request carries that would change its answer or its share of the prefix cache, if it is not simulated.
func checkCarried(r *load.Request) error {
	if r.Rank != nil && *r.Rank != 0 {
		return fmt.Errorf("routed_dp_rank is %d: the engines of a fleet have one rank, 0", *r.Rank)
	}
	if r.LoRA != "" {
		return fmt.Errorf("lora_path is %q: a fleet simulates no adapters", r.LoRA)
	}
	if len(r.Extra) > 0 {
		return fmt.Errorf("extra members %q: a fleet simulates none", slices.Sorted(maps.Keys(r.Extra)))
	}
	return nil
}

// stuck returns why the run cannot go on.
func (s *run) stuck() error {
	if s.err != nil {
		return s.err
	}
	for _, w := range s.workers {
		for f := w.flights.first; f != nil; f = f.next {
			if f.request.Lost() {
				return fmt.Errorf("fleet: the scheduler of %s lost request %d, which would wait for ever: it was preempted for a request that was then not admitted, which SGLang before 0.5.23 forgets: "+
					"give the run a deadline (WithTimeout), the engine KeepPreempted or DisablePriorityPreemption, or simulate 0.5.23", w.Name, f.load.ID)
			}
		}
	}
	for _, w := range s.workers {
		if f := w.flights.first; f != nil && w.hung != never {
			return fmt.Errorf("fleet: %s hangs since %v with request %d, and nothing else is left to happen: add WithTimeout, or Kill it later", w.Name, w.hung, f.load.ID)
		} else if f != nil {
			return fmt.Errorf("fleet: %s can do nothing more for request %d (%d prompt tokens, %d output tokens wanted) at %v, and nothing else is left to happen: its scheduler has %+v: give it other sizes",
				w.Name, f.load.ID, f.prompt(), f.load.OutputLen, s.now, w.loop.Engine.State())
		}
	}
	return fmt.Errorf("fleet: %d requests are held at %v, by the policy or a batching strategy, but nothing is left that could end the wait: reject them, or hold them until a time", s.core.View().Waiting, s.now)
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
	if limit == never && w.at == never && s.timers.quiet() {
		// Polls and samples go on for ever. If they change nothing, nothing will.
		if s.idle >= idlePolls || s.cfg.poll == 0 {
			return false
		}
	} else {
		s.idle = 0
	}
	switch {
	case t <= w.at && t <= limit && t != never:
		s.now = t
		s.timer()
	case w.at < limit:
		s.now = w.at
		bound := s.now
		// Until the next arrival nothing can come between the steps of an engine, unless the policy or the cap waits for
		// what happens on another.
		if limit != never && s.waiting.first == nil && s.queue.len() == 0 {
			bound = min(limit, t)
		}
		s.advance(s.workers[w.index], bound)
	default:
		return false
	}
	s.decide()
	return s.err == nil
}

// idlePolls is how many polls a policy is given that holds requests while nothing else happens.
const idlePolls = 2

// advance carries out the next event of a worker, which is due now, and the steps of its engine behind it that bring
// nothing, as long as they come before bound.
func (s *run) advance(w *worker, bound time.Duration) {
	if a := w.coming.front(); a != nil && a.at <= s.now && w.hung == never {
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
	s.limitSeen(w, at)
	for _, r := range w.loop.Engine.Lost() {
		s.event(metrics.KindRequestLost, w, map[string]any{"request": r.Owner.(*flight).load.ID})
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
			if w.chunks {
				w.going.push(delivery{at: at + egress, flight: f, tokens: o.Tokens})
			}
		default:
			if f.prefilled(at, &w.log); w.chunks {
				w.going.push(delivery{at: at + egress, flight: f, tokens: 1})
			} else if f.tokens == 1 {
				w.going.push(delivery{at: at + egress, flight: f})
			}
		}
		if o.Finish != nil {
			w.going.push(delivery{at: at + egress, flight: f, finish: o.Finish})
		}
	}
	if err := w.loop.Engine.Err(); err != nil {
		s.now = max(s.now, at)
		s.event(metrics.KindServerEnded, w, map[string]any{"error": fmt.Sprintf("the simulated scheduler died, as SGLang's would: %v", err)})
		s.down(w, "simulated server died: "+err.Error())
	}
}
