package policy

import "fmt"

// LeastOutstanding picks the open worker with the fewest requests outstanding by its signal. Among equals it
// takes the next one after the worker that it picked last, in cyclic order, so that an idle fleet is used in
// turn. It rejects a request if no worker is open. The zero value has no signal, and its Pick is an error.
type LeastOutstanding struct {
	signal Signal
	last   int // slot
}

// NewLeastOutstanding returns a policy that reads the load by signal s. With [Polled] the workers that had
// the fewest requests at the last sample, often just one, share everything in turn until the next one comes.
// Without samples all would count as idle, so a host that takes none refuses it; see [Needs].
func NewLeastOutstanding(s Signal) (*LeastOutstanding, error) {
	p := &LeastOutstanding{signal: s}
	if err := p.check(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *LeastOutstanding) check() error {
	if s := p.signal; s < Local || s > PolledPlusOwn {
		return fmt.Errorf("policy: least outstanding: signal %d: want Local, Polled or PolledPlusOwn", s)
	}
	return nil
}

// Needs implements [Needer]: samples, unless the signal is [Local].
func (p *LeastOutstanding) Needs() Needs { return Needs{Samples: p.signal != Local} }

// Pick implements [Policy].
func (p *LeastOutstanding) Pick(_ *Request, v *View) (Decision, error) {
	if err := p.check(); err != nil {
		return Decision{}, err
	}
	best, least := 0, 0
	n := len(v.Workers)
	i := p.last - 1
	for range n {
		if i++; i >= n {
			i = 0
		}
		w := &v.Workers[i]
		if !w.Open() {
			continue
		}
		if out := w.Outstanding(p.signal); best == 0 || out < least {
			best, least = i+1, out
		}
	}
	if best != 0 {
		p.last = best
	}
	return Dispatch(best), nil
}
