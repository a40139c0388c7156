package sim

import (
	"errors"
	"fmt"
	"math"
)

// An EngineConfig holds the sizes that the scheduler works with. Names are SGLang's.
type EngineConfig struct {
	MaxTotalTokens           int     // KV pool in tokens, > 1
	ContextLength            int     // tokens, > 1
	MaxRunningRequests       int     // ≥ 1
	ChunkedPrefillSize       int     // tokens; ≤ 0: no chunking
	MaxPrefillTokens         int     // tokens, ≥ 1
	MaxQueuedRequests        int     // 0: no limit
	ScheduleConservativeness float64 // > 0
	// DisableRadixCache chooses the admission rule that SGLang uses without a prefix cache for requests with
	// IgnoreEOS (schedule_policy.py, add_one_req_ignore_eos).
	DisableRadixCache bool
}

func (c EngineConfig) validate() error {
	var errs []error
	positive := func(name string, v int) {
		if v < 1 {
			errs = append(errs, fmt.Errorf("sim: %s is %d: want at least 1", name, v))
		}
	}
	if c.MaxTotalTokens < 8 {
		errs = append(errs, fmt.Errorf("sim: max_total_tokens is %d: want at least 8", c.MaxTotalTokens))
	}
	if c.ContextLength < 8 {
		errs = append(errs, fmt.Errorf("sim: context_length is %d: want at least 8", c.ContextLength))
	}
	positive("max_running_requests", c.MaxRunningRequests)
	positive("max_prefill_tokens", c.MaxPrefillTokens)
	if c.MaxQueuedRequests < 0 {
		errs = append(errs, fmt.Errorf("sim: max_queued_requests is %d: want 0 (no limit) or more", c.MaxQueuedRequests))
	}
	if !(c.ScheduleConservativeness > 0) || math.IsInf(c.ScheduleConservativeness, 0) {
		errs = append(errs, fmt.Errorf("sim: schedule_conservativeness is %v: want a finite number above 0", c.ScheduleConservativeness))
	}
	return errors.Join(errs...)
}

// The constants of SGLang's scheduler (environment variables with these defaults, all versions from 0.5.15 on).
const (
	clipMaxNewTokens   = 4096 // SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION
	initNewTokenRatio  = 0.7  // SGLANG_INIT_NEW_TOKEN_RATIO
	minNewTokenFactor  = 0.14 // SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR
	newTokenDecaySteps = 600  // SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS
	retractDecodeSteps = 20   // SGLANG_RETRACT_DECODE_STEPS
	pageSize           = 1
)

// An Engine is the scheduler of one SGLang server, version 0.5.23, on one GPU: which requests make the next
// batch, given the present state. It is a pure state machine. It knows no time, starts no goroutine and gives
// the same decisions for the same calls. [Loop] puts it on a time line.
//
// Its policy is fcfs, its page size 1, and it has no prefix cache: memory of a finished request is free at once,
// which is what an LRU cache without a hit amounts to.
//
// An Engine is not safe for concurrent use.
type Engine struct {
	cfg   EngineConfig
	limit float64 // pp_max_micro_batch_size; SGLang accepts and keeps fractions

	waiting queue
	running []*Request // decoding requests, in batch order
	full    bool       // batch_is_full of the running batch
	chunked *Request   // the request whose prompt is only partly computed, if any
	last    *Step      // the batch planned last, if it was a prefill that is not merged yet
	stale   bool       // running may hold finished requests
	live    int        // requests that were added and have not ended

	free                                int // tokens of the pool
	ratio, initRatio, minRatio, decayBy float64

	steps   []*Step // spare
	outputs []Output
	states  []reservation // scratch of admitExact
}

// NewEngine returns an idle engine. All faults of the configuration are reported together.
func NewEngine(cfg EngineConfig) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	// kv_cache_configurator.py caps the running limit at half the pool.
	cfg.MaxRunningRequests = max(1, min(cfg.MaxRunningRequests, cfg.MaxTotalTokens/2))
	e := &Engine{cfg: cfg, limit: float64(cfg.MaxRunningRequests), free: cfg.MaxTotalTokens}
	// new_token_ratio_tracker.py
	e.initRatio = min(initNewTokenRatio*cfg.ScheduleConservativeness, 1)
	e.minRatio = min(e.initRatio*minNewTokenFactor, 1)
	e.decayBy = (e.initRatio - e.minRatio) / newTokenDecaySteps
	e.ratio = e.initRatio
	return e, nil
}

// Config returns the effective configuration.
func (e *Engine) Config() EngineConfig { return e.cfg }

// MaxInputLen returns SGLang's max_req_input_len: the longest prompt that the scheduler takes.
func (e *Engine) MaxInputLen() int { return e.maxReqLen() - 5 }

func (e *Engine) maxReqLen() int { return min(e.cfg.ContextLength-1, e.cfg.MaxTotalTokens-1) }

// State is a snapshot of the scheduler's counts.
type State struct {
	Running        int     // requests in the running batch, the one being chunked included
	Waiting        int     // requests in the waiting queue
	WaitingTokens  int     // their prompts' tokens
	UsedTokens     int     // KV tokens allocated
	MaxTotalTokens int     // KV pool
	Limit          float64 // pp_max_micro_batch_size
	NewTokenRatio  float64
	BatchIsFull    bool
}

// State returns the present counts. It costs time in proportion to the number of waiting requests.
func (e *Engine) State() State {
	s := State{Running: len(e.running), Waiting: e.waiting.len(), UsedTokens: e.cfg.MaxTotalTokens - e.free,
		MaxTotalTokens: e.cfg.MaxTotalTokens, Limit: e.limit, NewTokenRatio: e.ratio, BatchIsFull: e.full}
	if e.last != nil {
		for i := range e.last.Rows {
			if row := &e.last.Rows[i]; row.live() && row.Request != e.chunked {
				s.Running++
			}
		}
	}
	if e.chunked != nil {
		s.Running++
	}
	for _, r := range e.waiting.all() {
		s.WaitingTokens += r.InputLen + r.produced
	}
	return s
}

// SetLimit sets pp_max_micro_batch_size, the run-time limit of running requests, and reports whether v is in
// SGLang's range, 1 to MaxRunningRequests. Lowering it evicts nothing; raising it takes effect at once only while
// the running batch is not marked full (scheduler.py, get_num_allocatable_reqs).
func (e *Engine) SetLimit(v float64) bool {
	if !(v >= 1 && v <= float64(e.cfg.MaxRunningRequests)) {
		return false
	}
	e.limit = v
	return true
}

// Add puts a request into the waiting queue (scheduler.py, handle_generate_request). A prompt that the pool cannot
// hold ends with an abort of status 400 after one step as a prompt of one token, and a full queue with an abort of
// status 503 at once, as SGLang has it; both come as an [Output]. Add panics if a field of r is out of range.
func (e *Engine) Add(r *Request) {
	if r.phase != phaseNew || r.InputLen < 1 || r.MaxNewTokens < 0 || r.StopAfter < 0 {
		panic("sim: Add of a request that was added before or that has a length out of range")
	}
	if most := e.MaxInputLen(); r.InputLen > most {
		r.abort = &Finish{Kind: FinishAbort, Status: 400, Queued: true, Message: fmt.Sprintf("Input length (%d tokens) exceeds the maximum "+
			"allowed length (%d tokens). Use a shorter input or enable --allow-auto-truncate.", r.InputLen, most)}
		r.InputLen = 1
	}
	r.MaxNewTokens = max(0, min(r.MaxNewTokens, e.maxReqLen()-r.InputLen-1, e.cfg.MaxTotalTokens-r.InputLen-pageSize-1))
	e.live++
	e.enqueue(r)
}

// enqueue is also the way back of a retracted request, which a small queue limit can end (_abort_on_queued_limit).
func (e *Engine) enqueue(r *Request) {
	if e.cfg.MaxQueuedRequests > 0 && e.waiting.len()+1 > e.cfg.MaxQueuedRequests {
		e.finish(r, queueFull)
		return
	}
	r.phase = phaseWaiting
	e.waiting.push(r)
}

// Abort ends a request. A waiting one ends at once; a running one with the next of its results, as in SGLang.
// The end comes as an [Output]. Aborting a request that has ended does nothing.
func (e *Engine) Abort(r *Request) {
	switch {
	case r.phase == phaseWaiting:
		e.waiting.remove(r)
		e.finish(r, abortedQueued)
	case r.phase == phaseRunning && r.abort == nil:
		r.abort = abortedRunning
	}
}

// Outputs returns what happened since the last call, in order. The slice is valid until the next call of any
// method of the engine.
func (e *Engine) Outputs() []Output {
	out := e.outputs
	e.outputs = e.outputs[:0]
	return out
}

// Busy reports whether any request has not ended.
func (e *Engine) Busy() bool { return e.live > 0 }

// Idle is the housekeeping of a scheduler that finds nothing to do: the new-token ratio starts anew.
func (e *Engine) Idle() { e.ratio = e.initRatio }

// Complete processes the result of a step: tokens, finishes, freed memory. Steps must be completed in the order in
// which they were planned. The step must not be used afterwards.
func (e *Engine) Complete(s *Step) {
	for i := range s.Rows {
		row := &s.Rows[i]
		if !row.live() { // retracted or ended since: its token is dropped
			continue
		}
		r := row.Request
		if !row.Last {
			continue
		}
		r.flying--
		if r.abort != nil && r.abort.Status != 0 { // refused for its length
			e.finish(r, r.abort)
			continue
		}
		if r.MaxNewTokens == 0 {
			e.finish(r, finishedByLength)
			continue
		}
		r.produced++
		out := Output{Request: r, Tokens: 1}
		switch {
		case r.abort != nil:
			out.Finish = r.abort
		case r.produced >= r.MaxNewTokens:
			out.Finish = finishedByLength
		case r.StopAfter > 0 && r.produced >= r.StopAfter:
			out.Finish = finishedByStop
		}
		if out.Finish != nil {
			e.end(r)
		}
		e.outputs = append(e.outputs, out)
	}
	if s != e.last { // a prefill that is still to be merged is recycled then
		e.recycle(s)
	} else {
		s.completed = true
	}
}

func (e *Engine) end(r *Request) {
	e.release(r)
	r.phase = phaseFinished
	e.stale = true
	e.live--
}

func (e *Engine) finish(r *Request, f *Finish) {
	e.end(r)
	e.outputs = append(e.outputs, Output{Request: r, Finish: f})
}

// release gives the request's memory back and voids its rows in steps under way.
func (e *Engine) release(r *Request) {
	e.free += r.computed
	r.computed = 0
	r.flying = 0
	r.epoch++
}

func (e *Engine) recycle(s *Step) {
	clear(s.Rows) // requests must not be kept alive
	s.Rows, s.Shape.Extends = s.Rows[:0], s.Shape.Extends[:0]
	e.steps = append(e.steps, s)
}

func (e *Engine) newStep(kind StepKind) *Step {
	if n := len(e.steps); n > 0 {
		s := e.steps[n-1]
		e.steps = e.steps[:n-1]
		*s = Step{Kind: kind, Rows: s.Rows, Shape: Shape{Extends: s.Shape.Extends}}
		return s
	}
	return &Step{Kind: kind}
}
