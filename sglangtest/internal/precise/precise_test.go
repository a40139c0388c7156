package precise

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWaitUntilNeverReturnsEarly(t *testing.T) {
	w, err := New()
	require.NoError(t, err)
	defer w.Close()
	for range 20 {
		at := time.Now().Add(300 * time.Microsecond)
		require.NoError(t, w.WaitUntil(t.Context(), at))
		require.False(t, time.Now().Before(at))
	}
	require.NoError(t, w.WaitUntil(t.Context(), time.Now().Add(-time.Hour)), "a moment that has passed")
}

func TestWaitUntilEndsWithItsContext(t *testing.T) {
	why := errors.New("enough")
	for _, w := range []interface {
		WaitUntil(context.Context, time.Time) error
	}{must(New()), Timer{}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		go func() { done <- w.WaitUntil(ctx, time.Now().Add(time.Hour)) }()
		cancel(why)
		require.ErrorIs(t, <-done, why)
		require.ErrorIs(t, w.WaitUntil(ctx, time.Now().Add(time.Hour)), why, "a context that is done already")
	}
}

// A context that ends just as a wait is over wakes a Waiter that has been closed.
func TestWakeAfterClose(t *testing.T) {
	for range 2000 {
		w := must(New())
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		w.WaitUntil(ctx, time.Now().Add(10*time.Microsecond))
		require.NoError(t, w.Close())
	}
}

func TestWake(t *testing.T) {
	w := must(New())
	defer w.Close()
	w.Wake()
	w.Wait(-1) // ended by the wake-up before it
	done := make(chan struct{})
	go func() { defer close(done); w.Wait(time.Hour) }()
	w.Wake()
	<-done
}

func TestTimerFollowsTheBubblesClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Now().Add(17 * time.Hour)
		require.NoError(t, Timer{}.WaitUntil(t.Context(), at))
		require.Equal(t, at, time.Now())
	})
}

func must(w *Waiter, err error) *Waiter {
	if err != nil {
		panic(err)
	}
	return w
}

// BenchmarkLateness reports how late a wait of 1 ms ends in an idle process.
func BenchmarkLateness(b *testing.B) {
	for name, w := range map[string]interface {
		WaitUntil(context.Context, time.Time) error
	}{"waiter": must(New()), "timer": Timer{}} {
		b.Run(name, func(b *testing.B) {
			var late []time.Duration
			for b.Loop() {
				at := time.Now().Add(time.Millisecond)
				w.WaitUntil(context.Background(), at)
				late = append(late, time.Since(at))
			}
			slices.Sort(late)
			b.ReportMetric(float64(late[len(late)/2].Microseconds()), "late-p50-us")
			b.ReportMetric(float64(late[len(late)*99/100].Microseconds()), "late-p99-us")
		})
	}
}
