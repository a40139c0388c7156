package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

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

func (s *Server) completions(w http.ResponseWriter, r *http.Request) { s.openAI(w, r, false) }
func (s *Server) chat(w http.ResponseWriter, r *http.Request)        { s.openAI(w, r, true) }

func (s *Server) openAI(w http.ResponseWriter, r *http.Request, chat bool) {
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(kind), "application/json") {
		refuseContentType(w)
		return
	}
	body, received, ok := s.readBody(w, r)
	if !ok {
		return
	}
	var fields map[string]json.RawMessage
	if f := s.decode(body, &fields); f != nil {
		s.refuse(w, r, f)
		return
	}
	d := demand{n: 1}
	o := openAI{s: s, chat: chat, model: "default", created: time.Now().Unix()}
	err := s.parseOpenAI(body, fields, &d, &o)
	if header := r.Header.Get("X-Data-Parallel-Rank"); header != "" && err == nil { // over the body
		k, bad := strconv.Atoi(strings.TrimSpace(header))
		if d.routed = &k; bad != nil {
			text := "Invalid X-Data-Parallel-Rank header: must be an integer, got '" + header + "'"
			writeBody(w, http.StatusBadRequest, "application/json", appendOpenAIError(nil, text, "400", http.StatusBadRequest))
			return
		}
	}
	if err == nil {
		var c *call
		if c, err = s.newCall(d, received); err == nil {
			c.kickStart = c.stream
			err = s.respond(w, r, c, o)
		}
	}
	var f faults
	var uncaught raised
	switch {
	case err == nil, errors.Is(err, errGone):
	case errors.As(err, &f):
		s.refuse(w, r, f)
	case errors.As(err, &uncaught):
		writeBody(w, http.StatusInternalServerError, "application/json", appendOpenAIError(nil, "Internal server error: "+err.Error(), "InternalServerError", http.StatusInternalServerError))
	default:
		writeBody(w, http.StatusBadRequest, "application/json", appendOpenAIError(nil, err.Error(), "BadRequestError", http.StatusBadRequest))
	}
}

// parseOpenAI reads a completion or chat request.
func (s *Server) parseOpenAI(body []byte, fields map[string]json.RawMessage, d *demand, o *openAI) error {
	var f faults
	number := func(name string, integer bool) (v lax) {
		f.number(name, fields[name], &v, integer)
		return v
	}
	if raw := fields["model"]; !isNull(raw) && json.Unmarshal(raw, &o.model) != nil {
		f = append(f, wrong("string_type", inBody("model"), "Input should be a valid string", raw))
	}
	f.boolean("stream", fields["stream"], &d.stream)
	f.boolean("ignore_eos", fields["ignore_eos"], &d.ignoreEOS)
	f.boolean("no_stop_trim", fields["no_stop_trim"], &d.noTrim)
	var options map[string]json.RawMessage
	if raw := fields["stream_options"]; !isNull(raw) {
		if json.Unmarshal(raw, &options) != nil {
			f = append(f, wrong("model_attributes_type", inBody("stream_options"), "Input should be a valid dictionary or object to extract fields from", raw))
		}
		f.boolean("include_usage", options["include_usage"], &o.usage)
		f.boolean("continuous_usage_stats", options["continuous_usage_stats"], &o.continuous)
	}
	if !parseStops(fields["stop"], &d.stops) {
		f = append(f, wrong("string_type", inBody("stop", "str"), "Input should be a valid string", fields["stop"]),
			wrong("list_type", inBody("stop", "list[str]"), "Input should be a valid list", fields["stop"]))
	}
	if raw := fields["stop_token_ids"]; !isNull(raw) && json.Unmarshal(raw, &d.stopIDs) != nil {
		f = append(f, wrong("list_type", inBody("stop_token_ids"), "Input should be a valid list", raw))
	}
	var ok bool
	if d.rids, ok = parseRIDs(fields["rid"]); !ok {
		f = append(f, wrong("string_type", inBody("rid", "str"), "Input should be a valid string", fields["rid"]),
			wrong("list_type", inBody("rid", "list[str]"), "Input should be a valid list", fields["rid"]))
	}
	if n := number("n", true); n.set {
		d.n = int(n.v)
	}
	d.priority = number("priority", true)
	d.routed = f.routedRank(fields)
	d.asks(fields)
	limit := number("max_tokens", true)
	if most := number("max_completion_tokens", true); o.chat && most.set {
		limit = most
	}
	d.minNew = int(number("min_tokens", true).v)
	ranges := map[string]*float64{}
	for _, name := range []string{"temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"} {
		if v := number(name, name == "top_k"); v.set {
			ranges[name] = &v.v
		}
	}
	if limit.set && limit.v <= 0 && !o.chat {
		f = append(f, fault("{'type': 'value_error', 'loc': "+inBody("max_tokens")+", 'msg': 'Value error, max_tokens must be positive', 'input': "+
			pyRepr(fields["max_tokens"])+", 'ctx': {'error': ValueError('max_tokens must be positive')}}"))
	}
	if o.chat {
		f = append(f, s.parseChat(body, fields, d)...)
	} else {
		f = append(f, s.parsePrompt(body, fields, d, o)...)
	}
	if f != nil {
		return f
	}
	if _, has := fields["messages"]; o.chat && has && len(d.prompts) == 0 {
		return inputError("Messages cannot be empty.")
	}
	if !slices.ContainsFunc(d.prompts, func(p load.Prompt) bool { return p.Text != "" || len(p.TokenIDs) > 0 || len(p.Messages) > 0 }) {
		return inputError("Prompt cannot be empty")
	}
	if o.echo && d.logprobs != nil && d.logprobs.top == 0 && s.opts.release.patch < 21 {
		return raised("'input_top_logprobs'") // a KeyError; there only when the answer has been computed
	}
	if !limit.set && !o.chat {
		limit = lax{true, 16} // the schema's default
	}
	if limit.set {
		most := int(max(math.MinInt32, min(limit.v, math.MaxInt32)))
		d.maxNew = &most
		if most < 0 {
			return inputError("max_new_tokens must be at least 0, got " + strconv.Itoa(most) + ".")
		}
	}
	return checkRanges(ranges, showFloat)
}

// parsePrompt reads what only a completion has.
func (s *Server) parsePrompt(body []byte, fields map[string]json.RawMessage, d *demand, o *openAI) (f faults) {
	raw, has := fields["prompt"]
	if !has {
		return faults{missing(inBody("prompt"), pyRepr(body))}
	}
	var ok bool
	if d.prompts, d.tokens, ok = s.parsePrompts(raw, textPrompt|idsPrompt); !ok || isNull(raw) {
		for _, t := range []struct{ kind, name, noun string }{{"list_type", "list[int]", "list"}, {"list_type", "list[list[int]]", "list"},
			{"string_type", "str", "string"}, {"list_type", "list[str]", "list"}} {
			f = append(f, wrong(t.kind, inBody("prompt", t.name), "Input should be a valid "+t.noun, raw))
		}
	}
	var top lax
	f.number("logprobs", fields["logprobs"], &top, true)
	if top.set {
		d.logprobs = &logprobs{start: -1, top: int(max(0, min(top.v, maxTop))), text: true}
	}
	f.boolean("echo", fields["echo"], &o.echo)
	if o.echo && top.set && d.logprobs.top > 0 {
		d.logprobs.start = 0
	}
	return f
}

// parseChat reads what only a chat has.
func (s *Server) parseChat(body []byte, fields map[string]json.RawMessage, d *demand) (f faults) {
	raw, has := fields["messages"]
	if !has {
		if _, chosen := fields["tool_choice"]; !chosen && len(body) > 0 { // the schema fills it in first
			body = bytes.Clone(trimJSON(body))
			body = body[:len(body)-1]
			if len(fields) > 0 {
				body = append(body, ',')
			}
			body = append(body, `"tool_choice":"none"}`...)
		}
		return faults{missing(inBody("messages"), pyRepr(body))}
	}
	var messages []chatMessage
	if json.Unmarshal(raw, &messages) != nil || isNull(raw) {
		return faults{wrong("list_type", inBody("messages"), "Input should be a valid list", raw)}
	}
	on := false
	f.boolean("logprobs", fields["logprobs"], &on)
	var top lax
	f.number("top_logprobs", fields["top_logprobs"], &top, true)
	if on {
		d.logprobs = &logprobs{start: -1, top: int(max(0, min(top.v, maxTop))), text: true}
	}
	var ids []int32
	if raw := fields["input_ids"]; !isNull(raw) && json.Unmarshal(raw, &ids) != nil {
		f = append(f, wrong("list_type", inBody("input_ids"), "Input should be a valid list", raw))
	}
	switch {
	case len(ids) > 0: // the prompt instead of what messages would give
		d.prompts, d.tokens = []load.Prompt{{TokenIDs: ids}}, []int{len(ids)}
	case len(messages) > 0:
		p, n := s.chatPrompt(messages)
		d.prompts, d.tokens = []load.Prompt{p}, []int{n}
	}
	return f
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
	echo              bool // the text begins with the prompt
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
		if sent == 0 {
			b = o.appendEcho(b, st)
		}
		b = appendText(b, textLen(sent), st.textEnd(p))
		b = append(b, `",`...)
		b = o.appendLogprobs(b, c, st, sent, p.tokens)
		b = appendFinish(b, st, p)
		b = append(b, `}],"usage":`...)
		if o.continuous {
			b = o.appendUsage(b, st.promptTokens, p.tokens, p.cached)
		} else {
			b = append(b, `null`...)
		}
		return append(b, "}\n\n"...)
	}
	if sent == 0 {
		b = o.appendChunk(b, st, `,"role":"assistant","content":""`)
		b = append(b, `,"logprobs":null,"finish_reason":null,"matched_stop":null}]}`+"\n\n"...)
	}
	if end := st.textEnd(p); end > textLen(sent) {
		b = o.appendChunk(b, st, `,"content":"`)
		b = append(appendText(b[:len(b)-1], textLen(sent), end), `"},`...)
		b = o.appendLogprobs(b, c, st, sent, p.tokens)
		b = append(b, `,"finish_reason":null,"matched_stop":null}]`...)
		if o.continuous {
			b = append(b, `,"usage":`...)
			b = o.appendUsage(b, st.promptTokens, p.tokens, p.cached)
		}
		b = append(b, "}\n\n"...)
	}
	if p.finish != nil {
		b = o.appendChunk(b, st, "")
		b = appendFinish(append(b, `,"logprobs":null`...), st, p)
		b = append(b, "}]}\n\n"...)
	}
	return b
}

// appendEcho appends the prompt, if it is wanted.
func (o openAI) appendEcho(b []byte, st *stream) []byte {
	switch p := &st.prompt; {
	case !o.echo:
		return b
	case p.TokenIDs != nil:
		return appendEscaped(b, o.s.detokenized(p.TokenIDs, true))
	default:
		return appendEscaped(b, p.Text)
	}
}

// appendChunk begins a chunk of a chat, with the fields of its delta after the first.
func (o openAI) appendChunk(b []byte, st *stream, delta string) []byte {
	b = append(b, "data: "...)
	b = o.appendHead(b, st.rid, "chat.completion.chunk")
	b = o.appendChoice(b, st, `"delta":{"reasoning_content":null`)
	return append(append(b, delta...), '}')
}

// appendLogprobs appends the field logprobs for tokens of an answer.
func (o openAI) appendLogprobs(b []byte, c *call, st *stream, from, to int) []byte {
	b = append(b, `"logprobs":`...)
	switch {
	case c.logprobs == nil:
		return append(b, "null"...)
	case o.chat:
		return c.logprobs.appendChat(b, from, to)
	}
	return c.logprobs.appendCompletion(b, st, from, to)
}

func (o openAI) appendChoice(b []byte, st *stream, field string) []byte {
	b = append(b, `,"choices":[{"index":`...)
	b = strconv.AppendInt(b, int64(st.index), 10)
	b = append(b, ',')
	return append(b, field...)
}

// appendFinish appends the fields that end a choice.
func appendFinish(b []byte, st *stream, p progress) []byte {
	b = append(b, `,"finish_reason":`...)
	switch {
	case p.finish == nil:
		return append(b, `null,"matched_stop":null`...)
	case p.finish.Kind == FinishLength:
		return append(b, `"length","matched_stop":null`...)
	case p.finish.Kind == FinishStop:
		return append(append(b, `"stop","matched_stop":`...), st.stop.matched...)
	default:
		return append(b, `"abort","matched_stop":null`...)
	}
}

// appendUsage appends a usage. What comes from the cache is told with --enable-cache-report only.
func (o openAI) appendUsage(b []byte, prompt, completion, cached int) []byte {
	b = fmt.Appendf(b, `{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":`, prompt, prompt+completion, completion)
	if o.s.opts.cacheReport {
		b = fmt.Appendf(b, `{"cached_tokens":%d}`, cached)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"reasoning_tokens":0`...)
	if o.s.opts.release.patch >= 23 {
		b = append(b, `,"completion_tokens_details":null`...)
	}
	return append(b, '}')
}

// totals returns the usage of a call: prompts count once, however many answers each has.
func (c *call) totals() (prompt, completion, cached int) {
	for i, st := range c.streams {
		p := st.progress()
		if i%c.perPrompt == 0 {
			prompt += st.promptTokens
			cached += p.cached
		}
		completion += p.tokens
	}
	return prompt, completion, cached
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
	prompt, completion, cached := c.totals()
	if o.chat || o.s.opts.cacheReport {
		b = o.appendUsage(b, prompt, completion, cached)
	} else {
		b = fmt.Appendf(b, `{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"reasoning_tokens":0}`, prompt, prompt+completion, completion)
	}
	return append(b, "}\n\n"...)
}

func (o openAI) appendAnswer(b []byte, c *call) []byte {
	patch := o.s.opts.release.patch
	object, field := "text_completion", `"text":"`
	if o.chat {
		object, field = "chat.completion", `"message":{"role":"assistant","content":"`
	}
	b = o.appendHead(b, c.streams[0].rid, object)
	b = append(b, `,"choices":[`...)
	for i, st := range c.streams {
		if i > 0 {
			b = append(b, ',')
		}
		p := st.progress()
		b = append(b, `{"index":`...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, ',')
		b = append(b, field...)
		b = o.appendEcho(b, st)
		b = appendText(b, 0, st.textEnd(p))
		b = append(b, '"')
		if o.chat {
			b = append(b, `,"reasoning_content":null`...)
			if patch < 23 {
				b = append(b, `,"tool_calls":null`...)
			}
			b = append(b, '}')
		}
		b = o.appendLogprobs(append(b, ','), c, st, 0, p.tokens)
		b = appendFinish(b, st, p)
		b = append(b, '}')
	}
	b = append(b, `],"usage":`...)
	prompt, completion, cached := c.totals()
	b = o.appendUsage(b, prompt, completion, cached)
	b = append(b, `,"metadata":{"weight_version":`...)
	b = appendString(b, o.s.weightName())
	if patch >= 21 {
		b = append(b, ',')
		b = o.s.appendWeightVersions(b, c.streams[0].progress().tokens)
	}
	return append(b, `}}`...)
}

func (o openAI) appendRefusal(b []byte, f *Finish) []byte {
	kind := strconv.Itoa(f.Status)
	if f.Status == http.StatusBadRequest {
		kind = "BadRequestError"
	}
	return appendOpenAIError(b, f.Message, kind, f.Status)
}
