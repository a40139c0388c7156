package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// pollInterval is the time between two looks at a server that is not ready.
const pollInterval = 100 * time.Millisecond

// progressInterval is the shortest time between two events about the progress of one phase.
const progressInterval = time.Second

// becomeReady waits until the server serves, finds out what it is and reads its facts.
//
// From 0.5.21 on /ready tells; it needs no generation. Before, the socket opens when the model has been loaded,
// /model_info answers from then on, and /health, which generates a token and takes a second, is 503 until the
// warm-up is over (SGLang entrypoints/http_server.py). All that is no proof that tokens come: a server must also generate one.
// A server that was launched under a name ([Named]) must have opened the socket itself and generate under that name: another server
// may answer on its port.
func (s *Server) becomeReady(ctx context.Context) error {
	timeout := s.m.readyTimeout
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the time-out of %v: %w", timeout, context.DeadlineExceeded))
	defer stop()
	l := s.present()
	look, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ended, cancel)() // a server that has ended does not answer
	path, waiting, last := "/ready", "/ready (503 while the server starts, ends or is paused)", "no answer yet"
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := s.client.once(look, http.MethodGet, path, nil, nil)
		var status *StatusError
		if err == nil {
			if err = s.identify(look); err == nil {
				if waiting = proving; s.m.unproven {
					break
				}
				err = s.prove(look, l)
			}
			if err == nil {
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
		case <-l.ended.Done():
			return &ExitedError{Err: l.err}
		case line := <-l.doom:
			select {
			case <-l.ended.Done():
				return &ExitedError{Err: l.err}
			case <-time.After(doomedTimeout):
			case <-ctx.Done():
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.diagnosed(l, []string{line}, notEnded, nil)
		case <-ctx.Done():
			select {
			case <-l.inst.Exited(): // its log says more
				<-l.ended.Done()
				return &ExitedError{Err: l.err}
			default:
			}
			return &NotReadyError{Waiting: waiting, Phase: s.phase(l), LogFile: l.keepLog(), Last: last, Err: context.Cause(ctx)}
		}
	}
	if process, ok := l.inst.(interface{ lookShared() }); ok {
		process.lookShared() // it has made what it shares by now, and may be killed at any time
	}
	s.endStartup(l)
	warning, err := checkVersion(s.Info().Version)
	if err != nil {
		return err
	}
	if warning != "" {
		s.tell(KindWarning, warning)
	}
	if _, running := l.inst.(Attached); !running { // Launch compares the settings of one that runs, and refuses others
		for _, text := range append(s.otherwise(l.reservation.config), shortSecrets(l.reservation.config)...) {
			s.tell(KindWarning, text)
		}
	}
	if !s.enter(StateReady, StateStarting) {
		select {
		case <-l.ended.Done():
			return &ExitedError{Err: l.err}
		case <-ctx.Done(): // what stops it hangs
			return &ExitedError{}
		}
	}
	return nil
}

// bindFailed is in the line that uvicorn logs if its port is taken. SGLang then ends, but not while its own first request
// waits for whatever has the port.
const bindFailed = "error while attempting to bind on address"

// doomedTimeout is how long such a server has to end by itself, so that its exit status is known.
const doomedTimeout = 3 * time.Second

// errNotBound is why a server that answers may be another one.
var errNotBound = errors.New("the log does not show that the server has opened its socket")

// passing reports whether err is of a kind that ends when a server has started: it does not answer, or it answers
// that it cannot.
func passing(err error) bool {
	var none *noAnswerError
	var status *StatusError
	if errors.As(err, new(*tls.CertificateVerificationError)) {
		return false
	}
	return errors.As(err, &none) || errors.As(err, &status) && status.Status >= 500 || errors.Is(err, errNotBound)
}

// ownName checks that a server which answers is the one that was launched, if that was given a name.
func (s *Server) ownName(has string) error {
	l := s.present()
	named, ok := l.inst.(Named)
	if !ok || has == named.WeightVersion() {
		return nil
	}
	return l.reservation.portInUse("", fmt.Errorf("another server answers at %s: its weight_version is %q, not %q",
		wire.WithoutPassword(l.inst.URL()), has, named.WeightVersion()))
}

// proving is what is waited for when all else has been seen.
const proving = "one generated token (POST /generate; HTTP answers, but the scheduler may hang or have a long queue)"

// prove makes a server show that it generates, and one that was launched under a name that it is the one that answers.
func (s *Server) prove(ctx context.Context, l *life) error {
	_, launched := l.inst.(Named)
	s.mu.Lock()
	raw := s.raw
	unbound := launched && l.startup.at > 0 && !l.startup.bound && showsSocket(raw)
	s.mu.Unlock()
	if unbound {
		return errNotBound
	}
	if mode, ok := raw["disaggregation_mode"].(string); ok && mode != "null" {
		return nil // half of a pair cannot generate alone
	}
	var answer struct {
		Meta struct {
			WeightVersion    string `json:"weight_version"`
			CompletionTokens int    `json:"completion_tokens"`
		} `json:"meta_info"`
	}
	err := s.client.once(ctx, http.MethodPost, "/generate", map[string]any{
		"input_ids": []int{1}, "sampling_params": map[string]any{"max_new_tokens": 1, "temperature": 0},
	}, &answer)
	if err != nil {
		return err
	}
	if err := s.ownName(answer.Meta.WeightVersion); err != nil {
		return err
	}
	if answer.Meta.CompletionTokens != 1 {
		return fmt.Errorf("a generation of one token gave %d", answer.Meta.CompletionTokens)
	}
	return nil
}

// showsSocket reports whether a server with these arguments logs that its socket is open: uvicorn does, at the level
// INFO; granian (--enable-http2) and the Rust front end, which /server_info tells from 0.5.21 on, do not.
func showsSocket(raw map[string]any) bool {
	level, ok := raw["log_level_http"].(string)
	if !ok {
		level, _ = raw["log_level"].(string)
	}
	version, _ := raw["version"].(string)
	old, _ := olderThan(version, "0.5.21")
	return raw["enable_http2"] != true && (level == "info" || level == "debug" || level == "trace") && (old || raw["frontend"] == "python")
}

// followStartup reads the log of a server that starts and tells of its phases.
func (s *Server) followStartup(ctx context.Context, l *life) {
	for line := range l.log.Follow(ctx) {
		s.readStartup(l, line)
	}
}

// readStartup reads one line. It is called for one after the other.
func (s *Server) readStartup(l *life, line Line) {
	l.nextLine = line.N + 1
	if strings.Contains(line.Text, bindFailed) {
		select {
		case l.doom <- line.Text:
		default: // said already
		}
	}
	s.mu.Lock()
	phase := l.startup.read(line.Time, line.Text)
	s.mu.Unlock()
	if phase == nil || phase.Duration == 0 && line.Time.Sub(l.told) < progressInterval {
		return
	}
	if phase.Duration == 0 {
		l.told = line.Time
	}
	s.tellPhase(line.Time, phase)
}

// endStartup ends the last phase of a start-up and the reading of the log for it.
func (s *Server) endStartup(l *life) {
	if l.log == nil {
		return
	}
	l.unfollow()
	l.follower.Wait()
	at := time.Now()
	for _, line := range l.log.Tail(logCapacity) { // what was written before the server was found ready
		if line.N >= l.nextLine && !line.Time.After(at) {
			s.readStartup(l, line)
		}
	}
	s.mu.Lock()
	phase := l.startup.end(at)
	s.mu.Unlock()
	s.tellPhase(at, phase)
}

func (s *Server) tellPhase(at time.Time, phase *Phase) {
	s.m.events.emit(Event{Time: at, Server: s.name, Kind: KindPhase, Message: phase.String(), Phase: phase})
}

// phase says how far a start-up has come, as its log shows it; "" if there is none.
func (s *Server) phase(l *life) string {
	if l.log == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.startup.last().String()
}
