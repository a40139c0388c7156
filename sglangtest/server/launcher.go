package server

import (
	"context"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A Launcher brings up one server, wherever it likes. Implementations are safe for concurrent use.
// [LocalProcess], [Attach] and package sim's are of this package's kind and have no other way in than one of
// your own: what a launcher or its instances can do beyond the least is a small interface each, which is
// looked for in the value that NewServerManager was given, and in each that Launch returns. A wrapper passes
// on what it wants to keep.
//
// Of the launcher:
//
//	Reserver   Hosts         ports and GPUs given out exclusively, host by host, and refused before a launch
//	Patient    ReadyTimeout  its own default for WithReadyTimeout
//
// Of an instance:
//
//	Logged     Log           phases of the start-up, diagnosis of a failure, samples of each batch
//	LogKeeper  KeepLog       the place of the whole log in errors
//	Named      WeightVersion proof that the server which answers is the one that was launched
//	Exiter     Exit          how it ended: in events, in the diagnosis, as Server.Exit
//	Killer     Kill          Server.Kill: an experiment's crash
//	Suspender  Suspend       Server.Suspend and Resume: an experiment's hang
//	Remainer   Remains       what could not be ended keeps its port and its GPUs
//	Commanded  CommandLine   the command in the record of the run
//	Warned     Warnings      what may spoil a measurement, told when the server starts
//	Simulated  Simulation    the label without which no result of a simulation comes
//	Attached   Gone          a server that ran before: it is compared with the config, and left alone
//
// Calls with a context return when it is done; the manager gives one up some seconds later, and says so. All
// others return at once.
type Launcher interface {
	// Launch starts the server that spec describes and returns as soon as it has an address; it need not be
	// ready. Canceling ctx ends the attempt, not the instance. If Launch fails, nothing of the server is
	// left.
	Launch(ctx context.Context, spec Spec) (Instance, error)
}

// A Reserver is a launcher that knows on which host its servers run, so that what a host has only once is
// given out only once. Without it the config reaches Launch as it is, and nothing is checked: only the
// launcher knows where its port would be.
type Reserver interface {
	Launcher
	// Hosts returns the hosts on which a server with cfg can run, at least one, the preferred first. The
	// server goes to the first that has for it what it needs; Spec.Host names it.
	Hosts(ctx context.Context, cfg Config) ([]Host, error)
}

// Patient is a launcher that has a default of its own for [WithReadyTimeout], > 0.
type Patient interface {
	Launcher
	ReadyTimeout() time.Duration
}

// A Spec says what to launch.
type Spec struct {
	Name      string // unique within the manager, such as "server-0"
	Host      string // where its port and GPUs are reserved, by name; empty: this host, or no [Reserver]
	Config    Config // with the port and the GPUs that are reserved
	LogFolder string // for NAME.stdout.log and NAME.stderr.log; empty: a folder of the launcher's choice
}

// WeightVersion returns the version of its weights that the server gives to each answer, SGLang's
// --weight-version: its name, by which it is known also behind a router, if the config does not fix another.
// A [Named] instance that was launched with it returns it.
func (s Spec) WeightVersion() string {
	if v, ok := s.Config.Args["weight_version"].(string); ok {
		return v
	}
	return s.Name
}

// CommandLine returns the arguments for `python -m sglang.launch_server`: those of [Config.CommandLine], and
// the weight version.
func (s Spec) CommandLine(version string) ([]string, error) {
	args, err := s.Config.CommandLine(version)
	if _, set := s.Config.Args["weight_version"]; err == nil && !set && s.Name != "" {
		args = append(args, "--weight-version", s.Name)
	}
	return args, err
}

// An Instance is a server that a Launcher has started. Its methods are safe for concurrent use.
type Instance interface {
	// URL is the server's base URL as this program reaches it, such as "http://127.0.0.1:30000", without a
	// trailing slash.
	URL() string
	// Exited is closed when the server has ended, by Stop or by itself, and its log, if it has one, has been
	// read.
	Exited() <-chan struct{}
	// Err says why the server ended by itself; nil before Exited is closed and after a wanted stop.
	Err() error
	// Stop ends the server and returns when it has ended and its port is free: Exited is closed then, unless
	// it fails. When ctx is done it stops waiting politely and uses force. Stop may be called again, and
	// after the server has ended by itself.
	Stop(ctx context.Context) error
}

// Logged is an instance whose log can be read. Its lines show the phases of the start-up and why the server
// failed.
type Logged interface {
	Instance
	// Log returns the log, always the same one; see [NewLog]. It ends before Exited is closed. nil: it cannot
	// be read.
	Log() *Log
}

// A LogKeeper is an instance whose whole log is kept somewhere.
type LogKeeper interface {
	Instance
	// KeepLog keeps the log also when the server ends as asked, because something else went wrong, and
	// returns where it is.
	KeepLog() string
}

// Named is an instance whose server was launched under a name that is in its answers: it becomes ready only
// when what answers at its URL bears that name, and, if it is [Logged] too and logs that, when its log shows
// that it has opened its socket.
type Named interface {
	Instance
	// WeightVersion returns the weight version that the server was given; see [Spec.WeightVersion].
	WeightVersion() string
}

// An Exiter is an instance that knows how its main process ended.
type Exiter interface {
	Instance
	// Exit returns false before Exited is closed, and if it cannot be told.
	Exit() (Exit, bool)
}

// A Killer is an instance that can be killed.
type Killer interface {
	Instance
	// Kill ends the server at once, without giving it a chance to do anything. It does not wait for the end.
	Kill(ctx context.Context) error
}

// A Suspender is an instance whose processes can be stopped and go on.
type Suspender interface {
	Instance
	// Suspend stops all processes of the server until Resume: it takes connections, and answers nothing.
	Suspend(ctx context.Context) error
	// Resume lets them go on; a server that is not suspended goes on anyhow. Stop and Kill work also without
	// it.
	Resume(ctx context.Context) error
}

// A Remainer is an instance of which something may be left.
type Remainer interface {
	Instance
	// Remains reports, once Exited is closed, whether processes of it could not be ended, so that its port
	// and its GPUs are not free.
	Remains() bool
}

// Commanded is an instance that was started by a command.
type Commanded interface {
	Instance
	// CommandLine returns the command with its arguments. Keys in it are hidden by whoever records it.
	CommandLine() []string
}

// Warned is an instance about whose launch there is something to say.
type Warned interface {
	Instance
	// Warnings returns what may spoil a measurement, each a [KindWarning] event at the start.
	Warnings() []string
}

// A Simulated instance is one whose engine is a simulation. Every result that comes from it says so.
type Simulated interface {
	Instance
	// Simulation describes the engine's profile and the error it is known to have.
	Simulation() metrics.Simulation
}

// Attached is an instance whose server ran before it and goes on after Stop; others may use it too. What its
// config sets must be what it runs with, and it cannot be restarted.
type Attached interface {
	Instance
	// Gone tells that nobody is there any more ([Server.CheckAlive]): Exited is closed, and Err returns err.
	Gone(err error)
}
