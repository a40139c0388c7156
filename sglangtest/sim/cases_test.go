package sim

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/server"
)

// What simulated servers were reported to get wrong, with the right value.

// A prompt beyond the context is refused before the stream on the OpenAI routes, and by an event of it on /generate, as
// recorded with SGLang 0.5.15.post1 to 0.5.23.
func TestTooLongPromptStreamed(t *testing.T) {
	for _, version := range []string{"0.5.15.post1", "0.5.18", "0.5.21", "0.5.23"} {
		_, c := start(t, quick(), server.Config{ContextLength: 100}, WithVersion(version))
		ids := "[" + strings.Repeat("5,", 149) + "5]"
		for api, body := range map[load.API]string{
			load.Generate:        `{"input_ids":` + ids + `,"sampling_params":{"max_new_tokens":4},"stream":true}`,
			load.Completions:     `{"model":"default","prompt":` + ids + `,"max_tokens":4,"stream":true}`,
			load.ChatCompletions: `{"model":"default","messages":[{"role":"user","content":"` + strings.Repeat("word ", 300) + `"}],"max_tokens":4,"stream":true}`,
		} {
			path, want, kind := "/v1/"+strings.Replace(string(api), "chat_", "chat/", 1), 400, "application/json"
			if api == load.Generate {
				path, want, kind = "/generate", 200, "text/event-stream"
			}
			resp := c.open(t.Context(), "POST", path, body)
			text, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, want, resp.StatusCode, "%s %s: %s", version, path, text)
			require.Contains(t, resp.Header.Get("Content-Type"), kind)
			require.Contains(t, string(text), "context length")

			s, err := load.NewSender(c.url, load.WithAPI(api))
			require.NoError(t, err)
			prompt := load.Prompt{TokenIDs: make([]int32, 150)}
			if api == load.ChatCompletions {
				prompt = load.Prompt{Text: strings.Repeat("word ", 300)}
			}
			var res load.Result
			s.Do(t.Context(), load.NewClock(time.Now()), &load.Request{Prompt: prompt, OutputLen: 4}, &res)
			s.Close()
			require.Equal(t, map[bool]load.Outcome{true: load.OutcomeEngine, false: load.OutcomeHTTP}[api == load.Generate], res.Outcome, res.Message)
		}
	}
}

// The server's own TTFT begins when the request comes in, not when it leaves the queue.
func TestServerTTFTHoldsTheWait(t *testing.T) {
	const step, n, tokens = 5 * time.Millisecond, 12, 4
	p := quick()
	p.Model = Linear{DecodeBase: 5, PrefillBase: 5}
	_, c := start(t, p, server.Config{MaxRunningRequests: 1, EnableMetrics: true})
	s, err := load.NewSender(c.url)
	require.NoError(t, err)
	defer s.Close()
	var all sync.WaitGroup
	results := make([]load.Result, n)
	clock := load.NewClock(time.Now())
	for i := range results {
		all.Go(func() {
			s.Do(t.Context(), clock, &load.Request{ID: i, Prompt: load.Prompt{Text: fmt.Sprint("hello", i)}, OutputLen: tokens}, &results[i])
		})
	}
	all.Wait()
	var client float64
	for i := range results {
		require.Equal(t, load.OutcomeOK, results[i].Outcome, results[i].Message)
		client += (results[i].FirstToken - results[i].Send).Seconds() / n
	}
	_, page := c.do("GET", "/metrics", "")
	m := parseMetrics(t, page)
	require.Equal(t, float64(n), total(m, "time_to_first_token_seconds_count"))
	mean := total(m, "time_to_first_token_seconds_sum") / n
	least := (step * tokens).Seconds() * (n - 1) / 2 // the i-th waits for i others, on a machine that takes no time
	require.Greater(t, mean, least*0.9)
	require.LessOrEqual(t, mean, client)
}

// The budget that a prompt leaves of a chunk is the next prompt's, and a chunk that is not the last brings no token.
func TestRemainingChunkBudget(t *testing.T) {
	for _, page := range []int{1, 4} {
		e, err := NewEngine(EngineConfig{MaxTotalTokens: 1000, ContextLength: 100, MaxRunningRequests: 8, MaxPrefillTokens: 100, ChunkedPrefillSize: 8,
			PageSize: page, ScheduleConservativeness: 1})
		require.NoError(t, err)
		four, eight := &Request{InputLen: 4, MaxNewTokens: 2}, &Request{InputLen: 8, MaxNewTokens: 2}
		e.Add(four)
		e.Add(eight)
		var rows [][]int
		tokens := map[*Request][]int{}
		for i := range 2 {
			s := e.Plan()
			var extends []int
			for _, r := range s.Rows {
				extends = append(extends, r.Extend)
			}
			rows = append(rows, extends)
			e.Complete(s)
			for _, o := range e.Outputs() {
				if o.Tokens > 0 {
					tokens[o.Request] = append(tokens[o.Request], i)
				}
			}
		}
		require.Equal(t, [][]int{{4, 4}, {4}}, rows)
		require.Equal(t, []int{1}, tokens[eight], "page %d", page)
		require.Equal(t, 0, tokens[four][0])
	}
}
