package load

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"
	"time"
)

// A job is what the two ways of releasing requests have in common.
type job struct {
	ctx    context.Context
	clock  Clock
	do     Doer
	rec    Recorder
	waiter Waiter
	breach func(error) // notes the first breach of the Doer's contract
}

// arrive waits for the request's arrival and reports it.
func (j *job) arrive(req *Request) error {
	if err := j.waiter.WaitUntil(j.ctx, j.clock.Time(req.Arrival)); err != nil {
		return err
	}
	j.rec.Arrived(req)
	return nil
}

// carryOut does the request and records what became of it in res, whose chunk memory is used again.
func (j *job) carryOut(req *Request, due time.Duration, res *Result) {
	chunks := res.Chunks
	chunks.Reset()
	*res = Result{
		ID: req.ID, Conversation: req.Conversation, Turn: req.Turn, Arrival: req.Arrival, Due: due,
		InputLen: req.InputLen, OutputLen: req.OutputLen, Chunks: chunks,
	}
	j.do.Do(j.ctx, j.clock, req, res)
	if fault := res.check(due); fault != "" {
		j.breach(fmt.Errorf("the Doer broke its contract with request %d: %s", req.ID, fault))
		res.fail(OutcomeProtocol, "the Doer broke its contract: "+fault)
	}
	j.rec.Record(res)
}

// giveUp records a request that had arrived but was not released when the run was cancelled.
func (j *job) giveUp(req *Request, due time.Duration) {
	now := j.clock.Now()
	res := Result{
		ID: req.ID, Conversation: req.Conversation, Turn: req.Turn, Arrival: req.Arrival, Due: min(due, now), Released: now,
		InputLen: req.InputLen, OutputLen: req.OutputLen, CachedTokens: NotReported, Retractions: NotReported,
	}
	res.fail(OutcomeCancelled, context.Cause(j.ctx).Error())
	res.complete(now)
	j.rec.Record(&res)
}

// overdue reports and gives up the requests that should have arrived by now, first req, when the run was cancelled.
func (j *job) overdue(req Request, next func() (Request, error, bool)) {
	now := j.clock.Now()
	for ok, err := true, error(nil); ok && err == nil && req.Arrival <= now; req, err, ok = next() {
		j.rec.Arrived(&req)
		j.giveUp(&req, req.Arrival)
	}
}

// A relay releases requests without a cap. It is a group of workers of which one leads at any time: it takes the next
// request, waits for its arrival, makes another worker the leader and carries the request out itself. So the
// goroutine that wakes up in time is the one that sends, and a release costs no hand-over.
type relay struct {
	job
	next func() (Request, error, bool) // used by the leader only
	wg   sync.WaitGroup

	mu    sync.Mutex
	idle  []chan struct{} // parked workers; a value makes its receiver the leader
	ended bool            // there is nothing left to lead
	err   error           // why the workload ended early
}

func (r *relay) run(src Source) error {
	next, stop := iter.Pull2(src.Requests())
	defer stop()
	r.next = next
	r.wg.Go(r.work)
	r.wg.Wait()
	return r.err
}

// work is the life of a worker. It begins as the leader.
func (r *relay) work() {
	var res Result
	wake := make(chan struct{}, 1)
	for {
		req, ok := r.lead()
		if !ok {
			return
		}
		r.promote()
		r.carryOut(&req, req.Arrival, &res)
		if !r.follow(wake) {
			return
		}
	}
}

// lead takes the next request and waits for its arrival; false if there is none or the run is over.
func (r *relay) lead() (Request, bool) {
	req, err, ok := r.next()
	if ok && err == nil {
		if err = r.arrive(&req); err == nil {
			return req, true
		}
		if r.ctx.Err() != nil {
			r.overdue(req, r.next)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended, r.err = true, err
	for _, wake := range r.idle {
		close(wake)
	}
	r.idle = nil
	return Request{}, false
}

// promote passes the lead on, to a parked worker if there is one.
func (r *relay) promote() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.idle); n > 0 {
		r.idle[n-1] <- struct{}{}
		r.idle = r.idle[:n-1]
	} else {
		r.wg.Go(r.work)
	}
}

// follow parks the worker until it leads; false means that the run is over.
func (r *relay) follow(wake chan struct{}) bool {
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return false
	}
	r.idle = append(r.idle, wake)
	r.mu.Unlock()
	_, ok := <-wake
	return ok
}

// places releases requests under a cap: each worker is a place. One goroutine lets requests arrive at their times,
// whether there is a place or not, into a queue from which the workers take them in order.
type places struct {
	job
	cap int
	wg  sync.WaitGroup

	mu      sync.Mutex
	ready   sync.Cond // there is a request, or nothing will come
	queue   []Request // arrived and not taken, from head on
	head    int
	workers int
	idle    int
	ended   bool
	taken   int             // places that have been taken for the first time
	freed   []time.Duration // when places that were given back became free, in that order
}

func (p *places) run(src Source) error {
	next, stop := iter.Pull2(src.Requests())
	defer stop()
	p.ready.L = &p.mu
	err := p.accept(next)
	p.mu.Lock()
	p.ended = true
	p.ready.Broadcast()
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

// accept lets requests arrive until there are no more.
func (p *places) accept(next func() (Request, error, bool)) error {
	for {
		req, err, ok := next()
		if !ok || err != nil {
			return err
		}
		if err := p.arrive(&req); err != nil {
			if p.ctx.Err() != nil {
				p.overdue(req, next)
			}
			return err
		}
		p.mu.Lock()
		p.queue = append(p.queue, req)
		switch {
		case p.idle > 0:
			p.idle--
			p.ready.Signal()
		case p.workers < p.cap:
			p.workers++
			p.wg.Go(p.work)
		}
		p.mu.Unlock()
		runtime.Gosched() // in a burst, let the workers start
	}
}

func (p *places) work() {
	var res Result
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for p.head == len(p.queue) {
			if p.ended {
				return
			}
			p.idle++
			p.ready.Wait()
		}
		req := p.queue[p.head]
		if p.head++; p.head > len(p.queue)/2 && p.head > 64 {
			p.queue, p.head = slices.Delete(p.queue, 0, p.head), 0
		}
		if p.ctx.Err() != nil { // it never got a place
			p.mu.Unlock()
			p.giveUp(&req, p.clock.Now())
			p.mu.Lock()
			continue
		}
		due := max(req.Arrival, p.place())
		p.mu.Unlock()
		p.carryOut(&req, due, &res)
		p.mu.Lock()
		p.freed = append(p.freed, res.Completion)
	}
}

// place takes the place that the next request gets and returns when it became free: requests get places in the
// order in which places are given back. It is 0 for a place that nobody has had. p.mu is held.
func (p *places) place() time.Duration {
	if p.taken < p.cap {
		p.taken++
		return 0
	}
	at := p.freed[0] // there is one: the worker's own at least
	p.freed = p.freed[:copy(p.freed, p.freed[1:])]
	return at
}
