package policy

import (
	"context"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A Policy picks a worker for each request.
//
// Hosts call the methods of a policy, the optional ones too, one after the other and never at once, so a policy needs
// no locks; an object must not serve two hosts at the same time. Pick must not block, must not keep r, v or anything
// in them, and should allocate nothing. An error means that the policy itself is at fault, and ends a simulated
// run; a request that cannot be placed is a [Reject], not an error.
type Policy interface {
	Pick(ctx context.Context, r *load.Request, v View) (Decision, error)
}

// A SampleReader is a policy that can say whether it decides by the workers' own load samples, the polled members of a
// [Worker]. A host that takes no samples refuses it if it does: all workers would look idle to it for ever.
type SampleReader interface {
	ReadsSamples() bool
}

// A DispatchObserver is a policy that is told when a request leaves for a worker, after each [Dispatch].
type DispatchObserver interface {
	Dispatched(now time.Duration, r *load.Request, worker int)
}

// A FirstTokenObserver is a policy that is told when the first token of an answer has come.
type FirstTokenObserver interface {
	FirstToken(now time.Duration, r *load.Request, worker int)
}

// A DoneObserver is a policy that is told how each dispatched request ended, well or not. It must not keep r or
// res, or modify them.
type DoneObserver interface {
	Done(now time.Duration, r *load.Request, res *load.Result, worker int)
}

// A Verdict is what a [Decision] does with the request. The zero value is not a verdict.
type Verdict uint8

// The verdicts.
const (
	Send    Verdict = iota + 1 // to Decision.Worker, at once
	Wait                       // ask again later
	Decline                    // the request fails with load.OutcomeRejected
)

// A Decision is the answer of [Policy.Pick]. Make one with [Dispatch], [Hold], [HoldUntil] or [Reject]: the zero
// value decides nothing and is a fault of the policy.
type Decision struct {
	Verdict Verdict
	Worker  int // index in View.Workers; of Send only
	// Until belongs to Wait: the moment, on the view's clock, at which the policy is asked again at the latest. Zero:
	// only an event makes it so.
	Until  time.Duration
	Reason string // of Decline only; it becomes the result's message
}

// Dispatch sends the request to a worker, by its index in View.Workers.
func Dispatch(worker int) Decision { return Decision{Verdict: Send, Worker: worker} }

// Hold keeps the request back. The policy is asked again after the next event: a request of any worker has ended, a
// load sample has come, or a worker's health has changed. Requests that are held are offered in order of arrival.
func Hold() Decision { return Decision{Verdict: Wait} }

// HoldUntil is [Hold], with a moment on the view's clock, > View.Now, at which the policy is asked again at the latest.
func HoldUntil(t time.Duration) Decision { return Decision{Verdict: Wait, Until: t} }

// Reject turns the request away.
func Reject(reason string) Decision { return Decision{Verdict: Decline, Reason: reason} }

// noWorker is the decision of the policies of this package if no worker is healthy.
func noWorker() Decision { return Reject("no healthy worker") }
