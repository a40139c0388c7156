package load

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Mean and variance of a Poisson count are both the integral of the rate, here done by hand.
func TestVaryingRatesBringTheExpectedCounts(t *testing.T) {
	const seeds = 400
	steps := Steps(Step{0, 2}, Step{10 * time.Second, 0}, Step{20 * time.Second, 8})
	for _, c := range []struct {
		arrivals Arrivals
		from, to time.Duration
		want     float64
	}{
		{Ramp(2, 30, 10*time.Second), 0, 10 * time.Second, 160},
		{Ramp(2, 30, 10*time.Second), 0, 5 * time.Second, 45},
		{Ramp(2, 30, 10*time.Second), 10 * time.Second, 12 * time.Second, 60},
		{Ramp(0, 10, 10*time.Second), 0, 2 * time.Second, 2},
		{Ramp(30, 2, 10*time.Second), 0, 5 * time.Second, 115},
		{Ramp(30, 2, 10*time.Second), 5 * time.Second, 15 * time.Second, 55},
		{Ramp(4, 4, time.Second), 0, 10 * time.Second, 40},
		{steps, 0, 10 * time.Second, 20},
		{steps, 10 * time.Second, 20 * time.Second, 0},
		{steps, 20 * time.Second, 25 * time.Second, 40},
	} {
		require.NoError(t, validate(c.arrivals))
		sum, squares := 0.0, 0.0
		for seed := range uint64(seeds) {
			next := c.arrivals.Times(rand.New(rand.NewPCG(seed, 1)))
			n, last := 0.0, time.Duration(0)
			for i := 0; ; i++ {
				at, err := next(i, nil)
				require.NoError(t, err)
				require.GreaterOrEqual(t, at, last)
				if last = at; at >= c.to {
					break
				}
				if at >= c.from {
					n++
				}
			}
			sum, squares = sum+n, squares+n*n
		}
		mean := sum / seeds
		require.InDelta(t, c.want, mean, 4*math.Sqrt(c.want/seeds), "%v from %v to %v", c.arrivals, c.from, c.to)
		require.InDelta(t, c.want, squares/seeds-mean*mean, 0.35*c.want, "variance of %v", c.arrivals)
	}
}

// A ramp between equal rates and a single step are the plain process.
func TestVaryingRatesThatDoNotVary(t *testing.T) {
	want := Poisson(5).Times(rand.New(rand.NewPCG(1, 2)))
	ramp := Ramp(5, 5, 3*time.Second).Times(rand.New(rand.NewPCG(1, 2)))
	step := Steps(Step{0, 5}).Times(rand.New(rand.NewPCG(1, 2)))
	for i := range 100 {
		at, _ := want(i, nil)
		for _, next := range []func(int, *Row) (time.Duration, error){ramp, step} {
			got, err := next(i, nil)
			require.NoError(t, err)
			require.InDelta(t, at, got, 10)
		}
	}
}

func TestVaryingRatesRefuse(t *testing.T) {
	err := validate(Ramp(-1, 0, 0))
	for _, want := range []string{"from rate -1", "to rate 0", "over 0s"} {
		require.ErrorContains(t, err, want)
	}
	require.ErrorContains(t, validate(Ramp(1, math.Inf(1), 1)), "to rate +Inf")
	require.ErrorContains(t, validate(Steps()), "none given")
	err = validate(Steps(Step{time.Second, math.NaN()}, Step{time.Second, 0}))
	for _, want := range []string{"steps[0]: from 1s", "steps[0]: rate NaN", "steps[1]: from 1s: want later", "steps[1]: rate 0"} {
		require.ErrorContains(t, err, want)
	}
}
