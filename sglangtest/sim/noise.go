package sim

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Noise is a [StepModel] that multiplies the times of another by a random factor, drawn anew for each step. The factor
// is a function of the seed and the shape with its index: the same run gives the same times, on any number of
// goroutines. Engines that share a profile draw differently as soon as their steps differ; give them different seeds
// to be sure.
type Noise struct {
	Model StepModel
	// Sigma is the standard deviation of the factor's logarithm. The factor's mean is 1, so noise changes no mean.
	Sigma float64
	// Residuals are measured ratios of true to modelled time, drawn with equal chance; their mean should be 1. Set
	// either these or Sigma.
	Residuals []float64
	Seed      uint64
}

// StepTime implements [StepModel].
func (n Noise) StepTime(s Shape) time.Duration {
	r := draws(n.Seed, s)
	f := 1.0
	if len(n.Residuals) > 0 {
		f = n.Residuals[r.IntN(len(n.Residuals))]
	} else {
		f = math.Exp(n.Sigma*r.NormFloat64() - n.Sigma*n.Sigma/2)
	}
	return time.Duration(math.Round(f * float64(n.Model.StepTime(s))))
}

func (n Noise) validate() error {
	var errs []error
	if n.Model == nil {
		errs = append(errs, errors.New("sim: noise has no model"))
	}
	if !(n.Sigma >= 0 && n.Sigma < 2) {
		errs = append(errs, fmt.Errorf("sim: noise: sigma is %v: want 0 to 2", n.Sigma))
	}
	if (n.Sigma > 0) == (len(n.Residuals) > 0) {
		errs = append(errs, errors.New("sim: noise: set either sigma, above 0, or residuals"))
	}
	for _, f := range n.Residuals {
		if !(f > 0) || math.IsInf(f, 0) {
			errs = append(errs, fmt.Errorf("sim: noise: a residual is %v: want finite ratios above 0", f))
		}
	}
	return errors.Join(errs...)
}

// draws returns the random source of one step.
func draws(seed uint64, s Shape) *rand.Rand {
	tokens, pairs, context := prefillWork(s.Extends)
	h := scramble(seed)
	for _, v := range [...]uint64{s.Index, uint64(s.Decodes), uint64(s.Context), uint64(tokens), uint64(pairs), uint64(context)} {
		h = scramble(h ^ v)
	}
	return rand.New(rand.NewPCG(h, scramble(h)))
}

// scramble is the finaliser of SplitMix64 after its increment: a bijection in which every input bit moves half the output's.
func scramble(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
