package sglargs

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// argumentTypeError is an error of a converter whose words argparse shows as they are.
type argumentTypeError string

func (e argumentTypeError) Error() string { return string(e) }

// convert is argparse's _get_value: what the type function of an argument makes of one string.
func (t *Table) convert(a *Arg, s string) (any, error) {
	var v any
	var ok bool
	switch a.Kind {
	case Int:
		v, ok = pyInt(s)
		return v, invalidUnless(ok, "int", s)
	case Float:
		v, ok = pyFloat(s)
		return v, invalidUnless(ok, "float", s)
	case HumanInt:
		return humanInt(s)
	case JSON:
		v, err := loads(s)
		return v, invalidUnless(err == nil, "loads", s)
	case JSONList:
		v, err := loads(s)
		if err != nil {
			return nil, argumentTypeError(fmt.Sprintf("Invalid JSON list: %s. Please provide a valid JSON list.", s))
		}
		return v, nil
	case NullableStr:
		if s == "" || s == "None" {
			return nil, nil
		}
	case GraphBackend:
		return s, retiredBackend(s)
	case GraphConfig:
		return t.graphConfig(a, s)
	}
	return s, nil
}

func invalidUnless(ok bool, kind, s string) error {
	if ok {
		return nil
	}
	return argumentTypeError(fmt.Sprintf("invalid %s value: %s", kind, pyRepr(s)))
}

// pyNumber is what Python's int and float take around and inside the digits: spaces, and single underscores. (They
// take the digits of other scripts too; these are refused here.)
func pyNumber(s string) (string, bool) {
	s = strings.TrimFunc(s, unicode.IsSpace)
	for i := range s {
		if s[i] == '_' && (i == 0 || i == len(s)-1 || !isDigit(s[i-1]) || !isDigit(s[i+1])) {
			return "", false
		}
	}
	return strings.ReplaceAll(s, "_", ""), s != ""
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func pyInt(s string) (int, bool) {
	s, ok := pyNumber(s)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s) // a number beyond 64 bits is refused, which Python would take
	return n, err == nil
}

var floatForm = regexp.MustCompile(`^[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|(?i:inf|infinity|nan))$`)

func pyFloat(s string) (float64, bool) {
	s, ok := pyNumber(s)
	if !ok || !floatForm.MatchString(s) {
		return 0, false
	}
	if strings.HasSuffix(strings.ToLower(s), "nan") {
		return math.NaN(), true // ParseFloat takes no sign before it
	}
	f, _ := strconv.ParseFloat(s, 64) // out of range is an infinity, in Python too
	return f, true
}

var humanForm = regexp.MustCompile(`^(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)$`)

// humanInt is human_readable_int in sglang/srt/utils/common.py, 0.5.15 to 0.5.23.
func humanInt(s string) (any, error) {
	s = strings.TrimFunc(s, unicode.IsSpace)
	if m := humanForm.FindStringSubmatch(s); m != nil {
		number, suffix := m[1], m[2]
		power := int64(1 + strings.IndexByte("kMGT", strings.ToLower(suffix)[0]))
		if suffix[0] != 'k' {
			power = int64(1 + strings.IndexByte("KMGT", suffix[0]))
		}
		base := int64(1000)
		if strings.HasSuffix(suffix, "i") {
			base = 1024
			if whole, _, found := strings.Cut(number, "."); found {
				n, _ := new(big.Int).SetString(whole, 10)
				return nil, argumentTypeError(fmt.Sprintf("Decimals are not allowed with IEC suffixes like '%s'. "+
					"Use an integer IEC value such as '%s%s', or an SI value such as '%s%s'.", suffix, n, suffix, number, suffix[:1]))
			}
		}
		r, _ := new(big.Rat).SetString(number)
		r.Mul(r, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(base), big.NewInt(power), nil)))
		whole := new(big.Int).Quo(r.Num(), r.Denom())
		if whole.IsInt64() {
			return int(whole.Int64()), nil
		}
	}
	n, ok := pyInt(s)
	if !ok {
		return nil, argumentTypeError(fmt.Sprintf("Invalid integer value: '%s'. Use a plain integer, SI suffixes (1k, 1M), "+
			"or IEC suffixes (1Ki, 1Mi). Suffixes are case-sensitive.", s))
	}
	return n, nil
}

// loads is Python's json.loads, but for NaN and Infinity, which JSON does not have.
func loads(s string) (any, error) {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if strings.TrimLeft(s[d.InputOffset():], " \t\r\n") != "" {
		return nil, fmt.Errorf("sglargs: text after the JSON value")
	}
	return plain(v), nil
}

// retiredBackend is parse_cuda_graph_backend_arg in sglang/srt/model_executor/cuda_graph_config.py, 0.5.23.
func retiredBackend(s any) error {
	if s == "tc_piecewise" {
		return argumentTypeError("tc_piecewise was removed; select breakable, full, or disabled")
	}
	return nil
}

// graphConfig is parse_cuda_graph_config_arg in the same file.
func (t *Table) graphConfig(a *Arg, s string) (any, error) {
	wrong := func(format string, args ...any) (any, error) {
		return nil, argumentTypeError("--cuda-graph-config" + fmt.Sprintf(format, args...))
	}
	v, err := loads(s)
	if err != nil {
		return wrong(" must be JSON: %v", err) // Go's words for what is wrong with it
	}
	phases, ok := v.(map[string]any)
	if !ok {
		return wrong(" must be a JSON object, got %s", pyType(v))
	}
	backend := t.byFlag["--cuda-graph-backend-decode"]
	for _, phase := range slices.Sorted(maps.Keys(phases)) { // SGLang: in the order of the text
		v := phases[phase]
		allowed, ok := a.Keys[phase]
		if !ok {
			return wrong(": unknown phase '%s', expected one of ('decode', 'prefill')", phase)
		}
		settings, ok := v.(map[string]any)
		if !ok {
			return wrong("['%s'] must be a JSON object, got %s", phase, pyType(v))
		}
		if backend != nil && backend.Kind == GraphBackend {
			if err := retiredBackend(settings["backend"]); err != nil {
				return nil, err
			}
		}
		for _, key := range slices.Sorted(maps.Keys(settings)) {
			if !slices.Contains(allowed, key) {
				return wrong("['%s']: unknown key '%s', expected one of (%s)", phase, key, pyList(allowed))
			}
		}
	}
	return phases, nil
}

func pyType(v any) string {
	switch v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case []any:
		return "list"
	}
	return "dict"
}

func pyList[T any](values []T) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = pyRepr(v)
	}
	return strings.Join(out, ", ")
}

// pyRepr is Python's repr of a value.
func pyRepr(v any) string {
	s, ok := v.(string)
	if !ok {
		return pyStr(v)
	}
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	var b strings.Builder
	b.WriteByte(quote)
	for _, r := range s {
		switch {
		case r == rune(quote) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte(quote)
	return b.String()
}

// pyStr is Python's str of a value.
func pyStr(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case string:
		return v
	case bool:
		if v {
			return "True"
		}
		return "False"
	case float64:
		return pyFloatStr(v)
	case []any:
		return "[" + pyList(v) + "]"
	case dict:
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = pyRepr(item.key) + ": " + pyRepr(item.value)
		}
		return "{" + strings.Join(items, ", ") + "}"
	}
	return fmt.Sprint(v)
}

// pyFloatStr is Python's repr of a float: the shortest that reads back, with a point or an exponent.
func pyFloatStr(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
