package sim

import (
	"errors"
	"fmt"
	"math"
)

// An EngineConfig holds what the scheduler works with. Names are those of SGLang's flags.
type EngineConfig struct {
	Rules Rules // the version of SGLang; zero: 0.5.23

	MaxTotalTokens           int     // KV pool in tokens, ≥ 8; rounded down to whole pages
	PageSize                 int     // tokens; 0: 1
	ContextLength            int     // tokens, ≥ 8
	MaxRunningRequests       int     // ≥ 1
	MaxMicroBatch            int     // pp_max_micro_batch_size at the start, see [Engine.SetLimit]; 0: MaxRunningRequests
	ChunkedPrefillSize       int     // tokens, a multiple of the page; ≤ 0: no chunking
	MaxPrefillTokens         int     // tokens, ≥ 1
	PrefillMaxRequests       int     // most requests in one prefill batch; 0: no limit
	MaxQueuedRequests        int     // 0: no limit
	ScheduleConservativeness float64 // > 0

	SchedulePolicy Policy // empty: fcfs
	Seed           uint64 // of the policy random
	// EnablePriorityScheduling orders the queue of fcfs and lof by Request.Priority first, larger values first
	// unless LowPriorityValuesFirst. With it, running requests that are worse than a waiting one by more than
	// PreemptionThreshold (SGLang's default is [DefaultPreemptionThreshold]; 0 is 0) make room for it when the
	// limit of running requests is reached, unless DisablePriorityPreemption.
	EnablePriorityScheduling  bool
	LowPriorityValuesFirst    bool
	PreemptionThreshold       int
	DisablePriorityPreemption bool
	// KeepPreempted puts preempted requests back into the queue also where SGLang before 0.5.23 loses them: if the request
	// that they made room for is then not admitted, and nothing else is, they are forgotten and their clients wait for ever.
	// Without it the engine does the same; see [Engine.Lost].
	KeepPreempted bool
	// RetractByPriority retracts the worst priority first (--retraction-policy priority, from 0.5.18 on).
	RetractByPriority bool

	// DisableRadixCache turns the prefix cache off. Requests with IgnoreEOS are then admitted by another rule.
	DisableRadixCache bool
	EvictionPolicy    EvictionPolicy // empty: lru

	EnableMixedChunk bool // decodes ride along in prefill batches; needs chunking
	// After a prefill step, PrefillDecodeInterval passes try no prefill, unless fewer than
	// PrefillDecodeIntervalMinBS requests run. From 0.5.21 on; 0: off.
	PrefillDecodeInterval      int
	PrefillDecodeIntervalMinBS int
	// DisableOverlap makes [Loop] process each result before it plans the next batch.
	DisableOverlap bool

	// QuietDecode leaves out the outputs of decode steps that end nothing: a request then has an [Output] with each
	// token that a prefill makes, and one with all that decode steps made since, at its end or when it is taken
	// back. The schedule is the same; the cost of a decode step does not grow with the batch.
	QuietDecode bool
}

// DefaultPreemptionThreshold is SGLang's --priority-scheduling-preemption-threshold.
const DefaultPreemptionThreshold = 10

func (c EngineConfig) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("sim: "+format, args...))
		}
	}
	atLeast := func(name string, v, least int, what string) {
		check(v >= least, "%s is %d: want %s", name, v, what)
	}
	atLeast("max_total_tokens", c.MaxTotalTokens, 8, "at least 8")
	atLeast("context_length", c.ContextLength, 8, "at least 8")
	atLeast("max_running_requests", c.MaxRunningRequests, 1, "at least 1")
	check(c.MaxMicroBatch >= 0 && c.MaxMicroBatch <= c.MaxRunningRequests, "pp_max_micro_batch_size is %d: want at most max_running_requests, %d", c.MaxMicroBatch, c.MaxRunningRequests)
	atLeast("max_prefill_tokens", c.MaxPrefillTokens, 1, "at least 1")
	atLeast("page_size", c.PageSize, 0, "0 (one token) or more")
	atLeast("prefill_max_requests", c.PrefillMaxRequests, 0, "0 (no limit) or more")
	atLeast("max_queued_requests", c.MaxQueuedRequests, 0, "0 (no limit) or more")
	atLeast("prefill_decode_interval", c.PrefillDecodeInterval, 0, "0 (off) or more")
	atLeast("prefill_decode_interval_min_bs", c.PrefillDecodeIntervalMinBS, 0, "0 or more")
	atLeast("priority_scheduling_preemption_threshold", c.PreemptionThreshold, 0, "0 or more")
	check(c.Rules <= Rules0515, "rules %d are unknown: see RulesOf", c.Rules)
	check(c.ScheduleConservativeness > 0 && !math.IsInf(c.ScheduleConservativeness, 0),
		"schedule_conservativeness is %v: want a finite number above 0", c.ScheduleConservativeness)
	if page := max(c.PageSize, 1); c.ChunkedPrefillSize > 0 {
		check(c.ChunkedPrefillSize%page == 0, "chunked_prefill_size is %d: want a multiple of page_size, %d", c.ChunkedPrefillSize, page)
	} else {
		check(!c.EnableMixedChunk, "enable_mixed_chunk needs chunked_prefill_size: want it above 0")
	}
	switch c.SchedulePolicy {
	case "", FCFS, LPM, DFSWeight, LOF, Random:
	case HRRN, ShortestPrefillFirst:
		check(c.Rules <= Rules0521, "schedule_policy %s is not known to SGLang before 0.5.21", c.SchedulePolicy)
		check(c.SchedulePolicy != ShortestPrefillFirst || !c.DisableRadixCache, "schedule_policy %s needs the radix cache", c.SchedulePolicy)
	default:
		check(false, "schedule_policy is %q: want %s, %s, %s, %s, %s, %s or %s", c.SchedulePolicy, FCFS, LPM, DFSWeight, LOF, Random, HRRN,
			ShortestPrefillFirst)
	}
	check(!c.EnablePriorityScheduling || c.SchedulePolicy == "" || c.SchedulePolicy == FCFS || c.SchedulePolicy == LOF,
		"enable_priority_scheduling needs schedule_policy %s or %s, not %q", FCFS, LOF, c.SchedulePolicy)
	check(!c.RetractByPriority || c.Rules != Rules0515, "retraction_policy priority is not known to SGLang before 0.5.18")
	check(!c.RetractByPriority || c.EnablePriorityScheduling, "retraction_policy priority needs enable_priority_scheduling")
	switch c.EvictionPolicy {
	case "", EvictLRU, EvictLFU, EvictSLRU, EvictPriority:
	default:
		check(false, "radix_eviction_policy is %q: want %s, %s, %s or %s", c.EvictionPolicy, EvictLRU, EvictLFU, EvictSLRU, EvictPriority)
	}
	return errors.Join(errs...)
}
