package sim

import (
	"fmt"
	"math"
	"strings"
)

// KnownError words what a calibration and validations found as a profile's KnownError: the errors on the calibration's
// cells, and for each quantile the largest error over the runs with the run's name. A run whose prefix hits the engine
// does not reproduce is named as not compared.
func KnownError(c CalibrationReport, runs []ValidationReport) string {
	var b strings.Builder
	b.WriteString("calibration cells:")
	for _, r := range c.Residuals {
		if !math.IsNaN(r.Mean) && !math.IsNaN(r.HeldOutMean) {
			fmt.Fprintf(&b, " %s mean %.1f %%, max %.1f %% (held out %.1f %%, %.1f %%);", r.Kind, 100*r.Mean, 100*r.Max, 100*r.HeldOutMean, 100*r.HeldOutMax)
		}
	}
	var compared []ValidationReport
	var names, left []string
	for _, r := range runs {
		if math.Abs(r.CachedMeasured-r.CachedSimulated) > cacheSlack {
			left = append(left, r.Run)
			continue
		}
		compared = append(compared, r)
		names = append(names, r.Run)
	}
	if len(compared) == 0 {
		b.WriteString(" no run was replayed")
		return b.String()
	}
	fmt.Fprintf(&b, " replayed runs, none fitted (%s), largest error of p50, p90, p99:", strings.Join(names, ", "))
	for i, m := range []struct {
		name string
		of   func(Accuracy) MetricError
	}{
		{"TTFT", func(a Accuracy) MetricError { return a.TTFT }},
		{"TPOT", func(a Accuracy) MetricError { return a.TPOT }},
		{"E2E", func(a Accuracy) MetricError { return a.E2E }},
	} {
		if i > 0 {
			b.WriteString(";")
		}
		fmt.Fprintf(&b, " %s", m.name)
		for q := range 3 {
			e, run := largestError(compared, func(r ValidationReport) (float64, bool) { return m.of(r.Queue).quantile(q), true })
			if q > 0 {
				b.WriteString(",")
			}
			fmt.Fprintf(&b, " %+.1f %% (%s)", 100*e, run)
		}
	}
	if e, run := largestError(compared, func(r ValidationReport) (float64, bool) { return r.Explained.TTFT.quantile(2), len(r.Pauses) > 0 }); run != "" {
		fmt.Fprintf(&b, "; pauses of the real front process are not simulated: with the recorded ones the largest error of the TTFT p99 is %+.1f %% (%s)", 100*e, run)
	}
	if len(left) > 0 {
		fmt.Fprintf(&b, "; not compared, as this engine has no prefix cache: %s", strings.Join(left, ", "))
	}
	return b.String()
}

// quantile returns the error of p50, p90 or p99.
func (m MetricError) quantile(i int) float64 {
	p50, p90, p99 := m.Error()
	return [...]float64{p50, p90, p99}[i]
}

// largestError returns the error that is farthest from 0 among the runs that have one, and the run.
func largestError(runs []ValidationReport, of func(ValidationReport) (float64, bool)) (most float64, run string) {
	for _, r := range runs {
		if e, ok := of(r); ok && (run == "" || math.Abs(e) > math.Abs(most)) {
			most, run = e, r.Run
		}
	}
	return most, run
}
