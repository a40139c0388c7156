//go:build unix

package server

// An identity is what the processes of a server are known by. Each part proves by itself that a process is the
// server's, since no other program can come by it by chance; paths and bare numbers prove nothing.
type identity struct {
	leader   int      // main process, whose number is that of the process group
	start    string   // when the kernel started it: with that, the number is no other process's
	variable string   // NAME=VALUE in the environment
	locks    []string // of the logs: see lockOf
	cgroup   string   // its control group as /proc/PID/cgroup has it; empty: none
}
