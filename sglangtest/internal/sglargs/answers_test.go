package sglargs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

// answer is what testdata/record.py stored of one command line.
type answer struct {
	Versions  []string       `json:"versions"`
	Argv      []string       `json:"argv"`
	Config    *string        `json:"config"` // a YAML file, at FILE after CONFIG in Argv
	Values    map[string]any `json:"values"` // that differ from the parser's defaults
	Help      bool           `json:"help"`
	Error     string         `json:"error"`
	Exception string         `json:"exception"`
	Text      string         `json:"text"`
}

// The real parsers' answers to command lines, of all four versions: values, refusals, exceptions.
func TestAnswersOfRealParsers(t *testing.T) {
	data, err := os.ReadFile("testdata/answers.json")
	require.NoError(t, err)
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var answers []answer
	require.NoError(t, d.Decode(&answers))
	seen := map[string]int{}
	for _, a := range answers {
		for _, version := range a.Versions {
			seen[version]++
			table, err := sglargs.For(version)
			require.NoError(t, err)
			if fault := check(table, a, t.TempDir()); fault != "" {
				t.Errorf("SGLang %s: %q %v: %s", version, a.Argv, deref(a.Config), fault)
			}
		}
	}
	for _, version := range sglargs.Versions() {
		require.Greater(t, seen[version], 300)
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func check(table *sglargs.Table, a answer, folder string) string {
	argv := slices.Clone(a.Argv)
	if a.Config != nil {
		path := filepath.Join(folder, "c.yaml")
		if err := os.WriteFile(path, []byte(*a.Config), 0o600); err != nil {
			return err.Error()
		}
		for i, s := range argv {
			argv[i] = map[string]string{"CONFIG": "--config", "FILE": path}[s]
			if argv[i] == "" {
				argv[i] = s
			}
		}
	}
	parsed, err := table.Parse(argv)
	if a.Help {
		if err != sglargs.ErrHelp {
			return fmt.Sprintf("want help, have %v", err)
		}
		return ""
	}
	if a.Error == "" && a.Exception == "" {
		if err != nil {
			return fmt.Sprintf("have %v", err)
		}
		return compare(table, parsed, a.Values)
	}
	var e *sglargs.Error
	if !errors.As(err, &e) {
		return fmt.Sprintf("want %q %s %s, have %v", a.Error, a.Exception, a.Text, err)
	}
	if a.Error != "" {
		if e.ExitStatus() != 2 || normalError(e.Error()) != normalError(a.Error) {
			return fmt.Sprintf("want\n%s, have\n%s", a.Error, e)
		}
		return ""
	}
	text := strings.ReplaceAll(e.Message, folder, "FOLDER")
	// What is wrong with a JSON or YAML text is said in other words.
	if a.Text != "json" && (text != a.Text || e.Exception != a.Exception) || e.ExitStatus() != 1 {
		return fmt.Sprintf("want %s: %s, have %s", a.Exception, a.Text, e)
	}
	return ""
}

// normalError leaves out what is not the same in every run of SGLang, or only JSON's own words: the order of a set,
// and the rest of a message of Python's JSON decoder.
func normalError(line string) string {
	if i := strings.Index(line, "--cuda-graph-config must be JSON: "); i >= 0 {
		return line[:i]
	}
	if i := strings.Index(line, "argument --sampling-backend: invalid choice: "); i >= 0 {
		parts := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune("(), ", r) })
		slices.Sort(parts)
		return strings.Join(parts, " ")
	}
	return line
}

func compare(table *sglargs.Table, parsed *sglargs.Parsed, want map[string]any) string {
	for _, a := range table.Args() {
		if a.Action == sglargs.Help || a.Field == "config" {
			continue
		}
		have := parsed.Value(a.Field)
		w, differs := want[a.Field]
		if !differs {
			w = table.Default(a.Field)
		}
		if plainText(have) != plainText(w) {
			return fmt.Sprintf("%s: want %s, have %s", a.Field, plainText(w), plainText(have))
		}
	}
	return ""
}

// plainText writes a value so that 1 and 1.0 are different but a json.Number is as the number it stands for.
func plainText(v any) string {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return plainText(n)
		}
		f, err := v.Float64()
		if err != nil {
			return err.Error()
		}
		return plainText(f)
	case float64:
		return fmt.Sprintf("float %v", v)
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = plainText(v[i])
		}
		return "[" + strings.Join(parts, " ") + "]"
	case map[string]any:
		if special, ok := v["float"]; ok {
			f, err := strconv.ParseFloat(special.(string), 64)
			if err != nil {
				return err.Error()
			}
			return plainText(f)
		}
		parts := []string{}
		for k := range v {
			parts = append(parts, k+": "+plainText(v[k]))
		}
		slices.Sort(parts)
		return "{" + strings.Join(parts, " ") + "}"
	}
	return fmt.Sprintf("%v %v", reflect.TypeOf(v), v)
}
