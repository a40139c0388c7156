package metrics

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sglangtest/harness/sglangtest/load"
)

// Summary computes the summary of the run. That of a run that never began, because [load.Run] failed before it called Begin,
// is empty and says so. It panics while the run is under way. Each call computes it anew, in a time that is
// dominated by sorting one number for each output token, for which it needs eight bytes each.
func (c *Collector) Summary() *Summary {
	b := &builder{c: c, rs: c.finished("Summary"), samples: c.Samples(), events: c.Events()}
	b.sum = &Summary{SchemaVersion: SchemaVersion, Began: c.Began(), Simulation: c.simulation, Engines: c.engines,
		Started: c.clock.Start(), Plan: c.info.Plan, MaxConcurrency: c.info.MaxConcurrency}
	b.serverEnds = c.serverEnds()
	b.simulated()
	b.requests()
	b.durations()
	b.paramChanges()
	b.throughput()
	b.cache()
	b.inFlight()
	b.bound()
	b.latencies()
	b.itl()
	b.streams()
	b.steady()
	b.goodput()
	b.samplers()
	b.client()
	b.verdict()
	b.sum.BenchServing = b.benchServing()
	b.notes()
	return b.sum
}

// simulated declares a simulation that only the answers told of.
func (b *builder) simulated() {
	for _, r := range b.rs {
		if b.sum.Simulation != nil {
			return
		}
		if r.SimulatedBy != "" {
			const ask = "not told to the collector; the server's /server_info says it"
			b.sum.Simulation = &Simulation{Profile: shorten(r.SimulatedBy), Calibrated: ask, KnownError: ask}
		}
	}
}

type builder struct {
	c       *Collector
	rs      []*load.Result // by ID
	samples []Sample       // more of these and of events may come while the summary is computed
	events  []Event        // in order of time
	sum     *Summary
	end     time.Duration // the last completion, or the last arrival if that is later
	buf     []float64     // scratch for the distribution being computed

	serverEnds []Event // of kind KindServerEnded
}

// serverEnds returns the events that say that a server ended by itself.
func (c *Collector) serverEnds() []Event {
	return slices.DeleteFunc(c.Events(), func(e Event) bool { return e.Kind != KindServerEnded })
}

// censored reports whether the run was stopped while r was under way, so that nobody knows how it would have ended. What was
// under way when the server ended has failed.
func (b *builder) censored(r *load.Result) bool {
	return r.Outcome == load.OutcomeCancelled && len(b.serverEnds) == 0
}

func (b *builder) requests() {
	q := &b.sum.Requests
	q.Planned, q.Arrived, q.OK = b.c.info.Plan.Requests, b.c.arrived, b.c.completed
	counts := make(map[load.Outcome]*OutcomeCount)
	var unfinished []int
	for _, r := range b.rs {
		n := counts[r.Outcome]
		if n == nil {
			n = &OutcomeCount{Outcome: r.Outcome, Message: shorten(r.Message)}
			if r.Status != 0 && !r.OK() {
				n.Message = fmt.Sprintf("status %d: %s", r.Status, n.Message)
			}
			counts[r.Outcome] = n
		}
		n.Count++
		if b.censored(r) {
			q.Censored++
		}
		if r.Outcome == load.OutcomeCancelled {
			unfinished = append(unfinished, r.ID)
		}
	}
	q.Failed = q.Arrived - q.OK - q.Censored
	if n := len(b.c.pending); n > 0 {
		counts[NoRecord] = &OutcomeCount{Outcome: NoRecord, Count: n, Message: "arrived, but nothing was recorded of it"}
		unfinished = slices.AppendSeq(unfinished, maps.Keys(b.c.pending))
	}
	order := load.Outcomes()
	for _, o := range slices.Sorted(maps.Keys(counts)) {
		if o != NoRecord && !slices.Contains(order, o) {
			order = append(order, o)
		}
	}
	for _, o := range append(order, NoRecord) {
		if n := counts[o]; n != nil {
			q.Outcomes = append(q.Outcomes, *n)
		}
	}
	slices.Sort(unfinished)
	q.Unfinished = len(unfinished)
	q.UnfinishedIDs = unfinished[:min(20, len(unfinished))]
}

// shorten makes a message of a server fit for a line: cut, as it may be a whole error page, and without what is no text or
// would move a terminal's cursor.
func shorten(message string) string {
	const most = 300
	clean := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return utf8.RuneError
		}
		return r
	}, message[:min(len(message), most*utf8.UTFMax)])
	if r := []rune(clean); len(r) > most || len(message) > most*utf8.UTFMax {
		return string(r[:min(len(r), most)]) + " …"
	}
	return clean
}

func (b *builder) durations() {
	last := b.c.lastArr
	for _, r := range b.rs {
		last = max(last, r.Completion)
	}
	b.end = last
	b.sum.Durations = Durations{
		Measured: (last - b.c.firstArr).Seconds(),
		Arrivals: (b.c.lastArr - b.c.firstArr).Seconds(),
		Drain:    (last - b.c.lastArr).Seconds(),
	}
	if r := b.c.info.Plan.RequestedRate; r > 0 {
		b.sum.Rates.Requested = &r
	}
	b.sum.Rates.Scheduled = rate(b.c.arrived, b.c.firstArr, b.c.lastArr)
	var sends span
	for _, r := range b.rs {
		if r.Sent {
			sends.add(r.Send)
		}
	}
	b.sum.Rates.Achieved = sends.rate()
}

func (b *builder) throughput() {
	t := &b.sum.Throughput
	var retractions int
	var cached int64
	for _, r := range b.rs {
		if r.Retractions != load.NotReported {
			retractions += r.Retractions
			t.Retractions = &retractions
		}
		if !r.OK() {
			t.FailedOutputTokens += int64(r.OutputTokens)
			continue
		}
		if r.PromptTokens > 0 {
			t.InputTokens += int64(r.PromptTokens)
		} else {
			t.InputTokens += int64(r.InputLen)
		}
		t.OutputTokens += int64(r.OutputTokens)
		if r.CachedTokens != load.NotReported {
			cached += int64(r.CachedTokens)
			t.CachedTokens = &cached
		}
	}
	d := b.sum.Durations.Measured
	t.Requests = perSecond(float64(b.sum.Requests.OK), d)
	t.InputTokensPerS = perSecond(float64(t.InputTokens), d)
	t.OutputTokensPerS = perSecond(float64(t.OutputTokens), d)
}

// perSecond returns n/d, or 0 for a run without length, which has no rate and would make JSON impossible.
func perSecond(n, d float64) float64 {
	if d <= 0 {
		return 0
	}
	return n / d
}

func (b *builder) inFlight() {
	var starts, ends []time.Duration
	total := 0.0
	for _, r := range b.rs {
		if r.Sent {
			starts, ends = append(starts, r.Send), append(ends, r.Completion)
			total += r.ServerLatency().Seconds()
		}
	}
	slices.Sort(starts)
	slices.Sort(ends)
	open, ended := 0, 0
	for _, s := range starts {
		for ended < len(ends) && ends[ended] <= s {
			ended++
			open--
		}
		open++
		b.sum.InFlight.Peak = max(b.sum.InFlight.Peak, open)
	}
	b.sum.InFlight.Mean = perSecond(total, b.sum.Durations.Measured)
}

// What a request contributes to a distribution.
type contribution int

const (
	nothing contribution = iota // the latency is not defined for it
	value
	missing // it failed: +infinity
)

// distribution collects f over all recorded results; those that arrived without a record count as failed if
// strict is true.
func (b *builder) distribution(strict bool, f func(r *load.Result) (time.Duration, contribution)) Distribution {
	b.buf = b.buf[:0]
	failed := 0
	for _, r := range b.rs {
		switch d, what := f(r); what {
		case value:
			b.buf = append(b.buf, ms(d))
		case missing:
			failed++
		}
	}
	if strict {
		failed += len(b.c.pending)
	}
	return newDistribution(b.buf, failed, b.c.percentiles)
}

// ifOK makes a failure of every result that did not succeed, and nothing of a censored one.
func (b *builder) ifOK(f func(r *load.Result) time.Duration) func(r *load.Result) (time.Duration, contribution) {
	return func(r *load.Result) (time.Duration, contribution) {
		switch {
		case b.censored(r):
			return 0, nothing
		case !r.OK():
			return 0, missing
		}
		return f(r), value
	}
}

func (b *builder) latencies() {
	s := b.sum
	s.TotalLatency = b.distribution(true, b.ifOK((*load.Result).TotalLatency))
	s.ServerLatency = b.distribution(true, b.ifOK((*load.Result).ServerLatency))
	ttft := func(from func(*load.Result) time.Duration) Distribution {
		return b.distribution(true, func(r *load.Result) (time.Duration, contribution) {
			switch {
			case b.censored(r):
				return 0, nothing
			case !r.OK() || r.FirstToken == 0:
				return 0, missing
			}
			return r.FirstToken - from(r), value
		})
	}
	s.TTFT = ttft(func(r *load.Result) time.Duration { return r.Arrival })
	s.ServerTTFT = ttft(func(r *load.Result) time.Duration { return r.Send })
	s.QueueTime = b.distribution(true, func(r *load.Result) (time.Duration, contribution) {
		switch {
		case r.Sent:
			return r.QueueTime(), value
		case b.censored(r):
			return 0, nothing
		}
		return 0, missing
	})

	b.buf = b.buf[:0]
	failed := len(b.c.pending)
	for _, r := range b.rs {
		if !r.OK() {
			if !b.censored(r) {
				failed++
			}
			continue
		}
		switch {
		case r.FirstToken == 0:
			s.Streams.NoTokens++
		case !r.Streamed:
			s.Streams.NotStreamed++
		case r.OutputTokens > 1:
			b.first(r)
		}
		if tpot, ok := tpotMS(r); ok {
			b.buf = append(b.buf, tpot)
		}
	}
	s.TPOT = newDistribution(b.buf, failed, b.c.percentiles)
}

// tpotMS returns the strict TPOT of a success, if it could be observed.
func tpotMS(r *load.Result) (float64, bool) {
	later := r.OutputTokens - max(firstTokens(r), 1)
	if later <= 0 || r.LastToken <= r.FirstToken {
		return 0, false
	}
	return ms(r.LastToken-r.FirstToken) / float64(later), true
}

func (b *builder) itl() {
	n := 0 // at most as many values; at once, because doubling would hold them three times over
	for _, r := range b.rs {
		if r.OK() && r.Chunks.Len() > 0 {
			n += r.OutputTokens
		}
	}
	b.buf = slices.Grow(b.buf[:0], n)
	for _, r := range b.rs {
		if !r.OK() {
			continue
		}
		if r.Chunks.Len() == 0 {
			if r.OutputTokens > 1 && r.Streamed {
				b.sum.Streams.Uncounted++
			}
			continue
		}
		start, tokens := len(b.buf), 0
		coalesced := 0
		var last time.Duration
		for ch := range r.Chunks.All() {
			if ch.Tokens == 0 {
				continue
			}
			if tokens+ch.Tokens > r.OutputTokens {
				tokens = 0
				break
			}
			if tokens > 0 {
				b.buf = appendN(b.buf, ms(ch.At-last)/float64(ch.Tokens), ch.Tokens)
				if ch.At == last {
					coalesced += ch.Tokens
				}
			}
			tokens += ch.Tokens
			last = ch.At
		}
		if tokens == 0 || tokens != r.OutputTokens {
			b.buf = b.buf[:start]
			b.sum.Streams.Uncounted++
			continue
		}
		b.sum.Streams.CoalescedTokens += coalesced
	}
	b.sum.ITL = newDistribution(b.buf, 0, b.c.percentiles)
}

func appendN(s []float64, v float64, n int) []float64 {
	for range n {
		s = append(s, v)
	}
	return s
}

func (b *builder) goodput() {
	if b.c.slo == nil {
		return
	}
	in := func(from, to time.Duration) func(yield func(ttft, tpot, e2e float64)) {
		return func(yield func(ttft, tpot, e2e float64)) {
			for _, r := range b.rs {
				if !r.OK() || r.FirstToken == 0 || r.Completion < from || r.Completion > to {
					continue
				}
				tpot, observed := tpotMS(r)
				if !observed && r.OutputTokens > 1 {
					tpot = math.NaN() // within no limit
				}
				yield(ms(r.FirstToken-r.Arrival), tpot, ms(r.TotalLatency()))
			}
		}
	}
	q := b.sum.Requests
	g := countGoodput(*b.c.slo, q.Arrived-q.Censored, b.sum.Durations.Measured, in(0, math.MaxInt64))
	if s := b.sum.Steady; s != nil {
		rate := countGoodput(*b.c.slo, 0, (s.To - s.From).Seconds(), in(s.From, s.To)).PerSecond
		g.SteadyPerSecond = &rate
	}
	b.sum.Goodput = g
}

// countGoodput counts by the rules of SGLang 0.5.23, sglang/benchmark/goodput.py: all values in ms, met if ≤, shares of
// all requests.
func countGoodput(slo SLO, all int, seconds float64, each func(yield func(ttft, tpot, e2e float64))) *Goodput {
	g := &Goodput{SLO: slo, ByLimit: make(map[string]float64)}
	limits := []struct {
		name  string
		limit time.Duration
		met   int
	}{{"ttft", slo.TTFT, 0}, {"tpot", slo.TPOT, 0}, {"e2el", slo.E2E, 0}}
	each(func(ttft, tpot, e2e float64) {
		good := true
		for i, v := range []float64{ttft, tpot, e2e} {
			switch l := &limits[i]; {
			case l.limit == 0:
			case v <= ms(l.limit):
				l.met++
			default:
				good = false
			}
		}
		if good {
			g.Good++
		}
	})
	g.PerSecond = perSecond(float64(g.Good), seconds)
	if all == 0 {
		return g
	}
	g.Share = float64(g.Good) / float64(all)
	for _, l := range limits {
		if l.limit > 0 {
			g.ByLimit[l.name] = float64(l.met) / float64(all)
		}
	}
	return g
}

// A span is the first and last of a set of moments.
type span struct {
	n           int
	first, last time.Duration
}

func (s *span) add(t time.Duration) {
	if s.n == 0 || t < s.first {
		s.first = t
	}
	if s.n == 0 || t > s.last {
		s.last = t
	}
	s.n++
}

func (s span) rate() *float64 { return rate(s.n, s.first, s.last) }

func (s span) length() time.Duration { return s.last - s.first }

// rate returns (n − 1) / (last − first) per second, or nil if that is not defined.
func rate(n int, first, last time.Duration) *float64 {
	if n < 2 || last <= first {
		return nil
	}
	r := float64(n-1) / (last - first).Seconds()
	return &r
}
