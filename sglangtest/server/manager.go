package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// DefaultReadyTimeout is how long [ServerManager.Launch] waits for a server to become ready: long enough to load
// a large model from a slow disk.
const DefaultReadyTimeout = 10 * time.Minute

// DefaultAttachTimeout is how long Launch waits for a server that already runs.
const DefaultAttachTimeout = 15 * time.Second

// stopUnready bounds the stop of a server whose launch failed.
const stopUnready = 30 * time.Second

// An Event tells of a change in a server's life or of something noticed about it.
type Event struct {
	Time    time.Time
	Server  string
	Kind    string // "state", or "retry": a control call is made again
	Message string
}

// A ServerManager owns servers: it launches them, gives out their names and ports, and stops them.
// It is safe for concurrent use.
type ServerManager struct {
	launcher     Launcher
	readyTimeout time.Duration
	apiKey       string
	adminKey     string
	events       func(Event)
	transport    http.RoundTripper // of tests; nil: a new one for each server

	mu      sync.Mutex
	servers []*Server
	named   int
	stops   int            // calls of StopAll
	ports   map[int]string // port given out → server
}

// An Option configures a [ServerManager].
type Option func(*ServerManager) error

// WithReadyTimeout sets how long Launch waits for readiness. Default: [DefaultReadyTimeout], or [DefaultAttachTimeout] with
// [Attach].
func WithReadyTimeout(d time.Duration) Option {
	return func(m *ServerManager) error {
		if d <= 0 {
			return fmt.Errorf("ready timeout %v: want > 0", d)
		}
		m.readyTimeout = d
		return nil
	}
}

// WithAPIKey makes control calls carry "Authorization: Bearer key", the server's --api-key.
func WithAPIKey(key string) Option {
	return func(m *ServerManager) error { m.apiKey = key; return nil }
}

// WithAdminAPIKey makes the control calls that change the server carry this key instead, the server's --admin-api-key.
// A server that has both keys takes for each call only the one that is meant for it.
func WithAdminAPIKey(key string) Option {
	return func(m *ServerManager) error { m.adminKey = key; return nil }
}

// WithEvents makes f be called for each event, from various goroutines, also concurrently.
func WithEvents(f func(Event)) Option {
	return func(m *ServerManager) error {
		if f == nil {
			return errors.New("events: the function is nil")
		}
		m.events = f
		return nil
	}
}

// NewServerManager returns a manager that brings servers up through l. All faults of the options are reported together.
func NewServerManager(l Launcher, opts ...Option) (*ServerManager, error) {
	m := &ServerManager{launcher: l, readyTimeout: DefaultReadyTimeout, ports: map[int]string{}, events: func(Event) {}}
	faults := make([]error, 0, len(opts)+1)
	if _, running := l.(*attached); running {
		m.readyTimeout = DefaultAttachTimeout
	}
	if l == nil {
		faults = append(faults, errors.New("launcher is nil"))
	}
	for _, opt := range opts {
		faults = append(faults, opt(m))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("server: manager: %w", err)
	}
	return m, nil
}

// Launch starts a server and returns when it is ready to serve and has turned out to be SGLang. A fixed port that
// is in use is refused at once ([PortInUseError]). If Launch fails, nothing of the server is left, or the error says so
// too and StopAll tries again. The error says what was being waited for ([NotReadyError]), why the server ended, or what it is instead ([NotSGLangError]).
func (m *ServerManager) Launch(ctx context.Context, cfg Config) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("server: config:\n%w", err)
	}
	name, stops, release, err := m.reserve(cfg)
	if err != nil {
		return nil, err
	}
	inst, err := m.launcher.Launch(ctx, Spec{Name: name, Config: cfg})
	if err != nil {
		release()
		return nil, fmt.Errorf("server: launch %s: %w", name, err)
	}
	s := newServer(m, name, inst, release)
	m.mu.Lock()
	m.servers = append(m.servers, s)
	stopped := m.stops > stops
	m.mu.Unlock()
	readyCtx, cancel := context.WithTimeoutCause(ctx, m.readyTimeout, fmt.Errorf("the time-out of %v: %w", m.readyTimeout, context.DeadlineExceeded))
	defer cancel()
	if stopped {
		err = &ExitedError{}
	} else {
		err = s.becomeReady(readyCtx)
	}
	if _, running := inst.(*attached); err == nil && running {
		err = s.checkConfig(cfg)
	}
	if err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopUnready)
		defer cancel()
		err = fmt.Errorf("server: launch %s: %w", name, err)
		if failed := s.Stop(stopCtx); failed != nil {
			return nil, errors.Join(err, failed)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.servers = slices.DeleteFunc(m.servers, func(other *Server) bool { return other == s })
		return nil, err
	}
	return s, nil
}

// reserve names a server and gives it its port, if the config fixes one. A port is given once, whatever the host:
// "localhost", "127.0.0.1" and "0.0.0.0" may be one. The returned function gives it back.
func (m *ServerManager) reserve(cfg Config) (name string, stops int, release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = "server-" + strconv.Itoa(m.named)
	release = func() {}
	if _, running := m.launcher.(*attached); cfg.Port != 0 && !running {
		addr := cfg.address()
		if other, taken := m.ports[cfg.Port]; taken {
			return "", 0, nil, &PortInUseError{Address: addr, By: other}
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return "", 0, nil, &PortInUseError{Address: addr, Err: err}
		}
		l.Close()
		m.ports[cfg.Port] = name
		release = sync.OnceFunc(func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			delete(m.ports, cfg.Port)
		})
	}
	m.named++
	return name, m.stops, release, nil
}

// Servers returns the servers in order of launch, those that are starting or have ended included.
func (m *ServerManager) Servers() []*Server {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.servers)
}

// StopAll stops all servers at once and returns what went wrong with any. Launches under way fail: each stops its
// server before it returns. StopAll may be called again, and servers may be launched after it.
func (m *ServerManager) StopAll(ctx context.Context) error {
	m.mu.Lock()
	m.stops++
	m.mu.Unlock()
	servers := m.Servers()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = s.Stop(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
