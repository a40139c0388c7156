package results

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

func currentProcess() process {
	p := process{PID: os.Getpid()}
	// Without /proc the identity stays incomplete, and readers conclude StateUnknown from that.
	if _, start, err := procStat(p.PID); err == nil {
		p.StartTicks = start
	}
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		p.BootID = string(bytes.TrimSpace(id))
	}
	if ns, err := os.Readlink("/proc/self/ns/pid"); err == nil {
		p.PIDNamespace = ns
	}
	return p
}

func (p process) liveness() liveness {
	here := currentProcess()
	if p.StartTicks == 0 || p.BootID == "" || p.PIDNamespace == "" ||
		p.BootID != here.BootID || p.PIDNamespace != here.PIDNamespace {
		return unknown
	}
	state, start, err := procStat(p.PID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return dead
	case err != nil:
		return unknown
	case start != p.StartTicks, state == 'Z', state == 'X': // another process; ended and not yet reaped
		return dead
	}
	return alive
}

// procStat reads a process's state and its start time in clock ticks since boot: fields 3 and 22 of
// /proc/PID/stat, see proc_pid_stat(5).
func procStat(pid int) (state byte, start uint64, err error) {
	name := fmt.Sprintf("/proc/%d/stat", pid)
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, 0, err
	}
	// Field 2, the command's name in parentheses, may hold spaces and parentheses itself.
	_, after, found := bytes.Cut(data[bytes.LastIndexByte(data, ')')+1:], []byte(" "))
	fields := bytes.Fields(after)
	if !found || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("results: cannot read %s", name)
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return fields[0][0], start, err
}
