package fleet

import (
	"time"

	"github.com/sglangtest/harness/sglangtest/dispatch"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// A flight is one request from its arrival to its end.
type flight struct {
	tokens  int           // that the engine has reported, those of the stretches
	firstAt time.Duration // when the engine had its first token
	stretch stretch       // the last one
	before  []stretch     // those before it, one for each retraction that came after a token

	request sim.Request
	load    load.Request
	ticket  dispatch.Ticket
	due     time.Duration
	note    *load.RouteNote

	ended      bool    // it has been recorded, or is tried again as another flight
	short      bool    // the engine's sizes cut its answer short
	worker     *worker // nil until it was dispatched
	prev, next *flight // in a flights
}

func newFlight(r load.Request) *flight {
	f := &flight{load: r}
	f.ticket.Request.PromptTokens = r.Prompt.CountTokens()
	f.own()
	return f
}

// own makes the ticket that of f.
func (f *flight) own() { f.ticket.Owner, f.ticket.Request.Request = f, &f.load }

// prompt returns the tokens of the prompt by the server's count.
func (f *flight) prompt() int { return f.ticket.Request.PromptTokens }

// flights is a list of flights, each of which is in one at most.
type flights struct{ first, last *flight }

func (l *flights) push(f *flight) {
	if f.prev = l.last; f.prev != nil {
		f.prev.next = f
	} else {
		l.first = f
	}
	l.last = f
}

func (l *flights) remove(f *flight) {
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		l.first = f.next
	}
	if f.next != nil {
		f.next.prev = f.prev
	} else {
		l.last = f.prev
	}
	f.prev, f.next = nil, nil
}

func (l *flights) all() (fs []*flight) {
	for f := l.first; f != nil; f = f.next {
		fs = append(fs, f)
	}
	return fs
}

// prefilled notes a token that a prefill made, when its result has been processed and the log is up to date.
func (f *flight) prefilled(at time.Duration, log *stepLog) {
	if f.tokens == 0 {
		f.firstAt = at
	} else {
		f.before = append(f.before, f.stretch)
	}
	f.stretch = stretch{at: at, block: log.block, start: log.steps}
	f.tokens++
}

// decoded notes the tokens of the n decode steps up to and with number last.
func (f *flight) decoded(n int, last int64) {
	if f.stretch.n += n; int64(f.stretch.start+f.stretch.n) != last {
		panic("fleet: decode steps went by without a token for a request that was not taken back")
	}
	f.tokens += n
}

// fill sets what the client has got of the answer by the given time, with the chunks if times is true. All tokens
// that the engine has made must have been noted.
func (f *flight) fill(res *load.Result, by time.Duration, times bool) {
	for _, s := range f.before {
		s.fill(res, by, f.worker.Profile.Egress, times)
	}
	if f.tokens > 0 {
		f.stretch.fill(res, by, f.worker.Profile.Egress, times)
	}
}
