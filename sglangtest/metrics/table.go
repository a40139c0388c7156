package metrics

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// tableWidth is the width of a terminal that nobody has widened.
const tableWidth = 80

// String returns what [Summary.WriteTable] writes.
func (s *Summary) String() string {
	var sb strings.Builder
	_ = s.WriteTable(&sb) // a Builder does not fail
	return sb.String()
}

// WriteTable writes the summary for a terminal, at most 80 columns wide (longer texts are wrapped): the verdict and what was
// measured, the latencies, throughput and goodput, and then how it came about.
func (s *Summary) WriteTable(w io.Writer) error {
	t := &tableWriter{}
	s.writeVerdict(t)
	ps := s.TTFT.Percentiles
	t.latencies(ps, latencyRow{"TTFT", s.TTFT}, latencyRow{"TPOT", s.TPOT}, latencyRow{"ITL (tokens)", s.ITL}, latencyRow{"E2E", s.TotalLatency})
	t.line("")
	s.writeThroughput(t)
	s.writeRequests(t)
	t.latencies(ps, latencyRow{"server TTFT", s.ServerTTFT}, latencyRow{"server latency", s.ServerLatency}, latencyRow{"client queue", s.QueueTime},
		latencyRow{"schedule lag", s.Client.Lateness})
	t.line("")
	s.writeClient(t)
	s.writeSamplers(t)
	for i, n := range s.Notes {
		label := ""
		if i == 0 {
			label = "notes"
		}
		t.row(label, "%s", n)
	}
	s.writeProvenance(t)
	_, err := io.WriteString(w, t.sb.String())
	return err
}

// writeVerdict says what to think of the run, what was measured, and what must be known to read any figure.
func (s *Summary) writeVerdict(t *tableWriter) {
	if s.Verdict != "" {
		t.row("verdict", "%s", s.verdictText())
	}
	switch sim := s.Simulation; {
	case sim != nil && sim.Brief != "":
		t.row("SIMULATED", "%s; %s", sim.Profile, sim.Brief)
	case sim != nil && len([]rune(sim.Profile+sim.KnownError)) <= tableWidth:
		t.row("SIMULATED", "%s; known error: %s", sim.Profile, sim.KnownError)
	case sim != nil: // what was changed in the profile, and what is known of it, stands at the end
		profile, changed, _ := strings.Cut(sim.Profile, " ")
		if changed != "" {
			profile += ", changed"
		}
		t.row("SIMULATED", "%s; its error: see the end", profile)
	case len(s.Engines) == 0:
		t.row("engine", "not declared to be simulated")
	default:
		for _, e := range s.Engines {
			t.row("engine", "%s", e)
		}
	}
	if text := s.Cache.text(); text != "" {
		t.row("prefix cache", "%s", text)
	}
	if len(s.ParamChanges) > 0 {
		t.row("changed", "%s: figures mix these phases; see the windows", changesText(s.ParamChanges))
	}
}

func (s *Summary) writeThroughput(t *tableWriter) {
	th := s.Throughput
	t.row("throughput", "%s ok requests/s, %s input tok/s, %s output tok/s", sig(th.Requests), sig(th.InputTokensPerS), sig(th.OutputTokensPerS))
	if st := s.Steady; st != nil {
		t.row("steady state", "%s ok requests/s, %s output tok/s, %.2f in flight from %.3f s to %.3f s (%s)", sig(st.Requests), sig(st.OutputTokensPerS),
			st.InFlight, st.From.Seconds(), st.To.Seconds(), st.Rule)
	} else if s.NoSteadyState != "" {
		t.row("steady state", "none: %s", s.NoSteadyState)
	}
	if g := s.Goodput; g != nil {
		steady := ""
		if g.SteadyPerSecond != nil {
			steady = fmt.Sprintf("%s/s in the steady state, ", sig(*g.SteadyPerSecond))
		}
		t.row("goodput", "%s requests/s, %s%.2f %% of all requests (%s)", sig(g.PerSecond), steady, 100*g.Share, g.SLO)
	}
}

// writeRequests says what was sent and what became of it.
func (s *Summary) writeRequests(t *tableWriter) {
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
	t.row("duration", "%s from first arrival to last completion (%s of arrivals, %s drain)", secondsText(d.Measured), secondsText(d.Arrivals), secondsText(d.Drain))
	requested := "none"
	if s.Rates.Requested != nil {
		requested = rateText(s.Rates.Requested)
	}
	t.row("arrival rate", "requested %s, scheduled %s, achieved %s", requested, rateText(s.Rates.Scheduled), rateText(s.Rates.Achieved))
	th := s.Throughput
	cached := "cached: not reported"
	if n, by, ok := th.cached(); ok {
		cached = fmt.Sprintf("%d cached", n)
		if by != "" {
			cached = fmt.Sprintf("at least %d cached, by the engine's count", n)
		}
	}
	if p := s.Plan.Prompts; p != nil && p.Shared > 0 {
		cached += fmt.Sprintf("; %d begin like earlier ones of the workload", p.Shared)
	} else if p != nil && p.SharedBytes > 0 {
		cached += fmt.Sprintf("; %.1f %% of the text begins like earlier ones of the workload", 100*float64(p.SharedBytes)/float64(p.Bytes))
	}
	t.row("tokens", "%d in (%s), %d out (and %d of failed requests)", th.InputTokens, cached, th.OutputTokens, th.FailedOutputTokens)
	t.row("in flight", "peak %d, mean %.2f", s.InFlight.Peak, s.InFlight.Mean)
}

func (s *Summary) writeClient(t *tableWriter) {
	c := s.Client
	lateness, _ := c.Lateness.Quantile(1)
	verdict := "ok"
	if !c.OK {
		verdict = "NOT OK"
	}
	t.row("client", "%s; late by %s ms in the median, at most %s ms; parsing p50 %s ms; %d connections opened", verdict,
		cell(c.Lateness.Median), cell(lateness), cell(c.Overhead.Median), c.Opened)
	for _, r := range c.Reasons {
		t.row("", "%s", r)
	}
}

func (s *Summary) writeSamplers(t *tableWriter) {
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
		t.row(x.Source, "%s", strings.Join(parts, "; "))
		for _, g := range x.GPUs {
			t.row("", "%s", g)
		}
	}
}

// writeProvenance says what the figures come from.
func (s *Summary) writeProvenance(t *tableWriter) {
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
	sim := s.Simulation
	if sim == nil {
		return
	}
	calibrated := orUnknown(sim.Calibrated)
	if !strings.HasPrefix(calibrated, "not calibrated") {
		calibrated = "calibrated on " + calibrated
	}
	t.row("simulation", "profile %s, %s", sim.Profile, calibrated)
	details := ""
	if sim.Validation != nil {
		details = "; the measured runs: simulation in the JSON"
	}
	t.row("known error", "%s%s", sim.KnownError, details)
}

// secondsText writes a time of that many seconds, a long one in minutes or hours.
func secondsText(s float64) string {
	whole := int64(s)
	switch {
	case s < 120:
		return fmt.Sprintf("%.2f s", s)
	case s < 2*3600:
		return fmt.Sprintf("%d min %02d s", whole/60, whole%60)
	}
	return fmt.Sprintf("%d h %02d min", whole/3600, whole/60%60)
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
	const indent = 14
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

type latencyRow struct {
	name string
	Distribution
}

// inBlock is how many percentiles a block of latencies has; more continue in a further block.
const inBlock = 4

// latencies writes one line for each latency.
func (t *tableWriter) latencies(ps []Percentile, rows ...latencyRow) {
	others := make([]int, 0, len(ps)) // without the median, which has a column of its own
	for i, p := range ps {
		if p.P != 50 {
			others = append(others, i)
		}
	}
	for from := 0; from == 0 || from < len(others); from += inBlock {
		block := others[from:min(from+inBlock, len(others))]
		head := fmt.Sprintf("%-14s %6s %6s", "latency in ms", "values", "failed")
		if from == 0 {
			head += fmt.Sprintf(" %7s %7s", "mean", "p50")
		}
		for _, i := range block {
			head += fmt.Sprintf(" %7s", fmt.Sprintf("p%g", ps[i].P))
		}
		t.line("")
		t.line(head)
		for _, r := range rows {
			line := fmt.Sprintf("%-14s %6s %6s", r.name, count(r.Count), count(r.Failed))
			if from == 0 {
				line += fmt.Sprintf(" %7s %7s", cell(r.Mean), cell(r.Median))
			}
			for _, i := range block {
				value := Millis(math.NaN())
				if i < len(r.Percentiles) {
					value = r.Percentiles[i].Value
				}
				line += fmt.Sprintf(" %7s", cell(value))
			}
			t.line(line)
		}
	}
}

// count writes a number in at most six characters.
func count(n int) string {
	if n < 1_000_000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%.3gM", float64(n)/1e6)
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
	case m < 100_000:
		return fmt.Sprintf("%.1f", float64(m))
	}
	return fmt.Sprintf("%.0f", float64(m))
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
