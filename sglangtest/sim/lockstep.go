package sim

import (
	"cmp"
	"slices"
)

// All requests that decode advance together: each decode step computes one token of every one of them. So the engine
// counts steps, not tokens. planned is the number of decode steps planned and done that of those whose results were
// processed, at most one less. A request in lockstep holds its numbers as of the step after which it joined; the
// step that brings its last token is known then, and a heap finds it. A decode step that ends nothing costs the same
// for any batch.
type lockstep struct {
	planned, done int64
	count         int      // requests in lockstep
	context       int      // their computed tokens, as of planned
	phases        []int    // how many of them have (computed - planned) mod page equal to the index
	ends          []ending // heap by step
	place         int64
}

type ending struct {
	step    int64
	request *Request
	epoch   uint32
}

func (e *Engine) computedOf(r *Request) int {
	if r.lockstep {
		return r.computed + int(e.planned-r.base)
	}
	return r.computed
}

func (e *Engine) producedOf(r *Request) int {
	if (r.lockstep || r.leaving) && e.done > r.base {
		return r.produced + int(e.done-r.base)
	}
	return r.produced
}

// target is the number of output tokens that ends r.
func (r *Request) target() int {
	if r.StopAfter > 0 && r.StopAfter < r.MaxNewTokens {
		return r.StopAfter
	}
	return r.MaxNewTokens
}

// join puts r behind the others of the running batch and into lockstep with them.
func (e *Engine) join(r *Request) {
	e.running = append(e.running, r)
	e.place++
	r.place = e.place
	r.lockstep, r.base = true, e.planned
	have := r.produced
	if r.flying {
		have++
	}
	r.ends = r.base + int64(max(0, r.target()-have))
	e.count++
	e.context += r.computed
	e.phases[e.phaseOf(r)]++
	if r.ends > r.base {
		e.pushEnding(ending{r.ends, r, r.epoch})
	} else if r.flying && have >= r.MaxNewTokens {
		e.short = append(e.short, r)
	}
}

func (e *Engine) phaseOf(r *Request) int {
	p := int64(e.cfg.PageSize)
	return int(((int64(r.computed)-r.base)%p + p) % p)
}

// part takes r out of lockstep, with its numbers up to date, and leaves it in the running batch.
func (e *Engine) part(r *Request) {
	if !r.lockstep {
		return
	}
	e.count--
	e.phases[e.phaseOf(r)]--
	computed, produced := e.computedOf(r), e.producedOf(r)
	e.context -= computed
	r.lockstep, r.computed, r.produced = false, computed, produced
}

// leave is part for a request whose last token is under way: that result still counts for it.
func (e *Engine) leave(r *Request) {
	produced, base := r.produced, r.base
	e.part(r)
	r.leaving, r.produced, r.base = true, produced, base
}

// crossing is the number of requests in lockstep whose next token begins a page.
func (e *Engine) crossing() int {
	p := int64(e.cfg.PageSize)
	return e.phases[(p-e.planned%p)%p]
}

// renumber restores the order of places after the running batch has been rearranged.
func (e *Engine) renumber() {
	for _, r := range e.running {
		e.place++
		r.place = e.place
	}
}

// unrun removes r from the running batch.
func (e *Engine) unrun(r *Request) {
	i, ok := slices.BinarySearchFunc(e.running, r.place, func(x *Request, place int64) int { return cmp.Compare(x.place, place) })
	if ok {
		e.running = slices.Delete(e.running, i, i+1)
	}
}

// dueBy pops the requests whose last token comes with a decode step up to the given one, in batch order.
func (e *Engine) dueBy(step int64) []*Request {
	n := len(e.due)
	for len(e.ends) > 0 && e.ends[0].step <= step {
		x := e.popEnding()
		if x.epoch == x.request.epoch && x.request.lockstep {
			e.due = append(e.due, x.request)
		}
	}
	if len(e.due) > n {
		slices.SortFunc(e.due, func(a, b *Request) int { return cmp.Compare(a.place, b.place) })
	}
	return e.due
}

func (e *Engine) pushEnding(x ending) {
	h := append(e.ends, x)
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if h[p].step <= x.step {
			break
		}
		h[i] = h[p]
		i = p
	}
	h[i] = x
	e.ends = h
}

func (e *Engine) popEnding() ending {
	h := e.ends
	top, n := h[0], len(h)-1
	x := h[n]
	h[n] = ending{}
	h = h[:n]
	e.ends = h
	if n == 0 {
		return top
	}
	i := 0
	for {
		k := 2*i + 1
		if k >= n {
			break
		}
		if k+1 < n && h[k+1].step < h[k].step {
			k++
		}
		if h[k].step >= x.step {
			break
		}
		h[i] = h[k]
		i = k
	}
	h[i] = x
	return top
}
