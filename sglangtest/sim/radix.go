package sim

import (
	"cmp"
	"math"
	"slices"

	"github.com/sglangtest/harness/sglangtest/load"
)

// An EvictionPolicy says which unlocked leaf of the prefix cache goes first (mem_cache/evict_policy.py). The empty
// string means [EvictLRU].
type EvictionPolicy string

// The eviction policies that are simulated, named as SGLang's flag --radix-eviction-policy names them.
const (
	EvictLRU      EvictionPolicy = "lru"      // the least recently used
	EvictLFU      EvictionPolicy = "lfu"      // the least often inserted, then lru
	EvictSLRU     EvictionPolicy = "slru"     // those inserted once before the others, then lru
	EvictPriority EvictionPolicy = "priority" // the lowest priority, then lru
)

// A radix is SGLang's prefix cache: a tree whose edges are runs of tokens (mem_cache/radix_cache.py; from 0.5.21 on
// mem_cache/unified_cache/unified_tree_core.py, which decides alike). It counts tokens and stores none.
//
// Children are found through one table for the whole tree, keyed by the parent and the child's first page, and the
// unlocked leaves are kept in a heap, so that an eviction does not look at all leaves.
type radix struct {
	page                 int
	policy               EvictionPolicy
	root                 *node
	table                []*node // chains by hash; the length is a power of two
	nodes                int
	clock                uint64 // counts accesses
	created              uint64
	evictable, protected int // tokens
	leaves               []*node
	spare                *node // linked by chain
}

const golden64 = 0x9e3779b97f4a7c15 // spreads node ids over the table

type node struct {
	parent   *node
	key      load.Runs
	length   int // tokens
	id, hash uint64
	chain    *node // next of the same bucket
	children int
	locks    int
	access   uint64
	hits     int
	priority int
	order    uint64 // place among the children of the parent: that of its creation, inherited when split
	leaf     int    // index in the heap of unlocked leaves, or -1

	// scratch of dfsOrder
	weight, first int
	below         []*node
}

func newRadix(page int, policy EvictionPolicy) *radix {
	t := &radix{page: page, policy: policy}
	t.reset()
	return t
}

// reset drops everything; there must be no lock.
func (t *radix) reset() {
	if t.nodes > 0 {
		for i, n := range t.table {
			for n != nil {
				next := n.chain
				t.recycle(n)
				n = next
			}
			t.table[i] = nil
		}
	}
	if t.table == nil {
		t.table = make([]*node, 64)
	}
	clear(t.leaves)
	t.leaves = t.leaves[:0]
	t.nodes, t.evictable, t.protected = 0, 0, 0
	t.root = &node{leaf: -1, locks: 1, priority: math.MinInt}
}

func (t *radix) floor(n int) int { return n - n%t.page }

func (t *radix) newNode(parent *node) *node {
	n := t.spare
	if n == nil {
		n = &node{}
	} else {
		t.spare = n.chain
		*n = node{key: n.key[:0], below: n.below[:0]}
	}
	t.created++
	n.parent, n.id, n.order, n.leaf = parent, t.created, t.created, -1
	return n
}

func (t *radix) recycle(n *node) {
	clear(n.key) // token ids must not be kept alive
	n.parent, n.chain = nil, t.spare
	t.spare = n
}

func (t *radix) link(n *node) {
	if t.nodes >= len(t.table) {
		t.grow()
	}
	b := &t.table[n.hash&uint64(len(t.table)-1)]
	n.chain, *b = *b, n
	t.nodes++
}

func (t *radix) unlink(n *node) {
	b := &t.table[n.hash&uint64(len(t.table)-1)]
	for *b != n {
		b = &(*b).chain
	}
	*b, n.chain = n.chain, nil
	t.nodes--
}

func (t *radix) grow() {
	old := t.table
	t.table = make([]*node, 2*len(old))
	for _, n := range old {
		for n != nil {
			next := n.chain
			b := &t.table[n.hash&uint64(len(t.table)-1)]
			n.chain, *b = *b, n
			n = next
		}
	}
}

// child returns the child of p that begins with the page that follows the cursor, and how many tokens of its key, in
// whole pages, follow the cursor. The hash is returned for [radix.add].
func (t *radix) child(p *node, c *load.RunCursor) (n *node, same int, h uint64) {
	h = c.Hash(p.id*golden64, t.page)
	for n = t.table[h&uint64(len(t.table)-1)]; n != nil; n = n.chain {
		if n.hash == h && n.parent == p {
			if same = t.floor(c.Common(n.key, n.length)); same > 0 {
				return n, same, h
			}
		}
	}
	return nil, 0, h
}

// touch makes the node the most recently used.
func (t *radix) touch(n *node, now uint64) {
	n.access = now
	if n.leaf >= 0 {
		t.fix(n.leaf)
	}
}

// split puts a node with the first tokens of n's key above n, and returns it. The rest counts as just used, as in
// both implementations.
func (t *radix) split(n *node, tokens int) *node {
	c := n.key.Cursor(n.length)
	up := t.newNode(n.parent)
	up.key = c.Take(up.key, tokens)
	up.length, up.hash, up.order = tokens, n.hash, n.order
	up.locks, up.hits, up.priority, up.access = n.locks, n.hits, n.priority, n.access
	up.children = 1
	t.unlink(n)
	c.Skip(tokens)
	n.parent = up
	rest := c.Take(n.key[:0], c.Left())
	clear(n.key[len(rest):])
	n.key = rest
	n.length -= tokens
	c = n.key.Cursor(n.length)
	n.hash = c.Hash(up.id*golden64, t.page)
	t.created++
	n.order = t.created
	t.link(up)
	t.link(n)
	return up
}

// match finds the longest cached prefix of the key's first limit tokens, in whole pages, and makes it the most
// recently used (match_prefix). It splits a node of which only a part matches.
func (t *radix) match(key load.Runs, limit int) (last *node, matched int) {
	t.clock++
	n := t.root
	c := key.Cursor(t.floor(limit))
	for c.Left() > 0 {
		next, same, _ := t.child(n, &c)
		if next == nil {
			break
		}
		t.touch(next, t.clock)
		matched += same
		if same < next.length {
			n = t.split(next, same)
			break
		}
		n = next
		c.Skip(same)
	}
	return n, matched
}

// insert puts the key's first limit tokens, in whole pages, into the tree and returns the last node and how many
// tokens were there before. Nodes within the first counted tokens get no hit.
func (t *radix) insert(key load.Runs, limit, priority, counted int) (last *node, matched int) {
	t.clock++
	n := t.root
	n.priority = max(n.priority, priority)
	c := key.Cursor(t.floor(limit))
	for c.Left() > 0 {
		next, same, h := t.child(n, &c)
		if next == nil {
			leaf := t.newNode(n)
			leaf.key = c.Take(leaf.key, c.Left())
			leaf.length, leaf.hash, leaf.priority = c.Left(), h, priority
			if matched+c.Left() > counted {
				leaf.hits++
			}
			t.clock++ // newer than the rest of a node that was split
			leaf.access = t.clock
			n.children++
			if n.leaf >= 0 {
				t.drop(n.leaf)
			}
			t.link(leaf)
			t.evictable += c.Left()
			t.push(leaf)
			return leaf, matched
		}
		t.touch(next, t.clock)
		matched += same
		if same < next.length {
			next = t.split(next, same)
		}
		next.priority = max(next.priority, priority)
		if matched > counted {
			next.hits++
		}
		if next.leaf >= 0 {
			t.fix(next.leaf)
		}
		n = next
		c.Skip(same)
	}
	return n, matched
}

// lock protects the path to n from eviction (inc_lock_ref).
func (t *radix) lock(n *node) {
	for ; n != t.root; n = n.parent {
		if n.locks == 0 {
			t.evictable -= n.length
			t.protected += n.length
			if n.leaf >= 0 {
				t.drop(n.leaf)
			}
		}
		n.locks++
	}
}

// unlock undoes one lock of the path to n (dec_lock_ref).
func (t *radix) unlock(n *node) {
	for ; n != t.root; n = n.parent {
		n.locks--
		if n.locks == 0 {
			t.evictable += n.length
			t.protected -= n.length
			if n.children == 0 {
				t.push(n)
			}
		}
	}
}

// evict drops unlocked leaves, whole nodes, until at least n tokens are gone or none is left, and returns how many.
func (t *radix) evict(n int) (freed int) {
	for freed < n && len(t.leaves) > 0 {
		x := t.leaves[0]
		t.drop(0)
		freed += x.length
		t.evictable -= x.length
		t.unlink(x)
		p := x.parent
		p.children--
		if p != t.root && p.children == 0 && p.locks == 0 {
			t.push(p)
		}
		t.recycle(x)
	}
	return freed
}

// The heap of unlocked leaves.

func (t *radix) before(a, b *node) bool {
	x, y := 0, 0
	switch t.policy {
	case EvictLFU:
		x, y = a.hits, b.hits
	case EvictSLRU:
		x, y = min(a.hits, 2)/2, min(b.hits, 2)/2
	case EvictPriority:
		x, y = a.priority, b.priority
	}
	if x != y {
		return x < y
	}
	return a.access < b.access
}

func (t *radix) push(n *node) {
	n.leaf = len(t.leaves)
	t.leaves = append(t.leaves, n)
	t.up(n.leaf)
}

func (t *radix) drop(i int) {
	last := len(t.leaves) - 1
	t.leaves[i].leaf = -1
	if i < last {
		t.leaves[i] = t.leaves[last]
		t.leaves[i].leaf = i
	}
	t.leaves[last] = nil
	t.leaves = t.leaves[:last]
	if i < last {
		t.fix(i)
	}
}

func (t *radix) fix(i int) {
	if !t.down(i) {
		t.up(i)
	}
}

func (t *radix) up(i int) {
	h := t.leaves
	n := h[i]
	for i > 0 {
		p := (i - 1) / 2
		if !t.before(n, h[p]) {
			break
		}
		h[i] = h[p]
		h[i].leaf = i
		i = p
	}
	h[i], n.leaf = n, i
}

func (t *radix) down(i int) bool {
	h := t.leaves
	n, from := h[i], i
	for {
		k := 2*i + 1
		if k >= len(h) {
			break
		}
		if k+1 < len(h) && t.before(h[k+1], h[k]) {
			k++
		}
		if !t.before(h[k], n) {
			break
		}
		h[i] = h[k]
		h[i].leaf = i
		i = k
	}
	h[i], n.leaf = n, i
	return i > from
}

// dfsOrder sorts requests by the node that they match (base_prefix_cache.py, _dfs_weight_order): depth first, the
// child with more waiting requests below first, the older one among equals, and the requests of a node after those of
// its children.
func (t *radix) dfsOrder(reqs []*Request) {
	var used []*node
	for _, r := range reqs {
		for n := r.match; ; n = n.parent {
			if n.weight == 0 {
				used = append(used, n)
				if n != t.root {
					n.parent.below = append(n.parent.below, n)
				}
			}
			n.weight++
			if n == t.root {
				break
			}
		}
	}
	place := 0
	var visit func(n *node)
	visit = func(n *node) {
		slices.SortFunc(n.below, func(a, b *node) int {
			return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.order, b.order))
		})
		for _, b := range n.below {
			visit(b)
		}
		n.first = place
		place++
	}
	visit(t.root)
	slices.SortStableFunc(reqs, func(a, b *Request) int { return cmp.Compare(a.match.first, b.match.first) })
	for _, n := range used {
		clear(n.below)
		n.weight, n.below = 0, n.below[:0]
	}
}
