package load

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Arrivals is an arrival process: it says when each request of a workload arrives.
// A user's own process implements it; Validate() error is an optional fourth method that [NewRequestGenerator] calls.
type Arrivals interface {
	// String describes the process in plans, such as "poisson 8/s".
	String() string
	// Rate is the rate that the process is meant to have, in requests/s: +Inf if all requests arrive at once, and
	// 0 if the process has no single rate of its own, because it follows the rows or varies.
	Rate() float64
	// Times starts the process anew. The function that it returns is called once for each request, in order:
	// i counts requests from 0 and row is what the request is made of. It returns the arrival, an offset from the
	// run's start that is not before the one returned last. It must not keep or modify row. All randomness must
	// come from rng.
	Times(rng *rand.Rand) func(i int, row *Row) (time.Duration, error)
}

// AllAtOnce returns the process in which every request arrives at 0; elsewhere this is called rate "inf".
func AllAtOnce() Arrivals { return atOnce{} }

type atOnce struct{}

func (atOnce) String() string { return "all at once" }
func (atOnce) Rate() float64  { return math.Inf(1) }
func (atOnce) Times(*rand.Rand) func(int, *Row) (time.Duration, error) {
	return func(int, *Row) (time.Duration, error) { return 0, nil }
}

// Constant returns the process in which request i, counted from 0, arrives at i/rate seconds. The rate is in
// requests/s, > 0 and finite.
func Constant(rate float64) Arrivals { return constant(rate) }

type constant float64

func (c constant) String() string  { return fmt.Sprintf("constant %g/s", float64(c)) }
func (c constant) Rate() float64   { return float64(c) }
func (c constant) Validate() error { return checkRate("constant arrivals", float64(c)) }
func (c constant) Times(*rand.Rand) func(int, *Row) (time.Duration, error) {
	return func(i int, _ *Row) (time.Duration, error) { return offsetOf(float64(i) / float64(c)) }
}

// Poisson returns the process with independent, exponentially distributed gaps of mean 1/rate seconds. The first
// request arrives after one such gap. The rate is in requests/s, > 0 and finite. For one seed, all rates give the same
// pattern, stretched or compressed.
func Poisson(rate float64) Arrivals { return poisson(rate) }

type poisson float64

func (p poisson) String() string  { return fmt.Sprintf("poisson %g/s", float64(p)) }
func (p poisson) Rate() float64   { return float64(p) }
func (p poisson) Validate() error { return checkRate("poisson arrivals", float64(p)) }
func (p poisson) Times(rng *rand.Rand) func(int, *Row) (time.Duration, error) {
	var sum float64 // of gaps at rate 1; rounding to nanoseconds comes after the sum and does not accumulate
	return func(int, *Row) (time.Duration, error) {
		sum += rng.ExpFloat64()
		return offsetOf(sum / float64(p))
	}
}

// TraceTimes returns the process that replays the times which the dataset recorded, at the given speed: 1 as
// recorded, 2 twice as fast. The speed is > 0 and finite. A row without a time is an error.
func TraceTimes(speed float64) Arrivals { return traceTimes(speed) }

type traceTimes float64

func (t traceTimes) String() string { return fmt.Sprintf("trace times at speed %g", float64(t)) }
func (t traceTimes) Rate() float64  { return 0 }
func (t traceTimes) Validate() error {
	if !(t > 0 && float64(t) <= math.MaxFloat64) {
		return fmt.Errorf("load: trace times: speed %g: want > 0 and finite", float64(t))
	}
	return nil
}
func (t traceTimes) Times(*rand.Rand) func(int, *Row) (time.Duration, error) {
	return func(_ int, row *Row) (time.Duration, error) {
		if !row.Timed {
			return 0, errors.New("the dataset gives no time for it, so trace times cannot be replayed: use a rate, such as Poisson or Constant")
		}
		if t == 1 {
			return row.Arrival, nil // exactly, where a float64 would round after 104 days
		}
		return offsetOf(row.Arrival.Seconds() / float64(t))
	}
}

func checkRate(what string, rate float64) error {
	if math.IsInf(rate, 1) {
		return fmt.Errorf("load: %s: rate is infinite: use AllAtOnce", what)
	}
	if !(rate > 0) {
		return fmt.Errorf("load: %s: rate %g: want > 0 requests/s", what, rate)
	}
	return nil
}
