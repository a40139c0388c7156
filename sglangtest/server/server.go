package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
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

	ended context.Context // over when the end has been noted
	end   context.CancelFunc

	mu    sync.Mutex
	state State
	info  Info
	raw   map[string]any // the answer to /server_info
	limit int            // running-request limit in force, 0 if not known
}

func newServer(m *ServerManager, name string, inst Instance, release func()) *Server {
	s := &Server{name: name, inst: inst, events: m.events, release: release}
	s.ended, s.end = context.WithCancel(context.Background())
	s.client = newClient(inst.URL(), m.apiKey, m.transport, func(message string) {
		s.events(Event{Time: time.Now(), Server: name, Kind: "retry", Message: message})
	})
	s.client.adminKey = m.adminKey
	s.enter(StateStarting, "")
	go s.watch()
	return s
}

// watch notes the end of the server. It ends with the instance, which Stop ends at the latest.
func (s *Server) watch() {
	defer s.end()
	<-s.inst.Exited()
	s.release()
	s.client.close()
	if s.inst.Err() != nil || !s.enter(StateStopped, StateStopping) {
		s.enter(StateFailed, StateStarting, StateReady, StateStopping)
	}
}

// enter changes the state, if it is one of from, and reports whether it did.
func (s *Server) enter(to State, from ...State) bool {
	s.mu.Lock()
	if !slices.Contains(from, s.state) {
		s.mu.Unlock()
		return false
	}
	s.state = to
	at := time.Now()
	s.mu.Unlock()
	s.events(Event{Time: at, Server: s.name, Kind: "state", Message: string(to)})
	return true
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
func (s *Server) Exited() <-chan struct{} { return s.ended.Done() }

// Err says why the server ended by itself; nil if it has not, or was stopped.
func (s *Server) Err() error { return s.inst.Err() }

// Stop ends the server and returns when it has ended; it forces the end when ctx is done. A server that was
// only attached to goes on. Stop may be called again, and on a server that has ended by itself.
func (s *Server) Stop(ctx context.Context) error {
	s.enter(StateStopping, StateStarting, StateReady)
	if err := s.inst.Stop(ctx); err != nil {
		return fmt.Errorf("server: stop %s: %w", s.name, err)
	}
	<-s.ended.Done()
	return nil
}

// becomeReady waits until the server serves, finds out what it is and reads its facts.
//
// From 0.5.21 on /ready tells; it needs no generation. Before, the socket opens when the model has been loaded,
// /model_info answers from then on, and /health, which generates a token and takes a second, is 503 until the
// warm-up is over (SGLang entrypoints/http_server.py).
func (s *Server) becomeReady(ctx context.Context) error {
	look, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ended, cancel)() // a server that has ended does not answer
	path, waiting, last := "/ready", "/ready (503 while the server starts, ends or is paused)", "no answer yet"
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := s.client.once(look, http.MethodGet, path, nil, nil)
		var status *StatusError
		if err == nil {
			if err = s.identify(look); err == nil {
				break
			}
		} else if path == "/ready" && errors.As(err, &status) && status.Status == http.StatusNotFound {
			if _, err = s.recognise(look); err == nil { // whatever it is, it has opened its socket
				path, waiting = "/health", "/health (503 while the server starts or ends; this SGLang has no /ready)"
				continue
			}
		}
		if look.Err() == nil { // else err is the end of the wait
			if !passing(err) {
				return err
			}
			last = err.Error()
		}
		select {
		case <-tick.C:
		case <-s.ended.Done():
			return &ExitedError{Err: s.inst.Err()}
		case <-ctx.Done():
			return &NotReadyError{Waiting: waiting, Last: last, Err: context.Cause(ctx)}
		}
	}
	if !s.enter(StateReady, StateStarting) {
		return &ExitedError{Err: s.inst.Err()}
	}
	return nil
}

// passing reports whether err is of a kind that ends when a server has started: it does not answer, or it answers
// that it cannot.
func passing(err error) bool {
	var none *noAnswerError
	var status *StatusError
	return errors.As(err, &none) || errors.As(err, &status) && status.Status >= 500
}

// simulation returns what simulates the server's engine; nil if it is real as far as is known.
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
