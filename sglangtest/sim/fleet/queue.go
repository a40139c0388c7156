package fleet

import (
	"slices"
	"time"
)

// A fifo is a first-in-first-out list in one slice.
type fifo[T any] struct {
	items []T
	head  int
}

func (q *fifo[T]) len() int { return len(q.items) - q.head }
func (q *fifo[T]) all() []T { return q.items[q.head:] }

// front returns the first item, or nil if there is none. It is valid until the next push.
func (q *fifo[T]) front() *T {
	if q.head == len(q.items) {
		return nil
	}
	return &q.items[q.head]
}

func (q *fifo[T]) push(v T) {
	if q.head > 32 && q.head*2 > len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

func (q *fifo[T]) pop() T {
	var zero T
	v := q.items[q.head]
	q.items[q.head] = zero
	if q.head++; q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return v
}

// remove takes out item i of all.
func (q *fifo[T]) remove(i int) {
	q.items = slices.Delete(q.items, q.head+i, q.head+i+1)
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
}

func (q *fifo[T]) clear() {
	clear(q.items)
	q.items, q.head = q.items[:0], 0
}

// A tournament finds the worker with the earliest event: a complete binary tree of which each inner node holds the
// earlier of its two children, the lower index among equals. A change costs one comparison for each level.
type tournament struct {
	leaves int      // a power of two
	nodes  []winner // 1 is the root, leaves… are the leaves
}

type winner struct {
	at    time.Duration
	index int
}

func newTournament(n int) tournament {
	t := tournament{leaves: 1}
	for t.leaves < n {
		t.leaves *= 2
	}
	t.nodes = make([]winner, 2*t.leaves)
	for i := range t.nodes {
		t.nodes[i] = winner{never, i}
	}
	for i := range t.leaves {
		t.nodes[t.leaves+i].index = i
	}
	for i := t.leaves - 1; i > 0; i-- {
		t.nodes[i].index = t.nodes[2*i].index
	}
	return t
}

// first returns the worker with the earliest event, and its time.
func (t *tournament) first() winner { return t.nodes[1] }

// set changes the time of a worker's next event.
func (t *tournament) set(index int, at time.Duration) {
	i := t.leaves + index
	if t.nodes[i].at == at {
		return
	}
	t.nodes[i].at = at
	for i /= 2; i > 0; i /= 2 {
		w := t.nodes[2*i]
		if r := t.nodes[2*i+1]; r.at < w.at {
			w = r
		}
		if t.nodes[i] == w {
			return
		}
		t.nodes[i] = w
	}
}
