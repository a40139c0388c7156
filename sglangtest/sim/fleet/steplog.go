package fleet

import (
	"sort"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// tokenBytes is the length of a token's text in a simulated answer, as the real-time host has it.
const tokenBytes = 5

const blockEntries = 256

// A stepLog lists when the results were processed that brought requests a token after their first. Its blocks are
// linked forward only and flights point to the block in which they begin, so the garbage collector drops what no
// flight needs any more.
type stepLog struct {
	block   *block // the one being written, never full
	entries int    // of all blocks ever
	encode  bool   // the chunks of blocks are wanted
}

// A block is a part of the log. Its entries are encoded as chunks too, so that the chunks of an answer are copied
// and not encoded once more for each request.
type block struct {
	start  int // number of the first entry
	times  []time.Duration
	ends   [blockEntries]int32 // length of the encoding up to and with each entry
	chunks load.Chunks         // one token each, at the time when the client reads it
	next   *block
}

func newStepLog(encode bool) stepLog { return stepLog{block: newBlock(0), encode: encode} }

func newBlock(start int) *block {
	return &block{start: start, times: make([]time.Duration, 0, blockEntries)}
}

// add appends an entry and returns its number. egress is the way from the engine to the client.
func (l *stepLog) add(at, egress time.Duration) int {
	b := l.block
	if l.encode {
		b.chunks.Append(load.Chunk{At: at + egress, Tokens: 1, TextBytes: tokenBytes})
		b.ends[len(b.times)] = int32(len(b.chunks.Encoded()))
	}
	b.times = append(b.times, at)
	l.entries++
	if len(b.times) == blockEntries {
		l.block = newBlock(l.entries)
		b.next = l.block
	}
	return l.entries - 1
}

// A span is a run of entries that brought tokens to one flight.
type span struct {
	block *block // holds the first entry
	start int    // number of the first entry
	n     int    // entries; set when the span is closed
}

// open returns a span of the next entry and those after it.
func (l *stepLog) open() span { return span{block: l.block, start: l.entries} }

// parts calls f with the pieces of the first n entries that lie in one block each, from index i to j of b.
func (s span) parts(n int, f func(b *block, i, j int)) {
	i := s.start - s.block.start
	for b := s.block; n > 0; b = b.next {
		j := min(len(b.times), i+n)
		f(b, i, j)
		n -= j - i
		i = 0
	}
}

// until returns how many of the span's entries are not after t, and the last one's time.
func (s span) until(t time.Duration) (n int, last time.Duration) {
	s.parts(s.n, func(b *block, i, j int) {
		k := j
		if b.times[j-1] > t {
			k = i + sort.Search(j-i, func(x int) bool { return b.times[i+x] > t })
		}
		if k > i {
			n, last = n+k-i, b.times[k-1]
		}
	})
	return n, last
}

// appendTo appends the first n entries, of a log that encodes, as chunks.
func (s span) appendTo(c *load.Chunks, n int, egress time.Duration) {
	s.parts(n, func(b *block, i, j int) {
		// The first gap counts from a token that is not this flight's.
		c.Append(load.Chunk{At: b.times[i] + egress, Tokens: 1, TextBytes: tokenBytes})
		if j-i > 1 {
			c.AppendEncoded(b.chunks.Encoded()[b.ends[i]:b.ends[j-1]], j-i-1, b.times[j-1]+egress)
		}
	})
}
