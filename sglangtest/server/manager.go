package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
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

// A ServerManager owns servers: it launches them, gives out their names and ports, and stops them.
// It is safe for concurrent use.
type ServerManager struct {
	launcher     Launcher
	readyTimeout time.Duration
	apiKey       string
	adminKey     string
	abortOnStop  bool
	unproven     bool
	gpus         GPUInventory // nil: GPUs are given out unchecked
	logs         string       // folder; empty: the launcher's choice
	events       *stream
	transport    http.RoundTripper // nil: a new one for each server

	mu      sync.Mutex
	servers []*Server
	named   int
	stops   int            // calls of StopAll
	portOf  map[int]string // port given out → server
	gpuOf   map[int]string // GPU given out → server
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

// WithLogFolder sets the folder for NAME.stdout.log and NAME.stderr.log of servers that are processes, which must exist and
// have no control characters in its path; what is there is appended to. Default: a temporary folder, which stays only if the server fails.
func WithLogFolder(folder string) Option {
	return func(m *ServerManager) error {
		folder, err := filepath.Abs(folder)
		if err == nil {
			err = checkPath("log folder", folder)
		}
		if err != nil {
			return err
		}
		info, err := os.Stat(folder)
		if err != nil {
			return fmt.Errorf("log folder: %w", err)
		}
		if !info.IsDir() {
			return fmt.Errorf("log folder: %s is no folder", folder)
		}
		m.logs = folder
		return nil
	}
}

// WithAPIKey makes control calls carry "Authorization: Bearer key", the server's --api-key.
func WithAPIKey(key string) Option {
	return func(m *ServerManager) error { m.apiKey = key; return nil }
}

// WithTransport makes the control calls to all servers of the manager go through rt, which belongs to the caller: for
// https with a private certificate authority, or for a proxy, of which none is taken from the environment.
// load.NewTransport makes one to start from; the load needs one as well (load.WithTransport). Idle connections of rt are
// closed when a server ends. Default: a transport for each server.
func WithTransport(rt http.RoundTripper) Option {
	return func(m *ServerManager) error {
		if rt == nil {
			return errors.New("transport: it is nil")
		}
		m.transport = rt
		return nil
	}
}

// WithGPUs makes the manager check, before it launches a process on this host, that its GPUs exist and have memory, choose
// GPUs for a config that names none, among those of CUDA_VISIBLE_DEVICES if that is set, and wait after its end until
// their memory is back.
func WithGPUs(inventory GPUInventory) Option {
	return func(m *ServerManager) error {
		if inventory == nil {
			return errors.New("GPUs: the inventory is nil")
		}
		m.gpus = inventory
		return nil
	}
}

// WithAbortOnStop makes Stop end all requests of the server first. Without it SGLang finishes them before it ends, as
// long as the deadline allows.
func WithAbortOnStop() Option {
	return func(m *ServerManager) error { m.abortOnStop = true; return nil }
}

// WithoutProof makes Launch take a server for ready that says so, without having it generate a token: for one that is so busy
// that a token takes longer than the ready timeout, or must not be sent requests that the experiment does not ask for.
func WithoutProof() Option {
	return func(m *ServerManager) error { m.unproven = true; return nil }
}

// WithAdminAPIKey makes the control calls that change the server carry this key instead, the server's --admin-api-key.
// A server that has both keys takes for each call only the one that is meant for it.
func WithAdminAPIKey(key string) Option {
	return func(m *ServerManager) error { m.adminKey = key; return nil }
}

// WithEvents makes f be called for each event, one at a time and in order, from various goroutines. It may look at
// servers, but must not wait for one to start or stop. It may be given more than once.
func WithEvents(f func(Event)) Option {
	return func(m *ServerManager) error {
		if f == nil {
			return errors.New("events: the function is nil")
		}
		m.events.deliver = append(m.events.deliver, f)
		return nil
	}
}

// NewServerManager returns a manager that brings servers up through l. All faults of the options are reported together.
func NewServerManager(l Launcher, opts ...Option) (*ServerManager, error) {
	m := &ServerManager{launcher: l, readyTimeout: DefaultReadyTimeout, portOf: map[int]string{}, gpuOf: map[int]string{},
		events: newStream()}
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

// Launch starts a server and returns when it is ready to serve and has turned out to be SGLang. A port or a GPU that it
// cannot have is refused at once ([PortInUseError], [GPUError]). If Launch fails, nothing of the server is left, or the
// error says so too and StopAll tries again. The error says what was being waited for ([NotReadyError]), why the server
// ended ([ExitedError], with its [FailureError]), or what it is instead ([NotSGLangError], [VersionError]).
func (m *ServerManager) Launch(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("server: config:\n%w", err)
	}
	r, err := m.reserve(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return m.launch(ctx, r)
}

// launch brings up a server that has its name, its port and its GPUs.
func (m *ServerManager) launch(ctx context.Context, r *reservation) (*Server, error) {
	inst, err := m.launcher.Launch(ctx, Spec{Name: r.name, Config: r.config, LogFolder: m.logs})
	if err != nil {
		r.release()
		return nil, fmt.Errorf("server: launch %s: %w", r.name, err)
	}
	s := newServer(m, r, inst)
	m.mu.Lock()
	m.servers = append(m.servers, s)
	stopped := m.stops > r.stops
	m.mu.Unlock()
	if stopped {
		err = &ExitedError{}
	} else {
		err = s.becomeReady(ctx)
	}
	if _, running := inst.(*attached); err == nil && running {
		err = s.checkConfig(r.config)
	}
	if err == nil {
		return s, nil
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopUnready)
	defer cancel()
	err = fmt.Errorf("server: launch %s: %w", r.name, err)
	if failed := s.Stop(stopCtx); failed != nil {
		return nil, errors.Join(err, failed)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = slices.DeleteFunc(m.servers, func(other *Server) bool { return other == s })
	return nil, err
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
	return stopServers(ctx, m.Servers())
}

func stopServers(ctx context.Context, servers []*Server) error {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		if s != nil {
			wg.Go(func() { errs[i] = s.Stop(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}
