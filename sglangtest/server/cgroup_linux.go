package server

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A cgroup is a control group of a server's own, which none of its processes leaves, whatever they do. There is one where this
// program may make it: where cgroup v2 is mounted and its own group was delegated to it.
type cgroup struct {
	dir  string // where it is mounted
	path string // as /proc/PID/cgroup has it
}

// nameCgroup names one below this program's own; the zero value if there can be none.
func nameCgroup(name string) cgroup {
	own := cgroupOf("self")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || own == "" || within(own, "/..") {
		return cgroup{}
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		i := 6 // behind the optional fields
		for i < len(f) && f[i] != "-" {
			i++
		}
		if i+1 >= len(f) || f[i+1] != "cgroup2" || !within(own, f[3]) || strings.Contains(f[4], `\`) {
			continue
		}
		dir := filepath.Join(f[4], strings.TrimPrefix(own, strings.TrimSuffix(f[3], "/")))
		return cgroup{dir: filepath.Join(dir, name), path: filepath.Join(own, name)}
	}
	return cgroup{}
}

// make makes it and opens it. It fails where this program may not, and on a kernel whose groups cannot be killed (before 5.14).
func (c cgroup) make() (*os.File, error) {
	if c.dir == "" {
		return nil, errors.ErrUnsupported
	}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return nil, err
	}
	_, err := os.Stat(filepath.Join(c.dir, "cgroup.kill"))
	if err == nil {
		var f *os.File
		if f, err = os.Open(c.dir); err == nil {
			return f, nil
		}
	}
	return nil, errors.Join(err, os.Remove(c.dir))
}

// into makes a process begin its life in the group that f is.
func into(attr *syscall.SysProcAttr, f *os.File) {
	attr.UseCgroupFD, attr.CgroupFD = true, int(f.Fd())
}

// kill kills all that is in it, at once.
func (c cgroup) kill() error {
	return os.WriteFile(filepath.Join(c.dir, "cgroup.kill"), []byte("1"), 0)
}

// remove removes it and the groups that the server made in it. Processes that have ended hold it for a moment at most.
func (c cgroup) remove() error {
	for deadline := time.Now().Add(time.Second); ; time.Sleep(goneInterval) {
		var dirs []string
		err := filepath.WalkDir(c.dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		for _, dir := range slices.Backward(dirs) { // the inner ones first
			err = errors.Join(err, syscall.Rmdir(dir))
		}
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// cgroupOf returns the control group of a process in the hierarchy of version 2; empty if it is in none.
func cgroupOf(process string) string {
	text, err := os.ReadFile("/proc/" + process + "/cgroup")
	if err != nil {
		return "" // it has ended
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path
		}
	}
	return ""
}

// within reports whether a control group is another one or in it.
func within(path, other string) bool {
	return path == other || strings.HasPrefix(path, strings.TrimSuffix(other, "/")+"/")
}
