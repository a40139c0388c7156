package fleet

import (
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// limitName is the parameter's name in configs and events.
const limitName = "max_running_requests"

// A limitChange is a changed limit that running requests do not obey yet, as server.Server.WaitInForce understands it.
type limitChange struct {
	at              time.Duration
	value, previous int
	low             int // the fewest running requests since
}

func (c *limitChange) data() map[string]any {
	return map[string]any{"name": limitName, "value": c.value, "asked_ns": int64(c.at), "accepted_ns": int64(c.at)}
}

// limitSet notes that the limit of a worker was set to n.
func (s *run) limitSet(w *worker, n int) {
	s.limitUnseen(w, "the limit was changed again")
	c := &limitChange{at: s.now, value: n, previous: w.limit, low: w.loop.Engine.State().Running}
	w.limit, w.change = n, c
	data := c.data()
	data["previous"], data["read_back"], data["mechanism"] = c.previous, n, "pp_max_micro_batch_size of the simulated scheduler"
	s.event(metrics.KindParamUpdate, w, data)
	s.limitSeen(w, s.now)
}

// limitSeen says that the running requests, as they are at the given moment, obey a changed limit, once they do.
func (s *run) limitSeen(w *worker, at time.Duration) {
	c := w.change
	if c == nil {
		return
	}
	running := w.loop.Engine.State().Running
	if c.value > c.previous {
		beyond := running > max(c.previous, c.low)
		c.low = min(c.low, running)
		if !beyond {
			return
		}
	} else if c.value < c.previous && running > c.value {
		return
	}
	data := c.data()
	data["not_before_ns"] = int64(at)
	s.eventAt(at, metrics.KindParamInForce, w, data)
	w.change = nil
}

// limitUnseen says that a changed limit was not seen in force before it no longer could be.
func (s *run) limitUnseen(w *worker, reason string) {
	if w.change == nil {
		return
	}
	data := w.change.data()
	data["reason"] = reason
	s.event(metrics.KindParamNotInForce, w, data)
	w.change = nil
}
