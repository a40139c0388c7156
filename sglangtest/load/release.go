package load

import (
	"context"
	"fmt"
	"runtime"
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
	line   *line
	cur    Request     // of the goroutine that lets requests arrive
	route  Route       // nil: none
	breach func(error) // notes the first breach of the Doer's contract
	end    func(error) // ends the run
}

// arrive waits for the next request's arrival and reports it; false if there is none or the run is over, then with the error
// of either.
func (j *job) arrive() (bool, error) {
	req := &j.cur
	if !j.line.coming(req) {
		return false, j.line.err
	}
	if err := j.waiter.WaitUntil(j.ctx, j.clock.Time(req.Arrival)); err != nil {
		if j.ctx.Err() != nil {
			j.overdue()
		}
		return false, err
	}
	j.rec.Arrived(req)
	return true, nil
}

// carryOut does the request and records what became of it in res, whose chunk memory is used again.
func (j *job) carryOut(p *pending, due time.Duration, res *Result) {
	if j.route != nil {
		j.placed(p, due, res)
	} else {
		do := j.do
		if p.ready != nil {
			do = p.ready
		}
		p.blank(due, res)
		do.Do(j.ctx, j.clock, &p.Request, res)
		j.check(&p.Request, due, res)
	}
	j.rec.Record(res)
}

// blank makes res the result of the request before anything is known.
func (p *pending) blank(due time.Duration, res *Result) {
	chunks := res.Chunks
	chunks.Reset()
	*res = Result{
		ID: p.ID, Conversation: p.Conversation, Turn: p.Turn, Arrival: p.Arrival, Due: due,
		InputLen: p.InputLen, OutputLen: p.OutputLen, Chunks: chunks,
	}
}

// check replaces a result in which the Doer broke its contract.
func (j *job) check(req *Request, due time.Duration, res *Result) {
	now := j.clock.Now()
	if fault := res.breach(req.ID, req.Arrival, due, now); fault != nil {
		j.breach(fmt.Errorf("the Doer broke its contract with request %d: %w", req.ID, fault))
		asked := Result{ID: req.ID, Conversation: req.Conversation, Turn: req.Turn, Arrival: req.Arrival, Due: due, InputLen: req.InputLen,
			OutputLen: req.OutputLen}
		*res = asked.Void("the Doer broke its contract: "+fault.Error(), now)
	}
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

// overdue reports and gives up the requests that should have arrived by now when the run was cancelled.
func (j *job) overdue() {
	now := j.clock.Now()
	for j.line.coming(&j.cur) && j.cur.Arrival <= now {
		j.line.withdraw()
		j.rec.Arrived(&j.cur)
		j.giveUp(&j.cur, j.cur.Arrival)
	}
}

// A relay releases requests without a cap. It is a group of workers of which one leads at any time: it takes the next
// request, waits for its arrival, makes another worker the leader and carries the request out itself. So the
// goroutine that wakes up in time is the one that sends, and a release costs no hand-over.
type relay struct {
	job
	wg sync.WaitGroup

	mu    sync.Mutex
	idle  []chan struct{} // parked workers; a value makes its receiver the leader
	ended bool            // there is nothing left to lead
	err   error           // why the workload ended early
}

func (r *relay) run() error {
	r.wg.Go(r.work)
	r.wg.Wait()
	return r.err
}

// work is the life of a worker. It begins as the leader.
func (r *relay) work() {
	var p pending
	var res Result
	wake := make(chan struct{}, 1)
	for {
		if !r.lead(&p) {
			return
		}
		r.promote()
		r.carryOut(&p, p.Arrival, &res)
		if !r.follow(wake) {
			return
		}
	}
}

// lead waits for the next request's arrival and moves it into p; false if there is none or the run is over.
func (r *relay) lead(p *pending) bool {
	ok, err := r.arrive()
	if ok {
		r.line.mu.Lock()
		r.line.arrive()
		r.line.pop(p)
		r.line.mu.Unlock()
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended, r.err = true, err
	for _, wake := range r.idle {
		close(wake)
	}
	r.idle = nil
	return false
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
// whether there is a place or not; the workers take them from the line in order. What follows is guarded by the line's lock.
type places struct {
	job
	cap int
	wg  sync.WaitGroup

	ready   sync.Cond // there is a request, or nothing will come
	workers int
	idle    int
	ended   bool
	taken   int             // places that have been taken for the first time
	freed   []time.Duration // when places that were given back became free, in that order
}

func (p *places) run() error {
	mu := &p.line.mu
	p.ready.L = mu
	err := p.accept()
	mu.Lock()
	p.ended = true
	p.ready.Broadcast()
	mu.Unlock()
	p.wg.Wait()
	return err
}

// accept lets requests arrive until there are no more.
func (p *places) accept() error {
	for {
		if ok, err := p.arrive(); !ok {
			return err
		}
		p.line.mu.Lock()
		p.line.arrive()
		switch {
		case p.idle > 0:
			p.idle--
			p.ready.Signal()
		case p.workers < p.cap:
			p.workers++
			p.wg.Go(p.work)
		}
		p.line.mu.Unlock()
		runtime.Gosched() // in a burst, let the workers start
	}
}

func (p *places) work() {
	var req pending
	var res Result
	line := p.line
	line.mu.Lock()
	defer line.mu.Unlock()
	for {
		for line.head == line.came {
			if p.ended {
				return
			}
			p.idle++
			p.ready.Wait()
		}
		line.pop(&req)
		if p.ctx.Err() != nil { // it never got a place
			line.mu.Unlock()
			p.giveUp(&req.Request, p.clock.Now())
			line.mu.Lock()
			continue
		}
		due := max(req.Arrival, p.place())
		line.mu.Unlock()
		p.carryOut(&req, due, &res)
		line.mu.Lock()
		p.freed = append(p.freed, res.Completion)
	}
}

// place takes the place that the next request gets and returns when it became free: requests get places in the
// order in which places are given back. It is 0 for a place that nobody has had. The line's lock is held.
func (p *places) place() time.Duration {
	if p.taken < p.cap {
		p.taken++
		return 0
	}
	at := p.freed[0] // there is one: the worker's own at least
	p.freed = p.freed[:copy(p.freed, p.freed[1:])]
	return at
}
