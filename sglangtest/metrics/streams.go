package metrics

import (
	"fmt"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// An answer came at once if its tokens were all there within atOnceShare of the time to the first, mostly several to a read.
const atOnceShare = 0.01

// atOnce reports whether the tokens of a streamed answer came together, so that its TTFT is the time to the whole answer.
func atOnce(r *load.Result) bool {
	if !r.Streamed || r.OutputTokens < 2 || r.FirstToken == 0 {
		return false
	}
	if r.LastToken == r.FirstToken {
		return true
	}
	if float64(r.LastToken-r.FirstToken) > atOnceShare*float64(r.FirstToken-r.Send) {
		return false
	}
	events, same := 0, 0
	var last time.Duration
	for ch := range r.Chunks.All() {
		if events++; events > 1 && ch.At == last {
			same++
		}
		last = ch.At
	}
	return same*2 > events
}

// firstTokens returns how many tokens had been read at FirstToken; 0 if that is not known.
func firstTokens(r *load.Result) int {
	n := 0
	for ch := range r.Chunks.All() {
		if ch.At > r.FirstToken || n > r.OutputTokens {
			break
		}
		n += ch.Tokens
	}
	if n == 0 {
		n = r.FirstTokens
	}
	return min(n, r.OutputTokens)
}

// first counts with how many tokens the streamed answer r, of several, began.
func (b *builder) first(r *load.Result) {
	st := &b.sum.Streams
	n := firstTokens(r)
	if r.LastToken == r.FirstToken || n == r.OutputTokens {
		st.OneRead++
	}
	switch {
	case n == 0:
		st.FirstUnknown++
	case n > 1:
		st.FirstSeveral++
		st.FirstTokens += n
	}
}

// streams counts the answers of which the times do not say what their names promise.
func (b *builder) streams() {
	st := &b.sum.Streams
	b.buf = b.buf[:0]
	for _, r := range b.rs {
		if !r.OK() {
			continue
		}
		if atOnce(r) {
			st.AtOnce++
		}
		if r.HeldOpen {
			st.HeldOpen++
		}
		if early := r.FirstToken - r.FirstEvent; r.FirstEvent > 0 && r.FirstToken > 0 && float64(early) > sendTolerance*float64(r.FirstToken-r.Send) {
			st.EarlyEvents++
			b.buf = append(b.buf, ms(early))
		}
	}
	if st.EarlyEvents > 0 {
		slices.Sort(b.buf)
		median := Millis(quantile(b.buf, 0, 0.5))
		st.Early = &median
	}
}

// streamNotes says which token latencies could not be observed, or are not what their names promise.
func (b *builder) streamNotes(add func(format string, args ...any)) {
	s, st := b.sum, b.sum.Streams
	if st.NoTokens > 0 {
		add("%d successful requests brought no output token: they count as failed in TTFT", st.NoTokens)
	}
	if st.EarlyEvents > 0 {
		add("in %d answers, events with neither text nor a token count came before the first token that could be counted, %s ms before it in the median: "+
			"if they carried output, TTFT and TPOT are those of a later token", st.EarlyEvents, cell(*st.Early))
	}
	if st.NotStreamed > 0 {
		add("%d answers were not streamed: their TTFT is their E2E, and they have no TPOT and no ITL", st.NotStreamed)
	}
	if st.AtOnce > 0 {
		add("%d of %d streamed answers came at once: their TTFT is the time to the whole answer, not that of the engine's first token, and says nothing of its prefill",
			st.AtOnce, s.Requests.OK-st.NotStreamed)
	}
	if st.OneRead > 0 {
		add("%d streamed answers came in one read: they have no TPOT", st.OneRead)
	}
	if n := st.FirstTokens - st.FirstSeveral; float64(n) > clientTolerance*float64(s.Throughput.OutputTokens) {
		add("%d answers began with several tokens at once, %.1f in the mean: their TTFT is that of all of these, and TPOT is over the tokens after them; "+
			"bench_serving's TPOT counts them as if they had come one by one, and is shorter", st.FirstSeveral, float64(st.FirstTokens)/float64(st.FirstSeveral))
	}
	if st.FirstUnknown > 0 {
		add("%d answers do not tell how many tokens came first: their TPOT takes one, and is too short if there were more", st.FirstUnknown)
	}
	if st.Uncounted > 0 {
		add("%d answers have no ITL: how many tokens each of their events added is not known, or was not kept", st.Uncounted)
	}
	if n := st.CoalescedTokens; n*20 > s.ITL.Count {
		add("%.0f %% of the ITL values are 0: their events came in the same read as the one before", 100*float64(n)/float64(s.ITL.Count))
	}
	if st.HeldOpen > 0 {
		add("%d answers kept their connections open after [DONE]: the client closed those after 100 ms, in which their requests held their places under a concurrency cap", st.HeldOpen)
	}
}

// resetNote says how many connections broke that had served requests before, and how long those had been idle.
func (b *builder) resetNote(add func(format string, args ...any)) {
	var least, most time.Duration
	all, idle := 0, 0
	for _, r := range b.rs {
		if r.Outcome != load.OutcomeReset {
			continue
		}
		all++
		if !r.Reused {
			continue
		}
		if b.sum.Requests.ResetReused++; r.Idle > 0 {
			if idle == 0 || r.Idle < least {
				least = r.Idle
			}
			idle, most = idle+1, max(most, r.Idle)
		}
	}
	n := b.sum.Requests.ResetReused
	if n == 0 {
		return
	}
	after := ""
	if idle > 0 {
		after = ", idle for " + fmt.Sprintf("%.2f s", least.Seconds())
		if most > least {
			after += " to " + fmt.Sprintf("%.2f s", most.Seconds())
		}
	}
	add("%d of %d resets met connections that had served requests before%s: if the server, or a proxy, closes idle connections sooner than the client, "+
		"that is the client's doing; set its idle time (load.WithIdleTimeout) below theirs", n, all, after)
}
