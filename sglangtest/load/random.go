package load

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
)

// Random returns an endless dataset of random lengths: input lengths are uniform whole numbers in
// [max(int(inputLen·rangeRatio), 1), inputLen], output lengths likewise. Ratio 1 fixes the lengths, ratio 0 spreads
// them from 1 up. It is the range rule of "random-ids" in sglang.bench_serving (0.5.23); other tools give the
// ratio another meaning. Inputs and outputs come from random streams of their own, so that changing the range of one
// leaves the other's values alone; the values are not those that bench_serving draws for the same seed.
//
// Lengths must be ≥ 1 and the ratio in [0, 1]; [NewRequestGenerator] reports it if they are not.
func Random(inputLen, outputLen int, rangeRatio float64) Dataset {
	return randomLengths{inputLen, outputLen, rangeRatio}
}

type randomLengths struct {
	input, output int
	ratio         float64
}

func (r randomLengths) Name() string {
	return fmt.Sprintf("random (input %d, output %d, range ratio %g)", r.input, r.output, r.ratio)
}

func (r randomLengths) Endless() bool { return true }

func (r randomLengths) Validate() error {
	var faults []error
	for _, length := range []struct {
		name   string
		tokens int
	}{{"input", r.input}, {"output", r.output}} {
		if length.tokens < 1 || length.tokens > maxTokens {
			faults = append(faults, fmt.Errorf("load: random dataset: %s length %d: want 1 to %d tokens", length.name, length.tokens, maxTokens))
		}
	}
	if !(r.ratio >= 0 && r.ratio <= 1) {
		faults = append(faults, fmt.Errorf("load: random dataset: range ratio %g: want 0 to 1", r.ratio))
	}
	return errors.Join(faults...)
}

func (r randomLengths) Rows(rng *rand.Rand) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		if err := r.Validate(); err != nil {
			yield(Row{}, err)
			return
		}
		inputs := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		outputs := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		for yield(Row{InputLen: r.draw(inputs, r.input), OutputLen: r.draw(outputs, r.output)}, nil) {
		}
	}
}

func (r randomLengths) draw(rng *rand.Rand, length int) int {
	least := max(int(float64(length)*r.ratio), 1)
	return least + rng.IntN(length-least+1)
}
