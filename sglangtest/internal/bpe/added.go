package bpe

import (
	"cmp"
	"slices"
	"strings"
)

// An addedTable finds the tokens that are matched in the text itself, before it is cut into words: leftmost, and the
// longest where several begin.
type addedTable struct {
	ids   map[string]int32
	first [256][]added // by first byte, longest first
}

type added struct {
	text string
	id   int32
}

func newAddedTable(tokens map[string]int32) *addedTable {
	t := &addedTable{ids: tokens}
	for text, id := range tokens {
		if text != "" {
			t.first[text[0]] = append(t.first[text[0]], added{text, id})
		}
	}
	for _, list := range t.first {
		slices.SortFunc(list, func(a, b added) int {
			return cmp.Or(cmp.Compare(len(b.text), len(a.text)), strings.Compare(a.text, b.text))
		})
	}
	return t
}

// cut calls f for each added token in s with its id, and for each text before, between and after them with -1.
func (t *addedTable) cut(s string, f func(piece string, id int32)) {
	begin := 0
	if len(t.ids) > 0 {
	next:
		for i := 0; i < len(s); i++ {
			for _, a := range t.first[s[i]] {
				if strings.HasPrefix(s[i:], a.text) {
					if begin < i {
						f(s[begin:i], -1)
					}
					f(a.text, a.id)
					begin = i + len(a.text)
					i = begin - 1
					continue next
				}
			}
		}
	}
	if begin < len(s) {
		f(s[begin:], -1)
	}
}
