package redact

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCommandLine(t *testing.T) {
	for name, c := range map[string]struct{ given, want []string }{
		"two arguments":    {[]string{"prog", "--api-key", "k-1", "-rate", "8"}, []string{"prog", "--api-key", "(not stored)", "-rate", "8"}},
		"one argument":     {[]string{"prog", "--admin-api-key=k 2", "-x"}, []string{"prog", "--admin-api-key=(not stored)", "-x"}},
		"other spellings":  {[]string{"prog", "-apikey", "-k", "-api_key=k", "--hf-token", "h", "-args", "--admin-api-k h"}, []string{"prog", "-apikey", "(not stored)", "-api_key=(not stored)", "--hf-token", "(not stored)", "-args", "--admin-api-k (not stored)"}},
		"an environment":   {[]string{"env", "HF_TOKEN=h", "prog"}, []string{"env", "HF_TOKEN=(not stored)", "prog"}},
		"a command inside": {[]string{"prog", "-command", "env HF_TOKEN=h python --api-key 'k 1' --admin-api-key=k2 --port 1"}, []string{"prog", "-command", "env HF_TOKEN=(not stored) python --api-key (not stored) --admin-api-key=(not stored) --port 1"}},
		"and assigned":     {[]string{"prog", "-args=--api-key k --port 1"}, []string{"prog", "-args=--api-key (not stored) --port 1"}},
		"JSON":             {[]string{"prog", `{"api_key": "k", "page_size": 16}`}, []string{"prog", `{"api_key": (not stored), "page_size": 16}`}},
		"escaped JSON":     {[]string{"prog", `-command=srv --json "{\"api_key\": \"k 1\", \"page_size\": 16}"`}, []string{"prog", `-command=srv --json "{\"api_key\": (not stored), \"page_size\": 16}"`}},
		"a watermark":      {[]string{"prog", "--watermark-key-b", "k", "--watermark-config=c"}, []string{"prog", "--watermark-key-b", "(not stored)", "--watermark-config=(not stored)"}},
		"a query":          {[]string{"prog", "-url", "http://h/?page=2&api_key=k&x=1"}, []string{"prog", "-url", "http://h/?page=2&api_key=(not stored)"}},
		"nothing secret": {
			[]string{"prog", "-tokens", "5", "--max-total-tokens=7", "-monkey", "m", "key", "a token of it", "--tokenizer-path", "/key", "-run", "TestKey"},
			[]string{"prog", "-tokens", "5", "--max-total-tokens=7", "-monkey", "m", "key", "a token of it", "--tokenizer-path", "/key", "-run", "TestKey"},
		},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, CommandLine(c.given)) })
	}
}
