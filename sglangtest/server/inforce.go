package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// watchInterval is the time between two looks at the number of running requests.
const watchInterval = 50 * time.Millisecond

// A NotInForceError says that a changed limit had not shown its effect when waiting for it ended.
type NotInForceError struct {
	Name             string
	Value            int
	Looks            int // that were answered
	Running, Waiting int // of all ranks, at the last of them
	Why              string
	Err              error // what ended the wait
}

func (e *NotInForceError) Error() string {
	last := "no look at the server was answered"
	if e.Looks > 0 {
		last = fmt.Sprintf("%d running and %d waiting at the last of %d looks; %s", e.Running, e.Waiting, e.Looks, e.Why)
	}
	return fmt.Sprintf("server: %s %d was not seen in force: %s: %v", e.Name, e.Value, last, e.Err)
}

func (e *NotInForceError) Unwrap() error { return e.Err }

// WaitInForce watches the number of running requests until it obeys the limit that u set, and returns u with InForce and
// NotBefore filled in. A lowered limit is in force when no data-parallel rank runs more than it; a raised one when
// the first rank has admitted a request beyond the old limit, which after a full batch is at the next finish. Where no
// request waits, a raise never shows. The wait ends when ctx does ([NotInForceError]), when the server ends and when the limit
// is changed again.
//
// Call it at once after UpdateParam, in a goroutine of its own if need be: what happened before is only known to lie after
// u.Asked. It asks /v1/loads every 50 ms. Looks that fail make the span from NotBefore to InForce longer. The engine
// renews its answer at each prefill and every few decode steps (--load-snapshot-publish-interval, 15), so a drain can be
// seen that much late; NotBefore allows for it, except on 0.5.15, which does not tell the age of its answer.
func (s *Server) WaitInForce(ctx context.Context, u ParamUpdate) (ParamUpdate, error) {
	s.mu.Lock()
	shared := s.microBatches() > 1
	s.mu.Unlock()
	switch {
	case u.Name != ParamMaxRunningRequests || u.Accepted.IsZero():
		return u, fmt.Errorf("server: %s: wait in force: want an accepted update of %s", s.name, ParamMaxRunningRequests)
	case u.Previous == 0:
		return u, fmt.Errorf("server: %s: wait in force: the limit before is not known, so that a raise cannot be told from a cut", s.name)
	case shared:
		return u, fmt.Errorf("server: %s: wait in force: with pipeline parallelism the limit holds for each micro-batch, whose running requests the server does not tell", s.name)
	case u.Mechanism == "restart" || u.Value == u.Previous:
		u.NotBefore, u.InForce = u.Asked, u.Accepted
		return u, nil
	}
	u.NotBefore = u.Asked
	exited := s.Exited()
	w := watch{update: u, low: slices.Clone(u.Running)}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		start := time.Now()
		loads, err := s.look(ctx)
		var none *noAnswerError
		switch {
		case err == nil:
			if w.obeyed(loads) {
				u.InForce = time.Now()
				return u, nil
			}
			if seen := start.Add(-w.age); seen.After(u.NotBefore) {
				u.NotBefore = seen
			}
		case !errors.As(err, &none):
			return u, err
		}
		select {
		case <-tick.C:
		case <-exited:
			return u, w.gaveUp(&ExitedError{Err: s.Err()})
		case <-ctx.Done():
			return u, w.gaveUp(context.Cause(ctx))
		}
		s.mu.Lock()
		limit := s.limit
		s.mu.Unlock()
		if limit != u.Value {
			return u, w.gaveUp(errors.New("the limit was changed again"))
		}
	}
}

// A watch looks for the moment at which running requests obey a changed limit.
type watch struct {
	update           ParamUpdate
	low              []int // the fewest running requests of each rank so far; nil before the first look if not known
	looks            int
	running, waiting int
	age              time.Duration // of the last look's oldest answer
}

func (w *watch) raised() bool { return w.update.Value > w.update.Previous }

// obeyed takes one look. A raise shows as a rise beyond the old limit: a count that is above it and falls is left over
// from a larger limit before.
func (w *watch) obeyed(loads []Load) bool {
	w.looks++
	w.running, w.waiting, w.age = 0, 0, 0
	rose, within := false, true
	for rank, l := range loads {
		w.running += l.NumRunning
		w.waiting += l.NumWaiting
		w.age = max(w.age, l.Age)
		within = within && l.NumRunning <= w.update.Value
		if rank >= len(w.low) {
			w.low = append(w.low, l.NumRunning)
		}
		rose = rose || l.NumRunning > max(w.update.Previous, w.low[rank])
		w.low[rank] = min(w.low[rank], l.NumRunning)
	}
	if w.raised() {
		return rose
	}
	return within
}

func (w *watch) gaveUp(err error) error {
	why := "the requests beyond it have not finished"
	if w.raised() {
		why = "a full batch admits none before one finishes"
		if w.waiting == 0 {
			why = "no request waited for a place, so the raise could not show"
		}
	}
	return &NotInForceError{Name: w.update.Name, Value: w.update.Value, Looks: w.looks, Running: w.running, Waiting: w.waiting, Why: why, Err: err}
}
