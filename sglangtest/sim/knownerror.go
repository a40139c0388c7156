package sim

import (
	"fmt"
	"math"
	"strings"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// CapacityOf returns what tokens cost an engine with the profile's steps that works at its limit: a prompt
// token in a chunk of full size, an output token in a batch of the largest size.
func CapacityOf(p Profile) metrics.Capacity {
	chunk := p.ChunkedSize
	if chunk <= 0 { // unlimited
		chunk = p.EngineConfig().MaxPrefillTokens
	}
	const context = 1024 // tokens of each request; what is linear in them needs two points
	n := p.MaxRunning
	few := inMilliseconds(p.Model.StepTime(Shape{Decodes: n, Context: n}))
	many := inMilliseconds(p.Model.StepTime(Shape{Decodes: n, Context: n * context}))
	perContext := max(0, many-few) / float64(n*(context-1))
	return metrics.Capacity{
		PrefillTokenMS:  short(inMilliseconds(p.Model.StepTime(Shape{Extends: []Extend{{chunk, 0}}})) / float64(chunk)),
		DecodeTokenMS:   short(few/float64(n) - perContext),
		DecodeContextMS: short(perContext),
	}
}

// workloadOf says what a recording is like.
func workloadOf(c metrics.Capacity, run MeasuredRun) metrics.Workload {
	demands := make([]metrics.Demand, len(run.Requests))
	for i, r := range run.Requests {
		demands[i] = metrics.Demand{At: r.Sent, Prompt: r.Prompt, Cached: r.Cached, Output: r.Output}
	}
	return c.Workload(demands, 1)
}

// Validated returns the profile with what the replays of measured runs say of its error, in its Validation
// and, with the calibration's own errors, in words as its KnownError. A run whose prefix hits the engine does
// not reproduce is left out and named. Each of the runs must have been replayed with a profile that was
// calibrated like p, for what it ran on.
func Validated(p Profile, c CalibrationReport, runs []ValidationReport) Profile {
	v := &metrics.Validation{Capacity: CapacityOf(p)}
	var left []string
	for _, r := range runs {
		if math.Abs(r.CachedMeasured-r.CachedSimulated) > cacheSlack {
			left = append(left, strings.TrimSpace(r.Run+" "+r.Engine))
			continue
		}
		w := r.Workload
		w.Load, w.Peak, w.Prefill, w.Cached = rounded(w.Load), rounded(w.Peak), rounded(w.Prefill), rounded(w.Cached)
		w.Prompt, w.Output = math.Round(w.Prompt), math.Round(w.Output)
		relative := func(m MetricError) [3]float64 {
			e := m.Relative()
			return [3]float64{rounded(e[0]), rounded(e[1]), rounded(e[2])}
		}
		v.Runs = append(v.Runs, metrics.ValidatedRun{Name: r.Run, Workload: w, TTFT: relative(r.Queue.TTFT), TPOT: relative(r.Queue.TPOT), E2E: relative(r.Queue.E2E)})
	}
	p.Validation, p.KnownError = nil, "no run was replayed"
	if len(v.Runs) > 0 {
		p.Validation, p.KnownError = v, v.String()
	}
	var b strings.Builder
	for i, r := range c.Residuals {
		if !math.IsNaN(r.HeldOutMean) {
			if i == 0 {
				b.WriteString("; calibration cells:")
			} else {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, " %s %.1f %%", r.Kind, 100*r.HeldOutMean)
		}
	}
	if len(left) > 0 {
		fmt.Fprintf(&b, "; not compared, as this engine has other prefix hits: %s", strings.Join(left, ", "))
	}
	p.KnownError += b.String()
	return p
}

// rounded is a share to a tenth of a percent.
func rounded(v float64) float64 { return math.Round(v*1e3) / 1e3 }
