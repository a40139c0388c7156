//go:build linux

// Package leftover finds what programs leave behind: processes, and files in shared memory. It looks from outside, so that
// tests need not trust a launcher's own idea of what belongs to a server.
package leftover

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const sharedMemory = "/dev/shm"

// A Watch knows what belongs to the programs that are watched. It is safe for concurrent use.
type Watch struct {
	mark, instance string

	mu   sync.Mutex
	held map[string]bool // files in /dev/shm that one of the processes had
}

// Begin begins to watch. The mark is a text that each process of interest has in its command line, its environment, or
// the path of an open file: a folder that holds TMPDIR and the logs of all of them will do. An open file counts if it is the
// one that has the path here, and was not deleted. The instance, if not empty, is a
// text in the names of all their files in /dev/shm; without it, the files are known that a process had at some call of
// Processes.
func Begin(mark, instance string) *Watch {
	return &Watch{mark: mark, instance: instance, held: map[string]bool{}}
}

// A Process is one that has the mark.
type Process struct {
	ID      int
	Command string // its command line, separated by spaces
	Temp    string // TMPDIR in its environment; empty if there is none
}

// Processes returns the processes with the mark, apart from this one and zombies, and from those that this one is about to
// turn into another program, which have all that it has.
func (w *Watch) Processes() ([]Process, error) {
	own, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		return nil, fmt.Errorf("leftover: %w", err)
	}
	var found []Process
	err = eachProcess(func(id int, dir string) {
		command, environ, marked := w.marked(dir)
		if !marked || bytes.Equal(command, own) {
			return
		}
		p := Process{ID: id, Command: strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))}
		for v := range strings.SplitSeq(string(environ), "\x00") {
			if temp, ok := strings.CutPrefix(v, "TMPDIR="); ok {
				p.Temp = temp
			}
		}
		w.hold(dir)
		found = append(found, p)
	})
	return found, err
}

// marked reports whether a process has the mark.
func (w *Watch) marked(dir string) (command, environ []byte, marked bool) {
	command, _ = os.ReadFile(dir + "/cmdline") // whatever fails here and below, the process has ended or is another user's
	environ, _ = os.ReadFile(dir + "/environ")
	marked = bytes.Contains(command, []byte(w.mark)) || bytes.Contains(environ, []byte(w.mark))
	for link, path := range opened(dir) {
		if marked {
			break
		}
		if strings.Contains(path, w.mark) {
			here, errHere := os.Stat(path)
			theirs, errTheirs := os.Stat(link)
			marked = errHere == nil && errTheirs == nil && os.SameFile(here, theirs)
		}
	}
	return command, environ, marked
}

// Kill sends SIGKILL to a process if it still has the mark.
func (w *Watch) Kill(p Process) error {
	fd, err := unix.PidfdOpen(p.ID, 0) // what is looked at below is then what gets the signal
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, _, marked := w.marked(filepath.Join("/proc", strconv.Itoa(p.ID))); !marked {
		return os.ErrProcessDone
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// hold notes the files in /dev/shm that a process has open or mapped.
func (w *Watch) hold(dir string) {
	mapped, _ := os.ReadFile(dir + "/maps") // it may have ended
	paths := slices.Collect(maps.Values(opened(dir)))
	for line := range strings.Lines(string(mapped)) {
		if i := strings.Index(line, sharedMemory+"/"); i >= 0 {
			paths = append(paths, strings.TrimSpace(line[i:]))
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, path := range paths {
		if strings.HasPrefix(path, sharedMemory+"/") {
			w.held[path] = true
		}
	}
}

// Shared returns the files in /dev/shm that belong to the processes, also to those that have ended.
func (w *Watch) Shared() ([]string, error) {
	entries, err := os.ReadDir(sharedMemory)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("leftover: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var paths []string
	for _, e := range entries {
		if path := filepath.Join(sharedMemory, e.Name()); w.held[path] || w.instance != "" && strings.Contains(e.Name(), w.instance) {
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// An Error says what is left.
type Error struct {
	Processes []Process
	Shared    []string
}

func (e *Error) Error() string {
	return fmt.Sprintf("left behind: processes %v, shared memory %v", e.Processes, e.Shared)
}

// Gone waits until nothing is left, for at most so long, and then returns an [Error].
func (w *Watch) Gone(limit time.Duration) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		processes, errProcesses := w.Processes()
		files, errFiles := w.Shared()
		if err := errors.Join(errProcesses, errFiles); err != nil {
			return err
		}
		if len(processes)+len(files) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return &Error{processes, files}
		}
	}
}

// eachProcess calls f for each process that is no zombie.
func eachProcess(f func(id int, dir string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("leftover: %w", err)
	}
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		if state := strings.TrimSpace(string(stat[bytes.LastIndexByte(stat, ')')+1:])); state[0] != 'Z' && state[0] != 'X' {
			f(id, dir)
		}
	}
	return nil
}

// opened returns the paths of the files that a process has open, by the links that lead to them.
func opened(dir string) map[string]string {
	descriptors, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return nil // it has ended, or is another user's
	}
	paths := map[string]string{}
	for _, fd := range descriptors {
		link := dir + "/fd/" + fd.Name()
		if path, err := os.Readlink(link); err == nil {
			paths[link] = path
		}
	}
	return paths
}
