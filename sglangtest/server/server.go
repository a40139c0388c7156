package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// pollInterval is the time between two looks at a server that is not ready.
const pollInterval = 100 * time.Millisecond

// A State is a phase in a server's life.
type State string

// The states, in the order in which a server goes through them.
const (
	StateStarting State = "starting"
	StateReady    State = "ready"
	StateStopping State = "stopping"
	StateStopped  State = "stopped" // ended as asked
	StateFailed   State = "failed"  // ended by itself
)

// A Server is a server that a [ServerManager] launched. It is safe for concurrent use.
type Server struct {
	name    string
	inst    Instance
	client  *client
	events  func(Event)
	release func() // gives the port back

	watched chan struct{} // closed when the end has been noted

	mu    sync.Mutex
	state State
	info  Info
	raw   map[string]any // the answer to /server_info
	limit int            // running-request limit in force, 0 if not known
}

func newServer(m *ServerManager, name string, inst Instance, release func()) *Server {
	s := &Server{name: name, inst: inst, events: m.events, release: release, watched: make(chan struct{})}
	s.client = newClient(inst.URL(), m.apiKey, func(message string) { s.event("retry", message) })
	s.setState(StateStarting)
	go s.watch()
	return s
}

// watch notes the end of the server. It ends with the instance, which Stop ends at the latest.
func (s *Server) watch() {
	defer close(s.watched)
	<-s.inst.Exited()
	s.release()
	s.client.close()
	s.mu.Lock()
	wanted := s.state == StateStopping
	s.mu.Unlock()
	if wanted {
		s.setState(StateStopped)
	} else {
		s.setState(StateFailed)
	}
}

func (s *Server) setState(state State) {
	s.mu.Lock()
	s.state = state
	s.mu.Unlock()
	s.event("state", string(state))
}

func (s *Server) event(kind, message string) {
	s.events(Event{Time: time.Now(), Server: s.name, Kind: kind, Message: message})
}

// Name returns the server's name, unique within its manager.
func (s *Server) Name() string { return s.name }

// URL returns the base URL, without a trailing slash.
func (s *Server) URL() string { return s.inst.URL() }

// State returns the present state.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Info returns what the server said of itself when it became ready.
func (s *Server) Info() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// Exited is closed when the server has ended, and Err then says why if that was not asked for.
func (s *Server) Exited() <-chan struct{} { return s.watched }

// Err says why the server ended by itself; nil if it has not, or was stopped.
func (s *Server) Err() error { return s.inst.Err() }

// Stop ends the server and returns when it has ended; it forces the end when ctx is done. A server that was
// only attached to goes on. Stop may be called again, and on a server that has ended by itself.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	if s.state == StateStarting || s.state == StateReady {
		s.state = StateStopping
		s.mu.Unlock()
		s.event("state", string(StateStopping))
	} else {
		s.mu.Unlock()
	}
	if err := s.inst.Stop(ctx); err != nil {
		return fmt.Errorf("server: stop %s: %w", s.name, err)
	}
	<-s.watched
	return nil
}

// becomeReady waits until the server serves, finds out what it is and reads its facts.
//
// From 0.5.21 on /ready tells; it needs no generation. Before, the socket opens when the model has been loaded,
// /model_info answers from then on, and /health, which generates a token and takes a second, is 503 until the
// warm-up is over (SGLang entrypoints/http_server.py).
func (s *Server) becomeReady(ctx context.Context) error {
	waiting, path := "/ready", "/ready"
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := s.client.once(ctx, http.MethodGet, path, nil)
		var status *StatusError
		switch {
		case err == nil:
			if err := s.identify(ctx); err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.state == StateStarting {
				s.state = StateReady
				defer s.event("state", string(StateReady))
			}
			return nil
		case errors.As(err, &status) && status.Status == http.StatusNotFound && path == "/ready":
			waiting, path = "/health (this server has no /ready)", "/health"
			if err := s.identify(ctx); err != nil { // whatever it is, it has opened its socket
				return err
			}
			continue
		}
		select {
		case <-tick.C:
		case <-s.watched:
			return &ExitedError{Err: s.inst.Err()}
		case <-ctx.Done():
			return &NotReadyError{Waiting: waiting, Last: err.Error(), Err: context.Cause(ctx)}
		}
	}
}

// Simulation returns what simulates the server's engine; nil if it is real as far as is known.
func (s *Server) simulation(raw map[string]any) *metrics.Simulation {
	if sim, ok := s.inst.(Simulated); ok {
		v := sim.Simulation()
		return &v
	}
	if m, ok := raw["simulated"].(map[string]any); ok { // a simulated server that was attached to says so
		text := func(key string) string { t, _ := m[key].(string); return t }
		return &metrics.Simulation{Profile: text("profile"), Calibrated: text("calibrated"), KnownError: text("known_error")}
	}
	return nil
}
