package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// heldOut is a run beside the bound that the other runs give for it.
type heldOut struct {
	run   metrics.ValidatedRun
	bound metrics.ErrorBound
}

// A verdict is what leaving out each run in turn, with all of its engines, shows of the bounds.
type verdict []heldOut

func leaveOneOut(v *metrics.Validation) (out verdict) {
	for _, r := range v.Runs {
		others := metrics.Validation{Capacity: v.Capacity}
		for _, o := range v.Runs {
			if o.Name != r.Name {
				others.Runs = append(others.Runs, o)
			}
		}
		out = append(out, heldOut{r, others.Bound(r.Workload)})
	}
	return out
}

// bounds returns TTFT, TPOT and E2E of a run that has a bound.
func (h heldOut) bounds() [3][3]float64 {
	return [3][3]float64{h.bound.TTFT, h.bound.TPOT, h.bound.E2E}
}

// covered counts the figures with a bound, and those of them whose error it covers.
func (v verdict) covered() (within, all int) {
	for _, h := range v {
		if h.bound.Uncovered != "" {
			continue
		}
		for m, b := range h.bounds() {
			for q, e := range h.run.Errors()[m] {
				if math.IsInf(b[q], 1) {
					continue
				}
				if all++; math.Abs(e) <= b[q] {
					within++
				}
			}
		}
	}
	return within, all
}

// width returns for each metric how wide the bounds are beside the errors: the sum over the runs of the
// largest bound by that of the largest error, over the quantiles that have a bound. An error counts as
// metrics.LeastError at the least.
func (v verdict) width() (w [3]float64) {
	for m := range 3 {
		var stated, seen float64
		for _, h := range v {
			if h.bound.Uncovered != "" {
				continue
			}
			var b, e float64
			for q, x := range h.bounds()[m] {
				if !math.IsInf(x, 1) {
					b, e = max(b, x), max(e, math.Abs(h.run.Errors()[m][q]), metrics.LeastError[m])
				}
			}
			stated, seen = stated+b, seen+e
		}
		w[m] = stated / seen
	}
	return w
}

// figureWidth returns how wide the bounds are beside the errors, each figure by itself: the sum of the bounds by that of
// the errors. It is larger than width, since one bound stands for p50 and p90, which seldom both err as much.
func (v verdict) figureWidth() float64 {
	var stated, seen float64
	for _, h := range v {
		if h.bound.Uncovered != "" {
			continue
		}
		for m, b := range h.bounds() {
			for q, e := range h.run.Errors()[m] {
				if !math.IsInf(b[q], 1) {
					stated, seen = stated+b[q], seen+max(math.Abs(e), metrics.LeastError[m])
				}
			}
		}
	}
	return stated / seen
}

// String returns the verdict as a table.
func (v verdict) String() string {
	var b strings.Builder
	b.WriteString("each run left out in turn; errors of p50, p90, p99 in %, and what the others state\n")
	fmt.Fprintf(&b, "%-14s %5s %5s %7s %6s %13s | %-17s | %-17s | %-17s | stated\n", "run", "load", "peak", "prefill", "cached", "tokens", "TTFT", "TPOT", "E2E")
	for _, h := range v {
		w := h.run.Workload
		fmt.Fprintf(&b, "%-14s %5.2f %5.2f %5.0f %% %4.0f %% %7.0f + %3.0f |", h.run.Name, w.Load, w.Peak, 100*w.Prefill, 100*w.Cached, w.Prompt, w.Output)
		for _, e := range h.run.Errors() {
			fmt.Fprintf(&b, " %+5.1f %+5.1f %+5.1f |", 100*e[0], 100*e[1], 100*e[2])
		}
		fmt.Fprintf(&b, " %s\n", h.bound.Statement())
	}
	within, all := v.covered()
	w := v.width()
	fmt.Fprintf(&b, "covered: %d of the %d figures that have a bound (%.1f %%), of %d; width, stated by seen: TTFT %.2f, TPOT %.2f, E2E %.2f, each figure by itself %.2f\n",
		within, all, 100*float64(within)/float64(all), 9*len(v), w[0], w[1], w[2], v.figureWidth())
	return b.String()
}
