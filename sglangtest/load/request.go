package load

import (
	"encoding/json"
	"errors"
	"time"
)

// A Segment is a run of tokens that are named rather than stored: positions Offset to Offset+Length of an
// endless pseudo-random token stream. Equal (Stream, position) pairs are equal tokens, so two prompts that
// begin with the same segment share a prefix in a server's radix cache. Token ids are made only when a
// request body is written; see [TokenID].
type Segment struct {
	Stream uint64 `json:"stream"`
	Offset int    `json:"offset"` // tokens, ≥ 0
	Length int    `json:"length"` // tokens, > 0
	// Answer says that Stream is the ID of an earlier request of the workload and the tokens are those of its answer. The
	// caches of simulated engines in virtual time hold them (package sim/fleet); a [Sender] does not know them and refuses the request.
	Answer bool `json:"-"`
}

// A Message is one turn of a chat prompt. In JSON its content is a text, or the list of its parts.
type Message struct {
	Role string `json:"role"`
	// Content is the text. If there are Parts it is not sent, but stands for the text that they hold, by which tokens are
	// guessed and prefixes compared.
	Content string `json:"content"`
	// Parts is the content in parts, a JSON array, sent as it is: [{"type": "text", "text": "…"}, {"type": "image_url", …}].
	// Nil: Content is the content. What parts other than text cost in tokens is known only to the server.
	Parts json.RawMessage `json:"-"`
	// ToolCalls are the calls that the assistant made in this turn, a JSON array, sent as it is; nil for none.
	ToolCalls json.RawMessage `json:"tool_calls,omitempty"`
	// ToolCallID names the call that a turn of role "tool" answers; empty for other turns.
	ToolCallID string `json:"tool_call_id,omitempty"`
}

// A Prompt holds the input of a request in exactly one of four forms.
// It is not modified by this package after it has been made, and may be shared.
type Prompt struct {
	Segments []Segment `json:"segments,omitempty"`  // tokens by name; the length is exact without a tokenizer
	TokenIDs []int32   `json:"input_ids,omitempty"` // tokens by value
	Text     string    `json:"prompt,omitempty"`    // text; its length in tokens is known only to the server
	Messages []Message `json:"messages,omitempty"`  // chat turns; likewise
}

// Tokens returns the prompt's length in tokens, or 0 if only the server can know it (text and messages).
func (p Prompt) Tokens() int {
	n := len(p.TokenIDs)
	for i := range p.Segments {
		n += p.Segments[i].Length
	}
	return n
}

// IsZero reports whether the prompt holds nothing in any form.
func (p Prompt) IsZero() bool { return p.forms() == 0 }

func (p Prompt) forms() int {
	n := 0
	for _, has := range []bool{len(p.Segments) > 0, len(p.TokenIDs) > 0, p.Text != "", len(p.Messages) > 0} {
		if has {
			n++
		}
	}
	return n
}

// Validate reports an error unless the prompt has exactly one form and its segments are well formed.
func (p Prompt) Validate() error {
	switch p.forms() {
	case 0:
		return errors.New("prompt is empty: want one of segments, input_ids, prompt or messages")
	case 1:
	default:
		return errors.New("prompt has more than one of segments, input_ids, prompt and messages")
	}
	for i := range p.Segments {
		if s := &p.Segments[i]; s.Offset < 0 || s.Length <= 0 {
			return errors.New("prompt segment needs offset ≥ 0 and length > 0")
		}
	}
	return nil
}

// A Request is one request of a workload: when it arrives, what it asks and how much it wants back.
type Request struct {
	// ID is the position in the workload, counted from 0. It is unique within a run.
	ID int
	// Arrival is the intended arrival, an offset from the run's start.
	Arrival time.Duration
	Prompt  Prompt
	// InputLen is the prompt's length in tokens as the dataset states it; 0 if only the server can know it.
	InputLen int
	// OutputLen is the number of output tokens to ask for (max_new_tokens). It is > 0 in generated requests.
	OutputLen int
	// Sampling holds the request's sampling parameters; nil means none. Unless it sets ignore_eos, the sender
	// sends ignore_eos: true, so that a request yields exactly OutputLen tokens. MaxNewTokens is not used.
	Sampling *SamplingParams
	// Conversation names the conversation that the request is a turn of; empty for a single request.
	Conversation string
	// Turn is the position in the conversation, counted from 0.
	Turn int

	// Priority is SGLang's, for a server that runs with --enable-priority-scheduling, and for who places the request: larger is
	// more urgent unless it has --schedule-low-priority-values-first. Nil: none is sent, which SGLang puts behind all others.
	Priority *int `json:",omitempty"`

	// The next three are for who places the request (package policy); nothing of them is sent. Zero values stand for none.

	Deadline time.Duration `json:",omitempty"` // by which the answer should have come, an offset from the run's start
	Tenant   string        `json:",omitempty"` // on whose behalf
	Session  string        `json:",omitempty"` // what should go to one worker; empty: Conversation

	// LoRA names the adapter that the request is for (SGLang's lora_path); empty: the base model.
	LoRA string `json:",omitempty"`
	// Rank is the data-parallel rank of the server that has to take the request (SGLang's routed_dp_rank), from 0; nil: any.
	Rank *int `json:",omitempty"`
	// Extra holds further members of the body by name, each a JSON value, such as "tools" of a chat or "cache_salt". What the
	// sender itself sets is refused, see CheckCarried. It is not modified by this package and may be shared; nil: none.
	Extra map[string]json.RawMessage `json:",omitempty"`
	// Header holds headers that this request has beside the sender's, such as "X-SMG-Routing-Key" and "traceparent". Like
	// Extra it is checked and may be shared; nil: none.
	Header map[string]string `json:",omitempty"`
}

// TokenID returns the token at position pos of the given stream, in the half-open range [lo, hi).
// It is a pure function: the same arguments give the same token on every machine and in every version.
// hi must exceed lo.
func TokenID(stream uint64, pos int, lo, hi int32) int32 {
	// splitmix64 (Steele, Lea, Flood, OOPSLA 2014) over the position, then a multiply-shift into the range.
	z := stream + (uint64(pos)+1)*0x9e3779b97f4a7c15
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	z ^= z >> 31
	return lo + int32((z>>32)*uint64(hi-lo)>>32)
}
