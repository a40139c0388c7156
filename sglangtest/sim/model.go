package sim

import "time"

// A Shape is what the duration of a step depends on: it is either a prefill (Extends) or a decode (Decodes > 0).
type Shape struct {
	Decodes int      // requests that decode one token each
	Context int      // KV tokens that they read, summed
	Extends []Extend // prompt pieces
}

// An Extend is a piece of a prompt that a step computes.
type Extend struct {
	New     int // tokens computed
	Context int // tokens of the same prompt computed before
}

// A StepModel gives the duration of a step on the GPU. Implementations must be pure functions of the shape, must
// not keep it, and are safe for concurrent use.
type StepModel interface {
	StepTime(Shape) time.Duration
}

// Linear is a [StepModel] that is linear in the work of a step. All coefficients are milliseconds, per unit named.
//
//	decode  = DecodeBase + DecodeRequest·requests + DecodeContext·context
//	prefill = PrefillBase + PrefillToken·Σnew + PrefillPair·Σ(new² + 2·new·context) + PrefillContext·Σcontext
type Linear struct {
	DecodeBase     float64 `json:"decode_base_ms"`
	DecodeRequest  float64 `json:"decode_request_ms"`
	DecodeContext  float64 `json:"decode_context_ms"`
	PrefillBase    float64 `json:"prefill_base_ms"`
	PrefillToken   float64 `json:"prefill_token_ms"`
	PrefillPair    float64 `json:"prefill_pair_ms"`
	PrefillContext float64 `json:"prefill_context_ms"`
}

// StepTime implements [StepModel].
func (m Linear) StepTime(s Shape) time.Duration {
	if s.Decodes > 0 {
		return milliseconds(m.DecodeBase + m.DecodeRequest*float64(s.Decodes) + m.DecodeContext*float64(s.Context))
	}
	tokens, pairs, context := prefillWork(s.Extends)
	return milliseconds(m.PrefillBase + m.PrefillToken*tokens + m.PrefillPair*pairs + m.PrefillContext*context)
}

func prefillWork(extends []Extend) (tokens, pairs, context float64) {
	for _, x := range extends {
		n, c := float64(x.New), float64(x.Context)
		tokens += n
		pairs += n*n + 2*n*c
		context += c
	}
	return tokens, pairs, context
}

func milliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
