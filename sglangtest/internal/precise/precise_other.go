//go:build !linux

package precise

import (
	"context"
	"time"
)

type impl struct{}

func (*impl) open() error { return nil }

func (*impl) wait(ctx context.Context, d time.Duration) error {
	return Timer{}.WaitUntil(ctx, time.Now().Add(d))
}

func (*impl) close() error { return nil }
