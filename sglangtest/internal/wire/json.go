package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// A cursor is a place in JSON text that is walked through once, without copying. It accepts every valid object; it does
// not check everything that a validator would.
type cursor struct {
	b   []byte
	i   int
	bad bool // the text is damaged
}

// members walks over the members of an object:
//
//	for m := c.object(); m.next(); {
//		switch string(m.key) { … m.value() … m.object() … }
//	}
//
// A member whose value was not asked for is passed over. The walk over a member's own object must come to its end
// before that of the outer one goes on.
type members struct {
	*cursor
	key   []byte // the present member's name, without quotes
	first bool
	open  bool // the present member's value has not been read
	done  bool
}

// object begins a walk over the object at the cursor. A value of another kind is passed over: it has no members.
func (c *cursor) object() members {
	c.space()
	if c.i < len(c.b) && c.b[c.i] == '{' {
		c.i++
		return members{cursor: c, first: true}
	}
	c.skip()
	return members{cursor: c, done: true}
}

// object begins a walk over the present member's value.
func (m *members) object() members {
	m.open = false
	return m.cursor.object()
}

// value returns the present member's value.
func (m *members) value() []byte {
	m.open = false
	start := m.i
	m.skip()
	if m.bad {
		return nil
	}
	return m.b[start:m.i]
}

// next advances to the next member; false means the end of the object or damage.
func (m *members) next() bool {
	if m.open {
		m.skip()
	}
	if m.bad || m.done {
		return false
	}
	m.space()
	if m.i >= len(m.b) {
		return m.fail()
	}
	switch {
	case m.b[m.i] == '}':
		m.i++
		m.done = true
		return false
	case m.first:
		m.first = false
	case m.b[m.i] != ',':
		return m.fail()
	default:
		m.i++
		m.space()
	}
	end := stringEnd(m.b, m.i)
	if end < 0 {
		return m.fail()
	}
	m.key = m.b[m.i+1 : end-1]
	if bytes.IndexByte(m.key, '\\') >= 0 {
		m.key = []byte(Unquote(m.key))
	}
	m.i = end
	m.space()
	if m.i >= len(m.b) || m.b[m.i] != ':' {
		return m.fail()
	}
	m.i++
	m.space()
	m.open = true
	return true
}

func (c *cursor) fail() bool {
	c.bad = true
	return false
}

// skip passes over one value.
func (c *cursor) skip() {
	if end := valueEnd(c.b, c.i); end >= 0 {
		c.i = end
	} else {
		c.bad = true
	}
}

func (c *cursor) space() {
	for c.i < len(c.b) && isSpace(c.b[c.i]) {
		c.i++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// stringEnd returns the index after the string that begins at b[i], or -1.
func stringEnd(b []byte, i int) int {
	if i >= len(b) || b[i] != '"' {
		return -1
	}
	// Names and short texts end before a search of many bytes at once would pay.
	j := i + 1
	for near := min(len(b), j+24); j < near; j++ {
		switch b[j] {
		case '"':
			return j + 1
		case '\\':
			j++
		}
	}
	for j < len(b) {
		k := bytes.IndexByte(b[j:], '"')
		if k < 0 {
			return -1
		}
		end := j + k
		n := 0 // backslashes before the quote, none of them before j
		for end-1-n >= j && b[end-1-n] == '\\' {
			n++
		}
		if n%2 == 0 {
			return end + 1
		}
		j = end + 1
	}
	return -1
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

// Cut returns text if it has up to most bytes, otherwise its beginning, whole characters only, and how long it was.
func Cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	end := most
	for end > most-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return fmt.Sprintf("%s… (%d bytes)", text[:end], len(text))
}
