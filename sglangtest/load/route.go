package load

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Target is one place that requests can be sent to.
type Target struct {
	URL  string // base URL, such as "http://127.0.0.1:30000"
	Name string // goes into Result.Worker if the server does not name itself
}

// A RejectedError says that a request was turned away on the client's side, by admission control or by a
// policy: its outcome is [OutcomeRejected].
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

// A Route decides where each request goes, and may let it wait. Package dispatch has one. It is called from
// many goroutines at once. See [WithRoute].
type Route interface {
	// Targets returns all places that requests can be sent to.
	Targets() []Target
	// Place returns when the request may leave, with the place to which it goes, or an error: a
	// [*RejectedError], the cause of ctx's end, or a fault of the route itself, which ends the run. Due of
	// the Placement counts with an error too. Requests that are due at about the same time may come in any
	// order. For another attempt it is called again with the same r.
	Place(ctx context.Context, clock Clock, r *Request) (Placement, error)
}

// A Placement is where a request goes, and what the route wants to know of it.
type Placement struct {
	Target  Target
	Prefill Target // of prefill, if Target only decodes; else zero
	// Due is the moment at which the wait ended, an offset from the run's start: that of the event that freed
	// the request. Until then nobody blames the client. 0: it did not have to wait.
	Due time.Duration
	// At is when it was placed, and Note by whom and why.
	At   time.Duration
	Note *RouteNote
	// FirstToken and Chunk are told of output tokens; nil: nobody wants to know. Chunk gets the first tokens
	// too.
	FirstToken func(at time.Duration)
	Chunk      func(at time.Duration, tokens int)
	// Done must be called exactly once, when the request has ended, well or not. True: the route wants
	// another attempt, so Place is to be called again with the same request.
	Done func(res *Result) (again bool)
}

// tokens tells the route of n output tokens, of which the first have come if first is true.
func (p *Placement) tokens(at time.Duration, n int, first bool) {
	if first && p.FirstToken != nil {
		p.FirstToken(at)
	}
	if n > 0 && p.Chunk != nil {
		p.Chunk(at, n)
	}
}

// A RouteNote says by whom a request was placed and why. It may be shared by results and must not be
// modified.
type RouteNote struct {
	By      string // the policy, such as "policy.RoundRobin"
	Reason  string // the policy's; may be empty
	Attempt int    // counted from 1
}

// A TargetDoer is a [Doer] that sends each request to the target that it is told. [Sender] is one; it takes
// targets if it was made with [NewRoutedSender]. If it is a [Preparer] too, what Prepare returns must be a
// TargetDoer.
type TargetDoer interface {
	Doer
	// CheckTarget reports why nothing could be sent to t.
	CheckTarget(t Target) error
	// DoTo is Do with a target: p.Target. It calls p.FirstToken and p.Chunk, if they are set, as tokens come,
	// and never p.Done.
	DoTo(ctx context.Context, clock Clock, p *Placement, req *Request, res *Result)
}

// placed carries out a request that goes through the route, with all its attempts.
func (j *job) placed(p *pending, due time.Duration, res *Result) {
	do, _ := p.ready.(TargetDoer)
	for {
		if do == nil {
			do = j.do.(TargetDoer)
		}
		pl, err := j.route.Place(j.ctx, j.clock, &p.Request)
		due = max(due, pl.Due)
		p.blank(due, res)
		if err != nil {
			j.unplaced(res, err)
			return
		}
		res.Routed, res.Route = pl.At, pl.Note
		do.DoTo(j.ctx, j.clock, &pl, &p.Request, res)
		j.check(&p.Request, due, res)
		if !pl.Done(res) {
			return
		}
		do = nil // what was prepared has been used
	}
}

// unplaced ends a request that the route gave no place.
func (j *job) unplaced(res *Result, err error) {
	res.CachedTokens, res.Retractions = NotReported, NotReported
	res.Released = j.clock.Now()
	res.complete(res.Released)
	var rejected *RejectedError
	switch {
	case errors.As(err, &rejected):
		res.fail(OutcomeRejected, rejected.Reason)
	case j.ctx.Err() != nil:
		res.fail(OutcomeCancelled, context.Cause(j.ctx).Error())
	default:
		res.fail(OutcomeCancelled, err.Error())
		j.end(err)
	}
}
