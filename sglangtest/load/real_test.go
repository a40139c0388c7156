package load

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

// TestRealSGLang asks a real server on all three APIs, streaming and not, and checks that every count is there.
func TestRealSGLang(t *testing.T) {
	url := refdata.SGLang(t)
	long := Prompt{Segments: []Segment{{Stream: 99, Length: 50}}}
	for _, api := range []API{Generate, Completions, ChatCompletions} {
		for name, prompt := range map[string]Prompt{"tokens": long, "text": {Text: "The capital of France is"}} {
			for _, stream := range []bool{true, false} {
				t.Run(string(api)+"/"+name+map[bool]string{true: "/stream", false: "/whole"}[stream], func(t *testing.T) {
					// The tiny model has 2,048 tokens.
					s, err := NewSender(url, WithAPI(api), WithStreaming(stream), WithTexts(), WithTimeout(time.Minute), WithTokenRange(10, 2000))
					require.NoError(t, err)
					defer s.Close()
					req := Request{Prompt: prompt, OutputLen: 12, Sampling: &SamplingParams{Temperature: Ptr(0.0)}}
					res := Result{}
					s.Do(t.Context(), NewClock(time.Now()), &req, &res)
					checkTimes(t, &res)
					require.Equal(t, OutcomeOK, res.Outcome, res.Message)
					require.Equal(t, 12, res.OutputTokens)
					require.Equal(t, "length", res.FinishReason)
					require.NotEmpty(t, res.Text)
					if name == "tokens" {
						require.Equal(t, 50, res.PromptTokens)
					} else {
						require.Positive(t, res.PromptTokens)
					}
					if stream {
						tokens := 0
						for c := range res.Chunks.All() {
							tokens += c.Tokens
						}
						require.Equal(t, 12, tokens, "every token belongs to a chunk")
					}
				})
			}
		}
	}
	t.Run("refused value", func(t *testing.T) {
		s, err := NewSender(url)
		require.NoError(t, err)
		defer s.Close()
		bad := &SamplingParams{TopP: Ptr(2.0)}
		req, res := Request{Prompt: long, OutputLen: 4, Sampling: bad}, Result{}
		s.Do(t.Context(), NewClock(time.Now()), &req, &res)
		require.Equal(t, OutcomeEngine, res.Outcome)
		require.Contains(t, res.Message, "top_p must be in (0, 1]")
	})
}
