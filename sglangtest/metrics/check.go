package metrics

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// A Metric names one of the strict latencies of a [Summary].
type Metric string

// The latencies that [AtMost] can limit; see the fields of [Summary] for their definitions.
const (
	TTFT          Metric = "TTFT"
	ServerTTFT    Metric = "server TTFT"
	ITL           Metric = "ITL"
	TPOT          Metric = "TPOT"
	TotalLatency  Metric = "E2E"
	ServerLatency Metric = "server latency"
	QueueTime     Metric = "client queue"
)

// Distribution returns the distribution of a latency, and false for a name that is not one.
func (s *Summary) Distribution(m Metric) (Distribution, bool) {
	switch m {
	case TTFT:
		return s.TTFT, true
	case ServerTTFT:
		return s.ServerTTFT, true
	case ITL:
		return s.ITL, true
	case TPOT:
		return s.TPOT, true
	case TotalLatency:
		return s.TotalLatency, true
	case ServerLatency:
		return s.ServerLatency, true
	case QueueTime:
		return s.QueueTime, true
	}
	return Distribution{}, false
}

// A Quantity names a number of a [Summary] that should be large.
type Quantity string

// The quantities that [AtLeast] can limit.
const (
	RequestThroughput Quantity = "request throughput" // successful requests/s
	OutputThroughput  Quantity = "output throughput"  // output tokens/s of successful requests
	SuccessShare      Quantity = "success share"      // successful ÷ arrived requests that are not censored, 0 to 1
	GoodputRate       Quantity = "goodput"            // good requests/s; needs WithGoodput
	GoodputShare      Quantity = "goodput share"      // good ÷ arrived requests that are not censored, 0 to 1; needs WithGoodput
)

// A Limit is a demand on a summary. Make one with [AtMost] or [AtLeast].
type Limit struct {
	// check returns what was missed, or nil; its error says that the summary cannot tell.
	check func(s *Summary) (*Miss, error)
	// percentile is what the summary has to hold, in percent; 0: nothing that it does not hold anyway.
	percentile float64
	// err says that no summary could tell.
	err error
}

// A Miss is a limit that was not met.
type Miss struct {
	What     string  // such as "TTFT p99"
	Measured float64 // +Inf if the quantile falls among the failures
	Limit    float64
	Unit     string // such as "ms"
	text     string
}

// String says what was missed and by how much.
func (m Miss) String() string { return m.text }

// A CheckError says which limits a run missed.
type CheckError struct {
	Missed []Miss
	Client []string // what spoke against the client, which may be why; empty if it was OK
}

func (e *CheckError) Error() string {
	var lines []string
	for _, m := range e.Missed {
		lines = append(lines, "metrics: "+m.text)
	}
	for _, r := range e.Client {
		lines = append(lines, "metrics: mind that the "+r)
	}
	return strings.Join(lines, "\n")
}

// Check returns nil if the run met every limit, a *[CheckError] if it missed some, and another error (both joined, if
// need be) if the summary cannot tell: an unknown name, a quantile that was not computed, nothing that was measured.
// A request that failed counts as one that missed a latency limit. Check does not ask how well the client itself did;
// [ClientOK] does.
func (s *Summary) Check(limits ...Limit) error {
	var errs []error
	var missed []Miss
	for _, l := range limits {
		if l.check == nil {
			errs = append(errs, errors.New("metrics: check: a zero Limit; use AtMost or AtLeast"))
			continue
		}
		if l.err != nil {
			errs = append(errs, fmt.Errorf("metrics: check: %w", l.err))
			continue
		}
		miss, err := l.check(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("metrics: check: %w", err))
		}
		if miss != nil {
			missed = append(missed, *miss)
		}
	}
	if len(missed) > 0 {
		errs = append([]error{&CheckError{missed, s.Client.Reasons}}, errs...)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// AtMost demands that the quantile (0.5, 1, or a percentile of the summary divided by 100) of a latency is at most d.
// Requests that failed count as over any limit, except for ITL, which is over the tokens of the successful ones: pair it
// with AtLeast(SuccessShare, …).
func AtMost(metric Metric, quantile float64, d time.Duration) Limit {
	var fault error
	if !(quantile > 0 && quantile <= 1) || d < 0 {
		fault = fmt.Errorf("%s at most %v: want a limit ≥ 0 and a quantile in (0, 1], such as 0.99, not %g", metric, d, quantile)
	}
	l := atMost(metric, fmt.Sprintf("p%.10g", quantile*100), d, fault, func(dist Distribution) (Millis, error) { return dist.Quantile(quantile) })
	if quantile != 0.5 && quantile != 1 {
		l.percentile = math.Round(quantile*100*1e9) / 1e9 // 0.999·100 is not 99.9 in float64
	}
	return l
}

// MeanAtMost demands that the mean of a latency is at most d. Requests that failed count as over any limit, as with [AtMost], so
// that one of them is enough to miss it, except for ITL.
func MeanAtMost(metric Metric, d time.Duration) Limit {
	var fault error
	if d < 0 {
		fault = fmt.Errorf("mean %s at most %v: want a limit ≥ 0", metric, d)
	}
	return atMost(metric, "mean", d, fault, func(dist Distribution) (Millis, error) {
		if dist.Failed > 0 {
			return Millis(math.Inf(1)), nil
		}
		return dist.Mean, nil
	})
}

func atMost(metric Metric, statistic string, d time.Duration, fault error, of func(Distribution) (Millis, error)) Limit {
	if _, ok := new(Summary).Distribution(metric); !ok {
		fault = fmt.Errorf("%q is not a latency of the summary", metric)
	}
	return Limit{err: fault, check: func(s *Summary) (*Miss, error) {
		dist, _ := s.Distribution(metric)
		what := string(metric) + " " + statistic
		got, err := of(dist)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		if dist.Count+dist.Failed == 0 {
			return nil, fmt.Errorf("%s: nothing was measured, so a limit is neither met nor missed", what)
		}
		if hidden := s.unobserved(metric); float64(hidden) > clientTolerance*float64(s.Requests.OK) {
			return nil, fmt.Errorf("%s: it could not be observed for %d of %d successful answers (see the notes), so a limit is neither met nor missed", what, hidden, s.Requests.OK)
		}
		if float64(got) <= ms(d) {
			return nil, nil
		}
		m := &Miss{What: what, Measured: float64(got), Limit: ms(d), Unit: "ms"}
		if got.Valid() {
			over := m.Measured - m.Limit
			m.text = fmt.Sprintf("%s is %s ms, %s ms (%.1f %%) above the limit of %s ms", what, sig(m.Measured), sig(over), 100*over/m.Limit, sig(m.Limit))
			if m.Limit == 0 {
				m.text = fmt.Sprintf("%s is %s ms, above the limit of 0 ms", what, sig(m.Measured))
			}
		} else {
			m.text = fmt.Sprintf("%s has no value because it falls among the failures; the limit is %s ms", what, sig(m.Limit))
		}
		if dist.Failed > 0 {
			m.text += fmt.Sprintf("; %d of %d requests failed and count as missed", dist.Failed, dist.Count+dist.Failed)
		}
		return m, nil
	}}
}

// unobserved returns for how many successful answers a token latency could not be observed.
func (s *Summary) unobserved(m Metric) int {
	switch m {
	case ITL:
		return s.Streams.NotStreamed + s.Streams.Uncounted
	case TPOT:
		return s.Streams.NotStreamed + s.Streams.OneRead
	}
	return 0
}

// ClientOK demands that nothing speaks against the client, so that the latencies can be taken for the server's. On a busy
// machine it can be missed for no fault of the server.
func ClientOK() Limit {
	return Limit{check: func(s *Summary) (*Miss, error) {
		if s.Client.OK {
			return nil, nil
		}
		return &Miss{What: "client", text: "the client could not keep up"}, nil
	}}
}

// AtLeast demands that a quantity is at least min, in the quantity's unit.
func AtLeast(q Quantity, min float64) Limit {
	return Limit{check: func(s *Summary) (*Miss, error) {
		var got float64
		unit := "requests/s"
		switch q {
		case RequestThroughput:
			got = s.Throughput.Requests
		case OutputThroughput:
			got, unit = s.Throughput.OutputTokensPerS, "tokens/s"
		case SuccessShare:
			got, unit = float64(s.Requests.OK)/float64(s.Requests.Arrived-s.Requests.Censored), "of all requests"
		case GoodputRate, GoodputShare:
			if s.Goodput == nil {
				return nil, fmt.Errorf("%s: the run had no goodput limits; use WithGoodput", q)
			}
			if got = s.Goodput.PerSecond; q == GoodputShare {
				got, unit = s.Goodput.Share, "of all requests"
			}
		default:
			return nil, fmt.Errorf("%q is not a quantity of the summary", q)
		}
		if s.Requests.Arrived == s.Requests.Censored {
			return nil, fmt.Errorf("%s: no request arrived and ended, so a limit is neither met nor missed", q)
		}
		if !(min > 0) || math.IsInf(min, 0) {
			return nil, fmt.Errorf("%s at least %g: want a limit > 0", q, min)
		}
		if got >= min {
			return nil, nil
		}
		return &Miss{What: string(q), Measured: got, Limit: min, Unit: unit, text: fmt.Sprintf(
			"%s is %s %s, %s (%.1f %%) below the limit of %s", q, sig(got), unit, sig(min-got), 100*(min-got)/min, sig(min))}, nil
	}}
}
