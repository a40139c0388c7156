package sim

import "time"

// A Loop is SGLang's event loop on a time line: it decides when the engine plans, when steps run on the GPU and
// when results become known (scheduler.py, event_loop_overlap). Times are offsets from any fixed moment.
//
// With overlap, step k+1 is planned when the GPU starts on step k, and the result of step k is processed when step
// k ends, while k+1 runs. So a token is visible at the end of its own step, and a request that arrives during step
// k is first planned at its end, for step k+2: it waits for one step more than without overlap.
//
// If the engine's configuration disables overlap, a batch is planned when the result of the one before it has been
// processed (event_loop_normal).
//
// A host gives the loop everything that arrives up to [Loop.Next] and then calls [Loop.Advance]. A Loop is not safe
// for concurrent use.
type Loop struct {
	Engine *Engine

	profile Profile
	pending flight     // the step whose result comes next
	ready   flight     // planned behind it
	aborts  []*Request // to end at the next pass
	idle    bool
	due     bool          // the next event processes the result of pending, before it plans
	at      time.Duration // time of the next event
	gpuFree time.Duration // the GPU has done all that was planned
	steps   uint64
	first   uint64 // index of the first step, for the model
	slow    time.Duration
	paused  bool
	// processed, if not nil, is called when a result has been processed, before the next batch is planned. receive, if
	// not nil, is called where a pass of SGLang's loop reads its messages, and planned with what the pass planned.
	processed func(at time.Duration)
	receive   func()
	planned   func(s *Step)
}

type flight struct {
	step *Step
	end  time.Duration
}

// NewLoop returns an idle loop around e, with the step times of p.
func NewLoop(e *Engine, p Profile) *Loop { return &Loop{Engine: e, profile: p, idle: true} }

// Steps returns the number of steps planned.
func (l *Loop) Steps() uint64 { return l.steps }

// Add gives the engine a request that arrives at the given time, which must not be after [Loop.Next].
func (l *Loop) Add(now time.Duration, r *Request) {
	l.Engine.Add(r)
	l.Wake(now)
}

// Abort ends a request at the given time (/abort_request). As in SGLang it takes effect when the loop next reads its
// messages, which is before it plans and after it has processed the result that is due then; a paused loop reads them at
// once. The end comes as an [Output].
func (l *Loop) Abort(now time.Duration, r *Request) {
	if l.paused {
		l.Engine.Abort(r)
	} else {
		l.aborts = append(l.aborts, r)
	}
	l.Wake(now)
}

// SetLimit is [Engine.SetLimit] at the given time.
func (l *Loop) SetLimit(now time.Duration, v float64) bool {
	l.Wake(now)
	return l.Engine.SetLimit(v)
}

// Wake makes an idle loop look at the engine at the given time. It is needed after anything that was done to the engine
// itself.
func (l *Loop) Wake(now time.Duration) {
	if l.idle {
		l.idle, l.at = false, max(now, l.at)
	}
}

// Next returns the time of the loop's next event; false if it is idle until something is added, or paused.
func (l *Loop) Next() (time.Duration, bool) { return l.at, !l.idle && !l.paused }

// SlowDown makes every step planned from here on take that much longer (/slow_down); 0 ends it. It panics if d is
// negative.
func (l *Loop) SlowDown(d time.Duration) {
	if d < 0 {
		panic("sim: SlowDown by a negative time")
	}
	l.slow = d
}

// Pause stops the loop (/pause_generation). PauseInPlace leaves everything as it is: a result under way is processed
// after Continue. PauseRetract processes it first and takes all requests back to the queue. Requests can be added
// while the loop is paused; an abort of a running one takes effect after Continue. (The mode abort is
// [Engine.AbortAll] and pauses nothing here: the HTTP process holds new requests back.) It returns what became
// visible, at once and not at the end of the step under way. The slice is valid until the next call.
func (l *Loop) Pause(mode PauseMode) []Output {
	l.read()
	l.paused = true
	if mode == PauseRetract {
		for _, f := range []flight{l.pending, l.ready} {
			if f.step != nil {
				l.Engine.Complete(f.step)
			}
		}
		l.pending, l.ready, l.due = flight{}, flight{}, false
		l.Engine.RetractAll()
	}
	return l.Engine.Outputs()
}

// A PauseMode says what a pause does to what runs.
type PauseMode uint8

// The modes of a pause.
const (
	PauseInPlace PauseMode = iota + 1
	PauseRetract
)

// Continue ends a pause at the given time (/continue_generation).
func (l *Loop) Continue(now time.Duration) {
	if !l.paused {
		return
	}
	l.paused = false
	l.at = max(l.at, now)
	l.Wake(now)
}

// Advance carries out the next event, at the time that [Loop.Next] gave: it processes the result that is due, plans
// the next batch and returns what became visible. A pass that plans nothing takes no time: as long as it changes
// something, another follows at once. A loop whose requests can never be admitted, as SGLang would not admit them either,
// is idle although they have not ended. The slice is valid until the next call.
func (l *Loop) Advance() []Output {
	now := l.at
	if l.due {
		l.Engine.Complete(l.pending.step)
		l.pending, l.ready, l.due = l.ready, flight{}, false
		if l.processed != nil {
			l.processed(now)
		}
	}
	s := l.plan()
	for s == nil && l.pending.step == nil { // SGLang's loop spins
		l.Engine.Idle()
		if l.Engine.Settled() {
			l.idle = true
			return l.Engine.Outputs()
		}
		s = l.plan()
	}
	if s == nil {
		l.due, l.at = true, max(l.pending.end, now)
		return l.Engine.Outputs()
	}
	s.Shape.Index = l.first + l.steps
	l.steps++
	launched := now + l.profile.launch(s.Kind)
	end := max(max(now, l.gpuFree)+l.profile.Model.StepTime(s.Shape)+l.slow, launched)
	l.gpuFree, l.at = end, launched
	if l.Engine.cfg.DisableOverlap {
		l.pending, l.due, l.at = flight{s, end}, true, end
	} else if l.pending.step == nil {
		l.pending = flight{s, end} // nothing to wait for: the loop turns to planning the next batch
	} else {
		l.ready = flight{s, end}
		l.due, l.at = true, max(l.pending.end, launched)
	}
	return l.Engine.Outputs()
}

// plan reads the messages and plans.
func (l *Loop) plan() *Step {
	l.read()
	if l.receive != nil {
		l.receive()
	}
	s := l.Engine.Plan()
	if l.planned != nil {
		l.planned(s)
	}
	return s
}

func (l *Loop) read() {
	for i, r := range l.aborts {
		l.Engine.Abort(r)
		l.aborts[i] = nil
	}
	l.aborts = l.aborts[:0]
}
