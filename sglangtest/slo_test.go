package sglangtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// What an SLO needs is computed, whatever percentiles the config and the collector's options ask for.
func TestSLO(t *testing.T) {
	for name, opts := range map[string][]RunOption{
		"real time":    nil,
		"virtual time": {WithVirtualTime(sim.H100Llama8B())},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := short()
			cfg.Percentiles = []float64{90}
			cfg.SLO = SLO{"ttft_p97_ms": 1e5, "tpot_mean_ms": 1e5, "e2e_p99.9_ms": 1e5, "itl_p50_ms": 1e5, "client_queue_max_ms": 1e5, "e2e_max_ms": 1e5}
			cfg.OutputDir = filepath.Join(t.TempDir(), "run")
			run, err := RunNode(t.Context(), cfg, append(opts, WithCollectorOptions(metrics.WithPercentiles(75)))...)
			require.NoError(t, err)
			require.NoError(t, run.Check())
			require.Equal(t, metrics.SLO{E2E: 100 * time.Second}, run.Summary.Goodput.SLO)
			require.Equal(t, 20, run.Summary.Goodput.Good)
			stored, err := results.Open(run.Dir)
			require.NoError(t, err)
			require.Contains(t, string(stored.Meta.Config.(json.RawMessage)), `"ttft_p97_ms"`)

			run.slo = SLO{"ttft_p97_ms": 0.001, "tpot_mean_ms": 0.001, "e2e_p75_ms": 1e5}
			err = run.Check()
			var missed *metrics.CheckError
			require.ErrorAs(t, err, &missed)
			require.Len(t, missed.Missed, 2)
			require.Equal(t, "TPOT mean", missed.Missed[0].What)
			require.Equal(t, float64(run.Summary.TPOT.Mean), missed.Missed[0].Measured)
			require.Equal(t, "TTFT p97", missed.Missed[1].What)
		})
	}
	require.ErrorContains(t, new(NodeRun).Check(), "has no slo")
}

func TestSLOFaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"dataset_name": "azure-conversation", "request_rate": 8, "slo": {
		"ttft_p99_ms": 0, "ttft_p99": 3, "tpot_p100_ms": 3, "e2e_p99.0_ms": 3, "e2e_avg_ms": 3, "latency_p99_ms": 3, "itl_mean_ms": -1,
		"tpot_p0.9_ms": 1, "_ms": 1, "tpot_pNaN_ms": 1, "ttft_mean_ms": 5e12}}`), 0o600))
	_, err := LoadNodeConfig(path)
	for _, want := range []string{
		"slo.ttft_p99_ms: 0; want more than 0", "slo.ttft_p99: want METRIC_STATISTIC_ms", `slo.tpot_p100_ms: statistic "p100"`,
		`slo.e2e_p99.0_ms: statistic "p99.0"`, `slo.e2e_avg_ms: statistic "avg"; want mean, max or`,
		"slo.latency_p99_ms: want METRIC_STATISTIC_ms, such as ttft_p99_ms, where the metric is one of ttft, tpot,", "slo.itl_mean_ms: -1; want",
		"slo.tpot_p0.9_ms", "slo._ms", "slo.tpot_pNaN_ms", "slo.ttft_mean_ms: 5e+12",
	} {
		require.ErrorContains(t, err, want)
	}
}
