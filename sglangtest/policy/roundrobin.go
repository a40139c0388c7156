package policy

import (
	"context"

	"github.com/sglangtest/harness/sglangtest/load"
)

// RoundRobin picks the healthy workers in turn. It rejects a request if there is none. The zero value begins with
// the first worker.
type RoundRobin struct{ next int }

// Pick implements [Policy].
func (p *RoundRobin) Pick(_ context.Context, _ *load.Request, v View) (Decision, error) {
	for range v.Workers {
		i := p.next
		if i >= len(v.Workers) {
			i = 0
		}
		p.next = i + 1
		if v.Workers[i].Healthy {
			return Dispatch(i), nil
		}
	}
	return noWorker(), nil
}
