package metrics

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

func TestWindows(t *testing.T) {
	s := time.Second
	uncounted := answer(2, 1500*msec, 0, 500*msec, 0, 1) // first token at 2 s
	uncounted.Chunks = load.Chunks{}
	uncounted.OutputTokens, uncounted.LastToken, uncounted.Completion = 100, 3500*msec, 3500*msec
	lost := load.Request{ID: 4, Arrival: 3 * s}

	c, err := NewCollector(WithSampler(&fakeSampler{name: "a"}, time.Hour), WithSampler(&fakeSampler{name: "b"}, time.Hour))
	require.NoError(t, err)
	clock := load.NewClock(time.Now().Add(-time.Minute)) // no sampler has a turn in this test
	require.NoError(t, c.Begin(context.Background(), load.Info{}))
	c.Start(clock)
	for _, r := range []load.Result{
		answer(0, 0, 500*msec, 100*msec, 100*msec, 10), // tokens at 0.6 … 1.5 s
		answer(1, 100*msec, 0, 300*msec, 0, 1),
		uncounted,
		failure(3, 2500*msec, load.OutcomeReset, 0, "reset"),
	} {
		c.Arrived(&load.Request{ID: r.ID, Arrival: r.Arrival})
		c.Record(&r)
	}
	c.Arrived(&lost)
	for _, x := range []Sample{
		{At: 200 * msec, Source: "a", Values: map[string]float64{NumRunning: 2}},
		{At: 700 * msec, Source: "a", Values: map[string]float64{NumRunning: 4}},
		{At: 700 * msec, Source: "b", Values: map[string]float64{NumRunning: 1, NumWaiting: 7}},
		{At: 1200 * msec, Source: "b", Err: "503"},
	} {
		c.AddSample(x)
	}
	c.Event(Event{At: 1300 * msec, Kind: KindParamUpdate, Source: "server-0", Data: map[string]any{"name": "max_running_requests", "value": 512}})
	require.NoError(t, c.End(context.Background()))

	ws := c.Windows(s)
	require.Len(t, ws, 4)
	require.Equal(t, 3500*msec, ws[3].To)
	require.Equal(t, []int{2, 1, 1, 1}, []int{ws[0].Arrivals, ws[1].Arrivals, ws[2].Arrivals, ws[3].Arrivals})
	require.Equal(t, []int{1, 1, 0, 1}, []int{ws[0].Completions, ws[1].Completions, ws[2].Completions, ws[3].Completions})
	require.Equal(t, 1, ws[2].Failures)
	require.InDelta(t, 5, ws[0].OutputTokensPerS, 1e-9)       // 0.6 to 0.9 s, and the one of request 1
	require.InDelta(t, 6, ws[1].OutputTokensPerS, 1e-9)       // 1.0 to 1.5 s
	require.InDelta(t, 100/1.5, ws[2].OutputTokensPerS, 1e-9) // two thirds of 100
	require.InDelta(t, 100/1.5, ws[3].OutputTokensPerS, 1e-9) // a third in half a second
	require.InDelta(t, 450, float64(ws[0].TTFTMedian), 1e-9)  // 600 and 300 ms
	require.False(t, ws[2].TTFTMedian.Valid())                // its only request failed
	require.False(t, ws[3].TTFTMedian.Valid())                // its only request was lost
	require.InDelta(t, 0.5+0.3, ws[0].InFlightMean, 1e-9)     // 0.5 to 1 s, 0.1 to 0.4 s
	require.InDelta(t, 1, ws[3].InFlightMean, 1e-9)           // 3.0 to 3.5 s
	require.Equal(t, &Gauge{Mean: 3 + 1, Max: 4}, ws[0].Running)
	require.Equal(t, &Gauge{Mean: 7, Max: 7}, ws[0].Waiting)
	require.Nil(t, ws[1].Running, "the only attempt failed")
	require.Nil(t, ws[0].Params)
	require.Equal(t, map[string]any{"server-0/max_running_requests": 512}, ws[1].Params)
	require.Equal(t, ws[1].Params, ws[3].Params)
	require.Panics(t, func() { c.Windows(0) })

	var sb strings.Builder
	require.NoError(t, WriteWindows(&sb, ws))
	lines := strings.Split(sb.String(), "\n")
	require.Len(t, lines, 7)
	require.Equal(t, "  server-0/max_running_requests := 512", lines[2])
	require.Contains(t, lines[4], "failed")

	// A run that ends on a window's edge has no empty window behind it.
	c = collect(t, load.Plan{}, []load.Result{answer(0, 0, 0, 2*s, 0, 1)}, nil)
	ws = c.Windows(s)
	require.Len(t, ws, 2)
	require.Equal(t, 1, ws[1].Completions)
}
