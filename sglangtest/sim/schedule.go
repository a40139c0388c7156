package sim

// Plan decides the next batch, or returns nil if there is none to run now (scheduler.py, get_next_batch_to_run).
// With SGLang's overlap loop a batch is planned before the result of the one before it has been processed.
func (e *Engine) Plan() *Step {
	if e.err != nil {
		return nil
	}
	before := e.mark()
	s := e.plan()
	e.note(before, s)
	if e.err != nil {
		e.settled = true
		return nil
	}
	return s
}

// Settled reports whether the last Plan found nothing to run and changed nothing, so that another would find nothing
// either until something is added, aborted, completed or set. An engine that is not settled must be asked again, as
// SGLang's loop does it: a batch that was full, requests that have ended and passes that were to try no prefill
// (PrefillDecodeInterval) take a pass each.
func (e *Engine) Settled() bool { return e.settled }

// A mark is what a Plan that returns nil can change of what the next one finds.
type mark struct {
	full                     bool
	deferred, running, queue int
	chunked                  *Request
	free, cached             int
}

func (e *Engine) mark() mark {
	m := mark{e.full, e.deferred, len(e.running), e.waiting.len(), e.chunked, e.free, 0}
	if e.tree != nil {
		m.cached = e.tree.evictable
	}
	return m
}

// note finds out whether the engine has settled. With the policy random another request may stand first in the next pass,
// so all have to have stood there.
func (e *Engine) note(before mark, s *Step) {
	if s != nil || e.mark() != before {
		e.stir()
		return
	}
	e.settled = true
	if e.cfg.SchedulePolicy == Random && !e.full && e.waiting.len() > 0 {
		if r := e.waiting.all()[0]; r.headed != e.stuck {
			r.headed = e.stuck
			e.heads++
		}
		e.settled = e.heads == e.waiting.len()
	}
}

func (e *Engine) plan() *Step {
	e.retracted, e.preempted, e.retraction = e.retracted[:0], e.preempted[:0], nil
	if c := e.chunkAbort; c != nil { // process_pending_chunked_abort
		e.chunkAbort = nil
		if c == e.chunked {
			e.chunked = nil
			e.finish(c, abortedQueued)
		}
	}
	if c := e.chunked; c != nil && c.computed > c.prefix { // stash_chunked_request
		e.checkpoint(c, c.computed, true)
	}
	e.merge()
	var s *Step
	if !e.deferPrefill() {
		s = e.planPrefill()
	}
	if s != nil {
		e.last = s // merged into the running batch by the next call
		e.deferred = e.cfg.PrefillDecodeInterval
	} else {
		s = e.planDecode()
	}
	if s != nil {
		e.processed += int64(s.extend)
	}
	return s
}

// Retracted returns the requests that the last Plan took back for want of memory, in order. The slice is valid until
// the next Plan.
func (e *Engine) Retracted() []*Request { return e.retracted }

// Preempted returns the requests that the last Plan took back to make room for one of higher priority. The slice is
// valid until the next Plan.
func (e *Engine) Preempted() []*Request { return e.preempted }

// merge moves the last prefill batch into the running batch. A batch that shrinks loses its full mark; one that takes
// the place of an empty batch brings its own, unset one.
func (e *Engine) merge() {
	if s := e.last; s != nil {
		e.last = nil
		mixed := s.Kind == MixedStep
		riders := s.Decode
		empty := len(e.running) == 0
		joined := 0
		for i := range s.Rows {
			row := &s.Rows[i]
			if !row.live() || row.Request == e.chunked {
				e.full = false
				continue
			}
			e.join(row.Request)
			joined++
		}
		if mixed { // the riders come after the prompts
			for _, r := range riders {
				if r.phase == phaseRunning && r.lockstep && r.base < s.decode {
					e.running = append(e.running, r)
					joined++
				} else {
					e.full = false
				}
			}
			e.renumber()
		}
		if empty {
			e.full = false
			if joined > 0 {
				e.leftover = s.extend
			}
		}
		if s.completed {
			e.recycle(s)
		}
	}
	// With the old rules finished requests keep their place until the next decode step.
	if !e.cfg.Rules.old() && e.filter() {
		e.full = false
	}
}

// filter drops the finished requests of the running batch and reports whether there were any.
func (e *Engine) filter() bool {
	if !e.stale {
		return false
	}
	e.stale = false
	kept := e.running[:0]
	for _, r := range e.running {
		if r.phase == phaseRunning {
			kept = append(kept, r)
		}
	}
	shrank := len(kept) < len(e.running)
	clear(e.running[len(kept):])
	e.running = kept
	return shrank
}

// leaveOut takes the requests out of the running batch whose last token is under way by their length, and reports
// whether there were any (0.5.23, _reqs_finishing_inflight). A stop cannot be foreseen and costs a step whose token is
// dropped; with the old rules so does a finish by length.
func (e *Engine) leaveOut() (any bool) {
	out := func(r *Request) {
		e.leave(r)
		e.unrun(r)
		any = true
	}
	for _, r := range e.short { // their last token comes with a prefill
		if r.flying && r.lockstep && (!e.cfg.Rules.old() || r.MaxNewTokens == 0) {
			out(r)
		}
	}
	clear(e.short)
	e.short = e.short[:0]
	if e.planned > e.done && !e.cfg.Rules.old() {
		for _, r := range e.dueBy(e.planned) {
			if r.lockstep && r.target() == r.MaxNewTokens {
				out(r)
			}
		}
	}
	return any
}

// deferPrefill is _should_defer_prefill.
func (e *Engine) deferPrefill() bool {
	if e.deferred == 0 {
		return false
	}
	if len(e.running) < e.cfg.PrefillDecodeIntervalMinBS {
		e.deferred = 0
		return false
	}
	e.deferred--
	return true
}

// planDecode is scheduler.py, update_running_batch.
func (e *Engine) planDecode() *Step {
	before := len(e.running)
	if before == 0 {
		return nil
	}
	e.filter()
	finishing := e.leaveOut()
	if len(e.running) == 0 {
		e.full = false
		return nil
	}
	if !e.decodeFits() {
		if finishing && !e.cfg.Rules.old() { // a result under way frees memory
			e.full = false
			return nil
		}
		e.retract()
	} else {
		e.ratio = max(e.ratio-e.decayBy, e.minRatio)
	}
	if len(e.running) < before {
		e.full = false
	}
	if len(e.running) == 0 {
		return nil
	}
	s := e.newStep(DecodeStep)
	e.decode(s)
	s.Shape.Decodes, s.Shape.Context = e.count, e.context
	s.extend = e.leftover
	return s
}

// decodeFits makes room for a token of every running request and reports whether there is enough (check_decode_mem).
func (e *Engine) decodeFits() bool {
	need := e.crossing() * e.cfg.PageSize
	e.evictFor(need)
	return e.free >= need
}

// decode makes all requests in lockstep decode a token in step s (alloc_for_decode). It reports false if there is not enough
// memory, of which the scheduler dies: the old rules do not look before they let decodes ride in a prefill.
func (e *Engine) decode(s *Step) bool {
	e.evictFor(e.count * e.cfg.PageSize)
	need := e.crossing() * e.cfg.PageSize
	if need > e.free {
		e.err = &OutOfMemoryError{DecodeStep, e.cfg.PageSize > 1, e.count, e.free}
		return false
	}
	e.free -= need
	e.planned++
	e.context += e.count
	s.decode = e.planned
	s.Decode = append(s.Decode, e.running...)
	return true
}

// evictFor drops cached tokens until n are free, if there are enough. 0.5.15 drops as many as are needed in all, later
// versions as many as are lacking (common.py, evict_from_tree_cache).
func (e *Engine) evictFor(n int) {
	if e.free >= n || e.tree == nil {
		return
	}
	if e.cfg.Rules != Rules0515 {
		n -= e.free
	}
	if freed := e.tree.evict(n); freed > 0 {
		e.free += freed
		e.evictions++
		e.evicted += freed
	}
}
