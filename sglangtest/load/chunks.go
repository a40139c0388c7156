package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
)

// A Chunk is one event of a streamed answer that carried output.
type Chunk struct {
	// At is when the read that returned the event came back, an offset from the run's start.
	// Events that one read returned together have the same At.
	At time.Duration
	// Tokens is the number of output tokens that the event added, by the server's own count. It is 0 if the
	// server did not say (OpenAI routes without usage on each chunk) or if the event added none.
	Tokens int
	// TextBytes is the number of bytes of text that the event added: of decoded text if the sender keeps
	// texts, otherwise as it stands in the JSON. It is 0 if and only if the event added no text.
	TextBytes int
}

// Chunks is a compact, append-only list of chunks: about five bytes for each. The zero value is empty.
// It holds a slice; copies share it, so only one copy may be appended to. Reading is safe for concurrent use.
type Chunks struct {
	enc  []byte
	n    int
	last time.Duration
	bad  bool // something was appended that is no chunk
}

// maxTextBytes bounds the text of one chunk, so that its length and the two bits beside it fit the encoding.
const maxTextBytes = 1 << 60

// Append adds a chunk. Its At must not be before that of the chunk appended last, and its counts must not be negative, nor that
// of its tokens above [MaxTokens]. A chunk that is not so is left out, and [Result.Check] reports it: what a server sends
// must not end the program that measures it.
func (c *Chunks) Append(ch Chunk) {
	if ch.At < c.last || !ch.plausible() {
		c.bad = true
		return
	}
	// Gap in ns, then the text length with two low bits for the token count; 3 means that the count follows.
	c.enc = binary.AppendUvarint(c.enc, uint64(ch.At-c.last))
	code := uint64(min(ch.Tokens, 3))
	c.enc = binary.AppendUvarint(c.enc, uint64(ch.TextBytes)<<2|code)
	if code == 3 {
		c.enc = binary.AppendUvarint(c.enc, uint64(ch.Tokens))
	}
	c.last = ch.At
	c.n++
}

func (ch Chunk) plausible() bool {
	return ch.Tokens >= 0 && ch.Tokens <= MaxTokens && ch.TextBytes >= 0 && ch.TextBytes <= maxTextBytes
}

// Len returns the number of chunks.
func (c Chunks) Len() int { return c.n }

// All iterates over the chunks in order.
func (c Chunks) All() iter.Seq[Chunk] {
	return func(yield func(Chunk) bool) {
		var at time.Duration
		for b := c.enc; len(b) > 0; {
			ch, rest, ok := decodeChunk(b, at)
			if !ok {
				panic("load: damaged chunk list") // ChunksFrom has checked what came from outside
			}
			if !yield(ch) {
				return
			}
			at, b = ch.At, rest
		}
	}
}

func decodeChunk(b []byte, at time.Duration) (ch Chunk, rest []byte, ok bool) {
	gap, n := binary.Uvarint(b)
	if n <= 0 {
		return ch, nil, false
	}
	b = b[n:]
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return ch, nil, false
	}
	b = b[n:]
	tokens := v & 3
	if tokens == 3 {
		if tokens, n = binary.Uvarint(b); n <= 0 {
			return ch, nil, false
		}
		b = b[n:]
	}
	return Chunk{At: at + time.Duration(gap), Tokens: int(tokens), TextBytes: int(v >> 2)}, b, true
}

// Clone returns a copy that shares nothing with c.
func (c Chunks) Clone() Chunks {
	c.enc = slices.Clone(c.enc)
	return c
}

// Encoded returns the internal encoding, for a recorder that copies it. It must not be modified.
func (c Chunks) Encoded() []byte { return c.enc }

// ChunksFrom returns the list that enc, the result of [Chunks.Encoded], describes. It keeps enc.
func ChunksFrom(enc []byte) (Chunks, error) {
	c := Chunks{enc: enc}
	for b := enc; len(b) > 0; {
		ch, rest, ok := decodeChunk(b, c.last)
		if !ok || ch.At < c.last || !ch.plausible() {
			return Chunks{}, errors.New("load: damaged chunk list")
		}
		c.last, b = ch.At, rest
		c.n++
	}
	return c, nil
}

// Reset empties the list and keeps its memory for reuse. Copies of the list become invalid.
func (c *Chunks) Reset() { *c = Chunks{enc: c.enc[:0]} }

// check reports what of the list cannot be in an answer that was sent and complete at these moments.
func (c Chunks) check(send, completion time.Duration) error {
	if c.bad {
		return errors.New("a chunk lies before the one before it, or has a negative or impossible count")
	}
	for first := range c.All() {
		if first.At < send || c.last > completion {
			return fmt.Errorf("chunks from %v to %v; want them between Send and Completion, %v and %v", first.At, c.last, send, completion)
		}
		break
	}
	return nil
}
