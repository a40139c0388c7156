package sim

import (
	"strconv"
	"time"
)

// An Observer is told what a server does, as the log and the metrics of SGLang tell it. Its methods are called one at a
// time, in the order of events, while the engine waits: they must be quick and must not call the
// server. See [WithObserver].
type Observer interface {
	// Batch is called when the result of a step has been processed, with the overlap loop after the next step was
	// planned. SGLang prints its lines "Prefill batch" and (for some of the steps) "Decode batch" then.
	Batch(Batch)
	// Retraction is called when the scheduler has taken requests back for want of memory.
	Retraction(Retraction)
	// Lost is called when the scheduler has forgotten a request, as SGLang before 0.5.23 can; see [EngineConfig.KeepPreempted].
	Lost(Loss)
	// Result is called when a request got tokens or ended, at the time when the front process has it.
	Result(Result)
}

// A Batch is one step as SGLang's log tells of it (metrics_reporter.py).
type Batch struct {
	Rank int // data-parallel rank, from 0
	Kind StepKind
	At   time.Time     // when its result was processed, by the loop's time
	Took time.Duration // on the GPU

	// Of a prefill: #new-seq (a continuing chunk is one), #new-token, #cached-token; and, at the moment of planning,
	// #running-req and #pending-token. Of a decode: Requests is the number of requests that decoded (#running-req).
	Requests, NewTokens, CachedTokens int
	Running, PendingTokens            int
	// Decodes is the number of requests that got a token from decoding; of a prefill it is 0 unless it is mixed.
	Decodes int
	Context int // KV tokens that the decodes read, summed

	// Requests taken back for want of memory when this batch was planned, their prompts' and their output tokens.
	Retracted, RetractedInput, RetractedOutput int
	// AgainNew and AgainCached are those of NewTokens and CachedTokens that belong to requests taken back before.
	AgainNew, AgainCached int
	NewTokenRatio         float64       // when this batch was planned
	Chunk                 time.Duration // of the request whose prompt is not at its end: since its chunk before or its first step

	State State // when the result had been processed, before the next step is planned: #queue-req is Waiting, #token UsedTokens

	launched time.Duration // when it was planned, by the loop's time
	// Running and State.Waiting by priority, if these are told apart.
	runningBy, waitingBy map[int]int
	chunk                *stream
	health               bool // all are health checks
}

// A Retraction is what SGLang's warning "KV cache pool is full. Retract requests." tells of (scheduler.py, update_running_batch).
type Retraction struct {
	Rank     int // data-parallel rank, from 0
	At       time.Time
	Requests int // taken back
	Gained   int // free KV tokens
	// The new-token ratio before and after.
	OldRatio, NewRatio float64
	// Aborted is the rid of a request that found no room although it was the only one left; empty: there was none.
	Aborted string
}

// A Loss is a request that the scheduler has forgotten: it never gets an answer. SGLang's log tells nothing of it.
type Loss struct {
	Rank int // data-parallel rank, from 0
	At   time.Time
	RID  string
}

// A Result is what one request got.
type Result struct {
	RID          string
	Streaming    bool
	Health       bool // a health check's generation, which metrics leave out
	Received     time.Time
	Previous     time.Time // of the result before; zero for the first
	At           time.Time
	New, Tokens  int // output tokens that came, and all so far
	PromptTokens int
	CachedTokens int
	Retractions  int
	// Queued is the time in the scheduler's queue before the first step; 0 until it was planned.
	Queued time.Duration
	// Prefill is the time from there to the end of the prompt's computation.
	Prefill time.Duration
	Finish  *Finish // nil while it goes on; must not be modified
}

// WithObserver tells o what the server does. It may be given more than once.
func WithObserver(o Observer) Option {
	return func(opts *options) error { opts.observers = append(opts.observers, o); return nil }
}

// A rank is one data-parallel rank of a host: a scheduler on the time line, and what is kept to tell of it. The host's mutex
// guards it.
type rank struct {
	host  *host
	loop  *Loop
	index int

	planned []Batch // steps under way, oldest first
	meter   *meter
	loads   published
	asleep  bool          // the loop has nothing to do
	since   time.Duration // from here on
}

func newRank(h *host, l *Loop) *rank {
	r := &rank{host: h, loop: l, index: len(h.ranks)}
	r.loads.snapshot.rank = r.index
	l.processed = r.completed
	return r
}

// number is the rank as answers tell it: null on a server that has but one.
func (r *rank) number() string {
	if r == nil || len(r.host.ranks) == 1 {
		return "null"
	}
	return strconv.Itoa(r.index)
}

// advance is [Loop.Advance], telling the observers of the batch whose result it processes, and streams when
// their first step was planned.
func (r *rank) advance(at time.Duration) []Output {
	l := r.loop
	steps, free, chunked := l.steps, l.gpuFree, l.Engine.Chunked()
	r.beforeAdvance(at)
	outputs := l.Advance()
	if taken := l.Engine.retraction; taken != nil {
		r.retracted(at, taken)
	}
	if l.steps > steps {
		f := l.pending
		if l.ready.step != nil {
			f = l.ready
		}
		r.plannedStep(f, at, free, chunked)
	}
	for _, x := range l.Engine.Lost() {
		r.host.fault(lossFault)
		loss := Loss{Rank: r.index, At: r.host.start.Add(at), RID: x.Owner.(*stream).rid}
		for _, o := range r.host.observers {
			o.Lost(loss)
		}
	}
	if err := l.Engine.Err(); err != nil {
		r.host.died(err)
	}
	r.afterAdvance(at)
	return outputs
}

// lossFault is what the server's label says of a lost request.
const lossFault = "a preempted request lost as SGLang before 0.5.23 does"

// retracted tells the observers of a retraction.
func (r *rank) retracted(at time.Duration, taken *retraction) {
	told := Retraction{Rank: r.index, At: r.host.start.Add(at), Requests: len(r.loop.Engine.Retracted()), Gained: taken.gained, OldRatio: taken.before, NewRatio: taken.after}
	if taken.aborted != nil {
		told.Aborted = taken.aborted.Owner.(*stream).rid
	}
	for _, o := range r.host.observers {
		o.Retraction(told)
	}
}

// beforeAdvance publishes the load, as SGLang does before it processes a result, and counts the time that the loop slept.
func (r *rank) beforeAdvance(at time.Duration) {
	r.slept(at)
	r.asleep = false
	if l := r.loop; l.due {
		r.publish(at, l.pending.step.Kind != DecodeStep)
	}
}

// slept counts the time until now in which the loop slept.
func (r *rank) slept(now time.Duration) {
	if r.asleep && now > r.since {
		r.meter.asleep(now - r.since)
		r.since = now
	}
}

// afterAdvance publishes the load of a loop that has nothing left to do.
func (r *rank) afterAdvance(at time.Duration) {
	if r.loop.idle {
		r.asleep, r.since = true, at
		r.loads.counters.contiguous = false
		r.publish(at, true)
	}
}

// plannedStep notes the step that was planned at the given time.
func (r *rank) plannedStep(f flight, at, free time.Duration, chunked *Request) {
	s := f.step
	for i := range s.Rows {
		if st := s.Rows[i].Request.Owner.(*stream); st.entered == 0 {
			st.entered = at
		}
	}
	e := r.loop.Engine
	b := Batch{Rank: r.index, Kind: s.Kind, Requests: len(s.Rows), Decodes: len(s.Decode), Context: s.Shape.Context,
		launched: at, Took: f.end - max(at, free), Retracted: len(e.Retracted()), NewTokenRatio: e.ratio}
	for _, r := range e.Retracted() {
		b.RetractedInput += r.InputLen
		b.RetractedOutput += r.Produced()
	}
	if s.Kind == DecodeStep {
		b.Requests = len(s.Decode)
	} else {
		b.Running, b.PendingTokens = len(e.Running()), e.waiting.tokens
	}
	if r.meter.priorities != nil {
		running := e.Running()
		if s.Kind == DecodeStep {
			running = s.Decode
		}
		b.runningBy = byPriority(running)
	}
	for i := range s.Rows {
		row := &s.Rows[i]
		cached := 0
		if row.Request != chunked {
			cached = row.Prefix
		}
		b.NewTokens += row.Extend
		b.CachedTokens += cached
		if row.Request.Retractions() > 0 {
			b.AgainNew += row.Extend
			b.AgainCached += cached
		}
		if !row.Last {
			b.chunk = row.Request.Owner.(*stream)
		}
	}
	health := func(r *Request) bool { return r.Owner.(*stream).health }
	b.health = true
	for i := range s.Rows {
		b.health = b.health && health(s.Rows[i].Request)
	}
	for _, r := range s.Decode {
		if b.health = b.health && health(r); !b.health {
			break
		}
	}
	r.planned = append(r.planned, b)
}

// completed tells the observers of the oldest step under way.
func (r *rank) completed(at time.Duration) {
	b := r.planned[0]
	r.planned = append(r.planned[:0], r.planned[1:]...)
	b.At, b.State = r.host.start.Add(at), r.loop.Engine.State()
	if st := b.chunk; st != nil {
		b.Chunk = at - max(st.chunked, st.entered)
		st.chunked = at
	}
	if r.meter.priorities != nil && r.meter.reports(b.Kind) {
		b.waitingBy = byPriority(r.loop.Engine.Waiting())
	}
	r.loads.counters.add(r.meter.patch, &b, at)
	r.meter.batch(&b)
	for _, o := range r.host.observers {
		o.Batch(b)
	}
}

// tell tells the observers what s got, and the meter if it is told to the front process, too.
func (h *host) tell(s *stream, previous, got progress, passes bool) {
	if h.metrics {
		if previous.at.IsZero() && !(got.finish != nil && got.finish.Queued) {
			s.rank.meter.scheduled(s.queued(), s.prefilling())
		}
		if passes && !s.lost {
			h.meter.output(s, got)
			s.counted = got
		}
	}
	if len(h.observers) == 0 || s.lost {
		return
	}
	r := Result{RID: s.rid, Streaming: s.streaming, Health: s.health, Received: s.received, Previous: previous.at, At: got.at,
		New: got.tokens - previous.tokens, Tokens: got.tokens, PromptTokens: s.promptTokens, CachedTokens: got.cached,
		Retractions: got.retractions, Queued: s.queued(), Prefill: s.prefilling(), Finish: got.finish}
	for _, o := range h.observers {
		o.Result(r)
	}
}

// queued is the time in the scheduler's queue before the first step; 0 until that was planned.
func (s *stream) queued() time.Duration {
	if s.entered == 0 {
		return 0
	}
	return max(0, s.entered-s.arrives)
}

// prefilling is the time from there to the end of the prompt's computation.
func (s *stream) prefilling() time.Duration {
	if s.entered == 0 {
		return 0
	}
	return max(0, s.prefilled-s.entered)
}

// observe makes the meters and names the observers.
func (h *host) observe(o *options, model string) {
	h.metrics, h.loadInterval, h.observers = o.metrics, o.loadInterval, o.observers
	for _, r := range h.ranks {
		r.meter = newMeter(o.release.patch, o.decodeLogInterval, model, h.config(), time.Now())
		if len(h.ranks) > 1 {
			r.meter.rank = strconv.Itoa(r.index)
		}
	}
	h.meter = h.ranks[0].meter
}
