package load

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/nearest"
)

// SamplingParams holds the sampling parameters of SGLang's /generate (sampling/sampling_params.py, class
// SamplingParams, releases 0.5.15 to 0.5.23). The JSON names are SGLang's. The zero value sets nothing: a field
// that is nil or empty is left out, and the server's default holds. [Ptr] makes pointers to literals.
//
// In JSON, null is the same as leaving the key out, and a key that is none of these is an error.
// A SamplingParams is not modified by this package after it has been made, and may be shared.
type SamplingParams struct {
	MaxNewTokens *int    `json:"max_new_tokens,omitzero"` // output tokens, ≥ 0; server's default 128
	MinNewTokens *int    `json:"min_new_tokens,omitzero"` // output tokens, 0 to MaxNewTokens; default 0
	Stop         Strings `json:"stop,omitzero"`           // texts that end the output
	StopTokenIDs []int32 `json:"stop_token_ids,omitzero"` // tokens that end the output, ≥ 0
	StopRegex    Strings `json:"stop_regex,omitzero"`     // regular expressions whose match ends the output

	Temperature       *float64 `json:"temperature,omitzero"`        // ≥ 0; 0 is greedy; default 1
	TopP              *float64 `json:"top_p,omitzero"`              // (0, 1]; default 1
	TopK              *int     `json:"top_k,omitzero"`              // ≥ 1, or -1 for all; default -1
	MinP              *float64 `json:"min_p,omitzero"`              // [0, 1]; default 0
	FrequencyPenalty  *float64 `json:"frequency_penalty,omitzero"`  // [-2, 2]; default 0
	PresencePenalty   *float64 `json:"presence_penalty,omitzero"`   // [-2, 2]; default 0
	RepetitionPenalty *float64 `json:"repetition_penalty,omitzero"` // (0, 2]; default 1
	N                 *int     `json:"n,omitzero"`                  // answers per request, ≥ 1; default 1

	// At most one of these four constrains the output. Empty is unset.
	JSONSchema    string `json:"json_schema,omitempty"`
	Regex         string `json:"regex,omitempty"`
	EBNF          string `json:"ebnf,omitempty"`
	StructuralTag string `json:"structural_tag,omitempty"`

	// IgnoreEOS skips every stop that depends on a token: the end-of-sequence token, the model's own stop tokens
	// and StopTokenIDs. Stop texts, stop expressions and a grammar's end still hold. Default false.
	IgnoreEOS                  *bool `json:"ignore_eos,omitzero"`
	SkipSpecialTokens          *bool `json:"skip_special_tokens,omitzero"`           // default true
	SpacesBetweenSpecialTokens *bool `json:"spaces_between_special_tokens,omitzero"` // default true
	NoStopTrim                 *bool `json:"no_stop_trim,omitzero"`                  // default false

	StreamInterval *int              `json:"stream_interval,omitzero"` // output tokens between events, ≥ 1; default: the server's
	LogitBias      map[int32]float64 `json:"logit_bias,omitzero"`      // by token id, ≥ 0
	SamplingSeed   *int64            `json:"sampling_seed,omitzero"`
	CustomParams   json.RawMessage   `json:"custom_params,omitzero"` // a JSON object
	BeamWidth      *int              `json:"beam_width,omitzero"`    // ≥ 1; needs SGLang ≥ 0.5.21
	Watermark      json.RawMessage   `json:"watermark,omitzero"`     // a JSON object; needs SGLang ≥ 0.5.23
}

// Ptr returns a pointer to v, for the fields of [SamplingParams]: Temperature: load.Ptr(0.7).
func Ptr[T any](v T) *T { return &v }

// BenchServingSampling returns the sampling parameters that SGLang's own benchmark sends with each request: temperature 0 and
// ignore_eos (SGLang 0.5.23, sglang/benchmark/serving.py). With [WithSampling] they make a load the same as its; in a config
// they are "sampling_params": {"temperature": 0}, since ignore_eos is the sender's default. Without a temperature the server
// samples at its own default, which costs it time.
func BenchServingSampling() SamplingParams {
	return SamplingParams{Temperature: Ptr(0.0), IgnoreEOS: Ptr(true)}
}

// Strings is a list of strings that in JSON may also be written as a single string.
type Strings []string

// UnmarshalJSON reads a string, a list of strings, or null for nil.
func (s *Strings) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		var one string
		if err := json.Unmarshal(data, &one); err != nil {
			return err
		}
		*s = Strings{one}
		return nil
	}
	var list []string
	if err := json.Unmarshal(data, &list); err != nil {
		return errors.New("want a string or a list of strings")
	}
	*s = list
	return nil
}

// samplingKeys are the JSON names of SamplingParams.
var samplingKeys = jsonKeys(reflect.TypeFor[SamplingParams]())

// UnmarshalJSON reads a JSON object and merges it over p; see [SamplingParams.Merge]. Unknown keys are errors, all of
// them reported, each with the nearest valid name. It does not check ranges; see [SamplingParams.Validate].
func (p *SamplingParams) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	type fields SamplingParams // without this method
	var read fields            // of its own, because decoding into p would write through pointers that p may share
	if err := decodeObject(data, &read, samplingKeys); err != nil {
		return fmt.Errorf("sampling parameters: %w", err)
	}
	for _, raw := range []*json.RawMessage{&read.CustomParams, &read.Watermark} {
		if string(*raw) == "null" {
			*raw = nil
		}
	}
	*p = *p.Merge((*SamplingParams)(&read))
	return nil
}

// Merge returns p with every field that over sets replaced by over's, as a value of its own that shares what the
// fields point to. A list or map that is empty but not nil is set. The four constraints on the output count as one
// field, because a server takes at most one of them: over's replaces whichever p has. Nil sets nothing, on either side.
func (p *SamplingParams) Merge(over *SamplingParams) *SamplingParams {
	var m SamplingParams
	if p != nil {
		m = *p
	}
	if over == nil {
		return &m
	}
	m.MaxNewTokens = cmp.Or(over.MaxNewTokens, m.MaxNewTokens)
	m.MinNewTokens = cmp.Or(over.MinNewTokens, m.MinNewTokens)
	m.Temperature = cmp.Or(over.Temperature, m.Temperature)
	m.TopP = cmp.Or(over.TopP, m.TopP)
	m.TopK = cmp.Or(over.TopK, m.TopK)
	m.MinP = cmp.Or(over.MinP, m.MinP)
	m.FrequencyPenalty = cmp.Or(over.FrequencyPenalty, m.FrequencyPenalty)
	m.PresencePenalty = cmp.Or(over.PresencePenalty, m.PresencePenalty)
	m.RepetitionPenalty = cmp.Or(over.RepetitionPenalty, m.RepetitionPenalty)
	m.N = cmp.Or(over.N, m.N)
	m.IgnoreEOS = cmp.Or(over.IgnoreEOS, m.IgnoreEOS)
	m.SkipSpecialTokens = cmp.Or(over.SkipSpecialTokens, m.SkipSpecialTokens)
	m.SpacesBetweenSpecialTokens = cmp.Or(over.SpacesBetweenSpecialTokens, m.SpacesBetweenSpecialTokens)
	m.NoStopTrim = cmp.Or(over.NoStopTrim, m.NoStopTrim)
	m.StreamInterval = cmp.Or(over.StreamInterval, m.StreamInterval)
	m.SamplingSeed = cmp.Or(over.SamplingSeed, m.SamplingSeed)
	m.BeamWidth = cmp.Or(over.BeamWidth, m.BeamWidth)
	if over.Stop != nil {
		m.Stop = over.Stop
	}
	if over.StopTokenIDs != nil {
		m.StopTokenIDs = over.StopTokenIDs
	}
	if over.StopRegex != nil {
		m.StopRegex = over.StopRegex
	}
	if over.LogitBias != nil {
		m.LogitBias = over.LogitBias
	}
	if over.CustomParams != nil {
		m.CustomParams = over.CustomParams
	}
	if over.Watermark != nil {
		m.Watermark = over.Watermark
	}
	if over.constraints() > 0 {
		m.JSONSchema, m.Regex, m.EBNF, m.StructuralTag = over.JSONSchema, over.Regex, over.EBNF, over.StructuralTag
	}
	return &m
}

func (p *SamplingParams) constraints() int {
	n := 0
	for _, s := range []string{p.JSONSchema, p.Regex, p.EBNF, p.StructuralTag} {
		if s != "" {
			n++
		}
	}
	return n
}

// Validate reports all values that SGLang would refuse, joined into one error, each with its JSON name and the
// valid range. The ranges are those of SamplingParams.verify in SGLang.
func (p *SamplingParams) Validate() error {
	faults := p.faults()
	for i, err := range faults {
		faults[i] = fmt.Errorf("load: %w", err)
	}
	return errors.Join(faults...)
}

func (p *SamplingParams) faults() []error {
	var faults []error
	fault := func(name string, value any, want string) {
		faults = append(faults, fmt.Errorf("sampling parameter %s = %v: want %s", name, value, want))
	}
	integer := func(name string, v *int, atLeast int) {
		if v != nil && *v < atLeast {
			fault(name, *v, fmt.Sprintf("≥ %d", atLeast))
		}
	}
	// A NaN fails every comparison, so ranges are tested for being inside.
	number := func(name string, v *float64, inside func(float64) bool, want string) {
		if v != nil && !inside(*v) {
			fault(name, *v, want)
		}
	}
	penalty := func(v float64) bool { return v >= -2 && v <= 2 }

	integer("max_new_tokens", p.MaxNewTokens, 0)
	integer("min_new_tokens", p.MinNewTokens, 0)
	if p.MinNewTokens != nil && p.MaxNewTokens != nil && *p.MinNewTokens > *p.MaxNewTokens {
		fault("min_new_tokens", *p.MinNewTokens, fmt.Sprintf("at most max_new_tokens, which is %d", *p.MaxNewTokens))
	}
	for _, id := range p.StopTokenIDs {
		if id < 0 {
			fault("stop_token_ids", id, "ids ≥ 0")
		}
	}
	number("temperature", p.Temperature, func(v float64) bool { return v >= 0 && !math.IsInf(v, 1) }, "≥ 0 and finite")
	number("top_p", p.TopP, func(v float64) bool { return v > 0 && v <= 1 }, "in (0, 1]")
	if p.TopK != nil && *p.TopK != -1 && *p.TopK < 1 {
		fault("top_k", *p.TopK, "≥ 1, or -1 for all")
	}
	number("min_p", p.MinP, func(v float64) bool { return v >= 0 && v <= 1 }, "in [0, 1]")
	number("frequency_penalty", p.FrequencyPenalty, penalty, "in [-2, 2]")
	number("presence_penalty", p.PresencePenalty, penalty, "in [-2, 2]")
	number("repetition_penalty", p.RepetitionPenalty, func(v float64) bool { return v > 0 && v <= 2 }, "in (0, 2]")
	integer("n", p.N, 1)
	if n := p.constraints(); n > 1 {
		faults = append(faults, fmt.Errorf("sampling parameters set %d of json_schema, regex, ebnf and structural_tag: want at most one", n))
	}
	integer("stream_interval", p.StreamInterval, 1)
	for _, id := range sortedKeys(p.LogitBias) {
		if bias := p.LogitBias[id]; id < 0 || math.IsNaN(bias) || math.IsInf(bias, 0) {
			fault("logit_bias", fmt.Sprintf("{%d: %v}", id, bias), "token ids ≥ 0 and finite values")
		}
	}
	integer("beam_width", p.BeamWidth, 1)
	for _, f := range []struct {
		name string
		raw  json.RawMessage
	}{{"custom_params", p.CustomParams}, {"watermark", p.Watermark}} {
		if f.raw != nil && (!json.Valid(f.raw) || bytes.TrimSpace(f.raw)[0] != '{') {
			fault(f.name, string(f.raw), "a JSON object")
		}
	}
	return faults
}

func sortedKeys[V any](m map[int32]V) []int32 {
	keys := make([]int32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// jsonKeys returns the JSON names of a struct's fields, in their order.
func jsonKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "-" {
			keys = append(keys, name)
		}
	}
	return keys
}

// decodeObject decodes a JSON object into v, a pointer to a struct with the given JSON names. Unlike
// [json.Decoder.DisallowUnknownFields] it takes no key in another case and reports all unknown keys, with the
// nearest valid ones.
func decodeObject(data []byte, v any, keys []string) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return fmt.Errorf("want a JSON object, not a JSON %s", wrong.Value)
		}
		return jsonFault(err)
	}
	if members == nil {
		return errors.New("want a JSON object, not null")
	}
	var unknown []string
	for key := range members {
		if !slices.Contains(keys, key) {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		faults := make([]string, len(unknown))
		for i, key := range unknown {
			faults[i] = fmt.Sprintf("unknown key %q: %s", key, nearest.Hint(key, keys))
		}
		return errors.New(strings.Join(faults, "; "))
	}
	if err := json.Unmarshal(data, v); err != nil {
		return jsonFault(err)
	}
	return nil
}
