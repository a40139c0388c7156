package bpe

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// goldenCase is one line that testdata/oracle.py wrote with the real library, tokenizers 0.23.2.
type goldenCase struct {
	Tokenizer string
	Text      string
	IDs       []int32
	Plain     int     // ids without those of the post-processor
	Decode    []int32 // ids to decode, if the case is not a text
	Decoded   string
	All       string // decoded with special tokens
}

func goldenCases(t testing.TB, path string) []goldenCase {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var all []goldenCase
	s := bufio.NewScanner(f)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var c goldenCase
		require.NoError(t, json.Unmarshal(s.Bytes(), &c))
		all = append(all, c)
	}
	require.NoError(t, s.Err())
	return all
}

func (c goldenCase) check(tk *Tokenizer) error {
	if c.Decode != nil {
		if got := tk.Decode(c.Decode); got != c.Decoded {
			return fmt.Errorf("Decode(%v) = %q, want %q", c.Decode, got, c.Decoded)
		}
		if got := tk.DecodeAll(c.Decode); got != c.All {
			return fmt.Errorf("DecodeAll(%v) = %q, want %q", c.Decode, got, c.All)
		}
		return nil
	}
	for range 2 { // the second time from the cache
		if got := tk.Encode(c.Text); fmt.Sprint(got) != fmt.Sprint(c.IDs) {
			return fmt.Errorf("Encode(%q) = %v, want %v", c.Text, got, c.IDs)
		}
	}
	if got := len(tk.Append(nil, c.Text)); got != c.Plain {
		return fmt.Errorf("Append(%q) makes %d ids, want %d", c.Text, got, c.Plain)
	}
	if got := tk.Decode(c.IDs); got != c.Decoded {
		return fmt.Errorf("Decode of %q = %q, want %q", c.Text, got, c.Decoded)
	}
	if got := tk.DecodeAll(c.IDs); got != c.All {
		return fmt.Errorf("DecodeAll of %q = %q, want %q", c.Text, got, c.All)
	}
	return nil
}

func TestGolden(t *testing.T) {
	tokenizers := map[string]*Tokenizer{}
	for _, c := range goldenCases(t, "testdata/golden.jsonl") {
		if tokenizers[c.Tokenizer] == nil {
			tk, err := Load(filepath.Join("testdata", c.Tokenizer+".json"))
			require.NoError(t, err)
			tokenizers[c.Tokenizer] = tk
		}
		if err := c.check(tokenizers[c.Tokenizer]); err != nil {
			t.Errorf("%s: %v", c.Tokenizer, err)
		}
	}
	require.Len(t, tokenizers, 3)
}

// TestOracle compares with a file that "oracle.py DIR TOKENIZER.json N SEED" wrote, for tokenizers too large to keep here:
// BPE_TOKENIZER is the tokenizer.json, BPE_ORACLE the lines.
func TestOracle(t *testing.T) {
	path := os.Getenv("BPE_TOKENIZER")
	if path == "" {
		t.Skip("no BPE_TOKENIZER")
	}
	tk, err := Load(path)
	require.NoError(t, err)
	wrong := 0
	cases := goldenCases(t, os.Getenv("BPE_ORACLE"))
	for _, c := range cases {
		if err := c.check(tk); err != nil {
			if wrong++; wrong <= 10 {
				t.Error(err)
			}
		}
	}
	t.Logf("%d of %d as the real library has it", len(cases)-wrong, len(cases))
}

func TestConcurrentUse(t *testing.T) {
	tk, err := Load("testdata/llama3.json")
	require.NoError(t, err)
	cases := goldenCases(t, "testdata/golden.jsonl")
	done := make(chan error)
	for range 4 {
		go func() {
			for _, c := range cases {
				if c.Tokenizer == "llama3" {
					if err := c.check(tk); err != nil {
						done <- err
						return
					}
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		require.NoError(t, <-done)
	}
}

// replace returns testdata/llama3.json with one text put for another.
func replace(t *testing.T, old, new string) string {
	b, err := os.ReadFile("testdata/llama3.json")
	require.NoError(t, err)
	require.Contains(t, string(b), old)
	return strings.Replace(string(b), old, new, 1)
}

func TestRefusesWhatItCannotFollow(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"not JSON", "model", "not a tokenizer.json"},
		{"unigram", `{"model":{"type":"Unigram","vocab":[["a",-1.5]]}}`, "not a tokenizer.json"},
		{"no model", `{}`, `the model is "", not BPE`},
		{"word piece", `{"model":{"type":"WordPiece","vocab":{"a":0}},"normalizer":{"type":"BertNormalizer"},"pre_tokenizer":{"type":"BertPreTokenizer"}}`, "the normalizer BertNormalizer is not supported\nthe pre-tokenizer [BertPreTokenizer] is not supported\nthe model is \"WordPiece\", not BPE"},
		{"SentencePiece BPE", `{"model":{"type":"BPE","byte_fallback":true,"vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Metaspace"}}`, "byte_fallback (SentencePiece)"},
		{"expression", replace(t, `\\p{N}{1,3}`, `\\p{N}{1,4}`), `the pre-tokenizer's expression is not known: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,4}|`},
		{"prefix space", replace(t, `"add_prefix_space":false`, `"add_prefix_space":true`), "adds a space in front"},
		{"dropout", replace(t, `"dropout":null`, `"dropout":0.1`), "dropout"},
		{"lstrip", replace(t, `"lstrip":false`, `"lstrip":true`), "lstrip"},
		{"no byte", replace(t, `"!":`, `"unused":`), "no token for the byte 0x21"},
		{"id", replace(t, `"!":`, `"unused":-7,"!":`), "id -7"},
	} {
		_, err := New(strings.NewReader(c.file))
		require.ErrorContains(t, err, c.want, c.name)
		require.ErrorContains(t, err, "bpe: ", c.name)
	}
	_, err := Load("testdata/none.json")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestBytesThatAreNotUTF8AreKept(t *testing.T) {
	tk, err := Load("testdata/gpt2.json")
	require.NoError(t, err)
	var b []byte
	for _, id := range tk.Append(nil, "a\xff\xc3b") {
		b = append(b, tk.tokens[id].text...)
	}
	require.Equal(t, "a\xff\xc3b", string(b))
	require.Equal(t, "a\ufffd\ufffdb", tk.Decode(tk.Encode("a\xff\xc3b")))
}

// TestLongWord checks that the two ways of merging agree, and that a long word does not take for ever.
func TestLongWord(t *testing.T) {
	tk, err := Load("testdata/gpt2.json")
	require.NoError(t, err)
	long := strings.Repeat("thequickbrownfox", 1<<14)
	require.Equal(t, long, tk.Decode(tk.Encode(long)))
	for n := 1; n < 3*scanned; n++ {
		var byHeap []int32
		m := &merger{}
		for i := range n {
			m.parts = append(m.parts, part{tk.bytes[long[i]], noMerge, int32(i - 1), int32(i + 1)})
		}
		m.parts[n-1].next = -1
		for i := range n - 1 {
			m.parts[i].rank = tk.rank(m.parts[i].id, m.parts[i+1].id)
		}
		tk.mergeByHeap(m)
		for i := int32(0); i >= 0; i = m.parts[i].next {
			byHeap = append(byHeap, m.parts[i].id)
		}
		require.Equal(t, byHeap, tk.Append(nil, long[:n]), n)
	}
}

func FuzzEncode(f *testing.F) {
	var all []*Tokenizer
	for _, name := range []string{"gpt2", "llama3", "qwen2"} {
		tk, err := Load("testdata/" + name + ".json")
		require.NoError(f, err)
		all = append(all, tk)
	}
	for _, c := range goldenCases(f, "testdata/golden.jsonl") {
		f.Add(c.Text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, tk := range all {
			ids := tk.Append(nil, text)
			if got := tk.Encode(text); len(got) != len(ids)+len(tk.prefix)+len(tk.suffix) {
				t.Fatalf("%d ids, then %d", len(ids), len(got))
			}
			if !tk.nfc && utf8.ValidString(text) {
				if got := tk.DecodeAll(ids); got != text {
					t.Fatalf("%q came back as %q", text, got)
				}
			}
		}
	})
}

func FuzzNew(f *testing.F) {
	for _, name := range []string{"gpt2", "llama3", "qwen2"} {
		b, err := os.ReadFile("testdata/" + name + ".json")
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if tk, err := New(strings.NewReader(string(b))); err == nil {
			tk.Decode(tk.Encode("Hello <|end|> world"))
		}
	})
}

// The benchmarks use BPE_TOKENIZER if it is set, and BPE_TEXT for the text.
func benchFiles(b *testing.B) (path, text string) {
	path = os.Getenv("BPE_TOKENIZER")
	if path == "" {
		path = "testdata/llama3.json"
	}
	text = strings.Repeat("The quick brown fox jumps over the lazy dog. It's what they'd said in 2024: we're not sure.\n", 1000)
	if p := os.Getenv("BPE_TEXT"); p != "" {
		t, err := os.ReadFile(p)
		require.NoError(b, err)
		text = string(t)
	}
	return path, text
}

func BenchmarkEncode(b *testing.B) {
	path, text := benchFiles(b)
	for _, cold := range []bool{false, true} {
		b.Run(fmt.Sprintf("cold=%v", cold), func(b *testing.B) {
			tk, err := Load(path)
			require.NoError(b, err)
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if cold {
					clear(tk.cache)
				}
				tk.Encode(text)
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	path, _ := benchFiles(b)
	for b.Loop() {
		_, err := Load(path)
		require.NoError(b, err)
	}
}
