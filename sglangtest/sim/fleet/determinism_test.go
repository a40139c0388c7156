package fleet

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	rundir "github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// TestEqualRunFolders runs the same experiment twice, on one core and on all, and compares what is stored byte by byte.
// run.json and the summary say when the run took place, and environment.json where; these alone may differ.
func TestEqualRunFolders(t *testing.T) {
	store := func(procs int) map[string][]byte {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		dir := filepath.Join(t.TempDir(), "run")
		w, err := rundir.Create(dir, rundir.Meta{Label: "fleet", Config: "same", Seed: 9})
		require.NoError(t, err)
		gen, err := load.NewRequestGenerator(load.AzureConversation(), load.WithArrivals(load.Poisson(60)), load.WithLimit(1500), load.WithSeed(9))
		require.NoError(t, err)
		pol, err := policy.NewRandom(rand.NewPCG(9, 1))
		require.NoError(t, err)
		col, err := metrics.NewCollector(metrics.WithSink(w))
		require.NoError(t, err)
		engines := Equal(8, sim.H100Llama8B())
		engines[3].Speed = 0.7
		_, err = Run(t.Context(), gen, pol, engines, col, WithSamples(time.Second), WithPolling(500*ms), WithTimeout(20*time.Second),
			WithAction(4100*ms, 2, Kill()), WithAction(9*time.Second, 2, Restart()), WithAction(5*time.Second, 1, SetLimit(8)), WithAction(6*time.Second, 0, Slow(2)))
		require.NoError(t, err)
		require.NoError(t, w.Finish(col.Summary()))
		files := map[string][]byte{}
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			files[e.Name()] = data
		}
		return files
	}
	a, b := store(1), store(max(2, runtime.NumCPU()))
	require.Contains(t, string(a["run.json"]), `h100-llama-3.1-8b x speed 0.7 (not calibrated)`, "the folder says that it is simulated")
	require.Contains(t, string(a["requests.jsonl"]), `"outcome":"refused"`)
	for name := range a {
		if name == "environment.json" {
			continue
		}
		require.Equal(t, timeless(t, name, a[name]), timeless(t, name, b[name]), name)
	}
	require.Equal(t, len(a), len(b))
}

// timeless takes the wall-clock members out of the files that have some.
func timeless(t *testing.T, name string, data []byte) string {
	if name != "run.json" && name != "summary.json" {
		return string(data)
	}
	var m map[string]any
	require.NoError(t, json.Unmarshal(data, &m))
	for _, key := range []string{"created", "started", "ended", "writer"} {
		delete(m, key)
	}
	out, err := json.Marshal(m)
	require.NoError(t, err)
	return string(out)
}
