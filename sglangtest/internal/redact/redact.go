// Package redact hides secrets in what is stored.
package redact

import (
	"regexp"
	"strings"
)

// NotStored stands for a secret.
const NotStored = "(not stored)"

// A name is that of a secret if its last word is one of these, such as --api-key, which SGLang also takes
// as --api-k, -admin_api_key and HF_TOKEN.
const secretName = `(?i:(?:[a-z0-9]+[-_])*(?:(?:api)?key|api[-_]ke?|token|password|secret|watermark[-_](?:key[-_]b|config)))`

var (
	secretFlag     = regexp.MustCompile(`^--?` + secretName + `$`)
	secretAssigned = regexp.MustCompile(`^-{0,2}` + secretName + `=`)
	secretValue    = regexp.MustCompile(`((?:^|[\s"'={,?&])(?:--?` + secretName + `\s+|-{0,2}` + secretName + `\\?["']?\s*[=:]\s*))(\\?"[^"]*"|'[^']*'|[^\s"',}]+)`)
)

// CommandLine returns a command line with the values of secrets replaced, those within an argument that is a command
// line itself included. A value that is replaced for nothing is missed less than a key that is not.
func CommandLine(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		switch {
		case i > 0 && secretFlag.MatchString(args[i-1]):
			out[i] = NotStored
		case secretAssigned.MatchString(arg):
			name, _, _ := strings.Cut(arg, "=")
			out[i] = name + "=" + NotStored
		default:
			out[i] = Text(arg)
		}
	}
	return out
}

// Text returns a text with the values of secrets in command lines and assignments within it replaced.
func Text(text string) string { return secretValue.ReplaceAllString(text, "${1}"+NotStored) }
