package server

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

// CommandLine returns the arguments for `python -m sglang.launch_server` of a version of SGLang, or of the newest known
// version that takes the config if version is "". ModelPath is required. A Port of 0 is left out, which SGLang takes
// for 30000. GPUs is not an argument: it belongs into CUDA_VISIBLE_DEVICES. A config that [Config.ValidateFor] refuses
// is an error.
func (c Config) CommandLine(version string) ([]string, error) {
	table, err := c.table(version)
	if err != nil {
		return nil, err
	}
	var argv []string
	err = c.each(table, func(a *sglargs.Arg, v any) error {
		part, err := table.Render(a, v)
		argv = append(argv, part...)
		return err
	})
	return argv, err
}

// ParseCommandLine reads the arguments of `python -m sglang.launch_server` as a version of SGLang does, with the file
// that --config names; if version is "", as the newest known version that takes them. An abbreviated or deprecated flag
// sets what it stands for. An error has SGLang's own words.
func ParseCommandLine(version string, argv []string) (Config, error) {
	tables, err := tablesFor(version)
	if err != nil {
		return Config{}, err
	}
	var refused error
	for _, table := range slices.Backward(tables) {
		parsed, err := table.Parse(argv)
		if err != nil {
			refused = errors.Join(err, refused) // the newest is first
			continue
		}
		return fromParsed(table, parsed)
	}
	if joined, ok := refused.(interface{ Unwrap() []error }); ok {
		refused = joined.Unwrap()[0]
	}
	return Config{}, fmt.Errorf("server: command line: %w", refused)
}

// YAML returns the config as a file for --config of a version of SGLang, or of the newest known version that takes it if
// version is "". What SGLang cannot take from a file is an error: --x/--no-x pairs, LoRA paths, and texts that begin
// with "-". GPUs is not an argument and is left out.
func (c Config) YAML(version string) ([]byte, error) {
	table, err := c.table(version)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	err = c.each(table, func(a *sglargs.Arg, v any) error {
		if v == false && a.Action == sglargs.StoreTrue {
			return nil
		}
		if list, ok := v.([]any); ok && len(list) == 0 && a.NArgs != "" {
			return fmt.Errorf("%s: an empty list is no setting in a file", a.Field)
		}
		fmt.Fprintf(&b, "%s: %s\n", strings.TrimPrefix(a.Flag(), "--"), sglargs.Flow(v))
		return nil
	})
	if err != nil {
		return nil, err
	}
	text := []byte(b.String())
	// SGLang's own reader knows best what it takes.
	back, err := parseYAML(table, text)
	if err != nil {
		return nil, fmt.Errorf("server: a file for --config cannot say this: %w", err)
	}
	back.GPUs = c.GPUs
	if want := c.normal(table); !reflect.DeepEqual(back, want) {
		return nil, errors.New("server: a file for --config cannot say this: SGLang reads other values from it")
	}
	return text, nil
}

// ParseYAML reads a file for --config as a version of SGLang does; if version is "", as the newest known version that
// takes it.
func ParseYAML(version string, data []byte) (Config, error) {
	tables, err := tablesFor(version)
	if err != nil {
		return Config{}, err
	}
	var first error
	for _, table := range slices.Backward(tables) {
		c, err := parseYAML(table, data)
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return Config{}, first
}

func parseYAML(table *sglargs.Table, data []byte) (Config, error) {
	argv, err := table.ConfigArgs(data)
	if err != nil {
		return Config{}, fmt.Errorf("server: YAML: %w", err)
	}
	parsed, err := table.Parse(argv)
	if err != nil {
		return Config{}, fmt.Errorf("server: YAML: %w", err)
	}
	return fromParsed(table, parsed)
}

// table returns the arguments of the newest version that takes c.
func (c Config) table(version string) (*sglargs.Table, error) {
	tables, err := tablesFor(version)
	if err != nil {
		return nil, err
	}
	table, err := c.check(tables)
	if c.ModelPath == "" {
		err = errors.Join(errors.New("model_path: want a path or a name on the hub"), err)
	}
	if err != nil {
		return nil, fmt.Errorf("server: config:\n%w", err)
	}
	return table, nil
}

// each calls f for every argument that is set, those with a field first, in the order of the fields.
func (c Config) each(table *sglargs.Table, f func(a *sglargs.Arg, v any) error) error {
	settings := c.Settings()
	names := slices.SortedFunc(maps.Keys(settings), func(a, b string) int {
		i, aTyped := typed[a]
		j, bTyped := typed[b]
		switch {
		case aTyped && bTyped:
			return i - j
		case aTyped:
			return -1
		case bTyped:
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, name := range names {
		a, err := table.Find(name)
		if err != nil {
			return err
		}
		v, err := table.Normal(a, settings[name])
		if err != nil {
			return err
		}
		if err := f(a, v); err != nil {
			return fmt.Errorf("server: %s: %w", name, err)
		}
	}
	return nil
}

// normal returns c as it is after a round trip: with the Go types of the parser, and without flags that are off.
func (c Config) normal(table *sglargs.Table) Config {
	out := c
	out.Args = nil
	for name, v := range c.Args {
		a, err := table.Find(name)
		if err != nil {
			continue // checked before
		}
		if v, err = table.Normal(a, v); err != nil || v == false && a.Action == sglargs.StoreTrue {
			continue
		}
		if out.Args == nil {
			out.Args = Args{}
		}
		out.Args[name] = v
	}
	return out
}

// fromParsed makes a config of what a command line sets.
func fromParsed(table *sglargs.Table, parsed *sglargs.Parsed) (Config, error) {
	var c Config
	var faults []error
	fields := reflect.ValueOf(&c).Elem()
	for _, name := range slices.Sorted(maps.Keys(parsed.Given)) {
		v := parsed.Given[name]
		if name == "config" {
			faults = append(faults, errors.New("config: SGLang reads the file only if it is written --config FILE, as two arguments"))
			continue
		}
		isDefault := reflect.DeepEqual(v, table.Default(name))
		i, ok := typed[name]
		switch {
		case v == nil && isDefault: // as if it were not given
		case v != nil && !ok:
			if c.Args == nil {
				c.Args = Args{}
			}
			c.Args[name] = v
		case v == nil || !setField(fields.Field(i), v) && !isDefault:
			faults = append(faults, fmt.Errorf("%s: %v cannot be asked for in a Config, where it stands for \"not set\"", name, v))
		}
	}
	if _, err := c.check([]*sglargs.Table{table}); err != nil {
		faults = append(faults, err)
	}
	if len(faults) > 0 {
		return Config{}, fmt.Errorf("server: config:\n%w", errors.Join(faults...))
	}
	return c, nil
}

// setField sets a field of a Config to a value of the parser. It returns false for a value that the field takes for
// "not set".
func setField(f reflect.Value, v any) bool {
	switch f.Kind() {
	case reflect.Pointer:
		n := v.(int)
		f.Set(reflect.ValueOf(&n))
		return true
	case reflect.Slice:
		for _, item := range v.([]any) {
			f.Set(reflect.Append(f, reflect.ValueOf(item)))
		}
	default:
		f.Set(reflect.ValueOf(v))
	}
	return !f.IsZero()
}
