package wire

import (
	"bytes"
	"math"
	"strconv"
)

// A Chunk is what a load client wants to know of one event or answer, whichever API it came from. Byte
// slices point into the parsed data. Counts are -1 where the data has none.
type Chunk struct {
	Text      []byte // inside of the JSON string, escapes and all; nil if absent or null
	Reasoning []byte // chat: reasoning_content, or reasoning as other engines call it, likewise
	ToolCalls []byte // chat: tool_calls or function_call as they stand in the JSON; see EachToolText

	PromptTokens, CompletionTokens, CachedTokens int // cumulative over the request
	CachedDevice, CachedHost, CachedStorage      int // of CachedTokens
	Retractions                                  int
	// BadCount names a count that is none, with its value: not a whole number from 0 to MaxCount. Empty if there is no such one.
	BadCount string

	Output bool // the data speaks of the output: it is not a chunk with usage only

	FinishReason []byte // "stop", "length", "abort", …; nil until finished
	AbortMessage []byte // inside of the string, with finish reason "abort" on /generate
	Worker       []byte // weight version, the inside of the string

	Failed  bool   // the data is an error object
	Message []byte // its message, the inside of the string
}

// MaxCount is the largest count that can be one; see load.MaxTokens.
const MaxCount = 1 << 24

func (c *Chunk) reset() {
	*c = Chunk{PromptTokens: -1, CompletionTokens: -1, CachedTokens: -1, CachedDevice: -1, CachedHost: -1, CachedStorage: -1, Retractions: -1}
}

// ParseGenerate reads an event or an answer of /generate (SGLang 0.5.15 to 0.5.23, managers/io_struct.py and
// managers/tokenizer_manager.py). It returns false if b is not a JSON object.
func ParseGenerate(b []byte, c *Chunk) bool {
	c.reset()
	c.Output = true
	at := cursor{b: b}
	m := at.object()
	if m.done {
		return false
	}
	for m.next() {
		switch string(m.key) {
		case "text":
			c.Text, _ = str(m.value())
		case "meta_info":
			c.meta(m.object())
		case "error":
			c.fail(m.value())
		case "object":
			c.topLevelError(m.value())
		case "message":
			c.Message, _ = str(m.value())
		}
	}
	return !at.bad
}

func (c *Chunk) meta(m members) {
	for m.next() {
		switch string(m.key) {
		case "completion_tokens":
			c.CompletionTokens = c.count("completion_tokens", m.value())
		case "prompt_tokens":
			c.PromptTokens = c.count("prompt_tokens", m.value())
		case "cached_tokens":
			c.CachedTokens = c.count("cached_tokens", m.value())
		case "cached_tokens_details":
			c.tiers(m.object())
		case "num_retractions":
			c.Retractions = c.count("num_retractions", m.value())
		case "weight_version":
			c.Worker, _ = str(m.value())
		case "finish_reason":
			for f := m.object(); f.next(); {
				switch string(f.key) {
				case "type":
					c.FinishReason, _ = str(f.value())
				case "message":
					c.AbortMessage, _ = str(f.value())
				}
			}
		}
	}
}

// ParseOpenAI reads an event or an answer of /v1/completions or /v1/chat/completions (entrypoints/openai/protocol.py).
// It looks at the first choice only. It returns false if b is not a JSON object.
func ParseOpenAI(b []byte, c *Chunk) bool {
	c.reset()
	at := cursor{b: b}
	m := at.object()
	if m.done {
		return false
	}
	for m.next() {
		switch string(m.key) {
		case "choices":
			c.choice(m.value())
		case "usage":
			c.usage(m.object())
		case "sglext": // with return_cached_tokens_details in the request
			for ext := m.object(); ext.next(); {
				if string(ext.key) == "cached_tokens_details" {
					c.tiers(ext.object())
				}
			}
		case "error":
			c.fail(m.value())
		case "metadata":
			for md := m.object(); md.next(); {
				if string(md.key) == "weight_version" {
					c.Worker, _ = str(md.value())
				}
			}
		case "object":
			c.topLevelError(m.value())
		case "message":
			c.Message, _ = str(m.value())
		}
	}
	return !at.bad
}

func (c *Chunk) choice(v []byte) {
	v = bytes.TrimLeft(v, "[ \t\r\n")
	if len(v) == 0 || v[0] != '{' {
		return // no choices: a chunk with usage only
	}
	c.Output = true
	at := cursor{b: v}
	for m := at.object(); m.next(); {
		switch string(m.key) {
		case "text":
			c.Text, _ = str(m.value())
		case "delta", "message":
			for d := m.object(); d.next(); {
				switch string(d.key) {
				case "content":
					c.Text, _ = str(d.value())
				case "reasoning_content", "reasoning": // one after the other may hold the same text
					if text, ok := str(d.value()); ok && len(c.Reasoning) == 0 {
						c.Reasoning = text
					}
				case "tool_calls", "function_call":
					c.ToolCalls = d.value()
				}
			}
		case "finish_reason":
			c.FinishReason, _ = str(m.value())
		}
	}
}

// EachToolText calls f for each piece of text in the tool calls: a function's name, and its arguments as far as the
// event has them. A piece is the inside of a JSON string.
func (c *Chunk) EachToolText(f func(inside []byte)) {
	call := func(at *cursor) {
		for m := at.object(); m.next(); {
			switch string(m.key) {
			case "name", "arguments":
				if text, ok := str(m.value()); ok {
					f(text)
				}
			case "function":
				for fn := m.object(); fn.next(); {
					if k := string(fn.key); k == "name" || k == "arguments" {
						if text, ok := str(fn.value()); ok {
							f(text)
						}
					}
				}
			}
		}
	}
	at := cursor{b: c.ToolCalls}
	if len(c.ToolCalls) == 0 || c.ToolCalls[0] != '[' {
		call(&at)
		return
	}
	for at.i++; ; at.i++ {
		at.space()
		if at.bad || at.i >= len(at.b) || at.b[at.i] == ']' {
			return
		}
		call(&at)
		at.space()
		if at.i >= len(at.b) || at.b[at.i] != ',' {
			return
		}
	}
}

func (c *Chunk) usage(m members) {
	for m.next() {
		switch string(m.key) {
		case "completion_tokens":
			c.CompletionTokens = c.count("completion_tokens", m.value())
		case "prompt_tokens":
			c.PromptTokens = c.count("prompt_tokens", m.value())
		case "prompt_tokens_details":
			for d := m.object(); d.next(); {
				if string(d.key) == "cached_tokens" {
					c.CachedTokens = c.count("cached_tokens", d.value())
				}
			}
		}
	}
}

// tiers takes in cached_tokens_details (SGLang 0.5.23, scheduler_components/output_streamer.py).
func (c *Chunk) tiers(m members) {
	for m.next() {
		switch string(m.key) {
		case "device":
			c.CachedDevice = c.count("cached_tokens_details.device", m.value())
		case "host":
			c.CachedHost = c.count("cached_tokens_details.host", m.value())
		case "storage":
			c.CachedStorage = c.count("cached_tokens_details.storage", m.value())
		}
	}
}

// fail takes in the value of a member "error": an object with a message, or a string (0.5.23).
func (c *Chunk) fail(v []byte) {
	if isNull(v) {
		return
	}
	c.Failed = true
	if s, ok := str(v); ok {
		c.Message = s
		return
	}
	at := cursor{b: v}
	for e := at.object(); e.next(); {
		if string(e.key) == "message" {
			c.Message, _ = str(e.value())
		}
	}
}

// topLevelError takes in the member "object" of {"object":"error","message":…}.
func (c *Chunk) topLevelError(v []byte) {
	if s, _ := str(v); string(s) == "error" {
		c.Failed = true
	}
}

// ErrorMessage returns what an error answer says, from any of the shapes that SGLang and its routers use:
// {"error":{"message":…}}, {"error":"…"}, {"object":"error","message":…}, {"detail":"…"}; otherwise the text itself.
func ErrorMessage(body []byte) string {
	var c Chunk
	var detail []byte
	at := cursor{b: body}
	for m := at.object(); m.next(); {
		switch string(m.key) {
		case "error":
			c.fail(m.value())
		case "message", "error_message": // the second of LoRA calls
			c.Message, _ = str(m.value())
		case "detail":
			detail = m.value()
		}
	}
	switch {
	case at.bad:
	case c.Message != nil:
		return Unquote(c.Message)
	case detail != nil:
		if s, ok := str(detail); ok {
			return Unquote(s)
		}
		return string(detail)
	}
	return string(bytes.TrimSpace(body))
}

// count returns the count that v spells, which some gateways write as a fraction: 3.0. It is -1 if v is null. Any other value
// is noted in BadCount.
func (c *Chunk) count(name string, v []byte) int {
	if n, ok := number(v); ok && n <= MaxCount {
		return n
	}
	if f, err := strconv.ParseFloat(string(v), 64); err == nil && f >= 0 && f <= MaxCount && f == math.Trunc(f) {
		return int(f)
	}
	if !isNull(v) {
		c.BadCount = name + " is " + string(v[:min(len(v), 40)])
	}
	return -1
}
