//go:build !linux

package precise

import "time"

type impl struct{ woken chan struct{} }

func (w *impl) open() error {
	w.woken = make(chan struct{}, 1)
	return nil
}

func (w *impl) wait(d time.Duration) {
	var expired <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-w.woken:
	case <-expired:
	}
}

func (w *impl) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

func (*impl) close() error { return nil }
