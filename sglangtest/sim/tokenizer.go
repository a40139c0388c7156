package sim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/bpe"
	"github.com/sglangtest/harness/sglangtest/load"
)

// WithTokenizer makes the server count texts as a real server with this tokenizer.json does, or with the one in this
// model folder. The ids of a prompt are those of the prefix cache, so that texts with a common beginning share it, and
// /tokenize and /detokenize are exact. Supported are byte-level BPE tokenizers with the pre-tokenizer of GPT-2, Llama 3 or
// Qwen 2; others are an error. Without this option texts are counted by [load.TextTokens].
//
// A chat becomes text by the chat template of the tokenizer_config.json beside it, if that is one of those known here:
// of Llama 3, of Qwen 2.5 (without tools), and of the tiny model that SGLang was recorded with. Any other is not
// followed: each message is then its role, a newline, its content and a newline, and "assistant" and a newline end the
// prompt.
//
// Answers remain filler: their ids are not those of this tokenizer for their text, so that an answer is found again by its
// ids and not by its text.
func WithTokenizer(path string) Option {
	return func(o *options) (err error) {
		o.tokenizer, err = loadTokenizer(path)
		return err
	}
}

// A tokenizer is a tokenizer.json with the chat template beside it.
type tokenizer struct {
	*bpe.Tokenizer
	render func(messages []load.Message) string
}

func loadTokenizer(path string) (*tokenizer, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "tokenizer.json")
	}
	b, err := bpe.Load(path)
	if err != nil {
		return nil, fmt.Errorf("sim: tokenizer: %w", err)
	}
	t := &tokenizer{b, plainChat}
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(path), "tokenizer_config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sim: tokenizer: %w", err)
	}
	var config struct {
		ChatTemplate json.RawMessage `json:"chat_template"` // a text, or a list of named ones
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("sim: tokenizer_config.json: %w", err)
	}
	var template string
	if json.Unmarshal(config.ChatTemplate, &template) == nil {
		sum := sha256.Sum256([]byte(template))
		if render := knownTemplates[hex.EncodeToString(sum[:])]; render != nil {
			t.render = render
		}
	}
	return t, nil
}

// knownTemplates are chat templates by their SHA-256.
var knownTemplates = map[string]func([]load.Message) string{
	"ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": llama3Chat, // Llama 3 Instruct
	"cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": qwenChat,   // Qwen 2.5 Instruct
	"e5717b1ead56218470181f1634d5484762d796eb2794ed4ab61569beffe95648": tinyChat,   // of the recordings on a CPU
}

func plainChat(messages []load.Message) string {
	var b strings.Builder
	for _, m := range messages {
		b.WriteString(m.Role + "\n" + m.Content + "\n")
	}
	return b.String() + "assistant\n"
}

func llama3Chat(messages []load.Message) string {
	var b strings.Builder
	b.WriteString("<|begin_of_text|>")
	for _, m := range messages {
		b.WriteString("<|start_header_id|>" + m.Role + "<|end_header_id|>\n\n" + strings.TrimSpace(m.Content) + "<|eot_id|>")
	}
	return b.String() + "<|start_header_id|>assistant<|end_header_id|>\n\n"
}

func qwenChat(messages []load.Message) string {
	var b strings.Builder
	if len(messages) == 0 || messages[0].Role != "system" {
		b.WriteString("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n")
	}
	for i, m := range messages {
		if m.Role != "tool" {
			b.WriteString("<|im_start|>" + m.Role + "\n" + m.Content + "<|im_end|>\n")
			continue
		}
		if i == 0 || messages[i-1].Role != "tool" {
			b.WriteString("<|im_start|>user")
		}
		b.WriteString("\n<tool_response>\n" + m.Content + "\n</tool_response>")
		if i == len(messages)-1 || messages[i+1].Role != "tool" {
			b.WriteString("<|im_end|>\n")
		}
	}
	return b.String() + "<|im_start|>assistant\n"
}

func tinyChat(messages []load.Message) string {
	var b strings.Builder
	for _, m := range messages {
		b.WriteString("<|" + m.Role + "|>" + m.Content + "</s>")
	}
	return b.String() + "<|assistant|>"
}

// textPrompt returns the prompt of a text and its length in tokens.
func (s *Server) textPrompt(text string) (load.Prompt, int) {
	if t := s.opts.tokenizer; t != nil {
		ids := t.Encode(text)
		return load.Prompt{TokenIDs: ids}, len(ids)
	}
	return load.Prompt{Text: text}, load.TextTokens(text)
}

// chatPrompt returns the prompt of a chat and its length in tokens.
func (s *Server) chatPrompt(messages []chatMessage) (load.Prompt, int) {
	var p load.Prompt
	tokens := 0
	for _, m := range messages {
		text := m.text()
		p.Messages = append(p.Messages, load.Message{Role: m.Role, Content: text})
		tokens += load.TextTokens(text) + load.MessageTokens
	}
	if t := s.opts.tokenizer; t != nil {
		ids := t.Append(nil, t.render(p.Messages))
		return load.Prompt{TokenIDs: ids}, len(ids)
	}
	return p, tokens
}

// prefixCache says in /server_info what the prefix cache works on.
func (s *Server) prefixCache() string {
	if s.opts.tokenizer != nil {
		return "simulated on token ids; an answer is matched by its ids, not by its text"
	}
	return "simulated on token ids; texts and chats match by blocks of 64 bytes, counted as 16 tokens; an answer is matched by its ids, not by its text"
}

// tokenize is /tokenize. Without a tokenizer the ids are stand-ins.
func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	fields, raw, ok := s.readObject(w, r)
	if !ok {
		return
	}
	var text string
	var texts []string
	var messages []chatMessage
	special := true
	if v := fields["add_special_tokens"]; !isNull(v) && json.Unmarshal(v, &special) != nil {
		s.refuse(w, r, faults{wrong("bool_type", inBody("add_special_tokens"), "Input should be a valid boolean", v)})
		return
	}
	var ids, count []byte
	switch prompt, has := fields["prompt"]; {
	case !isNull(fields["messages"]):
		if json.Unmarshal(fields["messages"], &messages) != nil {
			s.refuse(w, r, faults{wrong("list_type", inBody("messages"), "Input should be a valid list", fields["messages"])})
			return
		}
		p, n := s.chatPrompt(messages)
		ids, count = appendTokens(nil, p, n), strconv.AppendInt(nil, int64(n), 10)
	case !has:
		s.refuse(w, r, faults{missing(inBody("prompt"), pyRepr(raw))})
		return
	case json.Unmarshal(prompt, &text) == nil:
		ids, count = s.appendTokenized(nil, nil, text, special)
	case json.Unmarshal(prompt, &texts) == nil:
		ids, count = []byte{'['}, []byte{'['}
		for i, t := range texts {
			if i > 0 {
				ids, count = append(ids, ','), append(count, ',')
			}
			ids, count = s.appendTokenized(ids, count, t, special)
		}
		ids, count = append(ids, ']'), append(count, ']')
	default:
		s.refuse(w, r, faults{wrong("string_type", inBody("prompt", "str"), "Input should be a valid string", prompt),
			wrong("list_type", inBody("prompt", "list[str]"), "Input should be a valid list", prompt)})
		return
	}
	writeBody(w, http.StatusOK, "application/json", fmt.Appendf(nil, `{"tokens":%s,"count":%s,"max_model_len":%d}`, ids, count, s.EngineConfig().ContextLength))
}

// appendTokenized appends the ids of a text as a list, and their number.
func (s *Server) appendTokenized(ids, count []byte, text string, special bool) (_, _ []byte) {
	p, n := s.textPrompt(text)
	if t := s.opts.tokenizer; t != nil && !special {
		p.TokenIDs = t.Append(nil, text)
		n = len(p.TokenIDs)
	}
	return appendTokens(ids, p, n), strconv.AppendInt(count, int64(n), 10)
}

// appendTokens appends the ids of a prompt as a list; stand-ins if it has none.
func appendTokens(b []byte, p load.Prompt, n int) []byte {
	b = append(b, '[')
	if p.TokenIDs == nil {
		return append(appendIDs(b, 0, n), ']')
	}
	for i, id := range p.TokenIDs {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(id), 10)
	}
	return append(b, ']')
}

// detokenize is /detokenize.
func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) {
	fields, raw, ok := s.readObject(w, r)
	if !ok {
		return
	}
	skip := true
	if v := fields["skip_special_tokens"]; !isNull(v) && json.Unmarshal(v, &skip) != nil {
		s.refuse(w, r, faults{wrong("bool_type", inBody("skip_special_tokens"), "Input should be a valid boolean", v)})
		return
	}
	tokens, has := fields["tokens"]
	var ids []int32
	var lists [][]int32
	var text []byte
	switch {
	case !has:
		s.refuse(w, r, faults{missing(inBody("tokens"), pyRepr(raw))})
		return
	case json.Unmarshal(tokens, &ids) == nil:
		text = appendString(nil, s.detokenized(ids, skip))
	case json.Unmarshal(tokens, &lists) == nil:
		text = []byte{'['}
		for i, l := range lists {
			if i > 0 {
				text = append(text, ',')
			}
			text = appendString(text, s.detokenized(l, skip))
		}
		text = append(text, ']')
	default:
		s.refuse(w, r, faults{wrong("list_type", inBody("tokens", "list[int]"), "Input should be a valid list", tokens),
			wrong("list_type", inBody("tokens", "list[list[int]]"), "Input should be a valid list", tokens)})
		return
	}
	writeBody(w, http.StatusOK, "application/json", append(append([]byte(`{"text":`), text...), '}'))
}

// detokenized returns the text of ids.
func (s *Server) detokenized(ids []int32, skipSpecial bool) string {
	t := s.opts.tokenizer
	switch {
	case t == nil:
		var b strings.Builder
		for _, id := range ids {
			b.WriteString(tokenText(int(id)))
		}
		return b.String()
	case skipSpecial:
		return t.Decode(ids)
	}
	return t.DecodeAll(ids)
}
