package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ShareGPT returns the dataset of the first prompts in a ShareGPT file: a JSON array of conversations, or one conversation on
// each line, which is the form of SGLang's own dataset "custom":
//
//	[{"id": "…", "conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}]
//
// The key may also be "conversation", a turn may have "role" and "content" instead, or "role" and "value", the person may be
// called "user", a content may be a list of parts of type text, and a turn may be a string that holds the object. The file is
// read as a stream, one conversation at a time; compressed ones (.gz, .zst, .bz2) as they are.
//
// A row is the text of a conversation's first human turn, if another turn follows and neither is empty; other conversations are
// left out and counted. That is what sglang.bench_serving (0.5.23) does, but for these differences: it takes
// the first two turns whoever they are by, shuffles the conversations, and drops those of which either turn has
// fewer than two tokens. This dataset keeps the file's order and counts no tokens, having no tokenizer. For the same
// reason neither input nor output lengths are known, so the generator needs [WithOutputLen].
func ShareGPT(path string, opts ...FileOption) Dataset { return newFileDataset(path, &shareGPT, opts) }

var shareGPT = fileFormat{name: "ShareGPT file", parse: parseShareGPT}

// noFirstTurn is why a conversation is left out.
const noFirstTurn = "no human turn that another turn follows, both with text"

func parseShareGPT(_ *fileDataset, r io.Reader, e *emitter) {
	conversation := func(line int, text []byte) bool {
		var c shareGPTConversation
		if err := json.Unmarshal(text, &c); err != nil {
			return e.fault(line, oddBroken, fmt.Errorf("%w%s", jsonFault(err), meant("sharegpt", objectKeys(text))))
		}
		prompt, reason, err := c.firstPrompt()
		switch {
		case err != nil:
			return e.fault(line, reason, fmt.Errorf("%w%s", err, meant("sharegpt", objectKeys(text))))
		case prompt == "":
			return e.leave(line, noFirstTurn)
		}
		return e.row(Row{Prompt: Prompt{Text: prompt}, Line: line})
	}
	in := bufio.NewReader(r)
	first, blank, err := firstByte(in)
	switch {
	case err == io.EOF:
		e.fail(0, errors.New("empty file: want a JSON array of conversations, or one conversation on each line"))
	case err != nil:
		e.fail(0, err)
	case first == '{':
		e.lines(in, func(line int, text []byte) bool { return conversation(blank+line, text) })
	default:
		e.array(in, blank, conversation)
	}
}

// firstByte returns the first byte that is no space, without taking it, and the number of lines before it.
func firstByte(in *bufio.Reader) (first byte, lines int, err error) {
	for {
		b, err := in.ReadByte()
		switch {
		case err != nil:
			return 0, lines, err
		case b == '\n':
			lines++
		case b != ' ' && b != '\t' && b != '\r':
			return b, lines, in.UnreadByte()
		}
	}
}

// array calls element for each element of the JSON array in r, which begins after so many lines, until it returns false.
func (e *emitter) array(r io.Reader, before int, element func(line int, text []byte) bool) {
	lines := &lineCounter{r: r}
	in := json.NewDecoder(lines)
	at := func() int { return before + lines.at(in.InputOffset()) }
	if token, err := in.Token(); err != nil || token != json.Delim('[') {
		e.fail(at(), errors.New("want a JSON array of conversations, or one conversation on each line"))
		return
	}
	for in.More() {
		var text json.RawMessage
		if err := in.Decode(&text); err != nil {
			e.fail(at(), jsonFault(err))
			return
		}
		if !element(before+lines.at(in.InputOffset()-int64(len(text))), text) {
			return
		}
	}
	if _, err := in.Token(); err != nil { // the closing bracket
		e.fail(at(), jsonFault(err))
		return
	}
	if _, err := in.Token(); err != io.EOF {
		e.fail(at(), errors.New("something follows the array: want one array and nothing else"))
	}
}

// A lineCounter knows on which lines the offsets of what it has read lie. The offsets asked for must not decrease.
type lineCounter struct {
	r    io.Reader
	read int64
	ends []int64 // offsets of line ends that have not been passed
	line int     // line ends that have been passed
}

func (c *lineCounter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	for i, b := range p[:n] {
		if b == '\n' {
			c.ends = append(c.ends, c.read+int64(i))
		}
	}
	c.read += int64(n)
	return n, err
}

// at returns the line on which offset lies, counted from 1.
func (c *lineCounter) at(offset int64) int {
	passed := 0
	for passed < len(c.ends) && c.ends[passed] < offset {
		passed++
	}
	c.line += passed
	c.ends = c.ends[passed:]
	return c.line + 1
}

type shareGPTConversation struct {
	Conversations []json.RawMessage `json:"conversations"`
	Conversation  []json.RawMessage `json:"conversation"`
}

// firstPrompt returns the prompt, or "" if the conversation is to be left out.
func (c shareGPTConversation) firstPrompt() (prompt, reason string, err error) {
	turns, key := c.Conversations, "conversations"
	if turns == nil {
		turns, key = c.Conversation, "conversation"
	}
	if turns == nil {
		return "", oddMissing, errors.New(`neither "conversations" nor "conversation" is there`)
	}
	first := -1
	for i, raw := range turns {
		turn, reason, err := readTurn(raw)
		if err != nil {
			return "", reason, fmt.Errorf("%s[%d]: %w", key, i, err)
		}
		switch {
		case first >= 0 && turn.text == "":
			return "", "", nil
		case first >= 0:
			return prompt, "", nil
		case turn.role == "human" || turn.role == "user":
			first, prompt = i, turn.text
		}
	}
	return "", "", nil
}

type shareGPTTurn struct{ role, text string }

// readTurn reads a turn, or a string that holds one.
func readTurn(raw []byte) (turn shareGPTTurn, reason string, err error) {
	if bytes.HasPrefix(raw, []byte(`"`)) {
		var inner string
		if err := json.Unmarshal(raw, &inner); err != nil {
			return turn, oddBroken, jsonFault(err)
		}
		raw = []byte(inner)
	}
	var fields struct{ From, Role, Value, Content json.RawMessage }
	if err := json.Unmarshal(raw, &fields); err != nil {
		return turn, oddBroken, errors.New("want a turn: an object with from and value, or role and content")
	}
	role, text := fields.From, fields.Value
	roleKey, textKey := "from", "value"
	if role == nil {
		role, roleKey = fields.Role, "role"
	}
	if text == nil {
		text, textKey = fields.Content, "content"
	}
	if role == nil || text == nil {
		return turn, oddMissing, errors.New("want from and value, or role and content")
	}
	if turn.role, reason, err = readText(roleKey, role); err == nil {
		turn.text, reason, err = readText(textKey, text)
	}
	return turn, reason, err
}

// readText reads a string, or the texts of a list of parts.
func readText(key string, raw json.RawMessage) (text, reason string, err error) {
	switch {
	case string(raw) == "null":
		return "", oddMissing, fmt.Errorf("%s is null", key)
	case raw[0] == '"':
		if err := json.Unmarshal(raw, &text); err != nil {
			return "", oddBroken, jsonFault(err)
		}
		return text, "", nil
	case raw[0] != '[':
		return "", oddValue, fmt.Errorf("%s: want a string, or a list of parts of type text", key)
	}
	var parts []struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", oddValue, fmt.Errorf("%s: want a string, or a list of parts of type text", key)
	}
	var all strings.Builder
	for i, p := range parts {
		if p.Type != "text" || p.Text == nil {
			return "", oddValue, fmt.Errorf("%s[%d] is of type %q: want text", key, i, p.Type)
		}
		all.WriteString(*p.Text)
	}
	return all.String(), "", nil
}
