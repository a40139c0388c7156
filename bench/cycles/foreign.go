//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A foreigner is a process that is no server's and looks like one: it must outlive all cycles, and its files in /dev/shm too.
type foreigner struct {
	what   string
	cmd    *exec.Cmd
	in     io.Closer
	shared []string
}

// The scripts read the folder from their input, so that it is not in their command lines. Then they are a process whose
// outputs are the logs there.
const (
	logsTo    = `exec cat >>"$logs/server-0.stdout.log" 2>>"$logs/server-0.stderr.log"`
	mountedOn = `mount -t tmpfs none "$logs" && echo up && ` + logsTo
	opened    = `: >"/dev/shm/$shared" && exec 3<>"/dev/shm/$shared" && echo up && ` + logsTo
)

// startForeigners starts them and makes the folder of the logs anew, so that one has the files of a deleted one.
func startForeigners(logs string) (all []*foreigner, err error) {
	kinds := []struct {
		what, command string
		args          []string
	}{{"with the files of a deleted folder", "/bin/sh", []string{"-c", "read -r logs; read -r shared; " + opened}}}
	if os.Getuid() == 0 {
		kinds = append(kinds, struct {
			what, command string
			args          []string
		}{"with the same paths in another mount namespace", "unshare", []string{"-m", "/bin/sh", "-c", "read -r logs; read -r shared; " + mountedOn}})
	}
	for i, k := range kinds {
		f := &foreigner{what: k.what, cmd: exec.Command(k.command, k.args...)}
		f.cmd.Stderr = os.Stderr
		in, errIn := f.cmd.StdinPipe()
		out, errOut := f.cmd.StdoutPipe()
		if err := errors.Join(errIn, errOut, f.cmd.Start()); err != nil {
			return all, err
		}
		f.in = in
		all = append(all, f)
		shared := fmt.Sprintf("sem.loky-%d-foreign", f.cmd.Process.Pid)
		if _, err := fmt.Fprintf(in, "%s\n%s\n", logs, shared); err != nil {
			return all, err
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
			return all, fmt.Errorf("foreign process %s: %q, %w", k.what, line, err)
		}
		for !f.writes(logs) { // it has said so just before
			if err := f.alive(); err != nil {
				return all, err
			}
		}
		if i == 0 {
			f.shared = []string{filepath.Join("/dev/shm", shared)}
			if err := errors.Join(os.RemoveAll(logs), os.Mkdir(logs, 0o700)); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

// writes reports whether its output is the log.
func (f *foreigner) writes(logs string) bool {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", f.cmd.Process.Pid))
	return err == nil && path == filepath.Join(logs, "server-0.stdout.log")
}

// alive returns an error if it, or a file of it, is no more.
func (f *foreigner) alive() error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.cmd.Process.Pid))
	if err != nil {
		return err
	}
	if state := strings.TrimSpace(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[:1]; strings.Contains("ZXT", state) {
		return fmt.Errorf("the foreign process %s was ended or stopped (state %s)", f.what, state)
	}
	for _, path := range f.shared {
		if _, err := os.Lstat(path); err != nil {
			return fmt.Errorf("a file of the foreign process %s: %w", f.what, err)
		}
	}
	return nil
}

// end ends it.
func (f *foreigner) end() {
	f.in.Close()
	_ = f.cmd.Wait() // as it is
	for _, path := range f.shared {
		os.Remove(path)
	}
}
