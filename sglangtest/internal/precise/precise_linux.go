package precise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

type impl struct {
	file *os.File // keeps the descriptor in the runtime's poller
	fd   int
}

func (w *impl) open() error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("precise: timerfd_create: %w", err)
	}
	w.file, w.fd = os.NewFile(uintptr(fd), "timerfd"), fd
	return nil
}

func (w *impl) wait(ctx context.Context, d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	if err := unix.TimerfdSettime(w.fd, 0, &spec, nil); err != nil {
		return fmt.Errorf("precise: timerfd_settime: %w", err)
	}
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { w.file.SetReadDeadline(time.Unix(1, 0)) })()
	}
	var expirations [8]byte
	if _, err := w.file.Read(expirations[:]); err != nil {
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			return context.Cause(ctx)
		}
		return fmt.Errorf("precise: timerfd read: %w", err)
	}
	return nil
}

func (w *impl) close() error { return w.file.Close() }
