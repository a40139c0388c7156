package fleet

import (
	"fmt"
	"math"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A Target is what a scheduled action can do to an engine.
type Target interface {
	// SetLimit sets the run-time limit of running requests, from 1 to the engine's MaxRunningRequests. As with a real
	// server, lowering it ends nothing. An engine that is down cannot be set.
	SetLimit(n int) error
	// Kill ends the engine at once. Its requests fail: with load.OutcomeReset, or load.OutcomeTruncated if part of
	// the answer had come. Those sent to it from then on are refused. An engine that is down cannot be killed.
	Kill() error
	// Restart brings an engine that is down up again, empty and with its configured limit and speed. It serves at once: plan the
	// action for the moment at which a real server would be ready.
	Restart() error
	// Hang stops the engine's scheduler for good, as a deadlock on a GPU does: what had been made still reaches the client,
	// requests are accepted and get no answer, and the router keeps the last load that it polled. Kill and Restart end it.
	// With no [WithTimeout] and no Kill a run with requests there ends with an error. An engine that is down cannot hang.
	Hang() error
	// Slow multiplies the step times of the engine's configuration by factor, > 0 and finite, from the next step on;
	// 1 ends it, and so does a Restart. It does not add up with an earlier one. A step that would take more than a century
	// never ends.
	Slow(factor float64) error
}

// An Action is done to one engine at a planned time: [SetLimit], [Kill], [Restart], [Hang], [Slow], or what [Do] makes one. The
// zero value is none.
type Action struct {
	do    func(Target) error
	limit bool           // it sets the limit
	says  map[string]any // what the event says that it was not done
}

// Do returns the action that calls f, which must use its target only until it returns; its error ends the run. text names it for
// the event that says that it was not done.
func Do(text string, f func(Target) error) Action {
	return Action{do: f, says: map[string]any{"message": text}}
}

// SetLimit returns the action that calls [Target.SetLimit].
func SetLimit(n int) Action {
	return Action{func(t Target) error { return t.SetLimit(n) }, true, map[string]any{"name": limitName, "value": n}}
}

// Kill returns the action that calls [Target.Kill].
func Kill() Action { return Do(killed, Target.Kill) }

// Restart returns the action that calls [Target.Restart].
func Restart() Action { return Do(restarted, Target.Restart) }

// Hang returns the action that calls [Target.Hang].
func Hang() Action { return Do(hung, Target.Hang) }

// Slow returns the action that calls [Target.Slow].
func Slow(factor float64) Action {
	return Do(slowed, func(t Target) error { return t.Slow(factor) })
}

// What events say of faults, in the words of package server.
const (
	killed    = "killed"
	restarted = "restarted"
	hung      = "hung"
	slowed    = "slowed"
)

// target is a worker of a run under way as a Target.
type target struct {
	run *run
	w   *worker
}

func (t target) SetLimit(n int) error {
	w := t.w
	if !w.up {
		return fmt.Errorf("fleet: set limit: %s is down", w.Name)
	}
	most := w.loop.Engine.Config().MaxRunningRequests
	if n < 1 || n > most || !w.loop.SetLimit(t.run.now, float64(n)) {
		return fmt.Errorf("fleet: set limit: %d on %s: want 1 to %d, its max_running_requests", n, w.Name, most)
	}
	t.run.limitSet(w, n)
	t.run.core.SetFacts(t.run.now, w.slot(), w.facts())
	t.run.reschedule(w)
	return nil
}

func (t target) Kill() error {
	w := t.w
	if !w.up {
		return fmt.Errorf("fleet: kill: %s is down already", w.Name)
	}
	n := t.run.down(w, "simulated server was killed")
	t.run.event(metrics.KindServerFault, w, map[string]any{"message": killed, "requests": n})
	return nil
}

// down takes a worker down, and the requests that it has with it. It returns how many these were.
func (s *run) down(w *worker, why string) (failed int) {
	w.up, w.hung = false, never
	s.limitUnseen(w, "the server ended")
	w.coming.clear()
	w.going.clear()
	s.reschedule(w)
	for w.flights.first != nil {
		f := w.flights.first
		outcome := load.OutcomeReset
		if f.tokens > 0 && f.firstAt+w.Profile.Egress <= s.now {
			outcome = load.OutcomeTruncated
		}
		s.fail(f, outcome, why)
		failed++
	}
	return failed
}

func (t target) Restart() error {
	w := t.w
	if w.up {
		return fmt.Errorf("fleet: restart: %s is not down: kill it before", w.Name)
	}
	if err := w.start(); err != nil {
		return fmt.Errorf("fleet: restart %s: %w", w.Name, err)
	}
	t.run.core.SetFacts(t.run.now, w.slot(), w.facts())
	t.run.event(metrics.KindServerFault, w, map[string]any{"message": restarted})
	return nil
}

func (t target) Hang() error {
	w := t.w
	if !w.up || w.hung != never {
		return fmt.Errorf("fleet: hang: %s is down, or hangs already", w.Name)
	}
	w.hung = t.run.now
	t.run.reschedule(w)
	t.run.event(metrics.KindServerFault, w, map[string]any{"message": hung})
	return nil
}

func (t target) Slow(factor float64) error {
	if !(factor > 0) || math.IsInf(factor, 0) {
		return fmt.Errorf("fleet: slow %s: factor %v: want a finite number above 0", t.w.Name, factor)
	}
	t.w.pace.factor = factor / t.w.Speed
	t.run.event(metrics.KindServerFault, t.w, map[string]any{"message": slowed, "factor": factor})
	return nil
}

// planned is an action with its time.
type planned struct {
	at     time.Duration
	worker int
	action Action
}
