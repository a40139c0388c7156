package sim

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
)

// A second turn repeats the first one's prompt and answer and finds both in the cache, but for the answer's last token, which
// the engine never reads.
func TestASecondTurnFindsTheAnswer(t *testing.T) {
	_, c := start(t, H100Llama8B(), server.Config{})
	type answer struct {
		IDs  []int32 `json:"output_ids"`
		Meta struct {
			Cached int `json:"cached_tokens"`
			Prompt int `json:"prompt_tokens"`
		} `json:"meta_info"`
	}
	generate := func(prompt any) (a answer) {
		key := "input_ids"
		if _, ok := prompt.(string); ok {
			key = "text"
		}
		body, err := json.Marshal(map[string]any{key: prompt, "sampling_params": map[string]any{"max_new_tokens": 20, "ignore_eos": true}})
		require.NoError(t, err)
		status, got := c.post("/generate", string(body))
		require.Equal(t, 200, status, got)
		require.NoError(t, json.Unmarshal([]byte(got), &a))
		return a
	}
	prompt := make([]int32, 50)
	for i := range prompt {
		prompt[i] = int32(7 * i)
	}
	first := generate(prompt)
	require.Len(t, first.IDs, 20)
	require.Equal(t, 50+20-1, generate(append(append(prompt, first.IDs...), 1, 2, 3)).Meta.Cached)

	// Of a text, whole blocks of the prompt are shared.
	text := strings.Repeat("a text of some length. ", 10)
	generate(text)
	second := generate(text + "And more.")
	require.Equal(t, len(text)/64*16, second.Meta.Cached)
}
