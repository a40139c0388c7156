package policy

import (
	"context"
	"fmt"

	"github.com/sglangtest/harness/sglangtest/load"
)

// LeastOutstanding picks the healthy worker with the fewest requests outstanding. Among equals it takes the next one
// after the worker that it picked last, in cyclic order, so that an idle fleet is used in turn. It rejects a
// request if no worker is healthy.
type LeastOutstanding struct {
	signal Signal
	last   int
}

// NewLeastOutstanding returns a policy that reads the load by signal s. With [Polled] everything goes to one worker
// until the next sample comes.
func NewLeastOutstanding(s Signal) (*LeastOutstanding, error) {
	if s < Local || s > PolledPlusOwn {
		return nil, fmt.Errorf("policy: least outstanding: signal %d: want Local, Polled or PolledPlusOwn", s)
	}
	return &LeastOutstanding{signal: s, last: -1}, nil
}

// Pick implements [Policy].
func (p *LeastOutstanding) Pick(_ context.Context, _ *load.Request, v View) (Decision, error) {
	best, least := -1, 0
	n := len(v.Workers)
	i := p.last
	for range n {
		if i++; i >= n {
			i = 0
		}
		w := &v.Workers[i]
		if !w.Healthy {
			continue
		}
		if out := w.Outstanding(p.signal); best < 0 || out < least {
			best, least = i, out
		}
	}
	if best < 0 {
		return noWorker(), nil
	}
	p.last = best
	return Dispatch(best), nil
}
