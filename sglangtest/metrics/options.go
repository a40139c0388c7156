package metrics

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// DefaultMaxLateness is the bound of the client's verdict if [WithMaxLateness] is not given.
const DefaultMaxLateness = 5 * time.Millisecond

// DefaultPercentiles returns the percentiles of a summary if [WithPercentiles] is not given.
func DefaultPercentiles() []float64 { return []float64{90, 95, 99, 99.9} }

// An Option configures a [Collector].
type Option func(*Collector) error

// WithSampler has s sampled on the run's clock at every multiple of interval, from Begin to End. It may be
// given more than once; each sampler needs a name of its own. If a sample takes longer than the interval,
// the moments that it missed are skipped and counted, never made up for.
func WithSampler(s Sampler, interval time.Duration) Option {
	return func(c *Collector) error {
		if s == nil {
			return errors.New("the sampler is nil")
		}
		if interval <= 0 {
			return fmt.Errorf("the interval of sampler %q is %v: it must be positive", s.Name(), interval)
		}
		for _, o := range c.samplers {
			if o.name == s.Name() {
				return fmt.Errorf("two samplers are named %q: their samples could not be told apart", s.Name())
			}
		}
		c.samplers = append(c.samplers, &samplerLoop{sampler: s, name: s.Name(), interval: interval})
		return nil
	}
}

// WithSink passes everything that the collector receives on to s. One sink at most.
func WithSink(s Sink) Option {
	return func(c *Collector) error {
		if s == nil || c.sink != nil {
			return errors.New("a collector takes one sink, which must not be nil")
		}
		c.sink = s
		return nil
	}
}

// WithPercentiles sets the percentiles of the summary, each in (0, 100). The median is always there, on its own: 50 adds nothing.
// Default: [DefaultPercentiles].
func WithPercentiles(ps ...float64) Option {
	return func(c *Collector) error {
		for _, p := range ps {
			if !(p > 0 && p < 100) {
				return fmt.Errorf("percentile %g: want a number in (0, 100)", p)
			}
		}
		ps = slices.Clone(ps)
		slices.Sort(ps)
		c.percentiles = slices.DeleteFunc(slices.Compact(ps), func(p float64) bool { return p == 50 })
		return nil
	}
}

// WithLimits names limits that [Summary.Check] will be asked for, so that their percentiles are in the summary, whatever
// [WithPercentiles] says. A limit that no summary could tell about is an error here.
func WithLimits(limits ...Limit) Option {
	return func(c *Collector) error {
		var faults []error
		for _, l := range limits {
			if l.check == nil {
				faults = append(faults, errors.New("a zero Limit; use AtMost, MeanAtMost or AtLeast"))
				continue
			}
			faults = append(faults, l.err)
			if l.percentile > 0 {
				c.demanded = append(c.demanded, l.percentile)
			}
		}
		return errors.Join(faults...)
	}
}

// WithMaxLateness sets how late the client may release requests, at the 99th percentile, before the summary
// says that the client was too slow. Default: [DefaultMaxLateness].
func WithMaxLateness(d time.Duration) Option {
	return func(c *Collector) error {
		if d <= 0 {
			return fmt.Errorf("maximum lateness %v: must be positive", d)
		}
		c.maxLateness = d
		return nil
	}
}

// WithSimulation declares that the engine is simulated; the summary says so in its first lines.
func WithSimulation(s Simulation) Option {
	return func(c *Collector) error {
		if s.Profile == "" || s.KnownError == "" {
			return errors.New("a simulation needs a profile and its known error (or that none was measured)")
		}
		c.simulation = &s
		return nil
	}
}

// WithGoodput has the summary count the requests that meet every limit of slo.
func WithGoodput(slo SLO) Option {
	return func(c *Collector) error {
		if slo.TTFT < 0 || slo.TPOT < 0 || slo.E2E < 0 || slo == (SLO{}) {
			return errors.New("goodput needs at least one limit, and none may be negative")
		}
		c.slo = &slo
		return nil
	}
}

// WithTexts keeps the output texts, for [Collector.Results]. They are dropped otherwise.
func WithTexts() Option {
	return func(c *Collector) error {
		c.keepTexts = true
		return nil
	}
}

// WithRetokenizer keeps the output texts and counts their tokens with count, which must add no special tokens,
// for the bench_serving-compatible summary. acceptLength is the engine's avg_spec_accept_length: if it is
// positive, bench_serving splits each gap between chunks of the OpenAI routes over the tokens of the chunk's
// text. 0 leaves those gaps as they are. The sender must keep decoded texts.
func WithRetokenizer(count func(text string) int, acceptLength float64) Option {
	return func(c *Collector) error {
		if count == nil || !(acceptLength >= 0) {
			return errors.New("a retokenizer needs a function and an accept length ≥ 0")
		}
		c.keepTexts, c.retokenize, c.acceptLength = true, count, acceptLength
		return nil
	}
}

// WithBenchServingDuration sets the duration by which the bench_serving-compatible summary divides. bench_serving
// measures it from before the first request to after its closing GET /server_info; by default it is the time from
// the first release to the last completion.
func WithBenchServingDuration(d time.Duration) Option {
	return func(c *Collector) error {
		if d <= 0 {
			return fmt.Errorf("duration %v: must be positive", d)
		}
		c.benchDuration = d
		return nil
	}
}
