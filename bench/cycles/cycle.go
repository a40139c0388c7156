//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
)

// endings are how a cycle ends.
var endings = [...]string{"stop idle", "stop under load", "stop while loading", "kill", "killed from outside"}

// cycle starts and ends one server.
func (b *bench) cycle(ctx context.Context, i int) error {
	version, ending := versions[i%len(versions)], endings[i/len(versions)%len(endings)]
	startup := time.Duration(0)
	if ending == "stop while loading" {
		startup = 5 * time.Second
	}
	l, err := launcher(version, startup)
	if err != nil {
		return err
	}
	loading, cancel := context.WithCancel(ctx)
	defer cancel()
	var canceled time.Time
	m, err := server.NewServerManager(l, server.WithLogFolder(b.logs), server.WithEvents(func(e server.Event) {
		if startup > 0 && canceled.IsZero() && e.Kind == server.KindPhase { // its processes are about to start
			canceled = time.Now().Add(time.Duration(b.rng.Int64N(int64(100 * time.Millisecond))))
			time.AfterFunc(time.Until(canceled), cancel)
		}
	}))
	if err != nil {
		return err
	}
	port, err := b.freePort()
	if err != nil {
		return err
	}
	what := fmt.Sprintf("cycle %d (%s, %s)", i, version, ending)
	began := time.Now()
	s, err := m.Launch(loading, config(port))
	if startup > 0 {
		if !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		b.rows[ending] = append(b.rows[ending], row{canceled.Sub(began), time.Since(canceled)})
		return b.check(what, 0, port)
	}
	if err != nil {
		return err
	}
	started := time.Since(began)
	took, err := b.end(s, ending)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	b.rows[ending] = append(b.rows[ending], row{started, took})
	return b.check(what, 0, port)
}

// end ends a server as asked, and checks that its exit is what belongs to that.
func (b *bench) end(s *server.Server, ending string) (time.Duration, error) {
	ctx := context.Background()
	answered := make(chan error, 1)
	if ending == "stop under load" {
		go func() { answered <- ask(s.URL(), 50) }()
		for {
			loads, err := s.Loads(ctx)
			if err != nil {
				return 0, err
			}
			if loads[0].NumRunning > 0 {
				break
			}
		}
	} else {
		answered <- nil
	}
	began := time.Now()
	switch ending {
	case "kill":
		err := s.Kill(ctx)
		if err == nil && !errors.Is(s.Err(), server.ErrKilled) {
			err = fmt.Errorf("killed, but %v", s.Err())
		}
		return time.Since(began), err
	case "killed from outside":
		processes, err := b.watch.Processes()
		if err != nil {
			return 0, err
		}
		for _, p := range processes {
			if group, err := syscall.Getpgid(p.ID); err == nil && group == p.ID && strings.Contains(p.Command, "--weight-version") {
				if err := b.watch.Kill(p); err != nil {
					return 0, err
				}
			}
		}
		<-s.Exited()
		var failure *server.FailureError
		if !errors.As(s.Err(), &failure) || failure.Cause != server.CauseKilled {
			return 0, fmt.Errorf("killed from outside, but %v", s.Err())
		}
		return time.Since(began), nil
	}
	if err := s.Stop(ctx); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if exit, _ := s.Exit(); !exit.Clean(s.Info().Version) {
		return 0, fmt.Errorf("not a clean end: %v", exit)
	}
	return took, <-answered
}

// ask sends a generation and reads the answer.
func ask(url string, tokens int) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(url+"/generate", "application/json",
		strings.NewReader(fmt.Sprintf(`{"text": "hello", "sampling_params": {"max_new_tokens": %d, "ignore_eos": true}}`, tokens)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
