package sglargs

import (
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readYAML reads a document as Python's yaml.safe_load does, with the types of YAML 1.1: yes and off are booleans,
// 1e5 is a string, 017 is 15. Dates stay the strings that they are. Merge keys ("<<") are refused.
func readYAML(data []byte) (dict, error) {
	refuse := func(message string) (dict, error) {
		return nil, &Error{Flag: "--config", Exception: "yaml.YAMLError", Message: message}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return refuse(err.Error())
	}
	if doc.Kind == 0 { // empty
		return nil, nil
	}
	r := yamlReader{left: maxYAMLValues}
	v, err := r.value(doc.Content[0])
	if err != "" {
		return refuse(err)
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case dict:
		return v, nil
	}
	return nil, &Error{Flag: "--config", Exception: "ValueError", Message: "Config file must contain a dictionary at root level"}
}

// maxYAMLValues bounds the values of a file, since with aliases a short one can stand for any number of them, or for one
// that is part of itself.
const maxYAMLValues = 10_000

type yamlReader struct{ left int }

func (r *yamlReader) value(n *yaml.Node) (v any, fault string) {
	if r.left--; r.left < 0 {
		return nil, "too many values"
	}
	switch n.Kind {
	case yaml.AliasNode:
		return r.value(n.Alias)
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			if list[i], fault = r.value(c); fault != "" {
				return nil, fault
			}
		}
		return list, ""
	case yaml.MappingNode:
		d := dict{}
		index := map[any]int{}
		for i := 0; i < len(n.Content); i += 2 {
			key, fault := r.value(n.Content[i])
			if fault != "" {
				return nil, fault
			}
			switch key.(type) {
			case []any, dict:
				return nil, "found unhashable key"
			}
			if key == "<<" && n.Content[i].Style == 0 {
				return nil, "merge keys are not supported"
			}
			value, fault := r.value(n.Content[i+1])
			if fault != "" {
				return nil, fault
			}
			if at, twice := index[key]; twice { // the last one counts, at the place of the first
				d[at].value = value
				continue
			}
			index[key] = len(d)
			d = append(d, item{key, value})
		}
		return d, ""
	}
	if n.Style&^yaml.TaggedStyle != 0 || n.Style == yaml.TaggedStyle && n.Tag == "!!str" {
		return n.Value, "" // quoted
	}
	return yamlScalar(n.Value), ""
}

// The implicit types of PyYAML (yaml/resolver.py).
var (
	yamlBool  = regexp.MustCompile(`^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$`)
	yamlNull  = regexp.MustCompile(`^(?:~|null|Null|NULL|)$`)
	yamlInt   = regexp.MustCompile(`^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$`)
	yamlFloat = regexp.MustCompile(`^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$`)
)

// yamlScalar gives a plain scalar its type. A number that Go cannot hold stays a string, which reads the same on the
// command line.
func yamlScalar(s string) any {
	digits := strings.ReplaceAll(s, "_", "")
	switch {
	case yamlNull.MatchString(s):
		return nil
	case yamlBool.MatchString(s):
		lower := strings.ToLower(s)
		return lower == "yes" || lower == "true" || lower == "on"
	case yamlInt.MatchString(s):
		if n, ok := sexagesimal(digits); ok {
			return int(n)
		}
		sign, unsigned := cutSign(digits)
		if len(unsigned) > 1 && unsigned[0] == '0' && unsigned[1] >= '0' && unsigned[1] <= '7' {
			unsigned = "0o" + unsigned[1:]
		}
		if n, err := strconv.ParseInt(unsigned, 0, 64); err == nil {
			return int(n) * sign
		}
	case yamlFloat.MatchString(s):
		sign, unsigned := cutSign(strings.ToLower(digits))
		switch unsigned {
		case ".inf":
			return math.Inf(sign)
		case ".nan":
			return math.NaN()
		}
		if f, ok := sexagesimal(digits); ok {
			return f
		}
		if f, err := strconv.ParseFloat(unsigned, 64); err == nil {
			return f * float64(sign)
		}
	}
	return s
}

func cutSign(s string) (sign int, unsigned string) {
	if rest, ok := strings.CutPrefix(s, "-"); ok {
		return -1, rest
	}
	return 1, strings.TrimPrefix(s, "+")
}

// sexagesimal reads a number with colons, such as 1:30, which is 90.
func sexagesimal(s string) (float64, bool) {
	if !strings.Contains(s, ":") {
		return 0, false
	}
	sign, s := cutSign(s)
	total := 0.0
	for part := range strings.SplitSeq(s, ":") {
		f, err := strconv.ParseFloat(part, 64)
		if err != nil {
			return 0, false
		}
		total = total*60 + f
	}
	return total * float64(sign), true
}
