package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
)

// ShareGPT returns the dataset of the first prompts in a ShareGPT file: a JSON array of conversations
//
//	[{"id": "…", "conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}]
//
// The key may also be "conversation", a turn may have "role" and "content" instead, the person may be called "user",
// and a turn may be a string that holds the object. The array is read as a stream, one conversation at a time.
//
// A row is the text of a conversation's first human turn, if another turn follows and neither is empty; other
// conversations are left out. That is what sglang.bench_serving (0.5.23) does, but for these differences: it takes
// the first two turns whoever they are by, shuffles the conversations, and drops those of which either turn has
// fewer than two tokens. This dataset keeps the file's order and counts no tokens, having no tokenizer. For the same
// reason neither input nor output lengths are known, so the generator needs [WithOutputLen].
func ShareGPT(path string) Dataset { return shareGPT{path} }

type shareGPT struct{ path string }

func (s shareGPT) Name() string { return s.path }

func (s shareGPT) Rows(*rand.Rand) iter.Seq2[Row, error] { return fileRows(s.path, parseShareGPT) }

func parseShareGPT(r io.Reader, path string, yield func(Row, error) bool) {
	in := json.NewDecoder(r)
	read, kept := 0, 0
	fail := func(err error) { yield(Row{}, fmt.Errorf("load: %s: %w", path, err)) }
	if token, err := in.Token(); err != nil || token != json.Delim('[') {
		fail(errors.New("want a JSON array of conversations"))
		return
	}
	for in.More() {
		read++
		var c shareGPTConversation
		if err := in.Decode(&c); err != nil {
			fail(fmt.Errorf("conversation %d: %w", read, jsonFault(err)))
			return
		}
		prompt, err := c.firstPrompt()
		if err != nil {
			fail(fmt.Errorf("conversation %d: %w", read, err))
			return
		}
		if prompt == "" {
			continue
		}
		kept++
		if !yield(Row{Prompt: Prompt{Text: prompt}}, nil) {
			return
		}
	}
	if _, err := in.Token(); err != nil { // the closing bracket
		fail(fmt.Errorf("after conversation %d: %w", read, jsonFault(err)))
		return
	}
	if _, err := in.Token(); err != io.EOF {
		fail(fmt.Errorf("after conversation %d: something follows the array: want one array and nothing else", read))
		return
	}
	if kept == 0 && read > 0 {
		fail(fmt.Errorf("none of %d conversations has a human turn that another turn follows, both with text", read))
	}
}

type shareGPTConversation struct {
	Conversations []shareGPTTurn `json:"conversations"`
	Conversation  []shareGPTTurn `json:"conversation"`
}

// firstPrompt returns the prompt, or "" if the conversation is to be left out.
func (c shareGPTConversation) firstPrompt() (string, error) {
	turns := c.Conversations
	if turns == nil {
		turns = c.Conversation
	}
	if turns == nil {
		return "", errors.New(`neither "conversations" nor "conversation" is there`)
	}
	for i, turn := range turns {
		if turn.role != "human" && turn.role != "user" {
			continue
		}
		if i+1 == len(turns) || turns[i+1].text == "" {
			return "", nil
		}
		return turn.text, nil
	}
	return "", nil
}

type shareGPTTurn struct{ role, text string }

// UnmarshalJSON reads a turn, or a string that holds one.
func (t *shareGPTTurn) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte(`"`)) {
		var inner string
		if err := json.Unmarshal(data, &inner); err != nil {
			return err
		}
		data = []byte(inner)
	}
	var turn struct {
		From, Role, Value, Content *string
	}
	if err := json.Unmarshal(data, &turn); err != nil {
		return fmt.Errorf("turn: want an object with strings from and value: %w", err)
	}
	role, text := turn.From, turn.Value
	if role == nil {
		role = turn.Role
	}
	if text == nil {
		text = turn.Content
	}
	if role == nil || text == nil {
		return errors.New("turn: want from and value, or role and content")
	}
	t.role, t.text = *role, *text
	return nil
}

// jsonFault names the end of the file for what it is.
func jsonFault(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends before the array does")
	}
	return err
}
