package sglargs

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf16"
)

// mergeConfig puts the settings of the file that --config names before all other arguments, as ConfigArgumentMerger
// does. (sglang/srt/server_args_config_parser.py, 0.5.15 to 0.5.18; sglang/srt/utils since.) --config=FILE is not
// looked for: SGLang takes it and reads nothing.
func (t *Table) mergeConfig(argv []string) ([]string, error) {
	at := slices.Index(argv, "--config")
	if at < 0 {
		return argv, nil
	}
	fault := func(format string, args ...any) error {
		return &Error{Flag: "--config", Exception: "ValueError", Message: fmt.Sprintf(format, args...)}
	}
	if slices.Contains(argv[at+1:], "--config") {
		return nil, fault("Multiple config files specified! Only one allowed.")
	}
	if at == len(argv)-1 {
		return nil, fault("No config file specified after --config flag!")
	}
	path := argv[at+1]
	if path == "" { // not looked for either
		return argv, nil
	}
	if ext := strings.ToLower(filepath.Ext(path)); ext != ".yaml" && ext != ".yml" {
		return nil, fault("Config file must be YAML format, got: %s", filepath.Ext(path))
	}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, fault("Config file not found: %s", path)
	}
	if err != nil {
		return nil, &Error{Flag: "--config", Exception: "OSError", Message: err.Error()}
	}
	settings, err := t.ConfigArgs(data)
	if err != nil {
		return nil, err
	}
	return slices.Concat(settings, argv[:at], argv[at+2:]), nil
}

// ConfigArgs returns the arguments that SGLang makes of the content of a YAML file given with --config. Each key
// becomes a flag as it is written, so that SGLang takes max-running-requests but not max_running_requests. The error
// is an *Error.
func (t *Table) ConfigArgs(data []byte) ([]string, error) {
	settings, err := readYAML(data)
	if err != nil {
		return nil, err
	}
	flags, refused := t.configKeys()
	var argv []string
	for _, s := range settings {
		key, ok := s.key.(string)
		if !ok {
			return nil, &Error{Flag: "--config", Exception: "AttributeError", Message: fmt.Sprintf("'%s' object has no attribute 'replace'", pyType(s.key))}
		}
		norm := strings.ReplaceAll(key, "-", "_")
		if a := refused[norm]; a != nil {
			return nil, &Error{Flag: a.Flag(), Exception: "ValueError", Message: fmt.Sprintf("Unsupported config option '%s' with action '%s'", norm, a.class())}
		}
		flag := "--" + key
		switch v := s.value.(type) {
		case bool:
			if !flags[norm] {
				argv = append(argv, flag, strings.ToLower(pyStr(v)))
			} else if v {
				argv = append(argv, flag)
			}
		case []any:
			if len(v) > 0 {
				argv = append(argv, flag)
			}
			for _, item := range v {
				argv = append(argv, pyStr(item))
			}
		case dict:
			argv = append(argv, flag, v.json())
		default:
			argv = append(argv, flag, pyStr(v))
		}
	}
	return argv, nil
}

// anySpelling is the first version whose configuration files may use every spelling of a flag.
const anySpelling = "0.5.23"

// configKeys returns which keys of a configuration file are plain flags, and which SGLang refuses.
func (t *Table) configKeys() (flags map[string]bool, refused map[string]*Arg) {
	spellings := mustVersion(t.version).Compare(mustVersion(anySpelling)) >= 0
	keys := func(a *Arg) []string {
		out := []string{a.Field}
		if spellings {
			for _, f := range a.Flags {
				out = append(out, strings.ReplaceAll(strings.TrimPrefix(f, "--"), "-", "_"))
			}
		}
		return out
	}
	flags, refused = map[string]bool{}, map[string]*Arg{}
	taken := map[string]bool{}
	for _, a := range t.args {
		class := a.class()
		oneValue := spellings && !a.takesNone() && a.NArgs == ""
		if class == "_StoreTrueAction" {
			for _, k := range keys(a) {
				flags[k] = true
			}
		}
		if class == "_StoreTrueAction" || class == "_StoreAction" || oneValue {
			for _, k := range keys(a) {
				taken[k] = spellings
			}
		} else if a.Action != Help {
			for _, k := range keys(a) {
				refused[k] = a
			}
		}
	}
	for k := range refused {
		if taken[k] {
			delete(refused, k)
		}
	}
	return flags, refused
}

// class returns the name of the Python class that implements the argument.
func (a *Arg) class() string {
	switch a.Action {
	case Store:
		if a.Warns {
			return "DeprecatedAliasStoreAction"
		}
		return "_StoreAction"
	case StoreTrue:
		if a.Warns {
			return "DeprecatedStoreTrueAction"
		}
		return "_StoreTrueAction"
	case StoreConst:
		return "DeprecatedStoreConstAction"
	case BooleanOptional:
		return "BooleanOptionalAction"
	case LoRAPaths:
		return "LoRAPathAction"
	case Help:
		return "_HelpAction"
	}
	return "DeprecatedAction"
}

// dict is a mapping in its order.
type dict []item

type item struct{ key, value any }

// Flow returns a value of Normal as YAML on one line, which SGLang reads as v.
func Flow(v any) string {
	w := jsonWriter{yaml: true}
	w.value(v)
	return w.String()
}

// json is Python's json.dumps.
func (d dict) json() string {
	var w jsonWriter
	w.value(d)
	return w.String()
}

// jsonWriter writes values as Python's json.dumps does or, if yaml is set, as YAML 1.1, which differs in numbers with an
// exponent and in characters beyond 16 bits.
type jsonWriter struct {
	strings.Builder
	yaml bool
}

func (w *jsonWriter) value(v any) {
	switch v := v.(type) {
	case nil:
		w.WriteString("null")
	case bool:
		w.WriteString(strings.ToLower(pyStr(v)))
	case string:
		w.text(v)
	case float64:
		s := pyFloatStr(v)
		if mantissa, exponent, found := strings.Cut(s, "e"); found && w.yaml && !strings.Contains(mantissa, ".") {
			s = mantissa + ".0e" + exponent
		}
		w.WriteString(s)
	case []any:
		w.WriteByte('[')
		for i, item := range v {
			w.comma(i)
			w.value(item)
		}
		w.WriteByte(']')
	case map[string]any:
		ordered := dict{}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			ordered = append(ordered, item{key, v[key]})
		}
		w.value(ordered)
	case dict:
		w.WriteByte('{')
		for i, item := range v {
			w.comma(i)
			key, ok := item.key.(string)
			if !ok { // null, true, 1: Python makes strings of them
				var text jsonWriter
				text.value(item.key)
				key = text.String()
			}
			w.text(key)
			w.WriteString(": ")
			w.value(item.value)
		}
		w.WriteByte('}')
	default:
		w.WriteString(pyStr(v))
	}
}

func (w *jsonWriter) comma(i int) {
	if i > 0 {
		w.WriteString(", ")
	}
}

func (w *jsonWriter) text(s string) {
	w.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			w.WriteByte('\\')
			w.WriteRune(r)
		case r == '\n':
			w.WriteString(`\n`)
		case r == '\r':
			w.WriteString(`\r`)
		case r == '\t':
			w.WriteString(`\t`)
		case r == '\b':
			w.WriteString(`\b`)
		case r == '\f':
			w.WriteString(`\f`)
		case ' ' <= r && r <= '~' || r > 0xffff && w.yaml:
			w.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(w, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(w, `\u%04x`, r)
		}
	}
	w.WriteByte('"')
}
