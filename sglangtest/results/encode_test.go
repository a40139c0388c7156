package results

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

func chunksOf(list ...load.Chunk) load.Chunks {
	var c load.Chunks
	for _, ch := range list {
		c.Append(ch)
	}
	return c
}

func sampleResult() load.Result {
	return load.Result{
		ID: 7, Conversation: "c-1", Turn: 2,
		Arrival: 1000, Due: 1001, Released: 1002, Send: 1003, FirstEvent: 1900, FirstToken: 2000, FirstTokens: 1, LastToken: 2500, Completion: 3000,
		Sent: true, Connect: 5, Reused: true, Idle: 8, HeldOpen: true, Streamed: true, Overhead: 6,
		API: load.Generate, Outcome: load.OutcomeOK, Status: 200, Message: "say \"no\"\\\n\x01é",
		InputLen: 10, OutputLen: 4, PromptTokens: 11, OutputTokens: 4, CachedTokens: 3, Retractions: 1,
		CachedTiers:  load.CachedTiers{Reported: true, Device: 1, Storage: 2},
		FinishReason: "length", Worker: "server-0", SimulatedBy: "p",
		Routed: 1001, Route: &load.RouteNote{By: "policy.RoundRobin", Reason: "its turn", Attempt: 2},
		Chunks: chunksOf(load.Chunk{At: 2000, Tokens: 1, TextBytes: 3}, load.Chunk{At: 2500, Tokens: 3}),
		Text:   "a b",
	}
}

// The bytes of a line are part of the schema: readers in other languages rely on them.
func TestEncodingIsFixed(t *testing.T) {
	full := sampleResult()
	zero := load.Result{Outcome: load.OutcomeRefused, CachedTokens: load.NotReported, Retractions: load.NotReported}
	plain := load.Result{ID: 1, Outcome: load.OutcomeOK, Sent: true, Streamed: true, Completion: 9, FirstToken: 5, LastToken: 9, OutputTokens: 2,
		Chunks: chunksOf(load.Chunk{At: 5, Tokens: 1}, load.Chunk{At: 9, Tokens: 1})}
	bad := load.Result{Outcome: load.OutcomeHTTP, Sent: true, Status: 500, Message: "a\xff\x00", Worker: "\xfe"}
	tests := []struct {
		name string
		res  load.Result
		want string
	}{
		{"every field", full, `{"id":7,"conversation":"c-1","turn":2,"arrival_ns":1000,"due_ns":1001,"released_ns":1002,"send_ns":1003,` +
			`"first_event_ns":1900,"first_token_ns":2000,"first_tokens":1,"last_token_ns":2500,"completion_ns":3000,"sent":true,"connect_ns":5,"reused":true,"idle_ns":8,"held_open":true,"overhead_ns":6,` +
			`"api":"generate","streamed":true,"outcome":"ok","status":200,"message":"say \"no\"\\\n\u0001é","input_len":10,"output_len":4,` +
			`"prompt_tokens":11,"output_tokens":4,"cached_tokens":3,"cached_device":1,"cached_host":0,"cached_storage":2,"retractions":1,"finish_reason":"length","worker":"server-0",` +
			`"routed_ns":1001,"routed_by":"policy.RoundRobin","route_reason":"its turn","attempt":2,"simulated_by":"p",` +
			`"chunk_gap_ns":[997,500],"chunk_tokens":[1,3],"chunk_text_bytes":[3,0],"text":"a b","not_utf8":null}`},
		{"nothing known", zero, `{"id":0,"conversation":null,"turn":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":0,` +
			`"first_event_ns":null,"first_token_ns":null,"first_tokens":null,"last_token_ns":null,"completion_ns":0,"sent":false,"connect_ns":null,"reused":null,"idle_ns":null,"held_open":false,"overhead_ns":0,` +
			`"api":null,"streamed":false,"outcome":"refused","status":null,"message":null,"input_len":0,"output_len":0,` +
			`"prompt_tokens":null,"output_tokens":0,"cached_tokens":null,"cached_device":null,"cached_host":null,"cached_storage":null,"retractions":null,"finish_reason":null,"worker":null,"routed_ns":null,"routed_by":null,"route_reason":null,"attempt":null,"simulated_by":null,` +
			`"chunk_gap_ns":null,"chunk_tokens":null,"chunk_text_bytes":null,"text":null,"not_utf8":null}`},
		{"zeros that are known", plain, `{"id":1,"conversation":null,"turn":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":0,` +
			`"first_event_ns":null,"first_token_ns":5,"first_tokens":null,"last_token_ns":9,"completion_ns":9,"sent":true,"connect_ns":0,"reused":false,"idle_ns":0,"held_open":false,"overhead_ns":0,` +
			`"api":null,"streamed":true,"outcome":"ok","status":null,"message":null,"input_len":0,"output_len":0,` +
			`"prompt_tokens":null,"output_tokens":2,"cached_tokens":0,"cached_device":null,"cached_host":null,"cached_storage":null,"retractions":0,"finish_reason":null,"worker":null,"routed_ns":null,"routed_by":null,"route_reason":null,"attempt":null,"simulated_by":null,` +
			`"chunk_gap_ns":[5,4],"chunk_tokens":[1,1],"chunk_text_bytes":[0,0],"text":null,"not_utf8":null}`},
		{"not UTF-8", bad, `{"id":0,"conversation":null,"turn":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":0,` +
			`"first_event_ns":null,"first_token_ns":null,"first_tokens":null,"last_token_ns":null,"completion_ns":0,"sent":true,"connect_ns":0,"reused":false,"idle_ns":0,"held_open":false,"overhead_ns":0,` +
			`"api":null,"streamed":false,"outcome":"http_error","status":500,"message":"a�\u0000","input_len":0,"output_len":0,` +
			`"prompt_tokens":null,"output_tokens":0,"cached_tokens":0,"cached_device":null,"cached_host":null,"cached_storage":null,"retractions":0,"finish_reason":null,"worker":"�","routed_ns":null,"routed_by":null,"route_reason":null,"attempt":null,"simulated_by":null,` +
			`"chunk_gap_ns":null,"chunk_tokens":null,"chunk_text_bytes":null,"text":null,"not_utf8":{"message":"Yf8A","worker":"/g=="}}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			line := string(appendResult(nil, &test.res, true))
			require.Equal(t, test.want+"\n", line)
			back, err := decodeResult([]byte(test.want))
			require.NoError(t, err)
			require.Equal(t, test.res, back)
		})
	}
}

// setAll gives every field of the struct that v points to a value that is not zero, so that a field which
// the encoding does not know is missed in the round trip.
func setAll(t *testing.T, v any) {
	s := reflect.ValueOf(v).Elem()
	for i := range s.NumField() {
		f := s.Field(i)
		switch f.Interface().(type) {
		case load.Chunks:
			f.Set(reflect.ValueOf(chunksOf(load.Chunk{At: 1008, Tokens: 5, TextBytes: 6})))
			continue
		case *load.RouteNote:
			f.Set(reflect.ValueOf(&load.RouteNote{By: "by\xfe", Reason: "\xff", Attempt: 4}))
			continue
		case map[string]float64:
			f.Set(reflect.ValueOf(map[string]float64{"a": 0.1, "b": math.Inf(1), "c": math.Inf(-1), "d": 1e300}))
			continue
		case load.CachedTiers:
			f.Set(reflect.ValueOf(load.CachedTiers{Reported: true, Device: 7, Host: 8, Storage: 9}))
			continue
		case map[string]any:
			f.Set(reflect.ValueOf(map[string]any{"old": 1.0, "new": "x", "at_ns": 5.0}))
			continue
		}
		switch f.Kind() {
		case reflect.String:
			f.SetString(s.Type().Field(i).Name)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(i) + 1000)
		case reflect.Bool:
			f.SetBool(true)
		default:
			t.Fatalf("%s has a type that this test does not know: extend the encoding and this test", s.Type().Field(i).Name)
		}
	}
}

func TestEveryFieldSurvives(t *testing.T) {
	var res load.Result
	setAll(t, &res) // each field is larger than the one before, so that the moments are in order
	res.FirstEvent, res.OutputTokens, res.FirstTokens = res.FirstToken, 5000, 4000
	require.NoError(t, res.Check())
	back, err := decodeResult(appendResult(nil, &res, true))
	require.NoError(t, err)
	require.Equal(t, res, back)

	var s metrics.Sample
	setAll(t, &s)
	var e metrics.Event
	setAll(t, &e)
	w := begin(t, t.TempDir()+"/run")
	w.Sample(s)
	w.Event(e)
	require.NoError(t, w.Finish(nil))
	run, err := Open(w.Dir())
	require.NoError(t, err)
	require.Equal(t, []metrics.Sample{s}, collect(t, run.Samples()))
	require.Equal(t, []metrics.Event{e}, collect(t, run.Events()))
}

func TestSampleValuesThatAreNotNumbers(t *testing.T) {
	w := begin(t, t.TempDir()+"/run")
	w.Sample(metrics.Sample{Source: "server-0", Values: map[string]float64{"x": math.NaN()}})
	require.NoError(t, w.Finish(nil))
	run, err := Open(w.Dir())
	require.NoError(t, err)
	samples := collect(t, run.Samples())
	require.Len(t, samples, 1)
	require.True(t, math.IsNaN(samples[0].Values["x"]))
}

func FuzzResultRoundTrip(f *testing.F) {
	f.Add(1, int64(5), int64(6), int64(7), true, "ok", "message", "text", 200, []byte{1, 2, 3, 200, 1, 9})
	f.Add(3, int64(0), int64(0), int64(0), true, "ok", "a\xff", "\xfe", 0, []byte{})
	f.Add(-1, int64(math.MinInt64), int64(math.MaxInt64), int64(-1), false, "\xff", "\"\\\u2028\x7f\x00", "\xed\xa0\x80 </script>", -5, []byte(nil))
	f.Fuzz(func(t *testing.T, id int, a, b, c int64, flag bool, s1, s2, s3 string, n int, chunks []byte) {
		r := load.Result{
			ID: id, Conversation: s3, Turn: n, Arrival: time.Duration(a), Due: time.Duration(b), Released: time.Duration(c),
			Send: time.Duration(a), FirstToken: time.Duration(b), LastToken: time.Duration(c), Completion: time.Duration(a),
			Sent: flag, Connect: time.Duration(b), Reused: !flag, Streamed: flag, Overhead: time.Duration(c), API: load.API(s1),
			Outcome: load.Outcome(s1), Status: n, Message: s2, InputLen: n, OutputLen: id, PromptTokens: n, OutputTokens: id,
			CachedTokens: n, Retractions: n, FinishReason: s1, Worker: s2, Text: s3,
		}
		at := uint64(c) & math.MaxInt64
		for len(chunks) >= 3 {
			at += uint64(chunks[0]) << (chunks[1] % 50)
			if at > math.MaxInt64 {
				break
			}
			r.Chunks.Append(load.Chunk{At: time.Duration(at), Tokens: int(chunks[1]) % 6, TextBytes: int(chunks[2]) << (chunks[0] % 40)})
			chunks = chunks[3:]
		}
		if r.Check() != nil {
			line := appendResult(nil, &r, true)
			require.True(t, json.Valid(line), "%q", line)
			_, err := decodeResult(line)
			require.Error(t, err)
			return
		}
		line := appendResult(nil, &r, true)
		require.Equal(t, line, appendResult(nil, &r, true))
		require.Equal(t, len(line)-1, strings.IndexByte(string(line), '\n'), "one line")
		require.True(t, json.Valid(line), "%q", line)
		back, err := decodeResult(line)
		require.NoError(t, err)
		require.Equal(t, r, back)
	})
}

func FuzzDecode(f *testing.F) {
	r := sampleResult()
	f.Add(appendResult(nil, &r, true))
	f.Add([]byte(`{"id":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":-5,"completion_ns":0,"sent":false,"outcome":"ok",` +
		`"input_len":0,"output_len":0,"chunk_gap_ns":[1,9223372036854775807],"chunk_tokens":[1,-1]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		// Whatever is read without an error can be written, and says the same when read again.
		r, err := decodeResult(line)
		if err != nil {
			return
		}
		again, err := decodeResult(appendResult(nil, &r, true))
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

func TestDecodeRefuses(t *testing.T) {
	const head = `{"id":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":10,"completion_ns":20,"sent":true,"outcome":"ok","input_len":0,"output_len":0,"output_tokens":3`
	r, err := decodeResult([]byte(head + `}`))
	require.NoError(t, err)
	require.Equal(t, []int{load.NotReported, load.NotReported}, []int{r.CachedTokens, r.Retractions}, "what is not there is not known")
	r, err = decodeResult([]byte(head + `, "chunk_gap_ns" : [ 1 , 2 ], "chunk_tokens": [0,2], "chunk_text_bytes": [3,0], "a key of the future": {} }`))
	require.NoError(t, err)
	require.Equal(t, chunksOf(load.Chunk{At: 11, TextBytes: 3}, load.Chunk{At: 13, Tokens: 2}), r.Chunks)
	chunks := func(gaps, tokens, bytes string) string {
		return head + `,"chunk_gap_ns":` + gaps + `,"chunk_tokens":` + tokens + `,"chunk_text_bytes":` + bytes + `}`
	}
	_, err = decodeResult([]byte(chunks("null", "null", "null")))
	require.NoError(t, err)
	for name, line := range map[string]string{
		"empty":                  ``,
		"no members":             `{}`,
		"wrong type":             `{"id":"7"}`,
		"two values":             head + `}{}`,
		"null where none may be": strings.Replace(head, `"due_ns":0`, `"due_ns":null`, 1) + `}`,
		"fraction of a ns":       strings.Replace(head, `"due_ns":0`, `"due_ns":0.5`, 1) + `}`,
		"arrays differ":          chunks("[1,2]", "[1]", "[1,1]"),
		"an array is missing":    head + `,"chunk_gap_ns":[1,2],"chunk_tokens":[1,1]}`,
		"tokens without chunks":  chunks("null", "[1]", "null"),
		"negative tokens":        chunks("[1]", "[-1]", "[1]"),
		"many tokens":            chunks("[1]", "[9223372036854775807]", "[1]"),
		"negative text":          chunks("[1]", "[1]", "[-1]"),
		"chunk before start":     chunks("[-11]", "[1]", "[1]"),
		"chunks out of order":    chunks("[1,-1]", "[1,1]", "[1,1]"),
		"chunk after the end":    chunks("[11]", "[1]", "[1]"),
		"gap overflows":          chunks("[1,9223372036854775807]", "[1,1]", "[1,1]"),
		"array is a number":      chunks("1", "1", "1"),
		"array of arrays":        chunks("[[1]]", "[1]", "[1]"),
		"array of fractions":     chunks("[1,2.5]", "[1,1]", "[1,1]"),
		"bad base64":             head + `,"not_utf8":{"text":"?"}}`,
		"not a text":             head + `,"not_utf8":{"id":"/w=="}}`,
		"token after the end":    head + `,"first_token_ns":21,"last_token_ns":21}`,
		"more than all tokens":   head + `,"first_token_ns":20,"last_token_ns":20,"first_tokens":4}`,
		"many prompt tokens":     head + `,"prompt_tokens":9223372036854775807}`,
		"-2 cached tokens":       head + `,"cached_tokens":-2}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := decodeResult([]byte(line))
			require.Error(t, err)
		})
	}
}

// benchResult is a typical streamed answer: 128 chunks about 8 ms apart, with their text lengths.
func benchResult() load.Result {
	r := sampleResult()
	r.Message, r.Text = "", ""
	r.Arrival, r.Due, r.Released, r.Send, r.Completion = 12_345_678_901, 12_345_678_901, 12_345_700_123, 12_345_750_000, 13_500_000_000
	r.FirstEvent, r.FirstToken, r.LastToken, r.OutputTokens = 0, r.Send+8_123_457, r.Send+128*8_123_457, 128
	r.Chunks = load.Chunks{}
	for i := range 128 {
		r.Chunks.Append(load.Chunk{At: r.Send + time.Duration(i+1)*8_123_457, Tokens: 1, TextBytes: 2 + i%7})
	}
	return r
}

func TestEncodingDoesNotAllocate(t *testing.T) {
	r := benchResult()
	buf := make([]byte, 0, 8<<10)
	require.Zero(t, testing.AllocsPerRun(100, func() { buf = appendResult(buf[:0], &r, true) }))
}

func BenchmarkEncode(b *testing.B) {
	r := benchResult()
	buf := make([]byte, 0, 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		buf = appendResult(buf[:0], &r, true)
	}
	b.ReportMetric(float64(len(buf)), "B/line")
}

func BenchmarkDecode(b *testing.B) {
	r := benchResult()
	line := appendResult(nil, &r, true)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeResult(line); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriterResult(b *testing.B) {
	w := begin(b, b.TempDir()+"/run")
	r := benchResult()
	b.ReportAllocs()
	for b.Loop() {
		w.Result(&r)
	}
	b.StopTimer()
	if err := w.Finish(nil); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkWriterResultParallel(b *testing.B) {
	w := begin(b, b.TempDir()+"/run")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := benchResult()
		for pb.Next() {
			w.Result(&r)
		}
	})
	b.StopTimer()
	if err := w.Finish(nil); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkBegin(b *testing.B) {
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		w, err := Create(dir+"/"+time.Duration(i).String(), Meta{})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := w.Begin(load.Info{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		w.Fail(errForTest, nil)
		b.StartTimer()
	}
}

func TestArrivalsSayWhatRequestsWereGiven(t *testing.T) {
	w := begin(t, t.TempDir()+"/run")
	w.Arrived(&load.Request{ID: 1, Arrival: 5, Priority: load.Ptr(0), Deadline: 9, Tenant: "t", Session: "s", LoRA: "sql", Rank: load.Ptr(0)})
	w.Arrived(&load.Request{ID: 2, Arrival: 6})
	require.NoError(t, w.Finish(nil))
	raw, err := os.ReadFile(filepath.Join(w.Dir(), arrivalsFile))
	require.NoError(t, err)
	require.Equal(t, `{"id":1,"arrival_ns":5,"priority":0,"deadline_ns":9,"tenant":"t","session":"s","lora":"sql","rank":0}
{"id":2,"arrival_ns":6,"priority":null,"deadline_ns":null,"tenant":null,"session":null,"lora":null,"rank":null}
`, string(raw))
	run, err := Open(w.Dir())
	require.NoError(t, err)
	require.Equal(t, []Arrival{{ID: 1, Arrival: 5, Priority: load.Ptr(0), Deadline: 9, Tenant: "t", Session: "s", LoRA: "sql", Rank: load.Ptr(0)}, {ID: 2, Arrival: 6}},
		collect(t, run.Arrivals()))
}
