package load

// A TokenRun is a stretch of a token sequence: tokens by value, or positions of a named stream. Tokens of one
// stream are equal where their positions are; tokens of different kinds or streams never are. So a prompt of
// 100,000 tokens is compared in as many operations as it has runs. Make sequences with the methods of [Runs].
// The zero value is a run of no tokens.
type TokenRun struct {
	ids    []int32 // the tokens, if the space is byValue; its length is n
	stream uint64
	off    int
	n      int
	space  space
}

// Len returns the length of the run in tokens.
func (r *TokenRun) Len() int { return r.n }

// A space keeps streams of different origin apart.
type space uint8

const (
	named   space = iota // a stream that the caller named: Segment
	byValue              // token ids
	private              // what nothing else can equal, unless it has the same name
	hashed               // a block of a text or chat prompt; the stream is the hash of all up to its end
)

// cut returns the part from..to of the run.
func (r TokenRun) cut(from, to int) TokenRun {
	if r.space == byValue {
		r.ids = r.ids[from:to]
	} else {
		r.off += from
	}
	r.n = to - from
	return r
}

// Runs is a sequence of tokens, written as runs. It holds the ids that it was given, which must not be
// changed.
type Runs []TokenRun

// Len returns the length of the sequence in tokens.
func (rs Runs) Len() int {
	n := 0
	for i := range rs {
		n += rs[i].n
	}
	return n
}

// add joins r to the last run if it goes on where that ends, so that equal tokens make equal runs however
// they were cut.
func (rs Runs) add(r TokenRun) Runs {
	if r.n == 0 {
		return rs
	}
	if k := len(rs) - 1; k >= 0 && r.space != byValue {
		if a := &rs[k]; a.space == r.space && a.stream == r.stream && a.off+a.n == r.off {
			a.n += r.n
			return rs
		}
	}
	return append(rs, r)
}

// AppendIDs appends tokens by value.
func (rs Runs) AppendIDs(ids []int32) Runs {
	return rs.add(TokenRun{space: byValue, ids: ids, n: len(ids)})
}

// AppendSegment appends the tokens that s names; its Length may be 0.
func (rs Runs) AppendSegment(s Segment) Runs {
	if s.Answer {
		s.Stream = AnswerStream(int(s.Stream))
	}
	return rs.add(TokenRun{stream: s.Stream, off: s.Offset, n: s.Length})
}

// AppendPrivate appends n tokens, from position off on, of a sequence that equals no prompt: only runs
// appended with the same id.
func (rs Runs) AppendPrivate(id uint64, off, n int) Runs {
	return rs.add(TokenRun{space: private, stream: id, off: off, n: n})
}

// A RunCursor is a place in a sequence of runs. It is what a tree of prefixes is walked with.
type RunCursor struct {
	runs Runs // the rest, the current run first
	at   int  // tokens of the current run that are behind
	left int
}

// Cursor returns a cursor at the beginning of the first limit tokens; limit must be at most the length.
func (rs Runs) Cursor(limit int) RunCursor { return RunCursor{runs: rs, left: limit} }

// Left returns how many tokens follow, up to the cursor's limit.
func (c *RunCursor) Left() int { return c.left }

// Skip moves over the next n tokens, n ≤ Left.
func (c *RunCursor) Skip(n int) {
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

// Take appends the next n tokens to dst, n ≤ Left, without moving. dst may share its memory with what is
// already behind the cursor.
func (c *RunCursor) Take(dst Runs, n int) Runs {
	at := c.at
	for i := 0; n > 0; i++ {
		k := min(n, c.runs[i].n-at)
		dst = append(dst, c.runs[i].cut(at, at+k))
		n -= k
		at = 0
	}
	return dst
}

// Common returns how many tokens key, which has n in all, shares with what follows the cursor.
func (c *RunCursor) Common(key Runs, n int) int {
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

// Hash adds the next n tokens, n ≤ Left, to the hash h, without moving: equal tokens have equal hashes
// however they are cut into runs. The values may differ between versions of this package.
func (c *RunCursor) Hash(h uint64, n int) uint64 {
	at := c.at
	for i := 0; n > 0; i++ {
		a := &c.runs[i]
		k := min(n, a.n-at)
		if a.space == byValue {
			for _, id := range a.ids[at : at+k] {
				h = addHash(h, uint64(uint32(id))<<8|uint64(byValue))
			}
		} else {
			h = addHash(addHash(addHash(h, a.stream), uint64(a.off+at)<<8|uint64(a.space)), uint64(k)<<8|uint64(a.space))
		}
		n -= k
		at = 0
	}
	return h
}

func addHash(h, v uint64) uint64 {
	h = (h ^ v + 0x8cb92ba72f3d8dd7) * 0x9e3779b97f4a7c15 // a zero must change a zero
	return h ^ h>>29
}
