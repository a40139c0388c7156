package load

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// readLimits reads the limits as they are.
func readLimits() (l limits) {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil && r.Cur < 1<<40 {
		l.files = int(r.Cur)
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		l.open = len(open) - 1 // without the folder's own
	}
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if n, _ := fmt.Sscan(string(text), &l.firstPort, &l.lastPort); n < 2 {
			l.firstPort, l.lastPort = 0, 0
		}
	}
	return l
}

// cpuTime returns the time that this process has computed so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
