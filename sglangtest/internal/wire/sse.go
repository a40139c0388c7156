// Package wire reads what SGLang servers send: event streams and the JSON in them.
//
// Both readers are written by hand because they are what a load client spends its time on, and because the
// time of the read that brought an event is a measurement: the caller must own the call to Read.
package wire

import (
	"bytes"
	"errors"
	"io"
)

// maxEvent bounds the size of one event. SGLang's cumulative chunks with logprobs reach megabytes.
const maxEvent = 64 << 20

// ErrEventTooLong is returned by [Events.Fill] for an event beyond any that a server sends.
var ErrEventTooLong = errors.New("wire: event longer than 64 MiB")

// Events splits an event stream (text/event-stream, WHATWG HTML 9.2) into the data of its events. The caller
// alternates between [Events.Fill], which reads once, and [Events.Next], which returns what is complete.
type Events struct {
	r     io.Reader
	buf   []byte
	start int    // first byte not yet consumed
	scan  int    // first byte not yet searched for a line end
	end   int    // end of what has been read
	data  []byte // data lines of the event under way, joined
	open  bool   // data holds such lines
	begun bool   // a line has been read
}

// Reset makes e read from r. It keeps e's buffers.
func (e *Events) Reset(r io.Reader) {
	if e.buf == nil {
		e.buf = make([]byte, 16<<10)
	}
	*e = Events{r: r, buf: e.buf, data: e.data[:0]}
}

// Fill makes exactly one call to Read and returns what it returned. It must not be called before Next has returned false.
// Data and an error can come from one call; the data is then still to be had from Next.
func (e *Events) Fill() (n int, err error) {
	if e.start > 0 && len(e.buf)-e.end < len(e.buf)/2 {
		copy(e.buf, e.buf[e.start:e.end])
		e.end, e.scan, e.start = e.end-e.start, e.scan-e.start, 0
	}
	if e.end == len(e.buf) {
		if len(e.buf) >= maxEvent {
			return 0, ErrEventTooLong
		}
		e.buf = append(e.buf, make([]byte, len(e.buf))...)
	}
	n, err = e.r.Read(e.buf[e.end:])
	e.end += n
	return n, err
}

// Next returns the data of the next complete event. It is valid until the next call of a method.
func (e *Events) Next() (data []byte, ok bool) {
	for {
		line, ok := e.line()
		if !ok {
			return nil, false
		}
		if len(line) == 0 { // a blank line ends the event
			if e.open {
				e.open = false
				return e.data, true
			}
			continue
		}
		value, isData := bytes.CutPrefix(line, []byte("data:"))
		if !isData {
			continue // a comment, or a field that SGLang does not use
		}
		value = bytes.TrimPrefix(value, []byte(" "))
		if !e.open && e.blankFollows() { // one line, all there: no copy
			e.line()
			return value, true
		}
		if e.open {
			e.data = append(e.data, '\n')
		} else {
			e.open, e.data = true, e.data[:0]
		}
		e.data = append(e.data, value...)
	}
}

// line consumes one line and returns it without its end.
func (e *Events) line() ([]byte, bool) {
	i := bytes.IndexByte(e.buf[e.scan:e.end], '\n')
	if i < 0 {
		e.scan = e.end
		if e.start == e.end {
			e.start, e.scan, e.end = 0, 0, 0
		}
		return nil, false
	}
	line := e.buf[e.start : e.scan+i]
	e.scan += i + 1
	e.start = e.scan
	if !e.begun {
		e.begun = true
		line = TrimMark(line)
	}
	return bytes.TrimSuffix(line, []byte("\r")), true
}

// TrimMark returns text without the byte order mark that it may begin with.
func TrimMark(text []byte) []byte { return bytes.TrimPrefix(text, []byte("\ufeff")) }

func (e *Events) blankFollows() bool {
	rest := e.buf[e.start:e.end]
	return len(rest) > 0 && (rest[0] == '\n' || rest[0] == '\r' && len(rest) > 1 && rest[1] == '\n')
}
