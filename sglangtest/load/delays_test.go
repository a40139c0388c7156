package load

import (
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/precise"
	"github.com/stretchr/testify/require"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	require.Zero(t, h.Quantile(0.5))
	for i := range 1000 {
		h.Add(time.Duration(i+1)*time.Millisecond, 1)
	}
	require.Equal(t, int64(1000), h.Count(-1))
	for _, q := range []float64{0.001, 0.5, 0.9, 0.99, 0.999, 1} {
		exact := time.Duration(q*1000) * time.Millisecond
		require.GreaterOrEqual(t, h.Quantile(q), exact, q)
		require.LessOrEqual(t, h.Quantile(q), exact+exact/16, q)
	}
	require.InDelta(t, 500, h.Count(500*time.Millisecond), 32)
	previous := -1
	for d := time.Duration(0); d >= 0 && d < math.MaxInt64/2; d += d/16 + 1 {
		i := bin(d)
		require.GreaterOrEqual(t, i, previous)
		require.LessOrEqual(t, d, binEnd(i))
		require.Equal(t, i, bin(binEnd(i)))
		require.NotEqual(t, i, bin(binEnd(i)+1))
		previous = i
	}
	h.Add(math.MaxInt64, 1)
	require.Equal(t, time.Duration(math.MaxInt64), h.Quantile(1))
}

// The share counts the CPU time of the whole process against that of all its cores, whatever else the machine does.
func TestBusy(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells")
	}
	const work = 50 * time.Millisecond
	w, err := precise.New()
	require.NoError(t, err)
	defer w.Close()
	var d Delays
	began := time.Now()
	stop := d.probe(w)
	for from := cpuTime(); cpuTime()-from < work; {
	}
	stop()
	cores := time.Since(began).Seconds() * float64(runtime.GOMAXPROCS(0))
	require.GreaterOrEqual(t, d.Busy, work.Seconds()/cores)
	require.Less(t, d.Busy, 1.1)
}
