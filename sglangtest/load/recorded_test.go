package load

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

// roundTripper answers every request by a function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	defer r.Body.Close()
	return f(r)
}

// recordedAnswer reads an answer of a real server: the exact bytes of the connection (.http), or what curl -i
// printed, whose body has no chunk sizes (.txt).
func recordedAnswer(t *testing.T, path string) roundTripper {
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	if strings.HasSuffix(path, ".txt") {
		head, body, ok := bytes.Cut(raw, []byte("\r\n\r\n"))
		require.True(t, ok, path)
		head = regexp.MustCompile(`(?i)\r\n(transfer-encoding|content-length): [^\r]*`).ReplaceAll(head, nil)
		raw = append(append(head, "\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"...), body...)
	}
	return func(r *http.Request) (*http.Response, error) {
		return http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), r)
	}
}

func do(t *testing.T, rt http.RoundTripper, req Request, opts ...SenderOption) Result {
	s, err := NewSender("http://server", append(opts, WithTransport(rt))...)
	require.NoError(t, err)
	res := Result{ID: req.ID}
	s.Do(t.Context(), NewClock(time.Now()), &req, &res)
	checkTimes(t, &res)
	return res
}

// checkTimes checks what holds for every result.
func checkTimes(t testing.TB, r *Result) {
	t.Helper()
	require.NotEmpty(t, r.Outcome)
	require.LessOrEqual(t, r.Arrival, r.Due)
	require.LessOrEqual(t, r.Due, r.Released)
	require.LessOrEqual(t, r.Released, r.Send)
	require.LessOrEqual(t, r.Send, r.Completion)
	require.Equal(t, r.TotalLatency(), r.QueueTime()+r.ServerLatency())
	if !r.Sent {
		require.Zero(t, r.ServerLatency())
	}
	tokens, last := 0, time.Duration(0)
	for c := range r.Chunks.All() {
		tokens += c.Tokens
		last = c.At
	}
	if r.Chunks.Len() > 0 {
		require.LessOrEqual(t, tokens, r.OutputTokens)
		require.Equal(t, last, r.LastToken)
		require.LessOrEqual(t, r.Send, r.FirstToken)
		require.LessOrEqual(t, r.LastToken, r.Completion)
	}
}

// TestRecordedAnswers feeds the sender what real SGLang servers sent.
func TestRecordedAnswers(t *testing.T) {
	gen := []SenderOption{WithAPI(Generate), WithTexts()}
	genWhole := append(gen, WithStreaming(false))
	comp := []SenderOption{WithAPI(Completions), WithTexts()}
	compWhole := append(comp, WithStreaming(false))
	chat := []SenderOption{WithAPI(ChatCompletions), WithTexts()}
	chatWhole := append(chat, WithStreaming(false))
	for _, tc := range []struct {
		file string
		opts []SenderOption
		want Result
		n    int // chunks
	}{
		{"sglang-h100/fixtures/generate_stream.http", gen, Result{Outcome: OutcomeOK, Status: 200, FinishReason: "length", PromptTokens: 6, OutputTokens: 8, CachedTokens: 5, Text: "oplevel.LOGoplevel.LOGoplevel.LOGoplevel.LOG"}, 8},
		{"sglang-h100/fixtures/generate.http", genWhole, Result{Outcome: OutcomeOK, Status: 200, FinishReason: "length", PromptTokens: 6, OutputTokens: 8, CachedTokens: 1, Text: "oplevel.LOGoplevel.LOGoplevel.LOGoplevel.LOG"}, 0},
		{"sglang-h100/fixtures/completions_stream_continuous_usage.http", comp, Result{Outcome: OutcomeOK, Status: 200, FinishReason: "length", PromptTokens: 6, OutputTokens: 6, Text: "oplevel.LOGoplevel.LOGoplevel.LOG"}, 6},
		{"sglang-h100/fixtures/completions.http", compWhole, Result{Outcome: OutcomeOK, Status: 200, FinishReason: "length", PromptTokens: 6, OutputTokens: 6, Text: "oplevel.LOGoplevel.LOGoplevel.LOG"}, 0},
		{"sglang-h100/fixtures/chat_stream_continuous_usage.http", chat, Result{Outcome: OutcomeOK, Status: 200, FinishReason: "length", PromptTokens: 21, OutputTokens: 6, Text: "\x19 Convenience enlisted infect enlisted infect"}, 6},
		{"sglang-h100/fixtures/chat.http", chatWhole, Result{Outcome: OutcomeOK, Status: 200, FinishReason: "length", PromptTokens: 21, OutputTokens: 6, Text: "\x19 Convenience enlisted infect enlisted infect"}, 0},
		{"sglang-h100/fixtures/error_bad_sampling_value_stream.http", gen, Result{Outcome: OutcomeEngine, Status: 200, Message: "top_p must be in (0, 1], got 2."}, 0},
		{"sglang-h100/fixtures/error_bad_sampling_value.http", genWhole, Result{Outcome: OutcomeHTTP, Status: 400, Message: "temperature must be a non-negative finite number, got -1."}, 0},
		{"sglang-h100/fixtures/error_completions_too_long_stream.http", comp, Result{Outcome: OutcomeHTTP, Status: 400, Message: "The input (131100 tokens) is longer than the model's context length (131072 tokens)."}, 0},
		{"sglang-h100/fixtures/error_unknown_sampling_key.http", genWhole, Result{Outcome: OutcomeHTTP, Status: 500, Message: "Internal Server Error"}, 0},
		{"sglang-h100/fixtures/abort_victim.http", genWhole, Result{Outcome: OutcomeAbort, Status: 200, FinishReason: "abort", Message: "Aborted", PromptTokens: 6, OutputTokens: 64, CachedTokens: 5}, 0},
		{"sglang-h100/fixtures/completions_stream_usage.http", comp, Result{Outcome: OutcomeOK, Status: 200, FinishReason: "length", PromptTokens: 6, OutputTokens: 6, Text: "oplevel.LOGoplevel.LOGoplevel.LOG"}, 6},
		{"sglang-h100/fixtures/completions_stream.http", comp, Result{Outcome: OutcomeProtocol, Status: 200, FinishReason: "length", Message: "the answer has no token count (completion_tokens)", Text: "oplevel.LOGoplevel.LOGoplevel.LOG"}, 6},
		{"sglang-h100/fixtures/model_info.http", gen, Result{Outcome: OutcomeProtocol, Status: 200, Message: "the answer has no token count (completion_tokens)"}, 0},
		{"sglang-h100/fixtures/generate.http", gen, Result{Outcome: OutcomeProtocol, Status: 200, FinishReason: "length", PromptTokens: 6, OutputTokens: 8, CachedTokens: 1, Message: `asked for an event stream, got "application/json"`, Text: "oplevel.LOGoplevel.LOGoplevel.LOGoplevel.LOG"}, 0},
	} {
		t.Run(filepath.Base(tc.file)+"/"+string(tc.want.Outcome), func(t *testing.T) {
			res := do(t, recordedAnswer(t, refdata.Path(t, tc.file)), Request{Prompt: Prompt{Text: "x"}, OutputLen: 8}, tc.opts...)
			require.Equal(t, tc.n, res.Chunks.Len())
			if tc.want.CachedTokens == 0 { // nothing in these answers tells
				tc.want.CachedTokens = NotReported
			}
			if tc.want.Outcome == OutcomeAbort {
				require.NotEmpty(t, res.Text)
				res.Text = ""
			}
			require.Equal(t, tc.want, Result{Outcome: res.Outcome, Status: res.Status, FinishReason: res.FinishReason, Message: res.Message,
				PromptTokens: res.PromptTokens, OutputTokens: res.OutputTokens, CachedTokens: res.CachedTokens, Text: res.Text})
		})
	}
}

// TestRecordedVersions reads the same answers of four SGLang versions.
func TestRecordedVersions(t *testing.T) {
	for _, version := range []string{"0.5.15.post1", "0.5.18", "0.5.21", "0.5.23"} {
		for _, tc := range []struct {
			file    string
			opts    []SenderOption
			outcome Outcome
		}{
			{"generate_stream.txt", []SenderOption{WithTexts()}, OutcomeOK},
			{"generate.txt", []SenderOption{WithStreaming(false)}, OutcomeOK},
			{"chat_stream_continuous_usage.txt", []SenderOption{WithAPI(ChatCompletions)}, OutcomeOK},
			{"chat.txt", []SenderOption{WithAPI(ChatCompletions), WithStreaming(false)}, OutcomeOK},
			{"completions.txt", []SenderOption{WithAPI(Completions), WithStreaming(false)}, OutcomeOK},
			{"abort_target.txt", []SenderOption{WithStreaming(false)}, OutcomeAbort},
			{"abort_target_stream.txt", nil, OutcomeAbort},
			{"error_temperature_stream.txt", nil, OutcomeEngine},
			{"error_too_long.txt", []SenderOption{WithStreaming(false)}, OutcomeHTTP},
			{"error_unknown_sampling_key.txt", []SenderOption{WithStreaming(false)}, OutcomeHTTP},
		} {
			t.Run(version+"/"+tc.file, func(t *testing.T) {
				res := do(t, recordedAnswer(t, refdata.Path(t, "sglang-cpu/"+version+"/"+tc.file)), Request{Prompt: Prompt{Text: "x"}, OutputLen: 8}, tc.opts...)
				require.Equal(t, tc.outcome, res.Outcome, res.Message)
				if tc.outcome != OutcomeOK {
					require.NotEmpty(t, res.Message)
				} else {
					require.Positive(t, res.OutputTokens)
					require.Positive(t, res.PromptTokens)
				}
			})
		}
	}
}

// TestChatTokenWithoutText takes the last text from a recorded chat stream, as SGLang does with a token whose text is
// empty: the event with the finish reason is then what shows the token.
func TestChatTokenWithoutText(t *testing.T) {
	resp, err := recordedAnswer(t, refdata.Path(t, "sglang-cpu/0.5.23/chat_stream_continuous_usage.txt"))(&http.Request{})
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	events := strings.SplitAfter(string(body), "\n\n")
	text := func(e string) bool { return strings.Contains(e, `"content":"`) && !strings.Contains(e, `"content":""`) }
	ask := func(events []string) Result {
		r, w := io.Pipe()
		sent := make(chan struct{})
		go func() { // the events in a read each
			defer close(sent)
			for _, e := range events {
				io.WriteString(w, e)
			}
			w.Close()
		}()
		res := do(t, roundTripper(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: resp.Header, Body: r}, nil
		}), Request{Prompt: Prompt{Text: "x"}, OutputLen: 5}, WithAPI(ChatCompletions))
		<-sent
		require.Equal(t, OutcomeOK, res.Outcome, res.Message)
		require.Equal(t, 5, res.OutputTokens)
		counts, sum := []int{}, 0
		for c := range res.Chunks.All() {
			counts = append(counts, c.Tokens)
			sum += c.Tokens
		}
		require.Equal(t, res.OutputTokens, sum, "%v", counts)
		return res
	}
	whole := ask(events)
	last := 0
	for i, e := range events {
		if text(e) {
			last = i
		}
	}
	without := ask(slices.Delete(slices.Clone(events), last, last+1))
	require.Equal(t, whole.Chunks.Len(), without.Chunks.Len())
	require.Less(t, without.LastToken, without.Completion)

	none := ask(slices.DeleteFunc(slices.Clone(events), text))
	require.Equal(t, 1, none.Chunks.Len())
	require.Equal(t, none.FirstToken, none.LastToken)
	require.Positive(t, none.FirstToken)
}

// TestBrokenAnswers cuts a recorded stream at every byte: wherever it breaks, it is no success.
func TestBrokenAnswers(t *testing.T) {
	whole := recordedAnswer(t, refdata.Path(t, "sglang-h100/fixtures/generate_stream.http"))
	resp, err := whole(&http.Request{})
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	end := bytes.Index(body, []byte("[DONE]"))
	for cut := range end + len("[DONE]") {
		res := do(t, roundTripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(body[:cut]))}, nil
		}), Request{Prompt: Prompt{Text: "x"}, OutputLen: 8})
		require.Equal(t, OutcomeTruncated, res.Outcome, "cut at %d", cut)
	}
}
