package sim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// openAIBody is what the simulator reads of the two OpenAI requests.
type openAIBody struct {
	Model               string          `json:"model"`
	Prompt              json.RawMessage `json:"prompt"`
	Messages            []chatMessage   `json:"messages"`
	InputIDs            []int32         `json:"input_ids"` // chat: the prompt instead of what messages would give
	MaxTokens           *int            `json:"max_tokens"`
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	MinTokens           int             `json:"min_tokens"`
	N                   *int            `json:"n"`
	Stream              bool            `json:"stream"`
	StreamOptions       *struct {
		IncludeUsage    bool `json:"include_usage"`
		ContinuousUsage bool `json:"continuous_usage_stats"`
	} `json:"stream_options"`
	IgnoreEOS         bool            `json:"ignore_eos"`
	RID               json.RawMessage `json:"rid"`
	Logprobs          json.RawMessage `json:"logprobs"`
	Temperature       *float64        `json:"temperature"`
	TopP              *float64        `json:"top_p"`
	TopK              *float64        `json:"top_k"`
	MinP              *float64        `json:"min_p"`
	FrequencyPenalty  *float64        `json:"frequency_penalty"`
	PresencePenalty   *float64        `json:"presence_penalty"`
	RepetitionPenalty *float64        `json:"repetition_penalty"`
}

// A chatMessage is one message; its content is a text or a list of parts.
type chatMessage struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

// text returns the content's text.
func (m chatMessage) text() string {
	var text string
	if json.Unmarshal(m.Content, &text) == nil {
		return text
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(m.Content, &parts) != nil {
		return ""
	}
	for _, p := range parts {
		text += p.Text
	}
	return text
}

func chatTokens(messages []chatMessage) int {
	n := 0
	for _, m := range messages {
		n += TextTokens(m.text()) + messageTokens
	}
	return n
}

func (s *Server) completions(w http.ResponseWriter, r *http.Request) { s.openAI(w, r, false) }
func (s *Server) chat(w http.ResponseWriter, r *http.Request)        { s.openAI(w, r, true) }

func (s *Server) openAI(w http.ResponseWriter, r *http.Request, chat bool) {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		badRequest(w, "1 validation error:\n  {'loc': ['header', 'content-type'], 'msg': \"Unsupported Media Type: Only 'application/json' is allowed\", 'type': 'value_error'}")
		return
	}
	var body openAIBody
	received, ok := readTimed(w, r, &body)
	if !ok {
		return
	}
	c, err := s.openAICall(&body, chat, received)
	if err == nil {
		d := openAI{s: s, chat: chat, model: body.Model, created: time.Now().Unix()}
		if o := body.StreamOptions; o != nil {
			d.usage, d.continuous = o.IncludeUsage, o.ContinuousUsage
		}
		err = s.respond(w, r, c, d)
	}
	if e, ok := err.(bodyError); ok {
		badRequest(w, string(e))
	} else if err != nil {
		writeBody(w, http.StatusBadRequest, "application/json", appendOpenAIError(nil, err.Error(), "BadRequestError", http.StatusBadRequest))
	}
}

func (s *Server) openAICall(body *openAIBody, chat bool, received time.Time) (*call, error) {
	var err error
	d := demand{n: 1, maxNew: body.MaxTokens, minNew: body.MinTokens, ignoreEOS: body.IgnoreEOS}
	if body.N != nil {
		d.n = *body.N
	}
	if !isNull(body.Logprobs) && string(trimJSON(body.Logprobs)) != "false" {
		return nil, inputError("The simulation does not make logprobs.")
	}
	if chat {
		if body.MaxCompletionTokens != nil {
			d.maxNew = body.MaxCompletionTokens
		}
		if len(body.Messages) == 0 {
			return nil, inputError("Messages cannot be empty.")
		}
		if len(body.InputIDs) > 0 {
			d.prompts, d.tokens = []load.Prompt{{TokenIDs: body.InputIDs}}, []int{len(body.InputIDs)}
		} else {
			var p load.Prompt
			for _, m := range body.Messages {
				p.Messages = append(p.Messages, load.Message{Role: m.Role, Content: m.text()})
			}
			d.prompts, d.tokens = []load.Prompt{p}, []int{chatTokens(body.Messages)}
		}
	} else {
		if d.maxNew == nil {
			sixteen := 16 // the schema's default
			d.maxNew = &sixteen
		}
		if isNull(body.Prompt) {
			return nil, inputError("Prompt cannot be None.")
		}
		if d.prompts, d.tokens, err = parsePrompts(body.Prompt); err != nil {
			return nil, err
		}
	}
	if d.maxNew != nil && *d.maxNew < 1 {
		return nil, inputError("max_tokens must be at least 1, got " + strconv.Itoa(*d.maxNew) + ".")
	}
	if err := checkRanges(map[string]*float64{"temperature": body.Temperature, "top_p": body.TopP, "top_k": body.TopK, "min_p": body.MinP,
		"frequency_penalty": body.FrequencyPenalty, "presence_penalty": body.PresencePenalty, "repetition_penalty": body.RepetitionPenalty}, showFloat); err != nil {
		return nil, err
	}
	if d.rids, err = parseRIDs(body.RID); err != nil {
		return nil, err
	}
	c, err := s.newCall(d, received)
	if err != nil {
		return nil, err
	}
	c.stream = body.Stream
	return c, nil
}

func appendOpenAIError(b []byte, message, kind string, code int) []byte {
	b = append(b, `{"object":"error","message":`...)
	b = appendString(b, message)
	return fmt.Appendf(b, `,"type":%q,"param":null,"code":%d}`, kind, code)
}

// openAI is the dialect of /v1/completions and /v1/chat/completions.
type openAI struct {
	s                 *Server
	chat              bool
	usage, continuous bool
	model             string
	created           int64
}

func (o openAI) appendHead(b []byte, id, object string) []byte {
	b = append(b, `{"id":`...)
	b = appendString(b, id)
	b = append(b, `,"object":"`...)
	b = append(b, object...)
	b = append(b, `","created":`...)
	b = strconv.AppendInt(b, o.created, 10)
	b = append(b, `,"model":`...)
	return appendString(b, o.model)
}

func (o openAI) appendEvents(b []byte, c *call, st *stream, sent int, p progress) []byte {
	if f := p.finish; f != nil && f.Kind == FinishAbort && f.Status != 0 {
		kind := map[int]string{400: "BadRequestError", 503: "SERVICE_UNAVAILABLE"}[f.Status]
		if kind == "" {
			kind = "INTERNAL_SERVER_ERROR"
		}
		b = append(b, `data: {"error":`...)
		return append(appendOpenAIError(b, f.Message, kind, f.Status), "}\n\n"...)
	}
	if !o.chat {
		b = append(b, "data: "...)
		b = o.appendHead(b, st.rid, "text_completion")
		b = o.appendChoice(b, st, `"text":"`)
		b = appendText(b, sent, p.tokens)
		b = append(b, `"`...)
		b = appendFinish(b, p)
		b = append(b, `}],"usage":`...)
		if o.continuous {
			b = appendUsage(b, st.promptTokens, p.tokens)
		} else {
			b = append(b, `null`...)
		}
		return append(b, "}\n\n"...)
	}
	chunk := func(b []byte, delta string, from, to int, finish, usage bool) []byte {
		b = append(b, "data: "...)
		b = o.appendHead(b, st.rid, "chat.completion.chunk")
		b = o.appendChoice(b, st, `"delta":{"reasoning_content":null`)
		b = append(b, delta...)
		if to > from {
			b = append(b, `,"content":"`...)
			b = append(appendText(b, from, to), '"')
		}
		b = append(b, '}')
		if finish {
			b = appendFinish(b, p)
		} else {
			b = append(b, `,"logprobs":null,"finish_reason":null,"matched_stop":null`...)
		}
		b = append(b, `}]`...)
		if usage {
			b = append(b, `,"usage":`...)
			b = appendUsage(b, st.promptTokens, p.tokens)
		}
		return append(b, "}\n\n"...)
	}
	if sent == 0 {
		b = chunk(b, `,"role":"assistant","content":""`, 0, 0, false, false)
	}
	if p.tokens > sent {
		b = chunk(b, "", sent, p.tokens, false, o.continuous)
	}
	if p.finish != nil {
		b = chunk(b, "", 0, 0, true, false)
	}
	return b
}

func (o openAI) appendChoice(b []byte, st *stream, field string) []byte {
	b = append(b, `,"choices":[{"index":`...)
	b = strconv.AppendInt(b, int64(st.index), 10)
	b = append(b, ',')
	return append(b, field...)
}

// appendFinish appends the fields that end a choice.
func appendFinish(b []byte, p progress) []byte {
	b = append(b, `,"logprobs":null,"finish_reason":`...)
	switch {
	case p.finish == nil:
		return append(b, `null,"matched_stop":null`...)
	case p.finish.Kind == FinishLength:
		return append(b, `"length","matched_stop":null`...)
	case p.finish.Kind == FinishStop:
		return append(b, `"stop","matched_stop":`+stopToken...)
	default:
		return append(b, `"abort","matched_stop":null`...)
	}
}

func appendUsage(b []byte, prompt, completion int) []byte {
	return fmt.Appendf(b, `{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null,"reasoning_tokens":0,"completion_tokens_details":null}`,
		prompt, prompt+completion, completion)
}

// totals returns the usage of a call: prompts count once, however many answers each has.
func (c *call) totals() (prompt, completion int) {
	for i, st := range c.streams {
		if i%c.perPrompt == 0 {
			prompt += st.promptTokens
		}
		completion += st.progress().tokens
	}
	return prompt, completion
}

func (o openAI) appendEnd(b []byte, c *call) []byte {
	if !o.usage {
		return b
	}
	object := "text_completion"
	if o.chat {
		object = "chat.completion.chunk"
	}
	b = append(b, "data: "...)
	b = o.appendHead(b, c.streams[0].rid, object)
	b = append(b, `,"choices":[],"usage":`...)
	prompt, completion := c.totals()
	if o.chat {
		b = appendUsage(b, prompt, completion)
	} else {
		b = fmt.Appendf(b, `{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"reasoning_tokens":0}`, prompt, prompt+completion, completion)
	}
	return append(b, "}\n\n"...)
}

func (o openAI) appendAnswer(b []byte, c *call) []byte {
	object, field := "text_completion", `"text":"`
	if o.chat {
		object, field = "chat.completion", `"message":{"role":"assistant","content":"`
	}
	b = o.appendHead(b, c.streams[0].rid, object)
	b = append(b, `,"choices":[`...)
	tokens := 0
	for i, st := range c.streams {
		if i > 0 {
			b = append(b, ',')
		}
		p := st.progress()
		tokens += p.tokens
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, ',')
		b = append(b, field...)
		b = appendText(b, 0, p.tokens)
		b = append(b, '"')
		if o.chat {
			b = append(b, `,"reasoning_content":null}`...)
		}
		b = appendFinish(b, p)
		b = append(b, '}')
	}
	b = append(b, `],"usage":`...)
	prompt, completion := c.totals()
	b = appendUsage(b, prompt, completion)
	b = append(b, `,"metadata":{"weight_version":`...)
	b = appendString(b, o.s.opts.weightVersion)
	b = append(b, ',')
	b = o.s.appendWeightVersions(b, tokens)
	return append(b, `}}`...)
}

func (o openAI) appendRefusal(b []byte, f *Finish) []byte {
	kind := strconv.Itoa(f.Status)
	if f.Status == http.StatusBadRequest {
		kind = "BadRequestError"
	}
	return appendOpenAIError(b, f.Message, kind, f.Status)
}
