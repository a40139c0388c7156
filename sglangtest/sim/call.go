package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// openAnswer is the number of tokens after which the simulated model ends an answer whose length the request left
// open.
const openAnswer = 128

// A call is one HTTP request for generations.
type call struct {
	streams   []*stream
	prefixes  []*stream // computed first, so that the answers to one prompt share it: see newCall
	notify    chan struct{}
	perPrompt int  // answers for each prompt
	array     bool // the native answer is an array: several prompts, or n > 1
	stream    bool
	kickStart bool // the stream begins with its first output
	interval  int  // stream_interval, ≥ 1
	logprobs  *logprobs
	sent      time.Time // when the answer that is not streamed was handed out
}

// A dialect writes the answers of one API.
type dialect interface {
	// appendEvents appends the events that tell what s got beyond its first sent tokens; 0: these events are its first.
	appendEvents(b []byte, c *call, s *stream, sent int, p progress) []byte
	// appendEnd appends what comes between the last event and [DONE].
	appendEnd(b []byte, c *call) []byte
	// appendAnswer appends the answer that is not streamed.
	appendAnswer(b []byte, c *call) []byte
	// appendRefusal appends the error body for a request that the engine refused.
	appendRefusal(b []byte, f *Finish) []byte
}

// A demand is what a request asks for, in either API.
type demand struct {
	prompts   []load.Prompt
	tokens    []int // of each prompt
	rids      []string
	n         int
	maxNew    *int
	minNew    int
	ignoreEOS bool
	stops     []string
	stopIDs   []int
	noTrim    bool
	priority  lax
	lora      string // the adapter that the first prompt asks for
	apart     string // a member by which equal prompts would share nothing
	routed    *int   // routed_dp_rank; nil: any
	stream    bool
	interval  int // 0: the server's
	logprobs  *logprobs
}

// An inputError is a fault of the request that SGLang's own code finds, a ValueError there.
type inputError string

func (e inputError) Error() string { return string(e) }

// A raised error is one that SGLang's handler does not catch: a plain 500, and in a stream the end of the connection.
type raised string

func (e raised) Error() string { return string(e) }

// maxStreams bounds the answers to one call.
const maxStreams = 4096

// newCall makes the streams of a demand after the checks of tokenizer_manager.py. As there, several answers to one prompt
// begin with a request for none, which puts the prompt into the cache (_handle_batch_request).
func (s *Server) newCall(d demand, received time.Time) (*call, error) {
	if text := s.host.routedFault(d.routed); text != "" {
		return nil, inputError(text)
	}
	if d.lora != "" {
		if slices.ContainsFunc(s.lacks, func(l lack) bool { return l.name == "enable_lora" }) {
			return nil, inputError("The simulation has no LoRA adapters.")
		}
		return nil, inputError("LoRA adapter '" + d.lora + "' was requested, but LoRA is not enabled. Please launch the server with --enable-lora flag " +
			"and preload adapters using --lora-paths or /load_lora_adapter endpoint.")
	}
	if d.apart != "" {
		return nil, inputError("The simulation does not take " + d.apart + ".")
	}
	context := s.host.config().ContextLength
	c := &call{notify: make(chan struct{}, 1), stream: d.stream, interval: d.interval, logprobs: d.logprobs}
	if c.interval == 0 {
		c.interval = s.opts.streamInterval
	}
	if d.n < 1 {
		return nil, inputError("n must be at least 1, got " + strconv.Itoa(d.n) + ".")
	}
	if d.n > maxStreams/max(1, len(d.prompts)) {
		return nil, inputError(fmt.Sprintf("%d prompts times n = %d is more than the %d answers that the simulation makes for one call.", len(d.prompts), d.n, maxStreams))
	}
	if len(d.rids) > 1 && len(d.rids) != len(d.prompts) {
		return nil, inputError("The number of rids must be that of the prompts.")
	}
	priority, refused := s.opts.priority(d.priority)
	label := s.opts.priorityLabel(d.priority)
	c.perPrompt = d.n
	c.array = len(d.prompts) > 1 || d.n > 1
	for i, p := range d.prompts {
		tokens := max(1, d.tokens[i])
		if tokens >= context {
			return nil, inputError(fmt.Sprintf("The input (%d tokens) is longer than the model's context length (%d tokens).", tokens, context))
		}
		req := Request{Prompt: p, InputLen: tokens, MaxNewTokens: context, IgnoreEOS: d.ignoreEOS, Priority: priority}
		if d.maxNew != nil {
			req.MaxNewTokens = *d.maxNew
			if *d.maxNew > context || tokens+*d.maxNew > context {
				return nil, inputError(fmt.Sprintf("Requested token count exceeds the model's maximum context length of %d tokens. You requested a "+
					"total of %d tokens: %d tokens from the input messages and %d tokens for the completion. Please reduce the number of tokens in the "+
					"input messages or the completion to fit within the limit.", context, tokens+*d.maxNew, tokens, *d.maxNew))
			}
		}
		if l := d.logprobs; l != nil && l.start >= 0 && l.start < tokens {
			req.Prompt = load.Prompt{} // what is wanted of the prompt must be computed anew
		}
		req.OutputIDs = answerIDs(max(0, min(req.MaxNewTokens, context-tokens)))
		stop := d.stop()
		req.StopAfter = stop.after
		add := func(to *[]*stream, rid string, req Request) {
			*to = append(*to, &stream{rid: rid, index: len(*to), prompt: p, promptTokens: tokens, received: received, notify: c.notify, streaming: d.stream,
				priority: label, interval: c.interval, stop: stop, req: req, refused: refused, routed: d.routed})
		}
		if d.n > 1 {
			none := req
			none.MaxNewTokens, none.StopAfter = 0, 0
			add(&c.prefixes, s.newRID(), none)
		}
		for range d.n {
			rid := ""
			switch {
			case d.n > 1 || len(d.rids) == 0:
				rid = s.newRID()
			case len(d.prompts) > 1 && len(d.rids) == 1:
				rid = fmt.Sprintf("%s_%d", d.rids[0], i)
			default:
				rid = d.rids[i]
			}
			add(&c.streams, rid, req)
		}
	}
	return c, nil
}

func (s *Server) newRID() string { return fmt.Sprintf("%032x", s.nextID.Add(1)) }

// A stopping says where an answer ends by itself.
type stopping struct {
	after   int    // tokens; 0: nowhere
	matched string // what ended it, in JSON
	cut     int    // length of the text before that; -1: the text is not trimmed
}

// stop is the first of what can end the answers: a stop string or a stop token that the filler has, or, if the request
// leaves the length open, the model.
func (d demand) stop() stopping {
	first := stopping{cut: -1}
	end := func(tokens int, matched string, cut int) {
		if tokens > 0 && tokens >= d.minNew && (first.after == 0 || tokens <= first.after) {
			first = stopping{tokens, matched, cut}
			if d.noTrim {
				first.cut = -1
			}
		}
	}
	if d.maxNew == nil && !d.ignoreEOS {
		end(max(openAnswer, d.minNew), stopToken, -1)
	}
	if tokens, id := stopOfIDs(d.stopIDs); !d.ignoreEOS {
		end(tokens, strconv.Itoa(id), textLen(tokens-1))
	}
	tokens, text, cut := stopOf(d.stops)
	end(tokens, string(appendString(nil, text)), cut)
	return first
}

// textEnd is the length of the text that s shows when it has p.
func (s *stream) textEnd(p progress) int {
	if p.finish != nil && p.finish.Kind == FinishStop && s.stop.cut >= 0 {
		return s.stop.cut
	}
	return textLen(p.tokens)
}

// respond runs a call to its end and writes the answer. In a stream an error comes as an event.
func (s *Server) respond(w http.ResponseWriter, r *http.Request, c *call, d dialect) error {
	if err := s.compute(r, c, c.prefixes); err != nil {
		return err
	}
	if !c.stream {
		if err := s.compute(r, c, c.streams); err != nil {
			return err
		}
		c.sent = time.Now()
		s.answered(c)
		for _, st := range c.streams {
			if f := st.progress().finish; f.Kind == FinishAbort && f.Status != 0 {
				writeBody(w, f.Status, "application/json", d.appendRefusal(nil, f))
				return nil
			}
		}
		writeBody(w, http.StatusOK, "application/json", d.appendAnswer(nil, c))
		return nil
	}
	if used, ok := s.host.submit(c.streams); !ok {
		return duplicate(used)
	}
	if c.kickStart {
		if err := s.wait(r, c, c.streams, true); err != nil {
			return err
		}
	}
	defer s.depart(c, c.streams)
	s.respondStream(w, r, c, d)
	return nil
}

func duplicate(rid string) error { return inputError("Duplicate request ID detected: " + rid) }

// compute runs streams to their end.
func (s *Server) compute(r *http.Request, c *call, streams []*stream) error {
	if len(streams) == 0 {
		return nil
	}
	if used, ok := s.host.submit(streams); !ok {
		return duplicate(used)
	}
	return s.wait(r, c, streams, false)
}

// answered counts how late a whole answer is: since its last stream ended.
func (s *Server) answered(c *call) {
	var due time.Time
	for _, st := range c.streams {
		if at := st.progress().at; at.After(due) {
			due = at
		}
	}
	s.host.late.add(c.sent.Sub(due))
}

// respondStream writes the events of a call. Its loop is what each token of each stream costs.
func (s *Server) respondStream(w http.ResponseWriter, r *http.Request, c *call, d dialect) {
	flush := s.startEvents(w)
	control := http.NewResponseController(w)
	gone, broken := r.Context().Done(), s.base.Done()
	sent := make([]int, len(c.streams))
	ended := make([]bool, len(c.streams))
	deadline := time.Now().Add(s.writeTimeout) // as startEvents has set it
	var b []byte
	for open := len(c.streams); open > 0; {
		var free time.Time // when the write before was over, if results had come meanwhile
		select {
		case <-c.notify:
			if len(b) > 0 {
				free = time.Now()
			}
		default:
			select {
			case <-c.notify:
			case <-gone:
				return
			case <-broken:
				panic(http.ErrAbortHandler)
			}
		}
		b = b[:0]
		var due time.Time
		for i, st := range c.streams {
			if ended[i] {
				continue
			}
			p, pending := st.take()
			if pending.IsZero() {
				continue
			}
			if due.IsZero() || pending.Before(due) {
				due = pending
			}
			if p.finish == nil {
				p.tokens -= (p.tokens - 1) % c.interval // what came since is not sent yet
			} else {
				ended[i] = true
				open--
			}
			b = d.appendEvents(b, c, st, sent[i], p)
			sent[i] = p.tokens
		}
		if open == 0 {
			b = append(d.appendEnd(b, c), "data: [DONE]\n\n"...)
		}
		if len(b) == 0 {
			continue
		}
		now := time.Now()
		if free.After(due) {
			due = free // before that the client kept us
		}
		s.host.late.add(now.Sub(due))
		if deadline.Sub(now) < s.writeTimeout/2 { // not with each event: it costs as much as making one
			deadline = now.Add(s.writeTimeout)
			control.SetWriteDeadline(deadline) // without an effect behind a middleware that hides it
		}
		if _, err := w.Write(b); err != nil {
			return
		}
		flush()
	}
}

// startEvents begins an event stream and returns the function that sends what was written. The client may take
// writeTimeout for it.
func (s *Server) startEvents(w http.ResponseWriter) func() {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.writeTimeout)) // that of an answer before may have passed
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher).Flush
	flush()
	return flush
}

// checkRanges follows sampling_params.py, SamplingParams.verify. A nil pointer is a parameter that was not given.
// The number is shown as the API's schema holds it.
func checkRanges(p map[string]*float64, show func(float64) string) error {
	for _, c := range []struct {
		name string
		ok   func(v float64) bool
		want string
	}{
		{"temperature", func(v float64) bool { return v >= 0 && !math.IsInf(v, 0) }, "must be a non-negative finite number"},
		{"top_p", func(v float64) bool { return v > 0 && v <= 1 }, "must be in (0, 1]"},
		{"min_p", func(v float64) bool { return v >= 0 && v <= 1 }, "must be in [0, 1]"},
		{"top_k", func(v float64) bool { return v == -1 || v >= 1 }, "must be -1 (disable) or at least 1"},
		{"frequency_penalty", func(v float64) bool { return v >= -2 && v <= 2 }, "must be in [-2, 2]"},
		{"presence_penalty", func(v float64) bool { return v >= -2 && v <= 2 }, "must be in [-2, 2]"},
		{"repetition_penalty", func(v float64) bool { return v > 0 && v <= 2 }, "must be in (0, 2]"},
		{"max_new_tokens", func(v float64) bool { return v >= 0 }, "must be at least 0"},
		{"min_new_tokens", func(v float64) bool { return v >= 0 }, "must be at least 0"},
	} {
		if v := p[c.name]; v != nil && !c.ok(*v) {
			return inputError(c.name + " " + c.want + ", got " + show(*v) + ".")
		}
	}
	return nil
}

// showFloat writes a number as Python writes a float.
func showFloat(v float64) string {
	s := strconv.FormatFloat(v, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// appendSeconds appends a duration in seconds, or a time as Unix seconds, with microseconds.
func appendSeconds(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, d.Seconds(), 'f', 6, 64)
}

func appendUnix(b []byte, t time.Time) []byte {
	us := t.UnixMicro()
	b = append(strconv.AppendInt(b, us/1e6, 10), '.')
	for d := int64(1e5); d > 0; d /= 10 {
		b = append(b, byte('0'+us/d%10))
	}
	return b
}

func trimJSON(raw []byte) []byte { return bytes.TrimSpace(raw) }

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(trimJSON(raw)) == "null" }
