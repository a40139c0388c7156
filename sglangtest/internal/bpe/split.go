package bpe

import (
	"unicode"
	"unicode/utf8"
)

// A splitter cuts a text into the words inside which tokens are merged, as the regular expression of a pre-tokenizer does.
// The expressions need look-ahead, which Go's regexp has not, so they are written out.
type splitter struct {
	gpt2   bool // the expression of GPT-2; otherwise that of cl100k and its kin
	digits int  // most digits in a word, for cl100k
}

// The expressions that are known, as tokenizer.json spells them. That of ByteLevel with use_regex, GPT-2's, is not in the file:
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
const (
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Pattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// The classes of characters that the expressions tell apart.
type class uint8

const (
	other class = iota
	letter
	number
	space
	newline // \r and \n, which are spaces, too
)

var asciiClass = func() (c [utf8.RuneSelf]class) {
	for i := range c {
		c[i] = classify(rune(i))
	}
	return c
}()

func classify(r rune) class {
	switch {
	case r == '\r' || r == '\n':
		return newline
	case unicode.IsLetter(r):
		return letter
	case unicode.IsNumber(r):
		return number
	case unicode.IsSpace(r):
		return space
	}
	return other
}

// at returns the class of the character that begins at i, and its length; length 0 at the end.
func at(s string, i int) (class, int) {
	if i >= len(s) {
		return other, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return asciiClass[c], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return classify(r), n
}

// run returns the end of the characters of class c that begin at i.
func run(s string, i int, c class) int {
	for {
		k, n := at(s, i)
		if n == 0 || k != c {
			return i
		}
		i += n
	}
}

// next returns the length of the first word of s, which must not be empty.
func (p splitter) next(s string) int {
	first, n := at(s, 0)
	if s[0] == '\'' {
		if k := contraction(s, !p.gpt2); k > 0 {
			return k
		}
	}
	second, n2 := at(s, n)
	if p.gpt2 {
		switch {
		case first == letter || first == number || first == other:
			return run(s, n, first)
		case s[0] == ' ' && n2 > 0 && (second == letter || second == number || second == other):
			return run(s, n+n2, second)
		}
		return spaces(s)
	}
	switch {
	case first == letter:
		return run(s, n, letter)
	case first != number && first != newline && n2 > 0 && second == letter:
		return run(s, n+n2, letter)
	case first == number:
		for range p.digits - 1 {
			k, m := at(s, n)
			if k != number {
				break
			}
			n += m
		}
		return n
	case first == other:
		return run(s, run(s, n, other), newline)
	case s[0] == ' ' && n2 > 0 && second == other:
		return run(s, run(s, n+n2, other), newline)
	}
	if end := lastNewline(s); end > 0 {
		return end
	}
	return spaces(s)
}

// spaces is \s+(?!\S)|\s+: the spaces at the beginning of s, but for the last one if something follows and there is another.
func spaces(s string) int {
	end, last := 0, 0
	for {
		k, n := at(s, end)
		if n == 0 {
			return end
		}
		if k != space && k != newline {
			if last > 0 {
				return last
			}
			return end
		}
		last, end = end, end+n
	}
}

// lastNewline is \s*[\r\n]+: it returns the end of the last newline among the spaces at the beginning of s, or 0.
func lastNewline(s string) int {
	i, end := 0, 0
	for {
		k, n := at(s, i)
		if n == 0 || k != space && k != newline {
			return end
		}
		i += n
		if k == newline {
			end = i
		}
	}
}

// contraction returns the length of one of 's 't 're 've 'm 'll 'd at the beginning of s, which begins with an apostrophe;
// 0 if there is none. Folding takes capitals and the long s.
func contraction(s string, fold bool) int {
	lower := func(i int) byte {
		if i >= len(s) {
			return 0
		}
		if c := s[i]; fold && c >= 'A' && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return s[i]
	}
	switch c, d := lower(1), lower(2); {
	case c == 's' || c == 't' || c == 'm' || c == 'd':
		return 2
	case (c == 'r' || c == 'v') && d == 'e' || c == 'l' && d == 'l':
		return 3
	case fold && len(s) >= 3 && s[1:3] == "ſ":
		return 3
	}
	return 0
}
