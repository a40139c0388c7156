// Package precise waits for moments more exactly than the runtime's timers do.
//
// A goroutine that waits on a runtime timer in an otherwise idle process wakes up to 1 ms late, because the
// scheduler then sleeps in epoll_wait, whose time-out counts whole milliseconds (runtime/netpoll_epoll.go).
// On Linux this package waits on a timerfd instead, which the same epoll_wait reports when it expires; the
// wait blocks no thread and spins on no core. Elsewhere it uses a runtime timer.
package precise

import (
	"context"
	"time"
)

// A Waiter lets one goroutine wait for a moment or for a wake-up by another. Create it with [New] and release it
// with Close, after the last wait.
type Waiter struct{ impl }

// New returns a Waiter.
func New() (*Waiter, error) {
	w := new(Waiter)
	if err := w.open(); err != nil {
		return nil, err
	}
	return w, nil
}

// Wait returns after d, at once if d is 0, or after a wake-up that came since Wait returned last. A negative d stands
// for no limit. It must not be called concurrently.
func (w *Waiter) Wait(d time.Duration) { w.wait(d) }

// Wake ends the present or the next Wait. It is safe for concurrent use, also after Close, when it does nothing.
func (w *Waiter) Wake() { w.wake() }

// WaitUntil returns nil when t has come, at once if it has passed, or ctx's cause when ctx is done. It must not be
// called concurrently.
func (w *Waiter) WaitUntil(ctx context.Context, t time.Time) error {
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, w.wake)()
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d := time.Until(t)
		if d <= 0 {
			return nil
		}
		w.wait(d)
	}
}

// Close releases what the Waiter holds.
func (w *Waiter) Close() error { return w.close() }

// Timer waits on the runtime's timers. It is what a test in a synctest bubble needs, where a timerfd would
// not follow the bubble's clock. Its zero value is ready for use, also concurrently.
type Timer struct{}

// WaitUntil is like [Waiter.WaitUntil].
func (Timer) WaitUntil(ctx context.Context, t time.Time) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	d := time.Until(t)
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
