package sim

import (
	"cmp"
	"slices"
)

// A retraction is what retract did, as SGLang's log tells of it (scheduler.py, update_running_batch).
type retraction struct {
	gained        int     // free KV tokens
	before, after float64 // new-token ratio
	aborted       *Request
}

// retract takes requests back until the rest has memory for a step (schedule_batch.py, retract_decode): fewest
// produced tokens first, the longest prompt among equals. The batch is left in that order, most produced first.
func (e *Engine) retract() {
	did := &retraction{gained: -e.free, before: e.ratio}
	e.retraction = did
	sign := 0
	if e.cfg.RetractByPriority {
		sign = e.prioritySign()
	}
	slices.SortStableFunc(e.running, func(a, b *Request) int {
		return cmp.Or(sign*cmp.Compare(a.Priority, b.Priority), cmp.Compare(e.producedOf(b), e.producedOf(a)), cmp.Compare(a.InputLen, b.InputLen))
	})
	e.renumber()
	first := true
	for len(e.running) > 1 && (first || !e.decodeFits()) {
		first = false
		n := len(e.running) - 1
		r := e.running[n]
		e.running[n] = nil
		e.running = e.running[:n]
		e.takeBack(r, n)
		e.retracted = append(e.retracted, r)
	}
	if len(e.running) == 1 && !e.decodeFits() {
		r := e.running[0]
		e.running = e.running[:0]
		e.finish(r, outOfMemory)
		did.aborted = r
	}
	did.gained += e.free
	produced, declared := 0, 0
	for _, r := range e.running {
		produced += e.producedOf(r)
		declared += r.MaxNewTokens
	}
	// new_token_ratio_tracker.py, estimate_new_token_ratio_after_retract
	e.ratio = min(1, float64(produced+retractDecodeSteps*len(e.running))/float64(declared+1))
	did.after = e.ratio
	for _, r := range e.retracted {
		e.enqueue(r)
	}
}

// takeBack frees what a request holds, without putting it into the prefix cache, and makes headroom for those that
// remain (schedule_batch.py, release_req).
func (e *Engine) takeBack(r *Request, remain int) {
	e.tell(r)
	e.release(r, false)
	r.retractions++
	if e.cfg.Rules.old() {
		r.filled = 0
	}
	e.evictFor(remain * retractDecodeSteps)
}

// preempt takes running requests back that are worse than r by more than the threshold, the worst and newest first,
// until r fits by the count of reservations, and reports whether it did (schedule_policy.py, preempt_to_schedule).
func (e *Engine) preempt(b *budget, r *Request) bool {
	sign := e.prioritySign()
	var victims []*Request
	for _, x := range e.running {
		if x.phase == phaseRunning {
			victims = append(victims, x)
		}
	}
	slices.SortStableFunc(victims, func(x, y *Request) int {
		return cmp.Or(sign*cmp.Compare(y.Priority, x.Priority), cmp.Compare(y.entry, x.entry))
	})
	lacking := float64(r.filled-r.prefix+min(r.MaxNewTokens, clipMaxNewTokens)) - e.total(b)
	n := 0
	for _, x := range victims {
		if sign*(x.Priority-r.Priority) <= e.cfg.PreemptionThreshold {
			break
		}
		n++
		if lacking -= e.reserved(x); lacking <= 0 {
			break
		}
	}
	if n == 0 || lacking > 0 {
		return false
	}
	victims = victims[:n]
	size := len(e.running)
	for i := 0; i < len(e.running); {
		x := e.running[i]
		if !slices.Contains(victims, x) {
			i++
			continue
		}
		b.total -= e.reserved(x)
		e.running = slices.Delete(e.running, i, i+1)
		size--
		e.takeBack(x, size)
	}
	if e.arrange != nil {
		e.arrange(victims)
	}
	e.preempted = append(e.preempted, victims...)
	return true
}

// lose forgets a preempted request. The old rules do so if nothing was admitted in its place: the memory that it freed is
// counted again after the match, and may then not suffice.
func (e *Engine) lose(r *Request) {
	r.phase = phaseLost
	r.key = nil
	e.live--
	e.lost = append(e.lost, r)
}

// Lost returns the requests that the engine has lost since the last call; see [EngineConfig.KeepPreempted]. They have no end
// and never get an [Output]. The slice is the caller's.
func (e *Engine) Lost() []*Request {
	lost := e.lost
	e.lost = nil
	return lost
}

// RetractAll takes every request back to the queue (/pause_generation with mode retract; scheduler.py,
// pause_generation). All steps must have been completed. One that was to be aborted is so with its next token.
func (e *Engine) RetractAll() {
	var all []*Request
	ended := false // there was something, if only requests that have ended
	for _, r := range e.running {
		if ended = true; r.phase == phaseRunning {
			all = append(all, r)
		}
	}
	if s := e.last; s != nil {
		for i := range s.Rows {
			if row := &s.Rows[i]; row.live() {
				all = append(all, row.Request)
			}
		}
		for _, r := range s.Decode {
			if r.phase == phaseRunning {
				all = append(all, r)
			}
		}
		e.last = nil
		e.recycle(s)
	}
	if e.cfg.Rules == Rules0515 && len(all) == 0 && !ended {
		return // batch_is_full and a chunk that is in no batch stay as they are
	}
	if c := e.chunked; c != nil && !slices.Contains(all, c) {
		all = append(all, c)
	}
	for i, r := range all {
		e.takeBack(r, len(all)-i)
	}
	clear(e.running)
	e.running = e.running[:0]
	for _, r := range all {
		e.enqueue(r)
	}
	e.full, e.chunked = false, nil
}
