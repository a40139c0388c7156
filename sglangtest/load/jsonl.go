package load

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
)

// JSONLines returns the dataset in a file of this package's own format, one JSON object on each line:
//
//	{"input_len": 512, "output_len": 64, "arrival": 1.25, "sampling_params": {"temperature": 0.7}, "conversation": "c1", "turn": 0}
//
// A line states its prompt in exactly one of five ways:
//
//	prompt     text
//	input_ids  token ids, ≥ 0
//	messages   chat turns, [{"role": "user", "content": "…"}]
//	segments   tokens by name, [{"stream": 7, "offset": 0, "length": 512}]; see [Segment]
//	input_len  the length alone, tokens ≥ 1; the generator makes up a prompt that shares no prefix with any other
//
// Beside one of the others, input_len states the prompt's length, if it is known. All other keys are optional:
//
//	output_len       tokens to generate, ≥ 1; sampling_params.max_new_tokens means the same
//	arrival          seconds (see below), ≥ 0, not below the line before; for [TraceTimes]
//	sampling_params  see [SamplingParams]
//	conversation     name of the conversation that the request is a turn of
//	turn             position in the conversation, from 0
//	priority         SGLang's; larger is more urgent, unless the server has it the other way round
//	deadline         when the answer should have come, > 0, counted from the arrival, in the unit of arrival
//	tenant, session  on whose behalf, and what should go to one worker; for policies, not sent
//	lora_path        name of the LoRA adapter
//	routed_dp_rank   data-parallel rank that has to take the request, from 0
//	extra            further members of the body, {"tools": […], "cache_salt": "a"}; see Request.Extra
//	header           headers, {"X-SMG-Routing-Key": "a", "traceparent": "…"}; see Request.Header
//
// A message has a role and a content, which is a text or a list of parts as the chat API has them, and may have tool_calls or
// a tool_call_id.
//
// Unknown keys are errors. Blank lines are skipped. A line may be up to 1 GiB long; one is in memory at a time. Times are in
// seconds, unless [WithTimeUnit] says otherwise. Compressed files (.gz, .zst, .bz2) are read as they are.
func JSONLines(path string, opts ...FileOption) Dataset {
	return newFileDataset(path, &jsonLines, opts)
}

var jsonLines = fileFormat{name: "JSON lines", unit: Seconds, parse: parseJSONLines}

func parseJSONLines(f *fileDataset, r io.Reader, e *emitter) {
	e.lines(r, func(line int, text []byte) bool {
		row, fault := f.jsonLine(text)
		if err := fault.err(); err != nil {
			return e.fault(line, fault.reason, fmt.Errorf("%w%s", err, meant("jsonl", objectKeys(text))))
		}
		row.Line = line
		return e.row(row)
	})
}

type jsonLine struct {
	Prompt         *string           `json:"prompt"`
	InputIDs       []int32           `json:"input_ids"`
	Messages       []json.RawMessage `json:"messages"`
	Segments       []json.RawMessage `json:"segments"`
	InputLen       *int              `json:"input_len"`
	OutputLen      *int              `json:"output_len"`
	Arrival        *float64          `json:"arrival"`
	SamplingParams *SamplingParams   `json:"sampling_params"`
	Conversation   string            `json:"conversation"`
	Turn           int               `json:"turn"`

	Priority *int                       `json:"priority"`
	Deadline *float64                   `json:"deadline"`
	Tenant   string                     `json:"tenant"`
	Session  string                     `json:"session"`
	LoRA     string                     `json:"lora_path"`
	Rank     *int                       `json:"routed_dp_rank"`
	Extra    map[string]json.RawMessage `json:"extra"`
	Header   map[string]string          `json:"header"`
}

var (
	lineKeys    = jsonKeys(reflect.TypeFor[jsonLine]())
	messageKeys = jsonKeys(reflect.TypeFor[Message]())
	segmentKeys = jsonKeys(reflect.TypeFor[Segment]())
)

func (f *fileDataset) jsonLine(text []byte) (Row, rowFault) {
	var l jsonLine
	var faults rowFault
	if err := decodeObject(text, &l, lineKeys); err != nil {
		faults.add(oddBroken, "%w", err)
		return Row{}, faults
	}
	row := Row{Prompt: Prompt{TokenIDs: l.InputIDs}, Sampling: l.SamplingParams, Conversation: l.Conversation, Turn: l.Turn,
		Priority: l.Priority, Tenant: l.Tenant, Session: l.Session, LoRA: l.LoRA, Rank: l.Rank, Extra: l.Extra, Header: l.Header}
	fault := func(format string, args ...any) { faults.add(oddValue, format, args...) }

	given := 0
	for _, form := range []struct {
		key          string
		there, empty bool
	}{
		{"prompt", l.Prompt != nil, l.Prompt != nil && *l.Prompt == ""},
		{"input_ids", l.InputIDs != nil, len(l.InputIDs) == 0},
		{"messages", l.Messages != nil, len(l.Messages) == 0},
		{"segments", l.Segments != nil, len(l.Segments) == 0},
	} {
		if form.there {
			given++
			if form.empty {
				fault("%s is empty", form.key)
			}
		}
	}
	switch {
	case given > 1:
		fault("more than one of prompt, input_ids, messages and segments: want one")
	case given == 0 && l.InputLen == nil:
		faults.add(oddMissing, "no prompt: want one of prompt, input_ids, messages, segments and input_len")
	}
	if l.Prompt != nil {
		row.Prompt.Text = *l.Prompt
	}
	for i, raw := range l.Messages {
		var m Message
		if err := decodeObject(raw, &m, messageKeys); err != nil {
			fault("messages[%d]: %w", i, err)
		} else if m.Role == "" {
			fault(`messages[%d]: want a role such as "user"`, i)
		}
		row.Prompt.Messages = append(row.Prompt.Messages, m)
	}
	for i, raw := range l.Segments {
		var s Segment
		if err := decodeObject(raw, &s, segmentKeys); err != nil {
			fault("segments[%d]: %w", i, err)
		} else if s.Offset < 0 || s.Offset > maxTokens || s.Length < 1 || s.Length > maxTokens {
			fault("segments[%d]: want offset 0 to %d and length 1 to %d", i, maxTokens, maxTokens)
		}
		row.Prompt.Segments = append(row.Prompt.Segments, s)
	}
	for i, id := range l.InputIDs {
		if id < 0 {
			fault("input_ids[%d] is %d: want ≥ 0", i, id)
			break
		}
	}
	row.InputLen = faults.tokens("input_len", l.InputLen, true, oddNoInput)
	row.OutputLen = faults.tokens("output_len", l.OutputLen, true, oddNoReply)
	if l.Arrival != nil {
		at, err := f.time("arrival", *l.Arrival)
		if err != nil {
			fault("%w", err)
		}
		row.Arrival, row.Timed = at, true
	}
	if l.Deadline != nil {
		d, err := f.time("deadline", *l.Deadline)
		if err != nil {
			fault("%w", err)
		} else if d == 0 {
			fault("deadline %g: want > 0", *l.Deadline)
		}
		row.Deadline = d
	}
	if err := (&Request{Rank: l.Rank, Extra: l.Extra, Header: l.Header}).CheckCarried(); err != nil {
		fault("%w", err)
	}
	switch {
	case l.Turn < 0:
		fault("turn %d: want ≥ 0", l.Turn)
	case l.Turn > 0 && l.Conversation == "":
		fault("turn %d of no conversation: want the conversation's name", l.Turn)
	}
	return row, faults
}
