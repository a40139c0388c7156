//go:build !linux

package sim

import "time"

// A waiter lets one goroutine wait for a moment or a wake-up, with Go's timers.
type waiter struct {
	timer *time.Timer
	woken chan struct{}
}

func newWaiter() (*waiter, error) {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &waiter{timer: t, woken: make(chan struct{}, 1)}, nil
}

// wait returns after d, or after a wake-up that came since the last return. A negative d stands for no limit.
func (w *waiter) wait(d time.Duration) {
	if d == 0 {
		return
	}
	if d < 0 {
		<-w.woken
		return
	}
	w.timer.Reset(d)
	select {
	case <-w.timer.C:
	case <-w.woken:
		w.timer.Stop()
	}
}

// wake ends the present or the next wait.
func (w *waiter) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

func (w *waiter) close() { w.timer.Stop() }
