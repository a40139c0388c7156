package metrics

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

const tableWidth = 100

// String returns what [Summary.WriteTable] writes.
func (s *Summary) String() string {
	var sb strings.Builder
	_ = s.WriteTable(&sb) // a Builder does not fail
	return sb.String()
}

// WriteTable writes the summary for a terminal, at most 100 columns wide (longer messages are wrapped).
func (s *Summary) WriteTable(w io.Writer) error {
	t := &tableWriter{}
	if s.Verdict != "" {
		t.row("verdict", "%s", s.verdictText())
	}
	if sim := s.Simulation; sim != nil {
		calibrated := orUnknown(sim.Calibrated)
		if !strings.HasPrefix(calibrated, "not calibrated") {
			calibrated = "calibrated on " + calibrated
		}
		t.row("SIMULATED", "by profile %s, %s", sim.Profile, calibrated)
		details := ""
		if sim.Validation != nil {
			details = "; details: simulation in the JSON"
		}
		t.row("known error", "%s%s", sim.KnownError, details)
	} else if len(s.Engines) == 0 {
		t.row("engine", "not declared to be simulated")
	}
	if s.Simulation == nil {
		for _, e := range s.Engines {
			t.row("engine", "%s", e)
		}
	}
	if text := s.Cache.text(); text != "" {
		t.row("prefix cache", "%s", text)
	}
	t.row("workload", "%s, arrivals %s, seed %d", orUnknown(s.Plan.Dataset), orUnknown(s.Plan.Arrivals), s.Plan.Seed)
	capText := "no concurrency cap"
	if s.MaxConcurrency > 0 {
		capText = fmt.Sprintf("at most %d at once", s.MaxConcurrency)
	}
	started := "never"
	if s.Began {
		started = s.Started.Format(time.RFC3339)
	}
	t.row("started", "%s, %s", started, capText)

	if len(s.ParamChanges) > 0 {
		t.row("changed", "%s: figures mix these phases; see the windows", changesText(s.ParamChanges))
	}

	q := s.Requests
	t.row("requests", "%d planned, %d arrived, %d ok, %d failed, %d unfinished", q.Planned, q.Arrived, q.OK, q.Failed, q.Unfinished)
	if q.Censored > 0 {
		t.row("", "%d of the unfinished were under way when the run was stopped: not in latencies and shares", q.Censored)
	}
	for _, o := range q.Outcomes {
		if o.Outcome != "ok" {
			t.row("", "%d %s: %s", o.Count, o.Outcome, o.Message)
		}
	}
	d := s.Durations
	t.row("duration", "%.2f s from first arrival to last completion (%.2f s of arrivals, %.2f s drain)", d.Measured, d.Arrivals, d.Drain)
	requested := "none"
	if s.Rates.Requested != nil {
		requested = rateText(s.Rates.Requested)
	}
	t.row("arrival rate", "requested %s, scheduled %s, achieved %s", requested, rateText(s.Rates.Scheduled), rateText(s.Rates.Achieved))
	th := s.Throughput
	t.row("throughput", "%s ok requests/s, %s input tok/s, %s output tok/s", sig(th.Requests), sig(th.InputTokensPerS), sig(th.OutputTokensPerS))
	if st := s.Steady; st != nil {
		t.row("steady state", "%s ok requests/s, %s output tok/s, %.2f in flight from %.3f s to %.3f s (%s)", sig(st.Requests), sig(st.OutputTokensPerS),
			st.InFlight, st.From.Seconds(), st.To.Seconds(), st.Rule)
	} else if s.NoSteadyState != "" {
		t.row("steady state", "none: %s", s.NoSteadyState)
	}
	cached := "cached: not reported"
	if n, by, ok := th.cached(); ok {
		cached = fmt.Sprintf("%d cached", n)
		if by != "" {
			cached = fmt.Sprintf("%d cached by the engine's count", n)
		}
	}
	if p := s.Plan.Prompts; p != nil && p.Shared > 0 {
		cached += fmt.Sprintf("; %d begin like earlier ones of the workload", p.Shared)
	} else if p != nil && p.SharedBytes > 0 {
		cached += fmt.Sprintf("; %.1f %% of the text begins like earlier ones of the workload", 100*float64(p.SharedBytes)/float64(p.Bytes))
	}
	t.row("tokens", "%d in (%s), %d out (and %d of failed requests)", th.InputTokens, cached, th.OutputTokens, th.FailedOutputTokens)
	t.row("in flight", "peak %d, mean %.2f", s.InFlight.Peak, s.InFlight.Mean)
	if g := s.Goodput; g != nil {
		steady := ""
		if g.SteadyPerSecond != nil {
			steady = fmt.Sprintf("%s/s in the steady state, ", sig(*g.SteadyPerSecond))
		}
		t.row("goodput", "%s requests/s, %s%.2f %% of all requests (%s)", sig(g.PerSecond), steady, 100*g.Share, g.SLO)
	}
	t.latencies(s)

	c := s.Client
	lateness, _ := c.Lateness.Quantile(1)
	verdict := "ok"
	if !c.OK {
		verdict = "NOT OK"
	}
	t.line("")
	t.row("client", "%s; late by %s ms in the median, at most %s ms; parsing p50 %s ms; %d connections opened", verdict,
		cell(c.Lateness.Median), cell(lateness), cell(c.Overhead.Median), c.Opened)
	for _, r := range c.Reasons {
		t.row("", "%s", r)
	}
	for _, x := range s.Samplers {
		var parts []string
		for _, g := range []struct {
			name string
			*Gauge
		}{{"running", x.Running}, {"waiting", x.Waiting}, {"KV used", x.TokenUsage}} {
			if g.Gauge != nil {
				mean, most := fmt.Sprintf("%.1f", g.Mean), fmt.Sprintf("%.0f", g.Max)
				if g.Gauge == x.TokenUsage {
					mean, most = fmt.Sprintf("%.1f %%", 100*g.Mean), fmt.Sprintf("%.1f %%", 100*g.Max)
				}
				parts = append(parts, fmt.Sprintf("%s mean %s max %s", g.name, mean, most))
			}
		}
		counts := fmt.Sprintf("%d samples, %d failed, %d missed", x.Taken, x.Failed, x.Missed)
		if x.Stale > 0 {
			counts += fmt.Sprintf(", %d stale, oldest %.1f s", x.Stale, *x.MaxAge/1e3)
		}
		parts = append(parts, counts)
		t.row("sampled "+x.Source, "%s", strings.Join(parts, "; "))
		for _, g := range x.GPUs {
			t.row("", "%s", g)
		}
	}
	for i, n := range s.Notes {
		label := ""
		if i == 0 {
			label = "notes"
		}
		t.row(label, "%s", n)
	}
	_, err := io.WriteString(w, t.sb.String())
	return err
}

// String sums the GPU up in a line.
func (g GPUSummary) String() string {
	parts := []string{}
	if g.Utilization != nil {
		parts = append(parts, fmt.Sprintf("busy mean %.0f %% max %.0f %%", g.Utilization.Mean, g.Utilization.Max))
	}
	if g.MemoryUsed != nil {
		parts = append(parts, fmt.Sprintf("memory max %.1f GiB", g.MemoryUsed.Max/(1<<30)))
	}
	if g.Power != nil {
		parts = append(parts, fmt.Sprintf("power mean %.0f W max %.0f W", g.Power.Mean, g.Power.Max))
	}
	if g.Temperature != nil {
		parts = append(parts, fmt.Sprintf("at most %.0f °C", g.Temperature.Max))
	}
	if g.Energy != nil {
		parts = append(parts, fmt.Sprintf("energy %.1f kJ", *g.Energy/1e3))
	}
	return fmt.Sprintf("GPU %d: %s", g.Index, strings.Join(parts, ", "))
}

// String lists the limits.
func (s SLO) String() string {
	var parts []string
	for _, l := range []struct {
		name string
		d    time.Duration
	}{{"TTFT", s.TTFT}, {"TPOT", s.TPOT}, {"E2E", s.E2E}} {
		if l.d > 0 {
			parts = append(parts, fmt.Sprintf("%s ≤ %v", l.name, l.d))
		}
	}
	return strings.Join(parts, ", ")
}

type tableWriter struct{ sb strings.Builder }

func (t *tableWriter) line(s string) { t.sb.WriteString(strings.TrimRight(s, " ") + "\n") }

// row writes a label and a text, which is wrapped at blanks.
func (t *tableWriter) row(label, format string, args ...any) {
	const indent = 15
	text := strings.Fields(fmt.Sprintf(format, args...))
	line := fmt.Sprintf("%-*s", indent-1, label)
	used := len([]rune(line))
	fresh := true
	for _, word := range text {
		n := len([]rune(word))
		if !fresh && used+1+n > tableWidth {
			t.line(line)
			line, used = strings.Repeat(" ", indent-1), indent-1
		}
		line += " " + word
		used += 1 + n
		fresh = false
	}
	t.line(line)
}

// latencies writes one line for each latency; more than five percentiles continue in a further block.
func (t *tableWriter) latencies(s *Summary) {
	rows := []struct {
		name string
		d    Distribution
	}{{"TTFT", s.TTFT}, {"server TTFT", s.ServerTTFT}, {"ITL (tokens)", s.ITL}, {"TPOT", s.TPOT}, {"total latency", s.TotalLatency},
		{"server latency", s.ServerLatency}, {"before send", s.QueueTime}, {"client late", s.Client.Lateness}}
	ps := s.TTFT.Percentiles
	for from := 0; from == 0 || from < len(ps); from += 5 {
		to := min(from+5, len(ps))
		head := fmt.Sprintf("%-14s %7s %6s", "latency in ms", "values", "failed")
		if from == 0 {
			head += fmt.Sprintf(" %10s %9s", "mean", "p50")
		}
		for _, p := range ps[from:to] {
			head += fmt.Sprintf(" %9s", fmt.Sprintf("p%g", p.P))
		}
		t.line("")
		t.line(head)
		for _, r := range rows {
			line := fmt.Sprintf("%-14s %7d %6d", r.name, r.d.Count, r.d.Failed)
			if from == 0 {
				line += fmt.Sprintf(" %10s %9s", cell(r.d.Mean), cell(r.d.Median))
			}
			for _, p := range r.d.Percentiles[min(from, len(r.d.Percentiles)):min(to, len(r.d.Percentiles))] {
				line += fmt.Sprintf(" %9s", cell(p.Value))
			}
			t.line(line)
		}
	}
}

// cell formats a value: "failed" for one that falls among failures, "-" for one that is not there.
func cell(m Millis) string {
	switch {
	case m.failed():
		return "failed"
	case !m.Valid():
		return "-"
	case m < 10:
		return fmt.Sprintf("%.3f", float64(m))
	}
	return fmt.Sprintf("%.1f", float64(m))
}

func rateText(r *float64) string {
	if r == nil {
		return "undefined"
	}
	return sig(*r) + "/s"
}

// sig formats v with five significant digits and without an exponent.
func sig(v float64) string {
	if short, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 5, 64), 64); err == nil { // else rounding made it infinite
		v = short
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

func orUnknown(s string) string {
	if s == "" {
		return "(not named)"
	}
	return s
}
