package sim

import (
	"cmp"
	"slices"
)

// verdict is what admission says after a candidate (schedule_policy.py, AddReqResult).
type verdict uint8

const (
	goOn    verdict = iota // CONTINUE
	stop                   // OTHER: a budget of this batch is spent
	noToken                // NO_TOKEN: memory would not suffice
)

// budget is what is left for a prefill batch (schedule_policy.py, PrefillAdder; prefill_budget.py). The memory terms
// are what is set aside: what there is changes as prefixes are locked and requests preempted.
type budget struct {
	total    float64 // set aside of all memory, by running and chosen requests for all they are expected to need
	cur      int     // set aside for this step
	input    int
	chunk    int
	chunking bool

	step  *Step
	exact bool // Engine.states is built
}

func (e *Engine) total(b *budget) float64 { return float64(e.room()) - b.total }

func (e *Engine) verdict(b *budget) verdict {
	if e.total(b) <= 0 || e.room()-b.cur <= 0 {
		return noToken
	}
	if b.input <= 0 || b.chunking && b.chunk <= 0 {
		return stop
	}
	return goOn
}

// planPrefill follows scheduler.py, _get_new_batch_prefill_raw.
func (e *Engine) planPrefill() *Step {
	preempting := e.cfg.EnablePriorityScheduling && !e.cfg.DisablePriorityPreemption
	if preempting || len(e.running) == 0 && !e.cfg.Rules.old() {
		e.full = false
	}
	if (e.full || e.waiting.len() == 0) && e.chunked == nil {
		return nil
	}
	if e.allocatable() <= 0 && e.chunked == nil && !preempting {
		e.full = true
		return nil
	}
	e.order()

	b := budget{input: e.cfg.MaxPrefillTokens, chunk: e.cfg.ChunkedPrefillSize, chunking: e.cfg.ChunkedPrefillSize > 0,
		step: e.newStep(PrefillStep)}
	for _, r := range e.running {
		b.total += e.reserved(r)
	}
	if e.cfg.EnableMixedChunk {
		n := len(e.running)
		b.total += float64(n)
		b.cur, b.input, b.chunk = n, b.input-n, b.chunk-n
	}
	if c := e.chunked; c != nil {
		e.continueChunk(&b, c)
	}
	taken := 0
	for _, r := range e.waiting.all() {
		if !e.cfg.Rules.old() && e.verdict(&b) == stop {
			break
		}
		if float64(len(b.step.Rows)) >= e.allocatable() {
			e.full = true
		}
		if e.full && !(preempting && e.preempt(&b, r)) {
			break
		}
		chosen := len(b.step.Rows)
		v := e.admit(&b, r)
		if len(b.step.Rows) > chosen {
			taken++
		}
		if v == noToken {
			e.full = e.cfg.Rules.old() || len(e.running) > 0 || len(b.step.Rows) > 0
		}
		if v != goOn {
			break
		}
	}
	e.waiting.drop(taken)
	s := b.step
	for _, r := range e.preempted {
		if len(s.Rows) == 0 && e.cfg.Rules.old() && !e.cfg.KeepPreempted {
			e.lose(r)
		} else {
			e.enqueue(r)
		}
	}
	if len(s.Rows) == 0 {
		e.recycle(s)
		return nil
	}
	if !e.allocate(s) {
		return nil
	}
	if e.cfg.EnableMixedChunk && len(e.running) > 0 {
		e.mix(s)
	}
	if e.err != nil {
		return nil
	}
	return s
}

// allocatable is get_num_allocatable_reqs. The old rules also count the free rows of the request table, of which a
// continuing chunk holds one although it is chosen already; the new ones give it that back, and then the rows are never
// fewer.
func (e *Engine) allocatable() float64 {
	n := e.limit - float64(len(e.running))
	if e.cfg.Rules.old() {
		n = min(n, float64(e.cfg.MaxRunningRequests-e.rows))
	}
	return n
}

// continueChunk is add_chunked_req: the request in the middle of its prompt always goes on.
func (e *Engine) continueChunk(b *budget, c *Request) {
	c.filled = c.InputLen + c.produced
	n := min(b.chunk, int(e.total(b)))
	if n <= 0 {
		n = b.chunk
	}
	if limit := e.chunkLimit(c, b.chunk); limit > 0 {
		n = min(n, limit)
	}
	rest := c.filled - c.prefix
	if n < rest {
		e.choose(b, c, n, 0, true)
		return
	}
	e.chunked = nil
	e.choose(b, c, rest, min(c.MaxNewTokens, clipMaxNewTokens), false)
}

// reserved is the memory that a running request is expected to need yet. The new rules know that a request with
// ignore_eos takes all it has declared.
func (e *Engine) reserved(r *Request) float64 {
	left := float64(min(r.MaxNewTokens-e.producedOf(r), clipMaxNewTokens))
	if r.IgnoreEOS && !e.cfg.Rules.old() {
		return left
	}
	return left * e.ratio
}

// admit matches a candidate with the prefix cache and adds it to the batch if it fits (init_next_round_input,
// add_one_req).
func (e *Engine) admit(b *budget, r *Request) verdict {
	r.filled = r.InputLen + r.produced
	r.prefix = 0
	if e.tree != nil {
		r.match, r.prefix = e.tree.match(e.keyOf(r, r.filled-1), r.filled-1)
		r.matched = r.prefix
	}
	if most := e.cfg.PrefillMaxRequests; most > 0 && len(b.step.Rows) >= most {
		return stop
	}
	if r.IgnoreEOS && e.tree == nil {
		return e.admitExact(b, r)
	}
	if e.tree == nil {
		return e.admitEstimated(b, r)
	}
	e.tree.lock(r.match) // what it matches can no longer be evicted for it
	n := len(b.step.Rows)
	v := e.admitEstimated(b, r)
	if len(b.step.Rows) == n {
		e.tree.unlock(r.match)
	}
	return v
}

func (e *Engine) admitEstimated(b *budget, r *Request) verdict {
	page := e.cfg.PageSize
	extend := r.filled - r.prefix
	need := extend + min(max(r.MaxNewTokens-r.produced, 0), clipMaxNewTokens) + page
	if float64(need) >= e.total(b) {
		return noToken
	}
	if !b.chunking && len(b.step.Rows) > 0 && e.ceil(extend) >= b.input {
		return stop
	}
	if !b.chunking || e.ceil(extend) <= b.chunk {
		e.choose(b, r, extend, min(r.MaxNewTokens, clipMaxNewTokens), false)
		return e.verdict(b)
	}
	if e.chunked != nil && e.cfg.SchedulePolicy == ShortestPrefillFirst {
		return stop // only one unfinished chunk can be kept track of
	}
	extend = b.chunk / page * page
	extend = (r.prefix+extend)/page*page - r.prefix
	if extend <= 0 {
		return stop
	}
	e.choose(b, r, extend, 0, true)
	return e.verdict(b)
}

// choose puts n more tokens of r's prompt into the step and charges them (_update_prefill_budget).
func (e *Engine) choose(b *budget, r *Request, n, reserve int, chunk bool) {
	s := b.step
	s.Rows = append(s.Rows, Row{Request: r, Prefix: r.prefix, Extend: n, Last: !chunk, epoch: r.epoch})
	s.Shape.Extends = append(s.Shape.Extends, Extend{New: n, Context: r.prefix})
	s.extend += n
	if chunk {
		// A second new chunk takes the place of the first, which SGLang then treats as a prompt that has been computed to
		// its end. It takes a chunk that left less than a page of the budget (decodes that ride along), and no cache.
		if i := len(s.Rows) - 2; i >= 0 && s.Rows[i].Request == e.chunked {
			s.Rows[i].Last = true
		}
		e.chunked = r
	}
	r.phase = phaseRunning
	paged := e.ceil(n)
	b.total += float64(paged + e.cfg.PageSize + reserve)
	b.cur += paged + e.cfg.PageSize
	b.input -= paged
	b.chunk -= paged
}

// allocate takes the memory of a prefill batch (allocation.py, alloc_for_extend). It reports false if there is not enough,
// of which the scheduler dies: a continuing chunk is chosen whatever there is.
func (e *Engine) allocate(s *Step) bool {
	page := e.cfg.PageSize
	need := s.extend
	if page > 1 {
		need += page * len(s.Rows)
	}
	e.evictFor(need)
	tokens := 0
	for i := range s.Rows {
		row := &s.Rows[i]
		tokens += e.ceil(row.Prefix+row.Extend) - e.ceil(row.Prefix)
	}
	if tokens > e.free {
		e.err = &OutOfMemoryError{PrefillStep, page > 1, s.extend, e.free}
		return false
	}
	for i := range s.Rows {
		row := &s.Rows[i]
		r := row.Request
		if !r.admitted {
			r.admitted = true
			e.rows++
			if r.retractions == 0 {
				r.cached = row.Prefix
			}
			r.locked, r.protected = r.match, row.Prefix
			if e.tree == nil {
				r.locked = nil
			}
			r.match = nil
		}
		e.free -= e.ceil(row.Prefix+row.Extend) - e.ceil(row.Prefix)
		r.computed = row.Prefix + row.Extend
		r.flying = row.Last
	}
	return true
}

// mix lets the running requests decode in a prefill batch (mix_with_running). The new rules leave those out that end
// with the result under way, and all if the prompts have left no room.
func (e *Engine) mix(s *Step) {
	e.filter()
	if e.leaveOut() && !e.cfg.Rules.old() {
		e.full = false
	}
	if len(e.running) == 0 || !e.cfg.Rules.old() && !e.decodeFits() {
		return
	}
	s.Kind = MixedStep
	for _, r := range e.running {
		s.Shape.Extends = append(s.Shape.Extends, Extend{New: 1, Context: e.computedOf(r)})
	}
	if !e.decode(s) {
		return
	}
	s.extend += len(e.running)
	clear(e.running)
	e.running = e.running[:0]
}

// reservation is what one request holds and has left to produce.
type reservation struct {
	left float64
	held int
}

// admitExact is schedule_policy.py, add_one_req_ignore_eos: with the output lengths known and no cache, it
// simulates the batch to its end. The insertion keeps an oddity of the original: a request with more left than
// all others goes before the last of them.
func (e *Engine) admitExact(b *budget, r *Request) verdict {
	extend := r.filled
	paged := e.ceil(extend)
	if e.cfg.Rules < Rules0518 {
		paged += e.cfg.PageSize
	}
	if float64(paged) > min(float64(e.room()-b.cur), e.total(b)) {
		return noToken
	}
	state := func(r *Request) reservation {
		ratio := e.ratio
		if r.IgnoreEOS {
			ratio = 1
		}
		produced := e.producedOf(r)
		return reservation{float64(r.MaxNewTokens)*ratio - float64(produced), r.InputLen + produced}
	}
	if !b.exact {
		b.exact = true
		e.states = e.states[:0]
		add := func(r *Request) {
			if st := state(r); st.left > 0 {
				e.states = append(e.states, st)
			}
		}
		add(r)
		for _, x := range e.running {
			add(x)
		}
		for i := range b.step.Rows {
			add(b.step.Rows[i].Request)
		}
		slices.SortStableFunc(e.states, func(a, b reservation) int { return cmp.Compare(a.left, b.left) })
	} else if st := state(r); st.left > 0 {
		i := 0
		for i < len(e.states)-1 && st.left > e.states[i].left {
			i++
		}
		e.states = append(e.states, reservation{})
		copy(e.states[i+1:], e.states[i:])
		e.states[i] = st
	}
	cur := float64(e.room() - b.cur - paged)
	for i, st := range e.states {
		n := float64(len(e.states) - i)
		if cur-st.left*n <= n {
			return noToken
		}
		cur += float64(st.held)
	}
	if !b.chunking || extend <= b.chunk {
		e.choose(b, r, extend, min(r.MaxNewTokens, clipMaxNewTokens), false)
		return e.verdict(b)
	}
	if b.chunk <= 0 {
		return stop
	}
	e.choose(b, r, b.chunk, 0, true)
	return e.verdict(b)
}
