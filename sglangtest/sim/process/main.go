//go:build unix

// Package process is the simulated SGLang server as a process that a launcher cannot tell from SGLang: its command line,
// log, process tree, files, signals, exit statuses and failures. The command sglang-sim is its [Main].
package process

import (
	"os"
	"runtime"
)

// Main runs the command line argv, without the program's name, and returns the exit status. It uses the process as if it
// were its own: signals, standard streams and, if it fails as SGLang does, SIGKILL to itself. The
// program must call it first, since its children are the same program.
func Main(argv []string) int {
	// Linux sends a child its death signal when the thread that started it ends: this one must stay.
	runtime.LockOSThread()
	if job := os.Getenv(childEnv); job != "" {
		return runChild(job)
	}
	c, status := parse(argv, os.Stdout, os.Stderr)
	if status < 0 {
		status = newServer(c).run()
	}
	return status
}
