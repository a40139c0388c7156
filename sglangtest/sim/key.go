package sim

import (
	"hash/fnv"
	"slices"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A run is a stretch of a token sequence: n tokens by value, or positions off to off+n of a named stream. Tokens of
// one stream are equal where their positions are equal; tokens of different spaces or streams never are. So a prompt
// of 100,000 tokens is compared in as many operations as it has runs.
type run struct {
	ids    []int32 // the tokens, if the space is byValue; its length is n
	stream uint64
	off    int
	n      int
	space  space
}

// A space keeps streams of different origin apart.
type space uint8

const (
	named   space = iota // a stream that the caller named: load.Segment, Request.OutputStream
	byValue              // token ids
	private              // a prompt or an output that nothing else can equal; the stream is the engine's count
	hashed               // a text or chat prompt; the stream is its hash
)

// appendRun adds b to the runs and joins it to the last one if it goes on where that ends, so that equal tokens
// make equal runs however they were cut.
func appendRun(runs []run, b run) []run {
	if b.n == 0 {
		return runs
	}
	if k := len(runs) - 1; k >= 0 && b.space != byValue {
		if a := &runs[k]; a.space == b.space && a.stream == b.stream && a.off+a.n == b.off {
			a.n += b.n
			return runs
		}
	}
	return append(runs, b)
}

// cut returns the part from..to of the run.
func (a run) cut(from, to int) run {
	if a.space == byValue {
		a.ids = a.ids[from:to]
	} else {
		a.off += from
	}
	a.n = to - from
	return a
}

// promptRuns appends the runs of a prompt of n tokens. A text or a chat is one run named by its hash: two of them
// share a prefix only if they are equal as a whole. A zero prompt equals no other.
func promptRuns(runs []run, p load.Prompt, n int, unique uint64) []run {
	switch {
	case len(p.Segments) > 0:
		runs = slices.Grow(runs, len(p.Segments))
		for _, s := range p.Segments {
			runs = appendRun(runs, run{stream: s.Stream, off: s.Offset, n: s.Length})
		}
		return runs
	case len(p.TokenIDs) > 0:
		return append(runs, run{space: byValue, ids: p.TokenIDs, n: len(p.TokenIDs)})
	case p.Text != "":
		h := fnv.New64a()
		h.Write([]byte(p.Text))
		return append(runs, run{space: hashed, stream: h.Sum64(), n: n})
	case len(p.Messages) > 0:
		h := fnv.New64a()
		for _, m := range p.Messages {
			h.Write([]byte(m.Role))
			h.Write([]byte{0})
			h.Write([]byte(m.Content))
			h.Write([]byte{0})
		}
		return append(runs, run{space: hashed, stream: ^h.Sum64(), n: n})
	}
	return append(runs, run{space: private, stream: unique, n: n})
}

// A cursor is a place in a sequence of runs, with the number of tokens that follow.
type cursor struct {
	runs []run // the rest, the current run first
	at   int   // tokens of the current run that are behind
	left int
}

func (c *cursor) skip(n int) {
	c.left -= n
	for n > 0 {
		if k := c.runs[0].n - c.at; n < k {
			c.at += n
			return
		} else {
			n -= k
			c.runs, c.at = c.runs[1:], 0
		}
	}
}

// take appends the next n tokens to dst, without moving.
func (c *cursor) take(dst []run, n int) []run {
	at := c.at
	for i := 0; n > 0; i++ {
		k := min(n, c.runs[i].n-at)
		dst = append(dst, c.runs[i].cut(at, at+k))
		n -= k
		at = 0
	}
	return dst
}

// common returns how many tokens the runs of a node, n in all, share with what follows the cursor.
func (c *cursor) common(key []run, n int) int {
	n = min(n, c.left)
	i, j, ai, aj, done := 0, 0, c.at, 0, 0
	for done < n {
		a, b := &c.runs[i], &key[j]
		k := min(n-done, a.n-ai, b.n-aj)
		if a.space != b.space {
			return done
		}
		if a.space == byValue {
			x, y := a.ids[ai:ai+k], b.ids[aj:aj+k]
			for t := range x {
				if x[t] != y[t] {
					return done + t
				}
			}
		} else if a.stream != b.stream || a.off+ai != b.off+aj {
			return done
		}
		done += k
		if ai += k; ai == a.n {
			i, ai = i+1, 0
		}
		if aj += k; aj == b.n {
			j, aj = j+1, 0
		}
	}
	return done
}

const golden64 = 0x9e3779b97f4a7c15

func mix(h, v uint64) uint64 {
	h = (h ^ v) * golden64
	return h ^ h>>29
}

// hash is the identity of the next n tokens below a node: equal tokens have equal hashes however they are cut.
func (c *cursor) hash(h uint64, n int) uint64 {
	at := c.at
	for i := 0; n > 0; i++ {
		a := &c.runs[i]
		k := min(n, a.n-at)
		if a.space == byValue {
			for _, id := range a.ids[at : at+k] {
				h = mix(h, uint64(uint32(id))<<8|uint64(byValue))
			}
		} else {
			h = mix(mix(mix(h, a.stream), uint64(a.off+at)<<8|uint64(a.space)), uint64(k))
		}
		n -= k
		at = 0
	}
	return h
}
