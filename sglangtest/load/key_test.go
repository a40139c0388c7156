package load

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func keyOf(p Prompt) *Key { return NewKey(&p, 0) }

func TestKeysShareWhatPromptsShare(t *testing.T) {
	text := func(s string) Prompt { return Prompt{Text: s} }
	chat := func(contents ...string) (p Prompt) {
		for i, c := range contents {
			p.Messages = append(p.Messages, Message{Role: []string{"user", "assistant"}[i%2], Content: c})
		}
		return p
	}
	segs := func(s ...Segment) Prompt { return Prompt{Segments: s} }
	b := strings.Repeat("0123456789abcdef", 4) // a block
	for name, c := range map[string]struct {
		a, b   Prompt
		len    int // of a
		common int
	}{
		"equal texts":              {text("hello"), text("hello"), 2, 2},
		"texts share no half":      {text("hello"), text("hello you"), 2, 0},
		"texts share blocks":       {text(b + b + "x"), text(b + b + "y"), 33, 32},
		"a whole block at the end": {text(b + b), text(b + b + b), 32, 32},
		"one block":                {text(b), text(b + "z"), 16, 16},
		"a later block":            {text(b + "x" + b), text(b + "y" + b), 33, 16},
		"chat and text":            {text("hello"), chat("hello"), 2, 0},
		"the turn before":          {chat(b + b), chat(b+b, "answer", "more"), 36, 32},
		"equal chats":              {chat(b, "ans", "more"), chat(b, "ans", "more"), 20 + 5 + 5, 30},
		"zeros are not padding":    {chat("a\x00"), chat("a"), 5, 0},
		"roles count":              {chat("a", "b"), Prompt{Messages: []Message{{Role: "user", Content: "a"}, {Role: "user", Content: "b"}}}, 10, 0},
		"segments":                 {segs(Segment{Stream: 1, Length: 40}, Segment{Stream: 2, Length: 5}), segs(Segment{Stream: 1, Length: 30}, Segment{Stream: 1, Offset: 30, Length: 20}), 45, 40},
		"an answer":                {segs(Segment{Stream: 3, Length: 10, Answer: true}), segs(Segment{Stream: AnswerStream(3), Length: 20}), 10, 10},
		"an answer is no stream":   {segs(Segment{Stream: 3, Length: 10, Answer: true}), segs(Segment{Stream: 3, Length: 10}), 10, 0},
		"ids":                      {Prompt{TokenIDs: []int32{1, 2, 3}}, Prompt{TokenIDs: []int32{1, 2, 4}}, 3, 2},
		"ids and segments":         {Prompt{TokenIDs: []int32{1, 2, 3}}, segs(Segment{Stream: 1, Length: 3}), 3, 0},
		"nothing":                  {Prompt{}, Prompt{}, 0, 0},
	} {
		a, b := keyOf(c.a), keyOf(c.b)
		require.Equal(t, c.len, a.Len(), name)
		require.Equal(t, c.len, a.Runs().Len(), name)
		require.Equal(t, c.common, a.Common(b), name)
		require.Equal(t, c.common, b.Common(a), name)
		same := 0
		for same < min(len(a.Blocks()), len(b.Blocks())) && a.Blocks()[same] == b.Blocks()[same] {
			same++
		}
		require.Equal(t, min(c.common/BlockTokens, len(a.Blocks())), same, name)
		require.Len(t, a.Blocks(), c.len/BlockTokens, name)
	}
}

// A server with a tokenizer counts otherwise than the rule; whatever it counts, texts that differ differ in their keys.
func TestTextKeysOfAnyLength(t *testing.T) {
	a, b := Prompt{Text: strings.Repeat("a", 300)}, Prompt{Text: strings.Repeat("a", 299) + "b"}
	for _, n := range []int{1, 15, 16, 17, 64, 74, 75, 76, 200} {
		x, y := NewKey(&a, n), NewKey(&b, n)
		require.Equal(t, n, x.Runs().Len())
		require.Less(t, x.Common(y), n, "%d tokens", n)
		require.Equal(t, n, x.Common(NewKey(&a, n)))
	}
}

// Block hashes depend on the tokens alone, not on how they are cut, and name all tokens before.
func TestBlocksOfAnyCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var tokens []string
		var a, b Runs
		for range 1 + rng.IntN(4) {
			s := Segment{Stream: uint64(rng.IntN(2)), Offset: rng.IntN(3), Length: 1 + rng.IntN(40)}
			for i := range s.Length {
				tokens = append(tokens, fmt.Sprint(s.Stream, s.Offset+i))
			}
			a = a.AppendSegment(s)
			for s.Length > 0 {
				k := 1 + rng.IntN(s.Length)
				b = b.AppendSegment(Segment{Stream: s.Stream, Offset: s.Offset, Length: k})
				s.Offset, s.Length = s.Offset+k, s.Length-k
			}
		}
		x, y := Key{runs: a, n: len(tokens)}, Key{runs: b, n: len(tokens)}
		require.Equal(t, x.Blocks(), y.Blocks())
		require.Len(t, x.Blocks(), len(tokens)/BlockTokens)
	}
}

func BenchmarkKey(b *testing.B) {
	for name, p := range map[string]Prompt{
		"segments": {Segments: []Segment{{Stream: 1, Length: 4000}, {Stream: 2, Length: 1000}}},
		"text":     {Text: strings.Repeat("four", 1000)},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				NewKey(&p, 0).Blocks()
			}
		})
	}
}
