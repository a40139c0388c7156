package metrics

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

func TestStaleLoadsDoNotCount(t *testing.T) {
	const s = time.Second
	run := func(interval time.Duration, samples ...Sample) *Collector {
		c, err := NewCollector(WithSampler(&fakeSampler{name: "server-0"}, interval), WithSampler(&fakeSampler{name: "old"}, interval))
		require.NoError(t, err)
		clock := load.NewClock(time.Now().Add(-time.Minute)) // no sampler has a turn in this test
		require.NoError(t, c.Begin(context.Background(), load.Info{}))
		c.Start(clock)
		r := answer(0, 0, 0, 12*s, 0, 1)
		c.Arrived(&load.Request{})
		c.Record(&r)
		for _, x := range samples {
			c.AddSample(x)
		}
		require.NoError(t, c.End(context.Background()))
		return c
	}
	told := func(at time.Duration, age, running float64) Sample {
		return Sample{At: at, Source: "server-0", Values: map[string]float64{SnapshotAge: age, NumRunning: running, NumWaiting: 1, TokenUsage: 0.5}}
	}
	hangs := []Sample{told(1*s, 0, 5), told(2*s, 400, 7), // fresh; then it hangs with what it published at 3 s
		told(3*s, 0, 3), told(4*s, 1000, 3), told(5*s, 2000, 3), told(6*s, 3000, 3), told(9*s, 6000, 3), told(10200*msec, 7200, 3),
		{At: 5 * s, Source: "old", Values: map[string]float64{NumRunning: 3}},                               // 0.5.15 does not tell the age
		{At: 9 * s, Source: "server-0/log", Values: map[string]float64{SnapshotAge: 9000, "decode_tok": 1}}} // a line, not a load
	c := run(250*msec, hangs...)
	sum := c.Summary()
	x := sum.Samplers[0]
	require.Equal(t, 8, x.Taken)
	require.Equal(t, 3, x.Stale, "2 s are not too old")
	require.Equal(t, Millis(7200), *x.MaxAge)
	require.Equal(t, &Gauge{Mean: 21.0 / 5, Max: 7}, x.Running)
	require.Equal(t, &Gauge{Mean: 1, Max: 1}, x.Waiting)
	require.Contains(t, strings.Join(strings.Fields(sum.String()), " "), "8 samples, 0 failed, 0 missed, 3 stale, oldest 7.2 s")
	require.Contains(t, sum.Notes, "sampler server-0: 3 of 8 samples told a stale load, up to 7.2 s old, and are left out of its means and maxima: its scheduler had told nothing newer")
	b, err := json.Marshal(x)
	require.NoError(t, err)
	require.Contains(t, string(b), `"stale":3,"max_age_ms":7200,`)
	for _, x := range sum.Samplers[1:] {
		require.Zero(t, x.Stale)
		require.Nil(t, x.MaxAge)
	}

	ws := c.Windows(3 * s)
	require.Equal(t, 3.0+3, ws[1].Running.Mean, "3 to 6 s, of both")
	require.Nil(t, ws[2].Running, "6 to 9 s has a stale load alone")
	require.Nil(t, ws[3].Waiting)

	x = run(4*s, hangs...).Summary().Samplers[0]
	require.Zero(t, x.Stale, "within two intervals")
	x = run(250*msec, told(s, 3000, 3)).Summary().Samplers[0]
	require.Equal(t, 1, x.Stale)
	require.Nil(t, x.Running)
}
