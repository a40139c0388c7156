package sim

import (
	"math/bits"
	"strconv"
	"sync/atomic"
	"time"
)

// Lateness says how late a server was: for each piece of an answer, an event of a stream or a whole answer, the time from
// the moment at which it was due to the moment at which its bytes went to the connection. It is the error that the machine
// adds to the simulation; the time that a client did not take what was sent before is left out. Of several tokens that
// share an event the first counts. Quantiles are upper bounds of buckets that are 1/8 wide, over all pieces since the start.
type Lateness struct {
	Pieces        int64
	P50, P99, Max time.Duration
}

// lateness is a histogram with eight buckets per power of two of a microsecond. It is safe for concurrent use.
type lateness struct {
	count [8 * 40]atomic.Int64
	most  atomic.Int64
}

func (l *lateness) add(d time.Duration) {
	d = max(d, 0)
	for most := l.most.Load(); int64(d) > most && !l.most.CompareAndSwap(most, int64(d)); most = l.most.Load() {
	}
	l.count[latenessBucket(uint64(d/time.Microsecond))].Add(1)
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

// counts returns how many were in each bucket that is not empty, by its bound in µs.
func (l *lateness) counts() []loadField {
	var out []loadField
	for i := range l.count {
		if n := l.count[i].Load(); n > 0 {
			out = append(out, loadField{strconv.FormatInt(latenessBound(i).Microseconds(), 10), int(n)})
		}
	}
	return out
}

func (l *lateness) summary() Lateness {
	var count [len(l.count)]int64
	s := Lateness{Max: time.Duration(l.most.Load())}
	for i := range l.count {
		count[i] = l.count[i].Load()
		s.Pieces += count[i]
	}
	quantile := func(q float64) time.Duration {
		want := int64(q * float64(s.Pieces))
		for i, c := range count {
			if want -= c; want < 0 {
				return min(latenessBound(i), s.Max)
			}
		}
		return s.Max
	}
	s.P50, s.P99 = quantile(0.5), quantile(0.99)
	return s
}
