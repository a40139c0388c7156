package fleet

import (
	"sort"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// tokenBytes is the length of a token's text in a simulated answer, as the real-time host has it.
const tokenBytes = 5

const blockSteps = 256

// A stepLog lists when the result of each decode step of an engine was processed. Its blocks are linked forward only
// and flights point to the block in which they begin, so the garbage collector drops what no flight needs any more.
type stepLog struct {
	block  *block // the one being written, never full
	steps  int    // in all blocks ever
	encode bool   // the chunks of blocks are wanted
}

// A block is a part of the log. Its steps are encoded as chunks too, so that the chunks of an answer are copied and not
// encoded once more for each request.
type block struct {
	next   *block
	chunks load.Chunks // one token each, at the time when the client reads it
	start  int         // decode steps before it
	n      int         // decode steps in it
	times  [blockSteps]time.Duration
	ends   [blockSteps]uint16 // length of the encoding up to and with each step
}

// chunkBytes is the length of an encoded token: four bytes for a gap of 2 to 268 ms and one for the counts.
const chunkBytes = 5

func newStepLog(encode bool) stepLog {
	l := stepLog{encode: encode}
	l.extend()
	return l
}

// extend makes the block for the next steps.
func (l *stepLog) extend() {
	b := &block{start: l.steps}
	if l.encode {
		var err error
		if b.chunks, err = load.ChunksFrom(make([]byte, 0, blockSteps*chunkBytes)); err != nil {
			panic(err)
		}
	}
	if l.block != nil {
		l.block.next = b
	}
	l.block = b
}

// add appends a step. egress is the way from the engine to the client.
func (l *stepLog) add(at, egress time.Duration) {
	b := l.block
	if l.encode {
		b.chunks.Append(load.Chunk{At: at + egress, Tokens: 1, TextBytes: tokenBytes})
		b.ends[b.n] = uint16(len(b.chunks.Encoded()))
	}
	b.times[b.n] = at
	b.n++
	l.steps++
	if b.n == blockSteps {
		l.extend()
	}
}

// A stretch is what one flight gets between two retractions: a token from a prefill, then one from each decode step.
type stretch struct {
	at    time.Duration // of the prefill's result
	block *block        // of the log, holds the first of the decode steps
	start int           // decode steps before that
	n     int           // decode steps
}

// fill adds to res what had reached the client by the given time.
func (s *stretch) fill(res *load.Result, by, egress time.Duration, times bool) {
	if s.at+egress > by {
		return
	}
	if res.OutputTokens == 0 {
		res.FirstToken, res.FirstTokens = s.at+egress, 1
	}
	res.LastToken = s.at + egress
	res.OutputTokens++
	if times {
		res.Chunks.Append(load.Chunk{At: res.LastToken, Tokens: 1, TextBytes: tokenBytes})
	}
	i := s.start - s.block.start
	for b, n := s.block, s.n; n > 0; b, i = b.next, 0 {
		end := min(b.n, i+n)
		j := end
		if b.times[end-1]+egress > by {
			j = i + sort.Search(end-i, func(k int) bool { return b.times[i+k]+egress > by })
		}
		if j == i {
			return
		}
		res.LastToken = b.times[j-1] + egress
		res.OutputTokens += j - i
		if times {
			b.appendTo(&res.Chunks, i, j, egress)
		}
		if j < end {
			return
		}
		n -= end - i
	}
}

// appendTo appends the steps from i to before j, of a log that encodes, as chunks.
func (b *block) appendTo(c *load.Chunks, i, j int, egress time.Duration) {
	// The first gap counts from a token that may not be this flight's.
	c.Append(load.Chunk{At: b.times[i] + egress, Tokens: 1, TextBytes: tokenBytes})
	if j-i > 1 {
		c.AppendEncoded(b.chunks.Encoded()[b.ends[i]:b.ends[j-1]], j-i-1, b.times[j-1]+egress)
	}
}
