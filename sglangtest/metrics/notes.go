package metrics

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// Arrivals that differ from the requested rate by more than rateTolerance, and a drain that is more than drainTolerance of the
// measured duration, are worth mentioning; so is a TTFT that is longer than the server TTFT by more than sendTolerance.
const (
	rateTolerance  = 0.05
	drainTolerance = 0.1
	sendTolerance  = 0.1
)

// notes says what the numbers do not say by themselves.
func (b *builder) notes() {
	s := b.sum
	add := func(format string, args ...any) { s.Notes = append(s.Notes, fmt.Sprintf(format, args...)) }
	if !s.Began {
		add("the run never began, so that nothing was measured: the error of load.Run says why")
	}
	s.Notes = append(s.Notes, b.c.relabelled...)
	for _, e := range b.events {
		if message, ok := e.Data["message"].(string); ok && (e.Kind == KindServerWarning || e.Kind == KindServerFault) {
			when := "before the run"
			if e.At > 0 {
				when = fmt.Sprintf("at %.3f s", e.At.Seconds())
			}
			add("%s, %s: %s", e.Source, when, message)
		}
	}
	q := s.Requests
	b.planNotes(add)
	if q.Unfinished > 0 {
		add("%d requests never came to an end; the first IDs: %v", q.Unfinished, q.UnfinishedIDs)
	}
	if q.Failed > 0 {
		add("%d of %d requests failed: they count as +infinity in percentiles and are not in mean, min and max", q.Failed, q.Arrived)
	}
	b.censorNote(add)
	b.deadEnd(add)
	b.resetNote(add)
	b.lostNote(add)
	b.loadNotes(add)
	b.achievedNote(add)
	b.lengthNotes(add)
	b.cacheNote(add)
	b.sendNote(add)
	if wait, err := s.Client.Connect.Quantile(0.99); err == nil && wait > millis(b.c.maxLateness) {
		add("requests waited for a connection, p99 %.1f ms, which is part of the client queue: see WithMaxConnections, the network, and how fast the server accepts", wait)
	}
	for _, x := range s.Samplers {
		if gaps, all := x.Failed+x.Missed, x.Taken+x.Failed+x.Missed; float64(gaps) > clientTolerance*float64(all) {
			add("sampler %s has %d gaps in %d samples (%d missed, %d failed): its means and maxima do not cover the whole run",
				x.Source, gaps, all, x.Missed, x.Failed)
		}
	}
	for _, x := range s.Samplers {
		if x.Stale > 0 {
			add("sampler %s: %d of %d samples told a stale load, up to %.1f s old, and are left out of its means and maxima: its scheduler had told nothing newer",
				x.Source, x.Stale, x.Taken, *x.MaxAge/1e3)
		}
	}
	b.streamNotes(add)
	if n := s.BenchServing.UnsplitChunks; n > 0 {
		add("bench_serving: %d gaps could not be split over retokenised text and are left out of its ITL", n)
	}
	if n := len(s.TotalLatency.Percentiles); n > 0 {
		p, all := s.TotalLatency.Percentiles[n-1], s.TotalLatency.Count+s.TotalLatency.Failed
		if p.Value.Valid() && float64(all)*(1-p.P/100) < 1-1e-9 {
			add("p%g of %d requests rests on the largest value alone", p.P, all)
		}
	}
}

// lostNote says which requests simulated schedulers have forgotten.
func (b *builder) lostNote(add func(format string, args ...any)) {
	var ids []any
	for _, e := range b.events {
		if e.Kind == KindRequestLost {
			ids = append(ids, e.Data["request"])
		}
	}
	if n := len(ids); n > 0 {
		add("the simulated scheduler lost %d requests, as SGLang before 0.5.23 does with a request that it preempted for one that is then not admitted: they can only run into a deadline; the first IDs: %v",
			n, ids[:min(n, 5)])
	}
}

// planNotes says where the load was not the planned one, and what in the plan bears on caches.
func (b *builder) planNotes(add func(format string, args ...any)) {
	q, plan := b.sum.Requests, b.sum.Plan
	switch n := q.Planned - q.Arrived; {
	case plan.Requests == 0: // no plan was told
	case n > 0:
		add("%d of the %d planned requests never arrived", n, q.Planned)
	case n < 0:
		add("%d more requests arrived than the %d planned: the workload's second reading, for the run, differs from the first, for the plan", -n, q.Planned)
	case plan.LastArrival != b.c.lastArr || plan.InputTokens != b.c.inputLen || plan.OutputTokens != b.c.outputLen:
		if plan.LastArrival != 0 || plan.InputTokens != 0 || plan.OutputTokens != 0 {
			add("the workload's second reading, for the run, differs from the first, for the plan: %d input and %d output tokens until %.3f s instead of %d and %d until %.3f s",
				b.c.inputLen, b.c.outputLen, b.c.lastArr.Seconds(), plan.InputTokens, plan.OutputTokens, plan.LastArrival.Seconds())
		}
	}
	for _, l := range plan.LeftOut {
		rows, where := "rows", ""
		if l.Rows == 1 {
			rows = "row"
		}
		if l.FirstLine > 0 {
			where = fmt.Sprintf("; the first is line %d", l.FirstLine)
		}
		add("left out of the dataset: %d %s, %s%s", l.Rows, rows, l.Reason, where)
	}
	if plan.Passes > 1 {
		again := ""
		if p := plan.Prompts; p != nil && p.Shared+p.SharedBytes > 0 {
			again = ", and with them the prompts that it states, which a prefix cache may hold"
		}
		add("the dataset is begun %d times: its %d rows come again%s", plan.Passes, plan.Rows, again)
	}
}

// achievedNote says where requests left at another rate than the schedule's, over those that left. Half a hundredth of a short
// run is no more than a late timer, so the span must differ by more than the bound on lateness.
func (b *builder) achievedNote(add func(format string, args ...any)) {
	var arrivals, sends span
	unsent := b.sum.QueueTime.Failed
	for _, r := range b.rs {
		if r.Sent {
			arrivals.add(r.Arrival)
			sends.add(r.Send)
		}
	}
	want, got := arrivals.rate(), sends.rate()
	if want == nil || got == nil || (sends.length()-arrivals.length()).Abs() <= b.c.maxLateness {
		return
	}
	if diff := *got / *want - 1; math.Abs(diff) > clientTolerance {
		why := ""
		if unsent > 0 {
			why = fmt.Sprintf("; %d others were never sent", unsent)
		}
		if b.sum.MaxConcurrency > 0 {
			why += fmt.Sprintf("; at most %d could be under way at once", b.sum.MaxConcurrency)
		}
		add("the %d requests that were sent left at %s/s, %+.1f %% from their scheduled %s/s%s", sends.n, sig(*got), 100*diff, sig(*want), why)
	}
}

// loadNotes says where the load was not the requested one: by the chance of its arrivals, or because the figures go on after
// its end.
func (b *builder) loadNotes(add func(format string, args ...any)) {
	s := b.sum
	if req, sch := s.Rates.Requested, s.Rates.Scheduled; req != nil && sch != nil {
		if diff := *sch / *req - 1; math.Abs(diff) > rateTolerance {
			chance := ""
			if strings.HasPrefix(s.Plan.Arrivals, "poisson ") {
				// The interarrival times are exponential, so that their mean scatters by 1/√n of itself.
				chance = fmt.Sprintf(": chance moves the rate of %d Poisson arrivals by some ±%.1f %%", s.Requests.Arrived, 100/math.Sqrt(float64(s.Requests.Arrived)))
			}
			arrivals := "arrivals were"
			if n := s.Requests.Arrived; n < s.Requests.Planned {
				arrivals = fmt.Sprintf("the %d requests that arrived were", n)
			}
			add("%s scheduled at %s/s, %+.1f %% from the requested %s/s%s", arrivals, sig(*sch), 100*diff, sig(*req), chance)
		}
	}
	d := s.Durations
	if d.Arrivals == 0 || d.Drain <= drainTolerance*d.Measured {
		return
	}
	instead := ""
	if s.Steady != nil {
		instead = ": the steady state leaves that out"
	}
	add("throughput and goodput are over %.2f s, of which %.2f s are drain, in which no load was added%s", d.Measured, d.Drain, instead)
}

// censorNote says which percentiles the requests that were under way at the run's stop would change: each would have taken at
// least its age. A percentile with them at their age is a lower bound of the one that the run would have had.
func (b *builder) censorNote(add func(format string, args ...any)) {
	n := b.sum.Requests.Censored
	if n == 0 {
		return
	}
	var oldest time.Duration
	bound := func(d Distribution, age func(*load.Result) time.Duration, value func(*load.Result) (time.Duration, bool)) string {
		var values []float64
		for _, r := range b.rs {
			if b.censored(r) {
				values = append(values, ms(age(r)))
				oldest = max(oldest, r.TotalLatency())
			} else if v, ok := value(r); ok {
				values = append(values, ms(v))
			}
		}
		slices.Sort(values)
		var parts []string
		least := func(p float64, has Millis) {
			if v := quantile(values, d.Failed, p/100); has.Valid() && v > 1.01*float64(has) {
				parts = append(parts, fmt.Sprintf("p%g %s instead of %s", p, cell(Millis(v)), cell(has)))
			}
		}
		least(50, d.Median)
		for _, p := range d.Percentiles {
			least(p.P, p.Value)
		}
		return strings.Join(parts, ", ")
	}
	total := bound(b.sum.TotalLatency, (*load.Result).TotalLatency, func(r *load.Result) (time.Duration, bool) { return r.TotalLatency(), r.OK() })
	ttft := bound(b.sum.TTFT, func(r *load.Result) time.Duration {
		if r.FirstToken > 0 {
			return r.FirstToken - r.Arrival
		}
		return r.TotalLatency()
	}, func(r *load.Result) (time.Duration, bool) {
		return r.FirstToken - r.Arrival, r.OK() && r.FirstToken > 0
	})
	text := fmt.Sprintf("%d requests were under way when the run was stopped, for up to %.3f s: latencies are of those that had ended, which favours short ones", n, oldest.Seconds())
	for _, l := range []struct{ name, parts string }{{"TTFT", ttft}, {"E2E", total}} {
		if l.parts != "" {
			text += fmt.Sprintf("; with them %s would be at least, in ms: %s", l.name, l.parts)
		}
	}
	add("%s", text)
}

// sendNote names the percentiles at which the TTFT depends on whether it is taken from the arrival or from the send, though
// neither a concurrency cap nor a policy held a request back.
func (b *builder) sendNote(add func(format string, args ...any)) {
	for _, r := range b.rs {
		if r.Due > r.Arrival {
			if b.sum.MaxConcurrency > 0 && b.sum.TTFT.Median > (1+sendTolerance)*b.sum.ServerTTFT.Median {
				add("TTFT and E2E count from the arrival, so that the wait for one of the %d places is in them: TTFT p50 %s ms, server TTFT p50, from the send, %s ms",
					b.sum.MaxConcurrency, cell(b.sum.TTFT.Median), cell(b.sum.ServerTTFT.Median))
			}
			return
		}
	}
	var where []string
	compare := func(p float64, arrival, send Millis) {
		if arrival > (1+sendTolerance)*send {
			where = append(where, fmt.Sprintf("p%g (%s and %s ms)", p, cell(arrival), cell(send)))
		}
	}
	compare(50, b.sum.TTFT.Median, b.sum.ServerTTFT.Median)
	for i, p := range b.sum.TTFT.Percentiles {
		compare(p.P, p.Value, b.sum.ServerTTFT.Percentiles[i].Value)
	}
	if len(where) > 0 {
		add("TTFT is more than %g %% longer than server TTFT at %s: that part passed before the request was written, in the client or until it had a connection",
			100*sendTolerance, strings.Join(where, ", "))
	}
}

// deadEnd says if nothing succeeded any more from some moment on, in which ways it failed, and whether a server had ended.
// Requests that the run's own end cancelled, or that the client failed by itself, are no evidence.
func (b *builder) deadEnd(add func(format string, args ...any)) {
	last := time.Duration(-1) // the last success
	for _, r := range b.rs {
		if r.OK() {
			last = max(last, r.Completion)
		}
	}
	type kind struct {
		outcome load.Outcome
		status  int
	}
	var n int
	counts := make(map[kind]int)
	for _, r := range b.rs {
		if !r.OK() && r.Outcome != load.OutcomeCancelled && r.Outcome != load.OutcomeClient && r.Completion > last {
			counts[kind{r.Outcome, r.Status}]++
			n++
		}
	}
	if n <= 2 {
		return
	}
	kinds := slices.SortedFunc(maps.Keys(counts), func(x, y kind) int {
		return cmp.Or(counts[y]-counts[x], cmp.Compare(x.outcome, y.outcome), x.status-y.status)
	})
	var how []string
	for _, k := range kinds {
		text := fmt.Sprintf("%d %s", counts[k], k.outcome)
		if k.status != 0 && k.status != 200 {
			text += fmt.Sprintf(" (status %d)", k.status)
		}
		how = append(how, text)
	}
	text := fmt.Sprintf("no request succeeded: %s", strings.Join(how, ", "))
	if last >= 0 {
		text = fmt.Sprintf("the last success ended at %.3f s; the %d requests that ended later all failed: %s", last.Seconds(), n, strings.Join(how, ", "))
	}
	for _, e := range b.events {
		if e.Kind == KindServerEnded {
			text += fmt.Sprintf("; the end of %s was noticed at %.3f s", e.Source, e.At.Seconds())
		}
	}
	add("%s", text)
}

// lengthNotes says how much the lengths that the server counted differ from those that were asked for.
func (b *builder) lengthNotes(add func(format string, args ...any)) {
	var short, otherPrompt int
	var asked, got, stated, counted int64
	for _, r := range b.rs {
		if !r.OK() {
			continue
		}
		if r.OutputTokens < r.OutputLen {
			short++
			asked, got = asked+int64(r.OutputLen), got+int64(r.OutputTokens)
		}
		if r.InputLen > 0 && r.PromptTokens > 0 && r.PromptTokens != r.InputLen {
			otherPrompt++
			stated, counted = stated+int64(r.InputLen), counted+int64(r.PromptTokens)
		}
	}
	if short > 0 {
		add("%d successful answers are shorter than asked for, by the server's count: %d of %d tokens", short, got, asked)
	}
	if otherPrompt > 0 {
		add("%d prompts have another length by the server's count than by the dataset's: %d instead of %d tokens", otherPrompt, counted, stated)
	}
}
