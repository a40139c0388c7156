package results

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// appendResult appends the line of a result. Equal results give equal bytes. The keys are described in the
// package comment; wireResult reads them.
func appendResult(b []byte, r *load.Result) []byte {
	b = appendInt(b, `{"id":`, int64(r.ID))
	b = appendOptionalString(b, "conversation", r.Conversation)
	b = appendOptionalInt(b, `,"turn":`, int64(r.Turn))
	b = appendInt(b, `,"arrival_ns":`, int64(r.Arrival))
	b = appendInt(b, `,"due_ns":`, int64(r.Due))
	b = appendInt(b, `,"released_ns":`, int64(r.Released))
	b = appendInt(b, `,"send_ns":`, int64(r.Send))
	b = appendOptionalInt(b, `,"first_event_ns":`, int64(r.FirstEvent))
	b = appendOptionalInt(b, `,"first_token_ns":`, int64(r.FirstToken))
	b = appendOptionalInt(b, `,"last_token_ns":`, int64(r.LastToken))
	b = appendInt(b, `,"completion_ns":`, int64(r.Completion))
	b = strconv.AppendBool(append(b, `,"sent":`...), r.Sent)
	b = appendOptionalInt(b, `,"connect_ns":`, int64(r.Connect))
	if r.Reused {
		b = append(b, `,"reused":true`...)
	}
	b = appendOptionalInt(b, `,"idle_ns":`, int64(r.Idle))
	if r.HeldOpen {
		b = append(b, `,"held_open":true`...)
	}
	b = appendOptionalInt(b, `,"overhead_ns":`, int64(r.Overhead))
	b = appendOptionalString(b, "api", string(r.API))
	if r.Streamed {
		b = append(b, `,"streamed":true`...)
	}
	b = appendString(b, "outcome", string(r.Outcome))
	b = appendOptionalInt(b, `,"status":`, int64(r.Status))
	b = appendOptionalString(b, "message", r.Message)
	b = appendInt(b, `,"input_len":`, int64(r.InputLen))
	b = appendInt(b, `,"output_len":`, int64(r.OutputLen))
	b = appendOptionalInt(b, `,"prompt_tokens":`, int64(r.PromptTokens))
	b = appendOptionalInt(b, `,"output_tokens":`, int64(r.OutputTokens))
	b = appendOptionalInt(b, `,"cached_tokens":`, int64(r.CachedTokens))
	b = appendOptionalInt(b, `,"retractions":`, int64(r.Retractions))
	b = appendOptionalString(b, "finish_reason", r.FinishReason)
	b = appendOptionalString(b, "worker", r.Worker)
	b = appendOptionalString(b, "simulated_by", r.SimulatedBy)
	if r.Chunks.Len() > 0 {
		b = appendChunks(b, r.Chunks, r.Send)
	}
	b = appendOptionalString(b, "text", r.Text)
	return append(b, "}\n"...)
}

// appendChunks appends the chunks as up to three arrays of equal length. Gaps are what dominates a line:
// they are an order of magnitude shorter than offsets.
func appendChunks(b []byte, chunks load.Chunks, send time.Duration) []byte {
	b = append(b, `,"chunk_gap_ns":[`...)
	last, allOne, anyText := send, true, false
	for c := range chunks.All() {
		b = append(strconv.AppendInt(b, int64(c.At-last), 10), ',')
		last = c.At
		allOne = allOne && c.Tokens == 1
		anyText = anyText || c.TextBytes != 0
	}
	b[len(b)-1] = ']'
	if !allOne {
		b = append(b, `,"chunk_tokens":[`...)
		for c := range chunks.All() {
			b = append(strconv.AppendInt(b, int64(c.Tokens), 10), ',')
		}
		b[len(b)-1] = ']'
	}
	if anyText {
		b = append(b, `,"chunk_text_bytes":[`...)
		for c := range chunks.All() {
			b = append(strconv.AppendInt(b, int64(c.TextBytes), 10), ',')
		}
		b[len(b)-1] = ']'
	}
	return b
}

func appendArrival(b []byte, a Arrival) []byte {
	b = appendInt(b, `{"id":`, int64(a.ID))
	b = appendInt(b, `,"arrival_ns":`, int64(a.Arrival))
	return append(b, "}\n"...)
}

func appendInt(b []byte, key string, v int64) []byte {
	return strconv.AppendInt(append(b, key...), v, 10)
}

func appendOptionalInt(b []byte, key string, v int64) []byte {
	if v == 0 {
		return b
	}
	return appendInt(b, key, v)
}

func appendOptionalString(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	return appendString(b, name, s)
}

// appendString appends a member whose value is s. JSON text is UTF-8; a string that is not (servers' error
// texts come from the outside) is kept whole in base64, under a name that says so.
func appendString(b []byte, name, s string) []byte {
	b = append(append(b, `,"`...), name...)
	if !utf8.ValidString(s) {
		b = append(b, `_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, []byte(s))
		return append(b, '"')
	}
	b = append(b, `":"`...)
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		default:
			const hex = "0123456789abcdef"
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		}
	}
	return append(append(b, s[start:]...), '"')
}

// appendEncoded appends v as a line, or keeps the error that encoding it met.
func (w *Writer) appendEncoded(j *journal, v any) {
	line, err := json.Marshal(v)
	if err != nil {
		w.keep(fmt.Errorf("results: a record cannot be stored: %w", err))
		return
	}
	w.append(j, append(line, '\n'))
}

// wireSample is a sample as it stands in a file: [metrics.Sample] with values that need not be finite.
type wireSample struct {
	metrics.Sample
	Values map[string]number `json:"values,omitempty"`
}

// A number is a float64 that in JSON, which has no such numbers, is "NaN", "+Inf" or "-Inf" if it must.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if f := float64(n); !math.IsNaN(f) && !math.IsInf(f, 0) {
		return json.Marshal(f)
	}
	return strconv.AppendQuote(nil, strconv.FormatFloat(float64(n), 'g', -1, 64)), nil
}

func (n *number) UnmarshalJSON(data []byte) error {
	s := string(data)
	switch s {
	case `"NaN"`, `"+Inf"`, `"-Inf"`:
		s = s[1 : len(s)-1]
	}
	f, err := strconv.ParseFloat(s, 64)
	*n = number(f)
	return err
}
