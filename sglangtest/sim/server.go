package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
)

// Version is the SGLang version whose scheduler and HTTP API are simulated, unless [WithVersion] names another.
const Version = "0.5.23"

// keepAlive is how long an idle connection stays open (uvicorn, SGLANG_TIMEOUT_KEEP_ALIVE).
const keepAlive = 5 * time.Second

// A Server is a simulated SGLang server: a real-time host of the engine behind SGLang's HTTP API, in this process.
// Its methods are safe for concurrent use.
//
// Prompts given as ids have their length; texts are counted by [load.TextTokens], chat messages likewise plus four tokens
// for each, unless [WithTokenizer] counts them exactly. An answer has max_new_tokens tokens whatever ignore_eos says, and
// 128 if the request sets no limit, unless a stop string or stop token that the filler has ends it: the simulated model
// never ends an answer earlier. The answer's text is filler, and so are logprobs.
type Server struct {
	profile                   Profile
	cfg                       server.Config // as launched, with the defaults filled in
	opts                      options
	host                      *host
	http                      *http.Server
	nextID                    atomic.Uint64            // for requests without a rid
	label                     atomic.Pointer[[]string] // value of load.SimulatedByHeader
	lacks                     []lack                   // arguments that are shown and not simulated
	faults                    atomic.Pointer[[]string] // that were injected, in the order of their first time
	weights                   atomic.Pointer[string]   // weight version
	bodyTimeout, writeTimeout time.Duration

	addr   net.Addr
	status atomic.Int32
	served chan struct{} // the HTTP server takes no more connections
	ended  chan struct{} // everything has ended
	err    error         // why the server ended by itself; written before ended is closed

	base    context.Context // ends when handlers must return
	abandon context.CancelFunc

	mu       sync.Mutex
	refused  bool // no new handlers
	handlers sync.WaitGroup
	stop     sync.Once // Close
	last     sync.Once // finish
}

// The values of Server.status.
const (
	statusStarting int32 = iota
	statusUp
	statusUnhealthy // a health check got no result in time
	statusDraining  // like statusUp, but not healthy
	statusStopping
)

// NewServer returns a server that is not started. It honours the arguments in cfg that [Arguments] lists and refuses
// the others, all faults together. GPUs is ignored, since none is used; the pool of KV tokens of each data-parallel rank comes
// from the profile unless MaxTotalTokens sets it. Limits hold for each rank, as SGLang has it without data-parallel
// attention. cfg may hold SGLang's default of any argument.
func NewServer(profile Profile, cfg server.Config, opts ...Option) (*Server, error) {
	errs := []error{profile.validate()}
	if cfg.ModelPath != "" && cfg.ModelPath != profile.ModelPath {
		errs = append(errs, fmt.Errorf("sim: model_path is %q, but profile %s simulates %s: leave it out, or choose a profile of that model; served_model_name can be anything",
			cfg.ModelPath, profile.Name, profile.ModelPath))
	}
	o := defaultOptions()
	for _, opt := range opts {
		errs = append(errs, opt(&o))
	}
	o.engine = profile.EngineConfig()
	o.engine.Rules = o.release.rules
	errs = append(errs, o.unknownArgs(), o.apply(o.release.name, cfg), o.engine.validate())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if shown, ok := o.serverArgs["model_path"].(string); ok {
		cfg.ModelPath = shown
	}
	if cfg.ModelPath == "" {
		cfg.ModelPath = profile.ModelPath
	}
	if cfg.TokenizerPath == "" {
		cfg.TokenizerPath = cfg.ModelPath
	}
	if cfg.ServedModelName == "" {
		cfg.ServedModelName = cfg.ModelPath
	}
	if cfg.Host == "" {
		cfg.Host = "127.0.0.1"
	}
	h, err := newHost(profile, o.engine, o.ranks)
	if err != nil {
		return nil, err
	}
	s := &Server{profile: profile, cfg: cfg, opts: o, host: h, lacks: profile.lacks(o.release.name, o.serverArgs), served: make(chan struct{}), ended: make(chan struct{})}
	s.faults.Store(new([]string))
	s.relabel()
	s.weights.Store(&o.weightVersion)
	s.bodyTimeout, s.writeTimeout = bodyTimeout, writeTimeout
	s.base, s.abandon = context.WithCancel(context.Background())
	h.balancer.method = o.balance
	h.fault = s.NoteFault
	h.died = func(err error) {
		s.crash(fmt.Errorf("%w, as that of SGLang %s would: %w", ErrSchedulerDied, o.release.name, err))
	}
	h.observe(&o, s.cfg.ServedModelName)
	var handler http.Handler = s
	if o.metrics {
		handler = h.meter.countHTTP(handler)
	}
	for _, wrap := range o.middleware {
		handler = wrap(handler)
	}
	s.http = &http.Server{Handler: handler, IdleTimeout: keepAlive, ReadHeaderTimeout: readTimeout}
	return s, nil
}

// Start listens and serves. It returns when the server has its address; the server is up then, unless [WithStarting]
// leaves that to [Server.Up]. A port that is in use is an error. Start may be called once.
func (s *Server) Start(ctx context.Context) error {
	ln := s.opts.listener
	if ln == nil {
		var err error
		if ln, err = new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(s.cfg.Host, strconv.Itoa(s.cfg.Port))); err != nil {
			return fmt.Errorf("sim: listen: %w", err)
		}
	}
	if err := s.host.begin(); err != nil {
		ln.Close()
		return err
	}
	s.addr = ln.Addr()
	go func() {
		err := s.http.Serve(ln)
		close(s.served)
		if s.status.Load() != statusStopping {
			s.finish(fmt.Errorf("sim: serve: %w", err))
		}
	}()
	if !s.opts.starting {
		s.Up()
	}
	return nil
}

// Up ends the starting state of a server with [WithStarting]: SGLang's warm-up is over.
func (s *Server) Up() { s.status.CompareAndSwap(statusStarting, statusUp) }

// Drain is what SIGTERM does to SGLang's HTTP process: the server is no longer healthy, and otherwise works as before.
// New generations are accepted, too. What ends it then is the caller's: see [Server.InFlight] and [Server.WaitIdle].
func (s *Server) Drain() {
	for _, from := range []int32{statusStarting, statusUp, statusUnhealthy} {
		if s.status.CompareAndSwap(from, statusDraining) {
			return
		}
	}
}

// ErrSchedulerDied is what [Server.Err] wraps when a request killed the scheduler, as some do with old versions of SGLang, or
// when it died for want of memory, an [*OutOfMemoryError].
var ErrSchedulerDied = errors.New("sim: the scheduler died")

// crash ends the server as the death of its scheduler does: all connections break.
func (s *Server) crash(err error) {
	s.status.Store(statusStopping)
	s.abandon()
	s.http.Close()
	go s.finish(err)
}

// InFlight returns the ids of the generations that have not ended, in no order. Those that the front process has forgotten
// since their client has gone, which only versions before 0.5.21 do, are none of them.
func (s *Server) InFlight() []string {
	s.host.mu.Lock()
	defer s.host.mu.Unlock()
	var rids []string
	for rid, st := range s.host.streams {
		if !st.lost {
			rids = append(rids, rid)
		}
	}
	return rids
}

// WaitIdle returns nil at a moment at which no generation is in flight, or the context's error if that ends first.
func (s *Server) WaitIdle(ctx context.Context) error {
	return s.waitInFlight(ctx, func(n int) bool { return n == 0 })
}

// waitInFlight returns nil at a moment at which so many generations are in flight that ok says so.
func (s *Server) waitInFlight(ctx context.Context, ok func(n int) bool) error {
	for {
		change := s.host.nextChange() // before they are counted
		n := len(s.InFlight())
		if ok(n) {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Exited is closed when a server that was started has ended, by [Server.Close] or by itself.
func (s *Server) Exited() <-chan struct{} { return s.ended }

// Err returns why the server ended by itself, or nil: it wraps [ErrSchedulerDied], or the HTTP server failed.
func (s *Server) Err() error {
	select {
	case <-s.ended:
		return s.err
	default:
		return nil
	}
}

// EngineConfig returns the effective configuration of the server's schedulers, one for each data-parallel rank: that of the
// profile with what the server's config sets. It is known before Start.
func (s *Server) EngineConfig() EngineConfig { return s.host.config() }

// URL returns the base URL, without a trailing slash. The server must have been started.
func (s *Server) URL() string { return "http://" + s.addr.String() }

// StepLateness returns how late the results of steps went out so far.
func (s *Server) StepLateness() Lateness { return s.host.late.summary() }

// Close ends the server and returns when its goroutines have ended and its port is free. It takes no new connections
// but lets the requests under way finish; when ctx is done their connections break, as when a server is killed: a
// done ctx does so at once. Close may be called again, and does nothing to a server that was not started.
func (s *Server) Close(ctx context.Context) {
	if s.addr == nil {
		return
	}
	s.stop.Do(func() {
		s.status.Store(statusStopping)
		go func() {
			if s.http.Shutdown(ctx) != nil {
				s.abandon()
				s.http.Close()
			}
			s.finish(nil)
		}()
	})
	select {
	case <-s.ended:
	case <-ctx.Done():
		s.abandon()
		s.http.Close()
		<-s.ended
	}
}

// finish ends what is left when the HTTP server has ended.
func (s *Server) finish(err error) {
	s.last.Do(func() {
		<-s.served
		s.err = err
		s.abandon()
		if err != nil {
			s.http.Close() // a client that does not read would keep its handler
		}
		s.mu.Lock()
		s.refused = true
		s.mu.Unlock()
		s.handlers.Wait()
		s.host.stop()
		close(s.ended)
	})
}
