package policy

import (
	"errors"
	"math/rand/v2"
)

// Random picks an open worker, each with the same probability. It rejects a request if there is none. The
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
func (p *Random) Pick(_ *Request, v *View) (Decision, error) {
	if p.rng == nil {
		return Decision{}, errNoSource
	}
	open := 0
	for i := range v.Workers {
		if v.Workers[i].Open() {
			open++
		}
	}
	if open == 0 {
		return Dispatch(0), nil
	}
	k := p.rng.IntN(open)
	if open == len(v.Workers) {
		return Dispatch(k + 1), nil
	}
	for i := range v.Workers {
		if v.Workers[i].Open() {
			if k == 0 {
				return Dispatch(i + 1), nil
			}
			k--
		}
	}
	panic("unreachable")
}
