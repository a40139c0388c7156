package results

import (
	"errors"
	"os"
	"sync"
)

// A journal is a file of lines that are collected in memory and handed to the operating system in one
// write each time it is flushed. Appending is safe for concurrent use; take, write and close are not.
type journal struct {
	file    *os.File
	pending []byte // taken, to be written
	size    int64  // bytes written
	broken  bool   // a write failed; whatever follows would join a torn line, so nothing may

	mu   sync.Mutex
	buf  []byte // lines appended since the last take
	mode mode
}

// mode says what a journal does with a line.
type mode int

const (
	notBegun mode = iota // refuses it
	buffered             // keeps it until the flusher comes
	through              // wants it written at once: there is no flusher
	closed               // refuses it
)

var (
	errNotBegun = errors.New("results: something was recorded before Begin")
	errClosed   = errors.New("results: something was recorded after the run had been finished or failed")
)

// append adds a line. It returns the mode under which it did and how many bytes wait for a flush.
func (j *journal) append(line []byte) (m mode, waiting int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch j.mode {
	case notBegun:
		return j.mode, 0, errNotBegun
	case closed:
		return j.mode, 0, errClosed
	}
	j.buf = append(j.buf, line...)
	return j.mode, len(j.buf), nil
}

func (j *journal) setMode(m mode) {
	j.mu.Lock()
	j.mode = m
	j.mu.Unlock()
}

// take makes the lines appended so far pending. What was pending must have been written.
func (j *journal) take() {
	j.mu.Lock()
	j.buf, j.pending = j.pending[:0], j.buf
	j.mu.Unlock()
}

// write hands the pending lines to the operating system, or drops them if the journal is broken.
func (j *journal) write() error {
	if len(j.pending) == 0 || j.broken {
		j.pending = j.pending[:0]
		return nil
	}
	n, err := j.file.Write(j.pending)
	j.size += int64(n)
	j.pending = j.pending[:0]
	j.broken = err != nil
	return err
}
