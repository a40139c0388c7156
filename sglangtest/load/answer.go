package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// maxBody bounds an answer that is not streamed; with logprobs they reach some megabytes.
const maxBody = 256 << 20

// maxErrorBody bounds what is read for the message of an answer that is an error. What follows is thrown away.
const maxErrorBody = 1 << 20

// lingerTime is how long the end of a stream may follow its [DONE] or an error. The connection of one that takes longer is closed.
const lingerTime = 100 * time.Millisecond

// read reads the answer and fills in everything from Completion on.
func (s *Sender) read(ctx, rctx context.Context, clock Clock, a *attempt, resp *http.Response, p *Placement, res *Result) {
	res.Status = resp.StatusCode
	if by := resp.Header[SimulatedByHeader]; len(by) > 0 {
		res.SimulatedBy = by[0]
	}
	streamed := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
	if resp.StatusCode == http.StatusOK && s.stream && streamed {
		res.Streamed = true
		s.readStream(ctx, rctx, clock, a, resp.Body, p, res)
		return
	}
	most := int64(maxBody)
	if resp.StatusCode != http.StatusOK {
		most = maxErrorBody
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err == nil && int64(len(body)) == most {
		var more int64
		if more, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody)); resp.StatusCode == http.StatusOK && more > 0 && err == nil {
			err = fmt.Errorf("the answer is longer than %d MiB", maxBody>>20)
		}
	}
	at := clock.Now()
	res.complete(at)
	switch {
	case err != nil:
		s.failed(ctx, rctx, res, OutcomeTruncated, err)
	case resp.StatusCode != http.StatusOK:
		res.fail(OutcomeHTTP, wire.ErrorMessage(body))
	default:
		s.readWhole(body, a, res)
		p.tokens(at, res.OutputTokens, res.OutputTokens > 0)
		if res.Outcome == OutcomeOK && s.stream {
			res.fail(OutcomeProtocol, fmt.Sprintf("asked for an event stream, got %q", resp.Header.Get("Content-Type")))
		}
	}
	res.Overhead = clock.Now() - at
}

func (s *Sender) parse(data []byte, c *wire.Chunk) bool {
	if s.api == Generate {
		return wire.ParseGenerate(data, c)
	}
	return wire.ParseOpenAI(data, c)
}

func (s *Sender) readWhole(body []byte, a *attempt, res *Result) {
	c := &a.chunk
	body = wire.TrimMark(body)
	if !s.parse(body, c) {
		res.fail(OutcomeProtocol, "the answer is not a JSON object: "+excerpt(body))
		return
	}
	if c.BadCount != "" {
		res.fail(OutcomeProtocol, badCount(c))
		return
	}
	res.counts(c)
	if s.keepText {
		var text textReader
		text.keep = true
		text.add(c)
		res.Text = text.String()
	}
	if c.Failed {
		res.fail(OutcomeEngine, wire.Unquote(c.Message))
		return
	}
	if res.OutputTokens = max(c.CompletionTokens, 0); res.OutputTokens > 0 {
		res.FirstToken, res.LastToken, res.FirstTokens = res.Completion, res.Completion, res.OutputTokens
	}
	res.finish(c)
	res.judge(c.CompletionTokens >= 0)
}

// readStream reads an event stream. Each read is stamped when it returns, before anything is parsed.
func (s *Sender) readStream(ctx, rctx context.Context, clock Clock, a *attempt, body io.ReadCloser, p *Placement, res *Result) {
	var (
		broken  bool          // an error came
		ended   bool          // [DONE] was seen
		counted bool          // the server gave a token count
		finish  time.Duration // of the event with the finish reason
		closing *time.Timer
		text    textReader
		readErr error
	)
	text.keep, text.cumulative = s.keepText, s.api == Generate && !s.incremental
	a.events.Reset(body)
	at := clock.Now() // of the last read that returned anything
	for readErr == nil {
		if (ended || broken) && closing == nil {
			closing = time.AfterFunc(lingerTime, func() { body.Close() }) // fails the read, which waits for nothing more
		}
		var n int
		n, readErr = a.events.Fill()
		now := clock.Now()
		if n > 0 || readErr == io.EOF || !ended && !broken {
			at = now
		}
		for {
			data, ok := a.events.Next()
			if !ok {
				break
			}
			if ended {
				continue // nothing follows [DONE] that anyone defines
			}
			data = bytes.TrimSpace(data)
			if len(data) == 0 || data[0] == ':' {
				continue // a sign of life, which some gateways put behind "data:"
			}
			if string(data) == "[DONE]" {
				ended = true
				continue
			}
			c := &a.chunk
			if !s.parse(data, c) {
				res.fail(OutcomeProtocol, "an event is not a JSON object: "+excerpt(data))
				res.complete(at)
				return
			}
			if c.Failed {
				broken = true
				if res.Outcome == "" {
					res.fail(OutcomeEngine, wire.Unquote(c.Message))
				}
				continue
			}
			tokens, output, shown := 0, c.Output, at
			if c.FinishReason != nil {
				finish = at
			}
			if !output && finish > 0 && (counted || res.Chunks.Len() == 0) {
				// A token whose text is empty has no event on the chat route: the last one comes with the finish reason,
				// and only the usage that follows counts it (SGLang 0.5.23, entrypoints/openai/serving_chat.py).
				output, shown = true, max(finish, res.LastToken) // text may have come after the finish reason
			}
			if c.BadCount != "" {
				res.fail(OutcomeProtocol, badCount(c))
				res.complete(at)
				return
			}
			if c.CompletionTokens >= 0 {
				counted = true
				tokens = max(c.CompletionTokens-res.OutputTokens, 0)
				res.OutputTokens = max(c.CompletionTokens, res.OutputTokens)
			}
			if output && res.FirstEvent == 0 {
				res.FirstEvent = shown
			}
			added, ok := text.add(c)
			if !ok {
				res.fail(OutcomeProtocol, "an event's text does not begin with the text before it: the server streams "+
					"increments (--incremental-streaming-output); use WithIncrementalStreaming")
				res.complete(at)
				return
			}
			if output && (tokens > 0 || added > 0) {
				res.Chunks.Append(Chunk{At: shown, Tokens: tokens, TextBytes: added})
				first := res.FirstToken == 0
				if first {
					res.FirstToken = shown
				}
				res.LastToken = shown
				if shown == res.FirstToken {
					res.FirstTokens += tokens
				}
				p.tokens(shown, tokens, first)
			}
			res.counts(c)
			res.finish(c)
		}
		if readErr == nil {
			res.Overhead += clock.Now() - now
		}
	}
	if closing != nil && !closing.Stop() && readErr != io.EOF && ended {
		res.HeldOpen = true
	}
	res.complete(at)
	res.Text = text.String()
	switch {
	case ended:
		res.judge(counted)
	case res.Outcome != "": // an error event explains why the stream broke off
	case errors.Is(readErr, io.EOF):
		res.fail(OutcomeTruncated, "the stream ended without [DONE]")
	case errors.Is(readErr, wire.ErrEventTooLong):
		res.fail(OutcomeProtocol, readErr.Error())
	default:
		s.failed(ctx, rctx, res, OutcomeTruncated, readErr)
	}
}

func badCount(c *wire.Chunk) string {
	return fmt.Sprintf("the answer has no token count to go by: %s; want a number from 0 to %d", c.BadCount, MaxTokens)
}

func excerpt(b []byte) string {
	const most = 200
	if len(b) > most {
		return fmt.Sprintf("%q… (%d bytes)", b[:most], len(b))
	}
	return fmt.Sprintf("%q", b)
}

// A textReader follows the text of a stream. Chunks of /generate repeat the text from its beginning, unless the
// server runs with --incremental-streaming-output.
type textReader struct {
	keep       bool
	cumulative bool
	head       [16]byte // beginning of the text, to notice chunks that do not repeat it
	length     int      // of the latest text, as it stands in the JSON
	latest     []byte   // the latest text of a cumulative stream, if texts are kept
	deltas     strings.Builder
}

// add takes in a chunk and returns the number of bytes that it added; false if the text is not cumulative after all.
func (t *textReader) add(c *wire.Chunk) (int, bool) {
	if !t.cumulative {
		n := 0
		piece := func(inside []byte) {
			if t.keep && len(inside) > 0 {
				text := wire.Unquote(inside)
				t.deltas.WriteString(text)
				n += len(text)
			} else {
				n += len(inside)
			}
		}
		piece(c.Reasoning)
		piece(c.Text)
		if c.ToolCalls != nil {
			c.EachToolText(piece)
		}
		return n, true
	}
	if c.Text == nil {
		return 0, true // a sign of life, or an event with counts only
	}
	n := len(c.Text)
	if n < t.length && c.FinishReason == nil { // at the end, a stop string may have been cut off
		return 0, false
	}
	known := min(n, t.length, len(t.head))
	if string(c.Text[:known]) != string(t.head[:known]) {
		return 0, false
	}
	if known < len(t.head) {
		copy(t.head[:], c.Text)
	}
	grown := max(n-t.length, 0)
	if t.keep {
		if grown > 0 { // as it is in Go, not in JSON
			grown = len(wire.Unquote(c.Text[t.length:]))
		}
		t.latest = append(t.latest[:0], c.Text...)
	}
	t.length = n
	return grown, true
}

func (t *textReader) String() string {
	if t.cumulative {
		return wire.Unquote(t.latest)
	}
	return t.deltas.String()
}
