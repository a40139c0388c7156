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
	pending flight // the step whose result comes next
	ready   flight // planned behind it
	idle    bool
	due     bool          // the next event processes the result of pending, before it plans
	at      time.Duration // time of the next event
	gpuFree time.Duration // the GPU has done all that was planned
	steps   uint64
	first   uint64 // index of the first step, for the model
	slow    time.Duration
	paused  bool
	// processed, if not nil, is called when a result has been processed, before the next batch is planned.
	processed func(at time.Duration)
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

// Wake makes an idle loop look at the engine at the given time. It is needed after an abort.
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
// the next batch and returns what became visible. The slice is valid until the next call.
func (l *Loop) Advance() []Output {
	now := l.at
	if l.due {
		l.Engine.Complete(l.pending.step)
		l.pending, l.ready, l.due = l.ready, flight{}, false
		if l.processed != nil {
			l.processed(now)
		}
	}
	s := l.Engine.Plan()
	if s == nil {
		if l.pending.step == nil {
			l.Engine.Idle()
			l.idle = true
		} else {
			l.due, l.at = true, max(l.pending.end, now)
		}
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
