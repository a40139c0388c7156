package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A schemaError is a fault that the schema of /generate finds; its text is the value of "error".
type schemaError string

func (e schemaError) Error() string { return string(e) }

// promptKind says which forms of a prompt a field takes.
type promptKind uint8

const (
	textPrompt promptKind = 1 << iota
	idsPrompt
)

// parsePrompts reads a text, ids, or a list of either.
func (s *Server) parsePrompts(raw json.RawMessage, kind promptKind) (prompts []load.Prompt, tokens []int, ok bool) {
	add := func(p load.Prompt, n int) { prompts, tokens = append(prompts, p), append(tokens, n) }
	var text string
	var texts []string
	var ids []int32
	var lists [][]int32
	switch {
	case kind&textPrompt != 0 && json.Unmarshal(raw, &text) == nil:
		add(s.textPrompt(text))
	case kind&idsPrompt != 0 && json.Unmarshal(raw, &ids) == nil:
		if len(ids) > 0 {
			add(load.Prompt{TokenIDs: ids}, len(ids))
		}
	case kind&textPrompt != 0 && json.Unmarshal(raw, &texts) == nil:
		for _, t := range texts {
			add(s.textPrompt(t))
		}
	case kind&idsPrompt != 0 && json.Unmarshal(raw, &lists) == nil:
		for _, l := range lists {
			add(load.Prompt{TokenIDs: l}, len(l))
		}
	default:
		return nil, nil, false
	}
	return prompts, tokens, true
}

func (s *Server) generate(w http.ResponseWriter, r *http.Request) {
	body, received, ok := s.readBody(w, r)
	if !ok {
		return
	}
	var fields map[string]json.RawMessage
	if f := s.decodeBody(r, body, &fields); f != nil {
		s.refuse(w, r, f)
		return
	}
	var d demand
	err := s.parseGenerate(fields, &d)
	if err == nil {
		var c *call
		if c, err = s.newCall(d, received); err == nil {
			err = s.respond(w, r, c, native{s})
		}
	}
	if err != nil {
		s.generateError(w, r, d.stream, err)
	}
}

// generateError answers a request that failed before its answer began.
func (s *Server) generateError(w http.ResponseWriter, r *http.Request, stream bool, err error) {
	var body faults
	var schema schemaError
	var bad inputError
	switch {
	case errors.Is(err, errGone):
	case errors.As(err, &body):
		s.refuse(w, r, body)
	case errors.As(err, &schema):
		writeBody(w, http.StatusBadRequest, "application/json", append(appendString([]byte(`{"error":`), string(schema)), '}'))
	case !errors.As(err, &bad):
		if stream {
			s.startEvents(w)
			panic(http.ErrAbortHandler)
		}
		crashed(w)
	case stream:
		flush := s.startEvents(w)
		fmt.Fprintf(w, "data: {\"error\":{\"message\":%s,\"type\":\"invalid_request_error\",\"code\":400,\"retryable\":false}}\n\ndata: [DONE]\n\n",
			appendString(nil, string(bad)))
		flush()
	default:
		writeBody(w, http.StatusBadRequest, "application/json", append(appendString([]byte(`{"error":{"message":`), string(bad)), `}}`...))
	}
}

// parseGenerate reads a /generate request; SGLang ignores unknown top-level keys.
func (s *Server) parseGenerate(fields map[string]json.RawMessage, d *demand) error {
	var f faults
	f.boolean("stream", fields["stream"], &d.stream)
	var start, top lax
	f.number("priority", fields["priority"], &d.priority, true)
	d.routed = f.routedRank(fields)
	d.asks(fields)
	text, ids := fields["text"], fields["input_ids"]
	isText := true
	if !isNull(text) {
		if d.prompts, d.tokens, isText = s.parsePrompts(text, textPrompt); !isText {
			f = append(f, wrong("string_type", inBody("text", "str"), "Input should be a valid string", text),
				wrong("list_type", inBody("text", "list[str]"), "Input should be a valid list", text))
		}
	}
	if !isNull(ids) {
		prompts, tokens, ok := s.parsePrompts(ids, idsPrompt)
		if d.prompts == nil {
			d.prompts, d.tokens = prompts, tokens
		}
		if !ok {
			f = append(f, wrong("list_type", inBody("input_ids", "list[int]"), "Input should be a valid list", ids),
				wrong("list_type", inBody("input_ids", "list[list[int]]"), "Input should be a valid list", ids))
		}
	}
	var ok bool
	if d.rids, ok = parseRIDs(fields["rid"]); !ok {
		f = append(f, wrong("string_type", inBody("rid", "str"), "Input should be a valid string", fields["rid"]),
			wrong("list_type", inBody("rid", "list[str]"), "Input should be a valid list", fields["rid"]))
	}
	f.first("logprob_start_len", fields["logprob_start_len"], &start)
	f.first("top_logprobs_num", fields["top_logprobs_num"], &top)
	if f != nil {
		return f
	}
	if err := s.parseSampling(fields["sampling_params"], d); err != nil {
		return err
	}
	if !isNull(fields["input_embeds"]) {
		return inputError("The simulation does not take input_embeds.")
	}
	if isNull(text) == isNull(ids) {
		return inputError("Either text, input_ids or input_embeds should be provided.")
	}
	if len(d.prompts) == 0 {
		return inputError("The prompt is empty.")
	}
	if on := trimJSON(fields["return_logprob"]); len(on) > 0 && string(on) != "null" && string(on) != "false" {
		d.logprobs = &logprobs{start: -1, top: int(max(0, min(top.v, maxTop)))}
		if start.set {
			d.logprobs.start = int(max(-1, min(start.v, 1e9)))
		}
		if raw := fields["token_ids_logprob"]; !isNull(raw) && json.Unmarshal(raw, &d.logprobs.ids) != nil {
			return inputError("The simulation takes one list of token_ids_logprob for all prompts.")
		}
		if n := len(d.logprobs.ids); n > maxWanted {
			return inputError(fmt.Sprintf("%d token_ids_logprob are more than the %d that the simulation tells for each token.", n, maxWanted))
		}
		d.logprobs.text = string(trimJSON(fields["return_text_in_logprobs"])) == "true"
	}
	return nil
}

// maxTop bounds the alternatives told for each token, and maxWanted the tokens that a request asks for at each.
const (
	maxTop    = 64
	maxWanted = 1024
)

// first is number for a field that may be a list, one for each prompt, of which the first is taken for all.
func (f *faults) first(name string, raw json.RawMessage, to *lax) {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil {
		if raw = nil; len(list) > 0 {
			raw = list[0]
		}
	}
	f.number(name, raw, to, true)
}

// routedRank reads the data-parallel rank that a request asks for, by either of its names (data_parallel_rank is the older one);
// nil: any.
func (f *faults) routedRank(fields map[string]json.RawMessage) *int {
	for _, name := range []string{"routed_dp_rank", "data_parallel_rank"} {
		var v lax
		if f.number(name, fields[name], &v, true); v.set {
			k := int(max(math.MinInt32, min(v.v, math.MaxInt32)))
			return &k
		}
	}
	return nil
}

// asks reads what the simulation has not: adapters, and prompts kept apart in the cache.
func (d *demand) asks(fields map[string]json.RawMessage) {
	var loras []*string
	if raw := fields["lora_path"]; json.Unmarshal(raw, &d.lora) != nil && json.Unmarshal(raw, &loras) == nil {
		for _, l := range loras {
			if d.lora == "" && l != nil {
				d.lora = *l
			}
		}
	}
	for _, name := range []string{"extra_key", "cache_salt"} {
		if !isNull(fields[name]) {
			d.apart = name
		}
	}
}

// parseRIDs reads one request id or a list of them.
func parseRIDs(raw json.RawMessage) (rids []string, ok bool) {
	var one string
	switch {
	case isNull(raw):
		return nil, true
	case json.Unmarshal(raw, &one) == nil:
		return []string{one}, true
	}
	return rids, json.Unmarshal(raw, &rids) == nil
}

// native is the dialect of /generate.
type native struct{ s *Server }

func (n native) appendEvents(b []byte, c *call, st *stream, sent int, p progress) []byte {
	from := 0
	if n.s.opts.incremental {
		from = sent
	}
	b = append(b, "data: "...)
	b = n.appendObject(b, c, st, from, p)
	if sent == 0 {
		st.sent = time.Now()
		b = n.appendSent(b, st.sent)
	}
	if c.array {
		b = append(b[:len(b)-1], `,"index":`...)
		b = append(strconv.AppendInt(b, int64(st.index), 10), '}')
	}
	return append(b, "\n\n"...)
}

// appendSent adds to the meta_info of an object when it was handed out.
func (n native) appendSent(b []byte, at time.Time) []byte {
	b = append(b[:len(b)-2], `,"response_sent_to_client_ts":`...)
	return append(appendUnix(b, at), `}}`...)
}

func (n native) appendEnd(b []byte, _ *call) []byte { return b }

func (n native) appendAnswer(b []byte, c *call) []byte {
	if !c.array {
		return n.appendSent(n.appendObject(b, c, c.streams[0], 0, c.streams[0].progress()), c.sent)
	}
	b = append(b, '[')
	for i, st := range c.streams {
		if i > 0 {
			b = append(b, ',')
		}
		b = n.appendSent(n.appendObject(b, c, st, 0, st.progress()), c.sent)
	}
	return append(b, ']')
}

// appendObject appends one answer with the text and ids of the tokens from from on. The fields and their order are
// those that were recorded of the version.
func (n native) appendObject(b []byte, c *call, st *stream, from int, p progress) []byte {
	patch := n.s.opts.release.patch
	b = append(b, `{"text":"`...)
	b = appendText(b, textLen(from), st.textEnd(p))
	b = append(b, `","output_ids":[`...)
	b = appendIDs(b, from, p.tokens)
	b = append(b, `],"meta_info":{"id":`...)
	b = appendString(b, st.rid)
	b = append(b, `,"finish_reason":`...)
	b = appendFinishReason(b, st, p)
	if p.finish != nil && p.finish.Queued {
		b = append(b, `,"weight_version":`...)
		b = appendString(b, n.s.weightName())
		b = append(b, `,"e2e_latency":`...)
		b = appendSeconds(b, p.at.Sub(st.received))
		return append(b, `,"completion_tokens":0}}`...)
	}
	b = append(b, `,"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(st.promptTokens), 10)
	b = append(b, `,"weight_version":`...)
	b = appendString(b, n.s.weightName())
	b = append(b, `,"num_retractions":`...)
	b = strconv.AppendInt(b, int64(p.retractions), 10)
	if n.s.opts.metrics {
		b = n.appendTimes(b, st, p)
	}
	if c.logprobs != nil {
		b = c.logprobs.appendTo(b, st, from, p.tokens)
	}
	b = append(b, `,"reasoning_tokens":0,"completion_tokens":`...)
	b = strconv.AppendInt(b, int64(p.tokens), 10)
	b = append(b, `,"cached_tokens":`...)
	b = strconv.AppendInt(b, int64(p.cached), 10)
	if p.finish != nil && patch >= 21 {
		b = append(b, ',')
		b = n.s.appendWeightVersions(b, p.tokens)
	}
	if p.cached > 0 {
		b = append(b, `,"cached_tokens_details":{"device":`...)
		b = append(strconv.AppendInt(b, int64(p.cached), 10), `,"host":0},"dp_rank":`...)
	} else {
		b = append(b, `,"cached_tokens_details":null,"dp_rank":`...)
	}
	b = append(b, st.rank.number()...)
	if p.finish != nil {
		b = append(b, `,"e2e_latency":`...)
		b = appendSeconds(b, p.at.Sub(st.received))
		if n.s.opts.metrics {
			b = n.appendFinalTimes(b, st, p)
		}
	}
	return append(b, `}}`...)
}

// appendTimes appends what --enable-metrics adds to each object. queue_time was 0 in every answer of 0.5.15.
func (n native) appendTimes(b []byte, st *stream, p progress) []byte {
	start := n.s.host.start
	patch := n.s.opts.release.patch
	if patch >= 23 {
		b = append(b, `,"storage_prefetch_wait":0.0,"storage_staging_wait":0.0`...)
	}
	if patch < 18 {
		return append(b, `,"queue_time":0.0`...)
	}
	b = append(b, `,"forward_entry_time":`...)
	b = appendUnix(b, start.Add(p.entered))
	b = append(b, `,"prefill_finished_time":`...)
	b = appendUnix(b, start.Add(p.prefilled))
	b = append(b, `,"queue_time":`...)
	return appendSeconds(b, max(0, p.entered-st.arrives))
}

// noTime is how long a front process before 0.5.23 took from an answer's first output to its end where these are the same,
// as recorded: the decode_throughput of short answers that are not streamed is a number of no use there.
const noTime = 3500 * time.Nanosecond

// appendFinalTimes appends what --enable-metrics adds to the last object of an answer.
func (n native) appendFinalTimes(b []byte, st *stream, p progress) []byte {
	b = append(b, `,"request_received_ts":`...)
	b = appendUnix(b, st.received)
	if n.s.opts.release.patch >= 21 {
		b = append(b, `,"first_token_latency":`...)
		b = appendSeconds(b, p.first.Sub(st.received))
	}
	b = append(b, `,"api_server_dispatch_finish_ts":`...)
	b = appendUnix(b, n.s.host.start.Add(st.arrives))
	if st.streaming && !st.sent.IsZero() {
		b = append(b, `,"response_sent_to_client_ts":`...)
		b = appendUnix(b, st.sent)
	}
	b = append(b, `,"request_finished_ts":`...)
	b = appendUnix(b, p.at)
	took := p.at.Sub(p.first)
	if n.s.opts.release.patch < 23 {
		took = max(took, noTime)
	}
	if p.tokens > 1 && took > 0 {
		b = append(b, `,"decode_throughput":`...)
		b = append(b, showFloat(float64(p.tokens-1)/took.Seconds())...)
	}
	return b
}

func (s *Server) weightName() string { return *s.weights.Load() }

func (s *Server) appendWeightVersions(b []byte, tokens int) []byte {
	b = append(b, `"weight_versions":[{"version":`...)
	b = appendString(b, s.weightName())
	b = append(b, `,"start":0,"end":`...)
	b = strconv.AppendInt(b, int64(tokens), 10)
	return append(b, `}]`...)
}

// stopToken is the id that a stop is said to have matched: Llama 3's end of turn.
const stopToken = "128009"

func appendFinishReason(b []byte, st *stream, p progress) []byte {
	switch f := p.finish; {
	case f == nil:
		return append(b, `null`...)
	case f.Kind == FinishLength:
		b = append(b, `{"type":"length","length":`...)
		return append(strconv.AppendInt(b, int64(p.tokens), 10), '}')
	case f.Kind == FinishStop:
		b = append(b, `{"type":"stop","matched":`...)
		return append(append(b, st.stop.matched...), '}')
	default:
		b = append(b, `{"type":"abort","message":`...)
		b = appendString(b, f.Message)
		switch {
		case f.Status != 0:
			b = append(b, `,"status_code":`...)
			b = strconv.AppendInt(b, int64(f.Status), 10)
			b = append(b, `,"err_type":null`...)
		case !f.Queued:
			b = append(b, `,"status_code":null,"err_type":null`...)
		}
		return append(b, '}')
	}
}

func (n native) appendRefusal(b []byte, f *Finish) []byte {
	if f.Status == http.StatusBadRequest {
		b = append(b, `{"error":{"message":`...)
		return append(appendString(b, f.Message), `}}`...)
	}
	b = append(b, `{"object":"error","message":`...)
	b = appendString(b, f.Message)
	return fmt.Appendf(b, `,"type":"%d","param":null,"code":%d}`, f.Status, f.Status)
}
