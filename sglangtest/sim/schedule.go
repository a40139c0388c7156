package sim

import "sort"

// Plan decides the next batch, or returns nil if there is none to run now (scheduler.py, get_next_batch_to_run).
// With SGLang's overlap loop a batch is planned before the result of the one before it has been processed.
func (e *Engine) Plan() *Step {
	if c := e.chunked; c != nil && c.abort != nil {
		e.chunked = nil
		e.finish(c, abortedQueued)
	}
	e.merge()
	s := e.planPrefill()
	if s != nil {
		e.last = s // merged into the running batch by the next call
		return s
	}
	return e.planDecode()
}

// merge moves the last prefill batch into the running batch and drops what has finished. A batch that shrinks loses
// its full mark; one that takes the place of an empty batch brings its own, unset one.
func (e *Engine) merge() {
	if s := e.last; s != nil {
		e.last = nil
		if len(e.running) == 0 {
			e.full = false
		}
		for i := range s.Rows {
			row := &s.Rows[i]
			if !row.live() || row.Request == e.chunked {
				e.full = false
				continue
			}
			e.running = append(e.running, row.Request)
		}
		if s.completed {
			e.recycle(s)
		}
	}
	if e.stale {
		e.stale = false
		if e.keep(func(r *Request) bool { return r.phase != phaseFinished }) {
			e.full = false
		}
	}
}

// keep filters the running batch and reports whether it shrank.
func (e *Engine) keep(ok func(*Request) bool) bool {
	kept := e.running[:0]
	for _, r := range e.running {
		if ok(r) {
			kept = append(kept, r)
		}
	}
	shrank := len(kept) < len(e.running)
	clear(e.running[len(kept):])
	e.running = kept
	return shrank
}

// verdict is what admission says after a candidate (schedule_policy.py, AddReqResult).
type verdict uint8

const (
	goOn    verdict = iota // CONTINUE
	stop                   // OTHER: a budget of this batch is spent
	noToken                // NO_TOKEN: memory would not suffice
)

// budget is what is left for a prefill batch (schedule_policy.py, PrefillAdder; prefill_budget.py).
type budget struct {
	total    float64 // memory, less what running and chosen requests are expected to need
	cur      int     // memory now
	input    int
	chunk    int
	chunking bool

	step     *Step
	admitted bool // states is built
}

func (b *budget) charge(extend, reserve int) {
	b.total -= float64(extend + reserve + pageSize)
	b.cur -= extend + pageSize
	b.input -= extend
	b.chunk -= extend
}

func (b *budget) verdict() verdict {
	if b.total <= 0 || b.cur <= 0 {
		return noToken
	}
	if b.input <= 0 || b.chunking && b.chunk <= 0 {
		return stop
	}
	return goOn
}

// planPrefill follows scheduler.py, _get_new_batch_prefill_raw.
func (e *Engine) planPrefill() *Step {
	if len(e.running) == 0 {
		e.full = false
	}
	if (e.full || e.waiting.len() == 0) && e.chunked == nil {
		return nil
	}
	allocatable := e.limit - float64(len(e.running))
	if allocatable <= 0 && e.chunked == nil {
		e.full = true
		return nil
	}
	b := budget{total: float64(e.free), cur: e.free, input: e.cfg.MaxPrefillTokens,
		chunk: e.cfg.ChunkedPrefillSize, chunking: e.cfg.ChunkedPrefillSize > 0, step: e.newStep(PrefillStep)}
	for _, r := range e.running {
		b.total -= e.reserved(r)
	}

	if c := e.chunked; c != nil {
		e.chunked = nil
		rest := c.InputLen + c.produced - c.computed
		n := min(b.chunk, int(b.total))
		if n <= 0 {
			n = b.chunk
		}
		n = min(n, rest)
		reserve := 0
		if n == rest {
			reserve = min(c.MaxNewTokens, clipMaxNewTokens)
		} else {
			e.chunked = c
		}
		e.choose(&b, c, n)
		b.charge(n, reserve)
	}
	taken := 0
	for _, r := range e.waiting.all() {
		if b.input <= 0 || b.chunking && b.chunk <= 0 {
			break
		}
		if float64(len(b.step.Rows)) >= allocatable {
			e.full = true
			break
		}
		chosen := len(b.step.Rows)
		v := e.admit(&b, r)
		if len(b.step.Rows) > chosen {
			taken++
		}
		if v == noToken && (len(e.running) > 0 || len(b.step.Rows) > 0) {
			e.full = true
		}
		if v != goOn {
			break
		}
	}
	e.waiting.drop(taken)
	if len(b.step.Rows) == 0 {
		e.recycle(b.step)
		return nil
	}
	return b.step
}

// reserved is the memory that a running request is expected to need yet.
func (e *Engine) reserved(r *Request) float64 {
	left := float64(min(r.MaxNewTokens-r.produced, clipMaxNewTokens))
	if r.IgnoreEOS {
		return left
	}
	return left * e.ratio
}

// admit is schedule_policy.py, add_one_req.
func (e *Engine) admit(b *budget, r *Request) verdict {
	if r.IgnoreEOS && e.cfg.DisableRadixCache {
		return e.admitExact(b, r)
	}
	extend := r.InputLen + r.produced
	need := extend + min(max(r.MaxNewTokens-r.produced, 0), clipMaxNewTokens) + pageSize
	if float64(need) >= b.total {
		return noToken
	}
	if !b.chunking && len(b.step.Rows) > 0 && extend >= b.input {
		return stop
	}
	return e.take(b, r, extend)
}

func (e *Engine) take(b *budget, r *Request, extend int) verdict {
	reserve := min(r.MaxNewTokens, clipMaxNewTokens)
	if b.chunking && extend > b.chunk {
		extend, reserve = b.chunk, 0
		if extend <= 0 {
			return stop
		}
		e.chunked = r
	}
	e.choose(b, r, extend)
	b.charge(extend, reserve)
	return b.verdict()
}

// choose puts n more tokens of r's prompt into the step and allocates their memory.
func (e *Engine) choose(b *budget, r *Request, n int) {
	last := r.computed+n == r.InputLen+r.produced
	s := b.step
	s.Rows = append(s.Rows, Row{Request: r, Prefix: r.computed, Extend: n, Last: last, epoch: r.epoch})
	s.Shape.Extends = append(s.Shape.Extends, Extend{New: n, Context: r.computed})
	r.phase = phaseRunning
	r.computed += n
	e.free -= n
	if last {
		r.flying++
	}
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
	extend := r.InputLen + r.produced
	if extend+pageSize > min(b.cur, int(b.total)) {
		return noToken
	}
	state := func(r *Request) reservation {
		ratio := e.ratio
		if r.IgnoreEOS {
			ratio = 1
		}
		return reservation{float64(r.MaxNewTokens)*ratio - float64(r.produced), r.InputLen + r.produced}
	}
	if !b.admitted {
		b.admitted = true
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
		sort.SliceStable(e.states, func(i, j int) bool { return e.states[i].left < e.states[j].left })
	} else if st := state(r); st.left > 0 {
		i := 0
		for i < len(e.states)-1 && st.left > e.states[i].left {
			i++
		}
		e.states = append(e.states, reservation{})
		copy(e.states[i+1:], e.states[i:])
		e.states[i] = st
	}
	cur := float64(b.cur - extend - pageSize)
	for i, st := range e.states {
		n := float64(len(e.states) - i)
		if cur-st.left*n <= n {
			return noToken
		}
		cur += float64(st.held)
	}
	return e.take(b, r, extend)
}

// planDecode is scheduler.py, update_running_batch.
func (e *Engine) planDecode() *Step {
	if len(e.running) == 0 {
		return nil
	}
	before := len(e.running)
	// A request whose last token is under way by its length is left out (0.5.23, _reqs_finishing_inflight).
	// A stop cannot be foreseen and costs a step whose token is dropped.
	finishing := e.keep(func(r *Request) bool { return r.flying == 0 || r.produced+1 < r.MaxNewTokens })
	if finishing {
		e.full = false
	}
	if len(e.running) == 0 {
		return nil
	}
	if e.free < len(e.running) {
		if finishing {
			return nil // a result under way frees memory
		}
		e.retract()
		if len(e.running) < before {
			e.full = false
		}
		if len(e.running) == 0 {
			return nil
		}
	} else {
		e.ratio = max(e.ratio-e.decayBy, e.minRatio)
	}
	s := e.newStep(DecodeStep)
	context := 0
	for _, r := range e.running {
		s.Rows = append(s.Rows, Row{Request: r, Prefix: r.computed, Extend: 1, Last: true, epoch: r.epoch})
		r.computed++
		r.flying++
		context += r.computed
	}
	e.free -= len(e.running)
	s.Shape.Decodes, s.Shape.Context = len(e.running), context
	return s
}

// retract takes requests back until the rest has memory for a step (schedule_batch.py, retract_decode): fewest
// produced tokens first, the longest prompt among equals. The batch is left in that order, most produced first.
func (e *Engine) retract() {
	sort.SliceStable(e.running, func(i, j int) bool {
		a, b := e.running[i], e.running[j]
		if a.produced != b.produced {
			return a.produced > b.produced
		}
		return a.InputLen < b.InputLen
	})
	first := len(e.running)
	for n := first; n > 1 && (n == first || e.free < n); {
		n--
		r := e.running[n]
		e.running[n] = nil
		e.running = e.running[:n]
		e.release(r)
		r.retractions++
		e.enqueue(r)
	}
	if e.free < len(e.running) {
		e.finish(e.running[0], outOfMemory)
		e.running = e.running[:0]
	}
	produced, declared := 0, 0
	for _, r := range e.running {
		produced += r.produced
		declared += r.MaxNewTokens
	}
	e.ratio = min(1, float64(produced+retractDecodeSteps*len(e.running))/float64(declared+1))
}
