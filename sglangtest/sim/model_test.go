package sim

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLinear(t *testing.T) {
	m := Linear{DecodeBase: 6, DecodeRequest: 0.5, DecodeContext: 0.001, PrefillBase: 4, PrefillToken: 0.02, PrefillPair: 1e-6, PrefillContext: 1e-3}
	graphs := m
	graphs.DecodeGraphs, graphs.DecodeEager = []int{1, 2, 4, 8}, 3
	graphs.PrefillGraphs, graphs.PrefillEager = []int{128, 256}, 5
	knee := m
	knee.PrefillKnee = 300
	extend := func(n, c int) Shape { return Shape{Extends: []Extend{{n, c}}} }
	for name, c := range map[string]struct {
		m    Linear
		s    Shape
		want float64 // ms
	}{
		"decode":                       {m, Shape{Decodes: 3, Context: 1000}, 6 + 1.5 + 1},
		"decode, padded":               {graphs, Shape{Decodes: 3, Context: 1000}, 6 + 2 + 1},
		"decode, largest captured":     {graphs, Shape{Decodes: 8, Context: 1000}, 6 + 4 + 1},
		"decode, above the captured":   {graphs, Shape{Decodes: 9, Context: 1000}, 6 + 4.5 + 1 + 3},
		"prefill":                      {m, extend(100, 50), 4 + 2 + 0.02 + 0.05},
		"prefill, padded":              {graphs, extend(100, 50), 4 + 2.56 + 0.02 + 0.05},
		"prefill, above the captured":  {graphs, extend(300, 0), 4 + 6 + 0.09 + 5},
		"prefill, below the knee":      {knee, extend(100, 0), 4 + 6 + 0.01},
		"prefill, above the knee":      {knee, extend(400, 0), 4 + 8 + 0.16},
		"prefill of two":               {m, Shape{Extends: []Extend{{100, 0}, {100, 0}}}, 4 + 4 + 0.02},
		"mixed, with the larger base":  {m, Shape{Decodes: 10, Context: 2000, Extends: []Extend{{100, 0}}}, 6 + 2.2 + 0.01 + 2},
		"mixed, without any padding":   {graphs, Shape{Decodes: 10, Context: 2000, Extends: []Extend{{100, 0}}}, 6 + 2.2 + 0.01 + 2},
		"index does not change a time": {m, Shape{Decodes: 3, Context: 1000, Index: 99}, 8.5},
	} {
		require.Equal(t, milliseconds(c.want), c.m.StepTime(c.s), name)
	}
	require.ErrorContains(t, Linear{DecodeBase: -1, PrefillToken: math.NaN(), DecodeGraphs: []int{2, 2}}.validate(), "decode_base_ms")
	require.ErrorContains(t, Linear{DecodeBase: -1, PrefillToken: math.NaN(), DecodeGraphs: []int{2, 2}}.validate(), "prefill_token_ms")
	require.ErrorContains(t, Linear{DecodeBase: -1, PrefillToken: math.NaN(), DecodeGraphs: []int{2, 2}}.validate(), "decode_graphs is [2 2]")
}

// sampleGrid is a grid of the linear model m, which bilinear interpolation must reproduce where m is bilinear.
func sampleGrid(m Linear) Grid {
	g := Grid{Decode: DecodeGrid{Batch: []int{1, 8, 64}, Context: []int{128, 1024, 4096}},
		Prefill: PrefillGrid{New: []int{128, 512, 2048}, Cached: []int{0, 1024, 8192}}}
	for _, b := range g.Decode.Batch {
		var row []float64
		for _, c := range g.Decode.Context {
			row = append(row, inMilliseconds(m.StepTime(Shape{Decodes: b, Context: b * c})))
		}
		g.Decode.Times = append(g.Decode.Times, row)
	}
	for _, n := range g.Prefill.New {
		var row []float64
		for _, c := range g.Prefill.Cached {
			row = append(row, inMilliseconds(m.StepTime(Shape{Extends: []Extend{{n, c}}})))
		}
		g.Prefill.Times = append(g.Prefill.Times, row)
	}
	return g
}

func TestGrid(t *testing.T) {
	m := Linear{DecodeBase: 6, DecodeRequest: 0.02, DecodeContext: 4e-5, PrefillBase: 4, PrefillToken: 0.02}
	g := sampleGrid(m)
	require.NoError(t, g.validate())
	same := func(s Shape, covered bool) {
		t.Helper()
		require.InDelta(t, float64(m.StepTime(s)), float64(g.StepTime(s)), 10, "in ns, %+v", s)
		require.Equal(t, covered, g.Covers(s), "%+v", s)
	}
	same(Shape{Decodes: 8, Context: 8 * 1024}, true)    // a point
	same(Shape{Decodes: 20, Context: 20 * 700}, true)   // within a cell, where the model is bilinear in batch and context
	same(Shape{Decodes: 64, Context: 64 * 9000}, false) // beyond the longest context the line goes on
	same(Shape{Decodes: 200, Context: 200 * 128}, false)
	same(Shape{Extends: []Extend{{1000, 3000}}}, true)
	same(Shape{Extends: []Extend{{4000, 0}}}, false)
	same(Shape{Extends: []Extend{{500, 0}, {500, 0}}}, false) // fewer pairs than one prompt of 1000 without cache

	// Below the grid the first point holds.
	require.Equal(t, g.StepTime(Shape{Decodes: 8, Context: 8 * 128}), g.StepTime(Shape{Decodes: 8, Context: 8}))
	require.Equal(t, g.StepTime(Shape{Extends: []Extend{{128, 0}}}), g.StepTime(Shape{Extends: []Extend{{1, 0}}}))

	// Two prompts of 1000 attend to fewer pairs than one of 2000: 4e6 − 2e6.
	pairs := Linear{DecodeBase: 6, PrefillBase: 4, PrefillToken: 0.02, PrefillPair: 1e-6}
	g = sampleGrid(pairs)
	one, two := g.StepTime(Shape{Extends: []Extend{{2048, 0}}}), g.StepTime(Shape{Extends: []Extend{{1024, 0}, {1024, 0}}})
	require.InDelta(t, 2*1.048576, inMilliseconds(one-two), 1e-3)

	// A falling last segment (noise) is not drawn on.
	falling := Grid{Decode: DecodeGrid{Batch: []int{1, 2}, Context: []int{1}, Times: [][]float64{{10}, {9}}}, Prefill: g.Prefill}
	require.Equal(t, 9*time.Millisecond, falling.StepTime(Shape{Decodes: 100, Context: 100}))

	bad := Grid{Decode: DecodeGrid{Batch: []int{2, 1}, Context: []int{1}, Times: [][]float64{{1}}}, Prefill: PrefillGrid{New: []int{1}, Cached: []int{0}, Times: [][]float64{{-1, 2}}}}
	for _, want := range []string{"decode grid: batch is [2 1]", "1 rows of times for 2 points of batch", "row 0 has 2 times for 1 points of cached", "row 0 has the time -1 ms"} {
		require.ErrorContains(t, bad.validate(), want)
	}
}

func TestGridMixed(t *testing.T) {
	m := Linear{DecodeBase: 6, DecodeContext: 4e-5, PrefillBase: 6, PrefillToken: 0.02}
	g := sampleGrid(m)
	s := Shape{Decodes: 8, Context: 8 * 2128, Extends: []Extend{{1000, 0}}}
	require.InDelta(t, 6+0.02*1008+4e-5*8*2000, inMilliseconds(g.StepTime(s)), 0.05)
}
