package fleet

import (
	"fmt"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/dispatch"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// The events that are no worker's. At one time they are carried out in this order.
const (
	actionTimer = iota
	pollTimer
	sampleTimer
	deadlineTimer
	holdTimer
	timerCount
)

// timers holds the time of the next event of each kind.
type timers struct {
	at   [timerCount]time.Duration
	next time.Duration // the earliest

	actions []planned // what is left of them, in order of time
}

func (t *timers) plan(c *config) {
	for i := range t.at {
		t.at[i] = never
	}
	t.actions = slices.Clone(c.actions)
	slices.SortStableFunc(t.actions, func(a, b planned) int { return int(min(1, max(-1, a.at-b.at))) })
	if len(t.actions) > 0 {
		t.at[actionTimer] = t.actions[0].at
	}
	if c.poll > 0 {
		t.at[pollTimer] = 0
	}
	if c.sample > 0 {
		t.at[sampleTimer] = 0
	}
	t.next = slices.Min(t.at[:])
}

func (t *timers) set(kind int, at time.Duration) {
	t.at[kind] = at
	t.next = slices.Min(t.at[:])
}

// quiet reports that nothing is planned but polls and samples.
func (t *timers) quiet() bool {
	return min(t.at[actionTimer], t.at[deadlineTimer], t.at[holdTimer]) == never
}

// timer carries out the first timer event that is due.
func (s *run) timer() {
	t := &s.timers
	switch slices.Index(t.at[:], s.now) {
	case actionTimer:
		a := t.actions[0]
		t.actions = t.actions[1:]
		at := never
		if len(t.actions) > 0 {
			at = t.actions[0].at
		}
		t.set(actionTimer, at)
		if err := a.action.do(target{s, s.workers[a.worker]}); err != nil {
			s.err = err
		}
	case pollTimer:
		t.set(pollTimer, s.now+s.cfg.poll)
		s.poll()
	case sampleTimer:
		t.set(sampleTimer, s.now+s.cfg.sample)
		s.sample()
	case deadlineTimer:
		s.expire(s.deadline.pop())
		s.setDeadline()
	case holdTimer:
		s.core.Tick(s.now)
	}
}

// poll tells the dispatcher the health and the load of every worker.
func (s *run) poll() {
	s.polled = s.polled[:0]
	for _, w := range s.workers {
		if w.known != w.starts && w.up {
			w.known = w.starts
			s.core.NewEpoch(s.now, w.slot(), true)
		}
		s.core.Health(s.now, w.slot(), w.up)
		if w.up && w.hung == never { // a scheduler that hangs publishes nothing new
			st := w.loop.Engine.State()
			s.polled = append(s.polled, dispatch.Sample{Slot: w.slot(),
				Load: policy.Load{At: s.now, Running: st.Running, Waiting: st.Waiting, KVUsed: st.UsedTokens}})
		}
	}
	s.core.Sample(s.now, s.polled)
	s.idle++
}

// sample hands the load of every worker to the recorder.
func (s *run) sample() {
	for _, w := range s.workers {
		m := metrics.Sample{At: s.now, Source: w.Name}
		if w.hung != never {
			m.Err = fmt.Sprintf("stale: the simulated scheduler hangs since %v", w.hung)
		} else if w.up {
			st := w.loop.Engine.State()
			m.Values = map[string]float64{metrics.NumRunning: float64(st.Running), metrics.NumWaiting: float64(st.Waiting),
				metrics.NumUsedTokens: float64(st.UsedTokens), metrics.MaxTokens: float64(st.MaxTotalTokens),
				metrics.TokenUsage: float64(st.UsedTokens) / float64(st.MaxTotalTokens)}
		} else {
			m.Err = "connection refused: the simulated server is down"
		}
		s.clock(s.now)
		s.samples.AddSample(m)
	}
}

func (s *run) event(kind string, w *worker, data map[string]any) { s.eventAt(s.now, kind, w, data) }

func (s *run) eventAt(at time.Duration, kind string, w *worker, data map[string]any) {
	if s.events != nil {
		s.events.Event(metrics.Event{At: at, Kind: kind, Source: w.Name, Data: data})
	}
}

// setDeadline sets the timer to the deadline of the request sent first, of those that have not ended.
func (s *run) setDeadline() {
	for s.deadline.len() > 0 && (*s.deadline.front()).ended {
		s.deadline.pop()
	}
	at := never
	if f := s.deadline.front(); f != nil {
		at = (*f).due + s.cfg.timeout
	}
	s.timers.set(deadlineTimer, at)
}

// expire ends a request at its deadline, unless it has ended: the client goes, and the server aborts.
func (s *run) expire(f *flight) {
	if f.ended {
		return
	}
	w := f.worker
	if i := slices.IndexFunc(w.coming.all(), func(a arrival) bool { return a.flight == f }); i >= 0 {
		w.coming.remove(i)
	} else {
		w.loop.Abort(s.now, &f.request)
	}
	s.fail(f, load.OutcomeTimeout, "no end within "+s.cfg.timeout.String())
	s.reschedule(w)
}
