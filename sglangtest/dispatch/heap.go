package dispatch

// An entryHeap holds entries in order of before and knows where each is.
type entryHeap struct {
	items  []*entry
	before func(a, b *entry) bool
	at     func(e *entry) *int // where e keeps its place
}

func (h *entryHeap) set(i int, e *entry) { h.items[i], *h.at(e) = e, i }

func (h *entryHeap) push(e *entry) {
	h.items = append(h.items, e)
	h.up(len(h.items)-1, e)
}

func (h *entryHeap) remove(e *entry) {
	i, last := *h.at(e), len(h.items)-1
	*h.at(e) = -1
	x := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	if i == last {
		return
	}
	if i > 0 && h.before(x, h.items[(i-1)/2]) {
		h.up(i, x)
	} else {
		h.down(i, x)
	}
}

func (h *entryHeap) up(i int, e *entry) {
	for i > 0 {
		p := (i - 1) / 2
		if !h.before(e, h.items[p]) {
			break
		}
		h.set(i, h.items[p])
		i = p
	}
	h.set(i, e)
}

func (h *entryHeap) down(i int, e *entry) {
	for {
		k := 2*i + 1
		if k >= len(h.items) {
			break
		}
		if k+1 < len(h.items) && h.before(h.items[k+1], h.items[k]) {
			k++
		}
		if !h.before(h.items[k], e) {
			break
		}
		h.set(i, h.items[k])
		i = k
	}
	h.set(i, e)
}
