package server

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// Attach returns a launcher for a server that already runs at baseURL, such as "http://gpu-7:30000", to which the paths of
// SGLang's routes are appended. A user and password in it go into the Authorization header. Launching
// checks that the settings in the config are those of the server, host and port as it knows them itself included;
// one that it does not tell is refused. Stopping leaves the server alone.
// An end of the server is not noticed here: its requests fail.
func Attach(baseURL string) Launcher { return &attached{url: strings.TrimRight(baseURL, "/")} }

// attached is the launcher and, once launched, the instance.
type attached struct {
	url    string
	exited chan struct{}
	stop   sync.Once
}

func (a *attached) Launch(context.Context, Spec) (Instance, error) {
	if _, _, err := wire.BaseURL(a.url); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return &attached{url: a.url, exited: make(chan struct{})}, nil
}

func (a *attached) URL() string             { return a.url }
func (a *attached) Exited() <-chan struct{} { return a.exited }
func (a *attached) Err() error              { return nil }

func (a *attached) Stop(context.Context) error {
	a.stop.Do(func() { close(a.exited) })
	return nil
}
