package sglargs

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Prog is the program's name in SGLang's usage text and errors, however it was started.
const Prog = "sglang serve"

// ErrHelp is returned by Parse if the command line asks for help. SGLang prints its help and exits with status 0.
var ErrHelp = errors.New("sglargs: help was asked for")

// Error says why SGLang refuses a command line.
type Error struct {
	Flag      string // the argument's main flag; "" if the fault is of no single one
	Message   string // SGLang's words
	Exception string // Python's exception, if one ends the server; "" if the parser refuses the command line
}

// Error returns the last line that SGLang writes to its standard error.
func (e *Error) Error() string {
	if e.Exception != "" {
		return e.Exception + ": " + e.Message
	}
	return Prog + ": error: " + e.Message
}

// ExitStatus returns SGLang's exit status: 2 from the parser, 1 for an exception. The parser also prints its usage
// before the error; an exception prints a traceback.
func (e *Error) ExitStatus() int {
	if e.Exception != "" {
		return 1
	}
	return 2
}

// Parsed holds what a command line sets.
type Parsed struct {
	table *Table
	// Given holds the values that the command line sets, by field. The Go types are those of Kind; nil is Python's None.
	Given map[string]any
	// Warnings holds the warnings that SGLang logs while it parses, one for each deprecated flag.
	Warnings []string
}

// Value returns the value of a field: as given, or else the default.
func (p *Parsed) Value(field string) any {
	if v, ok := p.Given[field]; ok {
		return v
	}
	return p.table.defaults[field]
}

// positionalModel is the first version whose `sglang serve` takes the model's path without a flag.
const positionalModel = "0.5.18"

// ServeArgs returns what `sglang serve` makes of its arguments before it parses them: a first argument that is no flag
// is the model's path, from 0.5.18 on. (sglang/cli/serve.py; its own --model-type is not looked for.)
func (t *Table) ServeArgs(argv []string) []string {
	if len(argv) > 0 && !strings.HasPrefix(argv[0], "-") && mustVersion(t.version).Compare(mustVersion(positionalModel)) >= 0 {
		return append([]string{"--model-path"}, argv...)
	}
	return argv
}

// Parse reads the arguments of `python -m sglang.launch_server` as SGLang does: --flag value, --flag=value, any prefix
// of a flag that fits no other, and --config FILE.yaml, whose settings the rest of the command line overrides. The
// last of several values of an argument counts. The error is an *Error or ErrHelp.
func (t *Table) Parse(argv []string) (*Parsed, error) {
	argv, err := t.mergeConfig(argv)
	if err != nil {
		return nil, err
	}
	p := &parser{table: t, argv: argv, given: map[string]any{}, seen: map[*Arg]bool{}, options: map[int]option{}}
	if err := p.run(); err != nil {
		return nil, err
	}
	out := &Parsed{table: t, Given: p.given, Warnings: p.warnings}
	level, _ := out.Value("log_level").(string)
	if !slices.Contains([]string{"CRITICAL", "FATAL", "ERROR", "WARNING", "WARN", "INFO", "DEBUG", "NOTSET"}, strings.ToUpper(level)) {
		return nil, &Error{Flag: "--log-level", Exception: "AttributeError", Message: fmt.Sprintf("module 'logging' has no attribute %s", pyRepr(strings.ToUpper(level)))}
	}
	return out, nil
}

// option is an argument of the command line that is a flag.
type option struct {
	arg      *Arg // nil: unknown
	flag     string
	value    string // after "="
	hasValue bool
}

// parser is argparse's ArgumentParser._parse_known_args for a parser without positional arguments.
type parser struct {
	table    *Table
	argv     []string
	options  map[int]option
	pattern  []byte // of each argument: O for a flag, A for a value, - for "--"
	extras   []string
	given    map[string]any
	seen     map[*Arg]bool
	warnings []string
}

func (p *parser) run() error {
	if err := p.classify(); err != nil {
		return err
	}
	for i := 0; i < len(p.argv); {
		if _, ok := p.options[i]; !ok {
			p.extras = append(p.extras, p.argv[i])
			i++
			continue
		}
		next, err := p.consume(i)
		if err != nil {
			return err
		}
		i = next
	}
	var missing []string
	for _, a := range p.table.args {
		if a.Required && !p.seen[a] {
			missing = append(missing, a.name())
		}
	}
	if missing != nil {
		return &Error{Message: "the following arguments are required: " + strings.Join(missing, ", ")}
	}
	if p.extras != nil {
		return &Error{Message: "unrecognized arguments: " + strings.Join(p.extras, " ")}
	}
	return nil
}

// classify finds the flags among the arguments. After "--" there are none.
func (p *parser) classify() error {
	for i, s := range p.argv {
		if s == "--" {
			p.pattern = append(p.pattern, '-')
			for range p.argv[i+1:] {
				p.pattern = append(p.pattern, 'A')
			}
			return nil
		}
		o, ok, err := p.table.option(s)
		if err != nil {
			return err
		}
		if !ok {
			p.pattern = append(p.pattern, 'A')
			continue
		}
		p.options[i] = o
		p.pattern = append(p.pattern, 'O')
	}
	return nil
}

var negativeNumber = regexp.MustCompile(`^-\d+$|^-\d*\.\d+$`)

// option is argparse's _parse_optional. It returns false for a value.
func (t *Table) option(s string) (o option, ok bool, err error) {
	if s == "" || s[0] != '-' {
		return option{}, false, nil
	}
	if a, ok := t.byFlag[s]; ok {
		return option{arg: a, flag: s}, true, nil
	}
	if len(s) == 1 {
		return option{}, false, nil
	}
	prefix, value, hasValue := strings.Cut(s, "=")
	if a, ok := t.byFlag[prefix]; ok && hasValue {
		return option{arg: a, flag: prefix, value: value, hasValue: true}, true, nil
	}
	var found []option
	for _, flag := range t.flags {
		switch {
		case s[1] == '-' && strings.HasPrefix(flag, prefix):
			found = append(found, option{arg: t.byFlag[flag], flag: flag, value: value, hasValue: hasValue})
		case s[1] != '-' && flag == s[:2]:
			found = append(found, option{arg: t.byFlag[flag], flag: flag, value: s[2:], hasValue: true})
		case s[1] != '-' && strings.HasPrefix(flag, s):
			found = append(found, option{arg: t.byFlag[flag], flag: flag})
		}
	}
	switch {
	case len(found) > 1:
		names := make([]string, len(found))
		for i, f := range found {
			names[i] = f.flag
		}
		return option{}, false, &Error{Message: fmt.Sprintf("ambiguous option: %s could match %s", s, strings.Join(names, ", "))}
	case len(found) == 1:
		return found[0], true, nil
	case negativeNumber.MatchString(s) || strings.Contains(s, " "):
		return option{}, false, nil
	}
	return option{flag: s}, true, nil
}

// consume is argparse's consume_optional: it takes the flag at i with its values and returns the index after them.
func (p *parser) consume(i int) (int, error) {
	type taken struct {
		option
		values []string
	}
	var all []taken
	o := p.options[i]
	next := i + 1
	for done := false; !done; {
		if o.arg == nil {
			p.extras = append(p.extras, p.argv[i])
			return next, nil
		}
		switch {
		case o.hasValue && !o.arg.takesNone():
			all = append(all, taken{o, []string{o.value}})
			done = true
		case o.hasValue && o.flag[1] != '-' && o.value != "": // more single-letter flags, as in -hh
			all = append(all, taken{option: o})
			following := o
			following.flag = "-" + o.value[:1]
			following.value = o.value[1:]
			following.hasValue = following.value != ""
			arg, ok := p.table.byFlag[following.flag]
			if !ok {
				return 0, o.arg.fault("ignored explicit argument %s", pyRepr(o.value))
			}
			following.arg = arg
			o = following
		case o.hasValue:
			return 0, o.arg.fault("ignored explicit argument %s", pyRepr(o.value))
		default:
			count, err := p.count(o.arg, next)
			if err != nil {
				return 0, err
			}
			all = append(all, taken{o, p.argv[next : next+count]})
			next += count
			done = true
		}
	}
	for _, t := range all {
		if err := p.take(t.arg, t.flag, t.values); err != nil {
			return 0, err
		}
	}
	return next, nil
}

// count is argparse's _match_argument: how many of the arguments from i on are values of a.
func (p *parser) count(a *Arg, i int) (int, error) {
	if a.takesNone() {
		return 0, nil
	}
	n := 0
	for i+n < len(p.pattern) && p.pattern[i+n] == 'A' {
		n++
	}
	switch a.NArgs {
	case "":
		if n == 0 {
			return 0, a.fault("expected one argument")
		}
		return 1, nil
	case "?":
		return min(n, 1), nil
	case "+":
		if n == 0 {
			return 0, a.fault("expected at least one argument")
		}
	}
	return n, nil
}

func (a *Arg) fault(format string, args ...any) *Error {
	return &Error{Flag: a.Flag(), Message: "argument " + a.name() + ": " + fmt.Sprintf(format, args...)}
}

// take converts the values of a flag and does what it asks for.
func (p *parser) take(a *Arg, flag string, texts []string) error {
	p.seen[a] = true
	values := make([]any, len(texts))
	for i, s := range texts {
		v, err := p.table.value(a, s)
		if err != nil {
			return err
		}
		values[i] = v
	}
	if a.Warns && a.Fatal == "" {
		p.warnings = append(p.warnings, a.Warning(flag))
	}
	switch a.Action {
	case Help:
		return ErrHelp
	case StoreTrue:
		p.given[a.Field] = true
	case BooleanOptional:
		p.given[a.Field] = !strings.HasPrefix(flag, "--no-")
	case StoreConst:
		p.given[a.Field] = a.Const
	case LoRAPaths:
		paths, err := loraPaths(texts)
		if err != nil {
			return err
		}
		p.given[a.Field] = paths
	case Store:
		switch {
		case a.NArgs == "*" || a.NArgs == "+":
			p.given[a.Field] = values
		case len(values) == 0: // "?" without a value
			p.given[a.Field] = a.Const
		default:
			p.given[a.Field] = values[0]
		}
	case None:
		if a.Fatal != "" {
			return &Error{Flag: a.Flag(), Message: a.Fatal}
		}
	}
	return nil
}

// value converts one value of a and checks it against the choices.
func (t *Table) value(a *Arg, s string) (any, error) {
	v, err := t.convert(a, s)
	if err != nil {
		return nil, a.fault("%s", err)
	}
	if a.Choices != nil && !slices.Contains(a.Choices, v) {
		return nil, a.fault("invalid choice: %s (choose from %s)", pyRepr(v), pyList(a.Choices))
	}
	return v, nil
}

// Warning returns what SGLang logs when a deprecated argument is given in the spelling flag.
// (sglang/srt/arg_groups/argparse_actions.py, 0.5.15 to 0.5.23; the colour codes around it are left out.)
func (a *Arg) Warning(flag string) string {
	if a.Action == None {
		return fmt.Sprintf("The command line argument '%s' is deprecated and will be removed in future versions.", flag)
	}
	text := fmt.Sprintf("'%s' is deprecated and will be removed in a future release.", flag)
	if a.NewFlag != "" {
		text += fmt.Sprintf(" Use '%s' instead.", a.NewFlag)
	}
	return text
}

// loraPaths is LoRAPathAction in the same file. Its assertions end the server with an exception.
func loraPaths(texts []string) ([]any, error) {
	out := make([]any, len(texts))
	for i, s := range texts {
		s = strings.TrimSpace(s)
		out[i] = s
		if !strings.HasPrefix(s, "{") || !strings.HasSuffix(s, "}") {
			continue
		}
		v, err := loads(s)
		if err != nil {
			return nil, &Error{Flag: "--lora-paths", Exception: "json.decoder.JSONDecodeError", Message: err.Error()}
		}
		object := v.(map[string]any)
		_, path := object["lora_path"]
		_, name := object["lora_name"]
		if !path || !name {
			return nil, &Error{Flag: "--lora-paths", Exception: "AssertionError",
				Message: pyRepr(s) + " looks like a JSON str, but it does not contain 'lora_name' and 'lora_path' keys."}
		}
		out[i] = object
	}
	return out, nil
}
