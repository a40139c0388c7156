package wire

import (
	"bytes"
	"encoding/json"
)

// members walks over the members of one JSON object without copying. The zero value is not usable.
// It accepts every valid object; it does not check everything that a validator would.
type members struct {
	b   []byte
	i   int
	key []byte // the present member's name, without quotes
	val []byte // the present member's value
	bad bool
}

// object starts a walk over the object that b begins with; blank space around it is allowed.
func object(b []byte) members {
	m := members{b: b}
	m.space()
	if m.i >= len(b) || b[m.i] != '{' {
		m.bad = true
		return m
	}
	m.i++
	return m
}

// next advances to the next member; false means the end of the object or, if bad is set, damage.
func (m *members) next() bool {
	if m.bad {
		return false
	}
	m.space()
	if m.i < len(m.b) && m.b[m.i] == '}' {
		m.i++
		return false
	}
	if m.val != nil { // not the first member
		if m.i >= len(m.b) || m.b[m.i] != ',' {
			m.bad = true
			return false
		}
		m.i++
		m.space()
	}
	end := stringEnd(m.b, m.i)
	if end < 0 {
		m.bad = true
		return false
	}
	m.key = m.b[m.i+1 : end-1]
	if bytes.IndexByte(m.key, '\\') >= 0 {
		m.key = []byte(Unquote(m.key))
	}
	m.i = end
	m.space()
	if m.i >= len(m.b) || m.b[m.i] != ':' {
		m.bad = true
		return false
	}
	m.i++
	m.space()
	end = valueEnd(m.b, m.i)
	if end < 0 {
		m.bad = true
		return false
	}
	m.val = m.b[m.i:end]
	m.i = end
	return true
}

func (m *members) space() {
	for m.i < len(m.b) && isSpace(m.b[m.i]) {
		m.i++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// stringEnd returns the index after the string that begins at b[i], or -1.
func stringEnd(b []byte, i int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	for j := i + 1; ; {
		k := bytes.IndexByte(b[j:], '"')
		if k < 0 {
			return -1
		}
		j += k
		n := 0 // backslashes before the quote
		for b[j-1-n] == '\\' {
			n++
		}
		j++
		if n%2 == 0 {
			return j
		}
	}
}

// valueEnd returns the index after the value that begins at b[i], or -1.
func valueEnd(b []byte, i int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		return stringEnd(b, i)
	case '{', '[':
		depth := 0
		for i < len(b) {
			switch b[i] {
			case '"':
				if i = stringEnd(b, i); i < 0 {
					return -1
				}
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return -1
	default:
		j := i
		for j < len(b) && b[j] != ',' && b[j] != '}' && b[j] != ']' && !isSpace(b[j]) {
			j++
		}
		if j == i {
			return -1
		}
		return j
	}
}

func isNull(v []byte) bool { return len(v) > 0 && v[0] == 'n' }

// number returns the integer that v spells; false if it spells none.
func number(v []byte) (int, bool) {
	n := 0
	for _, c := range v {
		if c < '0' || c > '9' || n > 1<<40 {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, len(v) > 0
}

// str returns the inside of the string v, escapes and all; false if v is not a string.
func str(v []byte) ([]byte, bool) {
	if len(v) < 2 || v[0] != '"' {
		return nil, false
	}
	return v[1 : len(v)-1], true
}

// Unquote decodes the inside of a JSON string. It returns inside as it is if it is not valid.
func Unquote(inside []byte) string {
	if bytes.IndexByte(inside, '\\') < 0 {
		return string(inside)
	}
	var s string
	if json.Unmarshal(append(append([]byte{'"'}, inside...), '"'), &s) != nil {
		return string(inside)
	}
	return s
}

// AppendString appends s as a JSON string.
func AppendString(b []byte, s string) []byte {
	plain := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			plain = false
			break
		}
	}
	if plain {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string can always be encoded
	}
	return append(b, q...)
}
