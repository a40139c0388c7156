package sim

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
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
	notify    chan struct{}
	perPrompt int  // answers for each prompt
	array     bool // the native answer is an array: several prompts, or n > 1
	stream    bool
	interval  int // stream_interval, ≥ 1
	received  time.Time
	sent      time.Time // first event or answer handed out
}

// A dialect writes the answers of one API.
type dialect interface {
	// appendEvents appends the events that tell what s got beyond its first sent tokens.
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
}

// An inputError is a fault of the request that SGLang's own code finds, a ValueError there.
type inputError string

func (e inputError) Error() string { return string(e) }

// A bodyError is a fault of the body that SGLang's schema finds, before any stream begins.
type bodyError string

func (e bodyError) Error() string { return string(e) }

// maxStreams bounds the answers to one call.
const maxStreams = 4096

// newCall makes the streams of a demand after the checks of tokenizer_manager.py.
func (s *Server) newCall(d demand, received time.Time) (*call, error) {
	context := s.host.loop.Engine.Config().ContextLength
	c := &call{notify: make(chan struct{}, 1), received: received, interval: 1}
	if d.n < 1 {
		return nil, inputError("n must be at least 1, got " + strconv.Itoa(d.n) + ".")
	}
	if d.n > maxStreams/max(1, len(d.prompts)) {
		return nil, inputError(fmt.Sprintf("%d prompts times n = %d is more than the %d answers that the simulation makes for one call.", len(d.prompts), d.n, maxStreams))
	}
	c.perPrompt = d.n
	c.array = len(d.prompts) > 1 || d.n > 1
	for i, p := range d.prompts {
		tokens := max(1, d.tokens[i])
		if tokens >= context {
			return nil, inputError(fmt.Sprintf("The input (%d tokens) is longer than the model's context length (%d tokens).", tokens, context))
		}
		maxNew, stopAfter := context, 0
		if d.maxNew != nil {
			maxNew = *d.maxNew
			if maxNew > context || tokens+maxNew > context {
				return nil, inputError(fmt.Sprintf("Requested token count exceeds the model's maximum context length of %d tokens. You requested a "+
					"total of %d tokens: %d tokens from the input messages and %d tokens for the completion. Please reduce the number of tokens in the "+
					"input messages or the completion to fit within the limit.", context, tokens+maxNew, tokens, maxNew))
			}
		} else if !d.ignoreEOS {
			stopAfter = max(openAnswer, d.minNew)
		}
		for k := range d.n {
			st := &stream{index: len(c.streams), promptTokens: tokens, received: received, notify: c.notify,
				req: Request{Prompt: p, InputLen: tokens, MaxNewTokens: maxNew, StopAfter: stopAfter, IgnoreEOS: d.ignoreEOS}}
			switch {
			case len(d.rids) == len(d.prompts) && d.n == 1:
				st.rid = d.rids[i]
			case len(d.rids) == 1:
				st.rid = fmt.Sprintf("%s_%d", d.rids[0], i*d.n+k)
			case len(d.rids) > 0:
				return nil, inputError("The number of rids must be that of the prompts.")
			default:
				st.rid = fmt.Sprintf("%032x", s.nextID.Add(1))
			}
			c.streams = append(c.streams, st)
		}
	}
	return c, nil
}

// respond runs a call to its end and writes the answer.
func (s *Server) respond(w http.ResponseWriter, r *http.Request, c *call, d dialect) error {
	if !s.host.submit(c.streams) {
		return inputError("Duplicate request ID detected: " + c.streams[0].rid)
	}
	defer s.host.leave(c.streams)
	if c.stream {
		s.respondStream(w, r, c, d)
		return nil
	}
	for open := len(c.streams); open > 0; {
		select {
		case <-c.notify:
		case <-r.Context().Done():
			return nil
		case <-s.base.Done():
			panic(http.ErrAbortHandler) // the connection breaks, as when a server is killed
		}
		open = 0
		for _, st := range c.streams {
			if st.progress().finish == nil {
				open++
			}
		}
	}
	c.sent = time.Now()
	for _, st := range c.streams {
		if f := st.progress().finish; f.Kind == FinishAbort && f.Status != 0 {
			writeBody(w, f.Status, "application/json", d.appendRefusal(nil, f))
			return nil
		}
	}
	writeBody(w, http.StatusOK, "application/json", d.appendAnswer(nil, c))
	return nil
}

func (s *Server) respondStream(w http.ResponseWriter, r *http.Request, c *call, d dialect) {
	flush := startEvents(w)
	sent := make([]int, len(c.streams))
	ended := make([]bool, len(c.streams))
	var b []byte
	for open := len(c.streams); open > 0; {
		select {
		case <-c.notify:
		case <-r.Context().Done():
			return
		case <-s.base.Done():
			panic(http.ErrAbortHandler)
		}
		b = b[:0]
		for i, st := range c.streams {
			p := st.progress()
			if ended[i] || p.finish == nil && (p.tokens == sent[i] || sent[i] > 0 && (p.tokens-1)/c.interval == (sent[i]-1)/c.interval) {
				continue
			}
			if c.sent.IsZero() {
				c.sent = time.Now()
			}
			b = d.appendEvents(b, c, st, sent[i], p)
			sent[i] = p.tokens
			if p.finish != nil {
				ended[i] = true
				open--
			}
		}
		if open == 0 {
			b = append(d.appendEnd(b, c), "data: [DONE]\n\n"...)
		}
		if len(b) > 0 {
			if _, err := w.Write(b); err != nil {
				return
			}
			flush()
		}
	}
}

// startEvents begins an event stream and returns the function that sends what was written.
func startEvents(w http.ResponseWriter) func() {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher).Flush
	flush()
	return flush
}

// sampling holds the sampling parameters that matter to a simulation.
type sampling struct {
	maxNew    *int
	minNew    int
	n         int
	ignoreEOS bool
	interval  int
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
