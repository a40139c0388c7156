package metrics

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A samplerLoop calls one sampler at the multiples of its interval.
type samplerLoop struct {
	sampler  Sampler
	name     string
	interval time.Duration
	label    *Simulation  // of its source at Begin; nil: real as far as is known
	missed   atomic.Int64 // moments at which the sampler was still busy with an earlier one, up to its last return
	busy     atomic.Int64 // the tick whose sample is under way, plus 1; 0 if none is
}

// run samples until ctx is done. The sample that is under way at that time is dropped: it failed because the
// run ended.
func (l *samplerLoop) run(ctx context.Context, clock load.Clock, emit func(Sample)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for tick := l.ticksUntil(clock.Now()); ; {
		timer.Reset(time.Duration(tick)*l.interval - clock.Now())
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		l.busy.Store(tick + 1)
		start := clock.Now()
		values, err := l.sampler.Sample(ctx)
		at := clock.Now()
		if ctx.Err() != nil {
			return
		}
		l.busy.Store(0)
		next := max(tick+1, l.ticksUntil(at))
		l.missed.Add(next - tick - 1)
		s := Sample{At: at, Cost: at - start, Source: l.name, Values: values}
		if err != nil {
			s.Values, s.Err = nil, err.Error()
		}
		emit(s)
		tick = next
	}
}

// missedBy returns the number of moments missed by the run's end. A sample that was under way then, or still is, is
// charged with the moments that it covered until then.
func (l *samplerLoop) missedBy(end time.Duration) int {
	n := l.missed.Load()
	if busy := l.busy.Load(); busy > 0 {
		n += max(0, int64(end/l.interval)-(busy-1))
	}
	return int(n)
}

// ticksUntil returns the smallest k ≥ 0 with k·interval ≥ t.
func (l *samplerLoop) ticksUntil(t time.Duration) int64 {
	return int64(max(0, (t+l.interval-1)/l.interval))
}
