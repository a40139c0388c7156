// Package bpe is a byte-level BPE tokenizer that reads a Hugging Face tokenizer.json: the kind that GPT-2, Llama 3, Qwen 2
// and later, and most models that SGLang serves have. It gives the ids of the real library, byte for byte, and refuses a
// file that it cannot follow.
package bpe

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// A Tokenizer turns text into token ids and back. It is safe for concurrent use. Its memory is bounded, however much it
// encodes.
type Tokenizer struct {
	nfc         bool // texts are brought into Unicode's form C first
	split       splitter
	whole       bool // ignore_merges: a word that is a token is that token
	tokens      []token
	ids         map[string]int32 // of the byte-level vocabulary, spelt as bytes
	merges      map[uint64]merge
	bytes       [256]int32  // ids of the single bytes
	raw, cooked *addedTable // added tokens found before and after normalisation
	prefix      []int32     // added around a text, such as a begin-of-text token
	suffix      []int32

	seed   maphash.Seed
	cache  []atomic.Pointer[cachedWord]
	spares sync.Pool // of *merger
}

// A token is what an id stands for.
type token struct {
	text    string // bytes; empty if there is no such id
	special bool
}

// A merge is what two neighbouring tokens become, and how early.
type merge struct{ rank, id int32 }

func pair(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// The cache holds the ids of recent words. A word has one place in it, so that it needs no bookkeeping.
const (
	cacheSlots  = 1 << 15
	longestWord = 64 // bytes of a word worth keeping
)

// longestSpare is the longest word, in bytes, whose scratch space is kept.
const longestSpare = 1 << 16

type cachedWord struct {
	word string
	ids  []int32
}

// Encode returns the ids of a text as a server computes them for a prompt: with the tokens that the file's post-processor
// adds, such as Llama's begin-of-text, and with added tokens that the text spells out recognised. Bytes that are not
// UTF-8 are kept as they are.
func (t *Tokenizer) Encode(text string) []int32 {
	ids := make([]int32, 0, len(t.prefix)+len(text)/4+len(t.suffix)+1)
	return append(t.Append(append(ids, t.prefix...), text), t.suffix...)
}

// Append appends the ids of a text to ids without the tokens of the post-processor, as is done with a chat whose template
// brings its own.
func (t *Tokenizer) Append(ids []int32, text string) []int32 {
	m, _ := t.spares.Get().(*merger)
	if m == nil {
		m = new(merger)
	}
	defer func() {
		if cap(m.parts) <= longestSpare {
			t.spares.Put(m)
		}
	}()
	t.raw.cut(text, func(piece string, id int32) {
		if id >= 0 {
			ids = append(ids, id)
			return
		}
		if t.nfc {
			piece = norm.NFC.String(piece)
		}
		t.cooked.cut(piece, func(piece string, id int32) {
			if id >= 0 {
				ids = append(ids, id)
				return
			}
			for len(piece) > 0 {
				n := t.split.next(piece)
				ids = t.appendWord(ids, piece[:n], m)
				piece = piece[n:]
			}
		})
	})
	return ids
}

// Decode returns the text of ids without special tokens (skip_special_tokens, SGLang's default). Ids that do not exist
// are left out, and what is not UTF-8 becomes U+FFFD, one for each part of a character that is broken off.
func (t *Tokenizer) Decode(ids []int32) string { return t.decode(ids, false) }

// DecodeAll is [Tokenizer.Decode] with special tokens spelt out.
func (t *Tokenizer) DecodeAll(ids []int32) string { return t.decode(ids, true) }

func (t *Tokenizer) decode(ids []int32, special bool) string {
	var b []byte
	for _, id := range ids {
		if id >= 0 && int(id) < len(t.tokens) && (special || !t.tokens[id].special) {
			b = append(b, t.tokens[id].text...)
		}
	}
	return validUTF8(b)
}

// validUTF8 replaces what is not UTF-8 as Rust's String::from_utf8_lossy does: each longest beginning of a character
// that cannot go on by one U+FFFD.
func validUTF8(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var out []byte
	for len(b) > 0 {
		if r, n := utf8.DecodeRune(b); r != utf8.RuneError || n > 1 {
			out, b = append(out, b[:n]...), b[n:]
			continue
		}
		n := 1
		for n < min(len(b), utf8.UTFMax) && !utf8.FullRune(b[:n]) {
			n++
		}
		// b[:n] is complete and invalid, or all there is: without its last byte it may be a valid beginning.
		if n > 1 && utf8.FullRune(b[:n]) {
			n--
		}
		out, b = utf8.AppendRune(out, utf8.RuneError), b[n:]
	}
	return string(out)
}

// appendWord appends the ids of one word of the pre-tokenizer.
func (t *Tokenizer) appendWord(ids []int32, word string, m *merger) []int32 {
	if len(word) == 1 {
		return append(ids, t.bytes[word[0]])
	}
	if len(word) > longestWord {
		return t.merge(ids, word, m)
	}
	slot := &t.cache[maphash.String(t.seed, word)%cacheSlots]
	if c := slot.Load(); c != nil && c.word == word {
		return append(ids, c.ids...)
	}
	begin := len(ids)
	ids = t.merge(ids, word, m)
	slot.Store(&cachedWord{strings.Clone(word), slices.Clone(ids[begin:])}) // a part of the text would keep it alive
	return ids
}
