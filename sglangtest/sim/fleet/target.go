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

// An Action is done to one engine at a planned time. It must use its target only until it returns; its error ends
// the run.
type Action func(Target) error

// SetLimit returns the action that calls [Target.SetLimit].
func SetLimit(n int) Action { return func(t Target) error { return t.SetLimit(n) } }

// Kill returns the action that calls [Target.Kill].
func Kill() Action { return func(t Target) error { return t.Kill() } }

// Restart returns the action that calls [Target.Restart].
func Restart() Action { return func(t Target) error { return t.Restart() } }

// Hang returns the action that calls [Target.Hang].
func Hang() Action { return func(t Target) error { return t.Hang() } }

// Slow returns the action that calls [Target.Slow].
func Slow(factor float64) Action { return func(t Target) error { return t.Slow(factor) } }

// KindFailure is the kind of the [metrics.Event] of [Target.Kill], Restart, Hang and Slow. Its Data holds "action" (kill,
// restart, hang or slow), and "requests" (how many failed with a kill) or "factor".
const KindFailure = "failure"

// KindRequestLost is the kind of the [metrics.Event] of a request that a simulated scheduler has forgotten, as SGLang before
// 0.5.23 can (see sim.EngineConfig.KeepPreempted). Its Data holds "request", the request's ID.
const KindRequestLost = metrics.KindRequestLost

// KindActionNotDone is the kind of the [metrics.Event] that a run has at its end for each scheduled action that was
// still to come. Its Data holds "planned_ns", the time for which it was planned.
const KindActionNotDone = "action_not_done"

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
	previous := w.limit
	w.limit = n
	t.run.core.SetFacts(t.run.now, w.slot(), w.facts())
	t.run.reschedule(w)
	t.run.event(metrics.KindParamUpdate, w, map[string]any{"name": "max_running_requests", "value": n, "previous": previous,
		"mechanism": "pp_max_micro_batch_size of the simulated scheduler"})
	return nil
}

func (t target) Kill() error {
	w := t.w
	if !w.up {
		return fmt.Errorf("fleet: kill: %s is down already", w.Name)
	}
	n := t.run.down(w, "simulated server was killed")
	t.run.event(KindFailure, w, map[string]any{"action": "kill", "requests": n})
	return nil
}

// down takes a worker down, and the requests that it has with it. It returns how many these were.
func (s *run) down(w *worker, why string) (failed int) {
	w.up, w.hung = false, never
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
	t.run.event(KindFailure, w, map[string]any{"action": "restart"})
	return nil
}

func (t target) Hang() error {
	w := t.w
	if !w.up || w.hung != never {
		return fmt.Errorf("fleet: hang: %s is down, or hangs already", w.Name)
	}
	w.hung = t.run.now
	t.run.reschedule(w)
	t.run.event(KindFailure, w, map[string]any{"action": "hang"})
	return nil
}

func (t target) Slow(factor float64) error {
	if !(factor > 0) || math.IsInf(factor, 0) {
		return fmt.Errorf("fleet: slow %s: factor %v: want a finite number above 0", t.w.Name, factor)
	}
	t.w.pace.factor = factor / t.w.Speed
	t.run.event(KindFailure, t.w, map[string]any{"action": "slow", "factor": factor})
	return nil
}

// planned is an action with its time.
type planned struct {
	at     time.Duration
	worker int
	do     Action
}
