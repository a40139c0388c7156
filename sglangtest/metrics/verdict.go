package metrics

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// A Verdict says in a word what the figures of a run are worth.
type Verdict string

// The verdicts, the gravest first. A summary has the first of them that holds; its reasons name all that hold.
const (
	// VerdictFailed: a server ended by itself, or no request succeeded.
	VerdictFailed Verdict = "failed"
	// VerdictClient: the client could not keep up, so that its own delay is part of the latencies; see [Client].
	VerdictClient Verdict = "client not ok"
	// VerdictStalled: requests arrived to the end and had got tokens, but over the last quarter of the arrivals none did.
	VerdictStalled Verdict = "stalled"
	// VerdictOverloaded: more requests came than were served. The number of those that waited for their first token grew until
	// the arrivals ended, so that latencies tell how long the run was, not how fast the server is.
	VerdictOverloaded Verdict = "overloaded"
	// VerdictErrors: some requests failed, other than by the run's stop.
	VerdictErrors Verdict = "requests failed"
	// VerdictStopped: the run ended before its workload had. The figures are as of then.
	VerdictStopped Verdict = "stopped"
	// VerdictOK: none of these.
	VerdictOK Verdict = "ok"
)

func (b *builder) verdict() {
	s := b.sum
	find := func(v Verdict, format string, args ...any) {
		if s.Verdict == "" {
			s.Verdict = v
		}
		s.VerdictReasons = append(s.VerdictReasons, fmt.Sprintf(format, args...))
	}
	q := s.Requests
	for _, e := range b.serverEnds {
		find(VerdictFailed, "%s ended by itself, noticed at %.3f s", e.Source, e.At.Seconds())
	}
	if q.OK == 0 && q.Failed > 0 {
		find(VerdictFailed, "no request succeeded")
	} else if q.Arrived == 0 {
		find(VerdictFailed, "no request arrived")
	}
	if !s.Client.OK && q.Arrived > 0 {
		find(VerdictClient, "the client's own delay is part of the figures (see client)")
	}
	switch w := b.waiting(); {
	case w.stalled():
		find(VerdictStalled, "no request got its first token in the last %.3g s of arrivals, while %d arrived", w.quarter.Seconds(), w.lastArrivals)
	case w.grew():
		held := ""
		if b.sum.MaxConcurrency > 0 {
			held = fmt.Sprintf(", under a cap of %d at once", b.sum.MaxConcurrency)
		}
		find(VerdictOverloaded, "more came than was served%s: the requests that waited for their first token grew from %s in the first quarter of the arrivals to %s in the last (means), so that latencies grow with the length of the run",
			held, sig(math.Round(10*w.means[0])/10), sig(math.Round(10*w.means[3])/10))
	}
	if q.Failed > 0 && q.OK > 0 {
		find(VerdictErrors, "%d of the %d requests that ended failed", q.Failed, q.Arrived-q.Censored)
	}
	switch {
	case len(b.serverEnds) > 0:
	case q.Censored > 0:
		find(VerdictStopped, "the run was stopped with %d requests under way and %d yet to come: figures are as of the stop", q.Censored, max(0, q.Planned-q.Arrived))
	case q.Arrived > 0 && q.Arrived < q.Planned:
		find(VerdictStopped, "%d of %d planned requests never arrived: figures are of those that did", q.Planned-q.Arrived, q.Planned)
	}
	if s.Verdict == "" {
		s.Verdict = VerdictOK
	}
}

// text is the verdict and its reasons in a line.
func (s *Summary) verdictText() string {
	if len(s.VerdictReasons) == 0 {
		return string(s.Verdict)
	}
	return string(s.Verdict) + ": " + strings.Join(s.VerdictReasons, "; ")
}

// A backlog is how the number of requests that had arrived and had no token yet, wherever they waited, developed over the
// arrivals of a run.
type backlog struct {
	n            int           // arrivals
	quarter      time.Duration // length of a quarter of the time from the first to the last arrival
	means        [4]float64    // of the requests waiting, over each quarter
	early        float64       // of the requests waiting, if all waited as long as those of the first tenth of that time
	begun        int           // first tokens until the last arrival
	spread       float64       // how far a queue at its capacity limit wanders while n arrive: √(n(1 + cv²)), cv of the output lengths
	lastArrivals int           // in the last quarter
	lastBegun    int           // first tokens in the last quarter
}

// waiting measures the backlog. It is zero for a run whose arrivals span no time: in a closed loop, or a burst, a queue is what
// was asked for.
func (b *builder) waiting() backlog {
	w := backlog{n: b.c.arrived, quarter: (b.c.lastArr - b.c.firstArr) / 4}
	if w.quarter <= 0 {
		return backlog{}
	}
	var first int            // requests of the first tenth of the time
	var waited time.Duration // by them
	add := func(from, to time.Duration) {
		if from <= b.c.firstArr+w.quarter*4/10 {
			first++
			waited += to - from
		}
		for i := range w.means {
			start := b.c.firstArr + time.Duration(i)*w.quarter
			if part := min(to, start+w.quarter) - max(from, start); part > 0 {
				w.means[i] += float64(part) / float64(w.quarter)
			}
		}
		if from >= b.c.lastArr-w.quarter {
			w.lastArrivals++
		}
	}
	var outputs, squares float64
	for _, r := range b.rs {
		outputs, squares = outputs+float64(r.OutputLen), squares+float64(r.OutputLen)*float64(r.OutputLen)
		to := r.Completion
		if r.FirstToken > 0 {
			to = r.FirstToken
			if to <= b.c.lastArr {
				w.begun++
			}
			if to >= b.c.lastArr-w.quarter && to <= b.c.lastArr {
				w.lastBegun++
			}
		}
		add(r.Arrival, to)
	}
	for _, at := range b.c.pending {
		add(at, b.end)
	}
	if first > 0 { // rate × mean wait, by Little's law
		w.early = float64(w.n) / (4 * w.quarter).Seconds() * waited.Seconds() / float64(first)
	}
	w.spread = math.Sqrt(float64(w.n))
	if outputs > 0 { // Σx²/n ÷ (Σx/n)² is 1 + cv²
		w.spread = math.Sqrt(float64(w.n) * float64(len(b.rs)) * squares / (outputs * outputs))
	}
	return w
}

// A backlog that grew by chance must not count. A queue at its capacity limit wanders by some √(n(1 + cv²)) requests while n come as
// a Poisson process and cv is the variation of their work, one below it by less; so growth counts from growthSpread times that on,
// and if it is a notable share of the arrivals. A load of ρ times the capacity leaves n(1 − 1/ρ) requests waiting.
const (
	growthSpread = 2.5
	growthShare  = 0.05
	growthWait   = 2
)

// grew reports whether the backlog grew until the arrivals ended: through the second half steadily, so that neither a burst at
// the end counts nor a queue that has come to rest; and to more than growthWait times what the waits of the first requests
// explain, because on a run that is shorter than its latencies the number under way grows whatever the load is.
func (w backlog) grew() bool {
	m := w.means
	growth := m[3] - m[0]
	return m[1] < m[2] && m[2] < m[3] && m[0] <= m[2] && m[2] >= 0.25*m[3] && m[3]-m[2] >= 0.1*growth &&
		m[3] >= growthWait*w.early && growth >= growthSpread*w.spread && growth >= growthShare*float64(w.n)
}

// stalled reports whether nothing got a token any more while several requests came and waited. If nothing had got one before
// either, the run was shorter than its latencies.
func (w backlog) stalled() bool {
	return w.begun > 0 && w.lastBegun == 0 && w.lastArrivals >= 10 && w.means[3] >= 5
}
