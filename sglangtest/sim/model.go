package sim

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// A Shape is what the duration of a step depends on. A step with Decodes alone is a decode, one with Extends alone a
// prefill, one with both a mixed chunk.
type Shape struct {
	Decodes int      // requests that decode one token each
	Context int      // KV tokens that they read, summed
	Extends []Extend // prompt pieces
	// Index is the number of the step within its engine, from 0, and in the data-parallel rank k from k·2⁴⁸ on. [Noise] and
	// [Sampled] draw by it, so that the same engine run again sees the same times and two steps of one shape need not take
	// the same time.
	Index uint64
}

// stepBits are the bits of [Shape].Index that number the steps of a rank.
const stepBits = 48

// An Extend is a piece of a prompt that a step computes.
type Extend struct {
	New     int `json:"new"`     // tokens computed
	Context int `json:"context"` // tokens of the same prompt computed before
}

// A StepModel gives the duration of a step on the GPU. Implementations must be pure functions of the shape, must
// not keep it, and are safe for concurrent use. Those of this package are [Linear], [Grid], [Replay], [Sampled] and
// [Noise]; they go into the JSON of a [Profile].
type StepModel interface {
	StepTime(Shape) time.Duration
}

// Linear is a [StepModel] that is linear in the work of a step. All coefficients are milliseconds, per unit named.
//
//	decode  = DecodeBase + DecodeRequest·requests + DecodeContext·context
//	prefill = PrefillBase + PrefillToken·Σnew + PrefillPair·Σ(new² + 2·new·context) + PrefillContext·Σcontext
//	mixed   = the prefill, each decode being one more new token, with the larger of the two bases, + DecodeContext·context
//
// CUDA graphs are captured for certain sizes only. Up to the largest of DecodeGraphs the requests of a decode count as
// the next captured size, as SGLang pads the batch (cuda_graph_runner.py); above it the step runs without a graph and
// costs DecodeEager more. The same holds for Σnew with PrefillGraphs and PrefillEager (piecewise_cuda_graph_runner.py),
// but attention (the pairs) is computed for the true sizes. Without a list nothing is padded.
//
// Below PrefillKnee tokens a prefill costs what one of that many tokens costs: reading the weights binds it. A mixed
// step runs without padding; no measurement of one has been compared with it.
type Linear struct {
	DecodeBase     float64 `json:"decode_base_ms"`
	DecodeRequest  float64 `json:"decode_request_ms"`
	DecodeContext  float64 `json:"decode_context_ms"`
	PrefillBase    float64 `json:"prefill_base_ms"`
	PrefillToken   float64 `json:"prefill_token_ms"`
	PrefillPair    float64 `json:"prefill_pair_ms"`
	PrefillContext float64 `json:"prefill_context_ms"`
	PrefillKnee    int     `json:"prefill_knee_tokens,omitempty"`

	DecodeGraphs  []int   `json:"decode_graphs,omitempty"` // captured batch sizes, ascending
	DecodeEager   float64 `json:"decode_eager_ms,omitempty"`
	PrefillGraphs []int   `json:"prefill_graphs,omitempty"` // captured numbers of tokens, ascending
	PrefillEager  float64 `json:"prefill_eager_ms,omitempty"`
}

// StepTime implements [StepModel].
func (m Linear) StepTime(s Shape) time.Duration {
	if len(s.Extends) == 0 {
		requests, eager := padded(s.Decodes, m.DecodeGraphs)
		ms := m.DecodeBase + m.DecodeRequest*float64(requests) + m.DecodeContext*float64(s.Context)
		if eager {
			ms += m.DecodeEager
		}
		return milliseconds(ms)
	}
	tokens, pairs, context := prefillWork(s.Extends)
	base, eager := m.PrefillBase, false
	if s.Decodes > 0 {
		base = max(base, m.DecodeBase)
		tokens += s.Decodes
	} else {
		tokens, eager = padded(tokens, m.PrefillGraphs)
	}
	ms := base + m.PrefillToken*float64(max(tokens, m.PrefillKnee)) + m.PrefillPair*pairs + m.PrefillContext*context +
		m.DecodeContext*float64(s.Context)
	if eager {
		ms += m.PrefillEager
	}
	return milliseconds(ms)
}

func (m Linear) validate() error {
	var errs []error
	for _, c := range []struct {
		name string
		v    float64
	}{{"decode_base_ms", m.DecodeBase}, {"decode_request_ms", m.DecodeRequest}, {"decode_context_ms", m.DecodeContext},
		{"decode_eager_ms", m.DecodeEager}, {"prefill_base_ms", m.PrefillBase}, {"prefill_token_ms", m.PrefillToken},
		{"prefill_pair_ms", m.PrefillPair}, {"prefill_context_ms", m.PrefillContext}, {"prefill_eager_ms", m.PrefillEager},
		{"prefill_knee_tokens", float64(m.PrefillKnee)}} {
		if !(c.v >= 0) || math.IsInf(c.v, 0) {
			errs = append(errs, fmt.Errorf("sim: linear model: %s is %v: want a finite number of at least 0", c.name, c.v))
		}
	}
	errs = append(errs, ascending("linear model: decode_graphs", m.DecodeGraphs, 1), ascending("linear model: prefill_graphs", m.PrefillGraphs, 1))
	return errors.Join(errs...)
}

// padded returns the captured size that n runs as, and whether n is above all of them.
func padded(n int, captured []int) (size int, eager bool) {
	if len(captured) == 0 {
		return n, false
	}
	i, _ := slices.BinarySearch(captured, n)
	if i == len(captured) {
		return n, true
	}
	return captured[i], false
}

func prefillWork(extends []Extend) (tokens int, pairs, context float64) {
	for _, x := range extends {
		n, c := float64(x.New), float64(x.Context)
		tokens += x.New
		pairs += n*n + 2*n*c
		context += c
	}
	return tokens, pairs, context
}

// ascending reports an axis or a list of sizes that is not strictly ascending from at least least.
func ascending(name string, v []int, least int) error {
	for i, x := range v {
		if x < least || i > 0 && x <= v[i-1] {
			return fmt.Errorf("sim: %s is %v: want numbers of at least %d, each larger than the one before", name, v, least)
		}
	}
	return nil
}

func milliseconds(ms float64) time.Duration {
	return time.Duration(math.Round(ms * float64(time.Millisecond)))
}

func inMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
