package precise

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type impl struct {
	file *os.File // keeps the descriptor in the runtime's poller
	fd   int

	mu     sync.Mutex
	woken  bool // a wake-up that wait has not seen
	closed bool
}

func (w *impl) open() error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("precise: timerfd_create: %w", err)
	}
	w.file, w.fd = os.NewFile(uintptr(fd), "timerfd"), fd
	return nil
}

// arm lets the timer expire after d; 0 stops it.
func (w *impl) arm(d time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if err := unix.TimerfdSettime(w.fd, 0, &spec, nil); err != nil {
		panic("precise: timerfd_settime: " + err.Error()) // its arguments are always valid
	}
}

func (w *impl) wait(d time.Duration) {
	w.mu.Lock()
	if w.woken || d == 0 {
		w.woken = false
		w.mu.Unlock()
		return
	}
	w.arm(max(d, 0))
	w.mu.Unlock()
	var expirations [8]byte
	w.file.Read(expirations[:])
	w.mu.Lock()
	w.woken = false
	w.mu.Unlock()
}

func (w *impl) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.woken && !w.closed { // a context's end may come after the last wait
		w.woken = true
		w.arm(1)
	}
}

func (w *impl) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return w.file.Close()
}
