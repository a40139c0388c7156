//go:build unix

package server

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// watchdogScript outlives this program when it is killed; see there.
//
//go:embed watchdog.sh
var watchdogScript string

// A watchdog is a shell process that ends a server if this program is no more. It is in a session of its own, so no
// signal to this program's group or terminal reaches it, and learns of the end by the end of its input.
type watchdog struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	to  io.WriteCloser
}

// startWatchdog starts one before the server, whose processes carry the variable. It keeps the given logs open, so that
// their inodes stay theirs.
func startWatchdog(variable string, f folder, group cgroup, logs ...*os.File) (*watchdog, error) {
	w := &watchdog{}
	w.cmd = exec.Command("/bin/sh", "-c", watchdogScript, "sglangtest-watchdog", variable, f.root, group.dir)
	w.cmd.Dir = "/"
	w.cmd.ExtraFiles = logs
	w.cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var err error
	if w.to, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return w, w.cmd.Start()
}

// tell sends it a line of numbers. If it has been killed, there is no watchdog any more, and nobody to tell.
func (w *watchdog) tell(what string, values ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintln(w.to, append([]any{what}, values...)...)
}

// dismiss ends it: the server is gone. It is killed and not told, since it may itself have been stopped.
func (w *watchdog) dismiss() {
	w.cmd.Process.Kill() // fails only if it has ended
	w.cmd.Wait()         // closes its input; its status does not matter
}
