package metrics

import (
	"fmt"
	"time"
)

// A ReadDelay says how late the client noticed what came, which is part of every latency that it measured.
type ReadDelay struct {
	// Median and Percentiles, the same as of other latencies, are the larger of two: what was not exceeded at that share of
	// the run's moments, as a probe each 13 ms found, and of the times that the client's goroutines waited for a thread.
	Median      Millis       `json:"median_ms"`
	Percentiles []Percentile `json:"percentiles"`
	Max         Millis       `json:"max_ms"`    // of the probes
	Probes      int64        `json:"probes"`    // that were woken
	GCMax       Millis       `json:"gc_max_ms"` // the longest pause of the whole client for garbage collection
}

// Delays of reads spoil a figure if at the same percentile they are over this share of it and over a floor: a share of the
// bound on the lateness, up to the 99th percentile, and all of it above, where a single pause of the machine is seen.
const (
	readShare = 0.1
	readFloor = 0.2
)

// A client that computes for at least this share of the time of its cores has itself to blame.
const fullyBusy = 0.8

// Fewer pauses than this are not the client's habit, and fewer moments say little of a percentile.
const (
	fewPauses     = 2
	fewPausesTail = 3 // above the 99th percentile
	fewMoments    = 5
)

// readDelay sums up what the run measured of its own delays, and adds what they spoil.
func (b *builder) readDelay(add func(format string, args ...any)) *ReadDelay {
	d := b.c.info.Delays
	if d == nil || d.Wakes.Count(-1) == 0 {
		return nil
	}
	at := func(p float64) Millis { return millis(max(d.Moments.Quantile(p/100), d.Ready.Quantile(p/100))) }
	r := &ReadDelay{Median: at(50), Max: millis(d.Wakes.Quantile(1)), Probes: d.Wakes.Count(-1), GCMax: millis(d.GC.Quantile(1))}
	for _, p := range b.c.percentiles {
		r.Percentiles = append(r.Percentiles, Percentile{P: p, Value: at(p)})
	}
	// Of all that is spoiled, the worst is said.
	var says string
	worst := 0.0
	judge := func(p float64, delay, itl, ttft Millis) {
		// Events that were read together have gaps of 0, in place of those that the server made.
		if share := float64(delay / max(itl, b.sum.ITL.Mean)); share > worst {
			if text := b.spoiled(p, delay, "ITL", max(itl, b.sum.ITL.Mean)); text != "" {
				worst, says = share, text
			}
		}
		if share := float64(delay / ttft); share > worst {
			if text := b.spoiled(p, delay, "server TTFT", ttft); text != "" {
				worst, says = share, text
			}
		}
	}
	judge(50, r.Median, b.sum.ITL.Median, b.sum.ServerTTFT.Median)
	for i, p := range r.Percentiles {
		judge(p.P, p.Value, b.sum.ITL.Percentiles[i].Value, b.sum.ServerTTFT.Percentiles[i].Value)
	}
	if says != "" {
		add("%s", says)
	}
	return r
}

// spoiled says that the delay of reads is a large part of a figure, both at the percentile p, or "" if it is not.
func (b *builder) spoiled(p float64, delay Millis, name string, figure Millis) string {
	floor, few := readFloor*ms(b.c.maxLateness), int64(fewPauses)
	if p > 99 {
		floor, few = ms(b.c.maxLateness), fewPausesTail
	}
	limit := time.Duration(max(floor, readShare*float64(figure)) * float64(time.Millisecond))
	d := b.c.info.Delays
	why, remedy := "", "give it more CPU, or a machine of its own"
	// Goroutines of a process that does not run wait, too, so that their waits tell the cause only where the probes were on time.
	own, late := d.Ready.Quantile(p/100) > limit, d.Wakes.Count(limit) >= few && d.Moments.Count(limit) >= fewMoments
	switch {
	case float64(delay) <= ms(limit) || !own && !late:
		return ""
	case !late:
		why = "its goroutines waited for a core"
	case d.Busy >= fullyBusy:
		why = fmt.Sprintf("its own work took %.0f %% of the time of its cores", 100*min(d.Busy, 1))
		remedy = "give it more CPU, or less to do at once"
	default: // the runtime does not say for how long a goroutine could have run that waits for a timer or a socket
		why = "the system did not run it (other work on its cores, a limit on its CPU time, a stop), or its own work kept its cores"
	}
	if gc := d.GC.Quantile(1); gc > limit {
		why += fmt.Sprintf("; garbage collection paused it for up to %.1f ms", ms(gc))
	}
	return fmt.Sprintf("client noticed what came up to %.1f ms late (p%g; at most %.1f ms), a large part of the %s p%g of %.1f ms: %s; the times of tokens are partly its own: %s",
		float64(delay), p, ms(d.Wakes.Quantile(1)), name, p, float64(figure), why, remedy)
}
