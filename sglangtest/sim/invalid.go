package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// A fault is one entry of the list of errors that pydantic finds in a body, as Python prints it.
type fault string

// faults are the faults of a body; they are what SGLang answers 400 with before any of its own code sees the request.
type faults []fault

func (f faults) Error() string { return "[" + f.list() + "]" }

func (f faults) list() string {
	s := make([]string, len(f))
	for i := range f {
		s[i] = string(f[i])
	}
	return strings.Join(s, ", ")
}

// missing is the fault of a field that is not there; input is the object that lacks it.
func missing(loc, input string) fault {
	return fault("{'type': 'missing', 'loc': " + loc + ", 'msg': 'Field required', 'input': " + input + "}")
}

// wrong is the fault of a value that is not of the type wanted.
func wrong(kind, loc, message string, value json.RawMessage) fault {
	return fault("{'type': '" + kind + "', 'loc': " + loc + ", 'msg': '" + message + "', 'input': " + pyRepr(value) + "}")
}

// inBody is the place of a field as pydantic names it.
func inBody(path ...string) string {
	var b strings.Builder
	b.WriteString("('body'")
	for _, p := range path {
		b.WriteString(", " + pyString(p))
	}
	if len(path) == 0 {
		b.WriteString(",")
	}
	return b.String() + ")"
}

// refuse answers a request whose body has faults: FastAPI 0.165 names the route's code and SGLang adds the list
// (http_server.py, validation_exception_handler).
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, f faults) {
	var b strings.Builder
	b.WriteString(strconv.Itoa(len(f)) + " validation error")
	if len(f) != 1 {
		b.WriteByte('s')
	}
	b.WriteString(":")
	for _, x := range f {
		b.WriteString("\n  " + string(x))
	}
	if rt, _ := s.route(r.URL.Path); rt.function != "" {
		fmt.Fprintf(&b, "\n\n  File \"%s/sglang/srt/entrypoints/http_server.py\", line %d, in %s\n    %s %s",
			sitePackages, rt.lines[s.opts.release.recorded()], rt.function, r.Method, r.URL.Path)
	}
	b.WriteString(" [" + f.list() + "]")
	badRequest(w, b.String())
}

// refuseContentType answers an OpenAI request that does not say that it is JSON (validate_json_request).
func refuseContentType(w http.ResponseWriter) {
	const f = `{'loc': ['header', 'content-type'], 'msg': "Unsupported Media Type: Only 'application/json' is allowed", 'type': 'value_error'}`
	badRequest(w, "1 validation error:\n  "+f+" ["+f+"]")
}

// jsonFault is the fault of a body that is not JSON. Versions from 0.5.18 on read it with orjson, 0.5.15 with Python's
// json; the message of the second is told from the character before the fault.
func (s *Server) jsonFault(body []byte, err error) fault {
	if len(bytes.TrimSpace(body)) == 0 {
		return missing(inBody(), "None")
	}
	at, message := len(body), "unexpected end of data"
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) && syntax.Error() != "unexpected end of JSON input" {
		at, message = max(0, min(int(syntax.Offset)-1, len(body))), "unexpected character"
	}
	if s.opts.release.patch < 18 {
		before := bytes.TrimRight(body[:at], " \t\r\n")
		switch {
		case len(before) == 0 || before[len(before)-1] == ':' || before[len(before)-1] == '[':
			message = "Expecting value"
		case before[len(before)-1] == ',' || before[len(before)-1] == '{':
			message = "Expecting property name enclosed in double quotes"
		default:
			message = "Expecting ',' delimiter"
		}
	}
	return fault("{'type': 'json_invalid', 'loc': ('body', " + strconv.Itoa(at) + "), 'msg': 'JSON decode error', 'input': {}, 'ctx': {'error': " +
		pyString(message) + "}}")
}

// notObject is the fault of a body that is JSON but not an object.
func notObject(body json.RawMessage) fault {
	return wrong("model_attributes_type", inBody(), "Input should be a valid dictionary or object to extract fields from", body)
}

// pyRepr writes a JSON value as Python prints it.
func pyRepr(raw json.RawMessage) string {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var b strings.Builder
	pyValue(&b, dec)
	return b.String()
}

// pyValue writes the next value. It reports false, and ends what it writes, where there is none: the text is no JSON.
func pyValue(b *strings.Builder, dec *json.Decoder) bool {
	tok, err := dec.Token()
	if err != nil {
		b.WriteString("None")
		return false
	}
	switch v := tok.(type) {
	case json.Delim:
		b.WriteRune(rune(v))
		for i := 0; dec.More(); i++ {
			if i > 0 {
				b.WriteString(", ")
			}
			if v == '{' {
				if !pyValue(b, dec) {
					return false
				}
				b.WriteString(": ")
			}
			if !pyValue(b, dec) {
				return false
			}
		}
		end, _ := dec.Token()
		if d, ok := end.(json.Delim); ok {
			b.WriteRune(rune(d))
		}
	case string:
		b.WriteString(pyString(v))
	case json.Number:
		b.WriteString(v.String())
	case bool:
		b.WriteString(map[bool]string{true: "True", false: "False"}[v])
	case nil:
		b.WriteString("None")
	}
	return true
}

// pyString is Python's repr of a string.
func pyString(s string) string {
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	b := []byte{quote}
	for _, c := range s {
		switch {
		case c == rune(quote) || c == '\\':
			b = append(b, '\\', byte(c))
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < 0x20 || c == 0x7f:
			b = fmt.Appendf(b, `\x%02x`, c)
		default:
			b = append(b, string(c)...)
		}
	}
	return string(append(b, quote))
}

// A lax value is a number or a boolean of a body as pydantic reads it without strictness: a string that is a number is
// one, too. The zero value was not given, or is null.
type lax struct {
	set bool
	v   float64
}

// number reads a field into to, and adds what is wrong with it to f.
func (f *faults) number(name string, raw json.RawMessage, to *lax, integer bool) {
	raw = trimJSON(raw)
	if isNull(raw) {
		return
	}
	kind, noun := "float", "number"
	if integer {
		kind, noun = "int", "integer"
	}
	var text string
	switch {
	case json.Unmarshal(raw, &to.v) == nil:
		if integer && to.v != float64(int64(to.v)) {
			*f = append(*f, wrong("int_from_float", inBody(name), "Input should be a valid integer, got a number with a fractional part", raw))
			return
		}
	case json.Unmarshal(raw, &text) == nil:
		v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || integer && v != float64(int64(v)) {
			article := "a"
			if integer {
				article = "an"
			}
			*f = append(*f, wrong(kind+"_parsing", inBody(name),
				"Input should be a valid "+noun+", unable to parse string as "+article+" "+noun, raw))
			return
		}
		to.v = v
	case string(raw) == "true" || string(raw) == "false":
		to.v = map[string]float64{"true": 1}[string(raw)]
	default:
		*f = append(*f, wrong(kind+"_type", inBody(name), "Input should be a valid "+noun, raw))
		return
	}
	to.set = true
}

// boolean reads a field into to, and adds what is wrong with it to f.
func (f *faults) boolean(name string, raw json.RawMessage, to *bool) {
	raw = trimJSON(raw)
	switch string(raw) {
	case "", "null", "false", "0", `"false"`, `"0"`:
	case "true", "1", `"true"`, `"1"`:
		*to = true
	default:
		if len(raw) > 0 && raw[0] == '"' {
			*f = append(*f, wrong("bool_parsing", inBody(name), "Input should be a valid boolean, unable to interpret input", raw))
		} else {
			*f = append(*f, wrong("bool_type", inBody(name), "Input should be a valid boolean", raw))
		}
	}
}
