package metrics

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Expected values: NumPy 2.4.6,
//
//	x = [3.5,-1.25,8,2,2,17.75,0.125,6,11,4]
//	[float(np.percentile(x, q)) for q in (1,10,25,37.5,50,75,90,95,99,99.9)], np.mean(x), np.std(x)
func TestQuantileIsNumpys(t *testing.T) {
	x := []float64{3.5, -1.25, 8, 2, 2, 17.75, 0.125, 6, 11, 4}
	qs := []float64{1, 10, 25, 37.5, 75, 90, 95, 99, 99.9}
	want := []float64{-1.12625, -0.012499999999999956, 2.0, 2.5625, 7.5, 11.674999999999997, 14.712499999999993, 17.142500000000002, 17.68925000000001}
	d := newDistribution(x, 0, qs)
	for i, p := range d.Percentiles {
		require.InDelta(t, want[i], float64(p.Value), 1e-13, "p%g", p.P)
	}
	require.EqualValues(t, 3.75, d.Median)
	require.EqualValues(t, 5.3125, d.Mean)
	require.InDelta(t, 5.400593138720969, float64(d.Std), 1e-14)
	require.EqualValues(t, -1.25, d.Min)
	require.EqualValues(t, 17.75, d.Max)

	// np.percentile(np.arange(1, 11), [90, 99]) = [9.1, 9.91]; gonum's LinInterp gives 9.0 for the first.
	d = newDistribution([]float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 0, []float64{90, 99})
	require.InDelta(t, 9.1, float64(d.Percentiles[0].Value), 1e-12)
	require.InDelta(t, 9.91, float64(d.Percentiles[1].Value), 1e-12)
}

func TestQuantileWithFailures(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	four := []float64{1, 2, 3, 4}
	for _, c := range []struct {
		name   string
		values []float64
		failed int
		q      float64
		want   float64
	}{
		{"below the failures", four, 1, 0.70, 3.8}, // np.percentile([1,2,3,4,np.inf], 70)
		{"exactly the last value", four, 1, 0.75, 4},
		{"between the last value and a failure", four, 1, 0.76, inf}, // np.percentile([1,2,3,4,np.inf], 76),
		{"the largest", four, 1, 1, inf},
		{"the largest without failures", four, 0, 1, 4},
		{"only failures", nil, 3, 0.5, inf},
		{"nothing", nil, 0, 0.5, nan},
		{"one value", []float64{7}, 0, 0.999, 7},
	} {
		got := quantile(c.values, c.failed, c.q)
		if math.IsNaN(c.want) {
			require.True(t, math.IsNaN(got), "%s: %v", c.name, got)
		} else if math.IsInf(c.want, 1) {
			require.Equal(t, c.want, got, c.name)
		} else {
			require.InDelta(t, c.want, got, 1e-12, c.name)
		}
	}
	// 0.999·1000 is not whole in float64, but the 1000th of 1001 is a value.
	values := make([]float64, 1000)
	require.Zero(t, quantile(values, 1, 99.9/100))
}

func TestDistributionQuantile(t *testing.T) {
	d := newDistribution([]float64{1, 2, 3}, 1, []float64{90, 99.9})
	got, err := d.Quantile(0.5)
	require.NoError(t, err)
	require.EqualValues(t, 2.5, got)
	got, err = d.Quantile(0.999)
	require.NoError(t, err)
	require.True(t, math.IsInf(float64(got), 1), "above any limit: %v", got)
	got, err = d.Quantile(1)
	require.NoError(t, err)
	require.Greater(t, float64(got), 1e300)
	got, err = newDistribution(nil, 0, nil).Quantile(0.5)
	require.NoError(t, err)
	require.True(t, math.IsNaN(float64(got)), "nothing was measured")
	_, err = d.Quantile(0.97)
	require.EqualError(t, err, "quantile 0.97 was not computed: the summary has 0.5, 0.9, 0.999 and 1; use WithPercentiles")
}

func TestMillisJSON(t *testing.T) {
	in := []Millis{1.5, Millis(math.NaN()), Millis(math.Inf(1)), 0, -2.25, 1e300}
	b, err := json.Marshal(in)
	require.NoError(t, err)
	require.Equal(t, `[1.5,null,"inf",0,-2.25,1e+300]`, string(b))
	var back []Millis
	require.NoError(t, json.Unmarshal(b, &back))
	require.True(t, math.IsNaN(float64(back[1])))
	in[1], back[1] = 0, 0
	require.Equal(t, in, back)
	for _, bad := range []string{`["x"]`, `["+Inf"]`, `["1"]`, `[true]`, `[{}]`} {
		require.Error(t, json.Unmarshal([]byte(bad), &back), bad)
	}
}

// What a stored summary says of percentiles among failures, a reader and a check get back.
func TestFailuresSurviveJSON(t *testing.T) {
	s := mixedRun(t, WithPercentiles(60, 95)).Summary()
	b, err := json.Marshal(s)
	require.NoError(t, err)
	require.Contains(t, string(b), `{"p":95,"value_ms":"inf"}`)
	var back Summary
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, Millis(math.Inf(1)), back.TTFT.Percentiles[1].Value)
	require.EqualError(t, back.Check(AtMost(TTFT, 0.95, time.Hour)), s.Check(AtMost(TTFT, 0.95, time.Hour)).Error())
	var missed *CheckError
	require.ErrorAs(t, back.Check(AtMost(TTFT, 0.95, time.Hour)), &missed)
	require.True(t, math.IsInf(missed.Missed[0].Measured, 1))
}
