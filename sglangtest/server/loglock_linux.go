package server

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockTimeout bounds the wait for a lock that outlives its server for a moment: a process that this program has just forked
// holds all its files until it has become another program.
const lockTimeout = 2 * time.Second

// lockLog makes sure that no other server writes to the file, since what it writes would be taken for this one's, and
// makes the processes known that write to it: see lockOf. The lock lasts until the last process that writes to the file has ended.
func lockLog(f *os.File) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(tailInterval) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil // a file system without locks is none to fail for: processes are then known by the rest
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("log: another server writes to %s: give each manager a log folder of its own", f.Name())
		}
	}
}
