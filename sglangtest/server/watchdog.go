//go:build unix

package server

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// watchdogScript outlives this program when it is killed; see there.
//
//go:embed watchdog.sh
var watchdogScript string

// A watchdog is a shell process that ends a server if this program is no more. It is in a session of its own, so no
// signal to this program's group or terminal reaches it, and learns of the end by the end of its input.
type watchdog struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	to   *os.File
	deaf bool // it was killed, or takes nothing any more
}

// tellTimeout is how long a watchdog may take to read what it was told before, if its pipe is full.
const tellTimeout = 2 * time.Second

// startWatchdog starts one before the server, whose processes carry the variable. It keeps the given logs open, so that
// their inodes stay theirs.
func startWatchdog(variable string, f folder, group cgroup, logs ...*os.File) (*watchdog, error) {
	w := &watchdog{}
	w.cmd = exec.Command("/bin/sh", "-c", watchdogScript, "sglangtest-watchdog", variable, f.root, group.dir)
	w.cmd.Dir = "/"
	w.cmd.ExtraFiles = logs
	w.cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	input, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer input.Close()
	w.cmd.Stdin, w.to = input, to
	if err := w.cmd.Start(); err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return w, nil
}

// tell sends it a line of numbers. If it has been killed, there is no watchdog any more, and nobody to tell; and this program
// does not hang if it has been stopped.
func (w *watchdog) tell(what string, values ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf {
		return
	}
	w.to.SetWriteDeadline(time.Now().Add(tellTimeout)) // pipes have them
	_, err := fmt.Fprintln(w.to, append([]any{what}, values...)...)
	w.deaf = err != nil // the line that it got a part of is the last
}

// dismiss ends it: the server is gone. It is killed and not told, since it may itself have been stopped.
func (w *watchdog) dismiss() {
	w.cmd.Process.Kill() // fails only if it has ended
	w.cmd.Wait()         // its status does not matter
	w.to.Close()
}
