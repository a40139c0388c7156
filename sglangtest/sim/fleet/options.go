package fleet

import (
	"errors"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/dispatch"
)

type config struct {
	poll    time.Duration // 0: never
	sample  time.Duration // 0: never
	cap     int           // 0: none
	timeout time.Duration // 0: none
	noTimes bool
	actions []planned

	dispatch []dispatch.Option
	report   func()
	every    int
}

// An Option changes [Run].
type Option func(*config) error

// WithPolling makes the router ask every engine for its load and its health at all multiples of interval, > 0. The policy
// sees the last answers, at their age, and an engine that is down counts as healthy until then. Default: the router
// never asks. There are no polled loads then, and all engines count as healthy for the whole run; a policy that needs
// samples (policy.Needs) is refused.
//
// An answer is the exact state of the scheduler at that moment and comes at once. SGLang answers with a snapshot that its
// scheduler renews at each prefill, when it is idle, and every 15 decode steps (--load-snapshot-publish-interval), so the
// loads that a real router sees can be older than these by that much.
func WithPolling(interval time.Duration) Option {
	return func(c *config) error {
		c.poll = interval
		if interval <= 0 {
			return fmt.Errorf("polling every %v: want > 0", interval)
		}
		return nil
	}
}

// WithSamples gives the recorder a [metrics.Sample] of every engine at all multiples of interval, > 0, if it has a
// method AddSample. Each costs some 500 bytes in a collector. Default: no samples.
func WithSamples(interval time.Duration) Option {
	return func(c *config) error {
		c.sample = interval
		if interval <= 0 {
			return fmt.Errorf("samples every %v: want > 0", interval)
		}
		return nil
	}
}

// WithMaxConcurrency caps the requests under way at n, those that the policy holds included; see
// load.WithMaxConcurrency. Default: no cap.
func WithMaxConcurrency(n int) Option {
	return func(c *config) error {
		c.cap = n
		if n <= 0 {
			return fmt.Errorf("max concurrency %d: want > 0", n)
		}
		return nil
	}
}

// WithTimeout makes a request fail with load.OutcomeTimeout, and aborts it on its engine, if it has not ended d after
// it was sent. Default: no deadline.
func WithTimeout(d time.Duration) Option {
	return func(c *config) error {
		c.timeout = d
		if d <= 0 {
			return fmt.Errorf("timeout %v: want > 0", d)
		}
		return nil
	}
}

// WithTokenTimes says whether results carry the time of each token, as Chunks. Default: true. Without them a result
// costs a collector a tenth of the memory; the summary then counts the answers as uncounted for ITL. All other
// latencies are the same.
func WithTokenTimes(on bool) Option {
	return func(c *config) error { c.noTimes = !on; return nil }
}

// WithAction does an action to an engine, by its index, at a planned time. Actions at the same time are done in the
// order in which they were given, before requests that arrive then. An action that is planned for after the end of the
// last request, or of a run that broke off, is not done; an event of
// metrics.KindParamUpdateNotMade or KindServerFaultNotMade says so. It may be given more
// than once.
func WithAction(at time.Duration, engine int, action Action) Option {
	return func(c *config) error {
		c.actions = append(c.actions, planned{at, engine, action})
		if at < 0 || action.do == nil {
			return fmt.Errorf("action at %v: want a time ≥ 0 and an action", at)
		}
		return nil
	}
}

// WithProgress calls f after every n requests that have ended, n ≥ 1, in the goroutine of [Run].
func WithProgress(n int, f func()) Option {
	return func(c *config) error {
		c.every, c.report = n, f
		if n < 1 || f == nil {
			return errors.New("progress: want n ≥ 1 and a function")
		}
		return nil
	}
}

// WithDispatch configures the dispatcher between the workload and the engines: a batching strategy, limits, retries, a
// predictor. It may be given more than once. Default: none of these.
func WithDispatch(opts ...dispatch.Option) Option {
	return func(c *config) error { c.dispatch = append(c.dispatch, opts...); return nil }
}
