package sglargs

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/nearest"
)

// Find returns the argument that sets a field, to be given by the field's name. The error says why there is none: the
// nearest name of a misspelt one, from or up to which version SGLang has it, or what replaces a deprecated one.
func (t *Table) Find(field string) (*Arg, error) {
	a, ok := t.byField[field]
	if ok && a.Action != None {
		return a, nil
	}
	if !ok {
		a, ok = t.Lookup(field)
	}
	switch {
	case ok && a.Action == Help:
	case ok && a.Fatal != "":
		return nil, errors.New(strings.TrimSuffix(a.Fatal, "."))
	case ok && a.Action == None:
		return nil, fmt.Errorf("SGLang %s ignores it: leave it out", t.version)
	case ok && a.Deprecated && a.NewFlag != "":
		return nil, fmt.Errorf("deprecated: use %s", a.NewFlag)
	case ok:
		return nil, fmt.Errorf("the name of this argument is %q", a.Field)
	}
	var with []*Table
	for _, other := range tables() {
		if b, known := other.Lookup(field); known && b.Action != Help {
			with, a = append(with, other), b
		}
	}
	if with == nil {
		return nil, fmt.Errorf("SGLang has no such argument; %s", t.hint(field))
	}
	if with[0].newer(t) {
		return nil, fmt.Errorf("SGLang %s does not have it: known from %s on", t.version, with[0].version)
	}
	last := fmt.Sprintf("SGLang %s does not have it: last known in %s", t.version, with[len(with)-1].version)
	if a.NewFlag != "" {
		last += "; use " + a.NewFlag
	}
	return nil, errors.New(last)
}

func (t *Table) newer(than *Table) bool {
	return mustVersion(t.version).Compare(mustVersion(than.version)) > 0
}

// hint names the field of any version that a misspelt name is nearest to.
func (t *Table) hint(name string) string {
	var fields []string
	for _, other := range slices.Backward(tables()) {
		for _, a := range other.args {
			if a.Action != Help {
				fields = append(fields, a.Field)
			}
		}
	}
	if n := nearest.Name(name, fields); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	return "python -m sglang.launch_server --help lists them"
}

// Normal returns v as the Go type of a's kind, as Parse would: any integer type for an int, numbers that JSON made
// floats of, any slice for a list. The error says what is wanted.
func (t *Table) Normal(a *Arg, v any) (any, error) {
	if v == nil {
		return nil, errors.New("want a value: leave the argument out for SGLang's default")
	}
	if a.Action == LoRAPaths || a.NArgs == "*" || a.NArgs == "+" {
		return t.normalList(a, v)
	}
	return t.normalOne(a, v)
}

func (t *Table) normalList(a *Arg, v any) (any, error) {
	list := reflect.ValueOf(v)
	if list.Kind() != reflect.Slice {
		return nil, fmt.Errorf("%s; want a list", show(v))
	}
	if list.Len() == 0 && a.NArgs == "+" {
		return nil, errors.New("want at least one value in the list")
	}
	out := make([]any, list.Len())
	for i := range out {
		item := list.Index(i).Interface()
		if object, ok := item.(map[string]any); ok && a.Action == LoRAPaths {
			text, err := json.Marshal(object)
			if err == nil {
				_, err = loraPaths([]string{string(text)})
			}
			if err != nil {
				return nil, fmt.Errorf("[%d]: want a path, or an object with lora_name and lora_path", i)
			}
			out[i] = plainCopy(text)
			continue
		}
		one, err := t.normalOne(a, item)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		out[i] = one
	}
	return out, nil
}

func (t *Table) normalOne(a *Arg, v any) (any, error) {
	r := reflect.ValueOf(v)
	var out any
	switch a.Kind {
	case Bool:
		if r.Kind() != reflect.Bool {
			return nil, fmt.Errorf("%s; want true or false", show(v))
		}
		return r.Bool(), nil
	case Int, HumanInt:
		n, ok := wholeNumber(r)
		if text, isText := v.(string); isText && a.Kind == HumanInt {
			n, err := humanInt(text)
			return n, err
		}
		if !ok {
			return nil, fmt.Errorf("%s; want a whole number", show(v))
		}
		out = n
	case Float:
		switch {
		case r.CanInt():
			out = float64(r.Int())
		case r.CanUint():
			out = float64(r.Uint())
		case r.CanFloat() && !math.IsNaN(r.Float()) && !math.IsInf(r.Float(), 0):
			out = r.Float()
		default:
			return nil, fmt.Errorf("%s; want a number", show(v))
		}
	case JSON, JSONList, GraphConfig:
		kind := r.Kind()
		if kind != reflect.Map && (kind != reflect.Slice || a.Kind == GraphConfig) {
			return nil, fmt.Errorf("%s; want a JSON object or list, not its text", show(v))
		}
		text, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("want what JSON can hold: %w", err)
		}
		return t.convert(a, string(text))
	default:
		if r.Kind() != reflect.String {
			return nil, fmt.Errorf("%s; want a string", show(v))
		}
		out = r.String()
		if a.Kind == NullableStr && (out == "" || out == "None") {
			return nil, errors.New("want a value: leave the argument out for SGLang's default")
		}
		if a.Kind == GraphBackend {
			if err := retiredBackend(out); err != nil {
				return nil, err
			}
		}
		if a.Action == StoreConst {
			return nil, fmt.Errorf("deprecated: use %s", a.NewFlag)
		}
	}
	if a.Choices != nil && !slices.Contains(a.Choices, out) {
		hint := "valid are " + pyList(a.Choices)
		if text, ok := out.(string); ok {
			names := make([]string, len(a.Choices))
			for i, c := range a.Choices {
				names[i] = pyStr(c)
			}
			hint = nearest.Hint(text, names)
		}
		return nil, fmt.Errorf("%s is not one that SGLang %s takes; %s", show(out), t.version, hint)
	}
	return out, nil
}

// FromJSON gives the json.Numbers in v, the value of a field, their Go types: a float64 if the argument is a float, else an
// int where it can be one.
func FromJSON(field string, v any) any {
	v = plain(v)
	for _, t := range slices.Backward(tables()) {
		if a := t.byField[field]; a == nil || a.Kind != Float {
			continue
		}
		switch n := v.(type) {
		case int:
			return float64(n)
		case []any:
			for i := range n {
				if whole, ok := n[i].(int); ok {
					n[i] = float64(whole)
				}
			}
		}
		break
	}
	return v
}

// wholeNumber reads an int of any type, or a float without a fraction, as JSON decodes numbers.
func wholeNumber(r reflect.Value) (int, bool) {
	switch {
	case r.CanInt():
		return int(r.Int()), true
	case r.CanUint():
		return int(r.Uint()), r.Uint() <= math.MaxInt64
	case r.CanFloat():
		f := r.Float()
		return int(f), f == math.Trunc(f) && math.Abs(f) < 1<<53
	}
	return 0, false
}

func plainCopy(text []byte) any {
	v, err := loads(string(text))
	if err != nil {
		panic(err) // json.Marshal made it
	}
	return v
}

// show is v as a user wrote it.
func show(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

// Render returns the arguments of a command line that give a the value v, a normal one. False for a plain flag gives
// none. What Parse makes of them is v.
func (t *Table) Render(a *Arg, v any) ([]string, error) {
	flag := a.Flag()
	switch a.Action {
	case StoreTrue:
		if v == true {
			return []string{flag}, nil
		}
		return nil, nil
	case BooleanOptional:
		if v == true {
			return []string{flag}, nil
		}
		for _, f := range a.Flags {
			if strings.HasPrefix(f, "--no-") {
				return []string{f}, nil
			}
		}
	}
	if list, ok := v.([]any); ok && (a.Action == LoRAPaths || a.NArgs != "") {
		texts := make([]string, len(list))
		for i, item := range list {
			texts[i] = text(item)
			if !t.isValue(texts[i]) && len(list) > 1 {
				return nil, fmt.Errorf("[%d]: %q in a list cannot be written on a command line, since it looks like a flag", i, texts[i])
			}
		}
		if len(texts) == 1 && !t.isValue(texts[0]) {
			return []string{flag + "=" + texts[0]}, nil
		}
		return append([]string{flag}, texts...), nil
	}
	s := text(v)
	if a.Kind == JSON || a.Kind == JSONList || a.Kind == GraphConfig {
		s = show(v)
	}
	if !t.isValue(s) {
		return []string{flag + "=" + s}, nil
	}
	return []string{flag, s}, nil
}

// isValue reports whether the parser takes an argument for a value and not for a flag.
func (t *Table) isValue(s string) bool {
	_, isFlag, err := t.option(s)
	return !isFlag && err == nil && s != "--"
}

func text(v any) string {
	if m, ok := v.(map[string]any); ok {
		return show(m)
	}
	return pyStr(v)
}
