package jsondoc

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSyntax(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "line 1, column 1: unexpected end of JSON input",
		"{\n  \"a\": 1,\n}":                   "line 3, column 1: invalid character '}' looking for beginning of object key string",
		"{\n  \"é\": 1, x}":                   "line 2, column 11: invalid character 'x' looking for beginning of object key string",
		`{"a": {"b": [1, 2, {"c d": 01}]}}`:   `line 1, column 29, inside a.b[2]: invalid character '1' after object key:value pair`,
		`{"a": {"b": 1}`:                      "line 1, column 14: unexpected end of JSON input",
		`{"a": 1} {}`:                         "line 1, column 10: invalid character '{' after top-level value",
		"{\"a\": {\n\t\"b\": 1\n\t\"c\": 2}}": "line 3, column 2, inside a: invalid character '\"' after object key:value pair",
		"[1]":                                 "want a JSON object",
		"null":                                "want a JSON object",
	} {
		_, err := Parse([]byte(text))
		require.EqualError(t, err, want, text)
	}
}

func TestTwice(t *testing.T) {
	doc, err := Parse([]byte(`{"a": 1, "b": {"x": 1, "y": [{"z": 1, "z": 2}], "x": 3},
		"A": 1, "a": {"x": 1}, "30": 1, "30": 2}`))
	require.NoError(t, err)
	var found []string
	for _, f := range doc.Twice() {
		found = append(found, doc.Where(f.Path)+": "+f.Error())
	}
	const twice = ": this key stands twice: delete one of the two"
	require.Equal(t, []string{"line 1, column 39: b.y[0].z" + twice, "line 1, column 49: b.x" + twice, "line 2, column 11: a" + twice, `line 2, column 35: ["30"]` + twice}, found)
}

func TestDecode(t *testing.T) {
	var into struct {
		Port     int                       `json:"port,omitempty"`
		Shares   []float64                 `json:"shares"`
		Inner    struct{ Name string }     `json:"inner"`
		Schedule map[string]map[string]int `json:"schedule"`
		Raw      refusing                  `json:"raw"`
		Good     string                    `json:"good"`
	}
	doc, err := Parse([]byte(`{"good": "yes", "port": "80", "Good": 1, "raw": [1],
  "shares": [1, "2", 3],
  "inner": {"Name": {}}, "schedule": {"30": {"limit": 1}, "60": {"limit": 1.5}}}`))
	require.NoError(t, err)
	var found []string
	for _, f := range doc.Decode(&into, func(key string, known []string) error { return fmt.Errorf("none of %v", known) }) {
		found = append(found, doc.Where(f.Path)+": "+f.Error())
	}
	require.Equal(t, []string{
		"line 1, column 31: Good: none of [good inner port raw schedule shares]",
		"line 3, column 13: inner.Name: want string, not a JSON object",
		"line 1, column 17: port: want int, not a JSON string",
		"line 1, column 42: raw: never",
		`line 3, column 66: schedule["60"].limit: want int, not a JSON number 1.5`,
		"line 2, column 17: shares[1]: want float64, not a JSON string",
	}, found)
	require.Equal(t, "yes", into.Good)
	require.Equal(t, []string{"30", "60"}, doc.Keys("schedule"))
	require.Empty(t, doc.Keys("none"))
}

type refusing struct{}

func (*refusing) UnmarshalJSON([]byte) error { return errors.New("never") }

// Every document that encoding/json takes for an object is one here too, and no other.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"a": [1, {"b": "c"}], "a": null}`, `{"a": {}} x`, `{"":[[]]}`, `{"a":1e999}`, "{\"\xff\": 1}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var object map[string]json.RawMessage
		err := json.Unmarshal(data, &object)
		doc, failed := Parse(data)
		require.Equal(t, err == nil && object != nil, failed == nil, failed)
		if failed == nil {
			require.Len(t, object, len(doc.Keys(""))-countTop(doc))
		}
	})
}

// countTop is the number of keys of the document that stand in it already.
func countTop(doc *Doc) int {
	seen, n := map[string]bool{}, 0
	for _, key := range doc.Keys("") {
		if seen[key] {
			n++
		}
		seen[key] = true
	}
	return n
}
