//go:build unix

package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	tailInterval = 50 * time.Millisecond // between two looks at what the server wrote
	goneInterval = 20 * time.Millisecond // between two looks at what is left of a server
	goneTimeout  = 30 * time.Second      // for a killed process to be gone: a GPU driver can hold it for long
	portTimeout  = 5 * time.Second       // for the port to be free after that
)

// local is a server that is a process of this host.
type local struct {
	url      string
	address  string // to listen on
	stopTime time.Duration
	goneTime time.Duration
	cmd      *exec.Cmd
	variable string // in the environment of its processes
	folder   folder
	cgroup   cgroup // zero: none
	shared   *sharedFiles
	warnings []string // about the launch
	ownLogs  bool     // the logs are in the server's folder
	outputs  [2]*os.File
	begins   [2]int64 // where in the outputs this life of the server begins
	log      *Log

	weightVersion string
	watchdog      *watchdog

	killed    chan struct{} // closed by the first Kill
	killOnce  sync.Once
	reaped    sync.Once
	mainEnded chan struct{} // the main process has ended, or cannot be ended; exit is set
	exited    chan struct{} // all of the server has gone, or cannot be ended, and its log has been read

	mu        sync.Mutex
	identity  identity // of its processes, once the main process has started
	keepLogs  bool
	asked     time.Time // when Stop or Kill was first called
	suspended bool
	exit      Exit
	err       error // what went wrong with the end, once exited is closed
	remains   bool  // processes that cannot be ended
}

var _ interface {
	Logged
	LogKeeper
	Named
	Exiter
	Killer
	Suspender
	Remainer
	Commanded
	Warned
} = (*local)(nil)

var _ Reserver = (*process)(nil)

func (p *process) Launch(ctx context.Context, spec Spec) (Instance, error) {
	if p.fault != nil {
		return nil, p.fault
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := p.check(spec.Config); err != nil {
		return nil, err
	}
	if err := checkPaths(spec); err != nil {
		return nil, err
	}
	marker := rand.Text()
	l := &local{url: baseURL(spec.Config), address: spec.Config.address(), stopTime: p.stopTimeout, goneTime: goneTimeout,
		variable: markerVariable + "=" + marker, cgroup: nameCgroup("sglangtest-" + marker), log: NewLog(spec.Config), weightVersion: spec.WeightVersion(),
		killed: make(chan struct{}), mainEnded: make(chan struct{}), exited: make(chan struct{}), ownLogs: spec.LogFolder == "",
		folder: nameFolder(spec.LogFolder)}
	l.shared = &sharedFiles{id: l.known, tell: func(what string, values ...any) { l.watchdog.tell(what, values...) }}
	if err := l.start(p, spec); err != nil {
		theSharedWatch.remove(l.shared)
		l.closeOutputs()
		return nil, err
	}
	ends := make(chan struct{})
	var readers sync.WaitGroup
	for i, f := range l.outputs {
		readers.Go(func() { l.tail(f, l.begins[i], i == 1, ends) })
	}
	go func() {
		defer close(l.exited)
		l.wait()
		close(ends)
		theSharedWatch.remove(l.shared)
		readers.Wait()
		l.log.End()
		l.remove()
	}()
	return l, nil
}

// start starts the watchdog before it makes anything, so that there is no moment in which nothing watches.
func (l *local) start(p *process, spec Spec) (err error) {
	args, err := spec.CommandLine("")
	if err != nil {
		return err
	}
	args = append(slices.Clone(p.command[1:]), args...)
	program, err := p.program()
	if err != nil {
		return fmt.Errorf("%w: set the command that starts SGLang with WithCommand", err)
	}
	var paths [2]string
	for i, stream := range []string{"stdout", "stderr"} {
		paths[i] = filepath.Join(l.folder.logs, spec.Name+"."+stream+".log")
	}
	if !l.ownLogs { // another server may have them, which the watchdog must not take for this one
		if err := l.openLogs(paths); err != nil {
			return err
		}
	}
	if l.watchdog, err = startWatchdog(l.variable, l.folder, l.cgroup, l.opened()...); err != nil {
		return fmt.Errorf("watchdog: %w", err)
	}
	var group *os.File
	defer func() {
		if group != nil {
			group.Close()
		}
		if err != nil {
			err = errors.Join(err, l.removeCgroup(), l.folder.remove())
			l.watchdog.dismiss()
		}
	}()
	if err := l.folder.make(spec.Config); err != nil {
		return err
	}
	if l.ownLogs {
		if err := l.openLogs(paths); err != nil {
			return err
		}
	}
	var locks []string
	for _, f := range l.outputs {
		if lock := lockOf("self", int(f.Fd())); lock != "" {
			locks = append(locks, lock)
			l.watchdog.tell("lock", lock)
		}
	}
	if group, err = l.cgroup.make(); err != nil { // it is a help where it can be had
		l.cgroup = cgroup{}
	}
	if warning := theSharedWatch.add(l.shared); warning != "" {
		l.warnings = append(l.warnings, warning)
	}
	start := func(group *os.File) error {
		l.cmd = exec.Command(program, args...)
		l.cmd.Env = p.environ(spec.Config, l.variable, l.folder.temp)
		l.cmd.Stdout, l.cmd.Stderr = l.outputs[0], l.outputs[1] // files, not pipes: what the server writes never waits for this program
		l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if group != nil {
			into(l.cmd.SysProcAttr, group)
		}
		return l.cmd.Start()
	}
	err = start(group)
	if err != nil && group != nil { // perhaps because of it: a sandbox, or a group that takes no processes
		_ = l.removeCgroup() // empty: the server has started or not whatever becomes of it
		err = start(nil)
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	pid := l.cmd.Process.Pid
	id := identity{leader: pid, start: startOf(pid), variable: l.variable, locks: locks, cgroup: l.cgroup.path}
	l.mu.Lock()
	l.identity = id
	l.mu.Unlock()
	l.watchdog.tell("leader", id.leader, id.start)
	return nil
}

// checkPaths refuses paths with control characters, which would spoil messages and files with a line for each path.
func checkPaths(spec Spec) error {
	var faults []error
	for _, p := range []struct{ what, path string }{{"name", spec.Name}, {"log folder", spec.LogFolder}, {"TMPDIR", os.TempDir()}} {
		if err := checkPath(p.what, p.path); err != nil {
			faults = append(faults, err)
		}
	}
	if spec.Name == "" || filepath.Base(spec.Name) != spec.Name || spec.Name == ".." || spec.Name == "." {
		faults = append(faults, fmt.Errorf("name: %q is no name of a file: leave out %q", spec.Name, filepath.Separator))
	}
	return errors.Join(faults...)
}

// known returns what the server's processes are known by; false before its main process has started.
func (l *local) known() (identity, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.identity, l.identity.leader > 0
}

// opened returns the logs that are open.
func (l *local) opened() []*os.File {
	return slices.DeleteFunc(slices.Clone(l.outputs[:]), func(f *os.File) bool { return f == nil })
}

func (l *local) removeCgroup() error {
	if l.cgroup.dir == "" {
		return nil
	}
	err := l.cgroup.remove()
	l.cgroup = cgroup{}
	return err
}

func (l *local) openLogs(paths [2]string) error {
	for i, path := range paths {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600) // SGLang logs its API keys
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		l.outputs[i] = f
		if err := lockLog(f); err != nil {
			return err
		}
		if l.begins[i], err = f.Seek(0, io.SeekEnd); err != nil { // an earlier life of the server wrote what is there
			return fmt.Errorf("log: %w", err)
		}
	}
	return nil
}

// waitMain returns when the main process has ended, and reports false if it does not although it was killed. Where the
// system can wait without it, the main process is not reaped yet: its number, which is that of the group, stays its own.
func (l *local) waitMain() bool {
	ended := make(chan struct{})
	go func() { // ends with the process, which the kernel may hold for ever
		defer close(ended)
		if !awaitUnreaped(l.cmd.Process.Pid) {
			l.reap()
		}
	}()
	gone := true
	select {
	case <-ended:
	case <-l.killed:
		select {
		case <-ended:
		case <-time.After(l.goneTime):
			gone = false
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	defer close(l.mainEnded)
	if !l.asked.IsZero() {
		l.exit.Asked, l.exit.Took = true, time.Since(l.asked)
	}
	if !gone {
		l.exit.Code, l.remains = -1, true
		l.err = l.cannotEnd(l.cmd.Process.Pid)
		go func() {
			<-ended
			l.reap()
		}()
	}
	return gone
}

// reap waits for the main process, which has ended, and gives its number back.
func (l *local) reap() {
	l.reaped.Do(func() {
		err := l.cmd.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.remains && l.exit.Code == -1 {
			return // it ended too late to tell
		}
		l.exit.Code = l.cmd.ProcessState.ExitCode()
		if status, ok := l.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			l.exit.Signal = linuxSignal(status.Signal())
		}
		var status *exec.ExitError
		if err != nil && !errors.As(err, &status) {
			l.err = errors.Join(l.err, err)
		}
	})
}

// linuxSignal returns Linux's number of a signal of this system.
func linuxSignal(s syscall.Signal) syscall.Signal {
	switch s {
	case syscall.SIGBUS:
		return 7
	case syscall.SIGUSR1:
		return 10
	case syscall.SIGUSR2:
		return 12
	case syscall.SIGSYS:
		return 31
	}
	return s
}

func (l *local) cannotEnd(pids ...int) error {
	return fmt.Errorf("processes %v are still there %v after SIGKILL: the kernel holds them, as a driver or a file system that hangs makes it", pids, l.goneTime)
}

// wait returns when the main process has ended and everything else of the server has gone.
func (l *local) wait() {
	if !l.waitMain() {
		return
	}
	id, _ := l.known()
	tick := time.NewTicker(goneInterval)
	defer tick.Stop()
	for deadline := time.Now().Add(l.goneTime); ; <-tick.C {
		pids := id.members()
		if len(pids) == 0 {
			break
		}
		l.shared.note(func() []int { return pids })
		l.signal(syscall.SIGKILL) // what fails is tried again
		if time.Now().After(deadline) {
			l.mu.Lock()
			l.remains = true
			l.mu.Unlock()
			l.fail(l.cannotEnd(pids...))
			l.reap()
			return
		}
	}
	l.reap()
	// A port that is still taken is another server's, or a container's that takes a moment to go.
	for deadline := time.Now().Add(portTimeout); l.exit.Asked; <-tick.C { // the end has been noted: exit no longer changes
		listener, err := net.Listen("tcp", l.address)
		if err == nil {
			listener.Close()
		}
		if err == nil || time.Now().After(deadline) {
			return
		}
	}
}

// signal sends a signal to all processes of the server.
func (l *local) signal(s syscall.Signal) error {
	if s == syscall.SIGKILL && l.cgroup.dir != "" {
		_ = l.cgroup.kill() // those that it does not reach are told one by one
	}
	id, _ := l.known()
	return id.signalAll(s)
}

func (l *local) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(l.err, err)
}

// remove removes what the server leaves, apart from the log of one that failed.
func (l *local) remove() {
	if err := l.shared.remove(); err != nil {
		l.fail(err)
	}
	l.closeOutputs()
	root := l.folder.root
	l.mu.Lock()
	remains := l.remains
	if l.ownLogs && (l.keepLogs || !l.exit.Asked || remains) { // processes that are still there are known by their logs
		root = l.folder.temp
	}
	l.mu.Unlock()
	if err := os.RemoveAll(root); err != nil {
		l.fail(err)
	}
	if !remains { // else it tries once more when this program ends
		if err := l.removeCgroup(); err != nil {
			l.fail(err)
		}
		l.watchdog.dismiss()
	}
}

// Remains reports whether processes of the server are there that cannot be ended, so that its GPUs and its port are not
// free.
func (l *local) Remains() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remains
}

func (l *local) closeOutputs() {
	for _, f := range l.outputs {
		if f != nil {
			f.Close()
		}
	}
}

// tail reads what the server appends to f from offset on, until it has gone.
func (l *local) tail(f *os.File, offset int64, stderr bool, ends <-chan struct{}) {
	tick := time.NewTicker(tailInterval)
	defer tick.Stop()
	to := l.log.Stdout()
	if stderr {
		to = l.log.Stderr()
	}
	buf := make([]byte, 64<<10)
	for over := false; ; {
		n, err := f.ReadAt(buf, offset)
		offset += int64(n)
		_, _ = to.Write(buf[:n]) // it never fails
		if err != nil && err != io.EOF {
			l.fail(err)
			return
		}
		if n == len(buf) {
			continue
		}
		if over {
			return
		}
		select {
		case <-tick.C:
		case <-ends:
			over = true // what was written until then is still read
		}
	}
}

func (l *local) URL() string             { return l.url }
func (l *local) Log() *Log               { return l.log }
func (l *local) Exited() <-chan struct{} { return l.exited }

// Warnings returns what may go wrong because of what this host lacks.
func (l *local) Warnings() []string { return slices.Clone(l.warnings) }

// CommandLine returns the command line of the main process, keys included.
func (l *local) CommandLine() []string { return slices.Clone(l.cmd.Args) }

// WeightVersion returns what is in the server's answers.
func (l *local) WeightVersion() string { return l.weightVersion }

// KeepLog keeps the logs also when the server ends as asked, and returns the path of that of stderr.
func (l *local) KeepLog() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepLogs = true
	return l.outputs[1].Name()
}

// Exit says how the main process ended, once the server has.
func (l *local) Exit() (Exit, bool) {
	select {
	case <-l.exited:
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.exit, true
	default:
		return Exit{}, false
	}
}

func (l *local) Err() error {
	exit, ended := l.Exit()
	if !ended || exit.Asked {
		return nil
	}
	return errors.New(exit.String())
}

// ask notes that the end is wanted. It reports false if the main process has ended already.
func (l *local) ask(forced bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hasEnded() {
		return false
	}
	if l.asked.IsZero() {
		l.asked = time.Now()
	}
	l.exit.Forced = l.exit.Forced || forced
	return true
}

// hasEnded reports whether the main process has.
func (l *local) hasEnded() bool {
	select {
	case <-l.mainEnded:
		return true
	default:
		return false
	}
}

// Stop sends SIGTERM to the main process, and kills all if it has not ended by itself in time.
func (l *local) Stop(ctx context.Context) error {
	if l.ask(false) {
		l.lookShared()
		l.resume()
		l.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has just ended
		timer := time.NewTimer(l.stopTime)
		defer timer.Stop()
		select {
		case <-l.mainEnded:
		case <-timer.C:
			l.kill()
		case <-ctx.Done():
			l.kill()
		}
	}
	<-l.exited
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// lookShared looks what the server's processes have in /dev/shm, which can be seen only while they live.
func (l *local) lookShared() {
	if id, ok := l.known(); ok {
		l.shared.note(id.members)
	}
}

// Kill kills all processes of the server.
func (l *local) Kill(context.Context) error {
	l.kill()
	return nil
}

func (l *local) kill() {
	if l.ask(true) {
		l.lookShared()
		_ = l.signal(syscall.SIGKILL) // wait goes on until all have gone
		l.killOnce.Do(func() { close(l.killed) })
	}
}

func (l *local) Suspend(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.hasEnded() {
		return errors.New("it has ended")
	}
	err := l.identity.signalAll(syscall.SIGSTOP)
	l.suspended = l.suspended || err == nil
	return err
}

func (l *local) Resume(context.Context) error { return l.resume() }

func (l *local) resume() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.suspended || l.hasEnded() {
		return nil
	}
	l.suspended = false
	if err := l.identity.signalAll(syscall.SIGCONT); err != syscall.ESRCH { // it may have been killed meanwhile
		return err
	}
	return nil
}

// baseURL is where this host reaches a server with the config.
func baseURL(cfg Config) string {
	host := cfg.Host
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(host, strconv.Itoa(cfg.Port))}
	return u.String()
}
