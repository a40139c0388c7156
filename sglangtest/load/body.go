package load

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// The half-open range that token ids of segments are taken from unless [WithTokenRange] says otherwise. Every
// vocabulary in use is larger, and special tokens lie below or far above.
const (
	DefaultTokenLow  = 256
	DefaultTokenHigh = 2000
)

// openAINames maps SGLang's sampling parameters to the names of the OpenAI routes, where they differ
// (SGLang 0.5.23, entrypoints/openai/protocol.py).
var openAINames = map[string]string{"min_new_tokens": "min_tokens", "sampling_seed": "seed"}

// notOnOpenAI lists the sampling parameters of /generate that the OpenAI routes do not know and would ignore
// (SGLang 0.5.23, entrypoints/openai/protocol.py).
var notOnOpenAI = []string{"stream_interval", "structural_tag", "beam_width", "spaces_between_special_tokens"}

// CheckSampling reports the parameters of p, which may be nil, that requests on this API cannot carry: those that
// the route ignores, and more than one answer per request.
func (a API) CheckSampling(p *SamplingParams) error {
	if p == nil {
		return nil
	}
	if p.N != nil && *p.N > 1 {
		return fmt.Errorf("sampling parameter n is %d: a result describes one answer, so n must be 1", *p.N)
	}
	if a == Generate {
		return nil
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("sampling parameters: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return fmt.Errorf("sampling parameters: %w", err)
	}
	unknown := notOnOpenAI
	if a == ChatCompletions {
		unknown = append(slices.Clone(unknown), "json_schema")
	}
	for _, name := range unknown {
		if _, set := fields[name]; set {
			return fmt.Errorf("sampling parameter %s: %s ignores it", name, a.path())
		}
	}
	return nil
}

// samplingFields returns the members that p, which may be nil, adds to a request body, each preceded by a comma,
// in the order of their names. The number of tokens stands apart: it is the request's OutputLen.
func samplingFields(api API, p *SamplingParams) ([]byte, error) {
	fields := map[string]json.RawMessage{}
	if err := api.CheckSampling(p); err != nil {
		return nil, err
	}
	if p != nil {
		raw, err := json.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("sampling parameters: %w", err)
		}
		if err := json.Unmarshal(raw, &fields); err != nil {
			return nil, fmt.Errorf("sampling parameters: %w", err)
		}
	}
	delete(fields, "max_new_tokens")
	if _, ok := fields["ignore_eos"]; !ok {
		fields["ignore_eos"] = json.RawMessage("true")
	}
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		key := name
		if renamed, ok := openAINames[name]; ok && api != Generate {
			key = renamed
		}
		b = append(b, ',')
		b = wire.AppendString(b, key)
		b = append(b, ':')
		b = append(b, fields[name]...)
	}
	return b, nil
}

// appendBody appends the request's JSON body. fields is what samplingFields made.
func (s *Sender) appendBody(b []byte, req *Request, fields []byte) ([]byte, error) {
	if err := req.CheckCarried(); err != nil {
		return nil, err
	}
	p := &req.Prompt
	for i := range p.Segments {
		if seg := &p.Segments[i]; seg.Answer {
			return nil, fmt.Errorf("the prompt holds the answer to request %d, whose tokens this sender does not know", seg.Stream)
		}
	}
	switch s.api {
	case Generate:
		switch {
		case p.Text != "":
			b = append(b, `{"text":`...)
			b = wire.AppendString(b, p.Text)
		case len(p.Messages) > 0:
			return nil, fmt.Errorf("a prompt of messages cannot be sent to %s: use the API %s", s.api.path(), ChatCompletions)
		default:
			b = append(b, `{"input_ids":`...)
			b = s.appendTokens(b, p)
		}
		b = append(b, `,"sampling_params":{"max_new_tokens":`...)
		b = strconv.AppendInt(b, int64(req.OutputLen), 10)
		b = append(b, fields...)
		b = append(b, '}')
	case Completions:
		b = append(b, `{"model":`...)
		b = wire.AppendString(b, s.model)
		b = append(b, `,"prompt":`...)
		switch {
		case p.Text != "":
			b = wire.AppendString(b, p.Text)
		case len(p.Messages) > 0:
			return nil, fmt.Errorf("a prompt of messages cannot be sent to %s: use the API %s", s.api.path(), ChatCompletions)
		default:
			b = s.appendTokens(b, p)
		}
		b = append(b, `,"max_tokens":`...)
		b = strconv.AppendInt(b, int64(req.OutputLen), 10)
		b = append(b, fields...)
	case ChatCompletions:
		b = append(b, `{"model":`...)
		b = wire.AppendString(b, s.model)
		b = append(b, `,"messages":`...)
		switch {
		case p.Text != "":
			b = append(b, `[{"role":"user","content":`...)
			b = wire.AppendString(b, p.Text)
			b = append(b, `}]`...)
		case len(p.Messages) > 0:
			b = appendMessages(b, p.Messages)
		default: // SGLang then skips the chat template and takes the ids as they are
			b = append(b, `[{"role":"user","content":""}],"input_ids":`...)
			b = s.appendTokens(b, p)
		}
		b = append(b, `,"max_completion_tokens":`...)
		b = strconv.AppendInt(b, int64(req.OutputLen), 10)
		b = append(b, fields...)
	}
	b, err := appendCarried(b, s.api, req)
	if err != nil {
		return nil, err
	}
	if s.stream {
		b = append(b, `,"stream":true`...)
		if s.api != Generate {
			b = append(b, `,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`...)
		}
	} else {
		b = append(b, `,"stream":false`...)
	}
	return append(b, '}'), nil
}

func (s *Sender) appendTokens(b []byte, p *Prompt) []byte {
	b = append(b, '[')
	n := len(b)
	for _, id := range p.TokenIDs {
		b = strconv.AppendInt(b, int64(id), 10)
		b = append(b, ',')
	}
	for _, seg := range p.Segments {
		for pos := seg.Offset; pos < seg.Offset+seg.Length; pos++ {
			b = strconv.AppendInt(b, int64(TokenID(seg.Stream, pos, s.tokenLow, s.tokenHigh)), 10)
			b = append(b, ',')
		}
	}
	if len(b) > n {
		b = b[:len(b)-1]
	}
	return append(b, ']')
}
