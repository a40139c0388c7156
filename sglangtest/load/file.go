package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/textfile"
)

// A DatasetError says where a dataset is at fault.
type DatasetError struct {
	Dataset string // its name: the path, if it is a file
	Line    int    // counted from 1; 0 if it is no line's fault
	Err     error
}

func (e *DatasetError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("load: %s: %v", e.Dataset, e.Err)
	}
	return fmt.Sprintf("load: %s:%d: %v", e.Dataset, e.Line, e.Err)
}

func (e *DatasetError) Unwrap() error { return e.Err }

// A FileOption changes how a dataset reads its file. One that the file's format has no use for is reported by
// [NewRequestGenerator].
type FileOption func(*fileOptions)

type fileOptions struct {
	given   []string
	skipOdd bool
	unit    TimeUnit
	block   int
}

// SkipOddRows leaves rows out that cannot be a request: broken ones, ones with a value that is missing, null or out of range,
// failed calls with zero tokens. They are counted by reason in [Plan.LeftOut] and in the summary. A file without a single usable
// row is an error all the same, and so are rows out of order. Default: the first such row is an error.
func SkipOddRows() FileOption {
	return func(o *fileOptions) { o.skipOdd = true; o.given = append(o.given, "SkipOddRows") }
}

// WithTimeUnit says in what the file's times are. Without it the format's own unit holds, which each dataset names; times that
// look as if they were in another one are then an error that gives both readings.
func WithTimeUnit(u TimeUnit) FileOption {
	return func(o *fileOptions) { o.unit = u; o.given = append(o.given, "WithTimeUnit") }
}

// WithBlockSize sets the number of tokens that one hash id of a [Mooncake] trace stands for, ≥ 1. Other tools write such traces
// with blocks of 16 or 64. Default: [MooncakeBlock].
func WithBlockSize(tokens int) FileOption {
	return func(o *fileOptions) { o.block = tokens; o.given = append(o.given, "WithBlockSize") }
}

// A TimeUnit is the unit of a file's times.
type TimeUnit string

// The units.
const (
	Seconds      TimeUnit = "s"
	Milliseconds TimeUnit = "ms"
	Microseconds TimeUnit = "us"
	Nanoseconds  TimeUnit = "ns"
)

// TimeUnits lists the units.
func TimeUnits() []TimeUnit { return []TimeUnit{Seconds, Milliseconds, Microseconds, Nanoseconds} }

func (u TimeUnit) duration() float64 {
	return map[TimeUnit]float64{Seconds: 1e9, Milliseconds: 1e6, Microseconds: 1e3, Nanoseconds: 1}[u]
}

// A fileFormat is a kind of file that a dataset can be read from.
type fileFormat struct {
	name   string   // such as "Mooncake trace"
	unit   TimeUnit // of its times, unless the user says otherwise; "": it has no times as numbers
	blocks bool     // it has hash ids
	parse  func(f *fileDataset, r io.Reader, e *emitter)
}

// A fileDataset is a dataset in a file.
type fileDataset struct {
	path   string
	format *fileFormat
	opts   fileOptions
}

func newFileDataset(path string, format *fileFormat, opts []FileOption) Dataset {
	f := &fileDataset{path: path, format: format}
	for _, opt := range opts {
		opt(&f.opts)
	}
	return f
}

// Name implements [Dataset].
func (f *fileDataset) Name() string { return f.path }

// Validate reports options that the format has no use for, and values out of range.
func (f *fileDataset) Validate() error {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("load: "+f.format.name+": "+format, args...))
	}
	given := func(name string) bool { return slices.Contains(f.opts.given, name) }
	switch {
	case !given("WithTimeUnit"):
	case f.format.unit == "":
		fault("time unit %q: its times need none", f.opts.unit)
	case !slices.Contains(TimeUnits(), f.opts.unit):
		fault("time unit %q: want one of %v", f.opts.unit, TimeUnits())
	}
	switch {
	case !given("WithBlockSize"):
	case !f.format.blocks:
		fault("blocks of %d tokens: it has no hash ids", f.opts.block)
	case f.opts.block < 1 || f.opts.block > maxTokens:
		fault("blocks of %d tokens: want 1 to %d", f.opts.block, maxTokens)
	}
	return errors.Join(faults...)
}

// Rows implements [Dataset].
func (f *fileDataset) Rows(*rand.Rand) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		in, err := textfile.Open(f.path)
		if err != nil {
			var path *os.PathError
			if errors.As(err, &path) {
				err = fmt.Errorf("load: dataset: %w", err)
			} else {
				err = &DatasetError{Dataset: f.path, Err: err}
			}
			yield(Row{}, err)
			return
		}
		defer in.Close() // opened for reading: closing it loses nothing
		f.read(in, yield)
	}
}

// read yields the rows of r.
func (f *fileDataset) read(r io.Reader, yield func(Row, error) bool) {
	e := &emitter{file: f, yield: yield}
	f.format.parse(f, r, e)
	if !e.over && e.rows == 0 && e.first != nil {
		e.fail(0, fmt.Errorf("none of its %d rows can be a request; the first: %w", e.odd, e.first))
	}
}

// unit returns the unit of the times, and whether the user said it.
func (f *fileDataset) unit() (u TimeUnit, said bool) {
	if f.opts.unit != "" {
		return f.opts.unit, true
	}
	return f.format.unit, false
}

// time converts a time of the file to an offset.
func (f *fileDataset) time(key string, v float64) (time.Duration, error) {
	unit, said := f.unit()
	ns := math.Round(v * unit.duration())
	switch {
	case !(ns >= 0 && ns < math.MaxInt64):
		return 0, fmt.Errorf("%s %s: want %s ≥ 0", key, shortNumber(v), unit)
	case !said && unit == Milliseconds && v != math.Trunc(v):
		return 0, fmt.Errorf("%s %s: %v if it is in ms, the unit of this format, but %v if it is in s, which the fraction looks like: "+
			"say which with WithTimeUnit (config key time_unit)", key, shortNumber(v), readAs(v, Milliseconds), readAs(v, Seconds))
	}
	return time.Duration(ns), nil
}

func shortNumber(v float64) string { return fmt.Sprintf("%.15g", v) }

// readAs is v in the given unit, for a message.
func readAs(v float64, u TimeUnit) time.Duration {
	return time.Duration(min(v*u.duration(), math.MaxInt64/2)).Round(time.Microsecond)
}

// Times of a trace that arrive on average at more than densest a second, or at less than sparsest, look as if they were in
// another unit if they would not in it; so does one that begins later than latest, which looks like a time of the calendar.
const (
	densest  = 500.0
	sparsest = 0.01
	latest   = 10 * 365 * 24 * time.Hour
	telling  = 5 // rows, at least
)

// plausible reports an error if n times from first to last look as if they were in another unit than the one that was assumed.
func (f *fileDataset) plausible(n int, first, last time.Duration) error {
	unit, said := f.unit()
	if said || unit == "" || n == 0 {
		return nil
	}
	hint := "say which with WithTimeUnit (config key time_unit)"
	if first > latest {
		return &DatasetError{Dataset: f.path, Err: fmt.Errorf("its first time is %v after the start if times are in %s: it looks like a time of the calendar; write times from the first one on", first, unit)}
	}
	span := last - first
	if n < telling || span <= 0 {
		return nil
	}
	for _, other := range TimeUnits() {
		factor := other.duration() / unit.duration()
		rate := float64(n-1) / span.Seconds()
		otherSpan := readAs(span.Seconds()*1e9*factor, Nanoseconds)
		if looks := rate / factor; (rate > densest && factor > 1 || rate < sparsest && factor < 1) && looks <= densest && looks >= sparsest {
			return &DatasetError{Dataset: f.path, Err: fmt.Errorf("its %d times span %v (%.4g/s) if they are in %s, the unit of this format, but %v (%.4g/s) if they are in %s: %s",
				n, span, rate, unit, otherSpan, looks, other, hint)}
		}
	}
	return nil
}

// An emitter hands out what a parser finds.
type emitter struct {
	file  *fileDataset
	yield func(Row, error) bool
	over  bool // no more is wanted, or there was an error
	rows  int
	odd   int
	first error // the first odd row's
}

// row hands out a row and reports whether more are wanted.
func (e *emitter) row(r Row) bool {
	e.rows++
	e.over = !e.yield(r, nil)
	return !e.over
}

// leave leaves a row out by the format's own rule.
func (e *emitter) leave(line int, reason string) bool {
	if e.odd++; e.first == nil {
		e.first = fmt.Errorf("line %d: %s", line, reason)
	}
	e.over = !e.yield(Row{LeftOut: reason, Line: line}, nil)
	return !e.over
}

// fault ends the rows with an error, or leaves the row out if the user wants that. reason is the same for all rows with the
// same kind of fault.
func (e *emitter) fault(line int, reason string, err error) bool {
	if e.file.opts.skipOdd {
		if e.first == nil {
			e.first = fmt.Errorf("line %d: %w", line, err)
		}
		e.odd++
		e.over = !e.yield(Row{LeftOut: reason, Line: line}, nil)
		return !e.over
	}
	e.fail(line, fmt.Errorf("%w (SkipOddRows, config key odd_rows: \"skip\", leaves such rows out)", err))
	return false
}

// fail ends the rows with an error that is no single row's, or of the file as a whole.
func (e *emitter) fail(line int, err error) {
	e.over = true
	e.yield(Row{}, &DatasetError{Dataset: e.file.path, Line: line, Err: err})
}

// maxLine is the longest line of a file, in bytes.
const maxLine = 1 << 30

// lines calls row for each line of r that is not blank, until it returns false.
func (e *emitter) lines(r io.Reader, row func(line int, text []byte) bool) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	line := 1
	for ; in.Scan(); line++ {
		if text := bytes.TrimSpace(in.Bytes()); len(text) > 0 && !row(line, text) {
			return
		}
	}
	if err := in.Err(); err != nil {
		e.fail(line, err)
	}
}

// The kinds of faults of a row.
const (
	oddBroken  = "not a row of this format"
	oddMissing = "a value is missing or null"
	oddValue   = "a value of another kind or out of range"
	oddNoInput = "no input tokens"
	oddNoReply = "no output tokens (a failed call)"
)

// A rowFault collects what is wrong with one row.
type rowFault struct {
	reason string // of the first
	errs   []error
}

func (f *rowFault) add(reason, format string, args ...any) {
	if f.reason == "" {
		f.reason = reason
	}
	f.errs = append(f.errs, fmt.Errorf(format, args...))
}

func (f *rowFault) err() error { return oneLine(f.errs...) }

// tokens checks a number of tokens; missing is all right where it says so.
func (f *rowFault) tokens(name string, v *int, optional bool, none string) int {
	switch {
	case v == nil && optional:
		return 0
	case v == nil:
		f.add(oddMissing, "no %s", name)
	case *v == 0:
		f.add(none, "%s 0: want 1 to %d tokens", name, maxTokens)
	case *v < 0 || *v > maxTokens:
		f.add(oddValue, "%s %d: want 1 to %d tokens", name, *v, maxTokens)
	default:
		return *v
	}
	return 0
}

// kindOf says what a Go type is in JSON.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		return "a whole number ≥ 0"
	case reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}

// jsonFault says in words what is wrong with JSON.
func jsonFault(err error) error {
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &wrong) && wrong.Field != "":
		return fmt.Errorf("key %q: want %s, not a JSON %s", wrong.Field, kindOf(wrong.Type), wrong.Value)
	case errors.As(err, &wrong):
		return fmt.Errorf("want %s, not a JSON %s", kindOf(wrong.Type), wrong.Value)
	case errors.As(err, &syntax):
		return fmt.Errorf("not JSON: %w", err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the file ends before the array does")
	}
	return err
}

// known are keys and columns by which the format of a file is recognised that was given as another.
var known = []struct {
	dataset string // its name in a config
	names   []string
}{
	{"mooncake", []string{"hash_ids"}},
	{"mooncake", []string{"input_length", "output_length"}},
	{"sharegpt", []string{"conversations"}},
	{"sharegpt", []string{"conversation"}},
	{"azure", []string{"ContextTokens", "GeneratedTokens"}},
	{"burstgpt", []string{"Request tokens", "Response tokens"}},
	{"jsonl", []string{"input_len"}},
	{"jsonl", []string{"input_ids"}},
}

// meant says which dataset a file with these keys or columns looks like, if that is another one than name.
func meant(name string, keys []string) string {
	for _, k := range known {
		if !slices.ContainsFunc(k.names, func(n string) bool { return !slices.Contains(keys, n) }) {
			if k.dataset == name {
				return ""
			}
			return fmt.Sprintf("; with %s it looks like dataset %q", strings.Join(k.names, " and "), k.dataset)
		}
	}
	return ""
}

// objectKeys returns the keys of a JSON object; none if it is something else.
func objectKeys(text []byte) []string {
	var members map[string]json.RawMessage
	if json.Unmarshal(text, &members) != nil {
		return nil
	}
	keys := make([]string, 0, len(members))
	for key := range members {
		keys = append(keys, key)
	}
	return keys
}

// nearColumn is the column that name may stand for in another spelling; "" if none is near.
func nearColumn(name string, header []string) string {
	plain := func(s string) string {
		return strings.NewReplacer(" ", "", "_", "", "-", "").Replace(strings.ToLower(s))
	}
	for _, h := range header {
		if plain(h) == plain(name) {
			return h
		}
	}
	// Nearness of letters alone misleads: "Total tokens" is no misspelt ContextTokens.
	for _, h := range header {
		if distanceOne(plain(h), plain(name)) {
			return h
		}
	}
	return ""
}

// distanceOne reports whether a and b differ by one letter at most: changed, added or left out.
func distanceOne(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) == len(b) {
		return i == len(a) || a[i+1:] == b[i+1:]
	}
	return a[i:] == b[i+1:]
}
