package load

import (
	"context"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// stream answers with the given events.
func stream(events ...string) roundTripper {
	var sb strings.Builder
	for _, e := range events {
		sb.WriteString("data: " + e + "\n\n")
	}
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: &slowBody{parts: strings.SplitAfter(sb.String(), "\n\n")}}, nil
	}
}

// slowBody returns one part a read, each later than the one before.
type slowBody struct{ parts []string }

func (b *slowBody) Read(p []byte) (int, error) {
	if len(b.parts) == 0 {
		return 0, io.EOF
	}
	time.Sleep(time.Millisecond) // of a synctest bubble
	n := copy(p, b.parts[0])
	b.parts = b.parts[1:]
	return n, nil
}

func (b *slowBody) Close() error { return nil }

func TestTextAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		event := func(content, finish, usage string) string {
			return `{"choices":[{"delta":{"content":"` + content + `"},"finish_reason":` + finish + `}],"usage":` + usage + `}`
		}
		res := do(t, stream(event("a", "null", `{"completion_tokens":1}`), event("", `"stop"`, "null"), event("b", "null", "null"),
			`{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}`, "[DONE]"), Request{Prompt: Prompt{Text: "x"}, OutputLen: 4}, WithAPI(ChatCompletions))
		require.Equal(t, OutcomeOK, res.Outcome)
		require.Equal(t, []Chunk{{1 * ms, 1, 1}, {3 * ms, 0, 1}, {3 * ms, 3, 0}}, slices.Collect(res.Chunks.All()))
		require.Equal(t, 3*ms, res.LastToken)
		require.NoError(t, res.Check())
	})
}

func TestCountsThatAreNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for value, want := range map[string]Outcome{
			"2": OutcomeOK, "2.0": OutcomeOK, "16777216": OutcomeOK, "null": OutcomeProtocol, "-2": OutcomeProtocol, "2.5": OutcomeProtocol, "1e1": OutcomeOK,
			`"2"`: OutcomeProtocol, "16777217": OutcomeProtocol, "9223372036854775807": OutcomeProtocol,
			"99999999999999999999999999999": OutcomeProtocol, "[2]": OutcomeProtocol, "{}": OutcomeProtocol, "true": OutcomeProtocol,
		} {
			for api, body := range map[API]string{
				Generate:        `{"text":"a","meta_info":{"completion_tokens":VALUE,"finish_reason":{"type":"stop"}}}`,
				Completions:     `{"choices":[{"text":"a","finish_reason":"stop"}],"usage":{"completion_tokens":VALUE}}`,
				ChatCompletions: `{"choices":[{"delta":{"content":"a"},"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"completion_tokens":VALUE}}`,
			} {
				body := strings.ReplaceAll(body, "VALUE", value)
				whole := roundTripper(func(*http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
				})
				for _, res := range []Result{
					do(t, stream(body, "[DONE]"), Request{Prompt: Prompt{Text: "x"}, OutputLen: 4}, WithAPI(api)),
					do(t, whole, Request{Prompt: Prompt{Text: "x"}, OutputLen: 4}, WithAPI(api), WithStreaming(false)),
				} {
					require.Equal(t, want, res.Outcome, "%s %s: %s", api, value, res.Message)
					require.NoError(t, res.Check())
					if want != OutcomeOK && value != "null" {
						require.Contains(t, res.Message, "completion_tokens is "+value[:min(40, len(value))]+"; want a number from 0 to 16777216")
					}
				}
			}
		}
	})
}

func soundResult() Result {
	r := Result{Arrival: 1, Due: 2, Released: 3, Send: 5, FirstToken: 6, LastToken: 8, Completion: 9, Sent: true, Connect: 2, Streamed: true,
		Outcome: OutcomeOK, OutputTokens: 2}
	r.Chunks.Append(Chunk{At: 6, Tokens: 1})
	r.Chunks.Append(Chunk{At: 8, Tokens: 1})
	return r
}

// brokenResults are ways to spoil a sound result.
var brokenResults = map[string]func(r *Result){
	"arrival before start":  func(r *Result) { r.Arrival = -1 },
	"arrival after due":     func(r *Result) { r.Arrival = 3 },
	"due after release":     func(r *Result) { r.Due = 4 },
	"release after send":    func(r *Result) { r.Released = 6 },
	"send after completion": func(r *Result) { r.Send = 10 },
	"late for ever":         func(r *Result) { r.Completion = math.MaxInt64 },
	"first after end":       func(r *Result) { r.FirstToken, r.LastToken = 10, 11 },
	"last after end":        func(r *Result) { r.LastToken = 10 },
	"first before send":     func(r *Result) { r.FirstToken = 4 },
	"last before first":     func(r *Result) { r.LastToken = 5 },
	"first without last":    func(r *Result) { r.LastToken = 0 },
	"last without first":    func(r *Result) { r.FirstToken = 0 },
	"event before send":     func(r *Result) { r.FirstEvent = 4 },
	"event after end":       func(r *Result) { r.FirstEvent = 10 },
	"negative first":        func(r *Result) { r.FirstToken = math.MinInt64 },
	"negative idle":         func(r *Result) { r.Idle = -1 },
	"huge connect":          func(r *Result) { r.Connect = math.MaxInt64 },
	"negative connect":      func(r *Result) { r.Connect = -1 },
	"negative overhead":     func(r *Result) { r.Overhead = -1 },
	"huge overhead":         func(r *Result) { r.Overhead = math.MaxInt64 },
	"negative output":       func(r *Result) { r.OutputTokens = -1 },
	"huge output":           func(r *Result) { r.OutputTokens = math.MaxInt },
	"more first than all":   func(r *Result) { r.FirstTokens = 3 },
	"negative first count":  func(r *Result) { r.FirstTokens = -1 },
	"negative prompt":       func(r *Result) { r.PromptTokens = NotReported },
	"huge prompt":           func(r *Result) { r.PromptTokens = MaxTokens + 1 },
	"negative cached":       func(r *Result) { r.CachedTokens = -2 },
	"huge cached":           func(r *Result) { r.CachedTokens = math.MaxInt },
	"huge retractions":      func(r *Result) { r.Retractions = math.MaxInt },
	"huge lengths":          func(r *Result) { r.InputLen, r.OutputLen = math.MaxInt, math.MaxInt },
	"negative length":       func(r *Result) { r.OutputLen = -1 },
	"chunk out of order":    func(r *Result) { r.Chunks.Append(Chunk{At: 7, Tokens: 1}) },
	"chunk of -1 tokens":    func(r *Result) { r.Chunks.Append(Chunk{At: 8, Tokens: -1}) },
	"chunk of many tokens":  func(r *Result) { r.Chunks.Append(Chunk{At: 8, Tokens: math.MaxInt}) },
	"chunk of -1 bytes":     func(r *Result) { r.Chunks.Append(Chunk{At: 8, TextBytes: -1}) },
	"chunk of many bytes":   func(r *Result) { r.Chunks.Append(Chunk{At: 8, TextBytes: math.MaxInt}) },
	"chunk after end":       func(r *Result) { r.Chunks.Append(Chunk{At: 10, Tokens: 1}) },
	"chunk before send":     func(r *Result) { r.Chunks = Chunks{}; r.Chunks.Append(Chunk{At: 4, Tokens: 1}) },
}

func TestCheckAndVoid(t *testing.T) {
	r := soundResult()
	require.NoError(t, r.Check())
	for name, spoil := range brokenResults {
		r := soundResult()
		spoil(&r)
		require.Error(t, r.Check(), name)
		v := r.Void("spoilt", 1000)
		require.NoError(t, v.Check(), name)
		require.Equal(t, OutcomeProtocol, v.Outcome)
		require.Equal(t, "spoilt", v.Message)
	}
}

// brokenDoer answers with a result that was spoilt.
type brokenDoer func(r *Result)

func (d brokenDoer) Do(_ context.Context, clock Clock, req *Request, res *Result) {
	time.Sleep(20 * time.Nanosecond) // of a synctest bubble
	due := res.Due
	*res = soundResult()
	res.ID, res.Due, res.Arrival = req.ID, due, req.Arrival
	d(res)
}

func TestRunVoidsWhatBreaksTheContract(t *testing.T) {
	broken := map[string]func(r *Result){
		"no outcome": func(r *Result) { r.Outcome = "" },
		"not sent":   func(r *Result) { r.Sent = false },
		"answer not sent": func(r *Result) {
			r.Sent, r.Connect, r.Send, r.FirstToken, r.LastToken = false, 0, 9, 9, 9
			r.Chunks.Reset()
		},
		"other ID":          func(r *Result) { r.ID = 7 },
		"other arrival":     func(r *Result) { r.Arrival = 1 },
		"due changed":       func(r *Result) { r.Due = 1 },
		"end in the future": func(r *Result) { r.Completion = time.Hour },
	}
	for name, spoil := range brokenResults {
		if !strings.HasPrefix(name, "arrival") && !strings.HasPrefix(name, "due") {
			broken[name] = spoil
		}
	}
	for name, spoil := range broken {
		synctest.Test(t, func(t *testing.T) {
			l := newLedger(t)
			err := Run(t.Context(), arrivalsAt{0}, brokenDoer(spoil), l, WithWaiter(TimerWaiter{}))
			require.ErrorContains(t, err, "the Doer broke its contract with request 0: ", name)
			require.Len(t, l.results, 1)
			res := l.results[0]
			require.NoError(t, res.Check(), name)
			require.Equal(t, OutcomeProtocol, res.Outcome)
			require.Contains(t, res.Message, "the Doer broke its contract: ")
		})
	}
	synctest.Test(t, func(t *testing.T) {
		require.NoError(t, Run(t.Context(), arrivalsAt{0}, brokenDoer(func(*Result) {}), newLedger(t), WithWaiter(TimerWaiter{})))
	})
}
