package load

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func seg(stream uint64, offset, length int) Segment {
	return Segment{Stream: stream, Offset: offset, Length: length}
}

// The plan counts what an unbounded prefix cache could take, and how often the dataset is begun.
func TestPlanCountsSharedPrompts(t *testing.T) {
	plan := func(rows genRows, opts ...GeneratorOption) Plan {
		p, err := genNew(t, rows, append(opts, WithArrivals(AllAtOnce()), WithOutputLen(1))...).Plan()
		require.NoError(t, err)
		return p
	}
	named := func(segs ...Segment) Row { return Row{Prompt: Prompt{Segments: segs}} }
	rows := genRows{
		named(seg(1, 0, 100), seg(2, 0, 10)),               // nothing before it
		named(seg(1, 0, 100), seg(3, 0, 10)),               // 100: the system prompt
		named(seg(1, 0, 60), seg(1, 60, 40), seg(2, 0, 5)), // 105: the same tokens in other pieces
		named(seg(1, 0, 30), seg(9, 0, 10)),                // 30
		named(seg(1, 1, 30)),                               // 0: another first token
		{Prompt: Prompt{TokenIDs: []int32{5, 6, 7}}},       // 0
		{Prompt: Prompt{TokenIDs: []int32{5, 6, 8, 9}}},    // 2
		{InputLen: 50}, // made up
		{Prompt: Prompt{Text: "abcd"}},
		{Prompt: Prompt{Text: "abxy"}}, // 2
		{Prompt: Prompt{Messages: []Message{{Role: "system", Content: "s"}, {Role: "user", Content: "one"}}}},
		{Prompt: Prompt{Messages: []Message{{Role: "system", Content: "s"}, {Role: "user", Content: "two"}}}}, // system\0s\0user\0
	}
	p := plan(rows)
	require.Equal(t, SharedPrompts{Tokens: 110 + 110 + 105 + 40 + 30 + 3 + 4 + 50, Shared: 100 + 105 + 30 + 2, Bytes: 4 + 4 + 18 + 18, SharedBytes: 2 + 14}, *p.Prompts)
	require.Equal(t, []int{1, 0}, []int{p.Passes, p.Rows})

	require.Nil(t, plan(genRows{named(seg(1, 0, 10)), named(seg(1, 0, 10), Segment{Stream: 0, Length: 5, Answer: true})}).Prompts, "a cache may hold the answer")

	p = plan(rows[:2], WithRepeat(), WithLimit(5))
	require.Equal(t, []int{3, 2}, []int{p.Passes, p.Rows})
	require.Equal(t, SharedPrompts{Tokens: 550, Shared: 100 + 3*110}, *p.Prompts)
	p = plan(rows[:2], WithRepeat(), WithLimit(2))
	require.Equal(t, []int{1, 0}, []int{p.Passes, p.Rows}, "what would come next has not begun")
	p = plan(genRows{{InputLen: 50}}, WithRepeat(), WithLimit(4))
	require.Equal(t, SharedPrompts{Tokens: 200}, *p.Prompts, "prompts that are made up differ each time")
}

// The tree agrees with comparing each prompt with all before it.
func TestPrefixTreeAgreesWithComparing(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var tree prefixTree
	var before [][]rune
	for range 400 {
		var prompt []run
		var flat []rune
		for range 1 + rng.IntN(4) {
			switch rng.IntN(3) {
			case 0:
				r := run{stream: uint64(rng.IntN(2)), length: 1 + rng.IntN(5)}
				for i := range r.length {
					flat = append(flat, rune(1000*(1+int(r.stream))+i))
				}
				prompt = append(prompt, r)
			case 1:
				ids := make([]int32, 1+rng.IntN(4))
				for i := range ids {
					ids[i] = int32(rng.IntN(2))
					flat = append(flat, 'a'+rune(ids[i]))
				}
				prompt = append(prompt, run{ids: ids, length: len(ids)})
			default:
				text := strings.Repeat("x", 1+rng.IntN(3)) + strings.Repeat("y", rng.IntN(2))
				flat = append(flat, []rune(text)...)
				prompt = append(prompt, run{text: text, length: len(text)})
			}
		}
		want := 0
		for _, b := range before {
			n := 0
			for n < len(b) && n < len(flat) && b[n] == flat[n] {
				n++
			}
			want = max(want, n)
		}
		require.Equal(t, want, tree.add(prompt))
		before = append(before, flat)
	}
}
