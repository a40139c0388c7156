package sim

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
)

// Without --enable-lora a request for an adapter is refused (SGLang 0.5.23, tokenizer_manager.py, _validate_and_resolve_lora);
// what would keep equal prompts apart in the cache is not ignored.
func TestAdaptersAndNamespacesAreRefused(t *testing.T) {
	_, c := start(t, H100Llama8B(), server.Config{})
	for path, body := range map[string]string{
		"/generate":            `{"text":"a","sampling_params":{"max_new_tokens":1}`,
		"/v1/completions":      `{"model":"m","prompt":"a","max_tokens":1`,
		"/v1/chat/completions": `{"model":"m","messages":[{"role":"user","content":"a"}],"max_tokens":1`,
	} {
		for member, want := range map[string]string{
			`"lora_path":"sql"`:           "LoRA adapter 'sql' was requested, but LoRA is not enabled.",
			`"lora_path":[null,"sql"]`:    "LoRA adapter 'sql' was requested",
			`"cache_salt":"a"`:            "The simulation does not take cache_salt.",
			`"extra_key":"a"`:             "The simulation does not take extra_key.",
			`"lora_path":null`:            "",
			`"cache_salt":null,"zap":1`:   "",
			`"tools":[],"user":"u"`:       "",
			`"priority":3,"lora_path":""`: "",
		} {
			status, answer := c.post(path, body+","+member+"}")
			if want == "" {
				require.Equal(t, http.StatusOK, status, "%s %s: %s", path, member, answer)
				continue
			}
			require.Equal(t, http.StatusBadRequest, status, "%s %s", path, member)
			require.True(t, strings.Contains(answer, want), "%s %s: %s", path, member, answer)
		}
	}
}
