package sim

import (
	"strconv"
	"time"
)

// The methods of --load-balance-method that are simulated. SGLang's default, auto, is round robin unless prefill and decode are
// apart (server_args.py, in 0.5.21 and later serving_hook.py).
const (
	balanceAuto   = "auto"
	roundRobin    = "round_robin"
	totalRequests = "total_requests"
	totalTokens   = "total_tokens"
)

// A balancer chooses the rank of each request, as SGLang's data-parallel controller does (data_parallel_controller.py; the same
// in all versions from 0.5.15.post1 to 0.5.23, but for health checks, which have turns of their own from 0.5.23 on).
type balancer struct {
	method     string // empty: roundRobin
	healthTurn int

	budgets   []rankBudget // of totalRequests and totalTokens, by rank
	refreshed bool
	at        time.Duration // when
}

// A rankBudget is what the controller believes a rank to have (DPBudget).
type rankBudget struct {
	requests, tokens int
	read             time.Time // of the snapshot that it comes from
}

// budgetInterval is how often budgets are at most renewed from the load snapshots (refresh_load_budget).
const budgetInterval = 20 * time.Millisecond

// route returns the rank that gets a stream at the given time.
func (h *host) route(s *stream, now time.Duration) *rank {
	b := &h.balancer
	switch {
	case len(h.ranks) == 1:
		return h.ranks[0]
	case s.routed != nil:
		return h.ranks[*s.routed]
	case s.health && h.meter.patch >= 23:
		k := b.healthTurn
		b.healthTurn = (k + 1) % len(h.ranks)
		return h.ranks[k]
	case b.method == totalRequests, b.method == totalTokens:
		return h.ranks[h.leastLoaded(s, now)]
	}
	return h.ranks[h.loops.turn()]
}

// leastLoaded is DPBudget.dispatch: the first rank with the fewest requests, or the fewest tokens and of those the fewest
// requests. What was dispatched counts until the next snapshot is read.
func (h *host) leastLoaded(s *stream, now time.Duration) int {
	b := &h.balancer
	if !b.refreshed || now-b.at >= budgetInterval {
		b.refreshed, b.at = true, now
		if b.budgets == nil {
			b.budgets = make([]rankBudget, len(h.ranks))
		}
		h.refreshIdle(h.start.Add(now))
		for k, r := range h.ranks {
			if l := &r.loads.snapshot; !l.at.Equal(b.budgets[k].read) {
				b.budgets[k] = rankBudget{l.running + l.waiting, l.total, l.at}
			}
		}
	}
	least := 0
	for k, x := range b.budgets {
		y := b.budgets[least]
		if b.method == totalRequests && x.requests < y.requests ||
			b.method == totalTokens && (x.tokens < y.tokens || x.tokens == y.tokens && x.requests < y.requests) {
			least = k
		}
	}
	b.budgets[least].requests++
	if b.method == totalTokens {
		b.budgets[least].tokens += s.promptTokens
	}
	return least
}

// ignores reports whether the scheduler drops a stream: a health check while it has something to do (scheduler.py,
// handle_generate_request). A server with one rank does not make it then, see [host.probe].
func (r *rank) ignores(s *stream) bool {
	return s.health && len(r.host.ranks) > 1 && r.loop.Engine.Busy()
}

// routedFault is what a request is refused with whose routed_dp_rank the server does not have (tokenizer_manager.py), or "".
func (h *host) routedFault(routed *int) string {
	if n := len(h.ranks); routed != nil && (*routed < 0 || *routed >= n) {
		return "routed_dp_rank=" + strconv.Itoa(*routed) + " out of range [0, " + strconv.Itoa(n) + ")"
	}
	return ""
}
