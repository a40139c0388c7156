package load

import "slices"

// SharedPrompts says how much of a workload's prompts begins like an earlier prompt of the same workload, in order of arrival:
// what an unbounded prefix cache can take from it. Prompts that the generator makes up share nothing and count in Tokens alone.
type SharedPrompts struct {
	// Tokens counts those of the prompts that are given as tokens, Shared those of them that begin an earlier one.
	Tokens int64 `json:"tokens"`
	Shared int64 `json:"shared_tokens"`
	// Bytes counts those of the prompts that are text or messages, SharedBytes those of them that begin an earlier one. How
	// many tokens they make only the server knows.
	Bytes       int64 `json:"bytes"`
	SharedBytes int64 `json:"shared_bytes"`
}

// maxPrefixMemory bounds the prompts that a [prefixTree] holds, in bytes.
const maxPrefixMemory = 256 << 20

// A prefixTree is a radix tree of prompts. It refers to them and copies nothing.
type prefixTree struct {
	root prefixNode
	held int // bytes of what it refers to, about
}

type prefixNode struct {
	label    []run
	children map[runKey]*prefixNode
}

// A run is a piece of a prompt: tokens by name, tokens by value, or text.
type run struct {
	stream uint64
	offset int
	length int
	ids    []int32
	text   string
}

// A runKey tells apart the runs that have no first element in common.
type runKey struct {
	kind   byte
	stream uint64
	first  int
}

func (r run) key() runKey {
	switch {
	case r.ids != nil:
		return runKey{'i', 0, int(r.ids[0])}
	case r.text != "":
		return runKey{'t', 0, int(r.text[0])}
	}
	return runKey{'s', r.stream, r.offset}
}

// from returns the run without its first n elements.
func (r run) from(n int) run {
	r.offset, r.length = r.offset+n, r.length-n
	switch {
	case r.ids != nil:
		r.ids = r.ids[n:]
	case r.text != "":
		r.text = r.text[n:]
	}
	return r
}

// to returns the first n elements of the run.
func (r run) to(n int) run {
	r.length = n
	switch {
	case r.ids != nil:
		r.ids = r.ids[:n]
	case r.text != "":
		r.text = r.text[:n]
	}
	return r
}

// common returns how many elements two runs have in common at their beginning.
func (r run) common(o run) int {
	if r.key() != o.key() {
		return 0
	}
	most := min(r.length, o.length)
	for i := range most {
		if r.ids != nil && r.ids[i] != o.ids[i] || r.text != "" && r.text[i] != o.text[i] {
			return i
		}
		if r.ids == nil && r.text == "" {
			break // named tokens are equal as far as both go
		}
	}
	return most
}

// runsOf returns the prompt as runs. Chat turns are their roles and contents, one behind the other.
func runsOf(p *Prompt) []run {
	switch {
	case len(p.TokenIDs) > 0:
		return []run{{ids: p.TokenIDs, length: len(p.TokenIDs)}}
	case p.Text != "":
		return []run{{text: p.Text, length: len(p.Text)}}
	case len(p.Messages) > 0:
		var runs []run
		for _, m := range p.Messages {
			for _, text := range []string{m.Role, "\x00", m.Content, "\x00", string(m.Parts), string(m.ToolCalls), m.ToolCallID} {
				if text != "" {
					runs = append(runs, run{text: text, length: len(text)})
				}
			}
		}
		return runs
	}
	runs := make([]run, len(p.Segments))
	for i, s := range p.Segments {
		runs[i] = run{stream: s.Stream, offset: s.Offset, length: s.Length}
	}
	return runs
}

// split cuts runs after n elements.
func split(runs []run, n int) (head, tail []run) {
	for i, r := range runs {
		switch {
		case n == 0:
			return runs[:i:i], runs[i:]
		case n < r.length:
			head = append(append(head, runs[:i]...), r.to(n))
			tail = append(append(tail, r.from(n)), runs[i+1:]...)
			return head, tail
		}
		n -= r.length
	}
	return runs, nil
}

// common returns how many elements a and b have in common at their beginning.
func common(a, b []run) int {
	n := 0
	for len(a) > 0 && len(b) > 0 {
		k := a[0].common(b[0])
		n += k
		if k < a[0].length && k < b[0].length {
			break
		}
		_, a = split(a, k)
		_, b = split(b, k)
		if k == 0 {
			break
		}
	}
	return n
}

// add puts a prompt into the tree and returns how many of its elements begin one that is there already.
func (t *prefixTree) add(prompt []run) (shared int) {
	node := &t.root
	for len(prompt) > 0 {
		key := prompt[0].key()
		next := node.children[key]
		if next == nil {
			if node.children == nil {
				node.children = make(map[runKey]*prefixNode)
			}
			node.children[key] = &prefixNode{label: prompt}
			t.held += 200
			for _, r := range prompt {
				t.held += 88 + 4*len(r.ids) + len(r.text)
			}
			return shared
		}
		n := common(next.label, prompt)
		shared += n
		if head, tail := split(next.label, n); len(tail) > 0 {
			middle := &prefixNode{label: head, children: map[runKey]*prefixNode{tail[0].key(): next}}
			next.label = tail
			node.children[key] = middle
			next = middle
			t.held += 400
		}
		_, prompt = split(prompt, n)
		node = next
	}
	return shared
}

// A promptCount adds up a workload's [SharedPrompts].
type promptCount struct {
	tree prefixTree
	sum  SharedPrompts
	full bool // what is shared is not known: the tree would have become too large, or prompts hold answers
}

func (c *promptCount) add(p *Prompt, madeUp bool) {
	if n := p.Tokens(); madeUp {
		c.sum.Tokens += int64(n)
		return
	}
	answered := slices.ContainsFunc(p.Segments, func(s Segment) bool { return s.Answer }) // which a cache may hold, and the tree does not
	if c.full = c.full || answered || c.tree.held > maxPrefixMemory; c.full {
		c.tree = prefixTree{}
		return
	}
	runs := runsOf(p)
	all := 0
	for _, r := range runs {
		all += r.length
	}
	shared := c.tree.add(runs)
	if p.Tokens() > 0 {
		c.sum.Tokens, c.sum.Shared = c.sum.Tokens+int64(all), c.sum.Shared+int64(shared)
	} else {
		c.sum.Bytes, c.sum.SharedBytes = c.sum.Bytes+int64(all), c.sum.SharedBytes+int64(shared)
	}
}
