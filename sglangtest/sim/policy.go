package sim

import (
	"cmp"
	"math"
	"slices"
)

// A Policy orders the waiting queue (schedule_policy.py, SchedulePolicy). The empty string means [FCFS].
type Policy string

// The policies that are simulated, named as SGLang's flag --schedule-policy names them.
const (
	FCFS                 Policy = "fcfs"                   // arrival
	LPM                  Policy = "lpm"                    // longest prefix match
	DFSWeight            Policy = "dfs-weight"             // depth-first through the prefix cache
	LOF                  Policy = "lof"                    // longest output first
	Random               Policy = "random"                 // shuffled at each pass; not SGLang's random numbers
	HRRN                 Policy = "hrrn"                   // highest response ratio next
	ShortestPrefillFirst Policy = "shortest-prefill-first" // fewest uncached tokens
)

// The constants of schedule_policy.py.
const (
	matchMost        = 128 // WAITING_QUEUE_PREFIX_MATCH_MAX
	refreshInterval  = 32  // WAITING_PREFIX_REFRESH_INTERVAL
	inBatchCheck     = 32  // IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD
	inBatchThreshold = 32  // IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD
)

// prioritySign makes smaller products better.
func (e *Engine) prioritySign() int {
	if e.cfg.LowPriorityValuesFirst {
		return 1
	}
	return -1
}

// order sorts the waiting queue in place (calc_priority). It runs at each pass that could admit, so that the order
// persists, and so do its accesses to the prefix cache.
func (e *Engine) order() {
	queue := e.waiting.all()
	policy := e.cfg.SchedulePolicy
	if e.tree == nil && (policy == LPM || policy == DFSWeight || policy == HRRN) {
		policy = FCFS
	}
	many := len(queue) > matchMost && (policy == LPM || policy == HRRN)
	switch {
	case many: // too long a queue to match: as it came
	case policy == LPM:
		e.matchWaiting(queue)
		stableSort(queue, func(a, b *Request) int {
			return cmp.Or(compareBool(a.late, b.late), boolInt(!a.late)*cmp.Compare(b.matched, a.matched))
		})
	case policy == DFSWeight:
		e.matchWaiting(queue)
		if len(queue) > 0 {
			e.tree.dfsOrder(queue)
		}
	case policy == HRRN:
		e.matchWaiting(queue)
		stableSort(queue, func(a, b *Request) int {
			return cmp.Or(cmp.Compare(e.response(a), e.response(b)), cmp.Compare(a.RID, b.RID))
		})
	case policy == ShortestPrefillFirst:
		e.matchWaiting(queue)
		stableSort(queue, func(a, b *Request) int {
			return cmp.Or(compareBool(a.late, b.late), cmp.Compare(prefillWorkOf(a), prefillWorkOf(b)), cmp.Compare(a.entry, b.entry))
		})
	case policy == LOF:
		sign := 0
		if e.cfg.EnablePriorityScheduling {
			sign = e.prioritySign()
		}
		stableSort(queue, func(a, b *Request) int {
			return cmp.Or(sign*cmp.Compare(a.Priority, b.Priority), cmp.Compare(b.MaxNewTokens, a.MaxNewTokens))
		})
	case policy == Random:
		e.rng.Shuffle(len(queue), func(i, j int) { queue[i], queue[j] = queue[j], queue[i] })
	case e.cfg.EnablePriorityScheduling:
		sign := e.prioritySign()
		stableSort(queue, func(a, b *Request) int {
			return cmp.Or(sign*cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.entry, b.entry))
		})
	}
	aware := policy == LPM || policy == DFSWeight || policy == HRRN || policy == ShortestPrefillFirst
	if many || !aware {
		e.refresh(queue)
	}
}

// stableSort leaves a queue that is in order, the usual case, after one comparison per request.
func stableSort(queue []*Request, less func(a, b *Request) int) {
	if !slices.IsSortedFunc(queue, less) {
		slices.SortStableFunc(queue, less)
	}
}

func compareBool(a, b bool) int { return boolInt(a) - boolInt(b) }

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// prefillWorkOf is _shortest_prefill_work.
func prefillWorkOf(r *Request) int { return max(1, r.InputLen+r.produced-r.matched) }

// response is the sort key of hrrn: the response ratio, negated.
func (e *Engine) response(r *Request) float64 {
	if r.late {
		return math.Inf(1)
	}
	uncached := r.InputLen - r.matched
	if uncached <= 0 {
		return math.Inf(-1)
	}
	return -float64(max(0, e.processed-r.seen)) / float64(uncached)
}

// matchWaiting matches all waiting requests and finds those that would compute again what an earlier one is about to
// (_compute_prefix_matches).
func (e *Engine) matchWaiting(queue []*Request) {
	if len(queue) == 0 {
		return
	}
	if e.inBatch == nil {
		e.inBatch = newRadix(1, EvictLRU)
	}
	e.inBatch.reset()
	for _, r := range queue {
		n := r.InputLen + r.produced
		key := e.keyOf(r, n)
		r.match, r.prefix = e.tree.match(key, n)
		r.matched = min(r.prefix, n-1)
		r.late = false
		if r.prefix > inBatchCheck {
			continue
		}
		if _, same := e.inBatch.match(key, n); same >= inBatchThreshold {
			r.late = true
		} else {
			e.inBatch.insert(key, n, 0, 0)
		}
	}
}

// refresh makes the cached prefixes of the waiting requests recent at every 32nd pass, the head's last
// (_touch_waiting_prefixes, 0.5.23).
func (e *Engine) refresh(queue []*Request) {
	if e.cfg.Rules.old() || e.tree == nil || len(queue) == 0 || e.tree.policy != EvictLRU {
		return
	}
	now := e.passes%refreshInterval == 0
	e.passes++
	if !now {
		return
	}
	queue = queue[:min(len(queue), matchMost)]
	for i := len(queue) - 1; i >= 0; i-- {
		r := queue[i]
		n := r.InputLen + r.produced
		e.tree.match(e.keyOf(r, n), n)
	}
}

// chunkLimit leaves room for shorter waiting requests beside a chunk (shortest_prefill_chunk_limit). It returns 0 for
// no limit.
func (e *Engine) chunkLimit(c *Request, budget int) int {
	page := e.cfg.PageSize
	if e.cfg.SchedulePolicy != ShortestPrefillFirst || budget < 2*page {
		return 0
	}
	rest := c.InputLen + c.produced - c.computed
	reserved := 0
	for _, r := range e.waiting.all() {
		work := prefillWorkOf(r)
		charge := e.ceil(work)
		if work >= rest || reserved+charge > budget-page {
			break
		}
		reserved += charge
	}
	if reserved == 0 {
		return 0
	}
	return (budget - reserved) / page * page
}
