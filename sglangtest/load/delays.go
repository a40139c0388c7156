package load

import (
	"math"
	"math/bits"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/precise"
)

// probePeriod is how often a run probes how late it is woken. It is no divisor of usual step times, so that it does not
// keep step with a server.
const probePeriod = 13 * time.Millisecond

// Delays says how late the client itself was woken in a run, for whatever reason: other processes on its cores, a CPU limit,
// its own goroutines, garbage collection, or because it was stopped. Answers are stamped when the client reads them, so such
// a delay is part of every latency. It is complete, and may be read, when the run has ended.
type Delays struct {
	// Moments is over the moments of the run, each 13 ms: how much later than then the client would have noticed what came
	// then. A pause of 130 ms is ten moments.
	Moments Histogram
	// Wakes is over the probes that were woken: a pause is one value.
	Wakes Histogram
	// Ready is how long goroutines of this process that could have run waited for a thread (runtime/metrics,
	// /sched/latencies:seconds). It is over their runs, and misses what the operating system kept from the process.
	Ready Histogram
	// GC are the pauses of the whole process for garbage collection (/sched/pauses/total/gc:seconds).
	GC Histogram
	// Busy is the share of the run in which this process computed, of all the time that its cores (GOMAXPROCS) had, 0 to about 1;
	// 0 where the system does not tell. What shares the process, such as a simulated engine, is part of it.
	Busy float64
}

// probe fills in d, waiting with w, until stop is called, which waits for the end.
func (d *Delays) probe(w *precise.Waiter) (stop func()) {
	var over atomic.Bool
	done := make(chan struct{})
	before, began, used := readRuntime(), time.Now(), cpuTime()
	go func() {
		defer close(done)
		for next := time.Now().Add(probePeriod); ; {
			w.Wait(max(0, time.Until(next)))
			if over.Load() {
				return
			}
			late := time.Since(next)
			if late < 0 {
				continue
			}
			d.Wakes.Add(late, 1)
			for ; late >= 0; late -= probePeriod {
				d.Moments.Add(late, 1)
				next = next.Add(probePeriod)
			}
		}
	}()
	return func() {
		over.Store(true)
		w.Wake()
		<-done
		after := readRuntime()
		d.Busy = (cpuTime() - used).Seconds() / (time.Since(began).Seconds() * float64(runtime.GOMAXPROCS(0)))
		for i, h := range []*Histogram{&d.Ready, &d.GC} {
			h.addDifference(before[i], after[i])
		}
	}
}

// readRuntime returns the runtime's histograms as they are.
func readRuntime() [2]*metrics.Float64Histogram {
	samples := []metrics.Sample{{Name: "/sched/latencies:seconds"}, {Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(samples)
	var hs [2]*metrics.Float64Histogram
	for i, s := range samples {
		if s.Value.Kind() == metrics.KindFloat64Histogram {
			hs[i] = s.Value.Float64Histogram()
		}
	}
	return hs
}

// A Histogram counts times in bins that are at most 1/16 wide. Its zero value is empty and ready for use.
type Histogram struct {
	bins [61 * 16]int64
	n    int64
}

// Add adds n times of d ≥ 0.
func (h *Histogram) Add(d time.Duration, n int64) {
	h.bins[bin(d)] += n
	h.n += n
}

// Count returns how many values are larger than d, about; all for a negative d.
func (h *Histogram) Count(over time.Duration) (n int64) {
	if over < 0 {
		return h.n
	}
	for _, k := range h.bins[bin(over)+1:] {
		n += k
	}
	return n
}

// Quantile returns a time that the share q of the values, in (0, 1], is not longer than: at most 1/16 more than the
// smallest such time. It is 0 if there are no values.
func (h *Histogram) Quantile(q float64) time.Duration {
	want := int64(math.Ceil(q * float64(h.n)))
	for i, k := range h.bins {
		if want -= k; k > 0 && want <= 0 {
			return binEnd(i)
		}
	}
	return 0
}

// bin returns the index of d: sixteen bins for each power of two, one for each nanosecond below 16.
func bin(d time.Duration) int {
	if d < 16 {
		return int(max(d, 0))
	}
	octave := bits.Len64(uint64(d)) - 5 // d has octave+5 bits, of which the first five count
	return octave*16 + int(d>>octave)
}

// binEnd returns the largest time of a bin.
func binEnd(i int) time.Duration {
	if i < 32 {
		return time.Duration(i)
	}
	octave := i/16 - 1
	return time.Duration(i%16+17)<<octave - 1
}

// addDifference adds what after has more than before, at the upper ends of the runtime's bins.
func (h *Histogram) addDifference(before, after *metrics.Float64Histogram) {
	if after == nil {
		return
	}
	for i, n := range after.Counts {
		if before != nil {
			n -= before.Counts[i]
		}
		end := after.Buckets[i+1]
		if math.IsInf(end, 1) {
			end = after.Buckets[i]
		}
		h.Add(time.Duration(max(end, 0)*1e9), int64(n))
	}
}
