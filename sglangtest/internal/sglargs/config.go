package sglargs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// json is Python's json.dumps.
func (d dict) json() string {
	var b bytes.Buffer
	writeJSON(&b, d)
	return b.String()
}

func writeJSON(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strings.ToLower(pyStr(v)))
	case string:
		writeJSONString(b, v)
	case []any:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			writeJSON(b, item)
		}
		b.WriteByte(']')
	case dict:
		b.WriteByte('{')
		for i, item := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			key, ok := item.key.(string)
			if !ok { // null, true, 1: Python makes strings of them
				var text bytes.Buffer
				writeJSON(&text, item.key)
				key = text.String()
			}
			writeJSONString(b, key)
			b.WriteString(": ")
			writeJSON(b, item.value)
		}
		b.WriteByte('}')
	default:
		b.WriteString(pyStr(v))
	}
}

func writeJSONString(b *bytes.Buffer, s string) {
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case ' ' <= r && r <= '~':
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
}
