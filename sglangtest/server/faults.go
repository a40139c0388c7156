package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// Planned failures of an experiment. A server that refuses connections while it lives is not among them: that
// needs the firewall, hence root, or a proxy in front of it. A killed server refuses them.

// errNotOffered is why a server cannot be killed or suspended.
var errNotOffered = errors.New("the launcher that it comes from does not offer that")

// errRanBefore is why a server cannot be restarted.
var errRanBefore = errors.New("it ran before and was only attached to: restart it where it was started")

// Kill ends the server at once, as a crash would, and returns when all of it has gone and its port is free.
// Its state is then failed, and Err returns [ErrKilled]. A server that has ended already is left as it is.
func (s *Server) Kill(ctx context.Context) error {
	l := s.present()
	killer, ok := l.inst.(Killer)
	if !ok {
		return s.wrap("kill", errNotOffered)
	}
	s.mu.Lock()
	before := l.killed
	l.killed = l.killed || s.state == StateStarting || s.state == StateReady
	s.mu.Unlock()
	s.tell(KindFault, "killed")
	if err := order(ctx, "the launcher's Kill", killer.Kill); err != nil {
		s.mu.Lock()
		l.killed = before
		s.mu.Unlock()
		s.tell(KindWarning, "it could not be killed: "+err.Error())
		return s.wrap("kill", err)
	}
	select {
	case <-l.ended.Done():
		return nil
	case <-ctx.Done():
		return s.wrap("kill", context.Cause(ctx))
	}
}

// Suspend stops all processes of the server, as if they hung, until Resume or Stop. Connections are still
// taken, by the operating system.
func (s *Server) Suspend(ctx context.Context) error {
	l := s.present()
	suspender, ok := l.inst.(Suspender)
	if !ok {
		return s.wrap("suspend", errNotOffered)
	}
	s.mu.Lock()
	l.suspended = true // Stop resumes it, also if only some of it obeyed
	s.mu.Unlock()
	if err := order(ctx, "the launcher's Suspend", suspender.Suspend); err != nil {
		return s.wrap("suspend", err)
	}
	s.tell(KindFault, "suspended")
	return nil
}

// Resume lets a suspended server go on.
func (s *Server) Resume(ctx context.Context) error {
	l := s.present()
	if _, ok := l.inst.(Suspender); !ok {
		return s.wrap("resume", errNotOffered)
	}
	if err := s.resume(ctx, l); err != nil {
		return s.wrap("resume", err)
	}
	s.tell(KindFault, "resumed")
	return nil
}

// resume lets a server go on if it was suspended.
func (s *Server) resume(ctx context.Context, l *life) error {
	s.mu.Lock()
	suspended := l.suspended
	s.mu.Unlock()
	suspender, ok := l.inst.(Suspender)
	if !ok || !suspended {
		return nil
	}
	err := order(ctx, "the launcher's Resume", suspender.Resume)
	s.mu.Lock()
	l.suspended = err != nil
	s.mu.Unlock()
	return err
}

// Restart stops the server, if it has not ended, and launches it again under the same name, with its config
// as change leaves it; nil changes nothing, and host, port, GPUs and API keys cannot be changed. It returns
// when the server is ready. If it fails, nothing of the server is left, and it may be restarted again; a
// faulty change leaves the server as it is. A Stop meanwhile makes it fail.
func (s *Server) Restart(ctx context.Context, change func(*Config) error) error {
	if !s.restarting.TryLock() {
		return s.wrap("restart", errors.New("it is being restarted already"))
	}
	defer s.restarting.Unlock()
	l := s.present()
	if _, running := l.inst.(Attached); running {
		return s.wrap("restart", errRanBefore)
	}
	cfg := l.reservation.config.clone()
	if change != nil {
		if err := change(&cfg); err != nil {
			return s.wrap("restart", err)
		}
	}
	if err := cfg.Validate(); err != nil {
		return s.wrap("restart", fmt.Errorf("config:\n%w", err))
	}
	before := l.reservation.config
	if cfg.Host != before.Host || cfg.Port != before.Port || !slices.Equal(cfg.GPUs, before.GPUs) || cfg.APIKey != before.APIKey || cfg.AdminAPIKey != before.AdminAPIKey {
		return s.wrap("restart", errors.New("host, port, GPUs and API keys stay as they are: launch another server for other ones"))
	}
	url := s.URL()
	if host, known := s.Host(); cfg.Port == 0 && known && host == "" { // the launcher chose it
		var err error
		if cfg.Port, err = portOf(url); err != nil {
			return s.wrap("restart", err)
		}
	}
	r := *l.reservation
	r.config = cfg
	s.mu.Lock()
	stops := s.stops
	l.keep = true
	s.mu.Unlock()
	if err := s.stop(ctx); err != nil {
		s.mu.Lock()
		l.keep = false
		over := l.over
		s.mu.Unlock()
		if over && !l.remains() {
			l.reservation.release()
		}
		return err
	}
	if err := r.again(ctx); err != nil { // it may have ended, and given them back, before
		return s.wrap("restart", err)
	}
	if s.stopped(stops) {
		r.release()
		return s.wrap("restart", &ExitedError{})
	}
	s.tell(KindFault, "restarted")
	inst, err := s.m.start(ctx, &r)
	if err != nil {
		return s.wrap("restart", err)
	}
	s.begin(inst, &r)
	if s.stopped(stops) {
		err = &ExitedError{}
	} else if again := inst.URL(); again != url { // whoever sends requests to it has the first one
		err = fmt.Errorf("the launcher has given it another URL, %s: launch another server instead", wire.WithoutPassword(again))
	} else {
		err = s.becomeReady(ctx)
	}
	if err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopUnready)
		defer cancel()
		return errors.Join(s.wrap("restart", err), s.stop(stopCtx))
	}
	return nil
}

// stopped reports whether Stop was called since it had been called so many times.
func (s *Server) stopped(since int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stops > since
}
