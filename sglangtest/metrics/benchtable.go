package metrics

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// writeLoad says in what the load was not that of bench_serving.
func (m *BenchServing) writeLoad(sb *strings.Builder) {
	if m.Sampled > 0 {
		fmt.Fprintf(sb, "Not the load of bench_serving: it asks for temperature 0, and %d requests here did not, so that the server samples,\n"+
			"which is slower. \"sampling_params\": {\"temperature\": 0} (load.BenchServingSampling) makes it the same.\n", m.Sampled)
	}
}

// WriteTable writes the metrics in the layout of bench_serving's own report (SGLang 0.5.23), trailing blanks and all, and below
// it in what the load differed from that of bench_serving. A run
// without any success, for which bench_serving prints nothing, gets its counts and a line that says so.
func (m *BenchServing) WriteTable(w io.Writer) error {
	var sb strings.Builder
	text := func(label, v string) { fmt.Fprintf(&sb, "%-40s %-10s\n", label, v) }
	num := func(label string, v float64) { text(label, strconv.FormatFloat(v, 'f', 2, 64)) }
	count := func(label string, v int) { text(label, strconv.Itoa(v)) }
	section := func(title, fill string) {
		left := (50 - len(title)) / 2
		sb.WriteString(strings.Repeat(fill, left) + title + strings.Repeat(fill, 50-len(title)-left) + "\n")
	}

	sb.WriteString("\n")
	section(" Serving Benchmark Result ", "=")
	text("Backend:", m.Backend)
	if m.Trace {
		text("Traffic request rate:", "trace")
	} else {
		text("Traffic request rate:", pythonFloat(m.RequestRate))
	}
	if m.MaxConcurrency > 0 {
		count("Max request concurrency:", m.MaxConcurrency)
	} else {
		text("Max request concurrency:", "not set")
	}
	count("Successful requests:", m.Completed)
	num("Benchmark duration (s):", m.Duration)
	if m.NoSuccess {
		text("No successful request:", "nothing to report (bench_serving itself stops with an IndexError here)")
		section("", "=")
		m.writeLoad(&sb)
		_, err := io.WriteString(w, sb.String())
		return err
	}
	count("Total input tokens:", m.TotalInput)
	count("Total input text tokens:", m.TotalInput)
	count("Total generated tokens:", m.TotalOutput)
	if m.TotalOutputRetokenized != nil {
		count("Total generated tokens (retokenized):", *m.TotalOutputRetokenized)
	} else {
		text("Total generated tokens (retokenized):", "not counted")
	}
	num("Request throughput (req/s):", m.RequestThroughput)
	num("Input token throughput (tok/s):", m.InputThroughput)
	num("Output token throughput (tok/s):", m.OutputThroughput)
	num("Peak output token throughput (tok/s):", m.MaxOutputTokensPerS)
	count("Peak concurrent requests:", m.MaxConcurrentRequests)
	num("Total token throughput (tok/s):", m.TotalThroughput)
	num("Concurrency:", m.Concurrency)
	if m.AcceptLength > 0 {
		num("Accept length:", m.AcceptLength)
	}
	if g := m.Goodput; g != nil {
		section("Goodput", "-")
		limits := []struct {
			key string
			ms  float64
		}{{"ttft", ms(g.SLO.TTFT)}, {"tpot", ms(g.SLO.TPOT)}, {"e2el", ms(g.SLO.E2E)}}
		var slos []string
		for _, l := range limits {
			if l.ms > 0 {
				slos = append(slos, fmt.Sprintf("%s:%g", l.key, l.ms))
			}
		}
		text("SLOs (ms):", strings.Join(slos, " "))
		num("Request goodput (req/s):", g.PerSecond)
		num("SLO attainment (%):", g.Share*100)
		for _, l := range limits {
			if l.ms > 0 {
				num(strings.ToUpper(l.key)+" SLO attainment (%):", g.ByLimit[l.key]*100)
			}
		}
	}
	for _, l := range []struct {
		title, short string
		BenchLatency
	}{
		{"End-to-End Latency", "E2E Latency", m.E2E},
		{"Time to First Token", "TTFT", m.TTFT},
		{"Time per Output Token (excl. 1st token)", "TPOT", m.TPOT},
		{"Inter-Token Latency", "ITL", m.ITL},
	} {
		section(l.title, "-")
		for _, x := range []struct {
			name string
			v    Millis
		}{{"Mean", l.Mean}, {"Median", l.Median}, {"P90", l.P90}, {"P95", l.P95}, {"P99", l.P99}} {
			num(x.name+" "+l.short+" (ms):", float64(x.v))
		}
		if l.short == "ITL" {
			num("Max ITL (ms):", float64(l.Max))
		}
	}
	section("", "=")
	m.writeLoad(&sb)
	_, err := io.WriteString(w, sb.String())
	return err
}

// pythonFloat formats as Python prints a float: 8.0, inf.
func pythonFloat(v *float64) string {
	if v == nil {
		return "inf"
	}
	s := strconv.FormatFloat(*v, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
