//go:build unix

package process

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// childEnv holds the child's job as JSON. A process that has it is a child.
const childEnv = "SGLANG_SIM_CHILD"

// A job is what a child process is for. Children do no work: they are there to be seen, to be killed and to fail.
type job struct {
	Title  string // sglang::scheduler_TP0
	Name   string // of SubprocessWatchdog: scheduler_0
	Prefix string // of its log lines, such as " TP0"
	Parent int    // process id
	Millis bool
	Orphan bool   // outlives its parent
	Socket string // a ZeroMQ socket that it binds, if not empty
	Ranks  []job  // of the data-parallel controller: the schedulers, whose control pipes follow its own
}

// An order makes a child fail as its Python code would.
type order struct {
	Before string // text to log before the exception, if any
	Text   string // traceback
	Report string // line to log instead of an exception
	Wait   time.Duration
}

// children are the processes of one server.
type children struct {
	procs  []*proc
	exits  chan *proc    // each process that has ended
	ready  chan struct{} // closed when all are up, or cannot be any more
	failed error         // then why; nil: they are up
	doomed bool          // the first scheduler was ordered to fail
}

type proc struct {
	job
	cmd     *exec.Cmd
	control []*os.File // write ends; closing the first asks for a clean end
	status  int        // as Python's multiprocessing has it: -9 for SIGKILL
	done    chan struct{}
}

// spawn starts the children. The thread that calls it must live as long as the process, since Linux ties the death
// signal to it.
func (c *children) spawn(jobs []job) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("sglang-sim: find own program: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("sglang-sim: make a pipe: %w", err)
	}
	defer w.Close()
	waiting := 0
	for _, j := range jobs {
		if err := c.start(exe, j, w); err != nil {
			r.Close()
			return err
		}
		waiting += 1 + len(j.Ranks)
	}
	c.ready = make(chan struct{})
	go func() {
		defer r.Close()
		if n, err := io.ReadFull(r, make([]byte, waiting)); err != nil {
			c.failed = fmt.Errorf("sglang-sim: %d of %d child processes did not come up: %w", waiting-n, waiting, err)
		}
		close(c.ready)
	}()
	return nil
}

func (c *children) start(exe string, j job, ready *os.File) error {
	p := &proc{job: j, done: make(chan struct{})}
	var theirs []*os.File
	for range 1 + len(j.Ranks) {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("sglang-sim: make a control pipe: %w", err)
		}
		theirs, p.control = append(theirs, r), append(p.control, w)
	}
	cmd, err := childCommand(exe, j, append([]*os.File{ready}, theirs...))
	if err == nil {
		err = cmd.Start()
	}
	for _, r := range theirs {
		r.Close()
	}
	if err != nil {
		return fmt.Errorf("sglang-sim: start %s: %w", j.Title, err)
	}
	p.cmd = cmd
	c.procs = append(c.procs, p)
	go func() {
		p.status = exitCode(cmd.Wait())
		close(p.done)
		c.exits <- p
	}()
	return nil
}

// The descriptors of a child.
const (
	fdReady   = 3 // gets one byte when the child is up
	fdControl = 4 // its own orders, and those of its ranks behind
)

func childCommand(exe string, j job, pipes []*os.File) (*exec.Cmd, error) {
	j.Parent = os.Getpid()
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, childEnv+"=") })
	return &exec.Cmd{Path: exe, Args: []string{j.Title}, Env: append(env, childEnv+"="+string(text)), Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles: pipes}, nil
}

// exitCode is the status of a process as Python has it.
func exitCode(err error) int {
	e, ok := err.(*exec.ExitError)
	if !ok {
		return 0
	}
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -int(ws.Signal())
	}
	return e.ExitCode()
}

// fail gives an order to the first scheduler.
func (c *children) fail(o order) error {
	p := c.procs[0]
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("sglang-sim: encode an order: %w", err)
	}
	if _, err := p.control[len(p.control)-max(1, len(p.Ranks))].Write(append(b, '\n')); err != nil {
		return fmt.Errorf("sglang-sim: order %s to fail: %w", p.Title, err)
	}
	c.doomed = true
	return nil
}

// signal sends a signal to the first child with that name.
func (c *children) signal(name string, s os.Signal) {
	for _, p := range c.procs {
		if p.Name == name {
			_ = p.cmd.Process.Signal(s) // it may have ended
			return
		}
	}
}

// release asks the schedulers for a clean end and waits for it (ShutdownReq).
func (c *children) release(limit time.Duration) {
	late, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for _, p := range c.procs {
		if p.Name == "detokenizer" {
			continue
		}
		for _, w := range p.control {
			w.Close()
		}
		select {
		case <-p.done:
		case <-late.Done():
		}
	}
}

// kill kills all children and waits for them.
func (c *children) kill() {
	for _, p := range c.procs {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		for _, w := range p.control {
			w.Close()
		}
	}
}

// runChild is the main function of a child process.
func runChild(text string) int {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintln(os.Stderr, "sglang-sim: read the child's job:", err)
		return 2
	}
	os.Unsetenv(childEnv)
	setTitle(j.Title)
	if !j.Orphan {
		dieWithParent()
		if os.Getppid() != j.Parent {
			return 1 // it died before it could be watched
		}
	}
	signal.Ignore(syscall.SIGINT) // Ctrl+C goes to the whole group; the main process ends its children
	if j.Socket != "" {
		ln, err := bindIPC(j.Socket)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer ln.Close()
	}
	ready := os.NewFile(fdReady, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		return 1 // the parent has gone
	}
	if len(j.Ranks) > 0 {
		return runController(j, ready)
	}
	ready.Close()
	var o order
	if err := json.NewDecoder(os.NewFile(fdControl, "control")).Decode(&o); err != nil {
		if j.Orphan {
			stopped := make(chan os.Signal, 1)
			signal.Notify(stopped, syscall.SIGTERM)
			<-stopped
		}
		return 0 // the parent closed it: an orderly end
	}
	l := logger{sink: newSink(os.Stderr), least: info, millis: j.Millis, prefix: j.Prefix}
	if o.Before != "" {
		l.logf(failure, "%s", o.Before)
	}
	if o.Report != "" {
		l.logf(failure, "%s", o.Report)
		l.raw("\n")
	} else {
		l.logf(failure, "Scheduler hit an exception: %s", o.Text)
		l.raw("\n")
	}
	l.flush()
	if o.Wait > 0 {
		<-time.After(o.Wait)
	}
	if os.Getppid() == j.Parent { // else it has ended, and who took its place is no part of this server
		_ = syscall.Kill(j.Parent, syscall.SIGQUIT)
	}
	return 1
}

// runController is the main function of the data-parallel controller: it starts the schedulers and holds them.
func runController(j job, ready *os.File) int {
	quit := make(chan os.Signal, 1)
	signal.Notify(quit, syscall.SIGQUIT)
	exe, err := os.Executable()
	for i, r := range j.Ranks {
		if err != nil {
			break
		}
		var cmd *exec.Cmd
		if cmd, err = childCommand(exe, r, []*os.File{ready, os.NewFile(uintptr(fdControl+1+i), r.Title)}); err == nil {
			if err = cmd.Start(); err == nil {
				go cmd.Wait() //nolint:errcheck // reaped only; SGLang's controller does not look either
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sglang-sim: start a scheduler:", err)
		return 1
	}
	ready.Close()
	ended := make(chan struct{})
	go func() {
		var b [1]byte
		_, _ = os.NewFile(fdControl, "control").Read(b[:])
		close(ended)
	}()
	select {
	case <-ended:
		return 0
	case <-quit:
		killSelf() // Python dies of the SIGQUIT itself, which the Go runtime does not let us do
		return 1
	}
}

// killSelf ends this process as SIGKILL does.
func killSelf() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// bindIPC makes a socket in place of the file, as ZeroMQ does for ipc:// addresses. The file stays when it is closed.
func bindIPC(path string) (net.Listener, error) {
	os.Remove(path)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("sglang-sim: bind an ipc socket (a long TMPDIR is the usual reason): %w", err)
	}
	ln.SetUnlinkOnClose(false)
	return ln, nil
}
