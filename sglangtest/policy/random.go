package policy

import (
	"context"
	"errors"
	"math/rand/v2"

	"github.com/sglangtest/harness/sglangtest/load"
)

// Random picks a healthy worker, each with the same probability. It rejects a request if there is none. The
// zero value has no source, and its Pick is an error.
type Random struct{ rng *rand.Rand }

var errNoSource = errors.New("policy: random: no source: make it with NewRandom and a seeded one, such as rand.NewPCG(seed, 0)")

// NewRandom returns a random policy that draws from src and nothing else. It draws once for each request.
func NewRandom(src rand.Source) (*Random, error) {
	if src == nil {
		return nil, errNoSource
	}
	return &Random{rand.New(src)}, nil
}

// Pick implements [Policy].
func (p *Random) Pick(_ context.Context, _ *load.Request, v View) (Decision, error) {
	if p.rng == nil {
		return Decision{}, errNoSource
	}
	healthy := 0
	for i := range v.Workers {
		if v.Workers[i].Healthy {
			healthy++
		}
	}
	if healthy == 0 {
		return noWorker(), nil
	}
	k := p.rng.IntN(healthy)
	if healthy == len(v.Workers) {
		return Dispatch(k), nil
	}
	for i := range v.Workers {
		if v.Workers[i].Healthy {
			if k == 0 {
				return Dispatch(i), nil
			}
			k--
		}
	}
	panic("unreachable")
}
