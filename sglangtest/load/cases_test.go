package load

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What servers, gateways and proxies were reported to send, and the right value of it.

// A piece is a part of an answer's body and when it is sent, counted from the request.
type piece struct {
	at   time.Duration
	body string
}

// answered serves a streamed answer in a bubble. The connection takes 3 ms, from which the times of the result count here.
func answered(t *testing.T, pieces []piece, opts ...SenderOption) (res Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		tr := pipeServer(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			at := time.Duration(0)
			for _, p := range pieces {
				time.Sleep(p.at - at)
				at = p.at
				if p.body == "" { // stays open
					<-r.Context().Done()
					return
				}
				io.WriteString(w, p.body)
				http.NewResponseController(w).Flush()
			}
		})
		s, err := NewSender("http://server", append(opts, WithTransport(tr))...)
		require.NoError(t, err)
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), arrivalsAt{0}, s, l, WithWaiter(TimerWaiter{})))
		res = l.results[0]
		for _, at := range []*time.Duration{&res.FirstEvent, &res.FirstToken, &res.LastToken, &res.Completion} {
			*at = max(*at-res.Send, 0)
		}
	})
	return res
}

// event is an event of a stream, with its usage if tokens is not negative.
func event(delta string, tokens int) string {
	usage := ""
	if tokens >= 0 {
		usage = fmt.Sprintf(`,"usage":{"prompt_tokens":3,"completion_tokens":%d}`, tokens)
	}
	return `data: {"choices":[{"index":0,"delta":` + delta + `,"finish_reason":null}]` + usage + "}\n\n"
}

// stop is the end of a stream: finish reason, usage, [DONE].
func stop(reason string, tokens int) string {
	return fmt.Sprintf(`data: {"choices":[{"index":0,"delta":{},"finish_reason":%q}]}`+"\n\n"+
		`data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":%d}}`+"\n\ndata: [DONE]\n\n", reason, tokens)
}

func TestThinkingIsOutput(t *testing.T) {
	for name, fields := range map[string][]string{
		"reasoning_content": {`"reasoning_content":"%s"`},
		"reasoning":         {`"reasoning":"%s"`},
		"both":              {`"reasoning":"%s"`, `"reasoning_content":"%[1]s"`}, // the same text twice
		"both, one empty":   {`"reasoning_content":""`, `"reasoning":"%s"`},
	} {
		for _, each := range []bool{true, false} { // usage on each event, or at the end only
			t.Run(fmt.Sprintf("%s/%t", name, each), func(t *testing.T) {
				usage := func(n int) int {
					if each {
						return n
					}
					return -1
				}
				think := func(text string) string {
					var all []string
					for _, f := range fields {
						if strings.Contains(f, "%") {
							f = fmt.Sprintf(f, text)
						}
						all = append(all, f)
					}
					return "{" + strings.Join(all, ",") + "}"
				}
				res := answered(t, []piece{
					{100 * ms, event(think("We"), usage(1))}, {200 * ms, event(think(" think"), usage(2))},
					{300 * ms, event(`{"content":"It"}`, usage(3))}, {400 * ms, event(`{"content":" is"}`, usage(4)) + stop("stop", 4)},
				}, WithAPI(ChatCompletions), WithTexts())
				require.Equal(t, OutcomeOK, res.Outcome, res.Message)
				require.Equal(t, []time.Duration{100 * ms, 400 * ms}, []time.Duration{res.FirstToken, res.LastToken})
				require.Equal(t, 4, res.OutputTokens)
				require.Equal(t, "We thinkIt is", res.Text)
				require.Equal(t, 4, res.Chunks.Len())
			})
		}
	}
}

func TestToolCallsAreOutput(t *testing.T) {
	call := func(fields string) string { return `{"tool_calls":[{"index":0,` + fields + `}]}` }
	res := answered(t, []piece{
		{50 * ms, event(`{"role":"assistant","content":""}`, -1)},
		{100 * ms, event(call(`"id":"call_1","type":"function","function":{"name":"weather","arguments":""}`), -1)},
		{200 * ms, event(call(`"function":{"arguments":"{\"city\":"}`), -1)},
		{300 * ms, event(call(`"function":{"arguments":"\"Ulm\"}"}`), -1) + stop("tool_calls", 9)},
	}, WithAPI(ChatCompletions), WithTexts())
	require.Equal(t, OutcomeOK, res.Outcome, res.Message)
	require.Equal(t, []time.Duration{50 * ms, 100 * ms, 300 * ms}, []time.Duration{res.FirstEvent, res.FirstToken, res.LastToken})
	require.Equal(t, `weather{"city":"Ulm"}`, res.Text)
	var sizes []int
	for c := range res.Chunks.All() {
		sizes = append(sizes, c.TextBytes)
	}
	require.Equal(t, []int{len("weather"), len(`{"city":`), len(`"Ulm"}`)}, sizes)

	whole := roundTripper(func(*http.Request) (*http.Response, error) {
		body := "\ufeff" + `{"choices":[{"message":{"content":null,"reasoning":"Hm","tool_calls":[{"function":{"name":"a","arguments":"{}"}},{"function":{"name":"b","arguments":"{}"}}]},` +
			`"finish_reason":"tool_calls"}],"usage":{"completion_tokens":7.0}}`
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
	})
	res = do(t, whole, Request{Prompt: Prompt{Text: "x"}}, WithAPI(ChatCompletions), WithStreaming(false), WithTexts())
	require.Equal(t, []any{OutcomeOK, "Hma{}b{}", 7}, []any{res.Outcome, res.Text, res.OutputTokens}, res.Message)
}

func TestFirstEventBeforeTheFirstTokenIsKept(t *testing.T) {
	res := answered(t, []piece{
		{100 * ms, event(`{"thinking":"We"}`, -1)}, {200 * ms, event(`{"thinking":" think"}`, -1)},
		{300 * ms, event(`{"content":"It"}`, -1) + stop("stop", 3)},
	}, WithAPI(ChatCompletions))
	require.Equal(t, []time.Duration{100 * ms, 300 * ms}, []time.Duration{res.FirstEvent, res.FirstToken})
}

func TestErrorInStream(t *testing.T) {
	const failure = `data: {"error":{"message":"boom","code":500}}` + "\n\n"
	for name, c := range map[string]struct {
		body   string
		want   Outcome
		tokens int
	}{
		"before any token":  {failure + "data: [DONE]\n\n", OutcomeEngine, 0},
		"after two":         {event(`{"content":"a"}`, 1) + event(`{"content":"b"}`, 2) + failure + "data: [DONE]\n\n", OutcomeEngine, 2},
		"a string":          {`data: {"error":"boom"}` + "\n\ndata: [DONE]\n\n", OutcomeEngine, 0},
		"without [DONE]":    {event(`{"content":"a"}`, 1) + failure, OutcomeEngine, 1},
		"none":              {event(`{"content":"a"}`, 1) + stop("length", 1), OutcomeOK, 1},
		"finish reason":     {event(`{"content":"a"}`, 1) + stop("error", 1), OutcomeEngine, 1},
		"nothing but error": {stop("error", 0), OutcomeEngine, 0},
		"cancelled":         {event(`{"content":"a"}`, 1) + stop("cancelled", 1), OutcomeEngine, 1},
		"abort":             {event(`{"content":"a"}`, 1) + stop("abort", 1), OutcomeAbort, 1},
	} {
		t.Run(name, func(t *testing.T) {
			res := answered(t, []piece{{10 * ms, c.body}}, WithAPI(ChatCompletions))
			require.Equal(t, c.want, res.Outcome, res.Message)
			require.Equal(t, c.tokens, res.OutputTokens)
			if c.want == OutcomeEngine {
				require.NotEmpty(t, res.Message)
			}
		})
	}
}

func TestSignsOfLife(t *testing.T) {
	for _, alive := range []string{
		": keep-alive\n\n", ":\n\n", ": a\r\n\r\n", "event: ping\n\n", `event: ping` + "\n" + `data: {"type":"ping"}` + "\n\n", "retry: 1000\n\n", "data\n\n",
		"data:\n\n", "data: \n\n", "data: : keep-alive\n\n",
	} {
		t.Run(fmt.Sprintf("%q", alive), func(t *testing.T) {
			res := answered(t, []piece{
				{40 * ms, alive}, {80 * ms, alive}, {120 * ms, alive}, {160 * ms, event(`{"content":"a"}`, 1)},
				{170 * ms, alive}, {180 * ms, event(`{"content":"b"}`, 2) + stop("length", 2)},
			}, WithAPI(ChatCompletions))
			require.Equal(t, OutcomeOK, res.Outcome, res.Message)
			require.Equal(t, []any{160 * ms, 180 * ms, 2}, []any{res.FirstToken, res.LastToken, res.OutputTokens})

			generated := func(text string, tokens int, finish string) string {
				return fmt.Sprintf(`data: {"text":%q,"meta_info":{"completion_tokens":%d,"finish_reason":%s}}`+"\n\n", text, tokens, finish)
			}
			res = answered(t, []piece{
				{40 * ms, alive}, {160 * ms, generated("a", 1, "null")}, {170 * ms, alive},
				{180 * ms, generated("ab", 2, `{"type":"length"}`) + "data: [DONE]\n\n"},
			})
			require.Equal(t, OutcomeOK, res.Outcome, res.Message)
			require.Equal(t, []any{160 * ms, 180 * ms, 2}, []any{res.FirstToken, res.LastToken, res.OutputTokens})
		})
	}
}

func TestUsageOfZerosOrNone(t *testing.T) {
	text := event(`{"content":"a"}`, -1) + event(`{"content":"b"}`, -1) + event(`{"content":"c"}`, -1)
	end := func(usage string) string {
		return `data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":` + usage + "}\n\ndata: [DONE]\n\n"
	}
	for usage, want := range map[string]struct {
		outcome Outcome
		tokens  int
	}{
		`{"completion_tokens":0}`:    {OutcomeOK, 0}, // and a note of the summary: shorter than asked for
		`{"completion_tokens":null}`: {OutcomeProtocol, 0},
		`null`:                       {OutcomeProtocol, 0},
		`{"completion_tokens":3.0}`:  {OutcomeOK, 3},
		`{"completion_tokens":3e0}`:  {OutcomeOK, 3},
		`{"completion_tokens":2.5}`:  {OutcomeProtocol, 0},
		`{"completion_tokens":-1}`:   {OutcomeProtocol, 0},
		`{"completion_tokens":"3"}`:  {OutcomeProtocol, 0},
	} {
		t.Run(usage, func(t *testing.T) {
			res := answered(t, []piece{{20 * ms, text + end(usage)}}, WithAPI(ChatCompletions))
			require.Equal(t, want.outcome, res.Outcome, res.Message)
			require.Equal(t, want.tokens, res.OutputTokens)
			require.Equal(t, 20*ms, res.FirstToken)
			if want.outcome != OutcomeOK {
				require.Contains(t, res.Message, "no token count")
			}
		})
	}
}

func TestStreamCutAnywhere(t *testing.T) {
	texts := []string{"中文", " 😀", "\\n\\t", "  ", "\\u00e9\\ud83d\\ude00", "end"}
	for _, mark := range []string{"", "\ufeff"} {
		for _, blank := range []string{"", " "} {
			var body strings.Builder
			body.WriteString(mark)
			for i, text := range texts {
				body.WriteString(strings.Replace(event(`{"content":"`+text+`"}`, i+1), "data: ", "data:"+blank, 1))
			}
			body.WriteString(strings.ReplaceAll(stop("length", 6), "data: ", "data:"+blank))
			for _, n := range []int{1, 2, 3, 7, 64, body.Len()} {
				t.Run(fmt.Sprintf("%q/%q/%d", mark, blank, n), func(t *testing.T) {
					var pieces []piece
					for part := range slices.Chunk([]byte(body.String()), n) {
						pieces = append(pieces, piece{time.Duration(len(pieces)) * ms, string(part)})
					}
					res := answered(t, pieces, WithAPI(ChatCompletions), WithTexts())
					require.Equal(t, OutcomeOK, res.Outcome, res.Message)
					require.Equal(t, []any{6, "中文 😀\n\t  é😀end"}, []any{res.OutputTokens, res.Text})
				})
			}
		}
	}
}

func TestStreamThatStaysOpenAfterDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := pipeServer(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, event(`{"content":"a"}`, 1)+stop("length", 1))
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		s, err := NewSender("http://server", WithTransport(tr), WithAPI(ChatCompletions)) // no timeout
		require.NoError(t, err)
		l := newLedger(t)
		require.NoError(t, Run(t.Context(), arrivalsAt{0, 0, time.Second}, s, l, WithWaiter(TimerWaiter{})))
		for id, start := range []time.Duration{0, 0, time.Second} {
			res := l.results[id]
			require.Equal(t, OutcomeOK, res.Outcome, res.Message)
			require.Equal(t, []any{start + 3*ms, true, false}, []any{res.Completion, res.HeldOpen, res.Reused})
		}
	})
	res := answered(t, []piece{{10 * ms, event(`{"content":"a"}`, 1) + stop("length", 1)}, {60 * ms, ": bye\n\n"}}, WithAPI(ChatCompletions))
	require.Equal(t, []any{OutcomeOK, false, 60 * ms}, []any{res.Outcome, res.HeldOpen, res.Completion}, res.Message)
}

func TestStreamThatStaysOpenAfterAnError(t *testing.T) {
	res := answered(t, []piece{{10 * ms, event(`{"content":"a"}`, 1)}, {20 * ms, `data: {"error":{"message":"boom"}}` + "\n\n"}, {20 * ms, ""}}, WithAPI(ChatCompletions))
	require.Equal(t, []any{OutcomeEngine, "boom", 1, false}, []any{res.Outcome, res.Message, res.OutputTokens, res.HeldOpen})
	require.Equal(t, 20*ms, res.Completion)
}

func TestTextAfterTheFinishReason(t *testing.T) {
	res := answered(t, []piece{
		{10 * ms, `data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}],"usage":{"completion_tokens":1}}` + "\n\n"},
		{20 * ms, event(`{"content":"b"}`, -1)},
		{30 * ms, `data: {"choices":[],"usage":{"completion_tokens":2}}` + "\n\ndata: [DONE]\n\n"},
	}, WithAPI(ChatCompletions))
	require.Equal(t, OutcomeOK, res.Outcome, res.Message)
	require.Equal(t, []any{10 * ms, 20 * ms, 2}, []any{res.FirstToken, res.LastToken, res.OutputTokens})
}

func TestLongErrorIsCut(t *testing.T) {
	for name, body := range map[string]string{
		"text":   strings.Repeat("é", 3<<20),
		"JSON":   `{"error":{"message":"` + strings.Repeat("é", 1<<18) + `"}}`,
		"echoed": `{"object":"error","input":"` + strings.Repeat("é", 3<<20) + `","message":"too long"}`,
	} {
		res := do(t, roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 400, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
		}), Request{Prompt: Prompt{Text: "x"}})
		require.Equal(t, OutcomeHTTP, res.Outcome, name)
		require.Less(t, len(res.Message), 4<<10+40, name)
		require.Equal(t, strings.ToValidUTF8(res.Message, "?"), res.Message, name)
		require.Contains(t, res.Message, " bytes)", name)
	}
	res := answered(t, []piece{{0, `data: {"error":{"message":"` + strings.Repeat("x", 1<<20) + `"}}` + "\n\ndata: [DONE]\n\n"}})
	require.Equal(t, OutcomeEngine, res.Outcome)
	require.Len(t, res.Message, 4<<10+len("… (1048576 bytes)"))
}
