package sim

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var flat = Linear{DecodeBase: 10, PrefillBase: 20}

// ratios draws the noise of n decode steps of one shape.
func ratios(m StepModel, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = float64(m.StepTime(Shape{Decodes: 8, Context: 1000, Index: uint64(i)})) / 1e7
	}
	return v
}

func meanAndDeviation(v []float64) (mean, deviation float64) {
	for _, x := range v {
		mean += x / float64(len(v))
	}
	for _, x := range v {
		deviation += (x - mean) * (x - mean) / float64(len(v)-1)
	}
	return mean, math.Sqrt(deviation)
}

func TestLognormalNoise(t *testing.T) {
	const n, sigma = 20000, 0.2
	v := ratios(Noise{Model: flat, Sigma: sigma, Seed: 7}, n)
	mean, deviation := meanAndDeviation(v)
	want := math.Sqrt(math.Exp(sigma*sigma) - 1) // of a lognormal factor of mean 1
	require.InDelta(t, 1, mean, 4*want/math.Sqrt(n))
	require.InDelta(t, want, deviation, 0.02*want*4)
	lag := 0.0
	for i := 1; i < n; i++ {
		lag += (v[i] - mean) * (v[i-1] - mean) / (deviation * deviation * n)
	}
	require.InDelta(t, 0, lag, 4/math.Sqrt(n), "steps one after another are independent")
}

func TestEmpiricalNoise(t *testing.T) {
	const n = 9000
	count := map[float64]int{}
	for _, f := range ratios(Noise{Model: flat, Residuals: []float64{0.9, 1, 1.1}, Seed: 1}, n) {
		count[math.Round(f*10)/10]++
	}
	require.Len(t, count, 3)
	for f, k := range count {
		require.InDelta(t, n/3, k, 4*math.Sqrt(n*2.0/9), "factor %v", f)
	}
}

func TestNoiseIsAFunctionOfSeedAndStep(t *testing.T) {
	m := Noise{Model: flat, Sigma: 0.2, Seed: 7}
	want := ratios(m, 200)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := ratios(Noise{Model: flat, Sigma: 0.2, Seed: 7}, 200); !equal(got, want) {
				t.Error("other times on another goroutine")
			}
		})
	}
	wg.Wait()
	require.NotEqual(t, want, ratios(Noise{Model: flat, Sigma: 0.2, Seed: 8}, 200))
	require.NotEqual(t, m.StepTime(Shape{Decodes: 1}), m.StepTime(Shape{Decodes: 2}), "without an index the shape makes the difference")
}

func equal(a, b []float64) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return len(a) == len(b)
}

func TestNoiseFaults(t *testing.T) {
	require.ErrorContains(t, Noise{Sigma: 0.1}.validate(), "no model")
	require.ErrorContains(t, Noise{Model: flat}.validate(), "either sigma")
	require.ErrorContains(t, Noise{Model: flat, Sigma: 0.1, Residuals: []float64{1}}.validate(), "either sigma")
	require.ErrorContains(t, Noise{Model: flat, Sigma: math.NaN()}.validate(), "sigma is NaN")
	require.ErrorContains(t, Noise{Model: flat, Residuals: []float64{0}}.validate(), "a residual is 0")
}

func TestReplay(t *testing.T) {
	m := Replay{Times: []float64{1, 2.5}, Else: flat}
	at := func(i uint64) time.Duration { return m.StepTime(Shape{Decodes: 1, Index: i}) }
	require.Equal(t, []time.Duration{time.Millisecond, 2500 * time.Microsecond, 10 * time.Millisecond}, []time.Duration{at(0), at(1), at(2)})
	require.Equal(t, 2500*time.Microsecond, at(1<<stepBits+1), "on each rank")
	require.ErrorContains(t, Replay{Times: []float64{0}}.validate(), "time 0 is 0 ms")
	require.ErrorContains(t, Replay{}.validate(), "no model")
}

func TestSampled(t *testing.T) {
	base := Linear{DecodeBase: 10, DecodeRequest: 1, PrefillBase: 20, PrefillToken: 1}
	m, err := NewSampled([]SampledStep{
		{Decodes: 8, Context: 1050, Time: 18 * 1.5}, {Decodes: 9, Context: 1100, Time: 19 * 0.5},
		{Extends: []Extend{{New: 100}}, Time: 120 * 2},
	}, 3, base)
	require.NoError(t, err)
	// A decode of 9 is in the cell of the recorded ones, and takes one of their ratios of its own modelled time.
	count := map[float64]int{}
	for i := range 2000 {
		count[inMilliseconds(m.StepTime(Shape{Decodes: 9, Context: 1050, Index: uint64(i)}))]++
	}
	require.Len(t, count, 2)
	require.InDelta(t, 1000, count[19*1.5], 4*math.Sqrt(500))
	require.InDelta(t, 1000, count[19*0.5], 4*math.Sqrt(500))
	require.Equal(t, 222*time.Millisecond, m.StepTime(Shape{Extends: []Extend{{New: 91}}}))
	require.Equal(t, 74*time.Millisecond, m.StepTime(Shape{Decodes: 64, Context: 1000}), "a shape that was not recorded")

	_, err = NewSampled([]SampledStep{{Time: 1}, {Decodes: 1, Context: 1, Time: -1}}, 0, base)
	require.ErrorContains(t, err, "step 0 is neither a decode nor a prefill")
	require.ErrorContains(t, err, "step 1 took -1 ms")
	require.ErrorContains(t, Sampled{}.validate(), "NewSampled")
}
