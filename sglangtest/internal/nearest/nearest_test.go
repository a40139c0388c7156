package nearest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestName(t *testing.T) {
	valid := []string{"max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "sampling_seed", "n"}
	for name, want := range map[string]string{
		"temprature":     "temperature",
		"tempreature":    "temperature", // a swap
		"Temperature":    "temperature",
		"max-new-tokens": "max_new_tokens",
		"max_tokens":     "max_new_tokens", // OpenAI's name
		"topk":           "top_k",
		"top_q":          "top_p", // first of two at the same distance
		"seed":           "sampling_seed",
		"m":              "",
		"xyzzy":          "",
		"":               "",
	} {
		require.Equal(t, want, Name(name, valid), "%q", name)
	}
	require.Empty(t, Name("x", nil))
}

func TestHint(t *testing.T) {
	require.Equal(t, `did you mean "output_len"?`, Hint("output_length", []string{"input_len", "output_len"}))
	require.Equal(t, `valid are input_len, output_len`, Hint("colour", []string{"input_len", "output_len"}))
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"ab", "ba", 1}, {"ca", "abc", 3}, {"abc", "abc", 0}} {
		require.Equal(t, c.want, distance(c.a, c.b), "%q %q", c.a, c.b)
	}
}
