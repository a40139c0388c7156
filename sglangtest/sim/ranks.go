package sim

import "time"

// Ranks are the data-parallel ranks of one server (--dp-size): independent schedulers, each with its own memory and
// cache, to which requests go in turn (data_parallel_controller.py, round robin). It is driven like a [Loop].
type Ranks struct {
	Loops []*Loop
	next  int
}

// NewRanks returns n idle ranks of the same configuration. It panics if n is below 1.
func NewRanks(n int, cfg EngineConfig, p Profile) (*Ranks, error) {
	if n < 1 {
		panic("sim: NewRanks with less than one rank")
	}
	d := &Ranks{}
	for i := range n {
		c := cfg
		c.Seed += uint64(i)
		e, err := NewEngine(c)
		if err != nil {
			return nil, err
		}
		l := NewLoop(e, p)
		l.first = uint64(i) << stepBits // ranks with the same steps have other noise
		d.Loops = append(d.Loops, l)
	}
	return d, nil
}

// Add gives the next rank a request that arrives at the given time, and returns the rank.
func (d *Ranks) Add(now time.Duration, r *Request) int {
	k := d.turn()
	d.Loops[k].Add(now, r)
	return k
}

// turn returns the rank whose turn it is.
func (d *Ranks) turn() int {
	k := d.next
	d.next = (k + 1) % len(d.Loops)
	return k
}

// SetLimit sets the limit of running requests of every rank at the given time and reports for each whether it was in range.
func (d *Ranks) SetLimit(now time.Duration, v float64) []bool {
	var ok []bool
	for _, l := range d.Loops {
		ok = append(ok, l.SetLimit(now, v))
	}
	return ok
}

// Next returns the time of the next event of any rank; false if all are idle.
func (d *Ranks) Next() (time.Duration, bool) {
	k, at := d.earliest()
	return at, k >= 0
}

// Advance carries out the next event, as [Loop.Advance] does. It panics if all ranks are idle.
func (d *Ranks) Advance() []Output {
	k, _ := d.earliest()
	return d.Loops[k].Advance()
}

func (d *Ranks) earliest() (k int, at time.Duration) {
	k = -1
	for i, l := range d.Loops {
		if t, busy := l.Next(); busy && (k < 0 || t < at) {
			k, at = i, t
		}
	}
	return k, at
}
