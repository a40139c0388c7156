package fleet

import (
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// A flight is one request from its arrival to its end.
type flight struct {
	// Every token touches the first two.
	next    int           // number of the log entry that brings its next token, unless a step leaves it out
	firstAt time.Duration // when the engine had its first token
	began   bool          // it has a first token
	span    span          // its tokens after the first, or after the last gap, open
	spans   []span        // before that, if a step left it out

	request sim.Request
	load    load.Request
	prompt  int // tokens of the prompt by the server's count
	due     time.Duration
	hold    time.Duration // until when the policy holds it at the latest; 0: until an event

	seen       bool // the client has its first token
	ended      bool // it has been recorded
	worker     *worker
	prev       *flight // in worker's list
	nextFlight *flight
}

// promptTokens counts a prompt as the simulated server does (see sim.Server).
func promptTokens(p *load.Prompt) int {
	if n := p.Tokens(); n > 0 {
		return n
	}
	n := sim.TextTokens(p.Text)
	for _, m := range p.Messages {
		n += sim.TextTokens(m.Content) + messageTokens
	}
	return max(1, n)
}

// messageTokens is what the real-time host adds for each message.
const messageTokens = 4

// noEntry is flight.next while the only token is the first.
const noEntry = -1

// left begins a span anew, with the entry added last, because the flight has had its first token only or because
// entries went by without a token for it: it was retracted, or steps were made for others alone.
func (f *flight) left(open span) {
	f.close()
	f.span = open
}

// close ends the open span.
func (f *flight) close() {
	if f.span.n = f.next - f.span.start; f.span.block != nil && f.span.n > 0 {
		f.spans = append(f.spans, f.span)
	}
}

// fill sets what the client has got of the answer by the given time, with the chunks if times is true. The open span
// must have been closed.
func (f *flight) fill(res *load.Result, by time.Duration, times bool) {
	egress := f.worker.Profile.Egress
	if !f.began || f.firstAt+egress > by {
		return
	}
	res.FirstToken = f.firstAt + egress
	res.LastToken, res.OutputTokens = res.FirstToken, 1
	if times {
		res.Chunks.Append(load.Chunk{At: res.FirstToken, Tokens: 1, TextBytes: tokenBytes})
	}
	for _, s := range f.spans {
		n, last := s.until(by - egress)
		if n == 0 {
			return
		}
		if times {
			s.appendTo(&res.Chunks, n, egress)
		}
		res.OutputTokens += n
		res.LastToken = last + egress
	}
}
