package load

import (
	"iter"
	"slices"
	"sync"
)

// How far a run looks ahead: it holds at most this many requests that have not arrived, and at most this much of bodies
// that are ready but not sent (about; one at least).
const (
	aheadRequests = 1024
	aheadBytes    = 16 << 20
)

// A pending request has been taken from the workload and not been released.
type pending struct {
	Request
	ready Doer // what the Preparer made of it; nil: nothing
}

// A line holds the requests that come next, in order: those that have arrived and wait for a place, then those that have
// not arrived. If the Doer can prepare requests, a goroutine prepares them in that order, ahead of their release.
//
// Positions count from the workload's first request: head ≤ came ≤ pulled, and head ≤ made ≤ pulled.
type line struct {
	next func() (Request, error, bool)
	stop func()
	over bool  // next has nothing more; of the goroutine that fills
	err  error // why; nil: the workload has ended

	prepare func(*Request) Doer // nil: the Doer cannot prepare
	wg      sync.WaitGroup

	mu          sync.Mutex
	q           []pending // from position base on
	base        int
	head        int // the next to be released
	came        int // the next to arrive
	made        int // the next to be prepared
	pulled      int
	comingBytes int // of bodies, as bodySize guesses, of the requests from came on
	readyBytes  int // and of those from head to made
	asleep      bool
	closed      bool
	more        sync.Cond // there is something to prepare, or nothing will come
	settled     sync.Cond // the preparer has fallen asleep
}

func newLine(requests iter.Seq2[Request, error], do Doer) *line {
	l := new(line)
	l.next, l.stop = iter.Pull2(requests)
	l.more.L, l.settled.L = &l.mu, &l.mu
	if p, ok := do.(Preparer); ok {
		l.prepare = p.Prepare
		l.wg.Go(l.prepareAll)
	}
	return l
}

// close ends what the line has started. No other method may be called after it.
func (l *line) close() {
	l.mu.Lock()
	l.closed = true
	l.more.Signal()
	l.mu.Unlock()
	l.wg.Wait()
	l.stop()
}

// fill takes requests from the workload as far ahead as a run looks. It is called by one goroutine at a time.
func (l *line) fill() {
	for !l.over && l.wants() {
		req, err, ok := l.next()
		if !ok || err != nil {
			l.over, l.err = true, err
			return
		}
		l.mu.Lock()
		l.q = append(l.q, pending{Request: req})
		l.pulled++
		l.comingBytes += bodySize(&req)
		l.wakePreparer()
		l.mu.Unlock()
	}
}

func (l *line) wants() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.pulled - l.came
	return n == 0 || n < aheadRequests && l.comingBytes < aheadBytes
}

// atOnce returns how many requests arrive at the workload's first moment and fit under the cap, if there is one. It is called
// after fill, before a request has arrived.
func (l *line) atOnce(plan Plan, limit int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(l.q) && l.q[n].Arrival == l.q[0].Arrival {
		n++
	}
	if n > 0 && n == len(l.q) && plan.LastArrival == l.q[0].Arrival {
		n = max(n, plan.Requests) // more than a run looks ahead
	}
	if limit > 0 {
		n = min(n, limit)
	}
	return n
}

// coming copies the request that arrives next into req, or returns false if the workload is over. It is called by the
// goroutine that fills.
func (l *line) coming(req *Request) bool {
	l.fill()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.came == l.pulled {
		return false
	}
	*req = l.at(l.came).Request
	return true
}

// arrive notes that the next request has arrived. l.mu is held.
func (l *line) arrive() {
	l.comingBytes -= bodySize(&l.at(l.came).Request)
	l.came++
}

// withdraw takes out the request that arrives next.
func (l *line) withdraw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := bodySize(&l.at(l.came).Request)
	l.comingBytes -= n
	if l.made > l.came {
		l.made--
		l.readyBytes -= n
	}
	l.pulled--
	l.q = slices.Delete(l.q, l.came-l.base, l.came-l.base+1)
}

// pop moves the first request into p. l.mu is held.
func (l *line) pop(p *pending) {
	first := l.at(l.head)
	*p, *first = *first, pending{}
	l.head++
	if l.made < l.head {
		l.made = l.head
	} else {
		l.readyBytes -= bodySize(&p.Request)
	}
	if n := l.head - l.base; n > len(l.q)/2 && n > 64 {
		l.q, l.base = slices.Delete(l.q, 0, n), l.head
	}
	l.wakePreparer()
}

func (l *line) at(position int) *pending { return &l.q[position-l.base] }

// wakePreparer wakes the goroutine that prepares once half of what it may have ready is gone: waking it for each request
// would cost more than most bodies. l.mu is held.
func (l *line) wakePreparer() {
	if l.asleep && l.made < l.pulled && l.made-l.head <= aheadRequests/2 && l.readyBytes <= aheadBytes/2 {
		l.asleep = false
		l.more.Signal()
	}
}

// settle waits until all is prepared that may be.
func (l *line) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.prepare != nil && !l.asleep {
		l.settled.Wait()
	}
}

func (l *line) prepareAll() {
	var req Request
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		for !l.closed && (l.made == l.pulled || l.made-l.head >= aheadRequests || l.made > l.head && l.readyBytes >= aheadBytes) {
			l.asleep = true
			l.settled.Broadcast()
			l.more.Wait()
		}
		if l.closed {
			return
		}
		position := l.made
		l.made++
		req = l.at(position).Request
		l.readyBytes += bodySize(&req)
		l.mu.Unlock()
		ready := l.prepare(&req)
		l.mu.Lock()
		// Meanwhile it may have been released as it was, or withdrawn.
		if position >= l.head && position < l.pulled && l.at(position).ID == req.ID {
			l.at(position).ready = ready
		}
	}
}

// bodySize guesses the size of a request's body: six bytes for each token id and its comma, or the text.
func bodySize(req *Request) int {
	n := 256 + 6*req.Prompt.Tokens() + len(req.Prompt.Text)
	for _, v := range req.Extra {
		n += len(v)
	}
	for _, m := range req.Prompt.Messages {
		n += len(m.Content) + len(m.Parts) + len(m.ToolCalls)
	}
	return n
}
