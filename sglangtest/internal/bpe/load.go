package bpe

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/text/unicode/norm"
)

// file is what is read of a tokenizer.json.
type file struct {
	Added []struct {
		ID         int32  `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		Lstrip     bool   `json:"lstrip"`
		Rstrip     bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
		Special    bool   `json:"special"`
	} `json:"added_tokens"`
	Normalizer    *component `json:"normalizer"`
	PreTokenizer  *component `json:"pre_tokenizer"`
	PostProcessor *component `json:"post_processor"`
	Decoder       *component `json:"decoder"`
	Model         struct {
		Type         string           `json:"type"`
		Dropout      *float64         `json:"dropout"`
		SubwordStart *string          `json:"continuing_subword_prefix"`
		WordEnd      *string          `json:"end_of_word_suffix"`
		ByteFallback bool             `json:"byte_fallback"`
		IgnoreMerges bool             `json:"ignore_merges"`
		Vocab        map[string]int32 `json:"vocab"`
		Merges       mergeList        `json:"merges"`
	} `json:"model"`
}

// A component is one step of the pipeline.
type component struct {
	Type          string      `json:"type"`
	Normalizers   []component `json:"normalizers"`
	PreTokenizers []component `json:"pretokenizers"`
	Processors    []component `json:"processors"`

	AddPrefixSpace bool  `json:"add_prefix_space"` // ByteLevel
	UseRegex       *bool `json:"use_regex"`        // nil: true

	Pattern struct { // Split
		Regex  *string
		String *string
	} `json:"pattern"`
	Behavior string `json:"behavior"`
	Invert   bool   `json:"invert"`

	Single []struct { // TemplateProcessing
		SpecialToken *struct {
			ID string `json:"id"`
		}
		Sequence *struct {
			ID string `json:"id"`
		}
	} `json:"single"`
	SpecialTokens map[string]struct {
		IDs []int32 `json:"ids"`
	} `json:"special_tokens"`
}

// A mergeList holds merges as pairs; files have them as lists of two or as texts with a space.
type mergeList [][2]string

func (l *mergeList) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, (*[][2]string)(l)) == nil {
		return nil
	}
	var texts []string
	if err := json.Unmarshal(b, &texts); err != nil {
		return err
	}
	*l = make(mergeList, len(texts))
	for i, s := range texts {
		left, right, ok := strings.Cut(s, " ")
		if !ok {
			return fmt.Errorf("merge %q is not two tokens", s)
		}
		(*l)[i] = [2]string{left, right}
	}
	return nil
}

// supported says in errors which files can be read.
const supported = "supported are byte-level BPE tokenizers with the pre-tokenizer of GPT-2, Llama 3 or Qwen 2 and no normalizer but NFC"

// Load reads a tokenizer.json file.
func Load(path string) (*Tokenizer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("bpe: %w", err)
	}
	defer f.Close()
	t, err := New(f)
	if err != nil {
		return nil, fmt.Errorf("%w (%s)", err, path)
	}
	return t, nil
}

// New reads a tokenizer.json. Truncation and padding, which servers turn off, are ignored. All that is not supported is
// reported together.
func New(r io.Reader) (*Tokenizer, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("bpe: read tokenizer: %w", err)
	}
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("bpe: not a tokenizer.json: %w; %s", err, supported)
	}
	t := &Tokenizer{whole: f.Model.IgnoreMerges, seed: maphash.MakeSeed(), cache: make([]atomic.Pointer[cachedWord], cacheSlots)}
	if err := errors.Join(t.setPipeline(&f), checkModel(&f)); err != nil {
		return nil, fmt.Errorf("bpe: %w; %s", err, supported)
	}
	if err := errors.Join(t.setVocabulary(&f), t.setAdded(&f)); err != nil {
		return nil, fmt.Errorf("bpe: %w", err)
	}
	return t, nil
}

// checkModel refuses what changes the ids and is not carried out here.
func checkModel(f *file) error {
	m := &f.Model
	if m.Type != "BPE" { // files before 2020 have no type, and are not served
		return fmt.Errorf("the model is %q, not BPE", m.Type)
	}
	var errs []error
	refuse := func(set bool, what string) {
		if set {
			errs = append(errs, errors.New("the model has "+what))
		}
	}
	refuse(m.Dropout != nil && *m.Dropout != 0, "dropout")
	refuse(m.SubwordStart != nil && *m.SubwordStart != "", "a continuing_subword_prefix")
	refuse(m.WordEnd != nil && *m.WordEnd != "", "an end_of_word_suffix")
	refuse(m.ByteFallback, "byte_fallback (SentencePiece)")
	return errors.Join(errs...)
}

// flat returns the steps of a component, those of sequences one after another.
func flat(c *component) []component {
	if c == nil {
		return nil
	}
	if c.Type != "Sequence" {
		return []component{*c}
	}
	var all []component
	for _, list := range [][]component{c.Normalizers, c.PreTokenizers, c.Processors} {
		for i := range list {
			all = append(all, flat(&list[i])...)
		}
	}
	return all
}

func (t *Tokenizer) setPipeline(f *file) error {
	var errs []error
	for _, c := range flat(f.Normalizer) {
		if c.Type != "NFC" {
			errs = append(errs, fmt.Errorf("the normalizer %s is not supported", c.Type))
		}
		t.nfc = true
	}
	var err error
	if t.split, err = preTokenizer(flat(f.PreTokenizer)); err != nil {
		errs = append(errs, err)
	}
	for _, c := range flat(f.Decoder) {
		if c.Type != "ByteLevel" {
			errs = append(errs, fmt.Errorf("the decoder %s is not supported", c.Type))
		}
	}
	for _, c := range flat(f.PostProcessor) {
		switch c.Type {
		case "ByteLevel": // changes offsets only
		case "TemplateProcessing":
			errs = append(errs, t.setTemplate(c))
		default:
			errs = append(errs, fmt.Errorf("the post-processor %s is not supported", c.Type))
		}
	}
	return errors.Join(errs...)
}

func preTokenizer(steps []component) (splitter, error) {
	regex := func(c component) bool { return c.UseRegex == nil || *c.UseRegex }
	for _, c := range steps {
		if c.Type == "ByteLevel" && c.AddPrefixSpace {
			return splitter{}, errors.New("the pre-tokenizer adds a space in front (add_prefix_space)")
		}
	}
	switch {
	case len(steps) == 1 && steps[0].Type == "ByteLevel" && regex(steps[0]):
		return splitter{gpt2: true}, nil
	case len(steps) == 2 && steps[0].Type == "Split" && steps[1].Type == "ByteLevel" && !regex(steps[1]):
		c := steps[0]
		if c.Pattern.Regex == nil || c.Behavior != "Isolated" || c.Invert {
			return splitter{}, errors.New("the pre-tokenizer splits in another way than by isolating a regular expression")
		}
		switch *c.Pattern.Regex {
		case llama3Pattern:
			return splitter{digits: 3}, nil
		case qwen2Pattern:
			return splitter{digits: 1}, nil
		}
		return splitter{}, fmt.Errorf("the pre-tokenizer's expression is not known: %s", *c.Pattern.Regex)
	}
	var names []string
	for _, c := range steps {
		names = append(names, c.Type)
	}
	return splitter{}, fmt.Errorf("the pre-tokenizer [%s] is not supported", strings.Join(names, " "))
}

// setTemplate takes the tokens around a single text.
func (t *Tokenizer) setTemplate(c component) error {
	seen := false
	for _, s := range c.Single {
		switch {
		case s.Sequence != nil && !seen:
			seen = true
		case s.SpecialToken != nil:
			special, ok := c.SpecialTokens[s.SpecialToken.ID]
			if !ok {
				return fmt.Errorf("the post-processor's token %q is not defined", s.SpecialToken.ID)
			}
			if seen {
				t.suffix = append(t.suffix, special.IDs...)
			} else {
				t.prefix = append(t.prefix, special.IDs...)
			}
		default:
			return errors.New("the post-processor's template for a single text is not understood")
		}
	}
	if !seen {
		return errors.New("the post-processor's template for a single text has no place for the text")
	}
	return nil
}

// byteOf is GPT-2's alphabet: the character that stands for each byte, the other way round. Printable bytes stand for
// themselves, the others for the characters from U+0100 on.
var byteOf = func() map[rune]byte {
	m := map[rune]byte{}
	next := rune(0x100)
	for b := range 256 {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			m[rune(b)] = byte(b)
		} else {
			m[next] = byte(b)
			next++
		}
	}
	return m
}()

// spell returns the bytes that a token's characters stand for. A token with any other character stands for itself.
func spell(text string) string {
	b := make([]byte, 0, len(text))
	for _, r := range text {
		c, ok := byteOf[r]
		if !ok {
			return text
		}
		b = append(b, c)
	}
	return string(b)
}

// maxID bounds the ids, so that a broken file does not take all memory.
const maxID = 1 << 22

func (t *Tokenizer) set(id int32, text string, special bool) error {
	if id < 0 || id > maxID {
		return fmt.Errorf("token %q has id %d: want 0 to %d", text, id, maxID)
	}
	if int(id) >= len(t.tokens) {
		t.tokens = append(t.tokens, make([]token, int(id)+1-len(t.tokens))...)
	}
	t.tokens[id] = token{text, special}
	return nil
}

func (t *Tokenizer) setVocabulary(f *file) error {
	vocab := f.Model.Vocab
	t.ids = make(map[string]int32, len(vocab))
	t.tokens = make([]token, 0, len(vocab)+len(f.Added))
	for text, id := range vocab {
		if err := t.set(id, spell(text), false); err != nil {
			return err
		}
		t.ids[t.tokens[id].text] = id
	}
	for r, b := range byteOf {
		id, ok := vocab[string(r)]
		if !ok {
			return fmt.Errorf("the vocabulary has no token for the byte %#02x: it is not byte-level; %s", b, supported)
		}
		t.bytes[b] = id
	}
	t.merges = make(map[uint64]merge, len(f.Model.Merges))
	for i, m := range f.Model.Merges {
		left, ok1 := vocab[m[0]]
		right, ok2 := vocab[m[1]]
		both, ok3 := vocab[m[0]+m[1]]
		if !ok1 || !ok2 || !ok3 {
			return fmt.Errorf("merge %d, of %q and %q, is not among the vocabulary", i, m[0], m[1])
		}
		t.merges[pair(left, right)] = merge{int32(i), both}
	}
	return nil
}

func (t *Tokenizer) setAdded(f *file) error {
	raw, cooked := map[string]int32{}, map[string]int32{}
	for _, a := range f.Added {
		if a.SingleWord || a.Lstrip || a.Rstrip {
			return fmt.Errorf("added token %q has single_word, lstrip or rstrip, which are not supported", a.Content)
		}
		text, table := a.Content, raw
		if a.Normalized {
			table = cooked
			if t.nfc {
				text = norm.NFC.String(text)
			}
		}
		table[text] = a.ID
		// The library decodes added tokens like all others, so one with a letter of the alphabet above ASCII breaks.
		if err := t.set(a.ID, spell(text), a.Special); err != nil {
			return err
		}
	}
	for _, id := range append(t.prefix, t.suffix...) {
		if id < 0 || int(id) >= len(t.tokens) {
			return fmt.Errorf("the post-processor's token %d is not in the vocabulary", id)
		}
	}
	t.raw, t.cooked = newAddedTable(raw), newAddedTable(cooked)
	return nil
}
