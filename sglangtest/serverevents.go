package sglangtest

import (
	"context"
	"sync"

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
