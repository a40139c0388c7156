package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
)

// requireTree checks the counts and links of a tree.
func requireTree(t testing.TB, tree *radix) {
	evictable, protected, nodes, leaves := 0, 0, 0, 0
	children := map[*node]int{}
	for _, n := range tree.table {
		for ; n != nil; n = n.chain {
			nodes++
			children[n.parent]++
			length := 0
			for _, r := range n.key {
				length += r.Len()
			}
			if n.length != length || length <= 0 || length%tree.page != 0 || n.parent.locks < min(n.locks, 1) {
				t.Fatalf("node of %d tokens with runs of %d, %d locks below %d", n.length, length, n.locks, n.parent.locks)
			}
			if n.locks > 0 {
				protected += length
			} else {
				evictable += length
			}
			if n.locks == 0 && n.children == 0 {
				leaves++
				if tree.leaves[n.leaf] != n {
					t.Fatal("a leaf is not in its place of the heap")
				}
			} else if n.leaf != -1 {
				t.Fatal("a node that is locked or has children is in the heap")
			}
		}
	}
	require.Equal(t, tree.nodes, nodes)
	require.Equal(t, tree.evictable, evictable)
	require.Equal(t, tree.protected, protected)
	require.Len(t, tree.leaves, leaves)
	for n, k := range children {
		if n.children != k {
			t.Fatalf("%d children, counted %d", n.children, k)
		}
	}
	for i := range tree.leaves {
		if i > 0 && tree.before(tree.leaves[i], tree.leaves[(i-1)/2]) {
			t.Fatal("the heap is out of order")
		}
	}
}

// sequence is a key in all its forms: tokens as (space, stream, position) or ids, spelled out, and as runs.
type sequence struct {
	tokens []string
	runs   load.Runs
}

// randomSequence draws a short key over a small alphabet: cut into runs at random, so that equal tokens come in
// unequal runs.
func randomSequence(rng *rand.Rand) (s sequence) {
	if rng.IntN(2) == 0 {
		ids := make([]int32, 1+rng.IntN(12))
		for i := range ids {
			ids[i] = int32(rng.IntN(2))
		}
		s.runs = s.runs.AppendIDs(ids)
		for _, id := range ids {
			s.tokens = append(s.tokens, fmt.Sprint(id))
		}
	}
	for range rng.IntN(4) {
		kind, stream, off, n := rng.IntN(2), uint64(rng.IntN(2)), rng.IntN(3)*2, 1+rng.IntN(6)
		for i := range n {
			s.tokens = append(s.tokens, fmt.Sprint(kind, "/", stream, "/", off+i))
		}
		for n > 0 {
			k := 1 + rng.IntN(n)
			if kind == 0 {
				s.runs = s.runs.AppendSegment(load.Segment{Stream: stream, Offset: off, Length: k})
			} else {
				s.runs = s.runs.AppendPrivate(stream, off, k)
			}
			off, n = off+k, n-k
		}
	}
	if len(s.runs) == 0 {
		return randomSequence(rng)
	}
	return s
}

// spell returns the hash of each token.
func spell(runs load.Runs) (tokens []uint64) {
	for c := runs.Cursor(runs.Len()); c.Left() > 0; c.Skip(1) {
		tokens = append(tokens, c.Hash(0, 1))
	}
	return tokens
}

// The tree finds what a plain list of cached prefixes finds. The list is the truth for content; the order of
// eviction is checked by asking that what is evicted are the least recently used sequences of tokens, a suffix
// at a time.
func TestRadixAgainstPlainTokens(t *testing.T) {
	for _, page := range []int{1, 3, 4} {
		for seed := range uint64(60) {
			rng := rand.New(rand.NewPCG(seed, uint64(page)))
			tree := newRadix(page, EvictLRU)
			cached := map[string]uint64{} // prefix of whole pages: last use
			name := func(tokens []string) string { return fmt.Sprintf("%q", tokens) }
			spelt := map[uint64]string{} // a token by its hash
			now := uint64(0)
			var locked []*node
			var lockedKeys [][]string
			for range 120 {
				s := randomSequence(rng)
				for i, tok := range spell(s.runs) {
					spelt[tok] = s.tokens[i]
				}
				n := len(s.tokens) - len(s.tokens)%page
				longest := 0
				for k := page; k <= n; k += page {
					if _, ok := cached[name(s.tokens[:k])]; !ok {
						break
					}
					longest = k
				}
				now++
				switch rng.IntN(5) {
				case 0, 1:
					last, had := tree.insert(s.runs, len(s.tokens), 0, 0)
					require.Equal(t, longest, had)
					for k := page; k <= n; k += page {
						cached[name(s.tokens[:k])] = now
					}
					if n > 0 && rng.IntN(3) == 0 {
						tree.lock(last)
						locked, lockedKeys = append(locked, last), append(lockedKeys, s.tokens[:n])
					}
				case 2:
					limit := rng.IntN(len(s.tokens) + 1)
					_, got := tree.match(s.runs, limit)
					require.Equal(t, min(longest, limit-limit%page), got)
				case 3:
					if len(locked) > 0 {
						i := rng.IntN(len(locked))
						tree.unlock(locked[i])
						locked, lockedKeys = slices.Delete(locked, i, i+1), slices.Delete(lockedKeys, i, i+1)
					}
				case 4:
					want := rng.IntN(12)
					before := tree.evictable
					var first *node
					if len(tree.leaves) > 0 {
						first = tree.leaves[0]
						for _, n := range tree.leaves {
							require.LessOrEqual(t, first.access, n.access)
						}
					}
					freed := tree.evict(want)
					require.Equal(t, before-freed, tree.evictable)
					require.True(t, freed >= want || tree.evictable == 0)
					// What is left is what the tree still holds: take its word, and check it below.
					total := 0
					for key := range cached {
						delete(cached, key)
					}
					var walk func(n *node, path []string)
					below := map[*node][]*node{}
					for _, n := range tree.table {
						for ; n != nil; n = n.chain {
							below[n.parent] = append(below[n.parent], n)
						}
					}
					walk = func(n *node, path []string) {
						for _, tok := range spell(n.key) {
							path = append(path, spelt[tok])
							if len(path)%page == 0 {
								require.NotContains(t, cached, name(path), "a prefix is in the tree once")
								cached[name(path)] = now
								total += page
							}
						}
						for _, c := range below[n] {
							walk(c, slices.Clone(path))
						}
					}
					walk(tree.root, nil)
					require.Equal(t, total, tree.evictable+tree.protected)
					for _, k := range lockedKeys {
						require.Contains(t, cached, name(k), "what is locked stays")
					}
				}
				require.Equal(t, len(cached)*page, tree.evictable+tree.protected)
				requireTree(t, tree)
			}
		}
	}
}

// segments is a key of streams and lengths in turn.
func segments(streams ...uint64) (rs load.Runs) {
	for i := 0; i < len(streams); i += 2 {
		rs = rs.AppendSegment(load.Segment{Stream: streams[i], Length: int(streams[i+1])})
	}
	return rs
}

func TestEvictionPolicies(t *testing.T) {
	key := func(stream uint64) load.Runs { return segments(stream, 10) }
	for _, c := range []struct {
		policy EvictionPolicy
		order  []uint64 // in which they go
	}{
		{EvictLRU, []uint64{2, 3, 1}},      // 1 was matched last
		{EvictLFU, []uint64{3, 1, 2}},      // 2 was inserted three times, the others once
		{EvictSLRU, []uint64{3, 1, 2}},     // 2 is past its probation
		{EvictPriority, []uint64{2, 1, 3}}, // 3 has the higher priority
	} {
		tree := newRadix(1, c.policy)
		tree.insert(key(1), 10, 0, 0)
		for range 3 {
			tree.insert(key(2), 10, 0, 0)
		}
		tree.insert(key(3), 10, 5, 0)
		tree.match(key(1), 10)
		for _, gone := range c.order {
			require.Equal(t, 10, tree.evict(1))
			for _, stream := range []uint64{1, 2, 3} {
				cursor := key(stream).Cursor(10)
				n, _, _ := tree.child(tree.root, &cursor)
				if stream == gone {
					require.Nil(t, n, "%s: %d goes first", c.policy, gone)
				}
			}
		}
		require.Zero(t, tree.nodes)
	}
}

// A long prompt costs as many nodes as its shared parts, and no token of it is stored.
func TestLongPromptsAreRuns(t *testing.T) {
	tree := newRadix(1, EvictLRU)
	a := segments(1, 100_000)
	b := segments(1, 60_000, 2, 40_000)
	tree.insert(a, 100_000, 0, 0)
	_, had := tree.insert(b, 100_000, 0, 0)
	require.Equal(t, 60_000, had)
	require.Equal(t, 3, tree.nodes)
	require.Equal(t, 140_000, tree.evictable)
}

func BenchmarkRadix(b *testing.B) {
	tree := newRadix(1, EvictLRU)
	for i := 0; b.Loop(); i++ {
		key := segments(uint64(i), 512).AppendPrivate(uint64(i), 0, 512)
		n, _ := tree.match(key, 511)
		tree.lock(n)
		m, _ := tree.insert(key, 512, 0, 0)
		tree.unlock(n)
		tree.lock(m)
		tree.insert(key, 1023, 0, 512)
		tree.unlock(m)
		if tree.evictable > 400_000 {
			tree.evict(1024)
		}
	}
}
