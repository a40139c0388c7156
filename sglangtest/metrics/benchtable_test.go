package metrics

import (
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// The print statements of benchmark() in sglang/benchmark/serving.py 0.5.23.
func TestBenchTable(t *testing.T) {
	rs := []load.Result{answer(0, 0, 0, 20*msec, 10*msec, 3), answer(1, 500*msec, 0, 30*msec, 10*msec, 3)}
	s := collect(t, load.Plan{RequestedRate: 8}, rs, nil, WithRetokenizer(words, 0), WithBenchServingDuration(2*time.Second),
		WithGoodput(SLO{TTFT: 25 * msec, E2E: time.Second})).Summary()
	var sb strings.Builder
	require.NoError(t, s.BenchServing.WriteTable(&sb))
	require.Equal(t, strings.ReplaceAll(`
============ Serving Benchmark Result ============
Backend:                                 sglang    |
Traffic request rate:                    8.0       |
Max request concurrency:                 not set   |
Successful requests:                     2         |
Benchmark duration (s):                  2.00      |
Total input tokens:                      20        |
Total input text tokens:                 20        |
Total generated tokens:                  6         |
Total generated tokens (retokenized):    0         |
Request throughput (req/s):              1.00      |
Input token throughput (tok/s):          10.00     |
Output token throughput (tok/s):         3.00      |
Peak output token throughput (tok/s):    6.00      |
Peak concurrent requests:                2         |
Total token throughput (tok/s):          13.00     |
Concurrency:                             0.05      |
---------------------Goodput----------------------
SLOs (ms):                               ttft:25 e2el:1000
Request goodput (req/s):                 0.50      |
SLO attainment (%):                      50.00     |
TTFT SLO attainment (%):                 50.00     |
E2EL SLO attainment (%):                 100.00    |
----------------End-to-End Latency----------------
Mean E2E Latency (ms):                   45.00     |
Median E2E Latency (ms):                 45.00     |
P90 E2E Latency (ms):                    49.00     |
P95 E2E Latency (ms):                    49.50     |
P99 E2E Latency (ms):                    49.90     |
---------------Time to First Token----------------
Mean TTFT (ms):                          25.00     |
Median TTFT (ms):                        25.00     |
P90 TTFT (ms):                           29.00     |
P95 TTFT (ms):                           29.50     |
P99 TTFT (ms):                           29.90     |
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          10.00     |
Median TPOT (ms):                        10.00     |
P90 TPOT (ms):                           10.00     |
P95 TPOT (ms):                           10.00     |
P99 TPOT (ms):                           10.00     |
---------------Inter-Token Latency----------------
Mean ITL (ms):                           10.00     |
Median ITL (ms):                         10.00     |
P90 ITL (ms):                            10.00     |
P95 ITL (ms):                            10.00     |
P99 ITL (ms):                            10.00     |
Max ITL (ms):                            10.00     |
==================================================
Not the load of bench_serving: it asks for temperature 0, and 2 requests here did not, so that the server samples,
which is slower. "sampling_params": {"temperature": 0} (load.BenchServingSampling) makes it the same.
`, "|", ""), sb.String())

	sb.Reset()
	s = collect(t, load.Plan{}, []load.Result{failure(0, 0, load.OutcomeRefused, 0, "refused")}, nil).Summary()
	require.NoError(t, s.BenchServing.WriteTable(&sb))
	require.Contains(t, sb.String(), "No successful request:")
	require.Contains(t, sb.String(), "Traffic request rate:                    inf       \n")
}

// A run whose requests ask for what bench_serving asks for is the same load.
func TestBenchTableOfTheSameLoad(t *testing.T) {
	c, err := NewCollector()
	require.NoError(t, err)
	require.NoError(t, c.Begin(t.Context(), load.Info{}))
	c.Start(load.NewClock(time.Now()))
	same := load.BenchServingSampling()
	for i, p := range []*load.SamplingParams{&same, {Temperature: load.Ptr(0.7)}, {IgnoreEOS: load.Ptr(true)}, nil} {
		r := answer(i, time.Duration(i)*msec, 0, msec, msec, 2)
		c.Arrived(&load.Request{ID: i, Arrival: r.Arrival, Sampling: p})
		c.Record(&r)
	}
	require.NoError(t, c.End(t.Context()))
	m := c.Summary().BenchServing
	require.Equal(t, 3, m.Sampled)
	m.Sampled = 0
	var sb strings.Builder
	require.NoError(t, m.WriteTable(&sb))
	require.True(t, strings.HasSuffix(sb.String(), "==\n"))
}
