package metrics

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/gonum/stat"
)

// Millis is a time in milliseconds. +Inf stands for a percentile that falls among failures, which no limit admits, and is
// "inf" in JSON, which has no such number; NaN stands for "no value" and is null in JSON.
type Millis float64

// Valid reports whether m holds a time: neither NaN nor infinite.
func (m Millis) Valid() bool { return !math.IsNaN(float64(m)) && !math.IsInf(float64(m), 0) }

// failed reports whether m is a percentile that falls among failures.
func (m Millis) failed() bool { return math.IsInf(float64(m), 1) }

// MarshalJSON writes the number, "inf", or null if there is no value.
func (m Millis) MarshalJSON() ([]byte, error) {
	switch {
	case m.failed():
		return []byte(`"inf"`), nil
	case math.IsNaN(float64(m)):
		return []byte("null"), nil
	case !m.Valid():
		return nil, fmt.Errorf("metrics: a time of %g ms", float64(m))
	}
	return strconv.AppendFloat(nil, float64(m), 'g', -1, 64), nil
}

// UnmarshalJSON reads a number, "inf" or null.
func (m *Millis) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case "null":
		*m = Millis(math.NaN())
		return nil
	case `"inf"`:
		*m = Millis(math.Inf(1))
		return nil
	}
	var v float64
	if err := json.Unmarshal(b, &v); err != nil {
		return fmt.Errorf(`metrics: %s is neither a number of milliseconds nor "inf" nor null`, b)
	}
	*m = Millis(v)
	return nil
}

func millis(d time.Duration) Millis { return Millis(ms(d)) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// A Percentile is one point of a distribution.
type Percentile struct {
	P     float64 `json:"p"`        // in (0, 100)
	Value Millis  `json:"value_ms"` // +Inf ("inf") if the percentile falls among the failures; NaN (null) if there is nothing
}

// A Distribution describes the values of one latency over the requests of a run (for ITL: over tokens).
//
// A request that failed has no value, but it does not vanish: Median and Percentiles are those of the values
// together with Failed values of +infinity, and one that falls among those is +Inf. Mean, Std, Min and
// Max are over the values alone; read them together with Failed. The zero value is not meaningful.
//
// Percentiles follow numpy's default rule (linear interpolation, type 7 of Hyndman and Fan 1996).
type Distribution struct {
	Count       int          `json:"count"`             // values
	Failed      int          `json:"failed"`            // requests that count as +infinity in Median and Percentiles
	Mean        Millis       `json:"mean_ms"`           // of the values; NaN if there are none, like Std, Min and Max
	Std         Millis       `json:"std_population_ms"` // population standard deviation: divided by Count, not Count − 1
	Min         Millis       `json:"min_ms"`
	Median      Millis       `json:"median_ms"`
	Max         Millis       `json:"max_ms"`
	Percentiles []Percentile `json:"percentiles"` // in ascending order
}

// newDistribution sorts values, which are milliseconds.
func newDistribution(values []float64, failed int, percentiles []float64) Distribution {
	slices.Sort(values)
	d := Distribution{Count: len(values), Failed: failed, Median: Millis(quantile(values, failed, 0.5))}
	if len(values) > 0 {
		mean, std := stat.PopMeanStdDev(values, nil)
		d.Mean, d.Std = Millis(mean), Millis(std)
		d.Min, d.Max = Millis(values[0]), Millis(values[len(values)-1])
	} else {
		nan := Millis(math.NaN())
		d.Mean, d.Std, d.Min, d.Max = nan, nan, nan, nan
	}
	for _, p := range percentiles {
		d.Percentiles = append(d.Percentiles, Percentile{P: p, Value: Millis(quantile(values, failed, p/100))})
	}
	return d
}

// Quantile returns the value at q in (0, 1], which must be the median, the maximum (1) or one of Percentiles.
// It is +Inf if it falls among the failures, so that it is above any limit, and NaN if there is neither a value nor a failure.
func (d Distribution) Quantile(q float64) (Millis, error) {
	same := func(p float64) bool { return math.Abs(q*100-p) < 1e-9 }
	switch {
	case same(50):
		return d.Median, nil
	case same(100) && d.Failed > 0:
		return Millis(math.Inf(1)), nil
	case same(100):
		return d.Max, nil
	}
	have := []string{"0.5"}
	for _, p := range d.Percentiles {
		if same(p.P) {
			return p.Value, nil
		}
		have = append(have, strconv.FormatFloat(p.P/100, 'g', 10, 64))
	}
	return 0, fmt.Errorf("quantile %g was not computed: the summary has %s and 1; use WithPercentiles",
		q, strings.Join(have, ", "))
}

// quantile returns the q-quantile by numpy's default rule (type 7) of sorted values followed by failed values
// of +infinity; NaN if there is neither.
func quantile(sorted []float64, failed int, q float64) float64 {
	if len(sorted)+failed == 0 {
		return math.NaN()
	}
	pos := q * float64(len(sorted)+failed-1)
	if r := math.Round(pos); math.Abs(pos-r) < 1e-9 {
		pos = r // 0.999·1000 is not a whole number in float64; it must not reach for the next, infinite value
	}
	lo := int(math.Floor(pos))
	t := pos - float64(lo)
	if lo >= len(sorted) || t > 0 && lo+1 >= len(sorted) {
		return math.Inf(1)
	}
	if t == 0 {
		return sorted[lo]
	}
	// numpy's _lerp: from the nearer end, so that the result is monotonic in t.
	a, b := sorted[lo], sorted[lo+1]
	if t < 0.5 {
		return a + (b-a)*t
	}
	return b - (b-a)*(1-t)
}
