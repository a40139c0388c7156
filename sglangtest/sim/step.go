package sim

// A StepKind tells the kinds of batches apart.
type StepKind uint8

// The kinds of steps.
const (
	PrefillStep StepKind = iota + 1
	DecodeStep
	MixedStep // a prefill in which decodes ride along (--enable-mixed-chunk)
)

// A Step is one batch. The engine owns it; it is valid from Plan to Complete and must not be modified.
type Step struct {
	Kind StepKind
	// Rows are the prompts of a prefill, in batch order, a continuing chunk first.
	Rows []Row
	// Decode are the requests that decode one token, in batch order. Some may have ended already: their token is
	// dropped.
	Decode []*Request
	Shape  Shape // what its duration depends on

	completed bool
	decode    int64 // number of the decode step, if Decode is not empty
	extend    int   // extend_num_tokens
}

// A Row is the part of one request's prompt in a prefill.
type Row struct {
	Request *Request
	Prefix  int  // tokens computed or cached before
	Extend  int  // tokens computed by this step
	Last    bool // the step brings the request a token; false for a chunk that is not the prompt's last

	epoch uint32
}

// live reports whether the row still counts: the request has not been retracted or ended since it was planned.
func (r *Row) live() bool { return r.epoch == r.Request.epoch }

func (e *Engine) recycle(s *Step) {
	clear(s.Rows) // requests must not be kept alive
	clear(s.Decode)
	s.Rows, s.Decode, s.Shape.Extends = s.Rows[:0], s.Decode[:0], s.Shape.Extends[:0]
	e.steps = append(e.steps, s)
}

func (e *Engine) newStep(kind StepKind) *Step {
	if n := len(e.steps); n > 0 {
		s := e.steps[n-1]
		e.steps = e.steps[:n-1]
		*s = Step{Kind: kind, Rows: s.Rows, Decode: s.Decode, Shape: Shape{Extends: s.Shape.Extends}}
		return s
	}
	return &Step{Kind: kind}
}

// queue is the waiting queue: a list that mostly grows at the end and shrinks at the front.
type queue struct {
	items  []*Request
	head   int
	tokens int // that a prefill of all would compute, were nothing cached
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
	r.queued = r.InputLen + r.produced
	q.tokens += r.queued
}

func (q *queue) drop(n int) {
	for _, r := range q.items[q.head : q.head+n] {
		q.tokens -= r.queued
	}
	clear(q.items[q.head : q.head+n])
	q.head += n
	if q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
}

func (q *queue) remove(r *Request) {
	for i := q.head; i < len(q.items); i++ {
		if q.items[i] == r {
			q.tokens -= r.queued
			n := len(q.items) - 1
			copy(q.items[i:], q.items[i+1:])
			q.items[n] = nil
			q.items = q.items[:n]
			return
		}
	}
}
