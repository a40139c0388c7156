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
	cmd  *exec.Cmd
	mu   sync.Mutex
	to   io.WriteCloser
	file map[string]bool // files in /dev/shm that it knows
}

// startWatchdog starts one before the server, whose processes carry the marker.
func startWatchdog(marker string, f folder, stdout, stderr string) (*watchdog, error) {
	w := &watchdog{file: map[string]bool{}}
	w.cmd = exec.Command("/bin/sh", "-c", watchdogScript, "sglangtest-watchdog", markerVariable+"="+marker, f.root, stdout, stderr)
	w.cmd.Dir = "/"
	w.cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/local/bin:/usr/bin:/bin"}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var err error
	if w.to, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return w, w.cmd.Start()
}

// tell sends it a line. If it has been killed, there is no watchdog any more, and nobody to tell.
func (w *watchdog) tell(what string, value any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintln(w.to, what, value)
}

// shared makes it remove a file in /dev/shm as well.
func (w *watchdog) shared(paths []string) {
	for _, path := range paths {
		w.mu.Lock()
		known := w.file[path]
		w.file[path] = true
		w.mu.Unlock()
		if !known {
			w.tell("shared", path)
		}
	}
}

// files returns the files in /dev/shm that are known.
func (w *watchdog) files() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var paths []string
	for path := range w.file {
		paths = append(paths, path)
	}
	return paths
}

// dismiss ends it: the server is gone. It is killed and not told, since it may itself have been stopped.
func (w *watchdog) dismiss() {
	w.cmd.Process.Kill() // fails only if it has ended
	w.cmd.Wait()         // closes its input; its status does not matter
}
