//go:build unix

package process

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// A level orders log lines as Python's logging does.
type level int

const (
	debug level = iota
	info
	warning
	failure
)

// levelOf maps --log-level; SGLang passes the name to Python's logging.
var levelOf = map[string]level{"debug": debug, "info": info, "warning": warning, "error": failure, "critical": failure + 1}

// A sink writes to one stream. Writing happens in a goroutine of its own, so that a reader who is a little behind does not
// hold up the engine; flush waits for it. Who reads nothing holds up everything in the end, as with SGLang.
type sink struct {
	mu      sync.Mutex
	pending []byte
	more    sync.Cond // pending is not empty, or closed
	less    sync.Cond // pending is empty
	written sync.Cond // pending is empty and nothing is being written
	writing bool
	closed  bool
	ended   chan struct{}
}

func newSink(w io.Writer) *sink {
	s := &sink{ended: make(chan struct{})}
	s.more.L, s.less.L, s.written.L = &s.mu, &s.mu, &s.mu
	go s.run(w)
	return s
}

func (s *sink) run(w io.Writer) {
	defer close(s.ended)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.pending) == 0 && !s.closed {
			s.more.Wait()
		}
		if len(s.pending) == 0 {
			return
		}
		b := s.pending
		s.pending, s.writing = nil, true
		s.less.Broadcast()
		s.mu.Unlock()
		_, _ = w.Write(b) // who closed our output does not want to know
		s.mu.Lock()
		s.writing = false
		if len(s.pending) == 0 {
			s.written.Broadcast()
		}
	}
}

// mostPending is from how many bytes on that nobody has read a writer waits.
const mostPending = 1 << 20

// raw writes text as it is.
func (s *sink) raw(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending) >= mostPending {
		s.less.Wait()
	}
	s.pending = append(s.pending, text...)
	s.more.Signal()
}

// flush returns when everything has been written.
func (s *sink) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending) > 0 || s.writing {
		s.written.Wait()
	}
}

// close flushes and ends the sink.
func (s *sink) close() {
	s.mu.Lock()
	s.closed = true
	s.more.Signal()
	s.mu.Unlock()
	<-s.ended
}

// A logger writes lines with the prefixes of SGLang or uvicorn.
type logger struct {
	*sink
	least  level
	millis bool   // SGLANG_LOG_MS
	prefix string // such as " TP0"
}

// logf writes one line as SGLang's own logger does.
func (l *logger) logf(at level, format string, args ...any) {
	if at < l.least {
		return
	}
	stamp := "2006-01-02 15:04:05"
	if l.millis {
		stamp += ".000"
	}
	l.raw("[" + time.Now().Format(stamp) + l.prefix + "] " + fmt.Sprintf(format, args...) + "\n")
}

// uvicorn writes one line as uvicorn does, which never has milliseconds or ranks.
func (l *logger) uvicorn(at level, format string, args ...any) {
	if at < l.least {
		return
	}
	name := map[level]string{info: "INFO:", warning: "WARNING:", failure: "ERROR:"}[at]
	l.raw(time.Now().Format("[2006-01-02 15:04:05] ") + name + strings.Repeat(" ", 10-len(name)) + fmt.Sprintf(format, args...) + "\n")
}
