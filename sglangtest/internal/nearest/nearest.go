// Package nearest finds what a misspelt name was probably meant to be.
package nearest

import (
	"fmt"
	"strings"
)

// Name returns the candidate that is nearest to name, or "" if none is near. A candidate is near if it
// contains name, or if at most half of name's characters are wrong, missing, superfluous or swapped. Of equally
// near ones the first is returned. Case and the difference between "-" and "_" do not count.
func Name(name string, candidates []string) string {
	want := fold(name)
	best, bestDistance := "", 0
	for _, c := range candidates {
		have := fold(c)
		d := distance(want, have)
		contained := len(want) >= 3 && strings.Contains(have, want)
		if 2*d > len(want) && !contained {
			continue
		}
		if best == "" || d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// Hint returns a phrase for the end of an error message: which of the valid names was probably meant, or all of
// them if none is near.
func Hint(name string, valid []string) string {
	if n := Name(name, valid); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	return "valid are " + strings.Join(valid, ", ")
}

func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

// distance is the optimal string alignment distance: insertions, deletions, substitutions and swaps of
// neighbours, each counted once. It works on bytes, because names are ASCII.
func distance(a, b string) int {
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := above[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, above[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above, row = above, row, before
	}
	return above[len(b)]
}
