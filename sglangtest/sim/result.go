package sim

import (
	"cmp"
	"slices"
)

// Complete processes the result of a step: tokens, finishes, freed memory, and what enters the prefix cache
// (batch_result_processor.py). Steps must be completed in the order in which they were planned. The step must not be
// used afterwards.
func (e *Engine) Complete(s *Step) {
	for i := range s.Rows {
		if row := &s.Rows[i]; row.live() { // not retracted or ended since
			e.completeRow(row)
		}
	}
	if s.decode > 0 {
		e.completeDecode(s)
	} else if len(e.aborts) > 0 {
		e.aborts = slices.DeleteFunc(e.aborts, func(r *Request) bool { return r.phase == phaseFinished })
	}
	if s != e.last { // a prefill that is still to be merged is recycled then
		e.recycle(s)
	} else {
		s.completed = true
	}
}

func (e *Engine) completeRow(row *Row) {
	r := row.Request
	if !row.Last {
		return
	}
	r.flying = false
	r.produced++
	out := Output{Request: r, Tokens: 1}
	switch {
	case r.abort != nil:
		out.Finish = r.abort
		if r.abort.Status != 0 { // refused for its length
			out.Tokens = 0
		}
	case r.produced >= r.target():
		out.Finish = e.finishOf(r, r.produced)
		if r.MaxNewTokens == 0 {
			out.Tokens = 0
		}
	}
	if out.Finish != nil {
		e.end(r, true)
		if out.Tokens == 0 {
			r.produced--
		}
	} else {
		e.checkpoint(r, row.Prefix+row.Extend, false)
	}
	r.told = r.produced
	e.outputs = append(e.outputs, out)
}

// completeDecode gives every request of the step that is still in lockstep its token. Which ones end with it is
// known, aborts aside.
func (e *Engine) completeDecode(s *Step) {
	ending := e.dueBy(s.decode)
	if len(e.aborts) > 0 {
		for _, r := range e.aborts {
			if !slices.Contains(ending, r) {
				ending = append(ending, r)
			}
		}
		slices.SortFunc(ending, func(a, b *Request) int { return cmp.Compare(a.place, b.place) })
	}
	e.done = s.decode
	takes := func(r *Request) bool { return (r.lockstep || r.leaving) && r.base < s.decode }
	ended := 0
	for _, r := range ending {
		if takes(r) && (r.abort != nil || e.producedOf(r) >= r.target()) {
			r.ending = true
			ended++
		}
	}
	if e.cfg.QuietDecode {
		for _, r := range ending {
			if r.ending {
				e.endDecode(r)
			}
		}
	} else {
		for _, r := range s.Decode {
			if !takes(r) {
				continue
			}
			if r.ending {
				e.endDecode(r)
			} else {
				e.outputs = append(e.outputs, Output{Request: r, Tokens: 1, Decode: s.decode})
			}
		}
	}
	clear(e.due)
	e.due = e.due[:0]
	if len(e.aborts) > 0 {
		e.aborts = slices.DeleteFunc(e.aborts, func(r *Request) bool { return r.phase == phaseFinished })
	}
}

func (e *Engine) endDecode(r *Request) {
	r.ending = false
	produced := e.producedOf(r)
	f := r.abort
	if f == nil {
		f = e.finishOf(r, produced)
	}
	if r.leaving {
		r.produced, r.base = produced, e.done
	}
	e.end(r, true)
	n := 1
	if e.cfg.QuietDecode {
		n = r.produced - r.told
	}
	e.outputs = append(e.outputs, Output{Request: r, Tokens: n, Decode: e.done, Finish: f})
}

// finishOf says how a request ends that has all its tokens (update_finish_state). A stop on the last token allowed counts
// as one, except with the rules of 0.5.15, which look at the length first.
func (e *Engine) finishOf(r *Request, produced int) *Finish {
	if byLength := produced >= r.MaxNewTokens; byLength && (e.cfg.Rules == Rules0515 || r.StopAfter != produced) {
		return finishedByLength
	}
	return finishedByStop
}

// end takes r out of the engine; keep puts what was computed into the prefix cache.
func (e *Engine) end(r *Request, keep bool) {
	if r.phase == phaseRunning && !r.leaving {
		e.stale = true
	}
	e.release(r, keep)
	r.phase = phaseFinished
	r.key, r.match = nil, nil
	e.live--
}

func (e *Engine) finish(r *Request, f *Finish) {
	e.tell(r)
	e.end(r, false)
	e.outputs = append(e.outputs, Output{Request: r, Finish: f})
}

// tell gives out the tokens that QuietDecode has kept back, before r leaves the running batch unfinished.
func (e *Engine) tell(r *Request) {
	if n := e.producedOf(r) - r.told; e.cfg.QuietDecode && n > 0 {
		e.outputs = append(e.outputs, Output{Request: r, Tokens: n, Decode: e.done})
		r.told += n
	}
}

// checkpoint puts the first n tokens of r, all computed, into the prefix cache, in whole pages, and locks them there
// (checkpoint, formerly cache_unfinished_req). What was there before is freed: r's own copy is a duplicate.
func (e *Engine) checkpoint(r *Request, n int, chunk bool) {
	r.prefix = n
	if e.tree == nil {
		return
	}
	counted := r.inserted
	if e.cfg.Rules.old() {
		counted = 0
		if chunk {
			counted = n
		}
	}
	last := e.insert(r, n, counted, !e.cfg.Rules.old())
	if r.locked != nil {
		e.tree.unlock(r.locked)
	}
	e.tree.lock(last)
	r.locked = last
}

// insert gives the first n tokens of r, in whole pages, to the tree. Nodes within the first counted tokens get no hit: from
// 0.5.23 on those that the request has inserted before, with the old rules all of a chunk that is not the last, and none of
// what comes later. With apart, the answer is a node apart from the prompt, which can outlive it.
func (e *Engine) insert(r *Request, n, counted int, apart bool) *node {
	n = e.tree.floor(n)
	key := e.keyOf(r, n)
	last, had := e.tree.insert(key, n, r.Priority, counted)
	r.inserted = max(r.inserted, n)
	if had > r.protected {
		e.free += had - r.protected
	}
	r.protected = n
	if prompt := e.tree.floor(r.InputLen); apart && prompt > 0 && prompt < n {
		// The prompt may end inside the last node: the lock has to stay at the whole key's end, which a split
		// keeps, since it puts the new node above.
		e.tree.insert(r.key, prompt, r.Priority+1, prompt)
	}
	return last
}

// release gives the request's memory back and voids what was planned for it (common.py, release_kv_cache).
func (e *Engine) release(r *Request, keep bool) {
	e.part(r)
	r.leaving = false
	if e.tree != nil && keep && r.computed > 0 {
		counted := r.inserted
		if e.cfg.Rules.old() {
			counted = 0
		}
		e.insert(r, min(r.computed, r.InputLen+r.produced), counted, e.cfg.Rules <= Rules0521)
	}
	e.free += e.ceil(r.computed) - r.protected
	if r.locked != nil {
		e.tree.unlock(r.locked)
		r.locked = nil
	}
	r.computed, r.protected, r.inserted, r.prefix, r.matched = 0, 0, 0, 0, 0
	r.match = nil
	if r.admitted {
		e.rows--
	}
	r.flying, r.admitted = false, false
	r.epoch++
}
