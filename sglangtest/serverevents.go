package sglangtest

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// serverEvents puts what the servers of a run warn of, and the faults that were asked for, into its time line. What came before
// the run began is put at its begin, at moments before 0.
type serverEvents struct {
	mu    sync.Mutex
	early []server.Event
	put   func(server.Event) // nil before the run and after it
}

// tell is for server.WithEvents.
func (s *serverEvents) tell(e server.Event) {
	if e.Kind != server.KindWarning && e.Kind != server.KindFault {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.put == nil {
		s.early = append(s.early, e)
		return
	}
	s.put(e)
}

// follow returns the background task that does it.
func (s *serverEvents) follow(col *metrics.Collector) func(context.Context, load.Clock) error {
	return func(ctx context.Context, clock load.Clock) error {
		put := func(e server.Event) {
			kind := metrics.KindServerWarning
			if e.Kind == server.KindFault {
				kind = metrics.KindServerFault
			}
			col.Event(metrics.Event{At: clock.Offset(e.Time), Kind: kind, Source: e.Server, Data: map[string]any{"message": e.Message}})
		}
		s.mu.Lock()
		for _, e := range s.early {
			put(e)
		}
		s.early, s.put = nil, put
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		s.put = nil
		s.mu.Unlock()
		return nil
	}
}

// startInterval is how often progress is reported while a server starts.
const startInterval = time.Second

// A startProgress reports how far the start of the servers is.
type startProgress struct {
	report func(metrics.Progress)

	mu    sync.Mutex
	begin time.Time
	phase string
	over  bool
}

// tell is for server.WithEvents.
func (s *startProgress) tell(e server.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
	case e.Kind == server.KindPhase:
		s.phase = e.Server + " starts; " + e.Message
		s.show()
	case e.Kind == server.KindState && e.Message == string(server.StateStarting):
		s.phase = e.Server + " starts" // shown if it takes a while
	}
}

// show reports. s.mu is held.
func (s *startProgress) show() {
	s.report(metrics.Progress{Phase: s.phase, Elapsed: time.Since(s.begin), TTFT: metrics.Millis(math.NaN())})
}

// during reports while f runs, and not after it.
func (s *startProgress) during(f func() error) error {
	s.begin = time.Now()
	var ticking sync.WaitGroup
	done := make(chan struct{})
	ticking.Go(func() {
		tick := time.NewTicker(startInterval)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				s.mu.Lock()
				if s.phase != "" {
					s.show()
				}
				s.mu.Unlock()
			}
		}
	})
	err := f()
	close(done)
	ticking.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return err
}
