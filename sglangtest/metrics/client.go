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
	// Lateness is Released − Due: how late the client released each request by its own fault. Requests that were due together
	// at the run's first moment are part of it, but OK judges the others, if there are any.
	Lateness Distribution `json:"lateness"`
	// Connect is the time to get a connection, of all requests that were sent: about 0 for those that found one free.
	// Opened is how many were the first on theirs, whether it was opened for them or before.
	Connect Distribution `json:"connect"`
	Opened  int          `json:"connections_opened"`
	// Overhead is the time spent between reads on parsing and recording an answer.
	Overhead Distribution `json:"overhead"`
	// ReadDelay says how late the client noticed what came. Null: it was not measured, as in virtual time.
	ReadDelay *ReadDelay `json:"read_delay"`
	// DueRate and ReleaseRate are the rates, in requests/s, at which requests should have been released (the schedule, or
	// with a concurrency cap the free places) and at which they were. Null if not defined.
	DueRate     *float64 `json:"due_per_s"`
	ReleaseRate *float64 `json:"release_per_s"`
}

// A client is not OK if its rates differ by more than this share. The same share of gaps in a sampler, or of answers whose
// tokens could not be observed, is worth mentioning.
const clientTolerance = 0.01

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
	first := b.opening()
	var together, rest []float64 // the latenesses of those requests, and of all others
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
		if first.has(r) {
			together = append(together, ms(r.Lateness()))
			continue
		}
		rest = append(rest, ms(r.Lateness()))
	}
	judged := newDistribution(rest, 0, b.c.percentiles)
	if len(rest) == 0 {
		judged = cl.Lateness
	} else if slices.Sort(together); quantile(together, 0, 0.99) > ms(bound) {
		b.sum.Notes = append(b.sum.Notes, fmt.Sprintf("the client took %.1f ms to release the %d requests that were due together at the run's first moment: that is part of their TTFT, and not held against the client",
			together[len(together)-1], len(together)))
	}
	p99 := quantile(rest, 0, 0.99)
	cl.DueRate, cl.ReleaseRate = due.rate(), released.rate()

	add := func(format string, args ...any) { cl.Reasons = append(cl.Reasons, fmt.Sprintf(format, args...)) }
	b.shortages(add)
	remedy := "use a faster client machine or a lower rate"
	if b.closedLoop() {
		remedy = "give the client more CPU, or keep fewer requests in flight"
	} else if len(rest) == 0 {
		remedy = "a client needs some time to send requests that are due at the same moment: give it more CPU, or spread them"
	}
	late := cl.Late
	for _, l := range together {
		if len(rest) > 0 && l > ms(bound) {
			late--
		}
	}
	switch {
	case len(b.rs) == 0:
		add("no request was released: nothing was measured")
	case p99 > ms(bound) && late > 1: // one late release is not the client's habit
		add("client released %d of %d requests more than %v late; p99 %.1f ms: the measured latencies include the client's own delay; %s",
			late, judged.Count, bound, p99, remedy)
	default:
		for i, lateness := range judged.Percentiles {
			if ttft := b.sum.TTFT.Percentiles[i].Value; late > 1 && lateness.Value > millis(bound) && lateness.Value > latenessShare*ttft {
				add("client released %d of %d requests more than %v late; its lateness p%g is %.1f ms, a large part of the TTFT p%g of %.1f ms: %s",
					late, judged.Count, bound, lateness.P, lateness.Value, lateness.P, ttft, remedy)
				break
			}
		}
	}
	// On a short run one late release within the bound can be more than a hundredth of the run.
	slip := (released.length() - due.length()).Abs()
	if cl.DueRate != nil && cl.ReleaseRate != nil && slip > bound {
		if diff := *cl.ReleaseRate / *cl.DueRate - 1; math.Abs(diff) > clientTolerance {
			add("client released requests at %s/s instead of %s/s (%+.1f %%): the server saw another load than the one asked for; %s",
				sig(*cl.ReleaseRate), sig(*cl.DueRate), 100*diff, remedy)
		}
	}
	cl.ReadDelay = b.readDelay(add)
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

// An opening is the requests that were due together at a run's first moment. They cannot all leave at once, so that most of
// them are late by what it takes to send those before them.
type opening struct {
	due time.Duration
	n   int
}

func (b *builder) opening() opening {
	var o opening
	for _, r := range b.rs {
		switch {
		case neverDue(r):
		case o.n == 0 || r.Due < o.due:
			o = opening{due: r.Due, n: 1}
		case r.Due == o.due:
			o.n++
		}
	}
	return o
}

func (o opening) has(r *load.Result) bool { return o.n > 1 && r.Due == o.due }

// closedLoop reports whether all requests arrived at once and waited for their places.
func (b *builder) closedLoop() bool {
	return b.sum.MaxConcurrency > 0 && b.c.firstArr == b.c.lastArr && b.c.arrived > b.sum.MaxConcurrency
}

// shortages adds what the client's own machine ran out of, each kind once.
func (b *builder) shortages(add func(format string, args ...any)) {
	counts := map[string]int{}
	var kinds []string // in the order of their first request
	first := map[string]string{}
	for _, r := range b.rs {
		if r.Outcome != load.OutcomeClient {
			continue
		}
		kind, _, _ := strings.Cut(r.Message, ":") // what follows can differ from request to request
		if counts[kind]++; counts[kind] == 1 {
			kinds = append(kinds, kind)
			first[kind] = r.Message
		}
	}
	for _, kind := range kinds {
		add("client failed %d of %d requests by itself, which says nothing of the server: %s", counts[kind], b.sum.Requests.Arrived, first[kind])
	}
}

// neverDue reports whether the run was cancelled while the request waited for a place: the client did not release it, but
// was not late either.
func neverDue(r *load.Result) bool {
	return r.Outcome == load.OutcomeCancelled && !r.Sent && r.Lateness() == 0
}

// stepLateness yields what each simulated source last said of its own lateness, in ms, in the order of samplers.
func (b *builder) stepLateness() iter.Seq2[string, float64] {
	return func(yield func(string, float64) bool) {
		for _, l := range b.c.samplers {
			for _, s := range slices.Backward(b.samples) {
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
