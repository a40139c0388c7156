package load

import "encoding/binary"

// BlockTokens is the length of a block of a [Key] in tokens.
const BlockTokens = 16

// TextBytesPerToken is how many bytes of a text count as a token where no tokenizer says better; an
// incomplete token counts. MessageTokens is what each message of a chat has beyond its content then: role and
// template. The simulated server counts in the same way.
const (
	TextBytesPerToken = 4
	MessageTokens     = 4
)

// TextTokens returns the length of a text in tokens by the rule of [TextBytesPerToken].
func TextTokens(text string) int { return (len(text) + TextBytesPerToken - 1) / TextBytesPerToken }

// CountTokens returns the prompt's length in tokens: exact for segments and ids, by the rule of
// [TextBytesPerToken] for text and messages, and at least 1 unless the prompt is zero.
func (p *Prompt) CountTokens() int {
	n := p.Tokens()
	if n > 0 || p.IsZero() {
		return n
	}
	n = TextTokens(p.Text)
	for i := range p.Messages {
		n += TextTokens(p.Messages[i].Content) + MessageTokens
	}
	return max(1, n)
}

// AnswerStream names the stream that stands for the tokens of the answer to the request with the given ID, in
// prompts (see Segment.Answer) and in the prefix caches of simulated servers.
func AnswerStream(id int) uint64 { return mix(0x616e73776572 + uint64(id)) } // "answer"

// A Key is what a prompt is told from others by, and what it shares with them: its tokens as runs, and the
// hashes of its blocks. It is the same for all forms of prompts:
//
//   - token ids are compared by value, and segments by stream and position; ids and segments never equal each
//     other;
//   - a text is a sequence of blocks of BlockTokens × TextBytesPerToken bytes. Two texts share the blocks
//     that they both begin with, and the rest only if all of it is equal;
//   - messages are the text of their roles and contents, each padded to whole tokens, so that a chat shares
//     its blocks with the turns before it.
//
// A Key is made once for a request and then only read; reading it at the same time is safe after the first
// call of Blocks. The zero value is the key of no prompt.
type Key struct {
	runs   Runs
	n      int
	blocks []uint64
	space  [2]TokenRun // memory of short runs
}

// NewKey returns the key of a prompt that has the given number of tokens; 0: as many as [Prompt.CountTokens]
// says. It refers to the prompt's token ids.
func NewKey(p *Prompt, tokens int) *Key {
	if tokens <= 0 {
		tokens = p.CountTokens()
	}
	k := &Key{}
	if !p.IsZero() {
		k.runs, k.n = Runs(k.space[:0]).AppendPrompt(p, tokens), tokens
	}
	return k
}

// Len returns the length of the prompt in tokens.
func (k *Key) Len() int { return k.n }

// Runs returns the prompt's tokens as runs. They must not be modified.
func (k *Key) Runs() Runs { return k.runs }

// Common returns how many tokens the two prompts both begin with.
func (k *Key) Common(o *Key) int {
	c := k.runs.Cursor(k.n)
	return c.Common(o.runs, o.n)
}

// Blocks returns a hash for each whole block of [BlockTokens] tokens, of all tokens up to the block's end:
// prompts that begin with the same n blocks have the same first n hashes. They are computed at the first call
// and must not be modified.
func (k *Key) Blocks() []uint64 {
	if whole := k.n / BlockTokens; k.blocks == nil && whole > 0 {
		k.blocks = make([]uint64, whole)
		c, h := k.runs.Cursor(k.n), uint64(0)
		for i := range k.blocks {
			h = c.Hash(h, BlockTokens)
			k.blocks[i] = h
			c.Skip(BlockTokens)
		}
	}
	return k.blocks
}

// AppendPrompt appends the tokens of a prompt, not zero; tokens is their number, which counts for a text or
// messages only: a server with a tokenizer may find another than [Prompt.CountTokens], and the last block
// then is longer or shorter.
func (rs Runs) AppendPrompt(p *Prompt, tokens int) Runs {
	switch {
	case len(p.Segments) > 0:
		if rs == nil || cap(rs)-len(rs) < len(p.Segments) {
			rs = append(make(Runs, 0, len(rs)+len(p.Segments)), rs...)
		}
		for _, s := range p.Segments {
			rs = rs.AppendSegment(s)
		}
		return rs
	case len(p.TokenIDs) > 0:
		return rs.AppendIDs(p.TokenIDs)
	}
	b := blockRuns{runs: rs, left: tokens, rest: p.CountTokens() * TextBytesPerToken}
	if p.Text != "" {
		b.chain, b.rest = 1, len(p.Text)
		b.write(p.Text)
	} else {
		b.chain = 2
		for i := range p.Messages {
			m := &p.Messages[i]
			b.word(hashString(m.Role))
			b.word(m.beyond())
			b.write(m.Content)
			b.pad(len(m.Content))
		}
	}
	return b.end()
}

// blockRuns makes a run of each block of a text.
type blockRuns struct {
	runs  Runs
	left  int    // tokens to give out
	rest  int    // bytes to come
	chain uint64 // hash of all before the block
	block [BlockTokens * TextBytesPerToken]byte
	n     int    // bytes in block
	extra uint64 // what the block's hash covers beside its bytes
}

func (b *blockRuns) write(s string) {
	for len(s) > 0 {
		k := copy(b.block[b.n:], s)
		b.n, b.rest, s = b.n+k, b.rest-k, s[k:]
		b.full()
	}
}

func (b *blockRuns) word(v uint64) {
	var w [8]byte
	binary.LittleEndian.PutUint64(w[:], v)
	for rest := w[:]; len(rest) > 0; {
		k := copy(b.block[b.n:], rest)
		b.n, b.rest, rest = b.n+k, b.rest-k, rest[k:]
		b.full()
	}
}

// pad ends a content of the given length on a whole token. The length tells it from one that ends with zeros.
func (b *blockRuns) pad(length int) {
	b.extra = addHash(b.extra, uint64(length)+1)
	for ; b.n%TextBytesPerToken != 0; b.n++ {
		b.block[b.n] = 0
		b.rest--
	}
	b.full()
}

func (b *blockRuns) full() {
	switch {
	case b.n < len(b.block):
	case b.left > BlockTokens, b.left == BlockTokens && b.rest == 0:
		b.add(BlockTokens)
	default: // the last run covers all that is left
		b.hash()
	}
}

// hash adds the block to the chain.
func (b *blockRuns) hash() {
	h := addHash(b.chain, b.extra)
	clear(b.block[b.n:])
	for i := 0; i < b.n; i += 8 {
		h = addHash(h, binary.LittleEndian.Uint64(b.block[i:]))
	}
	b.chain, b.n, b.extra = addHash(h, uint64(b.n)), 0, 0
}

func (b *blockRuns) add(tokens int) {
	b.hash()
	b.runs = append(b.runs, TokenRun{space: hashed, stream: b.chain, n: tokens})
	b.left -= tokens
}

func (b *blockRuns) end() Runs {
	if b.left > 0 {
		b.add(b.left)
	}
	return b.runs
}

func hashString(s string) uint64 {
	h := uint64(len(s))
	for i := range len(s) {
		h = addHash(h, uint64(s[i]))
	}
	return h
}
