package sim

import (
	"fmt"
	"math"
	"sort"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// leastSquares solves min Σ (w·(row·x − y))² by the normal equations.
func leastSquares(rows [][]float64, y, w []float64) []float64 {
	n := len(rows[0])
	scale := make([]float64, n) // columns differ by eight orders of magnitude
	for _, r := range rows {
		for j, v := range r {
			scale[j] = max(scale[j], math.Abs(v))
		}
	}
	a := make([][]float64, n)
	for i := range a {
		a[i] = make([]float64, n+1)
	}
	for k, r := range rows {
		for i := range n {
			for j := range n {
				a[i][j] += w[k] * w[k] * r[i] / scale[i] * r[j] / scale[j]
			}
			a[i][n] += w[k] * w[k] * r[i] / scale[i] * y[k]
		}
	}
	for i := range n {
		p := i
		for k := i + 1; k < n; k++ {
			if math.Abs(a[k][i]) > math.Abs(a[p][i]) {
				p = k
			}
		}
		a[i], a[p] = a[p], a[i]
		for k := range n {
			if k != i {
				f := a[k][i] / a[i][i]
				for j := i; j <= n; j++ {
					a[k][j] -= f * a[i][j]
				}
			}
		}
	}
	x := make([]float64, n)
	for i := range n {
		x[i] = a[i][n] / a[i][i] / scale[i]
	}
	return x
}

func relative(y []float64) []float64 {
	w := make([]float64, len(y))
	for i, v := range y {
		w[i] = 1 / v
	}
	return w
}

// residual returns the mean and the largest relative error of the fit.
func residual(rows [][]float64, y, x []float64) (mean, most float64) {
	for k, r := range rows {
		p := 0.0
		for i, v := range r {
			p += v * x[i]
		}
		d := math.Abs(p/y[k] - 1)
		mean += d / float64(len(y))
		most = max(most, d)
	}
	return mean, most
}

// handover is the part of the engine's own e2e_latency that is attributed to passing the request to the scheduler
// and its token back; the calibration cannot tell it from the step.
const handover = 1.0 // ms

func near(t *testing.T, want, got float64, name string) {
	t.Helper()
	require.InEpsilon(t, want, got, 0.002, "%s: fit %g, profile %g", name, want, got)
}

func TestH100FitFollowsFromCalibration(t *testing.T) {
	p := H100Llama8B()
	m := p.Model.(Linear)

	var rows [][]float64
	var y []float64
	for _, r := range readCSV(t, "sglang-h100/calibration/decode_steps_from_log.csv") {
		if kv := number(t, r["kv_tokens_in_batch"]); kv > 0 { // 0: logged after the batch had ended
			rows = append(rows, []float64{1, number(t, r["batch"]), kv})
			y = append(y, number(t, r["step_ms_server"]))
		}
	}
	x := leastSquares(rows, y, relative(y))
	near(t, x[0], m.DecodeBase, "DecodeBase")
	near(t, x[1], m.DecodeRequest, "DecodeRequest")
	near(t, x[2], m.DecodeContext, "DecodeContext")
	mean, most := residual(rows, y, x)
	require.Contains(t, p.KnownError, fmt.Sprintf("decode step mean %.1f %%, max %.1f %%", 100*mean, 100*most))

	type cell struct{ fresh, cached float64 }
	server, outside := map[cell][]float64{}, map[cell][]float64{}
	var small []float64
	var cells []cell
	for _, r := range readCSV(t, "sglang-h100/calibration/prefill.csv") {
		c := cell{number(t, r["new_tokens"]), number(t, r["cached_tokens"])}
		if server[c] == nil {
			cells = append(cells, c)
		}
		ms := number(t, r["e2e_server_ms"])
		server[c] = append(server[c], ms)
		outside[c] = append(outside[c], number(t, r["ttft_client_ms"])-ms)
		if c.cached == 0 && c.fresh <= 256 {
			small = append(small, ms)
		}
	}
	rows, y = nil, nil
	var tokens [][]float64
	var gap []float64
	for _, c := range cells {
		tokens = append(tokens, []float64{1, c.fresh + c.cached})
		gap = append(gap, median(outside[c]))
		if c.fresh >= 512 && c.fresh <= 8192 { // one step each, and not bound by the launch
			rows = append(rows, []float64{1, c.fresh, c.fresh*c.fresh + 2*c.fresh*c.cached, c.cached})
			y = append(y, median(server[c]))
		}
	}
	x = leastSquares(rows, y, relative(y))
	near(t, x[0]-handover, m.PrefillBase, "PrefillBase")
	near(t, x[1], m.PrefillToken, "PrefillToken")
	near(t, x[2], m.PrefillPair, "PrefillPair")
	near(t, x[3], m.PrefillContext, "PrefillContext")
	mean, most = residual(rows, y, x)
	require.Contains(t, p.KnownError, fmt.Sprintf("prefill 512 to 8192 tokens mean %.1f %%, max %.1f %%", 100*mean, 100*most))
	require.InDelta(t, median(small)-handover, float64(p.LaunchPrefill)/float64(time.Millisecond), 0.1, "LaunchPrefill")

	ones := make([]float64, len(gap))
	for i := range ones {
		ones[i] = 1
	}
	x = leastSquares(tokens, gap, ones)
	require.InDelta(t, x[0]+handover, float64(p.Ingest+p.Egress)/float64(time.Millisecond), 0.05, "Ingest + Egress")
	require.InDelta(t, x[1]*1e6, float64(p.IngestToken), 2, "IngestToken in ns")
}

func median(v []float64) float64 {
	s := append([]float64{}, v...)
	sort.Float64s(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
