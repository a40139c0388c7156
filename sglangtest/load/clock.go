package load

import "time"

// A Clock is the time line of one run: it measures monotonic offsets from the run's start.
// The zero value is not usable; [Run] creates one and hands it to everything that takes part in the run.
// A Clock is immutable and safe for concurrent use.
type Clock struct{ start time.Time }

// NewClock returns the clock of a run that starts at start. The monotonic reading that [time.Now] puts into
// its result is what offsets are measured with, so start should come from there.
func NewClock(start time.Time) Clock { return Clock{start: start} }

// Now returns the offset of the present moment from the run's start.
func (c Clock) Now() time.Duration { return time.Since(c.start) }

// Offset returns the offset of t from the run's start.
func (c Clock) Offset(t time.Time) time.Duration { return t.Sub(c.start) }

// Time returns the wall-clock time of the given offset.
func (c Clock) Time(offset time.Duration) time.Time { return c.start.Add(offset) }

// Start returns the moment that offset 0 stands for.
func (c Clock) Start() time.Time { return c.start }
