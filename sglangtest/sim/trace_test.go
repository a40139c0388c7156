package sim

import (
	"encoding/csv"
	"os"
	"sort"
	"strconv"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/stretchr/testify/require"
)

func readCSV(t testing.TB, name string) []map[string]string {
	f, err := os.Open(refdata.Path(t, name))
	require.NoError(t, err)
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	require.NoError(t, err)
	var out []map[string]string
	for _, row := range rows[1:] {
		m := map[string]string{}
		for i, h := range rows[0] {
			m[h] = row[i]
		}
		out = append(out, m)
	}
	return out
}

func number(t testing.TB, s string) float64 {
	v, err := strconv.ParseFloat(s, 64)
	require.NoError(t, err)
	return v
}

type traced struct {
	req               Request
	sent              time.Duration
	wantTTFT, wantE2E float64 // seconds
	gotFirst, gotLast time.Duration
}

// simulateTrace runs the requests of an open-loop run of the real server through the loop, in virtual time.
func simulateTrace(t testing.TB, name string, p Profile) []*traced {
	e, err := NewEngine(p.EngineConfig())
	require.NoError(t, err)
	l := NewLoop(e, p)
	var all []*traced
	for _, r := range readCSV(t, name) {
		x := &traced{sent: time.Duration(number(t, r["send"]) * 1e9)}
		x.wantTTFT, x.wantE2E = number(t, r["ttft"])-number(t, r["lag"]), number(t, r["e2e"])-number(t, r["lag"])
		n := int(number(t, r["output"]))
		x.req = Request{InputLen: int(number(t, r["prompt"])), MaxNewTokens: n, IgnoreEOS: true, Owner: x}
		all = append(all, x)
	}
	arrives := func(x *traced) time.Duration { return x.sent + p.ingest(x.req.InputLen) }
	order := append([]*traced{}, all...)
	sort.SliceStable(order, func(i, j int) bool { return arrives(order[i]) < arrives(order[j]) })
	for i := 0; i < len(order) || e.Busy(); {
		at, ok := l.Next()
		if i < len(order) && (!ok || arrives(order[i]) <= at) {
			l.Add(arrives(order[i]), &order[i].req)
			i++
			continue
		}
		if !ok {
			break
		}
		for _, o := range l.Advance() {
			x := o.Request.Owner.(*traced)
			if x.gotFirst == 0 {
				x.gotFirst = at + p.Egress
			}
			x.gotLast = at + p.Egress
		}
	}
	return all
}

func quantile(v []float64, q float64) float64 {
	sort.Float64s(v)
	return v[int(q*float64(len(v)-1))]
}

// traceErrors returns the relative errors of the simulated quantiles.
func traceErrors(t testing.TB, name string, p Profile) map[string]float64 {
	var got, want [3][]float64
	for _, x := range simulateTrace(t, name, p) {
		n := float64(x.req.MaxNewTokens)
		ttft, e2e := (x.gotFirst - x.sent).Seconds(), (x.gotLast - x.sent).Seconds()
		got[0], want[0] = append(got[0], ttft), append(want[0], x.wantTTFT)
		got[1], want[1] = append(got[1], e2e), append(want[1], x.wantE2E)
		if n > 1 {
			got[2], want[2] = append(got[2], (e2e-ttft)/(n-1)), append(want[2], (x.wantE2E-x.wantTTFT)/(n-1))
		}
	}
	out := map[string]float64{}
	for i, m := range []string{"ttft", "e2e", "tpot"} {
		for _, q := range []float64{0.5, 0.9, 0.99} {
			g, w := quantile(got[i], q), quantile(want[i], q)
			out[m+strconv.FormatFloat(q, 'g', -1, 64)] = g/w - 1
			t.Logf("%s %s p%g: simulated %.1f ms, measured %.1f ms, %+.1f %%", name, m, 100*q, g*1e3, w*1e3, 100*(g/w-1))
		}
	}
	return out
}

// The profile was not fitted to these runs, so they are its validation; its KnownError states what is asserted here.
func TestOpenLoopTraces(t *testing.T) {
	p := H100Llama8B()
	for _, run := range []struct {
		name          string
		p50, p90, p99 float64 // TTFT, relative errors as stated
	}{
		{"sglang-h100/traces/trace_p050.csv", 0.05, -0.08, -0.41},
		{"sglang-h100/traces/trace_p080.csv", 0.01, -0.06, -0.58},
	} {
		got := traceErrors(t, run.name, p)
		for _, k := range []string{"e2e0.5", "e2e0.9", "tpot0.5", "tpot0.9"} {
			require.InDelta(t, 0, got[k], 0.01, "%s %s", run.name, k)
		}
		require.InDelta(t, run.p50, got["ttft0.5"], 0.006)
		require.InDelta(t, run.p90, got["ttft0.9"], 0.006)
		require.InDelta(t, run.p99, got["ttft0.99"], 0.006)
	}
}

func BenchmarkTrace(b *testing.B) {
	p := H100Llama8B()
	n := 0
	for b.Loop() {
		n += len(simulateTrace(b, "sglang-h100/traces/trace_p080.csv", p))
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
}
