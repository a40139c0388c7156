package sim

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/stretchr/testify/require"
)

func traceOf(t testing.TB, name string) MeasuredRun {
	run, err := ReadTrace(refdata.Path(t, "sglang-h100/traces/trace_"+name+".csv"), "", 0)
	require.NoError(t, err)
	return run
}

// The profile was fitted to none of these runs. The aims are 5 % for TPOT and E2E and 10 % for TTFT; the TTFT p99 misses
// it.
func TestValidateOpenLoopRuns(t *testing.T) {
	p := H100Llama8B()
	for name, requests := range map[string]int{"p050": 700, "p080": 800} {
		r, err := Validate(p, traceOf(t, name))
		require.NoError(t, err)
		t.Logf("%v", r)
		require.Equal(t, requests, r.Requests)
		for _, a := range []Accuracy{r.Queue, r.Direct} {
			for q := range 3 {
				require.InDelta(t, 0, a.TPOT.Relative()[q], 0.05, "%s TPOT %d", name, q)
				require.InDelta(t, 0, a.E2E.Relative()[q], 0.05, "%s E2E %d", name, q)
				if q < 2 {
					require.InDelta(t, 0, a.TTFT.Relative()[q], 0.10, "%s TTFT %d", name, q)
				}
			}
			require.Less(t, a.TPOT.PerRequest, 0.02)
			require.Less(t, a.E2E.PerRequest, 0.02)
			require.Less(t, a.TTFT.PerRequest, 0.10)
		}
		require.Less(t, r.Queue.TTFT.Relative()[2], -0.3, name)
	}
}

// summary_*.json holds the quantiles as the recording's own tool counted them, from the intended arrival on.
func TestMeasuredQuantilesAreTheRecordings(t *testing.T) {
	b, err := os.ReadFile(refdata.Path(t, "sglang-h100/traces/summary_p050.json"))
	require.NoError(t, err)
	var want struct {
		TTFT float64 `json:"ttft_p50_ms"`
		E2E  float64 `json:"e2e_p90_ms"`
		TPOT float64 `json:"tpot_ms_p50"`
	}
	require.NoError(t, json.Unmarshal(b, &want))
	r, err := Validate(H100Llama8B(), traceOf(t, "p050"))
	require.NoError(t, err)
	require.InDelta(t, want.TTFT, inMilliseconds(r.Queue.TTFT.Measured.P50), 3.8, "less the sender's lag")
	require.InDelta(t, want.E2E, inMilliseconds(r.Queue.E2E.Measured.P90), 10)
	require.InDelta(t, want.TPOT, inMilliseconds(r.Queue.TPOT.Measured.P50), 0.01)
}

func TestValidateIsDeterministic(t *testing.T) {
	run := traceOf(t, "p080")
	p := H100Llama8B()
	p.Model = Noise{Model: p.Model, Sigma: 0.05, Seed: 3}
	a, err := Validate(p, run)
	require.NoError(t, err)
	b, err := Validate(p, run)
	require.NoError(t, err)
	require.Equal(t, a, b)
	c, err := Validate(H100Llama8B(), run)
	require.NoError(t, err)
	require.NotEqual(t, a.Queue, c.Queue)
	require.InDelta(t, inMilliseconds(c.Queue.E2E.Simulated.P50), inMilliseconds(a.Queue.E2E.Simulated.P50), 100, "noise of mean 1 moves no median far")
}

func TestValidateBenchServing(t *testing.T) {
	run, err := ReadBenchServing(refdata.Path(t, "sglang-h100/bench_serving/bench_serving.jsonl.gz"),
		refdata.Path(t, "sglang-h100/logs/traces_run.stderr.log.gz"), "2026-11-24 17:22:00", "2026-11-24 17:22:41")
	require.NoError(t, err)
	require.Len(t, run.Requests, 300)
	r, err := Validate(H100Llama8B(), run)
	require.NoError(t, err)
	t.Logf("%v", r)
	// What the tool itself printed.
	require.InDelta(t, 42.32, inMilliseconds(r.Queue.TTFT.Measured.P50), 0.05)
	require.InDelta(t, 9.52, inMilliseconds(r.Queue.TPOT.Measured.P50), 0.02)
	require.InDelta(t, 2371.29, inMilliseconds(r.Queue.E2E.Measured.P90), 1)
	// Rebuilt from the log, the arrivals are those of a Poisson process of 10/s for 300 requests.
	require.InDelta(t, 30, run.Requests[299].Sent.Seconds()-run.Requests[0].Sent.Seconds(), 3)
	for q := range 3 {
		require.InDelta(t, 0, r.Queue.TPOT.Relative()[q], 0.05)
		require.InDelta(t, 0, r.Queue.E2E.Relative()[q], 0.05)
		require.InDelta(t, 0, r.Queue.TTFT.Relative()[q], 0.10)
	}
	_, err = ReadBenchServing(refdata.Path(t, "sglang-h100/bench_serving/bench_serving.jsonl.gz"),
		refdata.Path(t, "sglang-h100/logs/traces_run.stderr.log.gz"), "2026-11-24 17:18:00", "2026-11-24 17:18:10")
	require.ErrorContains(t, err, "want 300")
}

func TestValidateLimit(t *testing.T) {
	run, err := ReadLimitRun(refdata.Path(t, "sglang-h100/dynamic_limit/dynamic_limit.jsonl"))
	require.NoError(t, err)
	require.Len(t, run.Run.Requests, 104)
	require.Equal(t, []float64{8, 32, 256}, []float64{run.Run.Limits[0].Limit, run.Run.Limits[1].Limit, run.Run.Limits[2].Limit})
	r, err := ValidateLimit(H100Llama8B(), run)
	require.NoError(t, err)
	t.Log(r)
	require.Greater(t, r.Agree, r.Polls*95/100)
	require.InEpsilon(t, r.Measured[0].Seconds(), r.Simulated[0].Seconds(), 0.05)
	require.InEpsilon(t, (r.Measured[1] - r.Measured[0]).Seconds(), (r.Simulated[1] - r.Simulated[0]).Seconds(), 0.01)
}

// The recordings' README: 700 requests at once, those of p050, were served at 19.65/s with ramp and tail.
func TestOverload(t *testing.T) {
	rate, err := BurstRate(H100Llama8B(), traceOf(t, "p050"))
	require.NoError(t, err)
	require.InEpsilon(t, 19.65, rate, 0.03)
}

// Clients of many streams see tokens as late as the calibration's clients did.
func TestEgressQueueAgainstCalibration(t *testing.T) {
	p := H100Llama8B()
	for _, s := range h100Measurements(t).Streams {
		f := p.Front()
		var first, last time.Duration
		const steps = 60
		for k := range steps {
			at, each := f.Burst(milliseconds(s.Step*float64(k)), s.Streams)
			if last = at + each*time.Duration(s.Streams/2); k == 0 {
				first = last
			}
		}
		require.InEpsilon(t, s.Client, inMilliseconds(last-first)/(steps-1), 0.03, "%d streams", s.Streams)
	}
}

// One request at a time: closed form.
func TestValidateClosedForm(t *testing.T) {
	p := H100Llama8B().WithoutEgressQueue()
	p.Model = Linear{DecodeBase: 10, PrefillBase: 30}
	p.LaunchPrefill, p.Ingest, p.IngestToken, p.Egress = 0, 2*ms, 10*us, 3*ms
	var run MeasuredRun
	for i := range 20 {
		sent := time.Duration(i) * time.Second
		first := sent + 2*ms + time.Millisecond + 30*ms + 3*ms // 100 tokens: 1 ms
		run.Requests = append(run.Requests, MeasuredRequest{Sent: sent, Prompt: 100, Output: 11, First: first, Last: first + 100*ms})
	}
	r, err := Validate(p, run)
	require.NoError(t, err)
	require.Equal(t, r.Queue.TTFT.Measured, r.Queue.TTFT.Simulated)
	require.Equal(t, Quantiles{136 * ms, 136 * ms, 136 * ms}, r.Queue.E2E.Simulated)
	require.Equal(t, Quantiles{10 * ms, 10 * ms, 10 * ms}, r.Queue.TPOT.Simulated)
	require.Zero(t, r.Queue.E2E.PerRequest)
}

func TestQuantiles(t *testing.T) {
	require.Equal(t, Quantiles{P50: 50, P90: 90, P99: 99}, quantiles([]float64{0, 100}))
	require.Equal(t, Quantiles{7, 7, 7}, quantiles([]float64{7}))
	require.Zero(t, quantiles(nil))
	require.True(t, math.IsNaN(medianOf(nil)))
}

func TestReadTraceFaults(t *testing.T) {
	read := func(text string) error {
		path := filepath.Join(t.TempDir(), "trace_x.csv")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := ReadTrace(path, "w9", 0)
		return err
	}
	require.ErrorContains(t, read("id,prompt\n1,2\n"), "lacks the columns output, send, first, last, status")
	require.ErrorContains(t, read("id,prompt,output,send,first,last,status,worker\n1,x,1,0,0,y,200,w9\n"), "prompt")
	require.ErrorContains(t, read("id,prompt,output,send,first,last,status,worker\n1,x,1,0,0,y,200,w9\n"), "line 2: last")
	require.ErrorContains(t, read("id,prompt,output,send,first,last,status,worker\n1,1,1,0,0,0,200,w1\n"), "no request that was served (by worker \"w9\")")
	_, err := Validate(H100Llama8B(), MeasuredRun{Name: "x", Requests: []MeasuredRequest{{Prompt: 0, Output: 1}}})
	require.ErrorContains(t, err, "request 0 has 0 prompt tokens")
}

// Prompt tokens cost what a full chunk's step costs, output tokens what the largest batch's does: closed form.
func TestCapacityOf(t *testing.T) {
	p := H100Llama8B()
	p.ChunkedSize, p.MaxRunning = 1000, 100
	p.Model = Linear{PrefillBase: 10, PrefillToken: 0.02, DecodeBase: 5, DecodeRequest: 0.01, DecodeContext: 4e-5}
	c := CapacityOf(p)
	require.InDelta(t, 0.03, c.PrefillTokenMS, 1e-6)
	require.InDelta(t, 0.06, c.DecodeTokenMS, 1e-6)
	require.InDelta(t, 4e-5, c.DecodeContextMS, 1e-9)

	// Below the rate that it serves all at once, which has a ramp and a tail besides.
	run := traceOf(t, "p050")
	most, err := BurstRate(H100Llama8B(), run)
	require.NoError(t, err)
	w := workloadOf(CapacityOf(H100Llama8B()), run)
	rate := 699 / (run.Requests[699].Sent - run.Requests[0].Sent).Seconds()
	require.InDelta(t, rate/most, w.Load, 0.05)
}

func TestValidated(t *testing.T) {
	report := func(name, engine string, ttft float64, cached float64) ValidationReport {
		m := func(e float64) MetricError {
			q := Quantiles{100 * ms, 100 * ms, 100 * ms}
			s := time.Duration(float64(100*ms) * (1 + e))
			return MetricError{Measured: q, Simulated: Quantiles{s, s, s}}
		}
		return ValidationReport{Run: name, Engine: engine, CachedMeasured: cached, Queue: Accuracy{TTFT: m(ttft), TPOT: m(0.01), E2E: m(-0.02)},
			Workload: metrics.Workload{Requests: 500, Load: 0.50004, Prefill: 0.4, Prompt: 1000.4, Output: 200}}
	}
	c := CalibrationReport{Residuals: []Residual{{"decode step", 5, 0.01, 0.02, 0.03, 0.04}}}
	p := Validated(H100Llama8B(), c, []ValidationReport{report("a", "w0", 0.05, 0), report("b", "", -0.08, 0), report("c", "w1", 9, 0.8)})
	require.Equal(t, CapacityOf(p), p.Validation.Capacity)
	require.Equal(t, []metrics.ValidatedRun{
		{Name: "a", Workload: metrics.Workload{Requests: 500, Load: 0.5, Prefill: 0.4, Prompt: 1000, Output: 200},
			TTFT: [3]float64{0.05, 0.05, 0.05}, TPOT: [3]float64{0.01, 0.01, 0.01}, E2E: [3]float64{-0.02, -0.02, -0.02}},
		{Name: "b", Workload: metrics.Workload{Requests: 500, Load: 0.5, Prefill: 0.4, Prompt: 1000, Output: 200},
			TTFT: [3]float64{-0.08, -0.08, -0.08}, TPOT: [3]float64{0.01, 0.01, 0.01}, E2E: [3]float64{-0.02, -0.02, -0.02}},
	}, p.Validation.Runs)
	require.Contains(t, p.KnownError, "from 2 measured runs (a, b)")
	require.Contains(t, p.KnownError, "; calibration cells: decode step 3.0 %; not compared, as this engine has other prefix hits: c w1")

	p = Validated(H100Llama8B(), c, nil)
	require.Nil(t, p.Validation)
	require.Contains(t, p.KnownError, "no run was replayed")
}

// Requests that came at once are answered as their prefills end, one after another, whatever the recording shows: closed form.
func TestABurstIsReplayedAsItCame(t *testing.T) {
	p := H100Llama8B()
	p.Model = Linear{DecodeBase: 10, PrefillBase: 30}
	p.LaunchPrefill, p.Ingest, p.IngestToken, p.Egress, p.EgressEvent, p.EgressStream = 0, 0, 0, 0, 0, 0
	run := MeasuredRun{Name: "burst"}
	for range 50 { // 50 prompts of one chunk each
		run.Requests = append(run.Requests, MeasuredRequest{Prompt: 8192, Output: 1, First: time.Second, Last: time.Second})
	}
	r, err := Validate(p, run)
	require.NoError(t, err)
	require.Equal(t, Quantiles{765 * ms, 1353 * ms, 1485300 * us}, r.Queue.TTFT.Simulated)
	require.Equal(t, float64(metrics.AllAtOnce), r.Workload.Load)
}

func TestReadTraceGroupsByHits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace_x.csv.gz")
	f, err := os.Create(path)
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	_, err = z.Write([]byte("id,prompt,output,send,first,last,status,cached_tokens\n" +
		"1,300,5,0.0,0.5,1,200,0\n2,310,5,0.1,0.4,1,200,0\n3,320,5,0.6,0.7,1,200,200\n4,330,5,0.8,0.9,1,200,120\n5,340,5,0.9,1.0,2,200,200\n"))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.NoError(t, f.Close())
	run, err := ReadTrace(path, "", 200)
	require.NoError(t, err)
	require.Equal(t, "x", run.Name)
	var groups []int
	for _, r := range run.Requests {
		groups = append(groups, r.Group)
	}
	require.Equal(t, []int{0, 1, 1, 3, 1}, groups, "hits are of the group that was there first")
}

func ExampleValidate() {
	// A run of a real server, read with ReadTrace; here one request of 1000 and 101 tokens.
	run := MeasuredRun{Name: "one request", Requests: []MeasuredRequest{{Prompt: 1000, Output: 101, First: 31 * time.Millisecond, Last: 700 * time.Millisecond}}}
	r, err := Validate(H100Llama8B(), run)
	if err != nil {
		panic(err)
	}
	fmt.Println(r.Queue.E2E.PerRequest < 0.05)
	// Output: true
}

func BenchmarkValidate(b *testing.B) {
	run := traceOf(b, "p080")
	p := H100Llama8B()
	n := 0
	for b.Loop() {
		_, err := Validate(p, run)
		require.NoError(b, err)
		n += 3 * len(run.Requests)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
}
