package sim

import (
	"strconv"
	"strings"
	"sync"
)

// The text of a simulated answer: token i is words[i mod 8], for every request. All have five bytes and need no
// escapes in JSON, so that the text and the ids of n tokens are prefixes of two tables.
const (
	words       = " bird tree lake rain salt moon fern wind"
	wordBytes   = 5
	firstWordID = 1000 // ids have four digits
	wordCount   = len(words) / wordBytes
	tableTokens = 4096
)

var (
	wordTable = strings.Repeat(words, tableTokens/wordCount)
	idTable   = func() string {
		var b []byte
		for i := range tableTokens {
			b = append(strconv.AppendInt(b, int64(firstWordID+i%wordCount), 10), ',')
		}
		return string(b)
	}()
)

// answerIDs returns the ids of the first n tokens of an answer. They are shared and must not be modified.
func answerIDs(n int) []int32 {
	answerTable.Lock()
	defer answerTable.Unlock()
	for i := len(answerTable.ids); i < n; i++ {
		answerTable.ids = append(answerTable.ids, int32(firstWordID+i%wordCount))
	}
	return answerTable.ids[:n:n]
}

var answerTable struct {
	sync.Mutex
	ids []int32
}

// appendText appends the text from one byte to another.
func appendText(b []byte, from, to int) []byte {
	for from < to {
		at := from % len(wordTable)
		n := min(to-from, len(wordTable)-at)
		b = append(b, wordTable[at:at+n]...)
		from += n
	}
	return b
}

// appendIDs appends the ids of tokens from to to, separated by commas.
func appendIDs(b []byte, from, to int) []byte {
	if from >= to {
		return b
	}
	for from < to {
		at := from % tableTokens
		n := min(to-from, tableTokens-at)
		b = append(b, idTable[at*wordBytes:(at+n)*wordBytes]...)
		from += n
	}
	return b[:len(b)-1]
}

// textLen is the length in bytes of the text of n tokens.
func textLen(n int) int { return n * wordBytes }

// tokenText is the text of one token: that of an answer's, or a stand-in for any other.
func tokenText(id int) string {
	if i := id - firstWordID; i >= 0 && i < wordCount {
		return words[i*wordBytes : (i+1)*wordBytes]
	}
	return " t" + strconv.Itoa(id)
}

// stopOf returns after how many tokens an answer's text holds one of the stop strings, which one, and the length of the
// text before it; or 0.
func stopOf(stops []string) (tokens int, matched string, cut int) {
	for _, stop := range stops {
		if stop == "" {
			continue
		}
		at := strings.Index(strings.Repeat(words, 2+len(stop)/len(words)), stop) // the text repeats
		if at < 0 {
			continue
		}
		if n := (at + len(stop) + wordBytes - 1) / wordBytes; tokens == 0 || n < tokens {
			tokens, matched, cut = n, stop, at
		}
	}
	return tokens, matched, cut
}

// stopOfIDs is stopOf for token ids.
func stopOfIDs(ids []int) (tokens, matched int) {
	for _, id := range ids {
		if n := id - firstWordID + 1; n >= 1 && n <= wordCount && (tokens == 0 || n < tokens) {
			tokens, matched = n, id
		}
	}
	return tokens, matched
}

// appendString appends s as a JSON string.
func appendString(b []byte, s string) []byte {
	return append(appendEscaped(append(b, '"'), s), '"')
}

// appendEscaped appends s as it stands within a JSON string.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}
