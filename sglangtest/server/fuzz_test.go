package server

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a server sends on /metrics is taken or refused; the scan reads from a page that is taken what the full parse reads.
func FuzzMetricsPage(f *testing.F) {
	f.Add([]byte("# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{model_name=\"m\",tp_rank=\"0\"} 3.0\nsglang:gen_throughput 1e2 1700000000\n"))
	f.Add([]byte("a{b=\"\\\"\\n\\\\\"} NaN\n"))
	f.Add([]byte("sglang:num_running_reqs{"))
	f.Fuzz(func(t *testing.T, page []byte) {
		all, err := parseMetrics(page)
		if err == nil {
			require.NotEmpty(t, all)
			for _, s := range all {
				require.NotEmpty(t, s.Name)
			}
		}
		scanMetrics(page)
	})
}

// A line of a log is a batch or not; diagnosis and phases take any.
func FuzzLogLine(f *testing.F) {
	f.Add("[2026-11-24 17:14:53 TP0] Decode batch, #running-req: 3, #token: 5, token usage: 0.01, cuda graph: True, gen throughput (token/s): 12.3, #queue-req: 0")
	f.Add("[2026-11-24 17:14:53] Prefill batch [7], #new-seq: 1, #new-token: 6")
	f.Add("Capturing batches (bs=1 avail_mem=10.1 GB): 50%|##   | 2/4 [00:01<00:01]")
	f.Add("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
	f.Fuzz(func(t *testing.T, text string) {
		for line := range strings.Lines(text) {
			if b, ok := ParseBatch(line); ok {
				require.NotEmpty(t, b.Values)
			}
		}
		require.NotEmpty(t, Diagnose(strings.Split(text, "\n"), Exit{Code: 1}, Config{}).Cause)
	})
}
