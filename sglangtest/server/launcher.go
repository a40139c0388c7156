package server

import (
	"context"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A Launcher brings up one server. Implementations are safe for concurrent use.
type Launcher interface {
	// Launch starts the server that spec describes and returns as soon as it has an address; it need not be
	// ready. Canceling ctx ends the attempt, not the instance. If Launch fails, nothing of the server is left.
	Launch(ctx context.Context, spec Spec) (Instance, error)
}

// A Spec says what to launch.
type Spec struct {
	Name      string // unique within the manager, such as "server-0"
	Config    Config
	LogFolder string // where a process writes NAME.stdout.log and NAME.stderr.log; empty: a folder of the launcher's choice
}

// weightVersion returns the version of its weights that the server gives to each answer: its name, by which it is known
// also behind a router, if the config does not fix another.
func weightVersion(spec Spec) string {
	if v, ok := spec.Config.Args["weight_version"].(string); ok {
		return v
	}
	return spec.Name
}

// An Instance is a server that a Launcher has started.
type Instance interface {
	// URL is the server's base URL, such as "http://127.0.0.1:30000", without a trailing slash.
	URL() string
	// Exited is closed when the server has ended, by Stop or by itself.
	Exited() <-chan struct{}
	// Err says why the server ended by itself; nil before Exited is closed and after a wanted stop.
	Err() error
	// Stop ends the server and returns when it has ended and its port is free. When ctx is done it stops
	// waiting politely and uses force. Stop may be called again, and after the server has ended by itself.
	Stop(ctx context.Context) error
}

// A Process is an instance that is a process, which can be killed and suspended.
type Process interface {
	Instance
	// Exit says how the main process ended, once the server has.
	Exit() (Exit, bool)
	// Kill ends the server at once, without giving it a chance to do anything. It does not wait for the end.
	Kill()
	// Suspend stops all processes of the server until Resume: it takes connections, and answers nothing.
	Suspend() error
	Resume() error
}

// A Simulated instance is one whose engine is a simulation. Every result that comes from it says so.
type Simulated interface {
	Instance
	// Simulation describes the engine's profile and the error it is known to have.
	Simulation() metrics.Simulation
}
