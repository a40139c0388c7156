package sglargs

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
)

// Kind is the type of an argument's value.
type Kind string

// The kinds, and the Go types that hold their values. With nargs + or * the value is a []any of such.
const (
	Bool         Kind = "bool"          // bool
	Int          Kind = "int"           // int
	HumanInt     Kind = "human_int"     // int; also written with k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (of 1024)
	Float        Kind = "float"         // float64
	String       Kind = "str"           // string
	NullableStr  Kind = "nullable_str"  // string, or nil for "" and "None"
	JSON         Kind = "json"          // any JSON value; numbers are int or float64
	JSONList     Kind = "json_list"     // as JSON; SGLang means a list but takes anything
	GraphBackend Kind = "graph_backend" // string
	GraphConfig  Kind = "graph_config"  // map[string]any: phase to a map[string]any of settings
)

// Action is what an argument does when it is given.
type Action string

// The actions.
const (
	Store           Action = "store"            // takes a value, or several as NArgs says
	StoreTrue       Action = "store_true"       // takes none, sets true
	StoreConst      Action = "store_const"      // sets Const
	BooleanOptional Action = "boolean_optional" // --x sets true, --no-x false
	LoRAPaths       Action = "lora_paths"       // stores a list of paths and of JSON objects
	None            Action = "none"             // a deprecated flag that has no effect or ends the server
	Help            Action = "help"
)

// Arg is one argument of one version of SGLang.
type Arg struct {
	Flags      []string `json:"flags"` // all spellings, the main one first
	Field      string   `json:"field"` // what it sets: the name in ServerArgs; several arguments may set the same
	Action     Action   `json:"action"`
	Kind       Kind     `json:"kind"`
	NArgs      string   `json:"nargs"`    // "", "?", "*" or "+", as in argparse
	NoValue    bool     `json:"no_value"` // StoreConst only: takes no value
	Const      any      `json:"const"`    // set by StoreConst, or by a "?" without a value
	Default    any      `json:"default"`  // nil: none, or chosen at start-up
	Choices    []any    `json:"-"`        // nil: any value
	Required   bool     `json:"required"`
	Hidden     bool     `json:"hidden"`     // left out of the usage text
	Deprecated bool     `json:"deprecated"` // SGLang says so
	NewFlag    string   `json:"new_flag"`   // what replaces a deprecated one, in SGLang's words; "" if nothing does
	Warns      bool     `json:"warns"`      // a warning is logged when it is given
	Fatal      string   `json:"error"`      // if not empty, giving it ends the server with these words

	Keys map[string][]string `json:"keys"` // GraphConfig only: the settings of each phase
}

// Flag returns the main spelling, such as "--max-running-requests".
func (a *Arg) Flag() string { return a.Flags[0] }

// takesNone reports whether the argument takes no value.
func (a *Arg) takesNone() bool {
	switch a.Action {
	case Store, LoRAPaths:
		return false
	case StoreConst:
		return a.NoValue
	}
	return true
}

// name is argparse's name of the argument in messages.
func (a *Arg) name() string { return strings.Join(a.Flags, "/") }

// Table holds the arguments of one version of SGLang. It is immutable and safe for concurrent use.
type Table struct {
	version  string
	args     []*Arg
	flags    []string // every spelling, in the parser's order
	byFlag   map[string]*Arg
	byField  map[string]*Arg // the argument to use for a field
	defaults map[string]any
}

//go:embed args.json
var stored []byte

var tables = sync.OnceValue(func() []*Table {
	var file struct {
		Versions []struct {
			Version string `json:"version"`
			Args    []int  `json:"args"`
		} `json:"versions"`
		Choices [][]any `json:"choices"`
		Args    []struct {
			Arg
			Choices *int `json:"choices"`
		} `json:"args"`
	}
	d := json.NewDecoder(bytes.NewReader(stored))
	d.UseNumber()
	if err := d.Decode(&file); err != nil {
		panic(fmt.Errorf("sglargs: args.json: %w", err))
	}
	for i := range file.Args {
		a := &file.Args[i]
		a.Default, a.Const = plain(a.Default), plain(a.Const)
		if a.Kind == Float { // 1 and 1.0 are the same in JSON
			if n, ok := a.Default.(int); ok {
				a.Default = float64(n)
			}
		}
		if a.Choices != nil {
			a.Arg.Choices = plain(file.Choices[*a.Choices]).([]any)
		}
	}
	out := make([]*Table, len(file.Versions))
	for i, v := range file.Versions {
		t := &Table{version: v.Version, byFlag: map[string]*Arg{}, byField: map[string]*Arg{}, defaults: map[string]any{}}
		for _, j := range v.Args {
			t.add(&file.Args[j].Arg)
		}
		out[i] = t
	}
	return out
})

func (t *Table) add(a *Arg) {
	t.args = append(t.args, a)
	t.flags = append(t.flags, a.Flags...)
	for _, f := range a.Flags {
		t.byFlag[f] = a
	}
	if a.Action == Help {
		return
	}
	if _, ok := t.defaults[a.Field]; !ok { // argparse: the first one decides
		value := a.Default
		if text, ok := value.(string); ok {
			converted, err := t.convert(a, text)
			if err != nil {
				panic(fmt.Errorf("sglargs: default of %s: %w", a.Flag(), err))
			}
			value = converted
		}
		t.defaults[a.Field] = value
	}
	if old := t.byField[a.Field]; old == nil || old.Deprecated && !a.Deprecated {
		t.byField[a.Field] = a
	}
}

// plain makes ints and float64s of the json.Numbers in a decoded JSON value.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return int(n)
		}
		f, err := v.Float64()
		if err != nil { // beyond the range of a float64
			f = math.Inf(1)
			if strings.HasPrefix(v.String(), "-") {
				f = math.Inf(-1)
			}
		}
		return f
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	}
	return v
}

// Tables returns the tables of all known versions, oldest first.
func Tables() []*Table { return slices.Clone(tables()) }

// Versions returns the versions whose arguments are known exactly, oldest first.
func Versions() []string {
	out := make([]string, len(tables()))
	for i, t := range tables() {
		out[i] = t.version
	}
	return out
}

// For returns the table of a version of SGLang: of the newest known version that is not newer. A version older than all
// known ones gets the oldest table; Support says for which the answer is a guess. An error means that version is not a
// version or that the SDK does not work with it.
func For(version string) (*Table, error) {
	if _, err := Support(version); err != nil {
		return nil, err
	}
	v := mustVersion(version)
	best := tables()[0]
	for _, t := range tables() {
		if mustVersion(t.version).Compare(v) <= 0 {
			best = t
		}
	}
	return best, nil
}

// Latest returns the table of the newest known version.
func Latest() *Table { return tables()[len(tables())-1] }

// Version returns the version of SGLang that the table was taken from.
func (t *Table) Version() string { return t.version }

// Args returns all arguments in the parser's order. The caller must not change them.
func (t *Table) Args() []*Arg { return slices.Clone(t.args) }

// Lookup finds an argument by its flag, of any spelling ("--tp"), or by its field ("tp_size"). A field that several
// arguments set has the one that is not deprecated. A spelling without dashes in front and with dashes or underscores
// inside is found too, so that every JSON or YAML key that SGLang takes is.
func (t *Table) Lookup(name string) (*Arg, bool) {
	if a, ok := t.byFlag[name]; ok {
		return a, true
	}
	if a, ok := t.byField[name]; ok {
		return a, true
	}
	a, ok := t.byFlag["--"+strings.ReplaceAll(name, "_", "-")]
	return a, ok
}

// Default returns the value of a field that no argument sets.
func (t *Table) Default(field string) any { return t.defaults[field] }
