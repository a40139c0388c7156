package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	gpus         map[string]GPUInventory // by host; none: GPUs are given out unchecked
	logs         string                  // folder; empty: the launcher's choice
	events       *stream
	transport    http.RoundTripper // nil: a new one for each server

	mu      sync.Mutex
	servers []*Server
	named   int
	stops   int                            // calls of StopAll
	portOf  map[place]string               // port given out → server
	gpuOf   map[place]string               // GPU given out → server
	late    map[*reservation]chan struct{} // launches that were given up and go on; closed when they have been undone

	reserving sync.Mutex // held while a server is given its port and its GPUs; before mu
}

// An Option configures a [ServerManager].
type Option func(*ServerManager) error

// WithReadyTimeout sets how long Launch waits for readiness. Default: that of a launcher that is [Patient], such as
// [DefaultAttachTimeout] with [Attach], and else [DefaultReadyTimeout].
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

// WithGPUs makes the manager check, before it launches a server that needs GPUs of a host, that they exist and have memory, choose
// GPUs for a config that names none, on this host among those of CUDA_VISIBLE_DEVICES if that is set, and wait after its end
// until their memory is back. The inventory is that of this host or, if it is a [HostInventory], of the one that it names; the
// option may be given once for each. A server that would run on a host without one is refused.
func WithGPUs(inventory GPUInventory) Option {
	return func(m *ServerManager) error {
		if isNil(inventory) {
			return errors.New("GPUs: the inventory is nil")
		}
		host := hostOf(inventory)
		if m.gpus[host] != nil {
			return fmt.Errorf("GPUs: those of %s are given twice", hostName(host))
		}
		m.gpus[host] = inventory
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
	m := &ServerManager{launcher: l, readyTimeout: DefaultReadyTimeout, portOf: map[place]string{}, gpuOf: map[place]string{},
		gpus: map[string]GPUInventory{}, late: map[*reservation]chan struct{}{}, events: newStream()}
	faults := make([]error, 0, len(opts)+1)
	if patient, ok := l.(Patient); ok {
		if m.readyTimeout = patient.ReadyTimeout(); m.readyTimeout <= 0 {
			faults = append(faults, fmt.Errorf("the launcher's ready timeout %v: want > 0", m.readyTimeout))
		}
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

// start makes the launcher start a server. If it fails, what was reserved is given back: at once, or, if the launcher does not
// return, when it does and what it has started has been stopped.
func (m *ServerManager) start(ctx context.Context, r *reservation) (Instance, error) {
	spec := Spec{Name: r.name, Config: r.config.clone(), LogFolder: m.logs}
	if r.host != nil {
		spec.Host = r.host.Name
	}
	undone := make(chan struct{})
	launch := func(ctx context.Context) (Instance, error) {
		inst, err := m.launcher.Launch(ctx, spec)
		if err == nil && isNil(inst) {
			err = errors.New("the launcher returned neither an instance nor an error")
		}
		return inst, err
	}
	inst, err := ask(ctx, "the launcher", launch, func(inst Instance, err error) {
		defer close(undone)
		if err == nil {
			stopCtx, cancel := context.WithTimeout(context.Background(), stopUnready)
			defer cancel()
			err = order(stopCtx, "the launcher's Stop", inst.Stop)
			if err != nil { // it may still run
				m.events.emit(Event{Time: time.Now(), Server: r.name, Kind: KindWarning, Message: "a launch that was given up could not be undone: " + err.Error()})
				return
			}
		}
		r.release()
	})
	switch {
	case errors.Is(err, errGivenUp):
		m.mu.Lock()
		m.late[r] = undone
		m.mu.Unlock()
	case err != nil:
		r.release()
	}
	return inst, err
}

// launch brings up a server that has its name, its port and its GPUs.
func (m *ServerManager) launch(ctx context.Context, r *reservation) (*Server, error) {
	inst, err := m.start(ctx, r)
	if err != nil {
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
	if _, running := inst.(Attached); err == nil && running {
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
	late := maps.Clone(m.late)
	m.mu.Unlock()
	err := stopServers(ctx, m.Servers())
	for r, undone := range late {
		select {
		case <-undone:
			m.mu.Lock()
			delete(m.late, r)
			m.mu.Unlock()
		case <-ctx.Done():
			err = errors.Join(err, fmt.Errorf("server: stop %s: the launcher has not returned from its launch: %w", r.name, context.Cause(ctx)))
		}
	}
	return err
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
