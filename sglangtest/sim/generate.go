package sim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// generateBody is what the simulator reads of a /generate request; SGLang ignores unknown top-level keys.
type generateBody struct {
	Text          json.RawMessage `json:"text"`
	InputIDs      json.RawMessage `json:"input_ids"`
	InputEmbeds   json.RawMessage `json:"input_embeds"`
	Sampling      json.RawMessage `json:"sampling_params"`
	Stream        bool            `json:"stream"`
	RID           json.RawMessage `json:"rid"`
	ReturnLogprob json.RawMessage `json:"return_logprob"`
}

// samplingFields are the sampling parameters of 0.5.23, in the order in which its error message lists them.
var samplingFields = strings.Fields(`max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty
	presence_penalty repetition_penalty min_new_tokens n json_schema regex ebnf structural_tag ignore_eos skip_special_tokens
	spaces_between_special_tokens no_stop_trim stream_interval logit_bias sampling_seed custom_params beam_width watermark choice`)

// A schemaError is a fault that the schema of /generate finds; its text is the value of "error".
type schemaError string

func (e schemaError) Error() string { return string(e) }

// parseSampling reads sampling_params with the exact types that 0.5.23 demands.
func parseSampling(raw json.RawMessage) (sampling, error) {
	sp := sampling{n: 1, interval: 1}
	fallback := 128
	sp.maxNew = &fallback
	if isNull(raw) {
		return sp, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return sp, bodyError("the simulation takes one sampling_params object for all prompts.")
	}
	numbers := map[string]*float64{}
	for k, v := range fields {
		if !slices.Contains(samplingFields, k) {
			return sp, schemaError(fmt.Sprintf("unknown field `%s`, expected one of `%s`", k, strings.Join(samplingFields, "`, `")))
		}
		null := isNull(v)
		switch k {
		case "max_new_tokens", "min_new_tokens", "n", "top_k", "stream_interval":
			if null {
				if k == "max_new_tokens" {
					sp.maxNew = nil
				}
				continue
			}
			i, err := strconv.Atoi(string(trimJSON(v)))
			if err != nil {
				return sp, schemaError(fmt.Sprintf("invalid type: %s, expected an integer for `%s`", v, k))
			}
			f := float64(i)
			numbers[k] = &f
			switch k {
			case "max_new_tokens":
				sp.maxNew = &i
			case "min_new_tokens":
				sp.minNew = i
			case "n":
				sp.n = i
			case "stream_interval":
				sp.interval = max(1, i)
			}
		case "ignore_eos":
			if !null && json.Unmarshal(v, &sp.ignoreEOS) != nil {
				return sp, schemaError(fmt.Sprintf("invalid type: %s, expected a boolean for `%s`", v, k))
			}
		case "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty":
			if null {
				continue
			}
			var f float64
			if json.Unmarshal(v, &f) != nil {
				return sp, schemaError(fmt.Sprintf("invalid type: %s, expected a number for `%s`", v, k))
			}
			numbers[k] = &f
		}
	}
	return sp, checkRanges(numbers, func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) })
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(trimJSON(raw)) == "null" }

// parsePrompts reads a text, ids, or a list of either, and reports whether it was a list.
func parsePrompts(raw json.RawMessage) (prompts []load.Prompt, tokens []int, err error) {
	add := func(p load.Prompt, n int) { prompts, tokens = append(prompts, p), append(tokens, n) }
	var text string
	var texts []string
	var ids []int32
	var lists [][]int32
	switch {
	case json.Unmarshal(raw, &text) == nil:
		add(load.Prompt{Text: text}, TextTokens(text))
	case json.Unmarshal(raw, &ids) == nil:
		add(load.Prompt{TokenIDs: ids}, len(ids))
	case json.Unmarshal(raw, &texts) == nil:
		for _, t := range texts {
			add(load.Prompt{Text: t}, TextTokens(t))
		}
	case json.Unmarshal(raw, &lists) == nil:
		for _, l := range lists {
			add(load.Prompt{TokenIDs: l}, len(l))
		}
	default:
		return nil, nil, bodyError("the prompt must be a string, a list of strings, a list of token ids or a list of such lists.")
	}
	if len(prompts) == 0 {
		return nil, nil, inputError("The prompt is empty.")
	}
	return prompts, tokens, nil
}

func (s *Server) generate(w http.ResponseWriter, r *http.Request) {
	var body generateBody
	received, ok := readTimed(w, r, &body)
	if !ok {
		return
	}
	c, err := s.generateCall(&body, received)
	if err == nil {
		err = s.respond(w, r, c, native{s})
	}
	switch e := err.(type) {
	case nil:
	case bodyError:
		badRequest(w, string(e))
	case schemaError:
		b := appendString([]byte(`{"error":`), string(e))
		writeBody(w, http.StatusBadRequest, "application/json", append(b, '}'))
	default:
		message := appendString(nil, e.Error())
		if body.Stream {
			flush := startEvents(w)
			fmt.Fprintf(w, "data: {\"error\":{\"message\":%s,\"type\":\"invalid_request_error\",\"code\":400,\"retryable\":false}}\n\ndata: [DONE]\n\n", message)
			flush()
			return
		}
		writeBody(w, http.StatusBadRequest, "application/json", fmt.Appendf(nil, `{"error":{"message":%s}}`, message))
	}
}

func (s *Server) generateCall(body *generateBody, received time.Time) (*call, error) {
	sp, err := parseSampling(body.Sampling)
	if err != nil {
		return nil, err
	}
	if !isNull(body.InputEmbeds) {
		return nil, inputError("The simulation does not take input_embeds.")
	}
	if !isNull(body.ReturnLogprob) && string(trimJSON(body.ReturnLogprob)) != "false" {
		return nil, inputError("The simulation does not make logprobs.")
	}
	raw := body.Text
	if isNull(raw) {
		raw = body.InputIDs
	} else if !isNull(body.InputIDs) {
		return nil, inputError("Either text, input_ids or input_embeds should be provided.")
	}
	if isNull(raw) {
		return nil, inputError("Either text, input_ids or input_embeds should be provided.")
	}
	d := demand{n: sp.n, maxNew: sp.maxNew, minNew: sp.minNew, ignoreEOS: sp.ignoreEOS}
	if d.prompts, d.tokens, err = parsePrompts(raw); err != nil {
		return nil, err
	}
	if d.rids, err = parseRIDs(body.RID); err != nil {
		return nil, err
	}
	c, err := s.newCall(d, received)
	if err != nil {
		return nil, err
	}
	c.stream, c.interval = body.Stream, sp.interval
	return c, nil
}

func parseRIDs(raw json.RawMessage) ([]string, error) {
	var one string
	var many []string
	switch {
	case isNull(raw):
		return nil, nil
	case json.Unmarshal(raw, &one) == nil:
		return []string{one}, nil
	case json.Unmarshal(raw, &many) == nil:
		return many, nil
	}
	return nil, bodyError("rid must be a string or a list of strings.")
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
	if c.array {
		b = append(b[:len(b)-1], `,"index":`...)
		b = append(strconv.AppendInt(b, int64(st.index), 10), '}')
	}
	return append(b, "\n\n"...)
}

func (n native) appendEnd(b []byte, _ *call) []byte { return b }

func (n native) appendAnswer(b []byte, c *call) []byte {
	if !c.array {
		return n.appendObject(b, c, c.streams[0], 0, c.streams[0].progress())
	}
	b = append(b, '[')
	for i, st := range c.streams {
		if i > 0 {
			b = append(b, ',')
		}
		b = n.appendObject(b, c, st, 0, st.progress())
	}
	return append(b, ']')
}

// appendObject appends one answer with the text and ids of the tokens from from on. The fields and their order are
// those of 0.5.23 without --enable-metrics.
func (n native) appendObject(b []byte, c *call, st *stream, from int, p progress) []byte {
	b = append(b, `{"text":"`...)
	b = appendText(b, from, p.tokens)
	b = append(b, `","output_ids":[`...)
	b = appendIDs(b, from, p.tokens)
	b = append(b, `],"meta_info":{"id":`...)
	b = appendString(b, st.rid)
	b = append(b, `,"finish_reason":`...)
	b = appendFinishReason(b, p)
	if p.finish != nil && p.finish.Queued {
		b = append(b, `,"weight_version":`...)
		b = appendString(b, n.s.opts.weightVersion)
		b = append(b, `,"e2e_latency":`...)
		b = appendSeconds(b, p.at.Sub(st.received))
		return append(b, `,"completion_tokens":0}}`...)
	}
	b = append(b, `,"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(st.promptTokens), 10)
	b = append(b, `,"weight_version":`...)
	b = appendString(b, n.s.opts.weightVersion)
	b = append(b, `,"num_retractions":`...)
	b = strconv.AppendInt(b, int64(p.retractions), 10)
	b = append(b, `,"reasoning_tokens":0,"completion_tokens":`...)
	b = strconv.AppendInt(b, int64(p.tokens), 10)
	b = append(b, `,"cached_tokens":`...)
	b = strconv.AppendInt(b, int64(p.cached), 10)
	if p.finish != nil {
		b = append(b, ',')
		b = n.s.appendWeightVersions(b, p.tokens)
	}
	b = append(b, `,"cached_tokens_details":null,"dp_rank":null`...)
	if p.finish != nil {
		b = append(b, `,"e2e_latency":`...)
		b = appendSeconds(b, p.at.Sub(st.received))
	}
	b = append(b, `,"response_sent_to_client_ts":`...)
	b = appendUnix(b, c.sent)
	return append(b, `}}`...)
}

func (s *Server) appendWeightVersions(b []byte, tokens int) []byte {
	b = append(b, `"weight_versions":[{"version":`...)
	b = appendString(b, s.opts.weightVersion)
	b = append(b, `,"start":0,"end":`...)
	b = strconv.AppendInt(b, int64(tokens), 10)
	return append(b, `}]`...)
}

// stopToken is the id that a stop is said to have matched: Llama 3's end of turn.
const stopToken = "128009"

func appendFinishReason(b []byte, p progress) []byte {
	switch f := p.finish; {
	case f == nil:
		return append(b, `null`...)
	case f.Kind == FinishLength:
		b = append(b, `{"type":"length","length":`...)
		return append(strconv.AppendInt(b, int64(p.tokens), 10), '}')
	case f.Kind == FinishStop:
		return append(b, `{"type":"stop","matched":`+stopToken+`}`...)
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
