package sim

import "time"

// isPaused reports whether /pause_generation holds.
func (h *host) isPaused() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.paused
}

// pause holds new requests back and, if mode is not 0, stops the loop.
func (h *host) pause(mode PauseMode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.paused = true
	if mode != 0 {
		now := time.Since(h.start)
		for _, r := range h.ranks {
			h.hold(now, r.loop.Pause(mode))
			if mode == PauseRetract {
				for len(r.planned) > 0 { // what was under way has been processed
					r.completed(now)
				}
			}
		}
	}
	h.waiter.Wake()
}

// resume ends a pause. What came meanwhile goes to the scheduler in order of arrival.
func (h *host) resume() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Since(h.start)
	h.paused = false
	for _, r := range h.ranks {
		r.loop.Continue(now)
	}
	for _, s := range h.held {
		h.dispatch(s, now)
		s.wake() // whoever looks for the client must know since when
	}
	h.held = nil
	h.waiter.Wake()
}

// abortSubmitted aborts all that the scheduler knows and returns how many these are.
func (h *host) abortSubmitted() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.abortMatching("", true)
	return len(h.streams) - len(h.held)
}

// nextChange returns a channel that is closed when a stream comes or ends.
func (h *host) nextChange() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.nextChangeLocked()
}

func (h *host) nextChangeLocked() <-chan struct{} {
	if h.changes == nil {
		h.changes = make(chan struct{})
	}
	return h.changes
}

// flush empties the prefix caches of the ranks that can and reports whether any could: SGLang answers what the first rank
// says that answers, which is an idle one if there is one (tokenizer_control_mixin.py, flush_cache). With overQueue, which SGLang
// has from 0.5.21 on, requests that wait are no hindrance while the loop is paused.
func (h *host) flush(overQueue bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.arrivals) > 0 {
		return false
	}
	flushed := false
	for _, l := range h.loops.Loops {
		if overQueue && l.paused {
			flushed = l.Engine.flushOverQueue() || flushed
		} else {
			flushed = l.Engine.FlushCache() || flushed
		}
	}
	return flushed
}

// flushOverQueue is FlushCache that does not mind requests that wait.
func (e *Engine) flushOverQueue() bool {
	if e.live != e.waiting.len() {
		return false
	}
	if e.tree != nil {
		e.free += e.tree.evictable
		e.tree.reset()
	}
	return true
}

// slowDown makes every step take that much longer.
func (h *host) slowDown(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.loops.Loops {
		l.SlowDown(d)
	}
}

// setLimit sets the limit of running requests of every rank and reports for each whether it is in range.
func (h *host) setLimit(v float64) []bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.waiter.Wake()
	return h.loops.SetLimit(time.Since(h.start), v)
}

// probe submits the generation of a health check, and nothing if the engine has something to do. Of several ranks the one
// that gets it looks itself: see [rank.ignores].
func (h *host) probe(rid string, priority int, received time.Time) []*stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ranks) == 1 && len(h.streams) > 0 || h.paused || h.stopped {
		return nil
	}
	s := &stream{rid: rid, promptTokens: 1, health: true, received: received, notify: make(chan struct{}, 1)}
	s.req = Request{InputLen: 1, MaxNewTokens: 1, Priority: priority}
	s.req.Prompt.TokenIDs = []int32{0}
	h.submitLocked([]*stream{s})
	return []*stream{s}
}

// lastResult returns when the last result of any stream had passed the front process.
func (h *host) lastResult() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}
