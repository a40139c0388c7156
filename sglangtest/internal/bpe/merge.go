package bpe

import "math"

// A merger is the scratch space of one word's merges.
type merger struct {
	parts []part
	heap  []uint64 // rank and position of merges that may be done, least first
}

// A part is a token in a list of them. Its place in the slice never changes, so that positions order as in the text.
type part struct {
	id         int32
	rank       int32 // of the merge with the part behind it; noMerge if there is none
	prev, next int32 // -1 at the ends
}

const noMerge = math.MaxInt32

// scanned is the number of bytes up to which looking at all parts for the least rank is quicker than a heap.
const scanned = 48

// merge appends the ids of a word: from single bytes on, the merge of least rank is done first, and the leftmost of
// equals, until none is left.
func (t *Tokenizer) merge(ids []int32, word string, m *merger) []int32 {
	if t.whole {
		if id, ok := t.ids[word]; ok {
			return append(ids, id)
		}
	}
	m.parts = m.parts[:0]
	for i := range len(word) {
		m.parts = append(m.parts, part{t.bytes[word[i]], noMerge, int32(i - 1), int32(i + 1)})
	}
	parts := m.parts
	parts[len(parts)-1].next = -1
	for i := range len(parts) - 1 {
		parts[i].rank = t.rank(parts[i].id, parts[i+1].id)
	}
	if len(parts) <= scanned {
		for {
			best, rank := 0, int32(noMerge)
			for i := int32(0); i >= 0; i = parts[i].next {
				if parts[i].rank < rank {
					best, rank = int(i), parts[i].rank
				}
			}
			if rank == noMerge {
				break
			}
			t.join(parts, int32(best))
		}
	} else {
		t.mergeByHeap(m)
	}
	for i := int32(0); i >= 0; i = parts[i].next {
		ids = append(ids, parts[i].id)
	}
	return ids
}

func (t *Tokenizer) rank(left, right int32) int32 {
	if g, ok := t.merges[pair(left, right)]; ok {
		return g.rank
	}
	return noMerge
}

// join merges a part with the one behind it.
func (t *Tokenizer) join(parts []part, i int32) {
	p := &parts[i]
	n := &parts[p.next]
	p.id = t.merges[pair(p.id, n.id)].id
	n.rank = -1 // gone
	p.next = n.next
	p.rank = noMerge
	if p.next >= 0 {
		parts[p.next].prev = i
		p.rank = t.rank(p.id, parts[p.next].id)
	}
	if p.prev >= 0 {
		parts[p.prev].rank = t.rank(parts[p.prev].id, p.id)
	}
}

// mergeByHeap does all merges of a long word. An entry of the heap that is no longer true is skipped.
func (t *Tokenizer) mergeByHeap(m *merger) {
	m.heap = m.heap[:0]
	offer := func(i int32) {
		if rank := m.parts[i].rank; rank != noMerge {
			m.push(uint64(rank)<<32 | uint64(i))
		}
	}
	for i := range m.parts {
		offer(int32(i))
	}
	for len(m.heap) > 0 {
		top := m.pop()
		i := int32(uint32(top))
		if m.parts[i].rank != int32(top>>32) {
			continue
		}
		t.join(m.parts, i)
		offer(i)
		if prev := m.parts[i].prev; prev >= 0 {
			offer(prev)
		}
	}
}

func (m *merger) push(v uint64) {
	h := append(m.heap, v)
	i := len(h) - 1
	for i > 0 && h[(i-1)/2] > v {
		h[i] = h[(i-1)/2]
		i = (i - 1) / 2
	}
	h[i] = v
	m.heap = h
}

func (m *merger) pop() uint64 {
	h := m.heap
	top, v := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	m.heap = h
	if len(h) == 0 {
		return top
	}
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1] < h[c] {
			c++
		}
		if h[c] >= v {
			break
		}
		h[i] = h[c]
		i = c
	}
	h[i] = v
	return top
}
