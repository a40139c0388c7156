package load

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func arrivalTimes(t *testing.T, a Arrivals, n int) []time.Duration {
	t.Helper()
	next := a.Times(rand.New(rand.NewPCG(3, 4)))
	at := make([]time.Duration, n)
	for i := range at {
		var err error
		if at[i], err = next(i, &Row{}); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

func TestArrivalsAllAtOnce(t *testing.T) {
	require.Equal(t, make([]time.Duration, 3), arrivalTimes(t, AllAtOnce(), 3))
	require.Equal(t, "all at once", AllAtOnce().String())
	require.True(t, math.IsInf(AllAtOnce().Rate(), 1))
}

func TestArrivalsConstantDoesNotDrift(t *testing.T) {
	at := arrivalTimes(t, Constant(3), 3_000_001)
	require.Equal(t, []time.Duration{0, 333333333, 666666667, time.Second}, at[:4])
	require.Equal(t, 1_000_000*time.Second, at[3_000_000])
	require.Equal(t, "constant 3/s", Constant(3).String())
	require.Equal(t, 3.0, Constant(3).Rate())
}

func TestArrivalsPoissonStatistics(t *testing.T) {
	const n, rate = 200_000, 8.0
	at := arrivalTimes(t, Poisson(rate), n)
	require.Positive(t, at[0], "the first request comes after a gap")
	var sum, squares float64
	var last time.Duration
	short := 0
	for _, a := range at {
		gap := (a - last).Seconds()
		if gap < 0 {
			t.Fatalf("%v after %v", a, last)
		}
		last = a
		sum += gap
		squares += gap * gap
		if gap < math.Ln2/rate {
			short++
		}
	}
	mean := sum / n
	cv := math.Sqrt(squares/n-mean*mean) / mean
	// Four standard errors: of the mean 1/√n, of the coefficient of variation of an exponential 1/√n, of a share of one half 0.5/√n.
	require.InEpsilon(t, 1/rate, mean, 4/math.Sqrt(n))
	require.InDelta(t, 1, cv, 4/math.Sqrt(n))
	require.InDelta(t, 0.5, float64(short)/n, 2/math.Sqrt(n), "half of the gaps are below the median ln 2/rate")
	require.Equal(t, "poisson 8/s", Poisson(rate).String())
}

func TestArrivalsPoissonKeepsItsPatternAtAnyRate(t *testing.T) {
	slow, fast := arrivalTimes(t, Poisson(1), 1000), arrivalTimes(t, Poisson(1000), 1000)
	for i := range slow {
		require.InDelta(t, float64(slow[i])/1000, float64(fast[i]), 1)
	}
}

func TestArrivalsTraceTimes(t *testing.T) {
	row := Row{Arrival: 3_000_000_001, Timed: true}
	for speed, want := range map[float64]time.Duration{1: 3_000_000_001, 2: 1_500_000_001, 0.5: 6_000_000_002, 3: time.Second} {
		at, err := TraceTimes(speed).Times(nil)(0, &row)
		require.NoError(t, err)
		require.Equal(t, want, at, "speed %g", speed)
	}
	long := Row{Arrival: math.MaxInt64 - 1, Timed: true}
	at, err := TraceTimes(1).Times(nil)(0, &long)
	require.NoError(t, err)
	require.Equal(t, long.Arrival, at)
	_, err = TraceTimes(0.5).Times(nil)(0, &long)
	require.ErrorContains(t, err, "want 0 s to 292 years")
	require.Equal(t, "trace times at speed 2", TraceTimes(2).String())
}

func TestArrivalsBeyondTheClock(t *testing.T) {
	_, err := Constant(1e-12).Times(nil)(1, &Row{})
	require.EqualError(t, err, "arrival at 1e+12 s: want 0 s to 292 years")
}

func TestArrivalsFaults(t *testing.T) {
	for want, a := range map[string]Arrivals{
		"load: constant arrivals: rate 0: want > 0 requests/s":     Constant(0),
		"load: constant arrivals: rate is infinite: use AllAtOnce": Constant(math.Inf(1)),
		"load: poisson arrivals: rate -1: want > 0 requests/s":     Poisson(-1),
		"load: poisson arrivals: rate NaN: want > 0 requests/s":    Poisson(math.NaN()),
		"load: poisson arrivals: rate is infinite: use AllAtOnce":  Poisson(math.Inf(1)),
		"load: trace times: speed 0: want > 0 and finite":          TraceTimes(0),
		"load: trace times: speed +Inf: want > 0 and finite":       TraceTimes(math.Inf(1)),
		"load: trace times: speed NaN: want > 0 and finite":        TraceTimes(math.NaN()),
		"load: WithArrivals(nil): want an arrival process\nload: request generator: no arrival process: use WithArrivals with AllAtOnce, Constant, Poisson or TraceTimes": nil,
	} {
		_, err := NewRequestGenerator(AzureConversation(), WithArrivals(a))
		require.EqualError(t, err, want)
	}
}
