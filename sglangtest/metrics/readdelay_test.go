package metrics

import (
	"context"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

func TestVerdictOnReads(t *testing.T) {
	// Ten answers of 101 tokens, 20 ms apart, the first after 200 ms; 1,000 probes that were woken 0.1 ms late.
	run := func(edit func(d *load.Delays), opts ...Option) Client {
		d := new(load.Delays)
		d.Moments.Add(100*time.Microsecond, 1000)
		d.Wakes.Add(100*time.Microsecond, 1000)
		d.Ready.Add(10*time.Microsecond, 100_000)
		d.GC.Add(50*time.Microsecond, 20)
		edit(d)
		c, err := NewCollector(opts...)
		require.NoError(t, err)
		require.NoError(t, c.Begin(context.Background(), load.Info{Delays: d}))
		c.Start(load.NewClock(time.Now()))
		for i := range 10 {
			r := answer(i, 0, 0, 200*msec, 20*msec, 101)
			c.Arrived(&load.Request{ID: i})
			c.Record(&r)
		}
		require.NoError(t, c.End(context.Background()))
		return c.Summary().Client
	}
	// pauses makes n pauses of the given length, found by probes each 13 ms.
	pauses := func(n int64, length time.Duration) func(*load.Delays) {
		return func(d *load.Delays) {
			d.Wakes.Add(length, n)
			for l := length; l >= 0; l -= 13 * msec {
				d.Moments.Add(l, n)
			}
		}
	}
	for _, tc := range []struct {
		name string
		edit func(*load.Delays)
		opts []Option
		says string // "": the client is ok
	}{
		{"a quiet machine", func(*load.Delays) {}, nil, ""},
		{"one long pause", pauses(1, 300*msec), nil, ""},
		{"two pauses in a long run", pauses(2, 25*msec), nil, ""},
		{"three moments of a short run", func(d *load.Delays) { *d = load.Delays{}; pauses(100, 0)(d); pauses(3, 12*msec)(d) }, nil, ""},
		{"late, but little against 20 ms", pauses(400, 1900*time.Microsecond), nil, ""},
		{"starved for a tenth of the run", pauses(20, 40*msec), nil,
			"client noticed what came up to 41.9 ms late (p99; at most 41.9 ms), a large part of the ITL p99 of 20.0 ms: the system did not run it (other work on its cores, a limit on its CPU time, a stop), " +
				"or its own work kept its cores; the times of tokens are partly its own: give it more CPU, or a machine of its own"},
		{"starved all the time", pauses(500, 50*msec), nil, "client noticed what came up to 50.3 ms late (p90; at most 50.3 ms), a large part of the ITL p90 of 20.0 ms"},
		{"its own goroutines", func(d *load.Delays) { d.Ready.Add(9*msec, 5000); d.GC.Add(8*msec, 5) }, nil,
			"client noticed what came up to 9.4 ms late (p99; at most 0.1 ms), a large part of the ITL p99 of 20.0 ms: its goroutines waited for a core; garbage collection paused it for up to 8.1 ms"},
		{"its own work", func(d *load.Delays) { pauses(500, 50*msec)(d); d.Busy = 0.97 }, nil,
			"a large part of the ITL p90 of 20.0 ms: its own work took 97 % of the time of its cores; the times of tokens are partly its own: give it more CPU, or less to do at once"},
		// Goroutines of a process that does not run wait as well.
		{"stopped, or short of cores", func(d *load.Delays) { pauses(500, 50*msec)(d); d.Ready.Add(50*msec, 50_000) }, nil,
			"a large part of the ITL p90 of 20.0 ms: the system did not run it (other work on its cores, a limit on its CPU time, a stop), or its own work kept its cores;"},
		{"three pauses at the tail", pauses(3, 30*msec), nil, "(p99.9; at most 30.4 ms), a large part of the ITL p99.9 of 20.0 ms"},
		{"a bound that allows it", pauses(20, 40*msec), []Option{WithMaxLateness(250 * msec)}, ""},
	} {
		c := run(tc.edit, tc.opts...)
		if tc.says == "" {
			require.True(t, c.OK, "%s: %v", tc.name, c.Reasons)
		} else {
			require.Len(t, c.Reasons, 1, tc.name)
			require.Contains(t, c.Reasons[0], tc.says, tc.name)
		}
	}
	d := run(pauses(20, 40*msec)).ReadDelay
	require.Equal(t, int64(1020), d.Probes)
	require.InDelta(t, 40, float64(d.Max), 2.5)
	require.InDelta(t, 0.1, float64(d.Median), 0.01)
}
