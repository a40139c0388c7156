package results

import (
	"encoding/json"
	"math"
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
		Arrival: 1000, Due: 1001, Released: 1002, Send: 1003, FirstEvent: 1900, FirstToken: 2000, LastToken: 2500, Completion: 3000,
		Sent: true, Connect: 5, Reused: true, Idle: 8, HeldOpen: true, Streamed: true, Overhead: 6,
		API: load.Generate, Outcome: load.OutcomeOK, Status: 200, Message: "say \"no\"\\\n\x01é",
		InputLen: 10, OutputLen: 4, PromptTokens: 11, OutputTokens: 4, CachedTokens: 3, Retractions: 1,
		FinishReason: "length", Worker: "server-0", SimulatedBy: "p",
		Chunks: chunksOf(load.Chunk{At: 2000, Tokens: 1, TextBytes: 3}, load.Chunk{At: 2500, Tokens: 3}),
		Text:   "a b",
	}
}

// The bytes of a line are part of the schema: readers in other languages rely on them.
func TestEncodingIsFixed(t *testing.T) {
	full, zero := sampleResult(), load.Result{}
	plain := load.Result{ID: 1, Outcome: load.OutcomeOK, Chunks: chunksOf(load.Chunk{At: 5, Tokens: 1}, load.Chunk{At: 9, Tokens: 1})}
	bad := load.Result{Outcome: load.OutcomeHTTP, Status: 500, Message: "\xff\x00"}
	tests := []struct {
		name string
		res  load.Result
		want string
	}{
		{"every field", full, `{"id":7,"conversation":"c-1","turn":2,"arrival_ns":1000,"due_ns":1001,"released_ns":1002,"send_ns":1003,` +
			`"first_event_ns":1900,"first_token_ns":2000,"last_token_ns":2500,"completion_ns":3000,"sent":true,"connect_ns":5,"reused":true,"idle_ns":8,"held_open":true,"overhead_ns":6,` +
			`"api":"generate","streamed":true,"outcome":"ok","status":200,"message":"say \"no\"\\\n\u0001é","input_len":10,"output_len":4,` +
			`"prompt_tokens":11,"output_tokens":4,"cached_tokens":3,"retractions":1,"finish_reason":"length","worker":"server-0","simulated_by":"p",` +
			`"chunk_gap_ns":[997,500],"chunk_tokens":[1,3],"chunk_text_bytes":[3,0],"text":"a b"}`},
		{"zero value", zero, `{"id":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":0,"completion_ns":0,"sent":false,` +
			`"outcome":"","input_len":0,"output_len":0}`},
		{"one token per chunk, no text", plain, `{"id":1,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":0,"completion_ns":0,"sent":false,` +
			`"outcome":"ok","input_len":0,"output_len":0,"chunk_gap_ns":[5,4]}`},
		{"not UTF-8", bad, `{"id":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":0,"completion_ns":0,"sent":false,` +
			`"outcome":"http_error","status":500,"message_base64":"/wA=","input_len":0,"output_len":0}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			line := string(appendResult(nil, &test.res))
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
			f.Set(reflect.ValueOf(chunksOf(load.Chunk{At: 1 << 40, Tokens: 5, TextBytes: 6})))
			continue
		case map[string]float64:
			f.Set(reflect.ValueOf(map[string]float64{"a": 0.1, "b": math.Inf(1), "c": math.Inf(-1), "d": 1e300}))
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
	setAll(t, &res)
	back, err := decodeResult(appendResult(nil, &res))
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
		line := appendResult(nil, &r)
		require.Equal(t, line, appendResult(nil, &r))
		require.Equal(t, len(line)-1, strings.IndexByte(string(line), '\n'), "one line")
		require.True(t, json.Valid(line), "%q", line)
		back, err := decodeResult(line)
		require.NoError(t, err)
		require.Equal(t, r, back)
	})
}

func FuzzDecode(f *testing.F) {
	r := sampleResult()
	f.Add(appendResult(nil, &r))
	f.Add([]byte(`{"id":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":-5,"completion_ns":0,"sent":false,"outcome":"ok",` +
		`"input_len":0,"output_len":0,"chunk_gap_ns":[1,9223372036854775807],"chunk_tokens":[1,-1]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		// Whatever is read without an error can be written, and says the same when read again.
		r, err := decodeResult(line)
		if err != nil {
			return
		}
		again, err := decodeResult(appendResult(nil, &r))
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}

func TestDecodeRefuses(t *testing.T) {
	const head = `{"id":0,"arrival_ns":0,"due_ns":0,"released_ns":0,"send_ns":10,"completion_ns":0,"sent":false,"outcome":"ok","input_len":0,"output_len":0`
	_, err := decodeResult([]byte(head + `}`))
	require.NoError(t, err)
	r, err := decodeResult([]byte(head + `, "chunk_gap_ns" : [ 1 , 2 ], "chunk_tokens": [0,2], "a key of the future": {} }`))
	require.NoError(t, err)
	require.Equal(t, chunksOf(load.Chunk{At: 11}, load.Chunk{At: 13, Tokens: 2}), r.Chunks)
	for name, line := range map[string]string{
		"empty":                 ``,
		"no members":            `{}`,
		"wrong type":            `{"id":"7"}`,
		"two values":            head + `}{}`,
		"fraction of a ns":      strings.Replace(head, `"due_ns":0`, `"due_ns":0.5`, 1) + `}`,
		"arrays differ":         head + `,"chunk_gap_ns":[1,2],"chunk_tokens":[1]}`,
		"tokens without chunks": head + `,"chunk_tokens":[1]}`,
		"negative tokens":       head + `,"chunk_gap_ns":[1],"chunk_tokens":[-1]}`,
		"negative text":         head + `,"chunk_gap_ns":[1],"chunk_text_bytes":[-1]}`,
		"chunk before start":    head + `,"chunk_gap_ns":[-11]}`,
		"chunks out of order":   head + `,"chunk_gap_ns":[1,-1]}`,
		"gap overflows":         head + `,"chunk_gap_ns":[1,9223372036854775807]}`,
		"array is null":         head + `,"chunk_gap_ns":null}`,
		"array is a number":     head + `,"chunk_gap_ns":1}`,
		"array of arrays":       head + `,"chunk_gap_ns":[[1]]}`,
		"array of fractions":    head + `,"chunk_gap_ns":[1,2.5]}`,
		"bad base64":            head + `,"text_base64":"?"}`,
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
	r.Chunks = load.Chunks{}
	for i := range 128 {
		r.Chunks.Append(load.Chunk{At: r.Send + time.Duration(i+1)*8_123_457, Tokens: 1, TextBytes: 2 + i%7})
	}
	return r
}

func TestEncodingDoesNotAllocate(t *testing.T) {
	r := benchResult()
	buf := make([]byte, 0, 8<<10)
	require.Zero(t, testing.AllocsPerRun(100, func() { buf = appendResult(buf[:0], &r) }))
}

func BenchmarkEncode(b *testing.B) {
	r := benchResult()
	buf := make([]byte, 0, 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		buf = appendResult(buf[:0], &r)
	}
	b.ReportMetric(float64(len(buf)), "B/line")
}

func BenchmarkDecode(b *testing.B) {
	r := benchResult()
	line := appendResult(nil, &r)
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
