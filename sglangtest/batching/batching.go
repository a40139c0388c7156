// Package batching decides when waiting requests leave and which of them go together.
//
// A [Strategy] stands before the policy in a dispatcher (package dispatch): it forms batches, and the policy
// routes each batch as a whole. Like a policy it is pure: time comes from the view, and equal calls give
// equal batches.
package batching

import (
	"fmt"
	"slices"

	"github.com/sglangtest/harness/sglangtest/policy"
)

// A Strategy forms batches of the requests that wait. Hosts call its methods one after the other and never at
// once; an object must not serve two hosts, nor two runs.
type Strategy interface {
	// Push gives the strategy a request. It may keep r until Next returns it or Remove takes it, and not
	// modify it.
	Push(r *policy.Request)
	// Remove takes back a request that the strategy has, by its ID: its client has gone. It reports whether
	// it had it.
	Remove(id int) bool
	// Len returns the number of requests that the strategy has.
	Len() int
	// Next returns the next batch that leaves, of requests that were pushed, in the order in which they are
	// to be sent. If there is none, wake says when to ask again; while it has requests, it must name
	// something. It is called after each Push and at its own wakes, until there is no batch more. The batch
	// is valid until the next call. Next must not keep v.
	Next(v *policy.View) (batch []*policy.Request, wake policy.Wake)
}

// Static forms batches of a fixed size, in order of arrival: a batch leaves when its last request has come.
// What is left at the end of a workload that the size does not divide never leaves; a virtual run says so.
type Static struct {
	size int
	fifo []*policy.Request
	out  []*policy.Request // the batch returned last
}

// NewStatic returns a strategy of batches of size requests, ≥ 1.
func NewStatic(size int) (*Static, error) {
	if size < 1 {
		return nil, fmt.Errorf("batching: static: size %d: want ≥ 1", size)
	}
	return &Static{size: size}, nil
}

// Push implements [Strategy].
func (s *Static) Push(r *policy.Request) { s.fifo = append(s.fifo, r) }

// Remove implements [Strategy].
func (s *Static) Remove(id int) bool {
	i := slices.IndexFunc(s.fifo, func(r *policy.Request) bool { return r.ID == id })
	if i >= 0 {
		s.fifo = slices.Delete(s.fifo, i, i+1)
	}
	return i >= 0
}

// Len implements [Strategy].
func (s *Static) Len() int { return len(s.fifo) }

// Next implements [Strategy].
func (s *Static) Next(*policy.View) ([]*policy.Request, policy.Wake) {
	if len(s.fifo) < s.size || s.size == 0 {
		return nil, policy.Wake{On: policy.Arrival}
	}
	s.out = append(s.out[:0], s.fifo[:s.size]...)
	s.fifo = slices.Delete(s.fifo, 0, s.size)
	return s.out, policy.Wake{}
}
