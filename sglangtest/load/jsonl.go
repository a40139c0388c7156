package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
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
//	arrival          seconds, ≥ 0, not below the line before; for [TraceTimes]
//	sampling_params  see [SamplingParams]
//	conversation     name of the conversation that the request is a turn of
//	turn             position in the conversation, from 0
//
// Unknown keys are errors. Blank lines are skipped. A line may be up to 1 GiB long; one is in memory at a time.
func JSONLines(path string) Dataset { return jsonLines{path} }

type jsonLines struct{ path string }

func (j jsonLines) Name() string { return j.path }

func (j jsonLines) Rows(*rand.Rand) iter.Seq2[Row, error] { return fileRows(j.path, parseJSONLines) }

const maxLine = 1 << 30

func parseJSONLines(r io.Reader, path string, yield func(Row, error) bool) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	line := 1
	for ; in.Scan(); line++ {
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 {
			continue
		}
		row, err := parseJSONLine(text)
		if err != nil {
			yield(Row{}, fmt.Errorf("load: %s:%d: %w", path, line, err))
			return
		}
		row.Line = line
		if !yield(row, nil) {
			return
		}
	}
	if err := in.Err(); err != nil {
		yield(Row{}, fmt.Errorf("load: %s:%d: %w", path, line, err))
	}
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
}

var (
	lineKeys    = jsonKeys(reflect.TypeFor[jsonLine]())
	messageKeys = jsonKeys(reflect.TypeFor[Message]())
	segmentKeys = jsonKeys(reflect.TypeFor[Segment]())
)

func parseJSONLine(text []byte) (Row, error) {
	var l jsonLine
	if err := decodeObject(text, &l, lineKeys); err != nil {
		return Row{}, err
	}
	row := Row{Prompt: Prompt{TokenIDs: l.InputIDs}, Sampling: l.SamplingParams, Conversation: l.Conversation, Turn: l.Turn}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

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
		fault("no prompt: want one of prompt, input_ids, messages, segments and input_len")
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
	length := func(key string, n *int) int {
		if n == nil {
			return 0
		}
		if *n < 1 || *n > maxTokens {
			fault("%s %d: want 1 to %d tokens", key, *n, maxTokens)
		}
		return *n
	}
	row.InputLen = length("input_len", l.InputLen)
	row.OutputLen = length("output_len", l.OutputLen)
	if l.Arrival != nil {
		at, err := offsetOf(*l.Arrival)
		if err != nil {
			faults = append(faults, err)
		}
		row.Arrival, row.Timed = at, true
	}
	switch {
	case l.Turn < 0:
		fault("turn %d: want ≥ 0", l.Turn)
	case l.Turn > 0 && l.Conversation == "":
		fault("turn %d of no conversation: want the conversation's name", l.Turn)
	}
	return row, oneLine(faults...)
}
