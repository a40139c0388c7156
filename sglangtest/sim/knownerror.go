package sim

import (
	"fmt"
	"math"
	"strings"
)

// KnownError words what a calibration and validations found as a profile's KnownError: for each latency the largest error
// of its median, p90 and p99 over the runs, then the mean errors on cells held out of the calibration. A run whose prefix
// hits the engine does not reproduce is named as not compared.
func KnownError(c CalibrationReport, runs []ValidationReport) string {
	var compared []ValidationReport
	var left []string
	for _, r := range runs {
		if math.Abs(r.CachedMeasured-r.CachedSimulated) > cacheSlack {
			left = append(left, r.Run)
		} else {
			compared = append(compared, r)
		}
	}
	var b strings.Builder
	if len(compared) == 0 {
		b.WriteString("no run was replayed")
	} else {
		fmt.Fprintf(&b, "%d measured runs replayed, none fitted, worst p50/p90/p99, simulated against measured:", len(compared))
		for i, m := range []struct {
			name string
			of   func(Accuracy) MetricError
		}{
			{"TTFT", func(a Accuracy) MetricError { return a.TTFT }},
			{"TPOT", func(a Accuracy) MetricError { return a.TPOT }},
			{"E2E", func(a Accuracy) MetricError { return a.E2E }},
		} {
			if i > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, " %s", m.name)
			for q, before := range []string{" ", "/", "/"} {
				fmt.Fprintf(&b, "%s%+.0f", before, 100*largestError(compared, func(r ValidationReport) float64 { return m.of(r.Queue).quantile(q) }))
			}
			b.WriteString(" %")
		}
		b.WriteString(" (pauses of the real front process are not simulated)")
	}
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
	return b.String()
}

// quantile returns the error of p50, p90 or p99.
func (m MetricError) quantile(i int) float64 {
	p50, p90, p99 := m.Error()
	return [...]float64{p50, p90, p99}[i]
}

// largestError returns the error that is farthest from 0 among the runs.
func largestError(runs []ValidationReport, of func(ValidationReport) float64) (most float64) {
	for _, r := range runs {
		if e := of(r); math.Abs(e) > math.Abs(most) {
			most = e
		}
	}
	return most
}
