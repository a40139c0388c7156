package sim

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Replay is a [StepModel] that replays recorded times by the index of the step: step i takes Times[i] milliseconds,
// whatever its shape, on each data-parallel rank. Steps after the last recorded one take the time of Else.
type Replay struct {
	Times []float64 // milliseconds
	Else  StepModel
}

// StepTime implements [StepModel].
func (m Replay) StepTime(s Shape) time.Duration {
	if i := s.Index % (1 << stepBits); i < uint64(len(m.Times)) {
		return milliseconds(m.Times[i])
	}
	return m.Else.StepTime(s)
}

func (m Replay) validate() error {
	var errs []error
	if m.Else == nil {
		errs = append(errs, errors.New("sim: replay has no model for the steps after the recorded ones"))
	}
	for i, ms := range m.Times {
		if !(ms > 0) || math.IsInf(ms, 0) {
			errs = append(errs, fmt.Errorf("sim: replay: time %d is %v ms: want a finite number above 0", i, ms))
		}
	}
	return errors.Join(errs...)
}

// Sampled is a [StepModel] that draws from recorded steps of a similar shape, which brings the scatter of reality along.
// A step falls into a cell: decodes by batch and context, prefills by new tokens and pairs, each in half octaves. A
// recorded step of the cell is drawn and scaled by what Else says of the two shapes, so that differences within a cell
// are not lost. Shapes whose cell holds no recorded step, and mixed chunks, take the time of Else.
//
// A Sampled is made by [NewSampled]; draws are deterministic as those of [Noise].
type Sampled struct {
	steps []SampledStep
	seed  uint64
	other StepModel
	cells map[cell][]float64 // ratios of recorded to modelled time
}

// A SampledStep is one recorded step.
type SampledStep struct {
	Decodes int      `json:"decodes,omitempty"`
	Context int      `json:"context,omitempty"`
	Extends []Extend `json:"extends,omitempty"`
	Time    float64  `json:"ms"` // milliseconds, above 0
}

type cell struct {
	prefill bool
	x, y    int
}

// NewSampled returns a Sampled of the recorded steps. All faults are reported together.
func NewSampled(steps []SampledStep, seed uint64, other StepModel) (Sampled, error) {
	m := Sampled{steps, seed, other, map[cell][]float64{}}
	var errs []error
	if other == nil {
		return m, errors.New("sim: sampled model has no model for shapes without a recorded step")
	}
	for i, st := range steps {
		s := Shape{Decodes: st.Decodes, Context: st.Context, Extends: st.Extends}
		k, ok := cellOf(s)
		if !ok {
			errs = append(errs, fmt.Errorf("sim: sampled model: step %d is neither a decode nor a prefill", i))
			continue
		}
		base := inMilliseconds(other.StepTime(s))
		if !(st.Time > 0) || math.IsInf(st.Time, 0) || base <= 0 {
			errs = append(errs, fmt.Errorf("sim: sampled model: step %d took %v ms, and %v ms by the model: want finite numbers above 0", i, st.Time, base))
			continue
		}
		m.cells[k] = append(m.cells[k], st.Time/base)
	}
	return m, errors.Join(errs...)
}

// StepTime implements [StepModel].
func (m Sampled) StepTime(s Shape) time.Duration {
	base := m.other.StepTime(s)
	k, ok := cellOf(s)
	ratios := m.cells[k]
	if !ok || len(ratios) == 0 {
		return base
	}
	return time.Duration(math.Round(ratios[draws(m.seed, s).IntN(len(ratios))] * float64(base)))
}

func cellOf(s Shape) (cell, bool) {
	half := func(v float64) int { return int(math.Floor(2 * math.Log2(max(v, 1)))) }
	switch {
	case s.Decodes > 0 && len(s.Extends) == 0:
		return cell{false, half(float64(s.Decodes)), half(float64(s.Context))}, true
	case s.Decodes == 0 && len(s.Extends) > 0:
		tokens, pairs, _ := prefillWork(s.Extends)
		return cell{true, half(float64(tokens)), half(pairs)}, true
	}
	return cell{}, false
}

func (m Sampled) validate() error {
	if m.cells == nil {
		return errors.New("sim: a sampled model must be made by NewSampled")
	}
	return nil
}
