package metrics

import (
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// Client says how well the client itself did its work, and whether the run's latencies can be taken for the server's.
type Client struct {
	OK      bool     `json:"ok"`      // nothing speaks against the client
	Reasons []string `json:"reasons"` // what does, with numbers; empty if OK

	MaxLateness Millis `json:"max_lateness_ms"` // the bound on the 99th percentile of Lateness
	Late        int    `json:"late"`            // requests released later than that
	// Lateness is Released − Due: how late the client released each request by its own fault.
	Lateness Distribution `json:"lateness"`
	// Connect is the time to get a connection, of all requests that were sent: about 0 for those that found one free.
	// Opened is how many opened one of their own.
	Connect Distribution `json:"connect"`
	Opened  int          `json:"connections_opened"`
	// Overhead is the time spent between reads on parsing and recording an answer.
	Overhead Distribution `json:"overhead"`
	// DueRate and ReleaseRate are the rates, in requests/s, at which requests should have been released (the schedule, or
	// with a concurrency cap the free places) and at which they were. Null if not defined.
	DueRate     *float64 `json:"due_per_s"`
	ReleaseRate *float64 `json:"release_per_s"`
}

// A client is not OK if its rates differ by more than this share. The same share of gaps in a sampler, or of answers whose
// tokens could not be observed, is worth mentioning.
const clientTolerance = 0.01

// Arrivals that differ from the requested rate by more than rateTolerance, and a drain that is more than drainTolerance of the
// measured duration, are worth mentioning; so is a TTFT that is longer than the server TTFT by more than sendTolerance.
const (
	rateTolerance  = 0.05
	drainTolerance = 0.1
	sendTolerance  = 0.1
)

// A client is not OK either if at any reported percentile its lateness is over the bound and over this share of the TTFT.
const latenessShare = 0.1

func (b *builder) client() {
	always := func(f func(r *load.Result) time.Duration) func(r *load.Result) (time.Duration, contribution) {
		return func(r *load.Result) (time.Duration, contribution) { return f(r), value }
	}
	bound := b.c.maxLateness
	cl := Client{MaxLateness: millis(bound)}
	cl.Overhead = b.distribution(false, always(func(r *load.Result) time.Duration { return r.Overhead }))
	cl.Connect = b.distribution(false, func(r *load.Result) (time.Duration, contribution) {
		if !r.Sent {
			return 0, nothing
		}
		if !r.Reused {
			cl.Opened++
		}
		return r.Connect, value
	})
	cl.Lateness = b.distribution(false, func(r *load.Result) (time.Duration, contribution) {
		if neverDue(r) {
			return 0, nothing
		}
		return r.Lateness(), value
	})
	p99 := quantile(b.buf, 0, 0.99) // b.buf holds the latenesses, sorted
	var due, released span
	for _, r := range b.rs {
		if neverDue(r) {
			continue
		}
		due.add(r.Due)
		released.add(r.Released)
		if r.Lateness() > bound {
			cl.Late++
		}
	}
	cl.DueRate, cl.ReleaseRate = due.rate(), released.rate()

	add := func(format string, args ...any) { cl.Reasons = append(cl.Reasons, fmt.Sprintf(format, args...)) }
	switch {
	case len(b.rs) == 0:
		add("no request was released: nothing was measured")
	case p99 > ms(bound) && cl.Late > 1: // one late release is not the client's habit
		add("client released %d of %d requests more than %v late; p99 %.1f ms: the measured latencies include the client's own delay; use a faster client machine or a lower rate",
			cl.Late, cl.Lateness.Count, bound, p99)
	default:
		for i, late := range cl.Lateness.Percentiles {
			if ttft := b.sum.TTFT.Percentiles[i].Value; cl.Late > 1 && late.Value > millis(bound) && late.Value > latenessShare*ttft {
				add("client released %d of %d requests more than %v late; its lateness p%g is %.1f ms, a large part of the TTFT p%g of %.1f ms: use a faster client machine or a lower rate",
					cl.Late, cl.Lateness.Count, bound, late.P, late.Value, late.P, ttft)
				break
			}
		}
	}
	// On a short run one late release within the bound can be more than a hundredth of the run.
	slip := (released.length() - due.length()).Abs()
	if cl.DueRate != nil && cl.ReleaseRate != nil && slip > bound {
		if diff := *cl.ReleaseRate / *cl.DueRate - 1; math.Abs(diff) > clientTolerance {
			add("client released requests at %s/s instead of %s/s (%+.1f %%): the server saw another load than the one asked for; use a faster client machine or a lower rate",
				sig(*cl.ReleaseRate), sig(*cl.DueRate), 100*diff)
		}
	}
	for source, late := range b.stepLateness() {
		if late > ms(bound) {
			add("client's machine was too slow for the simulated %s, whose steps were up to %.1f ms late (p99): latencies are longer than simulated", source, late)
		}
	}
	if b.sum.Simulation != nil && len(cl.Reasons) > 0 {
		add("client may have lost time to the simulated engine, if that runs on this machine")
	}
	cl.OK = len(cl.Reasons) == 0
	b.sum.Client = cl
}

// neverDue reports whether the run was cancelled while the request waited for a place: the client did not release it, but
// was not late either.
func neverDue(r *load.Result) bool {
	return r.Outcome == load.OutcomeCancelled && !r.Sent && r.Lateness() == 0
}

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

// stepLateness yields what each simulated source last said of its own lateness, in ms, in the order of samplers.
func (b *builder) stepLateness() iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		for _, l := range b.c.samplers {
			for _, s := range slices.Backward(b.c.samples) {
				if late, ok := s.Values[StepLateness]; ok && s.Source == l.name {
					if !yield(l.name, late) {
						return
					}
					break
				}
			}
		}
	}
}

// deadEnd returns how many requests at the end of the run failed one after the other, other than by its cancellation, and
// when the first of them arrived.
func (b *builder) deadEnd() (since time.Duration, n int) {
	for i := len(b.rs) - 1; i >= 0 && !b.rs[i].OK() && b.rs[i].Outcome != load.OutcomeCancelled; i-- {
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
