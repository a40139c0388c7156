package sim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/server"
)

const testTokenizer = "../internal/bpe/testdata/llama3.json"

// TestChatTemplates compares with what transformers 5.19.0 makes of the templates.
func TestChatTemplates(t *testing.T) {
	b, err := os.ReadFile("testdata/chats.json")
	require.NoError(t, err)
	var cases []struct {
		Template string
		Messages []load.Message
		Text     string
	}
	require.NoError(t, json.Unmarshal(b, &cases))
	render := map[string]func([]load.Message) string{"llama3": llama3Chat, "qwen2.5": qwenChat, "tiny": tinyChat}
	for _, c := range cases {
		require.Equal(t, c.Text, render[c.Template](c.Messages), c.Template)
	}
	require.Len(t, cases, 9)
}

func TestTokenizerCountsTexts(t *testing.T) {
	_, c := start(t, quick(), server.Config{ContextLength: 4096}, WithTokenizer(testTokenizer))
	tk, err := loadTokenizer(testTokenizer)
	require.NoError(t, err)
	text := "The quick brown fox jumps over the lazy dog. It's what they'd said: 1234 日本語"
	ids, err := json.Marshal(tk.Encode(text))
	require.NoError(t, err)
	count := len(tk.Encode(text))
	post := func(path string, body any) string {
		b, err := json.Marshal(body)
		require.NoError(t, err)
		status, got := c.post(path, string(b))
		require.Equal(t, 200, status, got)
		return got
	}
	type m = map[string]any
	require.JSONEq(t, string(mustJSON(m{"tokens": json.RawMessage(ids), "count": count, "max_model_len": 4096})), post("/tokenize", m{"prompt": text}))
	require.JSONEq(t, string(mustJSON(m{"tokens": [][]int32{tk.Encode("a"), tk.Encode(text)}, "count": []int{2, count}, "max_model_len": 4096})),
		post("/v1/tokenize", m{"prompt": []string{"a", text}}))
	require.JSONEq(t, string(mustJSON(m{"tokens": tk.Append(nil, text), "count": count - 1, "max_model_len": 4096})),
		post("/tokenize", m{"prompt": text, "add_special_tokens": false}))
	require.JSONEq(t, string(mustJSON(m{"text": text})), post("/detokenize", m{"tokens": tk.Encode(text)}))
	require.JSONEq(t, string(mustJSON(m{"text": []string{"<|begin_of_text|>a", ""}})),
		post("/v1/detokenize", m{"tokens": [][]int32{tk.Encode("a"), {}}, "skip_special_tokens": false}))

	usage := func(body string) (prompt, cached int) {
		var a struct {
			Meta struct {
				PromptTokens int `json:"prompt_tokens"`
				CachedTokens int `json:"cached_tokens"`
			} `json:"meta_info"`
		}
		require.NoError(t, json.Unmarshal([]byte(body), &a), body)
		return a.Meta.PromptTokens, a.Meta.CachedTokens
	}
	one := m{"max_new_tokens": 1}
	prompt, cached := usage(post("/generate", m{"text": text, "sampling_params": one}))
	require.Equal(t, count, prompt)
	require.Zero(t, cached)
	longer := text + " and more of it"
	prompt, cached = usage(post("/generate", m{"text": longer, "sampling_params": one}))
	require.Equal(t, len(tk.Encode(longer)), prompt)
	require.Equal(t, count, cached, "a text shares its beginning with another")
	_, cached = usage(post("/generate", m{"input_ids": tk.Encode(longer), "sampling_params": one}))
	require.Equal(t, prompt-1, cached, "ids are the same as the text")

	var chat struct {
		Usage struct {
			Prompt int `json:"prompt_tokens"`
		}
	}
	messages := []load.Message{{Role: "user", Content: text}}
	require.NoError(t, json.Unmarshal([]byte(post("/v1/chat/completions", m{"model": "m", "max_tokens": 1,
		"messages": []m{{"role": "user", "content": text}}})), &chat))
	require.Equal(t, len(tk.Append(nil, plainChat(messages))), chat.Usage.Prompt)
}

func TestTokenizerOption(t *testing.T) {
	dir := t.TempDir()
	b, err := os.ReadFile(testTokenizer)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer.json"), b, 0o600))
	tk, err := loadTokenizer(dir)
	require.NoError(t, err)
	hello := []load.Message{{Role: "user", Content: "Hello"}}
	require.Equal(t, "user\nHello\nassistant\n", tk.render(hello))
	config := filepath.Join(dir, "tokenizer_config.json")
	require.NoError(t, os.WriteFile(config, mustJSON(map[string]any{"chat_template": "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}" +
		"{% if add_generation_prompt %}<|assistant|>{% endif %}"}), 0o600))
	tk, err = loadTokenizer(dir)
	require.NoError(t, err)
	require.Equal(t, "<|user|>Hello</s><|assistant|>", tk.render(hello))
	require.NoError(t, os.WriteFile(config, []byte(`{"chat_template":[{"name":"default","template":"x"}]}`), 0o600))
	tk, err = loadTokenizer(dir)
	require.NoError(t, err)
	require.Equal(t, "user\nHello\nassistant\n", tk.render(hello))

	_, err = NewServer(quick(), server.Config{}, WithTokenizer(filepath.Join(dir, "none.json")))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte(strings.Replace(string(b), `"BPE"`, `"Unigram"`, 1)), 0o600))
	_, err = NewServer(quick(), server.Config{}, WithTokenizer(dir))
	require.ErrorContains(t, err, "not BPE")
}
