package load

import (
	"sync/atomic"
	"time"
)

// A Clock is the time line of one run: it measures monotonic offsets from the run's start.
// The zero value is not usable; [Run] creates one and hands it to everything that takes part in the run.
// A Clock is safe for concurrent use.
type Clock struct {
	start   time.Time
	virtual *atomic.Int64 // nil in real time
}

// NewClock returns the clock of a run that starts at start. The monotonic reading that [time.Now] puts into
// its result is what offsets are measured with, so start should come from there.
func NewClock(start time.Time) Clock { return Clock{start: start} }

// NewVirtualClock returns the clock of a run in virtual time that began at start on the wall clock, and the function that
// says what time it is on it. Now and Offset of such a clock have nothing to do with each other.
func NewVirtualClock(start time.Time) (c Clock, set func(now time.Duration)) {
	c = Clock{start: start, virtual: new(atomic.Int64)}
	return c, func(now time.Duration) { c.virtual.Store(int64(now)) }
}

// Now returns the offset of the present moment from the run's start.
func (c Clock) Now() time.Duration {
	if c.virtual != nil {
		return time.Duration(c.virtual.Load())
	}
	return time.Since(c.start)
}

// Offset returns the offset of t from the run's start.
func (c Clock) Offset(t time.Time) time.Duration { return t.Sub(c.start) }

// Time returns the wall-clock time of the given offset.
func (c Clock) Time(offset time.Duration) time.Time { return c.start.Add(offset) }

// Start returns the moment that offset 0 stands for.
func (c Clock) Start() time.Time { return c.start }
