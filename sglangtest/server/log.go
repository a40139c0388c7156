package server

import (
	"context"
	"iter"
	"sync"
	"time"
)

// logCapacity is the number of lines that a Log keeps: more than the usage text of SGLang's argument parser.
const logCapacity = 4096

// maxLine is the longest line that a Log keeps, in bytes; the file has all of it.
const maxLine = 64 << 10

// A Line is one line that a server wrote. A progress bar, which returns to the start of its line, writes many.
type Line struct {
	N      int       // counts the lines of both streams, from 0: a jump shows lines that were missed
	Time   time.Time // when it was read, up to 50 ms after it was written
	Stderr bool      // SGLang's own lines come on stderr, uvicorn's access log on stdout
	Text   string    // without the end of the line
}

// A Log holds the last lines that a server wrote, and lets them be followed. It is safe for concurrent use.
type Log struct {
	mu    sync.Mutex
	ring  []Line
	next  int           // number of the next line
	more  chan struct{} // closed and replaced at each line
	ended bool
}

// Logged is an instance whose log can be read.
type Logged interface {
	Instance
	// Log returns the log. It ends when the server has ended and all that it wrote has been read.
	Log() *Log
}

func newLog() *Log { return &Log{more: make(chan struct{})} }

func (l *Log) add(stderr bool, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := Line{N: l.next, Time: time.Now(), Stderr: stderr, Text: text[:min(len(text), maxLine)]}
	if len(l.ring) < logCapacity {
		l.ring = append(l.ring, line)
	} else {
		l.ring[l.next%logCapacity] = line
	}
	l.next++
	close(l.more)
	l.more = make(chan struct{})
}

func (l *Log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended = true
		close(l.more)
	}
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

// Follow yields the lines that are still held and then each new one, until the log ends or ctx is done. Whoever is
// slow misses lines, which Line.N shows, and holds nobody up. It may be called several times.
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
			more, ended := l.more, l.ended
			l.mu.Unlock()
			if ended {
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}
}
