package server

import (
	"bytes"
	"context"
	"io"
	"iter"
	"sync"
	"time"
)

// logCapacity is the number of lines that a Log keeps: more than the usage text of SGLang's argument parser.
const logCapacity = 4096

// maxLine is the longest line that a Log keeps, in bytes; the file has all of it.
const maxLine = 64 << 10

// A Line is one line that a server wrote. A progress bar, which returns to the start of its line, writes
// many.
type Line struct {
	N      int       // counts the lines of both streams, from 0: a jump shows lines that were missed
	Time   time.Time // when it was read, up to 50 ms after it was written
	Stderr bool      // SGLang's own lines come on stderr, uvicorn's access log on stdout
	Text   string    // without the end of the line
}

// A Log holds the last lines that a server wrote, and lets them be followed. It is safe for concurrent use.
type Log struct {
	secrets hider

	mu    sync.Mutex
	ring  []Line
	next  int           // number of the next line
	rest  [2][]byte     // of stdout and stderr: the beginning of a line
	more  chan struct{} // closed at the next line or the end; nil if nobody waits
	ended bool
}

// NewLog returns an empty log for a [Launcher] to fill: it writes to Stdout and Stderr what the server writes
// there, and calls End. Where the server writes one of cfg's keys, the log has "(key)". The zero Log hides
// nothing.
func NewLog(cfg Config) *Log { return &Log{secrets: hideSecrets(cfg)} }

// Stdout returns what splits the bytes of the server's stdout into lines. What is written last need not end a
// line; after End nothing is taken. It never fails.
func (l *Log) Stdout() io.Writer { return lineWriter{l, false} }

// Stderr is Stdout for the server's stderr. A server whose two streams are one writes to this one.
func (l *Log) Stderr() io.Writer { return lineWriter{l, true} }

// End ends the log: the server has ended, and all that it wrote has been written. It may be called again.
func (l *Log) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	for i, rest := range l.rest {
		if len(rest) > 0 {
			l.add(i == 1, string(rest))
		}
	}
	l.ended = true
	l.tell()
}

// A lineWriter writes to one stream of a log.
type lineWriter struct {
	log    *Log
	stderr bool
}

func (w lineWriter) Write(p []byte) (int, error) {
	l := w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	i := 0
	if w.stderr {
		i = 1
	}
	rest := append(l.rest[i], p...)
	for !l.ended {
		end := bytes.IndexAny(rest, "\n\r")
		if end < 0 {
			break
		}
		if end > 0 || rest[end] == '\n' {
			l.add(w.stderr, string(rest[:end]))
		}
		rest = rest[end+1:]
	}
	l.rest[i] = append(l.rest[i][:0], rest[:min(len(rest), maxLine)]...) // a log keeps no more of a line
	return len(p), nil
}

// add adds a line. The caller holds the lock.
func (l *Log) add(stderr bool, text string) {
	text = l.secrets.Replace(text)
	line := Line{N: l.next, Time: time.Now(), Stderr: stderr, Text: text[:min(len(text), maxLine)]}
	if len(l.ring) < logCapacity {
		l.ring = append(l.ring, line)
	} else {
		l.ring[l.next%logCapacity] = line
	}
	l.next++
	l.tell()
}

// tell wakes those who follow.
func (l *Log) tell() {
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
}

// hasEnded reports whether the log has.
func (l *Log) hasEnded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// Tail returns the last n lines, or as many as there are of the last 4096.
func (l *Log) Tail(n int) []Line {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.next - min(max(n, 0), len(l.ring))
	lines := make([]Line, 0, l.next-first)
	for i := first; i < l.next; i++ {
		lines = append(lines, l.ring[i%logCapacity])
	}
	return lines
}

// Follow yields the lines that are still held and then each new one, until the log ends or ctx is done.
// Whoever is slow misses lines, which Line.N shows, and holds nobody up. It may be called several times.
func (l *Log) Follow(ctx context.Context) iter.Seq[Line] {
	return func(yield func(Line) bool) {
		for n := 0; ; {
			l.mu.Lock()
			n = max(n, l.next-len(l.ring))
			if n < l.next {
				line := l.ring[n%logCapacity]
				l.mu.Unlock()
				if ctx.Err() != nil || !yield(line) {
					return
				}
				n = line.N + 1
				continue
			}
			if l.ended {
				l.mu.Unlock()
				return
			}
			if l.more == nil {
				l.more = make(chan struct{})
			}
			more := l.more
			l.mu.Unlock()
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}
}
