package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// Attach returns a launcher for a server that already runs at baseURL, such as "http://gpu-7:30000", to which the paths of
// SGLang's routes are appended. A user and password in it go into the Authorization header. Launching
// checks that the settings in the config are those of the server, host and port as it knows them itself included;
// one that it does not tell is refused. Stopping leaves the server alone.
// That the server has ended by itself shows when it is asked: see [Server.CheckAlive].
func Attach(baseURL string) Launcher { return &attached{url: strings.TrimRight(baseURL, "/")} }

// attached is the launcher and, once launched, the instance.
type attached struct {
	url    string
	exited chan struct{}
	once   sync.Once
	err    error // written before exited is closed
}

func (a *attached) Launch(context.Context, Spec) (Instance, error) {
	if _, _, err := wire.BaseURL(a.url); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return &attached{url: a.url, exited: make(chan struct{})}, nil
}

func (a *attached) URL() string             { return a.url }
func (a *attached) Exited() <-chan struct{} { return a.exited }

func (a *attached) Err() error {
	select {
	case <-a.exited:
		return a.err
	default:
		return nil
	}
}

// Gone ends the instance, not the server.
func (a *attached) Gone(err error) { a.once.Do(func() { a.err = err; close(a.exited) }) }

func (a *attached) Stop(context.Context) error {
	a.Gone(nil)
	return nil
}

// ReadyTimeout is short: the server runs.
func (a *attached) ReadyTimeout() time.Duration { return DefaultAttachTimeout }

var _ interface {
	Patient
	Attached
} = (*attached)(nil)

// A server that was attached to is gone if so many tries in a row, at this interval, find nobody there.
const (
	aliveTries    = 3
	aliveInterval = 250 * time.Millisecond
)

// CheckAlive returns why the server has ended by itself; nil if it has not as far as is known, or was stopped. One that was only
// attached to, whose process nobody watches, is asked (GET /model_info): if three tries in a row meet a refused or broken connection,
// or a gateway that says that there is no server behind it (status 502, 503 or 504), it counts as ended from then on:
// its state is failed, [Server.Exited] is closed and [Server.Err] says why. One that takes connections and does not answer may
// hang, and has not ended.
func (s *Server) CheckAlive(ctx context.Context) error {
	l := s.present()
	a, ok := l.inst.(Attached)
	if !ok || s.State() != StateReady {
		return l.failure()
	}
	tick := time.NewTicker(aliveInterval)
	defer tick.Stop()
	for try := 1; ; try++ {
		tried, cancel := context.WithTimeout(ctx, sampleTimeout)
		err := s.client.once(tried, http.MethodGet, "/model_info", nil, nil)
		cancel()
		if !nobodyThere(err) || ctx.Err() != nil {
			return l.failure()
		}
		if try == aliveTries {
			a.Gone(fmt.Errorf("the server that was attached to is no longer there: %w", err))
			select {
			case <-l.ended.Done():
			case <-ctx.Done():
			}
			return l.failure()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return l.failure()
		}
	}
}

// nobodyThere reports whether err is what a call meets where no server is.
func nobodyThere(err error) bool {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Status == http.StatusBadGateway || status.Status == http.StatusServiceUnavailable || status.Status == http.StatusGatewayTimeout
	}
	var none *noAnswerError
	var slow net.Error
	return errors.As(err, &none) && !(errors.As(err, &slow) && slow.Timeout()) && !errors.Is(err, context.DeadlineExceeded)
}
