package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// place hands a request over to the dispatcher.
func (s *run) place(f *flight) {
	f.due = s.now
	s.waiting.push(f)
	s.core.Arrive(s.now, &f.ticket)
	s.carryOut()
}

// carryOut does what the dispatcher has decided. What is done can be an event for it, so this goes on until
// there is nothing more.
func (s *run) carryOut() {
	for {
		a, ok := s.core.Next()
		if !ok {
			break
		}
		f := a.Ticket.Owner.(*flight)
		s.waiting.remove(f)
		f.due = s.now
		if a.Verdict == policy.VerdictReject {
			s.fail(f, load.OutcomeRejected, a.Reason)
		} else {
			f.note = a.Note
			s.dispatch(f, s.workers[a.Worker-1])
		}
	}
	if err := s.core.Err(); err != nil && s.err == nil {
		s.err = fmt.Errorf("fleet: %w", err)
	}
	at := never
	if t, ok := s.core.Wake(); ok {
		at = t
	}
	if at != s.timers.at[holdTimer] {
		s.timers.set(holdTimer, at)
	}
}

// decide carries out what the dispatcher has decided and hands over the requests that have a place under the
// cap, in order of arrival.
func (s *run) decide() {
	s.carryOut()
	for s.err == nil && s.queue.len() > 0 && (s.cfg.cap == 0 || s.live < s.cfg.cap) {
		s.live++
		s.place(s.queue.pop())
	}
}

// dispatch sends f to a worker.
func (s *run) dispatch(f *flight, w *worker) {
	f.worker = w
	w.flights.push(f)
	if !w.up {
		s.fail(f, load.OutcomeRefused, "connection refused: the simulated server is down")
		return
	}
	w.expect(arrival{s.now + w.Profile.Ingest + time.Duration(f.prompt())*w.Profile.IngestToken, f})
	s.reschedule(w)
	if s.cfg.timeout > 0 {
		s.deadline.push(f)
		s.setDeadline()
	}
}

// admit gives the scheduler a request that has reached it, after the checks of the server's front end
// (tokenizer_manager.py, _validate_one_request).
func (s *run) admit(w *worker, f *flight) {
	context := w.loop.Engine.Config().ContextLength
	refuse := func(message string) {
		w.going.push(delivery{at: s.now + w.Profile.Egress, flight: f, refusal: message})
	}
	switch total := f.prompt() + f.load.OutputLen; {
	case f.prompt() >= context:
		refuse(fmt.Sprintf("The input (%d tokens) is longer than the model's context length (%d tokens).", f.prompt(), context))
		return
	case total > context:
		refuse(fmt.Sprintf("Requested token count exceeds the model's maximum context length of %d tokens. You requested a total of %d tokens.", context, total))
		return
	}
	p := f.load.Sampling
	f.request = sim.Request{Prompt: f.load.Prompt, InputLen: f.prompt(), MaxNewTokens: f.load.OutputLen, Priority: w.Config.Priority(f.load.Priority),
		IgnoreEOS:    p == nil || p.IgnoreEOS == nil || *p.IgnoreEOS,
		OutputStream: load.AnswerStream(f.load.ID), Owner: f}
	w.loop.Add(s.now, &f.request)
	f.short = f.request.MaxNewTokens < f.load.OutputLen
}

// deliver carries out what the client sees.
func (s *run) deliver(w *worker, d delivery) {
	f := d.flight
	if f.ended {
		return
	}
	if d.finish == nil && d.refusal == "" {
		if d.tokens > 0 {
			s.core.Chunk(s.now, &f.ticket, d.tokens)
		} else {
			s.core.FirstToken(s.now, &f.ticket)
		}
		return
	}
	res := s.result(f)
	res.Status = 200
	switch {
	case d.refusal != "": // an error object in the stream, whose status was sent before
		res.Outcome, res.Message = load.OutcomeEngine, d.refusal
	case d.finish.Kind == sim.FinishAbort:
		res.Outcome, res.Message, res.FinishReason = load.OutcomeAbort, d.finish.Message, "abort"
	case d.finish.Kind == sim.FinishStop:
		res.FinishReason = "stop"
	default:
		res.FinishReason = "length"
		if f.short {
			w.short++
		}
	}
	s.end(f, res)
}

// result prepares the result of f, which ends now, as a success.
func (s *run) result(f *flight) *load.Result {
	chunks := s.res.Chunks
	chunks.Reset()
	r := &f.load
	s.res = load.Result{ID: r.ID, Conversation: r.Conversation, Turn: r.Turn, Arrival: r.Arrival, Due: f.due, Released: f.due, Send: f.due,
		Completion: s.now, API: load.Generate, Outcome: load.OutcomeOK, InputLen: r.InputLen, OutputLen: r.OutputLen, Chunks: chunks,
		CachedTokens: load.NotReported, Retractions: load.NotReported}
	res := &s.res
	if f.worker == nil {
		res.Send = s.now
		return res
	}
	res.Routed, res.Route = f.due, f.note
	res.Worker, res.Sent, res.Reused, res.Streamed = f.worker.Name, true, true, true
	res.SimulatedBy = f.worker.Profile.Name
	res.PromptTokens, res.CachedTokens, res.Retractions = f.prompt(), f.request.CachedTokens(), f.request.Retractions()
	if e := f.worker.loop.Engine; f.tokens > 0 {
		if n := e.Produced(&f.request) - f.tokens; n > 0 { // not reported yet
			f.decoded(n, e.DecodeSteps())
		}
	}
	f.fill(res, s.now, !s.cfg.noTimes)
	return res
}

// fail ends f now, with a failure of the client's side or below HTTP.
func (s *run) fail(f *flight, o load.Outcome, message string) {
	res := s.result(f)
	res.Outcome, res.Message = o, message
	res.PromptTokens, res.CachedTokens = 0, load.NotReported // they come with the last event of an answer
	if o == load.OutcomeRefused {
		res.Sent, res.Streamed, res.Reused, res.Send = false, false, false, s.now
	}
	if res.FirstToken > 0 {
		res.Status = 200
	}
	s.end(f, res)
}

// end records the end of f, unless another attempt follows.
func (s *run) end(f *flight, res *load.Result) {
	f.ended = true
	s.idle = 0
	if f.worker != nil {
		f.worker.flights.remove(f)
		if s.core.End(s.now, &f.ticket, res) && !s.abandoned {
			again := newFlight(f.load)
			again.ticket = f.ticket // the dispatcher knows it as the same request
			again.own()
			again.due = s.now
			s.waiting.push(again)
			s.core.Arrive(s.now, &again.ticket)
			return
		}
	}
	s.live--
	s.clock(s.now)
	s.rec.Record(res)
	f.before, f.stretch = nil, stretch{} // nothing of the log is needed any more
	if s.cfg.report != nil {
		if s.ended++; s.ended%s.cfg.every == 0 {
			s.cfg.report()
		}
	}
}

// abandon records what has arrived and not ended as cancelled and returns err.
func (s *run) abandon(err error) error {
	message := err.Error()
	if s.ctx.Err() != nil {
		message = context.Cause(s.ctx).Error()
	}
	var open []*flight
	for _, w := range s.workers {
		open = append(open, w.flights.all()...)
	}
	for _, f := range s.waiting.all() {
		s.core.Cancel(s.now, &f.ticket)
		f.due = s.now
		open = append(open, f)
	}
	for _, f := range s.queue.all() {
		f.due = s.now
		open = append(open, f)
	}
	s.live += s.queue.len()
	slices.SortFunc(open, func(a, b *flight) int { return a.load.ID - b.load.ID })
	s.abandoned = true
	for _, f := range open {
		s.fail(f, load.OutcomeCancelled, message)
	}
	return err
}
