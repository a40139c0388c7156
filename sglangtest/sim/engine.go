package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/sglangtest/harness/sglangtest/load"
)

// The constants of SGLang's scheduler (environment variables with these defaults, all versions from 0.5.15 on).
const (
	clipMaxNewTokens   = 4096 // SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION
	initNewTokenRatio  = 0.7  // SGLANG_INIT_NEW_TOKEN_RATIO
	minNewTokenFactor  = 0.14 // SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR
	newTokenDecaySteps = 600  // SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS
	retractDecodeSteps = 20   // SGLANG_RETRACT_DECODE_STEPS
)

// An Engine is the scheduler of one SGLang server (one data-parallel rank): which requests make the next batch, given
// the present state. It is a pure state machine. It knows no time, starts no goroutine and gives the same decisions
// for the same calls. [Loop] puts it on a time line.
//
// It is driven as SGLang's event loop drives its scheduler: Add and Abort what has come, Plan, run the step, Complete
// the step before (with overlap) or this one (without). If Plan has nothing to run and no step is under way, call Idle, and
// plan again unless the engine is [Engine.Settled]. It may die, see [Engine.Err], and lose requests, see [Engine.Lost].
//
// An Engine is not safe for concurrent use.
type Engine struct {
	cfg   EngineConfig
	limit float64 // pp_max_micro_batch_size; SGLang accepts and keeps fractions

	waiting  queue
	running  []*Request // decoding requests, in batch order; with the old rules it may hold finished ones
	full     bool       // batch_is_full of the running batch
	chunked  *Request   // the request whose prompt is only partly computed, if any
	last     *Step      // the batch planned last, if it was a prefill that is not merged yet
	stale    bool       // running may hold finished requests
	live     int        // requests that were added and have not ended
	deferred int        // passes without prefill that are left (PrefillDecodeInterval)
	settled  bool       // the last Plan changed nothing
	stuck    uint64     // counts the changes, so that it names the time since the last
	heads    int        // requests that have stood first in the queue since then

	err  error      // of which the scheduler has died
	rows int        // of the request table that are taken
	lost []*Request // since the last call of Lost

	lockstep
	short  []*Request // joined the running batch with their last token under way
	due    []*Request // scratch: their last token comes with the next result
	aborts []*Request // running, and to end with their next result
	// chunkAbort is to end before the next Plan, if it is still the chunked request then (_pending_chunked_abort_req).
	chunkAbort *Request

	free                                int    // tokens of the pool, whole pages
	tree                                *radix // nil: no prefix cache
	ratio, initRatio, minRatio, decayBy float64

	evictions, evicted int // times that the cache dropped tokens, and how many

	processed int64 // tokens counted for hrrn
	leftover  int   // extend_num_tokens of the prefill that last became the running batch
	passes    int   // of refresh
	inBatch   *radix
	rng       *rand.Rand
	entries   uint64
	unique    uint64

	steps      []*Step // spare
	outputs    []Output
	keys       load.Runs     // scratch of keyOf
	states     []reservation // scratch of admitExact
	retracted  []*Request    // by the last Plan
	preempted  []*Request
	arrange    func(victims []*Request) // if not nil, orders those that one preemption takes, which SGLang holds in a set
	retraction *retraction              // of the last Plan; nil: there was none
}

// NewEngine returns an idle engine with an empty cache. All faults of the configuration are reported together.
func NewEngine(cfg EngineConfig) (*Engine, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.PageSize = max(cfg.PageSize, 1)
	if cfg.SchedulePolicy == "" {
		cfg.SchedulePolicy = FCFS
	}
	if cfg.EvictionPolicy == "" {
		cfg.EvictionPolicy = EvictLRU
	}
	cfg.MaxTotalTokens -= cfg.MaxTotalTokens % cfg.PageSize
	// kv_cache_configurator.py caps the running limit at half the pool.
	cfg.MaxRunningRequests = max(1, min(cfg.MaxRunningRequests, cfg.MaxTotalTokens/2))
	e := &Engine{cfg: cfg, limit: float64(cfg.MaxRunningRequests), free: cfg.MaxTotalTokens, stuck: 1}
	if cfg.MaxMicroBatch > 0 {
		e.limit = float64(min(cfg.MaxMicroBatch, cfg.MaxRunningRequests))
	}
	e.phases = make([]int, cfg.PageSize)
	e.rng = rand.New(rand.NewPCG(cfg.Seed, 0))
	if !cfg.DisableRadixCache {
		e.tree = newRadix(cfg.PageSize, cfg.EvictionPolicy)
	}
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

// ceil rounds up to whole pages.
func (e *Engine) ceil(n int) int {
	p := e.cfg.PageSize
	return (n + p - 1) / p * p
}

// State is a snapshot of the scheduler's counts.
type State struct {
	Running         int     // requests in the running batch, the one being chunked included
	Waiting         int     // requests in the waiting queue
	WaitingTokens   int     // their prompts' tokens, cached or not
	FreeTokens      int     // KV tokens allocated to nothing
	UsedTokens      int     // KV tokens held by requests, what they share counted once
	CachedTokens    int     // KV tokens that only the prefix cache holds: free if needed
	ProtectedTokens int     // KV tokens of the prefix cache that requests hold; part of UsedTokens
	MaxTotalTokens  int     // KV pool
	Limit           float64 // pp_max_micro_batch_size
	NewTokenRatio   float64
	BatchIsFull     bool
}

// State returns the present counts. It costs time in proportion to the batch planned last, and to the running one where that
// may hold finished requests.
func (e *Engine) State() State {
	s := State{Running: len(e.running), Waiting: e.waiting.len(), WaitingTokens: e.waiting.tokens, FreeTokens: e.free, UsedTokens: e.cfg.MaxTotalTokens - e.room(),
		MaxTotalTokens: e.cfg.MaxTotalTokens, Limit: e.limit, NewTokenRatio: e.ratio, BatchIsFull: e.full}
	if e.tree != nil {
		s.CachedTokens, s.ProtectedTokens = e.tree.evictable, e.tree.protected
	}
	if e.stale {
		for _, r := range e.running {
			if r.phase == phaseFinished {
				s.Running--
			}
		}
	}
	if e.last != nil {
		for i := range e.last.Rows {
			if row := &e.last.Rows[i]; row.live() && row.Request != e.chunked {
				s.Running++
			}
		}
		if e.last.Kind == MixedStep {
			s.Running += e.count
		}
	}
	if e.chunked != nil {
		s.Running++
	}
	return s
}

// room is what allocation can count on: free tokens and those of the cache that no request holds.
func (e *Engine) room() int {
	if e.tree != nil {
		return e.free + e.tree.evictable
	}
	return e.free
}

// Waiting returns the waiting queue in its present order. The slice must not be modified and is valid until the
// next call of any method of the engine.
func (e *Engine) Waiting() []*Request { return e.waiting.all() }

// Running returns the running batch without the batch planned last, if that was a prefill. With the rules before
// 0.5.23 it may hold requests that have ended. The slice must not be modified and is valid until the next call of any
// method of the engine.
func (e *Engine) Running() []*Request { return e.running }

// Chunked returns the request whose prompt is computed in part, or nil.
func (e *Engine) Chunked() *Request { return e.chunked }

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
	if n := r.Prompt.Tokens(); n > 0 && n != r.InputLen {
		panic(fmt.Sprintf("sim: Add of a request whose prompt has %d tokens and whose InputLen is %d", n, r.InputLen))
	}
	if len(r.OutputIDs) > 0 && r.OutputStream != 0 {
		panic("sim: Add of a request with both OutputIDs and OutputStream")
	}
	// init_req_max_new_tokens: by the prompt's own length, also if it is refused for that.
	r.MaxNewTokens = max(0, min(r.MaxNewTokens, e.maxReqLen()-r.InputLen-1, e.cfg.MaxTotalTokens-e.ceil(r.InputLen)-e.cfg.PageSize-1))
	e.unique++
	r.unique = e.unique
	prompt := r.Prompt
	if most := e.MaxInputLen(); r.InputLen > most {
		r.abort = &Finish{Kind: FinishAbort, Status: 400, Queued: true, Message: fmt.Sprintf("Input length (%d tokens) exceeds the maximum "+
			"allowed length (%d tokens). Use a shorter input or enable --allow-auto-truncate.", r.InputLen, most)}
		r.InputLen = 1
		prompt.Segments, prompt.TokenIDs, prompt.Text, prompt.Messages = nil, refusedPrompt, "", nil
	}
	if e.tree != nil {
		if r.key = load.Runs(r.keySpace[:0]); prompt.IsZero() {
			r.key = r.key.AppendPrivate(r.unique, 0, r.InputLen)
		} else {
			r.key = r.key.AppendPrompt(&prompt, r.InputLen)
		}
	}
	e.live++
	e.enqueue(r)
}

// refusedPrompt stands for a prompt that is refused (schedule_batch.py, set_finish_with_abort).
var refusedPrompt = []int32{0}

// keyOf returns the runs of the first n tokens of the prompt and the answer of r. They are valid until the next call.
func (e *Engine) keyOf(r *Request, n int) load.Runs {
	n -= r.InputLen
	if n <= 0 {
		return r.key
	}
	key := append(e.keys[:0], r.key...)
	switch {
	case r.OutputStream != 0:
		key = key.AppendSegment(load.Segment{Stream: r.OutputStream, Length: n})
	default:
		k := min(n, len(r.OutputIDs))
		key = key.AppendIDs(r.OutputIDs[:k]).AppendPrivate(r.unique, r.InputLen+k, n-k)
	}
	e.keys = key
	return key
}

// enqueue is _add_request_to_queue, also the way back of retracted and preempted requests, which a small queue limit
// can end (_abort_on_queued_limit).
func (e *Engine) enqueue(r *Request) {
	if e.cfg.MaxQueuedRequests > 0 && e.waiting.len()+1 > e.cfg.MaxQueuedRequests {
		worst := e.worstWaiting()
		if worst == nil || e.prioritySign()*r.Priority >= e.prioritySign()*worst.Priority {
			e.finish(r, queueFull)
			return
		}
		e.dequeue(worst)
		e.finish(worst, outranked)
	}
	r.phase = phaseWaiting
	e.entries++
	r.entry, r.seen = e.entries, e.processed
	e.waiting.push(r)
	e.stir()
}

// dequeue takes r out of the waiting queue before it was admitted.
func (e *Engine) dequeue(r *Request) {
	e.waiting.remove(r)
	e.stir()
}

// stir notes that the next Plan may find other things than the last.
func (e *Engine) stir() {
	e.settled, e.heads = false, 0
	e.stuck++
}

// worstWaiting is the request that a better one may push out of a full queue, if there are priorities.
func (e *Engine) worstWaiting() (worst *Request) {
	if !e.cfg.EnablePriorityScheduling {
		return nil
	}
	sign := e.prioritySign()
	for _, r := range e.waiting.all() {
		if worst == nil || sign*r.Priority > sign*worst.Priority || r.Priority == worst.Priority && r.entry > worst.entry {
			worst = r
		}
	}
	return worst
}

// Abort ends a request (scheduler.py, abort_request). A waiting one ends at once, one in the middle of its prompt with
// the next Plan, another with the next of its results. The end comes as an [Output]. Aborting a request that has ended
// does nothing.
func (e *Engine) Abort(r *Request) {
	switch {
	case r.phase == phaseWaiting:
		e.dequeue(r)
		e.finish(r, abortedQueued)
	case r.phase == phaseRunning && !r.leaving: // the scheduler no longer finds one that is leaving
		if r == e.chunked {
			e.chunkAbort = r
			if !e.inLast(r) {
				return
			}
		}
		if r.abort == nil {
			r.abort = abortedRunning
			e.aborts = append(e.aborts, r)
		}
	}
}

// inLast reports whether r is in the prefill planned last, and not merged yet.
func (e *Engine) inLast(r *Request) bool {
	return e.last != nil && slices.ContainsFunc(e.last.Rows, func(row Row) bool { return row.Request == r && row.live() })
}

// AbortAll aborts every request (/abort_request with abort_all, and /pause_generation with mode abort).
func (e *Engine) AbortAll() {
	for e.waiting.len() > 0 {
		e.Abort(e.waiting.all()[0])
	}
	if e.chunked != nil {
		e.Abort(e.chunked)
	}
	if e.last != nil {
		for i := range e.last.Rows {
			if row := &e.last.Rows[i]; row.live() {
				e.Abort(row.Request)
			}
		}
		for _, r := range e.last.Decode {
			e.Abort(r)
		}
	}
	for _, r := range e.running {
		e.Abort(r)
	}
}

// FlushCache empties the prefix cache and reports whether it could: not while anything waits or runs
// (scheduler.py, flush_cache).
func (e *Engine) FlushCache() bool {
	if e.Busy() {
		return false
	}
	if e.tree != nil {
		e.free += e.tree.evictable
		e.tree.reset()
	}
	return true
}

// Outputs returns what happened since the last call, in order. The slice is valid until the next call of any
// method of the engine.
func (e *Engine) Outputs() []Output {
	out := e.outputs
	e.outputs = e.outputs[:0]
	return out
}

// DecodeSteps returns the number of decode steps completed, mixed ones included. A caller that notes the time at which
// each was completed has the time of every token: see [Output].
func (e *Engine) DecodeSteps() int64 { return e.done }

// Produced returns the number of output tokens of r whose results have been processed, also those that QuietDecode
// keeps back. r must be a request of this engine, or one that was never added.
func (e *Engine) Produced(r *Request) int { return e.producedOf(r) }

// Busy reports whether any request has not ended.
func (e *Engine) Busy() bool { return e.live > 0 }

// An OutOfMemoryError says that the scheduler of SGLang dies of what it has admitted: it chose more than the KV pool holds, and
// raises an error when it allocates. A chunk that continues is chosen whatever there is, and before 0.5.23 so are the decodes
// that ride in a prefill (EnableMixedChunk).
type OutOfMemoryError struct {
	Step       StepKind // PrefillStep or DecodeStep: what the memory was for
	Paged      bool     // pages of several tokens
	Want, Free int      // KV tokens
}

func (e *OutOfMemoryError) Error() string {
	return fmt.Sprintf("%s Try to allocate %d tokens, %d are free", e.Text(), e.Want, e.Free)
}

// Text is the first line of what SGLang raises (mem_cache/common.py, alloc_token_slots and alloc_paged_token_slots_extend).
func (e *OutOfMemoryError) Text() string {
	what := "Out"
	switch {
	case e.Paged && e.Step == PrefillStep:
		what = "Prefill out"
	case e.Paged:
		what = "Decode out"
	}
	return what + " of memory. Try to lower your batch size."
}

// Err returns why the scheduler has died, an [*OutOfMemoryError], or nil. A dead engine plans nothing more, and what it had
// does not end.
func (e *Engine) Err() error { return e.err }

// Idle is the housekeeping of a pass that finds nothing to run and no result to wait for (on_idle): if nothing waits or
// runs, the new-token ratio starts anew.
func (e *Engine) Idle() {
	if e.fullyIdle() {
		e.ratio = e.initRatio
	}
}

// fullyIdle is is_fully_idle, as far as it does not depend on the loop. With the old rules requests that have ended count
// until a decode step has dropped them.
func (e *Engine) fullyIdle() bool {
	return len(e.running) == 0 && e.chunked == nil && e.waiting.len() == 0
}
