package server

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

// shortSecret is the length in bytes below which a secret is likely to be a word of the log, too.
const shortSecret = 8

// A hider replaces secrets in what a server writes: SGLang logs its arguments as they are.
type hider struct{ pattern *regexp.Regexp } // nil: there are none

// hideSecrets returns the hider of a config's secrets. It replaces whole words only: with the key "info" the level INFO:info stays
// what it is but for that word, and "information" as it is.
func hideSecrets(cfg Config) hider {
	var keys []string
	for _, key := range secretsOf(cfg) {
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return hider{}
	}
	slices.SortFunc(keys, func(a, b string) int { return len(b) - len(a) }) // one may begin with the other
	for i, key := range keys {
		keys[i] = edge(key[0]) + regexp.QuoteMeta(key) + edge(key[len(key)-1])
	}
	return hider{regexp.MustCompile(strings.Join(keys, "|"))}
}

// edge is what stands beside a byte at the end of a whole word.
func edge(b byte) string {
	if b == '_' || b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' {
		return `\b`
	}
	return ""
}

// Replace returns text without secrets.
func (h hider) Replace(text string) string {
	if h.pattern == nil {
		return text
	}
	return h.pattern.ReplaceAllLiteralString(text, "(key)")
}

// secretsOf returns the secrets that a config sets, by name.
func secretsOf(cfg Config) map[string]string {
	settings := cfg.Settings()
	set := map[string]string{}
	for _, name := range sglargs.Secrets() {
		if key, _ := settings[name].(string); key != "" {
			set[name] = key
		}
	}
	return set
}

// shortSecrets warns of secrets that are so short that hiding them changes other words of the log.
func shortSecrets(cfg Config) []string {
	var warnings []string
	set := secretsOf(cfg)
	for _, name := range sglargs.Secrets() {
		if key := set[name]; key != "" && len(key) < shortSecret {
			warnings = append(warnings, fmt.Sprintf("%s has %d bytes: where the log has the same word, it reads (key); use %d bytes or more", name, len(key), shortSecret))
		}
	}
	return warnings
}
