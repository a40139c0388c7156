package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// events reads all of r and returns the data of its events.
func events(t testing.TB, r io.Reader) (data []string) {
	var e Events
	e.Reset(r)
	for {
		_, err := e.Fill()
		for {
			d, ok := e.Next()
			if !ok {
				break
			}
			data = append(data, string(d))
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			return data
		}
	}
}

func TestEvents(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, tc := range []struct {
		name, in string
		want     []string
	}{
		{"one", "data: a\n\n", []string{"a"}},
		{"no space after the colon", "data:a\n\n", []string{"a"}},
		{"only the first space is dropped", "data:  a\n\n", []string{" a"}},
		{"carriage returns", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}},
		{"comments and other fields", ": hi\n\nevent: x\nid: 7\ndata: a\nretry: 1\n\n", []string{"a"}},
		{"two data lines are one event", "data: a\ndata: b\n\n", []string{"a\nb"}},
		{"blank lines between", "\n\n\ndata: a\n\n\n\ndata: b\n\n", []string{"a", "b"}},
		{"empty data", "data:\n\n", []string{""}},
		{"longer than the buffer", "data: " + long + "\n\ndata: b\n\n", []string{long, "b"}},
		{"cut in an event", "data: a\n\ndata: b", []string{"a"}},
		{"cut before the blank line", "data: a\n\ndata: b\n", []string{"a"}},
		{"nothing", "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"whole":        strings.NewReader(tc.in),
				"byte by byte": iotest.OneByteReader(strings.NewReader(tc.in)),
				"data and EOF": iotest.DataErrReader(strings.NewReader(tc.in)),
			} {
				require.Equal(t, tc.want, events(t, r), name)
			}
		})
	}
}

// FuzzEvents compares with a line reader that holds the whole stream, and reads of one byte with one read of all.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("data: a\n\ndata:b\r\n\r\n: c\ndata: d\ndata: e\n\n"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var want []string
		var lines []string
		rest := in
		for {
			line, after, found := bytes.Cut(rest, []byte("\n"))
			if !found {
				break
			}
			rest = after
			line = bytes.TrimSuffix(line, []byte("\r"))
			if len(line) == 0 {
				if lines != nil {
					want = append(want, strings.Join(lines, "\n"))
				}
				lines = nil
			} else if v, ok := bytes.CutPrefix(line, []byte("data:")); ok {
				lines = append(lines, string(bytes.TrimPrefix(v, []byte(" "))))
			}
		}
		require.Equal(t, want, events(t, bytes.NewReader(in)))
		require.Equal(t, want, events(t, &stepReader{in, int(step)%17 + 1}))
	})
}

type stepReader struct {
	b []byte
	n int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b[:min(r.n, len(r.b))])
	r.b = r.b[n:]
	return n, nil
}

func TestParseGenerate(t *testing.T) {
	var c Chunk
	require.True(t, ParseGenerate([]byte(`{"text":"a \"b\"","output_ids":[1,2],"meta_info":{"id":"r","finish_reason":{"type":"abort","message":"Aborted","status_code":null},
		"prompt_tokens":6,"completion_tokens":12,"cached_tokens":5,"num_retractions":1,"weight_version":"server-1","x":[{"y":"}"}]}}`), &c))
	require.Equal(t, `a \"b\"`, string(c.Text))
	require.Equal(t, `a "b"`, Unquote(c.Text))
	require.Equal(t, []int{6, 12, 5, 1}, []int{c.PromptTokens, c.CompletionTokens, c.CachedTokens, c.Retractions})
	require.Equal(t, []string{"abort", "Aborted", "server-1"}, []string{string(c.FinishReason), string(c.AbortMessage), string(c.Worker)})

	require.True(t, ParseGenerate([]byte(`{"error":{"message":"top_p must be in (0, 1], got 2.","code":400}}`), &c))
	require.True(t, c.Failed)
	require.Equal(t, "top_p must be in (0, 1], got 2.", string(c.Message))
	require.Equal(t, -1, c.CompletionTokens)

	for _, bad := range []string{``, `[]`, `{`, `{"text":"a}`, `{"text" "a"}`, `{"a":1 "b":2}`, `{"meta_info":{"a":}}`, `data`} {
		require.False(t, ParseGenerate([]byte(bad), &c), bad)
	}
}

func TestErrorMessage(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":{"message":"too long"}}`:                                     "too long",
		`{"error":"unknown field ` + "`x`" + `"}`:                              "unknown field `x`",
		`{"object":"error","message":"queue is full","type":"503","code":503}`: "queue is full",
		`{"detail":"Not Found"}`:                                               "Not Found",
		`{"detail":[{"loc":["body"]}]}`:                                        `[{"loc":["body"]}]`,
		"Internal Server Error\n":                                              "Internal Server Error",
		`{"message":"a \u00fc"}`:                                               "a ü",
		``:                                                                     "",
	} {
		require.Equal(t, want, ErrorMessage([]byte(body)))
	}
}

// FuzzMembers compares the walk over an object with encoding/json.
func FuzzMembers(f *testing.F) {
	f.Add([]byte(`{"text":"a\\","meta_info":{"x":[1,{"y":"}"}],"n":-1.5e3},"k\u0041":null , "t":true}`))
	f.Add([]byte(`{"":""}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		var c Chunk
		ParseGenerate(in, &c) // must not panic
		ParseOpenAI(in, &c)
		ErrorMessage(in)
		var want map[string]json.RawMessage
		if json.Unmarshal(in, &want) != nil || want == nil {
			return
		}
		got := map[string]json.RawMessage{}
		at := cursor{b: in}
		skipped := cursor{b: in}
		for m := at.object(); m.next(); {
			// encoding/json replaces invalid UTF-8 in keys; the walk does not look inside strings
			got[strings.ToValidUTF8(string(m.key), "\ufffd")] = bytes.Clone(m.value())
		}
		for m := skipped.object(); m.next(); {
		}
		if at.bad || at.i != skipped.i || skipped.bad {
			t.Fatalf("valid object refused: %q", in)
		}
		if len(got) < len(want) {
			t.Fatalf("members lost: %q, want %q", got, want)
		}
		for k, v := range want {
			if g, ok := got[k]; ok && !bytes.Equal(g, v) {
				t.Fatalf("member %q is %q, want %q", k, g, v)
			}
		}
	})
}

func TestAppendString(t *testing.T) {
	for _, s := range []string{"", "plain", "a\"b\\c", "tab\t", "é", "\x00", "\xff", "<html>&"} {
		var got string
		require.NoError(t, json.Unmarshal(AppendString(nil, s), &got))
		require.Equal(t, strings.ToValidUTF8(s, "\ufffd"), got)
	}
}

func BenchmarkParseGenerate(b *testing.B) {
	for _, size := range []int{16, 4096} {
		b.Run(fmt.Sprintf("text=%d", size), func(b *testing.B) {
			data := []byte(`{"text":"` + strings.Repeat("x", size) + `","output_ids":[68880],"meta_info":{"id":"67b6419a1734468993d8915093b360ac","finish_reason":null,"prompt_tokens":6,"weight_version":"default","num_retractions":0,"queue_time":0.0,"reasoning_tokens":0,"completion_tokens":1,"cached_tokens":5,"cached_tokens_details":{"device":5,"host":0},"dp_rank":null}}`)
			var c Chunk
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				ParseGenerate(data, &c)
			}
		})
	}
}

// A chunk is parsed for every token of every request.
func TestParsingAllocatesNothing(t *testing.T) {
	generate := []byte(`{"text":"a b c","output_ids":[1,2,3],"meta_info":{"id":"r","finish_reason":{"type":"length","length":3},"prompt_tokens":6,"completion_tokens":3,"cached_tokens":5}}`)
	chat := []byte(`{"id":"r","choices":[{"index":0,"delta":{"reasoning_content":null,"content":" enlisted"},"finish_reason":null}],"usage":{"prompt_tokens":21,"completion_tokens":3,"prompt_tokens_details":null}}`)
	var c Chunk
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if !ParseGenerate(generate, &c) || !ParseOpenAI(chat, &c) {
			t.Error("not parsed")
		}
	}))
	var e Events
	stream := bytes.Repeat([]byte("data: {}\n\n"), 100)
	r := bytes.NewReader(stream)
	e.Reset(r)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		r.Reset(stream)
		e.Reset(r)
		for {
			_, err := e.Fill()
			for _, ok := e.Next(); ok; _, ok = e.Next() {
			}
			if err != nil {
				return
			}
		}
	}))
}

func TestCut(t *testing.T) {
	for text, want := range map[string]string{
		"abcd": "abcd", "abcde": "abcd… (5 bytes)", "abéé": "abé… (6 bytes)", "abcé": "abc… (5 bytes)", "ab😀": "ab… (6 bytes)", "\xff\xff\xff\xff\xff": "\xff\xff\xff\xff… (5 bytes)",
	} {
		require.Equal(t, want, Cut(text, 4))
	}
}

func TestWithoutPassword(t *testing.T) {
	for base, want := range map[string]string{
		"http://h": "http://h", "http://me:secret@h": "http://me:xxxxx@h", "http://me:secret@h:port": "http://xxxxx@h:port", "h:1": "h:1", "me:se%zzcret@h": "xxxxx@h", "me:secret@h": "xxxxx@h",
	} {
		require.Equal(t, want, WithoutPassword(base))
	}
}
