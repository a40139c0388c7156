package fleet

import (
	"time"

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
	prompt  int // tokens of the prompt by the server's count
	due     time.Duration
	hold    time.Duration // until when the policy holds it at the latest; 0: until an event

	seen       bool // the client has its first token
	ended      bool // it has been recorded
	worker     *worker
	prev       *flight // in worker's list
	nextFlight *flight
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
