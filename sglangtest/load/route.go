package load

import (
	"context"
	"fmt"
	"time"
)

// A Target is one place that requests can be sent to.
type Target struct {
	URL  string // base URL, such as "http://127.0.0.1:30000"
	Name string // goes into Result.Worker if the server does not name itself
}

// A RejectedError says that a request was turned away on the client's side, by admission control or by a policy: its outcome is
// [OutcomeRejected].
type RejectedError struct {
	Status     int           // HTTP status that a router would answer with, such as 429 or 503
	RetryAfter time.Duration // when another try makes sense; 0: not said
	Reason     string
}

// Error returns the reason, the status and the time to wait.
func (e *RejectedError) Error() string {
	s := fmt.Sprintf("%s (rejected with status %d", e.Reason, e.Status)
	if e.RetryAfter > 0 {
		s += fmt.Sprintf(", retry after %v", e.RetryAfter)
	}
	return s + ")"
}

// A Route decides where each request goes, and may let it wait. Package dispatch has one. It is called from many goroutines at
// once.
type Route interface {
	// Place returns when the request may leave, with the place to which it goes, or an error: a [*RejectedError], the cause of
	// ctx's end, or a fault of the route itself, which ends the run. Requests are placed in order of their arrival, as far as
	// they come one after the other.
	Place(ctx context.Context, clock Clock, r *Request) (Placement, error)
}

// A Placement is where a request goes, and what the route wants to know of it.
type Placement struct {
	Target  Target
	Prefill Target // of prefill, if Target only decodes; else zero
	Attempt int    // from 1
	// Due is the moment at which the wait ended, an offset from the run's start: that of the event that freed the request, for which the client
	// is not to blame. 0: it did not have to wait.
	Due    time.Duration
	Reason string // why it goes there; may be empty
	// FirstToken and Chunk are told of output tokens; nil: nobody wants to know. Chunk gets the first tokens too.
	FirstToken func(at time.Duration)
	Chunk      func(at time.Duration, tokens int)
	// Done must be called exactly once, when the request has ended, well or not. True: the route wants another attempt, so Place is to be called
	// again with the same request.
	Done func(res *Result) (again bool)
}
