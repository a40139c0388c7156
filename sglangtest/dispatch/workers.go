package dispatch

import (
	"time"

	"github.com/sglangtest/harness/sglangtest/policy"
)

// A Worker describes a worker that comes to a dispatcher.
type Worker struct {
	Name  string
	URL   string // for [Live] only: where its requests are sent
	Role  policy.Role
	Facts policy.Facts
	Limit int // how many requests may be in flight on it; 0: any number
}

// A Sample is what one worker said of its load.
type Sample struct {
	Slot int
	Load policy.Load // Sampled need not be set
}

// AddWorker adds a worker, which is up, and returns its slot: the slots are counted from 1 and never used
// again.
func (c *Core) AddWorker(now time.Duration, w Worker) (slot int) {
	c.begin(now)
	slot = len(c.workers) + 1
	c.workers = append(c.workers, worker{})
	c.view.Workers = append(c.view.Workers, policy.Worker{Slot: slot, Name: w.Name, Role: w.Role, Facts: w.Facts, Limit: w.Limit})
	c.changed(slot)
	return slot
}

// Health says whether a worker serves, as far as the driver knows. It changes nothing for one that is
// draining or gone.
func (c *Core) Health(now time.Duration, slot int, up bool) {
	from, to := policy.Up, policy.Down
	if up {
		from, to = to, from
	}
	if c.view.Worker(slot).State == from {
		c.set(now, slot, func(w *policy.Worker) { w.State = to })
	}
}

// Drain gives a worker nothing new; what it has goes on.
func (c *Core) Drain(now time.Duration, slot int) {
	if c.view.Worker(slot).State != policy.Gone {
		c.set(now, slot, func(w *policy.Worker) { w.State = policy.Draining })
	}
}

// RemoveWorker says that a worker has left for good. Requests that it still has must end all the same.
func (c *Core) RemoveWorker(now time.Duration, slot int) {
	c.set(now, slot, func(w *policy.Worker) { w.State = policy.Gone })
}

// SetFacts says what a worker is like from now on.
func (c *Core) SetFacts(now time.Duration, slot int, f policy.Facts) {
	if c.view.Worker(slot).Facts != f {
		c.set(now, slot, func(w *policy.Worker) { w.Facts = f })
	}
}

// SetLimit changes how many requests may be in flight on a worker; 0: any number. What is in flight is not
// touched.
func (c *Core) SetLimit(now time.Duration, slot, limit int) {
	if c.view.Worker(slot).Limit != limit {
		c.set(now, slot, func(w *policy.Worker) { w.Limit = limit })
	}
}

// NewEpoch says that a worker's cache is empty: it was restarted or flushed. A restart voids its load sample
// too, which is of another process.
func (c *Core) NewEpoch(now time.Duration, slot int, restarted bool) {
	c.set(now, slot, func(w *policy.Worker) {
		w.Epoch++
		if restarted {
			w.Load = policy.Load{}
		}
	})
}

// SetLimits changes the limits of the dispatcher. What is in flight or waits is not touched.
func (c *Core) SetLimits(now time.Duration, l Limits) error {
	if err := l.check(); err != nil {
		return err
	}
	c.begin(now)
	c.cfg.limits = l
	c.offer(policy.Fleet, []int{}, nil)
	c.consult(policy.Fleet, []int{})
	return nil
}

func (c *Core) set(now time.Duration, slot int, f func(*policy.Worker)) {
	c.begin(now)
	f(c.view.Worker(slot))
	c.changed(slot)
}

// changed follows a change of a worker.
func (c *Core) changed(slot int) {
	c.refit(slot)
	if c.fleet != nil {
		c.fleet.FleetChanged(&c.view)
	}
	slots := []int{slot}
	c.offer(policy.Fleet, slots, nil)
	c.consult(policy.Fleet, slots)
}

// refit counts a worker anew among those that are open or full.
func (c *Core) refit(slot int) {
	w := &c.view.Workers[slot-1]
	is := fitNot
	if w.State == policy.Up {
		if is = fitFull; w.Limit == 0 || w.InFlight < w.Limit {
			is = fitOpen
		}
	}
	s := &c.workers[slot-1]
	if s.fit == is {
		return
	}
	count := func(f fit, by int) {
		switch f {
		case fitOpen:
			c.open += by
		case fitFull:
			c.full += by
		}
	}
	count(s.fit, -1)
	count(is, 1)
	s.fit = is
}

// Sample brings the load samples of any number of workers, taken at about the same time. Those requests that
// must have reached a worker's scheduler before its sample was taken no longer count as unseen.
func (c *Core) Sample(now time.Duration, samples []Sample) {
	c.begin(now)
	for i := range samples {
		s := &samples[i]
		w := c.view.Worker(s.Slot)
		w.Load = s.Load
		w.Load.Sampled = true
		of := &c.workers[s.Slot-1]
		of.fresh = c.event
		for k := len(of.unseen) - 1; k >= 0; k-- {
			if t := of.unseen[k]; t.reached < s.Load.At {
				c.see(t)
			}
		}
	}
	if c.sampled != nil {
		c.sampled.Sampled(&c.view)
	}
	c.offer(policy.Sample, nil, nil)
	c.consult(policy.Sample, nil)
}
