package sim

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A waiter lets one goroutine wait for a moment or a wake-up. It uses a timerfd in the runtime's poller: an idle Go
// process rounds its own timers up to a millisecond, which is a sixth of a decode step.
type waiter struct {
	file *os.File
	fd   int

	mu    sync.Mutex
	woken bool // a wake-up that wait has not seen
}

func newWaiter() (*waiter, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &waiter{file: os.NewFile(uintptr(fd), "timerfd"), fd: fd}, nil
}

// arm lets the timer fire after d; 0 stops it.
func (w *waiter) arm(d time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if err := unix.TimerfdSettime(w.fd, 0, &spec, nil); err != nil {
		panic("sim: timerfd_settime: " + err.Error()) // its arguments are always valid
	}
}

// wait returns after d, or after a wake-up that came since the last return. A negative d stands for no limit.
func (w *waiter) wait(d time.Duration) {
	w.mu.Lock()
	if w.woken || d == 0 {
		w.woken = false
		w.mu.Unlock()
		return
	}
	w.arm(max(d, 0))
	w.mu.Unlock()
	var b [8]byte
	w.file.Read(b[:])
	w.mu.Lock()
	w.woken = false
	w.mu.Unlock()
}

// wake ends the present or the next wait.
func (w *waiter) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.woken {
		w.woken = true
		w.arm(1)
	}
}

// close frees the timer. No wait may be under way and no wake may follow.
func (w *waiter) close() { w.file.Close() }
