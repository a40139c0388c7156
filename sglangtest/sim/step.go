package sim

// A StepKind tells the two kinds of batches apart.
type StepKind uint8

// The kinds of steps.
const (
	PrefillStep StepKind = iota + 1
	DecodeStep
)

// A Step is one batch. The engine owns it; it is valid from Plan to Complete and must not be modified.
type Step struct {
	Kind  StepKind
	Rows  []Row // in batch order, a continuing chunk first
	Shape Shape // what its duration depends on

	completed bool
}

// A Row is the part of one request in a step.
type Row struct {
	Request *Request
	Prefix  int  // tokens computed before
	Extend  int  // tokens computed by this step; 1 in a decode step
	Last    bool // the step brings the request a token; false for a chunk that is not the prompt's last

	epoch uint32
}

// live reports whether the row still counts: the request has not been retracted or ended since it was planned.
func (r *Row) live() bool { return r.epoch == r.Request.epoch }

// queue is a first-in-first-out list that also allows removal.
type queue struct {
	items []*Request
	head  int
}

func (q *queue) len() int        { return len(q.items) - q.head }
func (q *queue) all() []*Request { return q.items[q.head:] }

func (q *queue) push(r *Request) {
	if q.head > 64 && q.head*2 > len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, r)
}

func (q *queue) drop(n int) {
	clear(q.items[q.head : q.head+n])
	q.head += n
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
}

func (q *queue) remove(r *Request) {
	for i := q.head; i < len(q.items); i++ {
		if q.items[i] == r {
			n := len(q.items) - 1
			copy(q.items[i:], q.items[i+1:])
			q.items[n] = nil
			q.items = q.items[:n]
			return
		}
	}
}
