//go:build unix

package process

import (
	"errors"
	"fmt"
	"net"
	"sync"
)

// A listener can stop listening for a time: connections are refused then. Those that are open stay.
type listener struct {
	address string

	mu     sync.Mutex
	ln     net.Listener  // nil: refusing
	opened chan struct{} // closed when ln is set again, or the listener closed
	closed bool
}

func newListener(address string) *listener {
	return &listener{address: address, opened: make(chan struct{})}
}

// open listens.
func (l *listener) open() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ln != nil || l.closed {
		return nil
	}
	ln, err := net.Listen("tcp", l.address)
	if err != nil {
		return fmt.Errorf("sglang-sim: listen: %w", err)
	}
	l.ln, l.address = ln, ln.Addr().String() // the same port next time
	close(l.opened)
	return nil
}

// refuse ends listening until open.
func (l *listener) refuse() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ln != nil {
		l.ln.Close()
		l.ln, l.opened = nil, make(chan struct{})
	}
}

func (l *listener) port() int { return l.Addr().(*net.TCPAddr).Port }

// Accept waits for a connection, also while none can be made.
func (l *listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		ln, opened, closed := l.ln, l.opened, l.closed
		l.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		if ln == nil {
			<-opened
			continue
		}
		conn, err := ln.Accept()
		if err == nil || !errors.Is(err, net.ErrClosed) {
			return conn, err
		}
	}
}

// Close ends listening for good.
func (l *listener) Close() error {
	l.refuse()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		close(l.opened)
	}
	return nil
}

// Addr returns the address; the listener must have been opened.
func (l *listener) Addr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", l.address)
	if err != nil {
		return &net.TCPAddr{} // it was listened on
	}
	return a
}
