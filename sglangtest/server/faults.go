package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Planned failures of an experiment. A server that refuses connections while it lives is not among them: that needs
// the firewall, hence root, or a proxy in front of it. A killed server refuses them.

// errNoProcess is why a server cannot be killed or suspended.
var errNoProcess = errors.New("it is not a process that was launched here")

// Kill ends the server at once, as a crash would, and returns when all of it has gone and its port is free. Its state is
// then failed, and Err returns [ErrKilled]. A server that has ended already is left as it is.
func (s *Server) Kill(ctx context.Context) error {
	l := s.present()
	process, ok := l.inst.(Process)
	if !ok {
		return s.wrap("kill", errNoProcess)
	}
	s.mu.Lock()
	l.killed = l.killed || s.state == StateStarting || s.state == StateReady
	s.mu.Unlock()
	s.tell(KindFault, "killed")
	process.Kill()
	select {
	case <-l.ended.Done():
		return nil
	case <-ctx.Done():
		return s.wrap("kill", context.Cause(ctx))
	}
}

// Suspend stops all processes of the server, as if they hung, until Resume or Stop. Connections are still taken, by the
// operating system.
func (s *Server) Suspend() error {
	process, ok := s.present().inst.(Process)
	if !ok {
		return s.wrap("suspend", errNoProcess)
	}
	if err := process.Suspend(); err != nil {
		return s.wrap("suspend", err)
	}
	s.tell(KindFault, "suspended")
	return nil
}

// Resume lets a suspended server go on.
func (s *Server) Resume() error {
	process, ok := s.present().inst.(Process)
	if !ok {
		return s.wrap("resume", errNoProcess)
	}
	if err := process.Resume(); err != nil {
		return s.wrap("resume", err)
	}
	s.tell(KindFault, "resumed")
	return nil
}

// Restart stops the server, if it has not ended, and launches it again under the same name, with its config as change
// leaves it; nil changes nothing, and host, port, GPUs and API keys cannot be changed. It returns when the server is ready.
// If it fails, nothing of the server is left, and it may be restarted again; a faulty change leaves the server as it is. A
// Stop meanwhile makes it fail.
func (s *Server) Restart(ctx context.Context, change func(*Config) error) error {
	if !s.restarting.TryLock() {
		return s.wrap("restart", errors.New("it is being restarted already"))
	}
	defer s.restarting.Unlock()
	l := s.present()
	if _, running := l.inst.(*attached); running {
		return s.wrap("restart", errNoProcess)
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
	if cfg.Port == 0 { // the launcher chose it
		var err error
		if cfg.Port, err = portOf(s.URL()); err != nil {
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
	if err := r.again(); err != nil { // it may have ended, and given them back, before
		return s.wrap("restart", err)
	}
	if s.stopped(stops) {
		r.release()
		return s.wrap("restart", &ExitedError{})
	}
	s.tell(KindFault, "restarted")
	inst, err := s.m.launcher.Launch(ctx, Spec{Name: s.name, Config: cfg, LogFolder: s.m.logs})
	if err != nil {
		r.release()
		return s.wrap("restart", err)
	}
	s.begin(inst, &r)
	if s.stopped(stops) {
		err = &ExitedError{}
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
