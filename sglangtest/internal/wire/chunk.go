package wire

import "bytes"

// A Chunk is what a load client wants to know of one event or answer, whichever API it came from. Byte
// slices point into the parsed data. Counts are -1 where the data has none.
type Chunk struct {
	Text      []byte // inside of the JSON string, escapes and all; nil if absent or null
	Reasoning []byte // chat: reasoning_content, likewise

	PromptTokens, CompletionTokens, CachedTokens int // cumulative over the request
	Retractions                                  int

	Output bool // the data speaks of the output: it is not a chunk with usage only

	FinishReason []byte // "stop", "length", "abort", …; nil until finished
	AbortMessage []byte // inside of the string, with finish reason "abort" on /generate
	Worker       []byte // weight version, the inside of the string

	Failed  bool   // the data is an error object
	Message []byte // its message, the inside of the string
}

func (c *Chunk) reset() {
	*c = Chunk{PromptTokens: -1, CompletionTokens: -1, CachedTokens: -1, Retractions: -1}
}

// ParseGenerate reads an event or an answer of /generate (SGLang 0.5.15 to 0.5.23, managers/io_struct.py and
// managers/tokenizer_manager.py). It returns false if b is not a JSON object.
func ParseGenerate(b []byte, c *Chunk) bool {
	c.reset()
	c.Output = true
	m := object(b)
	for m.next() {
		switch string(m.key) {
		case "text":
			c.Text, _ = str(m.val)
		case "meta_info":
			if !c.meta(m.val) {
				return false
			}
		case "error":
			c.fail(m.val)
		case "object", "message":
			c.topLevelError(m.key, m.val)
		}
	}
	return !m.bad
}

func (c *Chunk) meta(v []byte) bool {
	if isNull(v) {
		return true
	}
	m := object(v)
	for m.next() {
		switch string(m.key) {
		case "completion_tokens":
			c.CompletionTokens = count(m.val)
		case "prompt_tokens":
			c.PromptTokens = count(m.val)
		case "cached_tokens":
			c.CachedTokens = count(m.val)
		case "num_retractions":
			c.Retractions = count(m.val)
		case "weight_version":
			c.Worker, _ = str(m.val)
		case "finish_reason":
			if isNull(m.val) {
				continue
			}
			if s, ok := str(m.val); ok {
				c.FinishReason = s
				continue
			}
			f := object(m.val)
			for f.next() {
				switch string(f.key) {
				case "type":
					c.FinishReason, _ = str(f.val)
				case "message":
					c.AbortMessage, _ = str(f.val)
				}
			}
			if f.bad {
				return false
			}
		}
	}
	return !m.bad
}

// ParseOpenAI reads an event or an answer of /v1/completions or /v1/chat/completions (entrypoints/openai/protocol.py).
// It looks at the first choice only. It returns false if b is not a JSON object.
func ParseOpenAI(b []byte, c *Chunk) bool {
	c.reset()
	m := object(b)
	for m.next() {
		switch string(m.key) {
		case "choices":
			if !c.choice(m.val) {
				return false
			}
		case "usage":
			if !c.usage(m.val) {
				return false
			}
		case "error":
			c.fail(m.val)
		case "metadata":
			for md := object(m.val); md.next(); {
				if string(md.key) == "weight_version" {
					c.Worker, _ = str(md.val)
				}
			}
		case "object", "message":
			c.topLevelError(m.key, m.val)
		}
	}
	return !m.bad
}

func (c *Chunk) choice(v []byte) bool {
	v = bytes.TrimLeft(v, "[ \t\r\n")
	if len(v) == 0 || v[0] != '{' {
		return true // no choices: a chunk with usage only
	}
	c.Output = true
	m := object(v)
	for m.next() {
		switch string(m.key) {
		case "text":
			c.Text, _ = str(m.val)
		case "delta", "message":
			if isNull(m.val) {
				continue
			}
			d := object(m.val)
			for d.next() {
				switch string(d.key) {
				case "content":
					c.Text, _ = str(d.val)
				case "reasoning_content":
					c.Reasoning, _ = str(d.val)
				}
			}
			if d.bad {
				return false
			}
		case "finish_reason":
			c.FinishReason, _ = str(m.val)
		}
	}
	return !m.bad
}

func (c *Chunk) usage(v []byte) bool {
	if isNull(v) {
		return true
	}
	m := object(v)
	for m.next() {
		switch string(m.key) {
		case "completion_tokens":
			c.CompletionTokens = count(m.val)
		case "prompt_tokens":
			c.PromptTokens = count(m.val)
		case "prompt_tokens_details":
			for d := object(m.val); d.next(); {
				if string(d.key) == "cached_tokens" {
					c.CachedTokens = count(d.val)
				}
			}
		}
	}
	return !m.bad
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
	for e := object(v); e.next(); {
		if string(e.key) == "message" {
			c.Message, _ = str(e.val)
		}
	}
}

// topLevelError takes in the members of {"object":"error","message":…}.
func (c *Chunk) topLevelError(key, v []byte) {
	s, _ := str(v)
	if string(key) == "message" {
		c.Message = s
	} else if string(s) == "error" {
		c.Failed = true
	}
}

// ErrorMessage returns what an error answer says, from any of the shapes that SGLang and its routers use:
// {"error":{"message":…}}, {"error":"…"}, {"object":"error","message":…}, {"detail":"…"}; otherwise the text itself.
func ErrorMessage(body []byte) string {
	var c Chunk
	var detail []byte
	m := object(body)
	for m.next() {
		switch string(m.key) {
		case "error":
			c.fail(m.val)
		case "message":
			c.Message, _ = str(m.val)
		case "detail":
			detail = m.val
		}
	}
	switch {
	case m.bad:
		return string(bytes.TrimSpace(body))
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

func count(v []byte) int {
	if n, ok := number(v); ok {
		return n
	}
	return -1
}
