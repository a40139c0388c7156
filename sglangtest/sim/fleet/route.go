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

// place asks the policy for a decision on f and carries it out.
func (s *run) place(f *flight) {
	s.view.Now = s.now
	d, err := s.pol.Pick(s.ctx, &f.load, s.view)
	switch {
	case err != nil:
		s.held = append(s.held, f) // it has arrived and must be recorded
		s.err = fmt.Errorf("fleet: policy: request %d: %w", f.load.ID, err)
	case d.Verdict == policy.Send && d.Worker >= 0 && d.Worker < len(s.workers):
		s.dispatch(f, s.workers[d.Worker])
	case d.Verdict == policy.Wait && (d.Until == 0 || d.Until > s.now):
		f.hold = d.Until
		s.keep(f)
	case d.Verdict == policy.Decline:
		f.due = s.now
		s.fail(f, load.OutcomeRejected, d.Reason)
	default:
		s.held = append(s.held, f)
		s.err = fmt.Errorf("fleet: policy: request %d: decision %+v at %v of %d workers: make it with policy.Dispatch, Hold, HoldUntil (a later time) or Reject",
			f.load.ID, d, s.now, len(s.workers))
	}
}

// decide asks the policy for all that it can decide now: the requests that it holds, if something has happened, and
// those that have a place under the cap, in order of arrival.
func (s *run) decide() {
	s.offerHeld()
	for s.err == nil && s.queue.len() > 0 && (s.cfg.cap == 0 || s.live < s.cfg.cap) {
		f := s.queue.pop()
		s.live++
		f.due = s.now
		s.place(f)
		s.offerHeld()
	}
}

// offerHeld asks the policy again for the requests that it holds, if something has happened. What it decides can
// make something happen, so this goes on until nothing does; each round but the last ends a request.
func (s *run) offerHeld() {
	for s.offer && s.err == nil {
		s.offer = false
		s.offerAll(func(*flight) bool { return true })
	}
}

// offerAll asks again for the held requests that due names, in order of arrival.
func (s *run) offerAll(due func(*flight) bool) {
	if len(s.held) == 0 {
		return
	}
	held := s.held
	s.held, s.spare = s.spare[:0], held
	s.timers.set(holdTimer, never)
	for i, f := range held {
		if s.err != nil {
			s.held = append(s.held, held[i:]...)
			break
		}
		if due(f) {
			s.place(f)
		} else {
			s.keep(f)
		}
	}
	clear(held)
}

// keep adds f to the held requests. The timer is that of the hold that ends first.
func (s *run) keep(f *flight) {
	s.held = append(s.held, f)
	if f.hold > 0 && f.hold < s.timers.at[holdTimer] {
		s.timers.set(holdTimer, f.hold)
	}
}

// dispatch sends f to a worker.
func (s *run) dispatch(f *flight, w *worker) {
	f.due = s.now
	w.link(f)
	v := &s.view.Workers[w.index]
	v.InFlight++
	v.SincePoll++
	v.PromptTokens += f.prompt
	v.PrefillTokens += f.prompt
	if s.dispatched != nil {
		s.dispatched.Dispatched(s.now, &f.load, w.index)
	}
	if !w.up {
		s.fail(f, load.OutcomeRefused, "connection refused: the simulated server is down")
		return
	}
	w.expect(arrival{s.now + w.Profile.Ingest + time.Duration(f.prompt)*w.Profile.IngestToken, f})
	s.reschedule(w)
	if s.cfg.timeout > 0 {
		s.deadline.push(f)
		s.setDeadline()
	}
}

// admit gives the scheduler a request that has reached it, after the checks of the server's front end (tokenizer_manager.py,
// _validate_one_request).
func (s *run) admit(w *worker, f *flight) {
	context := w.loop.Engine.Config().ContextLength
	refuse := func(message string) {
		w.going.push(delivery{at: s.now + w.Profile.Egress, flight: f, refusal: message})
	}
	switch total := f.prompt + f.load.OutputLen; {
	case f.prompt >= context:
		refuse(fmt.Sprintf("The input (%d tokens) is longer than the model's context length (%d tokens).", f.prompt, context))
		return
	case total > context:
		refuse(fmt.Sprintf("Requested token count exceeds the model's maximum context length of %d tokens. You requested a total of %d tokens.", context, total))
		return
	}
	p := f.load.Sampling
	f.request = sim.Request{Prompt: f.load.Prompt, InputLen: f.prompt, MaxNewTokens: f.load.OutputLen,
		IgnoreEOS:    p == nil || p.IgnoreEOS == nil || *p.IgnoreEOS,
		OutputStream: load.AnswerStream(f.load.ID), Owner: f}
	w.loop.Add(s.now, &f.request)
}

// deliver carries out what the client sees.
func (s *run) deliver(w *worker, d delivery) {
	f := d.flight
	if f.ended {
		return
	}
	if d.finish == nil && d.refusal == "" {
		f.seen = true
		s.view.Workers[w.index].PrefillTokens -= f.prompt
		if s.firstToken != nil {
			s.firstToken.FirstToken(s.now, &f.load, w.index)
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
	res.Worker, res.Sent, res.Reused, res.Streamed = f.worker.Name, true, true, true
	res.SimulatedBy = f.worker.Profile.Name
	res.PromptTokens, res.CachedTokens, res.Retractions = f.prompt, f.request.CachedTokens(), f.request.Retractions()
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

// end records the end of f.
func (s *run) end(f *flight, res *load.Result) {
	f.ended = true
	s.live--
	s.idle = 0
	s.offer = true
	if w := f.worker; w != nil {
		w.unlink(f)
		v := &s.view.Workers[w.index]
		v.InFlight--
		v.PromptTokens -= f.prompt
		if !f.seen {
			v.PrefillTokens -= f.prompt
		}
	}
	s.rec.Record(res)
	if f.worker != nil && s.done != nil {
		s.done.Done(s.now, &f.load, res, f.worker.index)
	}
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
		for f := w.first; f != nil; f = f.nextFlight {
			open = append(open, f)
		}
	}
	open = append(open, s.held...)
	open = append(open, s.queue.all()...)
	s.live += s.queue.len()
	slices.SortFunc(open, func(a, b *flight) int { return a.load.ID - b.load.ID })
	for _, f := range open {
		if f.worker == nil {
			f.due = s.now
		}
		s.fail(f, load.OutcomeCancelled, message)
	}
	return err
}
