package results

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sglangtest/harness/sglangtest/load"
)

// appendResult appends the line of a result: always the same keys, null where a value is not known. Equal results give equal
// bytes. With chunks false the chunks are left out, as if they were not known. The keys are described in the package
// comment; wireResult reads them.
func appendResult(b []byte, r *load.Result, chunks bool) []byte {
	b = appendInt(b, `{"id":`, int64(r.ID))
	b = appendString(b, "conversation", r.Conversation)
	b = appendInt(b, `,"turn":`, int64(r.Turn))
	b = appendInt(b, `,"arrival_ns":`, int64(r.Arrival))
	b = appendInt(b, `,"due_ns":`, int64(r.Due))
	b = appendInt(b, `,"released_ns":`, int64(r.Released))
	b = appendInt(b, `,"send_ns":`, int64(r.Send))
	b = appendIntIf(b, `,"first_event_ns":`, int64(r.FirstEvent), r.FirstEvent != 0)
	b = appendIntIf(b, `,"first_token_ns":`, int64(r.FirstToken), r.FirstToken != 0)
	b = appendIntIf(b, `,"first_tokens":`, int64(r.FirstTokens), r.FirstTokens != 0)
	b = appendIntIf(b, `,"last_token_ns":`, int64(r.LastToken), r.LastToken != 0)
	b = appendInt(b, `,"completion_ns":`, int64(r.Completion))
	b = strconv.AppendBool(append(b, `,"sent":`...), r.Sent)
	b = appendIntIf(b, `,"connect_ns":`, int64(r.Connect), r.Sent || r.Connect != 0)
	if b = append(b, `,"reused":`...); r.Sent || r.Reused {
		b = strconv.AppendBool(b, r.Reused)
	} else {
		b = append(b, "null"...)
	}
	b = appendIntIf(b, `,"idle_ns":`, int64(r.Idle), r.Sent || r.Idle != 0)
	b = strconv.AppendBool(append(b, `,"held_open":`...), r.HeldOpen)
	b = appendInt(b, `,"overhead_ns":`, int64(r.Overhead))
	b = appendString(b, "api", string(r.API))
	b = strconv.AppendBool(append(b, `,"streamed":`...), r.Streamed)
	b = appendString(b, "outcome", string(r.Outcome))
	b = appendIntIf(b, `,"status":`, int64(r.Status), r.Status != 0)
	b = appendString(b, "message", r.Message)
	b = appendInt(b, `,"input_len":`, int64(r.InputLen))
	b = appendInt(b, `,"output_len":`, int64(r.OutputLen))
	b = appendIntIf(b, `,"prompt_tokens":`, int64(r.PromptTokens), r.PromptTokens != 0)
	b = appendInt(b, `,"output_tokens":`, int64(r.OutputTokens))
	b = appendIntIf(b, `,"cached_tokens":`, int64(r.CachedTokens), r.CachedTokens != load.NotReported)
	tiers := r.CachedTiers
	b = appendIntIf(b, `,"cached_device":`, int64(tiers.Device), tiers.Reported)
	b = appendIntIf(b, `,"cached_host":`, int64(tiers.Host), tiers.Reported)
	b = appendIntIf(b, `,"cached_storage":`, int64(tiers.Storage), tiers.Reported)
	b = appendIntIf(b, `,"retractions":`, int64(r.Retractions), r.Retractions != load.NotReported)
	b = appendString(b, "finish_reason", r.FinishReason)
	b = appendString(b, "worker", r.Worker)
	route := routeOf(r)
	b = appendIntIf(b, `,"routed_ns":`, int64(r.Routed), r.Route != nil)
	b = appendString(b, "routed_by", route.By)
	b = appendString(b, "route_reason", route.Reason)
	b = appendIntIf(b, `,"attempt":`, int64(route.Attempt), r.Route != nil)
	b = appendString(b, "simulated_by", r.SimulatedBy)
	if chunks && (r.Streamed || r.Chunks.Len() > 0) {
		b = appendChunks(b, r.Chunks, r.Send)
	} else {
		b = append(b, `,"chunk_gap_ns":null,"chunk_tokens":null,"chunk_text_bytes":null`...)
	}
	b = appendString(b, "text", r.Text)
	b = appendNotUTF8(b, r)
	return append(b, "}\n"...)
}

// appendChunks appends the chunks as three arrays of equal length. Gaps are what dominates a line: they are an order of
// magnitude shorter than offsets.
func appendChunks(b []byte, chunks load.Chunks, send time.Duration) []byte {
	last := send
	array := func(key string, value func(load.Chunk) int64) {
		b = append(append(b, key...), '[')
		for c := range chunks.All() {
			b = append(strconv.AppendInt(b, value(c), 10), ',')
		}
		if chunks.Len() > 0 {
			b = b[:len(b)-1]
		}
		b = append(b, ']')
	}
	array(`,"chunk_gap_ns":`, func(c load.Chunk) int64 {
		gap := int64(c.At - last)
		last = c.At
		return gap
	})
	array(`,"chunk_tokens":`, func(c load.Chunk) int64 { return int64(c.Tokens) })
	array(`,"chunk_text_bytes":`, func(c load.Chunk) int64 { return int64(c.TextBytes) })
	return b
}

// A textField is a text of a result, by its key in requests.jsonl.
type textField struct {
	key string
	get func(r *load.Result) string
	set func(r *load.Result, s string)
}

var textFields = []textField{
	{"conversation", func(r *load.Result) string { return r.Conversation }, func(r *load.Result, s string) { r.Conversation = s }},
	{"api", func(r *load.Result) string { return string(r.API) }, func(r *load.Result, s string) { r.API = load.API(s) }},
	{"outcome", func(r *load.Result) string { return string(r.Outcome) }, func(r *load.Result, s string) { r.Outcome = load.Outcome(s) }},
	{"message", func(r *load.Result) string { return r.Message }, func(r *load.Result, s string) { r.Message = s }},
	{"finish_reason", func(r *load.Result) string { return r.FinishReason }, func(r *load.Result, s string) { r.FinishReason = s }},
	{"worker", func(r *load.Result) string { return r.Worker }, func(r *load.Result, s string) { r.Worker = s }},
	{"routed_by", func(r *load.Result) string { return routeOf(r).By }, func(r *load.Result, s string) { setRoute(r).By = s }},
	{"route_reason", func(r *load.Result) string { return routeOf(r).Reason }, func(r *load.Result, s string) { setRoute(r).Reason = s }},
	{"simulated_by", func(r *load.Result) string { return r.SimulatedBy }, func(r *load.Result, s string) { r.SimulatedBy = s }},
	{"text", func(r *load.Result) string { return r.Text }, func(r *load.Result, s string) { r.Text = s }},
}

// routeOf returns by whom and why the request was routed; the zero value if it was not.
func routeOf(r *load.Result) load.RouteNote {
	if r.Route == nil {
		return load.RouteNote{}
	}
	return *r.Route
}

// setRoute returns the note of a result that is being read.
func setRoute(r *load.Result) *load.RouteNote {
	if r.Route == nil {
		r.Route = new(load.RouteNote)
	}
	return r.Route
}

// appendNotUTF8 appends the texts that JSON, which is UTF-8, cannot hold (servers' error texts come from the outside) in
// base64, by their keys.
func appendNotUTF8(b []byte, r *load.Result) []byte {
	b = append(b, `,"not_utf8":`...)
	sep := byte('{')
	for i := range textFields {
		if s := textFields[i].get(r); !utf8.ValidString(s) {
			b = append(append(append(b, sep, '"'), textFields[i].key...), `":"`...)
			b = append(base64.StdEncoding.AppendEncode(b, []byte(s)), '"')
			sep = ','
		}
	}
	if sep == '{' {
		return append(b, "null"...)
	}
	return append(b, '}')
}

func appendArrival(b []byte, a Arrival) []byte {
	b = appendInt(b, `{"id":`, int64(a.ID))
	b = appendInt(b, `,"arrival_ns":`, int64(a.Arrival))
	b = appendIntAt(b, `,"priority":`, a.Priority)
	b = appendIntIf(b, `,"deadline_ns":`, int64(a.Deadline), a.Deadline != 0)
	b = appendString(b, "tenant", a.Tenant)
	b = appendString(b, "session", a.Session)
	b = appendString(b, "lora", a.LoRA)
	b = appendIntAt(b, `,"rank":`, a.Rank)
	return append(b, "}\n"...)
}

func appendInt(b []byte, key string, v int64) []byte {
	return strconv.AppendInt(append(b, key...), v, 10)
}

// appendIntIf appends v, or null if it is not known.
func appendIntIf(b []byte, key string, v int64, known bool) []byte {
	if !known {
		return append(append(b, key...), "null"...)
	}
	return appendInt(b, key, v)
}

// appendIntAt appends what v points to, or null.
func appendIntAt(b []byte, key string, v *int) []byte {
	if v == nil {
		return appendIntIf(b, key, 0, false)
	}
	return appendInt(b, key, int64(*v))
}

// appendString appends a member whose value is s, or null if s is empty. What is not UTF-8 in s is replaced by U+FFFD.
func appendString(b []byte, name, s string) []byte {
	b = append(append(b, `,"`...), name...)
	if s == "" {
		return append(b, `":null`...)
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
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
	At     *time.Duration    `json:"at_ns"` // a pointer, to notice its absence
	Cost   time.Duration     `json:"cost_ns"`
	Source string            `json:"source"`
	Values map[string]number `json:"values"`
	Err    *string           `json:"error"`
}

// wireEvent is a [metrics.Event] as it stands in a file.
type wireEvent struct {
	At     *time.Duration `json:"at_ns"` // a pointer, to notice its absence
	Kind   string         `json:"kind"`
	Source *string        `json:"source"`
	Data   map[string]any `json:"data"`
}

// orNull returns a pointer to s, or nil if s is empty.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// orEmpty is the inverse of orNull.
func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
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
