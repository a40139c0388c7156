package sim

import (
	"math/bits"
	"time"
)

// Lateness says how late a host was: the time from the moment at which the result of a step was due to the moment at
// which the host had told all streams of the batch. It is the error that real time adds to the simulation. Quantiles
// are upper bounds of buckets that are 1/8 wide.
type Lateness struct {
	Steps         int64
	P50, P99, Max time.Duration
}

// lateness is a histogram with eight buckets per power of two of a microsecond.
type lateness struct {
	count [8 * 40]int64
	n     int64
	most  time.Duration
}

func (l *lateness) add(d time.Duration) {
	d = max(d, 0)
	l.most = max(l.most, d)
	l.n++
	l.count[latenessBucket(uint64(d/time.Microsecond))]++
}

func latenessBucket(us uint64) int {
	if us < 8 {
		return int(us)
	}
	shift := bits.Len64(us) - 4
	return min((shift+1)*8+int(us>>shift)-8, 8*40-1)
}

func latenessBound(bucket int) time.Duration {
	if bucket < 8 {
		return time.Duration(bucket+1) * time.Microsecond
	}
	shift, rest := bucket/8-1, bucket%8
	return time.Duration((rest+8+1)<<shift) * time.Microsecond
}

func (l *lateness) quantile(q float64) time.Duration {
	want := int64(q * float64(l.n))
	for i, c := range l.count {
		if want -= c; want < 0 {
			return min(latenessBound(i), l.most)
		}
	}
	return l.most
}

func (l *lateness) summary() Lateness {
	return Lateness{Steps: l.n, P50: l.quantile(0.5), P99: l.quantile(0.99), Max: l.most}
}
