package metrics

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A piece is a part of a streamed answer's body and when it is sent, counted from the request. An empty one stays open.
type piece struct {
	at   time.Duration
	body string
}

// A lagging connection hears late that the other side has closed it.
type lagging struct{ net.Conn }

func (c lagging) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF {
		time.Sleep(5 * msec)
	}
	return n, err
}

// chats is a workload of chats that arrive at the given times.
type chats []time.Duration

func (c chats) Plan() (load.Plan, error) { return load.Plan{}, nil }
func (c chats) Requests() iter.Seq2[load.Request, error] {
	return func(yield func(load.Request, error) bool) {
		for i, at := range c {
			if !yield(load.Request{ID: i, Arrival: at, Prompt: load.Prompt{Text: "x"}, OutputLen: 2}, nil) {
				return
			}
		}
	}
}

type pipes chan net.Conn

func (l pipes) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (pipes) Close() error   { return nil }
func (pipes) Addr() net.Addr { return &net.TCPAddr{} }

// streamed runs chats against a server that answers the i-th request with pieces(i), in a bubble, and returns the summary.
// idle is how long the server keeps an idle connection; 0: for ever.
func streamed(t *testing.T, arrivals chats, idle time.Duration, pieces func(i int) []piece, opts ...load.SenderOption) (sum *Summary) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		conns, done := make(pipes), make(chan struct{})
		var n atomic.Int32
		srv := &http.Server{IdleTimeout: idle, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			at := time.Duration(0)
			for _, p := range pieces(int(n.Add(1)) - 1) {
				time.Sleep(p.at - at)
				if at = p.at; p.body == "" {
					<-r.Context().Done()
					return
				}
				io.WriteString(w, p.body)
				http.NewResponseController(w).Flush()
			}
		})}
		go func() { defer close(done); srv.Serve(conns) }()
		tr := load.NewTransport()
		tr.IdleConnTimeout = time.Hour
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
			c, s := net.Pipe()
			conns <- s
			return lagging{c}, nil
		}
		s, err := load.NewSender("http://server", append(opts, load.WithAPI(load.ChatCompletions), load.WithTransport(tr))...)
		require.NoError(t, err)
		c, err := NewCollector()
		require.NoError(t, err)
		require.NoError(t, load.Run(t.Context(), arrivals, s, c, load.WithWaiter(load.TimerWaiter{})))
		sum = c.Summary()
		tr.CloseIdleConnections()
		close(conns)
		<-done
		srv.Close()
		time.Sleep(10 * msec) // until the connections have heard of it
	})
	return sum
}

func every(gap time.Duration, n int) (at chats) {
	for i := range n {
		at = append(at, time.Duration(i)*gap)
	}
	return at
}

// event is an event of a stream, with usage if tokens is not negative.
func event(delta string, tokens int) string {
	usage := ""
	if tokens >= 0 {
		usage = fmt.Sprintf(`,"usage":{"prompt_tokens":3,"completion_tokens":%d}`, tokens)
	}
	return `data: {"choices":[{"index":0,"delta":` + delta + `,"finish_reason":null}]` + usage + "}\n\n"
}

func finished(tokens int) string {
	return fmt.Sprintf(`data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+"\n\n"+
		`data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":%d}}`+"\n\ndata: [DONE]\n\n", tokens)
}

// tokens are n events, each with a token and size bytes of text.
func tokens(n, size int) (b []string) {
	for i := range n {
		b = append(b, event(`{"content":"`+strings.Repeat("a", size)+`"}`, i+1))
	}
	return b
}

// Something on the way holds the answer back.
func TestBufferedStreams(t *testing.T) {
	for name, c := range map[string]struct {
		pieces  []piece
		atOnce  int
		oneRead int
		want    []string
	}{
		"at once":            {[]piece{{400 * msec, strings.Join(tokens(40, 2), "") + finished(40)}}, 3, 3, []string{"3 of 3 streamed answers came at once: their TTFT is the time to the whole answer", "3 streamed answers came in one read: they have no TPOT"}},
		"at once, in pieces": {[]piece{{400 * msec, strings.Join(tokens(20, 2), "")}, {401 * msec, strings.Join(tokens(40, 2)[20:], "")}, {402 * msec, finished(40)}}, 3, 0, []string{"3 of 3 streamed answers came at once"}},
		"longer than a read": {[]piece{{400 * msec, strings.Join(tokens(40, 2000), "") + finished(40)}}, 3, 3, []string{"3 of 3 streamed answers came at once"}},
		"in clumps": {[]piece{{80 * msec, strings.Join(tokens(40, 2)[:8], "")}, {160 * msec, strings.Join(tokens(40, 2)[8:16], "")}, {240 * msec, strings.Join(tokens(40, 2)[16:24], "")},
			{320 * msec, strings.Join(tokens(40, 2)[24:32], "")}, {400 * msec, strings.Join(tokens(40, 2)[32:], "") + finished(40)}}, 0, 0, []string{"90 % of the ITL values are 0"}},
		"as made":         {[]piece{{100 * msec, tokens(3, 2)[0]}, {110 * msec, tokens(3, 2)[1]}, {120 * msec, tokens(3, 2)[2] + finished(3)}}, 0, 0, nil},
		"long prefill":    {[]piece{{9000 * msec, tokens(2, 2)[0]}, {9020 * msec, tokens(2, 2)[1] + finished(2)}}, 0, 0, nil},
		"a token, in all": {[]piece{{100 * msec, tokens(1, 2)[0] + finished(1)}}, 0, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := streamed(t, every(10*time.Second, 3), 0, func(int) []piece { return c.pieces })
			require.Equal(t, 3, s.Requests.OK)
			require.Equal(t, []int{c.atOnce, c.oneRead}, []int{s.Streams.AtOnce, s.Streams.OneRead})
			notes := strings.Join(s.Notes, "\n")
			for _, want := range c.want {
				require.Contains(t, notes, want)
			}
			if c.want == nil {
				require.NotContains(t, notes, "streamed")
				require.NotContains(t, notes, "ITL")
			}
		})
	}
}

func TestEventsBeforeTheFirstCountedToken(t *testing.T) {
	for name, c := range map[string]struct {
		pieces []piece
		early  int
	}{
		"unknown thinking": {[]piece{{100 * msec, event(`{"thoughts":"We"}`, -1)}, {300 * msec, event(`{"content":"It"}`, -1) + finished(3)}}, 2},
		"known thinking":   {[]piece{{100 * msec, event(`{"reasoning":"We"}`, -1)}, {300 * msec, event(`{"content":"It"}`, -1) + finished(3)}}, 0},
		"role at once":     {[]piece{{298 * msec, event(`{"role":"assistant","content":""}`, -1)}, {300 * msec, event(`{"content":"It"}`, -1) + finished(3)}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := streamed(t, every(time.Second, 2), 0, func(int) []piece { return c.pieces })
			require.Equal(t, c.early, s.Streams.EarlyEvents)
			notes := strings.Join(s.Notes, "\n")
			if c.early > 0 {
				require.Contains(t, notes, "in 2 answers, events with neither text nor a token count came before the first token that could be counted, 200.0 ms before it in the median")
				require.EqualValues(t, 200, *s.Streams.Early)
			} else {
				require.NotContains(t, notes, "neither text nor a token count")
			}
		})
	}
}

// A server closes idle connections just before the next request comes, of which the client has not heard then.
func TestResetsOnReusedConnections(t *testing.T) {
	s := streamed(t, every(time.Second, 6), 999*msec, func(int) []piece { return []piece{{0, tokens(1, 2)[0] + finished(1)}} })
	require.Equal(t, []int{3, 3, 3}, []int{s.Requests.OK, s.Requests.Failed, s.Requests.ResetReused}, "%+v", s.Requests.Outcomes)
	require.Contains(t, strings.Join(s.Notes, "\n"), "3 of 3 resets met connections that had served requests before, idle for 1.00 s: if the server")
}

// A straggler neither holds the run nor vanishes.
func TestStalledStream(t *testing.T) {
	s := streamed(t, every(0, 3), 0, func(i int) []piece {
		if i == 1 {
			return []piece{{100 * msec, tokens(1, 2)[0]}, {100 * msec, ""}}
		}
		return []piece{{100 * msec, tokens(1, 2)[0]}, {200 * msec, tokens(2, 2)[1] + finished(2)}}
	}, load.WithTimeout(700*msec))
	require.InDelta(t, 0.7, s.Durations.Measured, 1e-9)
	require.Equal(t, []OutcomeCount{{load.OutcomeOK, 2, ""}, {load.OutcomeTimeout, 1, "status 200: no end within 700ms"}}, s.Requests.Outcomes)
	require.EqualValues(t, 1, s.Throughput.FailedOutputTokens)
	require.Equal(t, 1, s.TotalLatency.Failed)
}

// An answer without a token has no TTFT of 0.
func TestAnswersWithoutTokens(t *testing.T) {
	s := streamed(t, every(time.Second, 8), 0, func(i int) []piece {
		if i%2 == 1 {
			return []piece{{10 * msec, finished(0)}}
		}
		return []piece{{200 * msec, tokens(1, 2)[0]}, {210 * msec, tokens(2, 2)[1] + finished(2)}}
	})
	require.Equal(t, 8, s.Requests.OK)
	require.Equal(t, []any{4, 4, Millis(200)}, []any{s.TTFT.Count, s.TTFT.Failed, s.TTFT.Min})
	require.Contains(t, strings.Join(s.Notes, "\n"), "4 successful requests brought no output token")
}

// Usage of zeros although text came is not a silent 0.
func TestUsageOfZeros(t *testing.T) {
	s := streamed(t, every(time.Second, 3), 0, func(int) []piece {
		return []piece{{100 * msec, event(`{"content":"a"}`, -1)}, {200 * msec, event(`{"content":"b"}`, -1) + finished(0)}}
	})
	require.Equal(t, []any{3, 3, 0}, []any{s.Requests.OK, s.TTFT.Count, s.TPOT.Count})
	require.Contains(t, strings.Join(s.Notes, "\n"), "0 of 6 tokens")
}

func TestConnectionsHeldOpen(t *testing.T) {
	s := streamed(t, every(time.Second, 2), 0, func(int) []piece { return []piece{{100 * msec, tokens(1, 2)[0] + finished(1)}, {100 * msec, ""}} })
	require.Equal(t, []any{2, 2, Millis(100)}, []any{s.Requests.OK, s.Streams.HeldOpen, s.TotalLatency.Max})
	require.Contains(t, strings.Join(s.Notes, "\n"), "2 answers kept their connections open after [DONE]")
}
