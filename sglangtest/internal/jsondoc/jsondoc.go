// Package jsondoc reads JSON that people write: it refuses what encoding/json passes over (keys that stand twice, unknown
// keys, keys in another case), and says of each fault at which path it is, and where.
package jsondoc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Doc is an object without faults of syntax.
type Doc struct {
	data    []byte
	members map[string]json.RawMessage
	values  []value // outer ones first
	twice   []string
}

type value struct {
	path       string
	keys       []string // of an object
	at         int      // where its key begins, or the value itself in a list
	start, end int
}

// A Fault is what is wrong at one path, such as sampling_params.stop[2] or schedule["30"].
type Fault struct {
	Path string
	Err  error
}

func (f Fault) Error() string { return f.Path + ": " + f.Err.Error() }

func (f Fault) Unwrap() error { return f.Err }

// Parse reads a document, which must be an object. The error for a fault of syntax says in which line and column, and at
// which path.
func Parse(data []byte) (*Doc, error) {
	w := walker{doc: &Doc{data: data}, in: json.NewDecoder(bytes.NewReader(data))}
	w.in.UseNumber()
	var members map[string]json.RawMessage
	err := json.Unmarshal(data, &members) // its offsets are exact, unlike those of a decoder
	walked := w.value("", 0, true)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		inside := ""
		if w.inside != "" {
			inside = ", inside " + w.inside
		}
		return nil, fmt.Errorf("%s%s: %w", w.doc.position(int(syntax.Offset)-1), inside, err)
	case err != nil || members == nil:
		return nil, errors.New("want a JSON object")
	}
	w.doc.members = members
	return w.doc, walked
}

// A walker notes every value of a document.
type walker struct {
	doc    *Doc
	in     *json.Decoder
	inside string // the path of what is being read
}

var plainKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// value reads the value that comes next. Its key begins at the offset key, unless it has none.
func (w *walker) value(path string, key int, keyless bool) error {
	w.inside = path
	start := w.next()
	token, err := w.in.Token()
	if err != nil {
		return err
	}
	if keyless {
		key = start
	}
	i := len(w.doc.values)
	w.doc.values = append(w.doc.values, value{path: path, at: key, start: start})
	if open, ok := token.(json.Delim); ok {
		for n := 0; w.in.More(); n++ {
			if open == '[' {
				err = w.value(fmt.Sprintf("%s[%d]", path, n), 0, true)
			} else {
				at := w.next()
				if token, err = w.in.Token(); err != nil {
					return err
				}
				name := token.(string)
				inner := Path(path, name)
				if slices.Contains(w.doc.values[i].keys, name) {
					w.doc.twice = append(w.doc.twice, inner)
				}
				w.doc.values[i].keys = append(w.doc.values[i].keys, name)
				err = w.value(inner, at, false)
			}
			if err != nil {
				return err
			}
			w.inside = path
		}
		if _, err := w.in.Token(); err != nil {
			return err
		}
	}
	w.doc.values[i].end = int(w.in.InputOffset())
	return nil
}

// Path returns the path of a key in the object at the path outer; "" is the document.
func Path(outer, key string) string {
	switch {
	case !plainKey.MatchString(key):
		return fmt.Sprintf("%s[%q]", outer, key)
	case outer == "":
		return key
	}
	return outer + "." + key
}

// next returns the offset of the token that comes next.
func (w *walker) next() int {
	at := int(w.in.InputOffset())
	return at + len(w.doc.data[at:]) - len(bytes.TrimLeft(w.doc.data[at:], " \t\r\n,:"))
}

// position says in words where an offset is.
func (d *Doc) position(offset int) string {
	before := d.data[:max(0, offset)]
	begins := bytes.LastIndexByte(before, '\n') + 1
	return fmt.Sprintf("line %d, column %d", 1+bytes.Count(before, []byte{'\n'}), 1+utf8.RuneCount(before[begins:]))
}

// Where says in which line and column the key at a path stands, or the element of a list. Of a key that stands twice it
// is the last one.
func (d *Doc) Where(path string) string { return d.position(d.find(path).at) }

// Keys returns the keys of the object at a path, in their order; none if there is no object.
func (d *Doc) Keys(path string) []string {
	if v := d.find(path); v.path == path {
		return v.keys
	}
	return nil
}

// find returns the last value at a path, or else the whole document.
func (d *Doc) find(path string) value {
	for _, v := range slices.Backward(d.values) {
		if v.path == path {
			return v
		}
	}
	return d.values[0]
}

// Twice returns a fault for each key that stands in its object already.
func (d *Doc) Twice() []Fault {
	faults := make([]Fault, len(d.twice))
	for i, path := range d.twice {
		faults[i] = Fault{path, errors.New("this key stands twice: delete one of the two")}
	}
	return faults
}

// Decode decodes the members of the document into the struct that into points to, by the names in its json tags. It returns
// all faults, in the order of the keys, but for those of Twice. The value of a member with a fault is not defined. The
// function unknown says what is wrong with a key that is not among the struct's.
func (d *Doc) Decode(into any, unknown func(key string, known []string) error) []Fault {
	fields := map[string]reflect.Value{}
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = v.Field(i)
	}
	var faults []Fault
	for _, key := range slices.Sorted(maps.Keys(d.members)) {
		path := Path("", key)
		if field, ok := fields[key]; !ok {
			faults = append(faults, Fault{path, unknown(key, slices.Sorted(maps.Keys(fields)))})
		} else if err := json.Unmarshal(d.members[key], field.Addr().Interface()); err != nil {
			faults = append(faults, d.fault(path, err))
		}
	}
	return faults
}

// fault is err, which came from decoding the value at a path, at the path of the value inside that it is about.
func (d *Doc) fault(path string, err error) Fault {
	var kind *json.UnmarshalTypeError
	if !errors.As(err, &kind) {
		return Fault{path, err}
	}
	outer := d.find(path)
	offset := outer.start + int(kind.Offset) // the end of a scalar, or just behind the bracket of what is none
	for _, v := range slices.Backward(d.values) {
		if v.start < offset && offset <= v.end && v.start >= outer.start {
			path = v.path
			break
		}
	}
	return Fault{path, fmt.Errorf("want %s, not a JSON %s", kind.Type, kind.Value)}
}
