package dispatch

import (
	"fmt"
	"slices"

	"github.com/sglangtest/harness/sglangtest/policy"
)

// before is the order of the queue.
func (c *Core) before(a, b *entry) bool {
	if c.less != nil {
		x, y := &a.tickets[0].Request, &b.tickets[0].Request
		if c.less.Less(x, y) {
			return true
		}
		if c.less.Less(y, x) {
			return false
		}
	}
	return a.seq < b.seq
}

// offer asks about the held entries that wait for an event of the given workers (none: of no worker), and
// about fresh, which is new. A slot of 0 is none.
func (c *Core) offer(ev policy.Events, slots []int, fresh *entry) {
	if c.err != nil || c.held == 0 && fresh == nil {
		return
	}
	for c.err == nil {
		e := c.firstFor(ev, slots)
		if fresh != nil && (e == nil || c.before(fresh, e)) {
			e, fresh = fresh, nil
			if c.ask(e) {
				c.aside = append(c.aside, e)
			}
			continue
		}
		if e == nil {
			break
		}
		was := e.wake
		c.unhold(e)
		if !c.ask(e) {
			continue
		}
		c.aside = append(c.aside, e)
		if e.wake.On == was.On && e.wake.Worker == was.Worker {
			break
		}
	}
	if fresh != nil && (c.err != nil || c.ask(fresh)) {
		c.aside = append(c.aside, fresh)
	}
	for i, e := range c.aside {
		c.hold(e)
		c.aside[i] = nil
	}
	c.aside = c.aside[:0]
}

// firstFor returns the first entry in the queue that waits for the event.
func (c *Core) firstFor(ev policy.Events, slots []int) (first *entry) {
	for _, k := range c.classes {
		if len(k.items) > 0 && c.concerns(policy.Wake{On: k.on, Worker: k.worker}, ev, slots) && (first == nil || c.before(k.items[0], first)) {
			first = k.items[0]
		}
	}
	return first
}

// concerns reports whether w waits for the event.
func (c *Core) concerns(w policy.Wake, ev policy.Events, slots []int) bool {
	if w.On&ev == 0 {
		return false
	}
	return w.Worker == 0 || ev == policy.Arrival || slices.Contains(slots, w.Worker) || slots == nil && c.workers[w.Worker-1].fresh == c.event
}

// hold puts an entry among those that wait for its wake.
func (c *Core) hold(e *entry) {
	if e.wake.On == 0 && e.wake.At == 0 { // the policy is at fault with it
		return
	}
	c.held++
	if e.wake.At > 0 {
		c.timed.push(e)
	}
	if e.wake.On == 0 {
		return
	}
	for _, k := range c.classes {
		if k.on == e.wake.On && k.worker == e.wake.Worker {
			e.class = k
			k.push(e)
			return
		}
	}
	k := &class{on: e.wake.On, worker: e.wake.Worker, entryHeap: entryHeap{before: c.before, at: func(e *entry) *int { return &e.at }}}
	c.classes = append(c.classes, k)
	e.class = k
	k.push(e)
}

// unhold takes an entry out of all lists.
func (c *Core) unhold(e *entry) {
	if e.class == nil && e.timed < 0 {
		return
	}
	c.held--
	if e.timed >= 0 {
		c.timed.remove(e)
	}
	if e.class != nil {
		e.class.remove(e)
		e.class = nil
	}
}

// ask has the policy decide about an entry that is in no list, and reports whether it is held.
func (c *Core) ask(e *entry) (held bool) {
	d, err := c.decide(e)
	r := &e.tickets[0].Request
	if err == nil {
		err = c.fault(&d)
	}
	if err != nil {
		c.err = fmt.Errorf("dispatch: policy: request %d: %w", r.ID, err)
		return true
	}
	switch d.Verdict {
	case policy.VerdictHold:
		e.wake = d.Wake
		return true
	case policy.VerdictReject:
		for _, t := range e.tickets {
			c.reject(t, e.batch, d)
		}
	case policy.VerdictDispatch:
		n := len(e.tickets)
		for _, slot := range []int{d.Worker, d.Prefill} {
			if slot == 0 {
				continue
			}
			if w := &c.view.Workers[slot-1]; w.Limit > 0 && w.InFlight > 0 && w.InFlight+n > w.Limit {
				e.wake = policy.Wake{On: policy.Freed | policy.Fleet, Worker: slot}
				return true
			}
		}
		for _, t := range e.tickets {
			c.dispatch(t, e, &d)
		}
	}
	return false
}

// decide asks the policy, unless the limits leave nothing to decide.
func (c *Core) decide(e *entry) (policy.Decision, error) {
	n := len(e.tickets)
	limit := c.cfg.limits.InFlight
	if limit > 0 && c.view.InFlight > 0 && c.view.InFlight+n > limit || c.open == 0 && c.full > 0 {
		return policy.Hold(policy.Wake{On: policy.Freed | policy.Fleet}), nil
	}
	for _, t := range e.tickets {
		t.Request.Waited = c.view.Now - t.arrived
	}
	if e.batch == 0 || c.batches == nil {
		return c.pol.Pick(&e.tickets[0].Request, &c.view)
	}
	requests := make([]*policy.Request, n)
	for i, t := range e.tickets {
		requests[i] = &t.Request
	}
	return c.batches.PickBatch(requests, &c.view)
}

// fault says what is wrong with a decision.
func (c *Core) fault(d *policy.Decision) error {
	n := len(c.workers)
	switch d.Verdict {
	case policy.VerdictReject:
		return nil
	case policy.VerdictHold:
		w := d.Wake
		const all = policy.Arrival | policy.Freed | policy.Sample | policy.Fleet
		if w.On&^all == 0 && (w.On != 0 || w.At != 0) && (w.At == 0 || w.At > c.view.Now) && w.Worker >= 0 && w.Worker <= n {
			return nil
		}
		return fmt.Errorf("hold until %+v at %v: want an event or a later time, and a slot of 1 to %d or 0", w, c.view.Now, n)
	case policy.VerdictDispatch:
		if d.Worker < 1 || d.Worker > n || d.Prefill < 0 || d.Prefill > n {
			return fmt.Errorf("dispatch to slots %d and %d of %d workers: want 1 to %d, and 0 or a slot for prefill", d.Worker, d.Prefill, n, n)
		}
		w := c.view.Worker(d.Worker)
		want := policy.RoleWhole
		if d.Prefill != 0 {
			want = policy.RoleDecode
			if p := c.view.Worker(d.Prefill); p.State >= policy.Draining || p.Role != policy.RolePrefill {
				return fmt.Errorf("prefill on %s, which is %v: want a worker for prefill that is up", p.Name, p.State)
			}
		}
		if w.State >= policy.Draining {
			return fmt.Errorf("dispatch to %s, which is %v: want one that is open", w.Name, w.State)
		}
		if w.Role != want {
			return fmt.Errorf("dispatch to %s, whose role does not fit: want a worker that does everything, or one for decode with one for prefill", w.Name)
		}
		return nil
	}
	return fmt.Errorf("decision %+v at %v of %d workers: make it with policy.Dispatch, Hold or Reject", *d, c.view.Now, n)
}

// form has the strategy form batches, until there is none, and the policy decide about each.
func (c *Core) form() {
	for c.err == nil {
		requests, wake := c.cfg.strategy.Next(&c.view)
		if len(requests) == 0 {
			c.strategic = wake
			if c.cfg.strategy.Len() > 0 && wake.On == 0 && wake.At <= c.view.Now {
				c.err = fmt.Errorf("dispatch: strategy: it has %d requests at %v and waits for %+v: want an event or a later time", c.cfg.strategy.Len(), c.view.Now, wake)
			}
			return
		}
		c.batch++
		c.seq++
		e := &entry{seq: c.seq, batch: c.batch, event: c.event, at: -1, timed: -1}
		for _, r := range requests {
			t := c.pushed[r.ID]
			if t == nil {
				c.err = fmt.Errorf("dispatch: strategy: request %d is in a batch, but the strategy does not have it", r.ID)
				continue
			}
			delete(c.pushed, r.ID)
			t.in = e
			e.tickets = append(e.tickets, t)
		}
		if c.err == nil && c.ask(e) {
			c.hold(e)
		}
	}
}

// consult lets the strategy form batches if it waits for the event.
func (c *Core) consult(ev policy.Events, slots []int) {
	if c.cfg.strategy != nil && c.concerns(c.strategic, ev, slots) {
		c.form()
	}
}
