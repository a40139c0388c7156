package load

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
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

// Ramp returns the Poisson process whose rate goes linearly from one rate to another in the time over, and stays there: at
// time t ≤ over it is from + (to − from)·t/over, and (from + to)/2·over requests are expected until then. from is ≥ 0 and to
// > 0, in requests/s and finite; over is > 0.
//
// Times are made by inversion: request i arrives when the expected number of arrivals reaches the sum of i + 1 independent
// exponential values of mean 1 (Lewis and Shedler 1979), so that for one seed all ramps stretch the same pattern.
func Ramp(from, to float64, over time.Duration) Arrivals { return ramp{from, to, over} }

type ramp struct {
	from, to float64
	over     time.Duration
}

func (r ramp) String() string { return fmt.Sprintf("poisson %g/s to %g/s in %v", r.from, r.to, r.over) }
func (r ramp) Rate() float64  { return 0 }
func (r ramp) Validate() error {
	var faults []error
	if !(r.from >= 0 && r.from <= math.MaxFloat64) {
		faults = append(faults, fmt.Errorf("load: ramp: from rate %g: want ≥ 0 requests/s and finite", r.from))
	}
	if !(r.to > 0 && r.to <= math.MaxFloat64) {
		faults = append(faults, fmt.Errorf("load: ramp: to rate %g: want > 0 requests/s and finite, because it holds on after the ramp", r.to))
	}
	if r.over <= 0 {
		faults = append(faults, fmt.Errorf("load: ramp: over %v: want > 0", r.over))
	}
	return errors.Join(faults...)
}
func (r ramp) Times(rng *rand.Rand) func(int, *Row) (time.Duration, error) {
	over := r.over.Seconds()
	slope := (r.to - r.from) / over
	atEnd := (r.from + r.to) / 2 * over
	return byInversion(rng, func(n float64) float64 {
		if n >= atEnd {
			return over + (n-atEnd)/r.to
		}
		// The solution of from·t + slope·t²/2 = n, in the form that has no difference of nearly equal numbers.
		return 2 * n / (r.from + math.Sqrt(max(r.from*r.from+2*slope*n, 0)))
	})
}

// A Step is a rate that holds from a time on.
type Step struct {
	From time.Duration // offset from the run's start
	Rate float64       // requests/s, ≥ 0 and finite; 0: none arrives
}

// Steps returns the Poisson process whose rate is that of the last step that has begun: the sum of rate × length over the steps
// until t is the number of requests expected until t. The first step is from 0, each other later than the one before it, and
// the rate of the last, which holds on, is > 0. Times are made as those of [Ramp].
func Steps(steps ...Step) Arrivals { return stepped(slices.Clone(steps)) }

type stepped []Step

func (s stepped) String() string {
	var b strings.Builder
	b.WriteString("poisson")
	for i, step := range s {
		if i > 0 {
			fmt.Fprintf(&b, ", from %v", step.From)
		}
		fmt.Fprintf(&b, " %g/s", step.Rate)
	}
	return b.String()
}
func (s stepped) Rate() float64 { return 0 }
func (s stepped) Validate() error {
	if len(s) == 0 {
		return errors.New("load: steps: none given")
	}
	var faults []error
	for i, step := range s {
		if !(step.Rate >= 0 && step.Rate <= math.MaxFloat64) {
			faults = append(faults, fmt.Errorf("load: steps[%d]: rate %g: want ≥ 0 requests/s and finite", i, step.Rate))
		}
		if i == 0 && step.From != 0 {
			faults = append(faults, fmt.Errorf("load: steps[0]: from %v: want 0", step.From))
		}
		if i > 0 && step.From <= s[i-1].From {
			faults = append(faults, fmt.Errorf("load: steps[%d]: from %v: want later than %v, from which the step before it is", i, step.From, s[i-1].From))
		}
	}
	if s[len(s)-1].Rate == 0 {
		faults = append(faults, fmt.Errorf("load: steps[%d]: rate 0: want > 0 for the last, which holds on", len(s)-1))
	}
	return errors.Join(faults...)
}
func (s stepped) Times(rng *rand.Rand) func(int, *Row) (time.Duration, error) {
	i, before := 0, 0.0 // the present step, and the arrivals expected before it
	return byInversion(rng, func(n float64) float64 {
		for ; i < len(s)-1; i++ {
			next := before + s[i].Rate*(s[i+1].From-s[i].From).Seconds()
			if n < next {
				break
			}
			before = next
		}
		return s[i].From.Seconds() + (n-before)/s[i].Rate
	})
}

// byInversion makes the times of a Poisson process whose rate varies: when returns the time in seconds until which n arrivals are
// expected. It is called with ascending n.
func byInversion(rng *rand.Rand, when func(n float64) float64) func(int, *Row) (time.Duration, error) {
	var sum float64
	return func(int, *Row) (time.Duration, error) {
		sum += rng.ExpFloat64()
		return offsetOf(when(sum))
	}
}
