package sglargs

import (
	"slices"

	"github.com/sglangtest/harness/sglangtest/internal/redact"
)

// secrets are the fields whose values are secret: keys, and what SGLang itself hides (server_args.py of 0.5.23).
var secrets = []string{"admin_api_key", "api_key", "ssl_keyfile_password", "watermark_config", "watermark_key", "watermark_key_b"}

// Secrets returns the fields whose values belong into no message, log or stored file.
func Secrets() []string { return slices.Clone(secrets) }

// WithoutSecrets returns a copy of a value as encoding/json decodes it, in which the values of secret fields that are set
// are replaced at every depth, and those in command lines within texts: SGLang's launch_command holds the API key.
func WithoutSecrets(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, value := range v {
			if out[name] = WithoutSecrets(value); value != nil && slices.Contains(secrets, name) {
				out[name] = redact.NotStored
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = WithoutSecrets(value)
		}
		return out
	case string:
		return redact.Text(v)
	}
	return v
}
