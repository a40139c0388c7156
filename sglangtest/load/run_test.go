package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// arrivalsAt is a workload of one-token requests that arrive at the given offsets.
type arrivalsAt []time.Duration

func (a arrivalsAt) Plan() (Plan, error) { return Plan{Requests: len(a)}, nil }
func (a arrivalsAt) Requests() iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		for i, at := range a {
			if !yield(Request{ID: i, Arrival: at, Prompt: Prompt{Text: "x"}, OutputLen: 1}, nil) {
				return
			}
		}
	}
}

// ledger is a Recorder that checks the contract and keeps all results by ID.
type ledger struct {
	t       testing.TB
	mu      sync.Mutex
	arrived []int
	results map[int]Result
	ended   bool
	begin   error
}

func newLedger(t testing.TB) *ledger { return &ledger{t: t, results: map[int]Result{}} }

func (l *ledger) Begin(context.Context, Info) error { return l.begin }
func (l *ledger) Start(Clock)                       {}

func (l *ledger) Arrived(req *Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.arrived = append(l.arrived, req.ID)
}

func (l *ledger) Record(res *Result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	checkTimes(l.t, res)
	if _, ok := l.results[res.ID]; ok {
		l.t.Errorf("request %d recorded twice", res.ID)
	}
	if l.ended {
		l.t.Errorf("request %d recorded after the end", res.ID)
	}
	l.results[res.ID] = *res
}

func (l *ledger) End(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if len(l.arrived) != len(l.results) {
		l.t.Errorf("%d requests arrived, %d were recorded", len(l.arrived), len(l.results))
	}
	if !slices.IsSorted(l.arrived) {
		l.t.Errorf("arrivals out of order: %v", l.arrived)
	}
	return nil
}

// serviceTime is a Doer whose requests take a fixed time.
type serviceTime time.Duration

func (s serviceTime) Do(ctx context.Context, clock Clock, req *Request, res *Result) {
	res.Released = clock.Now()
	res.Sent, res.Send = true, res.Released
	select {
	case <-time.After(time.Duration(s)):
		res.Outcome = OutcomeOK
	case <-ctx.Done():
		res.fail(OutcomeCancelled, context.Cause(ctx).Error())
	}
	res.complete(clock.Now())
}

const ms = time.Millisecond

func TestRunIsOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// One arrival every 10 ms, each served in 1 s: nothing waits for anything.
		var src arrivalsAt
		for i := range 200 {
			src = append(src, time.Duration(i)*10*ms)
		}
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), src, serviceTime(time.Second), l, WithWaiter(TimerWaiter{})))
		require.Len(t, l.results, 200)
		for id, r := range l.results {
			require.Equal(t, src[id], r.Released)
			require.Zero(t, r.Lateness())
			require.Equal(t, time.Second, r.TotalLatency())
		}
	})
}

func TestRunWithConcurrencyCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Ten at once, two places, 100 ms each: request i starts at 100 ms · (i / 2).
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), make(arrivalsAt, 10), serviceTime(100*ms), l, WithWaiter(TimerWaiter{}), WithMaxConcurrency(2)))
		for id, r := range l.results {
			start := time.Duration(id/2) * 100 * ms
			require.Equal(t, start, r.Due, id)
			require.Equal(t, start, r.QueueTime(), id)
			require.Zero(t, r.Lateness(), id)
			require.Equal(t, start+100*ms, r.TotalLatency(), id)
		}
	})
}

func TestCapThatDoesNotBindIsInvisible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The place is taken when the second arrives at 50 ms, free again at 100 ms; the third finds it free.
		src := arrivalsAt{0, 50 * ms, 500 * ms}
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), src, serviceTime(100*ms), l, WithWaiter(TimerWaiter{}), WithMaxConcurrency(1)))
		require.Equal(t, []time.Duration{0, 100 * ms, 500 * ms}, []time.Duration{l.results[0].Due, l.results[1].Due, l.results[2].Due})
		second := l.results[1]
		require.Equal(t, 50*ms, second.QueueTime())
	})
}

func TestCancelledRunRecordsWhatArrived(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts []RunOption
	}{{"open loop", nil}, {"one place", []RunOption{WithMaxConcurrency(1)}}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				why := errors.New("seen enough")
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(startLead+250*ms, func() { cancel(why) })
				src := arrivalsAt{0, 100 * ms, 200 * ms, 300 * ms, 400 * ms}
				l := newLedger(t)
				err := Run(ctx, src, serviceTime(time.Hour), l, append(tc.opts, WithWaiter(TimerWaiter{}))...)
				require.ErrorIs(t, err, why)
				require.True(t, l.ended)
				require.Equal(t, []int{0, 1, 2}, l.arrived)
				for _, r := range l.results {
					require.Equal(t, OutcomeCancelled, r.Outcome)
					require.Equal(t, why.Error(), r.Message)
					require.Equal(t, 250*ms, r.Completion)
				}
			})
		})
	}
}

func TestRunCancelledWhenAllHasArrived(t *testing.T) {
	for _, opts := range [][]RunOption{nil, {WithMaxConcurrency(1)}} {
		synctest.Test(t, func(t *testing.T) {
			why := errors.New("seen enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(startLead+250*ms, func() { cancel(why) })
			l := newLedger(t)
			err := Run(ctx, arrivalsAt{0, 100 * ms}, serviceTime(time.Hour), l, append(opts, WithWaiter(TimerWaiter{}))...)
			require.ErrorIs(t, err, why, "a run that was cut short is no success")
			require.Len(t, l.results, 2)
		})
	}
}

// stalled is a Waiter that returns far too late.
type stalled struct{ TimerWaiter }

func (s stalled) WaitUntil(ctx context.Context, t time.Time) error {
	time.Sleep(time.Second)
	return s.TimerWaiter.WaitUntil(ctx, t)
}

func TestLatenessOfRequestsThatWereNeverReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(startLead+500*ms, cancel)
		l := newLedger(t)
		require.Error(t, Run(ctx, arrivalsAt{0, 100 * ms, 200 * ms}, serviceTime(0), l, WithWaiter(stalled{})))
		for id, r := range l.results {
			require.Equal(t, r.Arrival, r.Due, id)
			require.GreaterOrEqual(t, r.Lateness(), 300*ms, id)
		}
	})
}

func TestRequestsArriveWhetherThereIsAPlaceOrNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		src := arrivalsAt{0, 10 * ms, 20 * ms, 30 * ms}
		var seen []int
		watch := WithBackground(func(ctx context.Context, clock Clock) error {
			for range 4 {
				time.Sleep(time.Until(clock.Time(time.Duration(len(seen))*10*ms + 5*ms)))
				l.mu.Lock()
				seen = append(seen, len(l.arrived))
				l.mu.Unlock()
			}
			return nil
		})
		require.NoError(t, Run(t.Context(), src, serviceTime(time.Second), l, WithWaiter(TimerWaiter{}), WithMaxConcurrency(1), watch))
		require.Equal(t, []int{1, 2, 3, 4}, seen)
		last := l.results[3]
		require.Equal(t, 3*time.Second-30*ms, last.QueueTime())
	})
}

type brokenSource struct{ arrivalsAt }

func (b brokenSource) Requests() iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		for r := range b.arrivalsAt.Requests() {
			yield(r, nil)
		}
		yield(Request{}, io.ErrUnexpectedEOF)
	}
}

func TestRunErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t)
		err := Run(t.Context(), brokenSource{arrivalsAt{0, 10 * ms}}, serviceTime(time.Second), l, WithWaiter(TimerWaiter{}))
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "a workload that breaks off")
		require.Len(t, l.results, 2, "what was under way ended")

		l = newLedger(t)
		l.begin = io.ErrClosedPipe
		require.ErrorIs(t, Run(t.Context(), arrivalsAt{0}, serviceTime(0), l, WithWaiter(TimerWaiter{})), io.ErrClosedPipe)
		require.Empty(t, l.arrived)

		err = Run(t.Context(), arrivalsAt{0}, serviceTime(0), l, WithMaxConcurrency(0), WithWarmup(-1))
		require.ErrorContains(t, err, "max concurrency 0")
		require.ErrorContains(t, err, "warm-up of -1", "all faults at once")
	})
}

func TestWarmupAndBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steps []string
		l := newLedger(t)
		err := Run(t.Context(), arrivalsAt{0, 100 * ms}, serviceTime(50*ms), l, WithWaiter(TimerWaiter{}), WithWarmup(3),
			WithAfterWarmup(func(context.Context) error { steps = append(steps, "flushed"); return nil }),
			WithBackground(func(ctx context.Context, clock Clock) error {
				<-ctx.Done()
				steps = append(steps, fmt.Sprint("stopped at ", clock.Now()))
				return io.ErrNoProgress
			}))
		require.ErrorIs(t, err, io.ErrNoProgress)
		require.Len(t, l.results, 2, "the warm-up is not recorded")
		require.Equal(t, []string{"flushed", "stopped at 150ms"}, steps)

		err = Run(t.Context(), arrivalsAt{0}, failing{}, l, WithWaiter(TimerWaiter{}), WithWarmup(3))
		require.ErrorContains(t, err, "warm-up request 1 of 3 failed: http_error (HTTP status 503): loading")
	})
}

type failing struct{}

func (failing) Do(_ context.Context, clock Clock, _ *Request, res *Result) {
	res.Status = 503
	res.fail(OutcomeHTTP, "loading")
	res.complete(clock.Now())
}

// pipeServer serves h on in-memory connections, so that a real client and server run on a bubble's clock.
func pipeServer(t *testing.T, h http.HandlerFunc) *http.Transport {
	conns := make(chan net.Conn)
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(pipeListener(conns)) }()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		time.Sleep(3 * ms) // a connection takes 3 ms
		c, s := net.Pipe()
		conns <- s
		return c, nil
	}}
	t.Cleanup(func() { tr.CloseIdleConnections(); close(conns); <-done; srv.Close() })
	return tr
}

type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (pipeListener) Close() error   { return nil }
func (pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestSenderStampsExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := pipeServer(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			for i, wait := range []time.Duration{200 * ms, 10 * ms, 10 * ms, 30 * ms} {
				time.Sleep(wait)
				finish := "null"
				if i == 3 {
					finish = `{"type":"length","length":5}`
				}
				fmt.Fprintf(w, "data: {\"text\":%q,\"meta_info\":{\"completion_tokens\":%d,\"prompt_tokens\":4,\"weight_version\":\"server-7\",\"finish_reason\":%s}}\n\n",
					"abcdefgh"[:2*i+2], []int{1, 2, 2, 5}[i], finish)
				http.NewResponseController(w).Flush()
			}
			time.Sleep(5 * ms)
			io.WriteString(w, "data: [DONE]\n\n")
		})
		s, err := NewSender("http://server", WithTransport(tr), WithTexts())
		require.NoError(t, err)
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), arrivalsAt{0, time.Second}, s, l, WithWaiter(TimerWaiter{})))
		first, second := l.results[0], l.results[1]
		require.Equal(t, []bool{false, true}, []bool{first.Reused, second.Reused})
		require.Equal(t, []time.Duration{3 * ms, 0}, []time.Duration{first.Connect, second.Connect})
		require.Equal(t, []time.Duration{0, 3 * ms, 203 * ms, 253 * ms, 258 * ms},
			[]time.Duration{first.Released, first.Send, first.FirstToken, first.LastToken, first.Completion})
		require.Equal(t, []time.Duration{time.Second, time.Second, time.Second + 200*ms, time.Second + 250*ms, time.Second + 255*ms},
			[]time.Duration{second.Released, second.Send, second.FirstToken, second.LastToken, second.Completion})
		// The results share the worker's chunk memory, so only the last one of a worker can be looked at here.
		require.Equal(t, []Chunk{{time.Second + 200*ms, 1, 2}, {time.Second + 210*ms, 1, 2}, {time.Second + 220*ms, 0, 2}, {time.Second + 250*ms, 3, 2}},
			slices.Collect(second.Chunks.All()))
		require.Equal(t, []any{"abcdefgh", "server-7", "length", 5, 4}, []any{first.Text, first.Worker, first.FinishReason, first.OutputTokens, first.PromptTokens})
	})
}

func TestSenderTimeoutAndCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := pipeServer(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		s, err := NewSender("http://server", WithTransport(tr), WithTimeout(100*ms))
		require.NoError(t, err)
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), arrivalsAt{0}, s, l, WithWaiter(TimerWaiter{})))
		r := l.results[0]
		require.Equal(t, OutcomeTimeout, r.Outcome)
		require.Equal(t, "no end within 100ms", r.Message)
		require.Equal(t, 100*ms, r.Completion)
	})
}

func TestCompletionIsTheEndOfTheAnswerNotOfTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := pipeServer(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			time.Sleep(10 * ms)
			io.WriteString(w, `data: {"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"}}}`+"\n\ndata: [DONE]\n\n")
			http.NewResponseController(w).Flush()
			<-r.Context().Done() // keeps the answer open
		})
		s, err := NewSender("http://server", WithTransport(tr), WithTimeout(time.Minute))
		require.NoError(t, err)
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), arrivalsAt{0}, s, l, WithWaiter(TimerWaiter{})))
		r := l.results[0]
		require.Equal(t, OutcomeOK, r.Outcome, r.Message)
		require.Equal(t, 13*ms, r.Completion)
	})
}

func TestWorkerIsTheTargetWhereThatHasAName(t *testing.T) {
	answer := roundTripper(func(*http.Request) (*http.Response, error) {
		body := `{"text":"a","meta_info":{"completion_tokens":1,"weight_version":"step-1200","finish_reason":{"type":"length"}}}`
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
	})
	res := do(t, answer, Request{Prompt: Prompt{Text: "x"}, OutputLen: 1}, WithStreaming(false))
	require.Equal(t, "step-1200", res.Worker)
	s, err := NewRoutedSender(WithTransport(answer), WithStreaming(false))
	require.NoError(t, err)
	req := Request{Prompt: Prompt{Text: "x"}, OutputLen: 1}
	for range 3 { // a caller's own trace is not carried from one request to the next
		calls := 0
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { calls++ }})
		s.rt = roundTripper(func(r *http.Request) (*http.Response, error) {
			httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
			return answer(r)
		})
		res = Result{}
		s.DoTo(ctx, NewClock(time.Now()), &Placement{Target: Target{URL: "http://one", Name: "worker-1"}}, &req, &res)
		require.Equal(t, 1, calls)
		require.Equal(t, "worker-1", res.Worker)
	}
}

func TestSenderTransportFailures(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	url := "http://" + listener.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() { // closes its first connection after reading the request, its second in mid-stream
		for i := range 2 {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				io.Copy(io.Discard, r.Body)
			}
			if i == 1 {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:")
			}
			c.Close()
		}
		listener.Close()
	})
	s, err := NewSender(url)
	require.NoError(t, err)
	defer s.Close()
	for _, want := range []Outcome{OutcomeReset, OutcomeTruncated, OutcomeRefused} {
		if want == OutcomeRefused {
			wg.Wait()
		}
		req, res := Request{Prompt: Prompt{Text: "x"}, OutputLen: 1}, Result{}
		s.Do(t.Context(), NewClock(time.Now()), &req, &res)
		checkTimes(t, &res)
		require.Equal(t, want, res.Outcome, res.Message)
		require.NotEmpty(t, res.Message)
		require.Equal(t, want != OutcomeRefused, res.Sent)
	}
}

func TestSenderRejectsWhatTheAPICannotCarry(t *testing.T) {
	never := roundTripper(func(*http.Request) (*http.Response, error) { t.Fatal("sent"); return nil, nil })
	messages := Prompt{Messages: []Message{{Role: "user", Content: "hi"}}}
	for _, api := range []API{Generate, Completions} {
		res := do(t, never, Request{Prompt: messages, OutputLen: 1}, WithAPI(api))
		require.Equal(t, OutcomeRejected, res.Outcome)
		require.Contains(t, res.Message, "use the API chat_completions")
	}
	res := do(t, never, Request{Prompt: Prompt{Text: "x"}, OutputLen: 1, Sampling: &SamplingParams{StreamInterval: Ptr(2)}}, WithAPI(Completions))
	require.Equal(t, OutcomeRejected, res.Outcome)
	require.Contains(t, res.Message, "/v1/completions ignores it")
	res = do(t, never, Request{Prompt: Prompt{Text: "x"}, OutputLen: 1, Sampling: &SamplingParams{N: Ptr(2)}})
	require.Contains(t, res.Message, "n must be 1")
}

func TestNewSenderReportsAllFaults(t *testing.T) {
	_, err := NewSender("127.0.0.1:30000", WithAPI("chat"), WithTimeout(-1), WithTokenRange(5, 5), WithMaxConnections(0))
	for _, want := range []string{`unknown API "chat"`, "timeout -1ns", "token range [5, 5)", "max connections 0", "want a base URL"} {
		require.ErrorContains(t, err, want)
	}
}

func TestRequestBodies(t *testing.T) {
	seg := Prompt{Segments: []Segment{{Stream: 1, Length: 2}, {Stream: 2, Offset: 7, Length: 1}}}
	ids := fmt.Sprintf("[%d,%d,%d]", TokenID(1, 0, 256, 2000), TokenID(1, 1, 256, 2000), TokenID(2, 7, 256, 2000))
	greedy := &SamplingParams{Temperature: Ptr(0.0), IgnoreEOS: Ptr(false), MinNewTokens: Ptr(3)}
	const usage = `,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`
	for _, tc := range []struct {
		opts   []SenderOption
		prompt Prompt
		params *SamplingParams
		want   string
	}{
		{nil, seg, nil, `{"input_ids":` + ids + `,"sampling_params":{"max_new_tokens":9,"ignore_eos":true},"stream":true}`},
		{nil, Prompt{Text: "a\"b"}, greedy, `{"text":"a\"b","sampling_params":{"max_new_tokens":9,"ignore_eos":false,"min_new_tokens":3,"temperature":0},"stream":true}`},
		{[]SenderOption{WithStreaming(false)}, Prompt{TokenIDs: []int32{5, 6}}, nil, `{"input_ids":[5,6],"sampling_params":{"max_new_tokens":9,"ignore_eos":true},"stream":false}`},
		{[]SenderOption{WithAPI(Completions), WithModel("m")}, seg, greedy, `{"model":"m","prompt":` + ids + `,"max_tokens":9,"ignore_eos":false,"min_tokens":3,"temperature":0` + usage},
		{[]SenderOption{WithAPI(ChatCompletions)}, Prompt{Text: "hi"}, nil, `{"model":"default","messages":[{"role":"user","content":"hi"}],"max_completion_tokens":9,"ignore_eos":true` + usage},
		{[]SenderOption{WithAPI(ChatCompletions)}, Prompt{Messages: []Message{{Role: "system", Content: "s"}}}, nil, `{"model":"default","messages":[{"role":"system","content":"s"}],"max_completion_tokens":9,"ignore_eos":true` + usage},
		{[]SenderOption{WithAPI(ChatCompletions)}, seg, nil, `{"model":"default","messages":[{"role":"user","content":""}],"input_ids":` + ids + `,"max_completion_tokens":9,"ignore_eos":true` + usage},
	} {
		var got string
		do(t, roundTripper(func(r *http.Request) (*http.Response, error) {
			b, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Equal(t, r.ContentLength, int64(len(b)))
			got = string(b)
			return nil, os.ErrClosed
		}), Request{Prompt: tc.prompt, OutputLen: 9, Sampling: tc.params}, tc.opts...)
		require.Equal(t, tc.want, got)
	}
}

// forgetful is a Doer that sets nothing.
type forgetful struct{}

func (forgetful) Do(context.Context, Clock, *Request, *Result) {}

func TestRunNoticesADoerThatBreaksItsContract(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &counting{}
		err := Run(t.Context(), arrivalsAt{0, ms}, forgetful{}, rec, WithWaiter(TimerWaiter{}))
		require.ErrorContains(t, err, "the Doer broke its contract with request 0: its Outcome is not set")
		require.Equal(t, []Outcome{OutcomeProtocol, OutcomeProtocol}, rec.outcomes)
	})
}

type counting struct {
	mu       sync.Mutex
	outcomes []Outcome
}

func (*counting) Begin(context.Context, Info) error { return nil }
func (*counting) Start(Clock)                       {}
func (*counting) Arrived(*Request)                  {}
func (*counting) End(context.Context) error         { return nil }
func (c *counting) Record(res *Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes = append(c.outcomes, res.Outcome)
}
