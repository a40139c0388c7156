package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// ownMembers are the members of a body that a request has other means for, each with those means.
var ownMembers = func() map[string]string {
	const prompt, output = "the prompt says it", "the output length says it"
	own := map[string]string{
		"text": prompt, "input_ids": prompt, "prompt": prompt, "messages": prompt,
		"max_tokens": output, "max_completion_tokens": output,
		"sampling_params": "the request's sampling parameters say it", "model": "use WithModel",
		"stream": "use WithStreaming", "stream_options": "the sender counts tokens by it",
		"priority": "use priority", "lora_path": "use lora_path, outside of extra",
		"routed_dp_rank": "use routed_dp_rank, outside of extra", "data_parallel_rank": "use routed_dp_rank, outside of extra",
	}
	for _, name := range jsonKeys(reflect.TypeFor[SamplingParams]()) {
		own[name] = "it belongs to the sampling parameters"
		if renamed, ok := openAINames[name]; ok {
			own[renamed] = "it belongs to the sampling parameters, as " + name
		}
	}
	return own
}()

// chatOnly lists members that /generate and /v1/completions would ignore (SGLang 0.5.23, entrypoints/openai/protocol.py).
var chatOnly = []string{"tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort", "separate_reasoning"}

// ownHeaders are the headers that the sender, its transport or another field of the request sets, in their canonical form.
var ownHeaders = map[string]string{
	"Content-Type": "the sender sets it", "Content-Length": "the sender sets it", "Content-Encoding": "the sender does not compress",
	"Host": "the URL says it", "Accept-Encoding": "the sender reads no compressed answers", "Expect": "the sender waits for no interim answer",
	"Connection": "the transport sets it", "Keep-Alive": "the transport sets it", "Transfer-Encoding": "the transport sets it",
	"Te": "the transport sets it", "Trailer": "the transport sets it", "Upgrade": "the transport sets it",
	"X-Data-Parallel-Rank": "use routed_dp_rank", "X-Override-Routed-Dp-Rank": "use routed_dp_rank", "X-Override-Priority": "use priority",
}

// CheckCarried reports all members of Extra and Header that the request cannot carry since something else says them or they
// are malformed, and a negative Rank. nil: there are none. [RequestGenerator] and [Sender] ask it.
func (r *Request) CheckCarried() error {
	if r.Rank == nil && len(r.Extra) == 0 && len(r.Header) == 0 {
		return nil
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if r.Rank != nil && *r.Rank < 0 {
		fault("routed_dp_rank %d: want ≥ 0", *r.Rank)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Extra)) {
		if means, own := ownMembers[name]; own {
			fault("extra member %q would overwrite what the sender sets: %s", name, means)
		} else if !json.Valid(r.Extra[name]) {
			fault("extra member %q is not JSON", name)
		}
	}
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		canonical := http.CanonicalHeaderKey(name)
		if means, own := ownHeaders[canonical]; own {
			fault("header %q is not the request's to set: %s", name, means)
		} else if name == "" || strings.ContainsFunc(name, notInHeaderName) {
			fault("header %q is no name of a header: want letters, digits and any of !#$%%&'*+-.^_`|~", name)
		} else if strings.ContainsFunc(r.Header[name], func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
			fault("header %q has a value with control characters", name)
		} else if other, twice := seen[canonical]; twice {
			fault("headers %q and %q are one", other, name)
		}
		seen[canonical] = name
	}
	return oneLine(faults...)
}

// notInHeaderName reports whether c cannot stand in the name of a header (RFC 9110, section 5.6.2).
func notInHeaderName(c rune) bool {
	return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", c))
}

// appendCarried appends the members that the request adds to a body, each preceded by a comma, in a fixed order.
func appendCarried(b []byte, api API, r *Request) ([]byte, error) {
	if r.Priority != nil {
		b = strconv.AppendInt(append(b, `,"priority":`...), int64(*r.Priority), 10)
	}
	if r.LoRA != "" {
		b = wire.AppendString(append(b, `,"lora_path":`...), r.LoRA)
	}
	if r.Rank != nil {
		b = strconv.AppendInt(append(b, `,"routed_dp_rank":`...), int64(*r.Rank), 10)
	}
	if len(r.Extra) == 0 {
		return b, nil
	}
	for _, name := range slices.Sorted(maps.Keys(r.Extra)) {
		if api != ChatCompletions && slices.Contains(chatOnly, name) {
			return nil, fmt.Errorf("extra member %q: %s ignores it: use the API %s", name, api.path(), ChatCompletions)
		}
		b = wire.AppendString(append(b, ','), name)
		b = append(append(b, ':'), r.Extra[name]...)
	}
	return b, nil
}

// headerOf returns the header of a request to p.
func (p *place) headerOf(r *Request) (http.Header, error) {
	if len(r.Header) == 0 {
		return p.header, nil
	}
	h := p.header.Clone()
	for name, value := range r.Header {
		if len(h.Values(name)) > 0 {
			return nil, fmt.Errorf("header %q of the request is one that the sender sets too: leave one of them out", name)
		}
		h.Set(name, value)
	}
	return h, nil
}

// appendMessages appends the messages of a chat as the API takes them.
func appendMessages(b []byte, messages []Message) []byte {
	b = append(b, '[')
	for i := range messages {
		m := &messages[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = wire.AppendString(append(b, `{"role":`...), m.Role)
		if b = append(b, `,"content":`...); len(m.Parts) > 0 {
			b = append(b, m.Parts...)
		} else {
			b = wire.AppendString(b, m.Content)
		}
		if len(m.ToolCalls) > 0 {
			b = append(append(b, `,"tool_calls":`...), m.ToolCalls...)
		}
		if m.ToolCallID != "" {
			b = wire.AppendString(append(b, `,"tool_call_id":`...), m.ToolCallID)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// MarshalJSON writes the message as the chat API takes it.
func (m Message) MarshalJSON() ([]byte, error) {
	b := appendMessages(nil, []Message{m})
	return b[1 : len(b)-1], nil
}

// UnmarshalJSON reads a message whose content is a text, a list of parts, or null.
func (m *Message) UnmarshalJSON(data []byte) error {
	var w struct {
		Role       string          `json:"role"`
		Content    json.RawMessage `json:"content"`
		ToolCalls  json.RawMessage `json:"tool_calls"`
		ToolCallID string          `json:"tool_call_id"`
	}
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	*m = Message{Role: w.Role, ToolCallID: w.ToolCallID}
	if string(w.ToolCalls) != "null" {
		m.ToolCalls = w.ToolCalls
	}
	if len(w.Content) == 0 || w.Content[0] != '[' {
		if len(w.Content) > 0 && json.Unmarshal(w.Content, &m.Content) != nil {
			return errors.New("content: want a text or a list of parts")
		}
		return nil
	}
	var parts []struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if err := json.Unmarshal(w.Content, &parts); err != nil {
		return fmt.Errorf("content: want a list of parts: %w", err)
	}
	for i, p := range parts {
		if p.Type == "" {
			return fmt.Errorf(`content[%d]: want a type such as "text" or "image_url"`, i)
		}
		if p.Type == "text" && p.Text == nil {
			return fmt.Errorf("content[%d]: a part of type text has no text", i)
		}
		if p.Text != nil {
			m.Content += *p.Text
		}
	}
	if len(parts) == 0 {
		return errors.New("content: the list of parts is empty")
	}
	m.Parts = w.Content
	return nil
}

// beyond returns what tells the message from another with the same role and content; 0: nothing.
func (m *Message) beyond() (h uint64) {
	if len(m.Parts) > 0 || len(m.ToolCalls) > 0 || m.ToolCallID != "" {
		h = addHash(addHash(hashString(string(m.Parts)), hashString(string(m.ToolCalls))), hashString(m.ToolCallID))
	}
	return h
}
