package server

import (
	"cmp"
	"fmt"
	"syscall"
	"time"
)

// An Exit says how a server's process ended.
type Exit struct {
	Code   int            // exit status; -1 if a signal ended it, or nothing yet
	Signal syscall.Signal // the signal that ended it by Linux's number, 0 if none; SGLang up to 0.5.18 kills itself (9) after a clean stop
	Asked  bool           // Stop or Kill had been called
	Forced bool           // this package killed it: it was to be killed, or did not end in time
	Took   time.Duration  // from Stop to the end of the main process; 0 if not asked
}

// notEnded is the exit of a process that goes on.
var notEnded = Exit{Code: -1}

// linuxSignals names signals by Linux's numbers (signal(7), x86 and ARM), whatever system this program runs on: a server on
// another host ends by them.
var linuxSignals = map[syscall.Signal]string{1: "hangup", 2: "interrupt", 3: "quit", 4: "illegal instruction", 5: "trace/breakpoint trap",
	6: "aborted", 7: "bus error", 8: "floating point exception", 9: "killed", 10: "user defined signal 1", 11: "segmentation fault",
	12: "user defined signal 2", 13: "broken pipe", 14: "alarm clock", 15: "terminated", 24: "CPU time limit exceeded",
	25: "file size limit exceeded", 31: "bad system call"}

// String says it in words, such as "exit status 3" or "signal 9 (killed)".
func (e Exit) String() string {
	if e == notEnded {
		return "not ended"
	}
	text := fmt.Sprintf("exit status %d", e.Code)
	if e.Signal != 0 {
		text = fmt.Sprintf("signal %d (%s)", int(e.Signal), cmp.Or(linuxSignals[e.Signal], "unknown"))
	}
	if e.Forced {
		text += ", forced"
	}
	return text
}

// Clean reports whether this is how a server of the given version ends on SIGTERM, by itself and in order: with
// status 0 from 0.5.21 on, by killing itself before (tokenizer_manager.py, sigterm_watchdog), by SIGTERM itself while
// it still loads. A wrapper script may turn the signal n into status 128+n. If the version is not known, all are clean.
func (e Exit) Clean(version string) bool {
	signal := e.Signal
	if e.Code > 128 {
		signal = syscall.Signal(e.Code - 128)
	}
	old, known := olderThan(version, "0.5.21")
	switch {
	case !e.Asked || e.Forced:
		return false
	case signal == syscall.SIGTERM:
		return true
	case signal == syscall.SIGKILL:
		return old || !known
	}
	return e.Code == 0 && (!old || !known)
}
