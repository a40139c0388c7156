package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A stat is what /proc/PID/stat says of a process.
type stat struct {
	state  byte
	parent int
	group  int
	start  string // in clock ticks since the host started
}

// dead reports whether it has ended, even if nobody has waited for it.
func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' }

// statOf returns false if there is no such process.
func statOf(pid int) (stat, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // the third one and those that follow
	if len(fields) < 20 {
		return stat{}, false
	}
	s := stat{state: fields[0][0], start: fields[19]}
	s.parent, _ = strconv.Atoi(fields[1]) // the kernel writes numbers
	s.group, _ = strconv.Atoi(fields[2])
	return s, true
}

// startOf returns when a process that nobody has waited for was started.
func startOf(pid int) string {
	s, _ := statOf(pid)
	return s.start
}

// A candidate is a process of which more and more is read.
type candidate struct {
	pid     int
	stat    stat
	environ map[string]bool
	locks   []string // of its outputs
	cgroup  *string
}

// has reports whether a process that has not ended is one of the server's: it is in its process group, it carries
// its variable, it writes to one of its logs, or it is in its control group. Setting a process title, as SGLang's
// children do, can overwrite the environment, and a process may leave its group: hence all of them.
func (id identity) has(pid int) bool {
	s, ok := statOf(pid)
	return ok && id.is(&candidate{pid: pid, stat: s})
}

func (id identity) is(c *candidate) bool {
	if c.stat.dead() || c.pid == os.Getpid() {
		return false
	}
	if c.stat.group == id.leader && id.leader > 0 {
		// The number is the group's as long as the leader has it, which is not waited for before its server has gone.
		if leader, ok := statOf(id.leader); ok && leader.start == id.start {
			return true
		}
	}
	return c.carries(id.variable) || c.writes(id.locks) || c.within(id.cgroup)
}

func (c *candidate) carries(variable string) bool {
	if c.environ == nil {
		c.environ = map[string]bool{}
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.pid)) // it may have ended, or be another user's
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if bytes.HasPrefix(v, []byte(markerVariable+"=")) {
				c.environ[string(v)] = true
			}
		}
	}
	return c.environ[variable]
}

// writes reports whether a process writes to the logs. Only its outputs count: a process that this program is about to turn
// into another one has all of this program's files for a moment.
func (c *candidate) writes(locks []string) bool {
	if c.locks == nil {
		c.locks = []string{lockOf(strconv.Itoa(c.pid), 1), lockOf(strconv.Itoa(c.pid), 2)}
	}
	return slices.ContainsFunc(locks, func(lock string) bool { return slices.Contains(c.locks, lock) })
}

func (c *candidate) within(cgroup string) bool {
	if cgroup == "" {
		return false
	}
	if c.cgroup == nil {
		path := cgroupOf(strconv.Itoa(c.pid))
		c.cgroup = &path
	}
	return within(*c.cgroup, cgroup)
}

// lockOf names the lock that a process holds through one of its files, such as "08:01:131" (device and inode); empty
// if there is none. The kernel shows an exclusive lock with that one open file through which it was taken, and there
// is only one at a time. So another process that shows it inherited that open file: to have opened the same path, or
// a file that was put in its place, or one of another mount namespace, shows none.
func lockOf(process string, fd int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%s/fdinfo/%d", process, fd))
	if err != nil {
		return "" // it has ended, has no such file, or is another user's
	}
	for line := range strings.Lines(string(text)) {
		// lock:	1: FLOCK  ADVISORY  WRITE 359 08:01:131 0 EOF
		f := strings.Fields(line)
		if len(f) >= 7 && f[0] == "lock:" && f[2] == "FLOCK" && f[4] == "WRITE" {
			return f[6]
		}
	}
	return ""
}

// members returns the processes of the server that have not ended.
func (id identity) members() []int { return membersOf([]identity{id})[0] }

// membersOf returns the members of several servers, at the cost of one.
func membersOf(ids []identity) [][]int {
	pids := make([][]int, len(ids))
	eachProcess(func(pid int) {
		s, ok := statOf(pid)
		c := candidate{pid: pid, stat: s}
		for i, id := range ids {
			if ok && id.is(&c) {
				pids[i] = append(pids[i], pid)
			}
		}
	})
	return pids
}

// eachProcess calls f for each process that there is.
func eachProcess(f func(pid int)) {
	entries, _ := os.ReadDir("/proc") // without /proc there is none that can be known
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			f(pid)
		}
	}
}

// signal sends a signal to a process if it is the server's. It is held by a descriptor while that is looked at, so that what is
// found to be the server's is what gets the signal, and never a process that was given its number meanwhile.
func (id identity) signal(pid int, s syscall.Signal) error {
	fd, err := pidfdOpen(pid)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread, up to Linux 6.8
		return syscall.ESRCH
	}
	if err != nil { // a kernel or a sandbox without: the start time tells processes with the same number apart
		before, ok := statOf(pid)
		if !ok || !id.is(&candidate{pid: pid, stat: before}) {
			return syscall.ESRCH
		}
		if after, ok := statOf(pid); !ok || after.start != before.start {
			return syscall.ESRCH
		}
		return syscall.Kill(pid, s)
	}
	defer unix.Close(fd)
	if !id.has(pid) {
		return syscall.ESRCH
	}
	return unix.PidfdSendSignal(fd, s, nil, 0)
}

// pidfdOpen is a variable for a test without descriptors of processes.
var pidfdOpen = func(pid int) (int, error) { return unix.PidfdOpen(pid, 0) }

// signalAll sends a signal to all processes of the server, also to those that are made meanwhile, and returns the first failure.
func (id identity) signalAll(s syscall.Signal) error {
	type process struct {
		pid   int
		start string
	}
	sent := map[process]bool{}
	var failed error
	for again := true; again; {
		again = false
		for _, pid := range id.members() {
			p := process{pid, startOf(pid)}
			if sent[p] {
				continue
			}
			sent[p], again = true, true
			if err := id.signal(pid, s); err != nil && err != syscall.ESRCH && failed == nil {
				failed = fmt.Errorf("signal process %d: %w", pid, err)
			}
		}
	}
	if len(sent) == 0 {
		return syscall.ESRCH
	}
	return failed
}

// awaitUnreaped waits until a child has ended, and leaves it to be waited for: its number stays its own.
func awaitUnreaped(pid int) bool {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			return err == nil
		}
	}
}
