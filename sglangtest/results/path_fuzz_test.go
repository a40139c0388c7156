package results_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
)

// A scriptedConn answers whatever is written to it with raw, in pieces, and then ends.
type scriptedConn struct {
	raw    []byte
	pieces []byte // lengths, used again and again; empty: all at once
	n      int    // reads
	asked  func() // closes the channel of the same purpose
	ready  <-chan struct{}
	close  func()
	closed <-chan struct{}
}

func newScriptedConn(raw, pieces []byte) *scriptedConn {
	ready, closed := make(chan struct{}), make(chan struct{})
	return &scriptedConn{raw: raw, pieces: pieces, ready: ready, asked: sync.OnceFunc(func() { close(ready) }),
		closed: closed, close: sync.OnceFunc(func() { close(closed) })}
}

func (c *scriptedConn) Read(p []byte) (int, error) {
	select {
	case <-c.ready:
	case <-c.closed:
		return 0, net.ErrClosed
	}
	if len(c.raw) == 0 {
		return 0, io.EOF
	}
	n := len(c.raw)
	if len(c.pieces) > 0 {
		piece := int(c.pieces[c.n%len(c.pieces)])
		time.Sleep(time.Duration(piece%8) * time.Millisecond) // of a synctest bubble
		n = min(n, piece+1)
		c.n++
	}
	n = copy(p, c.raw[:n])
	c.raw = c.raw[n:]
	return n, nil
}

func (c *scriptedConn) Write(p []byte) (int, error)      { c.asked(); return len(p), nil }
func (c *scriptedConn) Close() error                     { c.close(); return nil }
func (c *scriptedConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scriptedConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scriptedConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptedConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptedConn) SetWriteDeadline(time.Time) error { return nil }

// twoRequests is a workload.
type twoRequests struct{}

func (twoRequests) Plan() (load.Plan, error) { return load.Plan{Requests: 2}, nil }

func (twoRequests) Requests() iter.Seq2[load.Request, error] {
	return func(yield func(load.Request, error) bool) {
		for i := range 2 {
			if !yield(load.Request{ID: i, Arrival: time.Duration(i+1) * time.Millisecond, Prompt: load.Prompt{Text: "x"}, OutputLen: 4}, nil) {
				return
			}
		}
	}
}

const (
	flagWhole = 1 << iota
	flagTexts
	flagIncremental
	flagAcceptLength
)

// framed returns a whole answer of HTTP with the given body.
func framed(contentType, body string) []byte {
	return []byte("HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n" + body)
}

func stream(events ...string) []byte {
	return framed("text/event-stream", "data: "+strings.Join(events, "\n\ndata: ")+"\n\ndata: [DONE]\n\n")
}

// generic decodes JSON: equal values can be written in two ways.
func generic(t *testing.T, b []byte) (v map[string]any) {
	require.NoError(t, json.Unmarshal(b, &v))
	return v
}

// FuzzFromBytesToFolder sends what a server may answer all the way: through the client, a run, its summary in JSON and as
// text, its folder, and back. Whatever the bytes, nothing panics, no result contradicts itself, and what is read back is
// what was measured.
func FuzzFromBytesToFolder(f *testing.F) {
	apis := []load.API{load.Generate, load.Completions, load.ChatCompletions}
	chat := func(content, finish, usage string) string {
		return `{"choices":[{"delta":{"content":"` + content + `"},"finish_reason":` + finish + `}],"usage":` + usage + `}`
	}
	f.Add(stream(chat("a", "null", `{"completion_tokens":1}`), chat("", `"stop"`, "null"), chat("b", "null", "null"),
		`{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}`), uint8(2), uint8(flagTexts), []byte{40})
	f.Add(stream(`{"text":"ab","meta_info":{"completion_tokens":5,"cached_tokens":0,"num_retractions":2}}`,
		`{"text":"abcd","meta_info":{"completion_tokens":10,"finish_reason":{"type":"length"}}}`), uint8(0), uint8(0), []byte{1, 2, 200, 7})
	for _, count := range []string{"16777216", "9223372036854775807", "-1", "null", "1e9", "3.0", `"3"`} {
		f.Add(stream(`{"text":"a","meta_info":{"completion_tokens":`+count+`,"prompt_tokens":`+count+`,"finish_reason":{"type":"stop"}}}`), uint8(0), uint8(0), []byte{})
		f.Add(framed("application/json", `{"choices":[{"text":"a","finish_reason":"stop"}],"usage":{"completion_tokens":`+count+`}}`), uint8(1), uint8(flagWhole), []byte{3})
	}
	f.Add([]byte("HTTP/1.1 503 x\r\nX-Simulated-By: p\xff\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\xff{\"\r\n0\r\n\r\n"), uint8(1), uint8(flagTexts), []byte{0})
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"), uint8(0), uint8(flagWhole), []byte{0})
	f.Add([]byte("\x00\xff"), uint8(9), uint8(255), []byte{0})
	dir := os.Getenv(refdata.EnvDir)
	if dir == "" {
		dir = "../../../shared/data" // without these recordings there are fewer seeds
	}
	for i, pattern := range []string{"sglang-h100/fixtures/*generate*.http", "sglang-h100/fixtures/completions*.http", "sglang-h100/fixtures/chat*.http",
		"sglang-h100/fixtures/e*.http", "sglang-cpu/0.5.23/*generate*.txt", "sglang-cpu/0.5.15.post1/chat*.txt"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(f, err)
		for j, file := range files {
			raw, err := os.ReadFile(file)
			require.NoError(f, err)
			flags := uint8(j) & (flagTexts | flagAcceptLength)
			if !bytes.Contains(raw, []byte("text/event-stream")) {
				flags |= flagWhole
			}
			f.Add(raw[:min(len(raw), 8<<10)], uint8(i), flags, []byte{byte(40 * j), 3})
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, api, flags uint8, pieces []byte) {
		dir := filepath.Join(t.TempDir(), "run")
		synctest.Test(t, func(t *testing.T) {
			transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
				return newScriptedConn(raw, pieces), nil
			}}
			defer transport.CloseIdleConnections()
			opts := []load.SenderOption{load.WithTransport(transport), load.WithAPI(apis[int(api)%len(apis)]), load.WithStreaming(flags&flagWhole == 0), load.WithTimeout(time.Minute)}
			if flags&flagTexts != 0 {
				opts = append(opts, load.WithTexts())
			}
			if flags&flagIncremental != 0 {
				opts = append(opts, load.WithIncrementalStreaming())
			}
			sender, err := load.NewSender("http://server", opts...)
			require.NoError(t, err)
			writer, err := results.Create(dir, results.Meta{Label: "fuzz"}, results.WithCSV())
			require.NoError(t, err)
			words := func(s string) int { return len(strings.Fields(s)) }
			col, err := metrics.NewCollector(metrics.WithSink(writer), metrics.WithRetokenizer(words, float64(flags&flagAcceptLength)),
				metrics.WithGoodput(metrics.SLO{TTFT: time.Millisecond, TPOT: time.Millisecond, E2E: time.Second}))
			require.NoError(t, err)
			require.NoError(t, load.Run(t.Context(), twoRequests{}, sender, col, load.WithWaiter(load.TimerWaiter{})))
			sum := col.Summary()
			require.NoError(t, writer.Finish(sum))

			all := slices.Collect(col.Results())
			require.Len(t, all, 2)
			for i := range all {
				require.NoError(t, all[i].Check())
			}
			require.Equal(t, 2, sum.Requests.OK+sum.Requests.Failed)
			require.NoError(t, sum.BenchServing.WriteTable(io.Discard))
			require.NoError(t, metrics.WriteWindows(io.Discard, col.Windows(time.Second)))

			run, err := results.Open(dir)
			require.NoError(t, err)
			var back metrics.Summary
			require.NoError(t, run.Summary(&back))
			again, err := json.Marshal(back)
			require.NoError(t, err)
			first, err := json.Marshal(sum)
			require.NoError(t, err)
			require.Equal(t, generic(t, first), generic(t, again))
			require.Equal(t, sum.String(), back.String())
			n := 0
			for res, err := range run.Requests() {
				require.NoError(t, err)
				want := all[res.ID]
				require.Equal(t, slices.Collect(want.Chunks.All()), slices.Collect(res.Chunks.All()))
				want.Chunks, res.Chunks = load.Chunks{}, load.Chunks{}
				require.Equal(t, want, res)
				n++
			}
			require.Equal(t, 2, n)
			require.NoError(t, run.WriteCSV(io.Discard))
		})
	})
}
