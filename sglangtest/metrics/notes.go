package metrics

import (
	"fmt"
	"math"
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
	s.Notes = append(s.Notes, b.c.relabelled...)
	q := s.Requests
	if n := q.Planned - q.Arrived; n > 0 {
		add("the run ended before its workload did: %d of %d requests never arrived", n, q.Planned)
	}
	if q.Unfinished > 0 {
		add("%d requests never came to an end; the first IDs: %v", q.Unfinished, q.UnfinishedIDs)
	}
	if q.Failed > 0 {
		add("%d of %d requests failed: they count as +infinity in percentiles and are not in mean, min and max", q.Failed, q.Arrived)
	}
	if since, n := b.deadEnd(); n > 2 {
		add("every request that arrived from %.3f s on failed, %d of them: the server may have been lost", since.Seconds(), n)
	}
	b.loadNotes(add)
	if a, sch := s.Rates.Achieved, s.Rates.Scheduled; a != nil && sch != nil {
		if diff := *a / *sch - 1; math.Abs(diff) > clientTolerance {
			why := ""
			if s.QueueTime.Failed > 0 {
				why = fmt.Sprintf("; %d were never sent", s.QueueTime.Failed)
			}
			if s.MaxConcurrency > 0 {
				why += fmt.Sprintf("; at most %d could be under way at once", s.MaxConcurrency)
			}
			add("requests were sent at %s/s, %+.1f %% from the scheduled %s/s%s", sig(*a), 100*diff, sig(*sch), why)
		}
	}
	b.lengthNotes(add)
	if t := s.Throughput; t.CachedTokens != nil && *t.CachedTokens*2 > t.InputTokens {
		add("%.1f %% of the input tokens came from the server's prefix cache: if an earlier run left them there, flush it (Server.FlushCache) or restart the server",
			100*float64(*t.CachedTokens)/float64(t.InputTokens))
	}
	b.sendNote(add)
	if wait, err := s.Client.Connect.Quantile(0.99); err == nil && wait > millis(b.c.maxLateness) {
		add("requests waited for a connection, p99 %.1f ms, which is part of their time before send: see WithMaxConnections, or the network", wait)
	}
	for _, x := range s.Samplers {
		if gaps, all := x.Failed+x.Missed, x.Taken+x.Failed+x.Missed; float64(gaps) > clientTolerance*float64(all) {
			add("sampler %s has %d gaps in %d samples (%d missed, %d failed): its means and maxima do not cover the whole run",
				x.Source, gaps, all, x.Missed, x.Failed)
		}
	}
	for _, x := range s.Samplers {
		if x.Stale > 0 {
			add("sampler %s: %d of %d samples told a stale load, up to %.1f s old, and are left out of its means and maxima: the server hung, or its steps are slow",
				x.Source, x.Stale, x.Taken, *x.MaxAge/1e3)
		}
	}
	st := s.Streams
	if st.NoTokens > 0 {
		add("%d successful requests brought no output token: they count as failed in TTFT", st.NoTokens)
	}
	if st.NotStreamed > 0 {
		add("%d answers were not streamed: their TTFT is their total latency, and they have no TPOT and no ITL", st.NotStreamed)
	}
	if st.OneRead > 0 {
		add("%d streamed answers came in one read: they have no TPOT", st.OneRead)
	}
	if st.Uncounted > 0 {
		add("%d answers have no ITL: how many tokens each of their events added is not known", st.Uncounted)
	}
	if n := st.CoalescedTokens; n*20 > s.ITL.Count {
		add("%.0f %% of the ITL values are 0: their events came in the same read as the one before", 100*float64(n)/float64(s.ITL.Count))
	}
	if n := s.BenchServing.UnsplitChunks; n > 0 {
		add("bench_serving: %d gaps could not be split over retokenised text and are left out of its ITL", n)
	}
	if n := len(b.c.percentiles); n > 0 && q.Arrived > 0 {
		if p := b.c.percentiles[n-1]; float64(q.Arrived)*(1-p/100) < 1 {
			add("p%g of %d requests is little more than the largest value", p, q.Arrived)
		}
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
			add("arrivals were scheduled at %s/s, %+.1f %% from the requested %s/s%s", sig(*sch), 100*diff, sig(*req), chance)
		}
	}
	d := s.Durations
	if d.Arrivals == 0 || d.Drain <= drainTolerance*d.Measured {
		return
	}
	during := 0
	for _, r := range b.rs {
		if r.OK() && r.Completion <= b.c.lastArr {
			during++
		}
	}
	add("throughput includes %.2f s of drain; over the %.2f s of arrivals alone it is %s ok requests/s", d.Drain, d.Arrivals, sig(float64(during)/d.Arrivals))
}

// sendNote names the percentiles at which the TTFT depends on whether it is taken from the arrival or from the send, though
// neither a concurrency cap nor a policy held a request back.
func (b *builder) sendNote(add func(format string, args ...any)) {
	for _, r := range b.rs {
		if r.Due > r.Arrival {
			return
		}
	}
	var where []string
	compare := func(p float64, arrival, send Millis) {
		if arrival > (1+sendTolerance)*send {
			where = append(where, fmt.Sprintf("p%g (%s and %s ms)", p, cell(arrival, 0), cell(send, 0)))
		}
	}
	compare(50, b.sum.TTFT.Median, b.sum.ServerTTFT.Median)
	for i, p := range b.sum.TTFT.Percentiles {
		compare(p.P, p.Value, b.sum.ServerTTFT.Percentiles[i].Value)
	}
	if len(where) > 0 {
		add("TTFT is more than %g %% longer than server TTFT at %s: that part is the client's and its connections', not the server's",
			100*sendTolerance, strings.Join(where, ", "))
	}
}

// deadEnd returns how many requests at the end of the run failed one after the other, other than by its cancellation or by
// the client's own fault, and when the first of them arrived.
func (b *builder) deadEnd() (since time.Duration, n int) {
	for i := len(b.rs) - 1; i >= 0 && !b.rs[i].OK() && b.rs[i].Outcome != load.OutcomeCancelled && b.rs[i].Outcome != load.OutcomeClient; i-- {
		since, n = b.rs[i].Arrival, n+1
	}
	return since, n
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
