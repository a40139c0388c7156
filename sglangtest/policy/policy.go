package policy

import (
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A Policy picks a worker for each request.
//
// Hosts call the methods of a policy, the optional ones too, one after the other and never at once, so a
// policy needs no locks; an object must not serve two hosts, nor two runs. Pick must not block, must not keep
// r, v or anything in them, nor modify them, and should allocate nothing. An error means that the policy
// itself is at fault, and ends the run; a request that cannot be placed is a [Reject], not an error.
type Policy interface {
	Pick(r *Request, v *View) (Decision, error)
}

// A Request is a request as a policy sees it.
type Request struct {
	*load.Request
	// PromptTokens is the prompt's length: exact, or by the rule of load.TextBytesPerToken where only the
	// server can know it.
	PromptTokens int
	// Predicted is how many output tokens are expected; 0 unless the policy asks for it, see [Needs].
	Predicted int
	// Key is the prompt's key; nil unless the policy asks for it, see [Needs].
	Key *load.Key
	// Text is what the real routers match prefixes on: the text, or the contents of the messages one behind
	// the other. It is empty unless the policy asks for it, see [Needs], and where the prompt is given as
	// tokens.
	Text string
	// Attempt counts how often the request is dispatched, from 1. It stays 1 unless the host was asked for
	// retries.
	Attempt int
	// Tried lists the slots to which the attempts before this one went.
	Tried []int
	// Waited is the time since the request, or its present attempt, came to the dispatcher.
	Waited time.Duration
}

// Needs says what a policy has to be given to decide as it means to. The zero value needs nothing.
type Needs struct {
	Samples     bool // the workers' own load samples, Worker.Sample
	Keys        bool // Request.Key
	Text        bool // Request.Text
	Chunks      bool // calls of [ChunkObserver]
	Predictions bool // Request.Predicted
}

// A Needer is a policy that says what it needs. A host that cannot give it refuses the policy before the run,
// and what is not asked for need not be given.
type Needer interface {
	Needs() Needs
}

// NeedsOf returns what p needs: nothing, if it does not say.
func NeedsOf(p Policy) Needs {
	if n, ok := p.(Needer); ok {
		return n.Needs()
	}
	return Needs{}
}

// An Orderer is a policy that says in which order requests wait: a goes before b. Among requests of which
// neither goes before the other, the one that arrived first does. The order of two requests must not change
// while they wait. With a batching strategy, which has an order of its own, such a policy is refused.
type Orderer interface {
	Less(a, b *Request) bool
}

// A BatchPicker is a policy that looks at all requests of a batch. Without this method [Policy].Pick is asked
// about the first, and all go where it says. The rules of Pick hold.
type BatchPicker interface {
	PickBatch(batch []*Request, v *View) (Decision, error)
}

// Feedback says of a request on its worker when something happened, and where.
type Feedback struct {
	Now     time.Duration // an offset from the run's start
	Worker  int           // slot
	Prefill int           // slot of the prefill worker, if Worker only decodes; else 0
	Attempt int           // see Request.Attempt
	Stage   Stage         // in which the request was
}

// A Stage is a part of a request's way that a worker of its own carries out where prefill and decode are
// apart.
type Stage uint8

// The stages. The zero value is that of a request that one worker carries out alone.
const (
	StageWhole   Stage = iota
	StagePrefill       // on the prefill worker, before the first token
	StageDecode        // on the decode worker, from the first token on
)

// A DispatchObserver is a policy that is told when a request leaves for a worker, after each [Dispatch]. For
// each such call there is exactly one of Done, whatever happens to the request: it may be refused, aborted,
// cancelled or tried again.
type DispatchObserver interface {
	Dispatched(r *Request, f Feedback)
}

// A FirstTokenObserver is a policy that is told when the first token of an answer has come.
type FirstTokenObserver interface {
	FirstToken(r *Request, f Feedback)
}

// A ChunkObserver is a policy that is told when output tokens have come, the first ones included. Only a
// policy that [Needs] chunks is.
type ChunkObserver interface {
	Chunk(r *Request, f Feedback, tokens int)
}

// A DoneObserver is a policy that is told how each dispatched attempt ended, well or not; res.OK tells. It
// must not keep r or res, or modify them.
type DoneObserver interface {
	Done(r *Request, f Feedback, res *load.Result)
}

// A SampleObserver is a policy that is told when new load samples are in the view.
type SampleObserver interface {
	Sampled(v *View)
}

// A FleetObserver is a policy that is told when workers have come, gone, changed their state or their facts,
// or begun a new epoch. The first call is before the first request.
type FleetObserver interface {
	FleetChanged(v *View)
}

// A Verdict is what a [Decision] does with the request. The zero value is not a verdict.
type Verdict uint8

// The verdicts.
const (
	VerdictDispatch Verdict = iota + 1 // to Decision.Worker, at once
	VerdictHold                        // keep it and ask again
	VerdictReject                      // turn it away
)

// String returns the verdict's name: dispatch, hold or reject.
func (v Verdict) String() string {
	switch v {
	case VerdictDispatch:
		return "dispatch"
	case VerdictHold:
		return "hold"
	case VerdictReject:
		return "reject"
	}
	return "no verdict"
}

// A Decision is the answer of [Policy].Pick. Make one with [Dispatch], [DispatchPair], [Hold] or [Reject]:
// the zero value decides nothing and is a fault of the policy.
type Decision struct {
	Verdict Verdict
	// Worker is the slot to dispatch to, and Prefill that of the worker which computes the prompt, if Worker
	// only decodes.
	Worker, Prefill int
	// Wake says when a request that is held is asked about again.
	Wake Wake
	// Status and RetryAfter belong to a rejection: an HTTP status, 0 for 503, and when a client may try
	// again; 0: no word of it.
	Status     int
	RetryAfter time.Duration
	// Reason says why, in a few words. That of a rejection becomes the result's message; that of a dispatch
	// is recorded with the result and may be empty. A constant string costs nothing.
	Reason string
}

// Dispatch sends the request to a worker, by its slot. It should be one that is open, but one that is down
// may be tried, and one that is full is waited for. Slot 0 stands for none: the request is rejected with
// status 503.
func Dispatch(slot int) Decision {
	if slot == 0 {
		return Reject("no worker is open")
	}
	return Decision{Verdict: VerdictDispatch, Worker: slot}
}

// DispatchPair sends the request to a prefill and a decode worker.
func DispatchPair(prefill, decode int) Decision {
	return Decision{Verdict: VerdictDispatch, Worker: decode, Prefill: prefill}
}

// Hold keeps the request back until w.
func Hold(w Wake) Decision { return Decision{Verdict: VerdictHold, Wake: w} }

// Reject turns the request away with status 503: it fails with load.OutcomeRejected.
func Reject(reason string) Decision { return Decision{Verdict: VerdictReject, Reason: reason} }

// Events is a set of events that a held request can wait for.
type Events uint8

// The events.
const (
	Arrival Events = 1 << iota // another request has come to the dispatcher
	Freed                      // a request has ended on a worker, well or not
	Sample                     // load samples have come
	Fleet                      // a worker has come, gone, or changed its state, facts or limit
)

// A Wake says when a held request is asked about again: after the next event of On, or at the time At,
// whichever is first. At least one must be given.
//
// After an event the dispatcher asks, in the order of the queue, about those requests only that wait for it,
// and stops at the first that is held again for the same events: so a queue of thousands costs no more than
// what can leave. A policy whose answer depends on the request, so that a later one may go where an earlier
// one may not, should name different workers.
type Wake struct {
	On Events
	// Worker restricts Freed, Sample and Fleet to those of one worker, by its slot; 0: of any. An arrival is
	// nobody's.
	Worker int
	// At is a moment on the view's clock, > View.Now; 0: none.
	At time.Duration
}
