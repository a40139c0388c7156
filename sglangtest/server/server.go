package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

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
	m      *ServerManager
	name   string
	client *client

	mu    sync.Mutex
	life  *life
	state State
	info  Info
	raw   map[string]any // the answer to /server_info
	limit int            // running-request limit in force, 0 if not known
	stops int            // calls of Stop

	restarting sync.Mutex // held by Restart
}

// A life is a server's time from a launch to its end; each restart begins a new one.
type life struct {
	inst        Instance
	reservation *reservation
	log         *Log     // nil: it cannot be read
	startup     *startup // guarded by the server's lock
	follower    sync.WaitGroup
	unfollow    context.CancelFunc // ends the reading of the log, which the start-up needs
	doom        chan string        // a line of the log after which the server cannot become ready
	nextLine    int                // of the log that the start-up has not read; the follower's, and after it whoever waited for it
	told        time.Time          // the moment of the last progress that was told; likewise

	keep      bool // port and GPUs are kept when it ends: a restart follows
	over      bool // port and GPUs have been given back, or kept
	killed    bool // by Kill
	suspended bool // by Suspend
	err       error

	ended context.Context // over when the end has been noted
	end   context.CancelFunc
}

func newServer(m *ServerManager, r *reservation, inst Instance) *Server {
	s := &Server{m: m, name: r.name}
	s.client = newClient(inst.URL(), cmp.Or(m.apiKey, r.config.APIKey), m.transport, func(message string) { s.tell(KindRetry, message) })
	s.client.adminKey = cmp.Or(m.adminKey, r.config.AdminAPIKey)
	s.begin(inst, r)
	return s
}

// begin begins a life.
func (s *Server) begin(inst Instance, r *reservation) {
	l := &life{inst: inst, reservation: r, log: logOf(inst), startup: newStartup(time.Now()), doom: make(chan string, 1)}
	l.ended, l.end = context.WithCancel(context.Background())
	s.mu.Lock()
	s.life = l
	s.mu.Unlock()
	s.enter(StateStarting, "", StateStopped, StateFailed)
	if warned, ok := inst.(Warned); ok {
		for _, text := range warned.Warnings() {
			s.tell(KindWarning, text)
		}
	}
	var following context.Context
	following, l.unfollow = context.WithCancel(context.Background())
	if l.log != nil {
		l.follower.Go(func() { s.followStartup(following, l) })
	}
	go s.watch(l)
}

// watch notes the end of a life. It ends with the instance, which Stop ends at the latest.
func (s *Server) watch(l *life) {
	defer l.end()
	<-l.inst.Exited()
	if !l.logEnded() {
		s.tell(KindWarning, fmt.Sprintf("its log has not ended %v after it: what it wrote last may be missing (the launcher calls Log.End)", logTimeout))
		l.unfollow()
	}
	l.follower.Wait()
	l.unfollow()
	s.client.close()
	s.mu.Lock()
	wanted := s.state == StateStopping
	l.err = s.diagnosis(l, wanted)
	err := l.err
	s.mu.Unlock()
	s.tellExit(l)
	if held, failed := l.reservation.memoryBack(); failed != nil {
		s.tell(KindWarning, "it is not known whether the memory of the GPUs is free again: "+failed.Error())
	} else if held != "" {
		s.tell(KindWarning, "memory is not free again: "+held)
	}
	s.mu.Lock()
	l.over = true
	keep := l.keep
	s.mu.Unlock()
	if l.remains() {
		s.tell(KindWarning, "processes of it are still there, so that its port and its GPUs are not given out again")
	} else if !keep {
		l.reservation.release()
	}
	if err != nil || !wanted {
		s.enter(StateFailed, StateStarting, StateReady, StateStopping)
	} else {
		s.enter(StateStopped, StateStopping)
	}
	var failure *FailureError
	if errors.As(err, &failure) {
		s.tell(KindFailure, failure.Error())
	}
}

// remains reports whether processes of an ended life could not be ended.
func (l *life) remains() bool {
	remainer, ok := l.inst.(Remainer)
	return ok && remainer.Remains()
}

// logOf returns the log of an instance; nil if it has none.
func logOf(inst Instance) *Log {
	if logged, ok := inst.(Logged); ok {
		return logged.Log()
	}
	return nil
}

// logEnded waits for the end of the log of a server that has ended, and reports false if it does not come.
func (l *life) logEnded() bool {
	if l.log == nil {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), logTimeout)
	defer cancel()
	for range l.log.Follow(ctx) {
	}
	return l.log.hasEnded()
}

// exit returns how the main process of an ended life ended, and whether that is known.
func (l *life) exit() (Exit, bool) {
	if exiter, ok := l.inst.(Exiter); ok {
		return exiter.Exit()
	}
	return notEnded, false
}

// errUnexplained is why a server ended of which its launcher does not tell.
var errUnexplained = errors.New("it ended by itself; its launcher does not say why")

// diagnosis says why a life has ended by itself; nil if it was wanted.
func (s *Server) diagnosis(l *life, wanted bool) error {
	err := l.inst.Err()
	exit, known := l.exit()
	if l.killed && (exit.Forced || !known) {
		return ErrKilled
	}
	if err == nil && !wanted {
		err = errUnexplained
	}
	if l.log == nil || err == nil {
		return err
	}
	lines := l.log.Tail(logCapacity)
	texts := make([]string, len(lines))
	for i, line := range lines {
		texts[i] = line.Text
	}
	return s.diagnosed(l, texts, exit, err)
}

// diagnosed is the diagnosis from the log of a life. ended is what its launcher says of the end; nil if it has not ended.
func (s *Server) diagnosed(l *life, log []string, exit Exit, ended error) *FailureError {
	failure := diagnose(log, exit, l.reservation.config, l.startup)
	failure.LogFile, failure.Ended = l.keepLog(), ended
	return failure
}

// keepLog keeps all that the server writes, and returns where it is; "" if it is nowhere.
func (l *life) keepLog() string {
	if keeper, ok := l.inst.(LogKeeper); ok {
		return keeper.KeepLog()
	}
	return ""
}

// tellExit tells how the process of a life ended, and whether that is how its version ends when asked.
func (s *Server) tellExit(l *life) {
	exit, known := l.exit()
	if !known {
		return
	}
	text := exit.String()
	if exit.Asked && exit.Took > 0 {
		text += fmt.Sprintf(" after %v", exit.Took.Round(time.Millisecond))
	}
	version := s.Info().Version
	if exit.Asked && !exit.Forced && !exit.Clean(version) {
		s.tell(KindWarning, fmt.Sprintf("%s: %s does not end like this when it is asked to: its log may say why", text, strings.TrimSpace("SGLang "+version)))
	}
	s.tell(KindExit, text)
}

// enter changes the state, if it is one of from, and reports whether it did.
func (s *Server) enter(to State, from ...State) bool {
	s.mu.Lock()
	if !slices.Contains(from, s.state) {
		s.mu.Unlock()
		return false
	}
	s.state = to
	s.m.events.add(Event{Time: time.Now(), Server: s.name, Kind: KindState, Message: string(to)}) // in the order of the states
	s.mu.Unlock()
	s.m.events.flush()
	return true
}

func (s *Server) tell(kind, message string) {
	s.m.events.emit(Event{Time: time.Now(), Server: s.name, Kind: kind, Message: message})
}

// present returns the present life.
func (s *Server) present() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// Name returns the server's name, unique within its manager.
func (s *Server) Name() string { return s.name }

// Attached reports whether the server ran before and was only attached to ([Attach]): others may use it too.
func (s *Server) Attached() bool {
	_, attached := s.present().inst.(Attached)
	return attached
}

// Host returns the name of the host on which the server's port and GPUs are reserved, empty for this one; false if its launcher
// is no [Reserver].
func (s *Server) Host() (name string, known bool) {
	if host := s.present().reservation.host; host != nil {
		return host.Name, true
	}
	return "", false
}

// URL returns the base URL, without a trailing slash. A restart keeps it.
func (s *Server) URL() string { return s.present().inst.URL() }

// Config returns the config that the server was launched with, its port and its GPUs filled in.
func (s *Server) Config() Config { return s.present().reservation.config.clone() }

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

// Startup returns the phases of the start-up so far; none if the server has no log that could be read.
func (s *Server) Startup() []Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.log == nil {
		return nil
	}
	return slices.Clone(s.life.startup.phases)
}

// Log returns what the server writes; nil if that cannot be read. A restart begins another log.
func (s *Server) Log() *Log { return s.present().log }

// Failing reports whether the server's log tells that it is about to end by itself: a scheduler has died, and SGLang's main
// process follows some seconds later. It is false for a server whose log cannot be read.
func (s *Server) Failing() bool {
	log := s.Log()
	return log != nil && slices.ContainsFunc(log.Tail(logCapacity), func(l Line) bool { return isFatal(l.Text) })
}

// Exit says how the server's process ended; false if it has not, or its launcher does not tell.
func (s *Server) Exit() (Exit, bool) {
	if exit, known := s.present().exit(); known {
		return exit, true
	}
	return Exit{}, false
}

// Exited is closed when the server has ended, and Err then says why if that was not asked for. A restart begins
// another one.
func (s *Server) Exited() <-chan struct{} { return s.present().ended.Done() }

// Err says why the server ended by itself, a [FailureError] where its log tells, or [ErrKilled]; nil if it has not
// ended, or was stopped.
func (s *Server) Err() error { return s.present().failure() }

// failure is why the life ended by itself; nil before its end.
func (l *life) failure() error {
	if l.ended.Err() == nil {
		return nil
	}
	return l.err
}

// abortTimeout bounds the call that ends all requests before a stop.
const abortTimeout = 2 * time.Second

// Stop ends the server and returns when it has ended; it forces the end when ctx is done. A server that was
// only attached to goes on. Stop may be called again, and on a server that has ended by itself.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stops++
	s.mu.Unlock()
	return s.stop(ctx)
}

func (s *Server) stop(ctx context.Context) error {
	l := s.present()
	if err := s.resume(ctx, l); err != nil {
		s.tell(KindWarning, "resume: "+err.Error())
	}
	if s.State() == StateReady && s.m.abortOnStop {
		abort, cancel := context.WithTimeout(ctx, abortTimeout)
		if err := s.AbortAll(abort); err != nil {
			s.tell(KindWarning, err.Error())
		}
		cancel()
	}
	s.enter(StateStopping, StateStarting, StateReady)
	if err := order(ctx, "the launcher's Stop", l.inst.Stop); err != nil {
		return fmt.Errorf("server: stop %s: %w", s.name, err)
	}
	select {
	case <-l.inst.Exited():
		<-l.ended.Done()
		return nil
	case <-time.After(patience):
		return fmt.Errorf("server: stop %s: its launcher says that it has stopped it, but has not closed Exited within %v: it may still run", s.name, patience)
	}
}

// simulation returns what simulates the server's engine; nil if it is real as far as is known.
func (s *Server) simulation(raw map[string]any) *metrics.Simulation {
	if sim, ok := s.present().inst.(Simulated); ok {
		v := sim.Simulation()
		return &v
	}
	if m, ok := raw["simulated"].(map[string]any); ok { // a simulated server that was attached to says so
		text := func(key string) string { t, _ := m[key].(string); return t }
		v := metrics.Simulation{Profile: text("profile"), Calibrated: text("calibrated"), KnownError: text("known_error")}
		if m["validation"] != nil {
			b, err := json.Marshal(m["validation"])
			if err == nil {
				err = json.Unmarshal(b, &v.Validation)
			}
			if err != nil { // the words that go with it still hold
				v.Validation = nil
			}
		}
		return &v
	}
	return nil
}
