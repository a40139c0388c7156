package dispatch

import (
	"errors"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/batching"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// Limits bound what a dispatcher lets in. The zero value has no limits. A batch that is larger than a limit
// leaves when nothing else is in flight.
type Limits struct {
	// InFlight is how many requests may be dispatched and not ended; 0: any number. More wait.
	InFlight int
	// Queue is how many requests may wait, for whatever reason; 0: any number, [NoQueue]: none. One more is
	// rejected with status 429.
	Queue int
	// RetryAfter is what a request that is rejected for its number is told; 0: nothing.
	RetryAfter time.Duration
}

// NoQueue as Limits.Queue rejects what cannot be dispatched at once.
const NoQueue = -1

func (l Limits) check() error {
	if l.InFlight < 0 || l.Queue < NoQueue || l.RetryAfter < 0 {
		return fmt.Errorf("limits %+v: want numbers ≥ 0, or NoQueue as Queue", l)
	}
	return nil
}

type config struct {
	strategy batching.Strategy
	limits   Limits
	attempts int
	again    func(*load.Result) bool
	predict  func(*load.Request) int
	provides policy.Needs
}

// An Option configures [New] and [NewLive].
type Option func(*config) error

// WithStrategy makes s form batches, which the policy routes as a whole. Default: each request is routed on
// its own.
func WithStrategy(s batching.Strategy) Option {
	return func(c *config) error {
		if c.strategy = s; s == nil {
			return errors.New("WithStrategy(nil)")
		}
		return nil
	}
}

// WithLimits sets the limits at the start; see [Core.SetLimits]. Default: none. Those of a single worker come
// with it, see [Worker].
func WithLimits(l Limits) Option {
	return func(c *config) error { c.limits = l; return l.check() }
}

// WithRetries lets a request be dispatched up to attempts times, ≥ 2, as long as again says of a failed
// attempt that another one should follow. The policy sees which workers were tried. Default: no retries,
// which hide faults from a measurement.
func WithRetries(attempts int, again func(*load.Result) bool) Option {
	return func(c *config) error {
		c.attempts, c.again = attempts, again
		if attempts < 2 || again == nil {
			return fmt.Errorf("retries with %d attempts: want ≥ 2, and a function that says what is tried again", attempts)
		}
		return nil
	}
}

// WithPredictor gives policies the number of output tokens that f expects of a request. Default: none, and a
// policy that needs predictions is refused.
func WithPredictor(f func(*load.Request) int) Option {
	return func(c *config) error {
		if c.predict = f; f == nil {
			return errors.New("WithPredictor(nil)")
		}
		return nil
	}
}

// Provides says what the driver gives to the core: n.Samples that it calls [Core.Sample], and n.Chunks that
// it calls [Core.Chunk] if the policy needs that. The core itself makes keys and texts, and predictions if
// there is a predictor. A policy that needs more is refused.
func Provides(n policy.Needs) Option {
	return func(c *config) error { c.provides = n; return nil }
}
