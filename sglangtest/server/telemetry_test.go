package server

import (
	"bufio"
	"bytes"
	"context"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// The scan must find what the full parse does, on pages of real servers.
func TestRecordedMetrics(t *testing.T) {
	forVersions(t, func(t *testing.T, version string, w *playback, s *Server) {
		w.on("GET /metrics", recording(t, version, "metrics"))
		series, err := s.Metrics(context.Background())
		require.NoError(t, err)
		require.Greater(t, len(series), 300)
		sampler := s.MetricsSampler()
		require.Equal(t, "server-0/metrics", sampler.Name())
		values, err := sampler.Sample(context.Background())
		require.NoError(t, err)
		checkScan(t, series, values)
		require.Greater(t, len(values), 20)
		require.Contains(t, values, "sglang:num_running_reqs")
		var buckets []float64
		for _, x := range series {
			require.NotEmpty(t, x.Name)
			if x.Name == "sglang:e2e_request_latency_seconds_bucket" && x.Labels["le"] == "+Inf" {
				buckets = append(buckets, x.Value)
			}
		}
		sum := 0.0
		for _, v := range buckets {
			sum += v
		}
		require.Positive(t, sum)
		require.Equal(t, values["sglang:e2e_request_latency_seconds_count"], sum)
	})
}

func checkScan(t *testing.T, series []Series, values map[string]float64) {
	want, n := map[string]float64{}, map[string]float64{}
	for _, x := range series {
		if wantedSeries[x.Name] != 0 && !(wantedSeries[x.Name] == sumCount && x.Labels["priority"] != "") {
			want[x.Name] += x.Value
			n[x.Name]++
		}
	}
	for name := range want {
		if wantedSeries[name] == mean {
			want[name] /= n[name]
		}
	}
	require.Equal(t, want, values)
}

func TestRecordedMetricsOfH100(t *testing.T) {
	page, err := os.ReadFile(refdata.Path(t, "sglang-h100/fixtures/metrics_after_load.txt"))
	require.NoError(t, err)
	series, err := parseMetrics(page)
	require.NoError(t, err)
	values, err := scanMetrics(page)
	require.NoError(t, err)
	checkScan(t, series, values)
	require.Positive(t, values["sglang:generation_tokens_total"])
}

const twoRanks = `# HELP sglang:num_running_reqs The number of "running" requests, see {x} 3
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{dp_rank="0",model_name="a}b, c=\"d\" \\",priority=""} 7.0
sglang:num_running_reqs{dp_rank="0",model_name="a}b, c=\"d\" \\",priority="1"} 5.0
sglang:num_running_reqs{dp_rank="1",model_name="m",priority=""} 8.0 1795539667042
sglang:token_usage{dp_rank="0"} 0.5
sglang:token_usage{dp_rank="1"} 1e-1
sglang:generation_tokens_total{priority="1"} 3
sglang:generation_tokens_total{priority="2"} 4
sglang:cache_hit_rate NaN
sglang:queue_time_seconds_bucket{le="+Inf"} 2
other_total 4
`

func TestScanMetrics(t *testing.T) {
	values, err := scanMetrics([]byte(twoRanks))
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"sglang:num_running_reqs": 15, "sglang:token_usage": 0.3, "sglang:generation_tokens_total": 7}, values)

	series, err := parseMetrics([]byte(twoRanks))
	require.NoError(t, err)
	require.Len(t, series, 10)
	require.Equal(t, Series{"sglang:num_running_reqs", map[string]string{"dp_rank": "0", "model_name": `a}b, c="d" \`, "priority": ""}, 7}, series[0])
	require.Equal(t, Series{"sglang:num_running_reqs", map[string]string{"dp_rank": "1", "model_name": "m", "priority": ""}, 8}, series[2])
	require.Equal(t, Series{Name: "other_total", Value: 4}, series[9])
	require.True(t, math.IsNaN(series[7].Value))

	for page, want := range map[string]string{
		"":                                 "no series",
		"# only comments":                  "no series",
		"x":                                `line 1: "x": want a name, labels and a value`,
		"x{a=\"b\"}":                       "line 1: x: \"\": want a value",
		"a 1\nx{a=\"b} 1":                  "line 2: x: label a does not end",
		"x{a} 1":                           `line 1: x: labels end at "a} 1"`,
		"sglang:num_running_reqs{} many":   `invalid syntax`,
		"sglang:num_running_reqs 1 2 3 4":  "want a value",
		"<html><body>not metrics</body> x": "invalid syntax",
	} {
		_, err := parseMetrics([]byte(page))
		require.ErrorContains(t, err, want, page)
	}
	for page, want := range map[string]string{
		"": "none of the wanted", "other_total 4": "none of the wanted", "sglang:num_running_reqs{} many": "invalid syntax", "sglang:num_running_reqs": "none of the wanted",
	} {
		_, err := scanMetrics([]byte(page))
		require.ErrorContains(t, err, want, page)
	}
}

// Gateways put the pages of several workers together, and some rewrite the colon, which stands for a recording rule.
func TestMetricNamesOfGateways(t *testing.T) {
	const page = `sglang:num_running_reqs{worker_addr="http://a:1",model_name="m"} 3
sglang:num_running_reqs{worker_addr="http://b:1",model_name="m"} 4
sglang:token_usage{worker_addr="http://a:1"} 0.2
sglang:token_usage{worker_addr="http://b:1"} 0.4
sglang:generation_tokens_total{worker_addr="http://a:1"} 1000
sglang:generation_tokens_total{worker_addr="http://b:1"} 2000
`
	want := map[string]float64{"sglang:num_running_reqs": 7, "sglang:token_usage": 0.30000000000000004, "sglang:generation_tokens_total": 3000}
	underscores := strings.ReplaceAll(page, "sglang:", "sglang_")
	for _, page := range []string{page, underscores, page + underscores} { // a page with both has each series twice
		values, err := scanMetrics([]byte(page))
		require.NoError(t, err)
		require.Equal(t, want, values)
	}
	_, err := scanMetrics([]byte("vllm:num_requests_running 1\nvllm:num_requests_running{a=\"b\"} 1\npython_info 1\n"))
	require.ErrorContains(t, err, "none of the wanted series, such as sglang:num_running_reqs")
	require.ErrorContains(t, err, "its first are vllm:num_requests_running, python_info")
}

// Labels with braces, quotes and backslashes, values that are none, time stamps, totals beside parts.
func TestOddMetricsPage(t *testing.T) {
	page, err := os.ReadFile(refdata.Path(t, "cases/23-metrics-page/page.txt"))
	require.NoError(t, err)
	series, err := parseMetrics(page)
	require.NoError(t, err)
	require.Len(t, series, 17)
	require.Equal(t, `C:\models\a} b`, series[0].Labels["model_name"])
	require.Equal(t, `x="1", priority=""`, series[0].Labels["note"])
	values, err := scanMetrics(page)
	require.NoError(t, err)
	require.Equal(t, map[string]float64{"sglang:num_running_reqs": 5, "sglang:num_queue_reqs": 7, "sglang:prompt_tokens_total": 1.2345678e7,
		"sglang:cached_tokens_total": 120, "sglang:time_to_first_token_seconds_count": 4, "sglang:time_to_first_token_seconds_sum": 0.5}, values)
}

func TestMetricsSamplerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newPlayback(t).tiny()
		s := launch(t, newManager(t, launches(newInstance()), w), Config{})
		_, err := s.MetricsSampler().Sample(t.Context())
		require.ErrorContains(t, err, "server: server-0: metrics: GET /metrics: HTTP status 404: Not Found: start the server with --enable-metrics")
		w.on("GET /metrics", answer{after: time.Hour})
		start := time.Now()
		_, err = s.MetricsSampler().Sample(t.Context())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, sampleTimeout, time.Since(start))
		w.on("GET /server_info", answer{status: 200, body: `{"enable_metrics_for_all_schedulers":true,` + tinyInfo(8)[1:]})
		all := launch(t, newManager(t, launches(newInstance()), w), Config{})
		_, err = all.MetricsSampler().Sample(t.Context())
		require.ErrorContains(t, err, "sums mean nothing")
	})
}

// Every batch line of every recorded log is read whole.
func TestRecordedBatches(t *testing.T) {
	prefill := []string{"new_seq", "new_token", "cached_token", "token_usage", "running_req", "queue_req", "pending_token", "input_throughput"}
	decode := []string{"running_req", "token", "token_usage", "gen_throughput", "queue_req"}
	logs := map[string]int{"sglang-h100/logs/start_cold_caches.stderr.log": 1}
	for _, name := range []string{"0.5.15.post1-start-run-sigterm", "0.5.18-start-run-sigterm", "0.5.21-start-run-sigterm", "0.5.23-start-run-sigterm-drain", "0.5.23-sigint", "0.5.23-scheduler-killed"} {
		logs["sglang-cpu/logs/"+name+".stderr.txt"] = 1
	}
	for name, least := range logs {
		data, err := os.ReadFile(refdata.Path(t, name))
		require.NoError(t, err)
		n := 0
		for in := bufio.NewScanner(bytes.NewReader(data)); in.Scan(); {
			b, ok := ParseBatch(in.Text())
			is := strings.Contains(in.Text(), "] Prefill batch,") || strings.Contains(in.Text(), "] Decode batch,")
			require.Equal(t, is, ok, in.Text())
			if !ok {
				continue
			}
			n++
			want := slices.Clone(decode)
			if b.Prefill {
				want = slices.Clone(prefill)
			}
			graph := "cpu_graph"
			if strings.HasPrefix(name, "sglang-h100") {
				graph = "cuda_graph"
				require.True(t, b.Exact)
				require.EqualValues(t, 1, b.Values[graph])
			}
			require.ElementsMatch(t, append(want, graph), slices.Collect(maps.Keys(b.Values)), in.Text())
			require.Equal(t, 2026, b.Logged.Year())
		}
		require.GreaterOrEqual(t, n, least, name)
	}
}

func TestParseBatch(t *testing.T) {
	at := func(ms int) time.Time { return time.Date(2026, 11, 24, 17, 10, 3, ms*1e6, time.Local) }
	for line, want := range map[string]Batch{
		// metrics_reporter.py and pool_stats_observer.py of 0.5.23: hybrid model, speculation, forward steps
		"[2026-11-24 17:10:03 DP1 TP0] Decode batch [1234], #running-req: 3, #full token: 100, full token usage: 0.25, #swa token: 50, swa token usage: 0.50, accept len: 2.50, accept rate: 0.75, cuda graph: True, gen throughput (token/s): 451.14, #queue-req: 2": {
			Rank: "DP1 TP0", Logged: at(0), Forward: 1234, Values: map[string]float64{"running_req": 3, "full_token": 100, "full_token_usage": 0.25,
				"swa_token": 50, "swa_token_usage": 0.5, "accept_len": 2.5, "accept_rate": 0.75, "cuda_graph": 1, "gen_throughput": 451.14, "queue_req": 2}},
		"[2026-11-24 17:10:03.727] Prefill batch [7], #new-seq: 1, #new-token: 7, #cached-token: 0, full token usage: 0.01, mamba usage: 0.02, #running-req: 0, #queue-req: 0, #pending-token: 0, #replay-token: 5, cuda graph: False, input throughput (token/s): 0.75, est. prefill TFLOPS/s (per GPU): 1.50": {
			Prefill: true, Logged: at(727), Exact: true, Forward: 7, Values: map[string]float64{"new_seq": 1, "new_token": 7, "cached_token": 0, "full_token_usage": 0.01,
				"mamba_usage": 0.02, "running_req": 0, "queue_req": 0, "pending_token": 0, "replay_token": 5, "cuda_graph": 0, "input_throughput": 0.75, "est_prefill_tflops_s": 1.5}},
		"Decode batch, #queue-req: 2, new text, note: none, #running-req: 1\r\n": {Values: map[string]float64{"queue_req": 2, "running_req": 1}},
	} {
		b, ok := ParseBatch(line)
		require.True(t, ok, line)
		require.Equal(t, want, b)
	}
	for _, line := range []string{
		"", "Prefill batch", "[2026-11-24 17:10:03] Prefill batch", "[2026-11-24 17:10:03] Capture decode batch, bs: 3",
		"[2026-11-24 17:10:03] Receive: obj=GenerateReqInput(text='Prefill batch, #new-seq: 1')", "[x] Decode batch, #running-req: 3",
	} {
		_, ok := ParseBatch(line)
		require.False(t, ok, line)
	}
}

func TestBatchSample(t *testing.T) {
	b, ok := ParseBatch("[2026-11-24 17:10:03.727 DP1 TP0] Decode batch, #running-req: 3, #queue-req: 2")
	require.True(t, ok)
	read := b.Logged.Add(40 * ms)
	require.Equal(t, metrics.Sample{At: 5 * time.Second, Source: "server-0/log/DP1-TP0", Values: map[string]float64{
		"decode_running_req": 3, "decode_queue_req": 2, metrics.SnapshotAge: 40}}, b.Sample("server-0", read, 5*time.Second))
	b, _ = ParseBatch("[2026-11-24 17:10:03] Prefill batch, #new-seq: 3")
	require.Equal(t, metrics.Sample{Source: "server-0/log", Values: map[string]float64{"prefill_new_seq": 3}}, b.Sample("server-0", read, 0))
}

// A logged is an instance with a log.
type logged struct {
	*instance
	log *Log
}

func (l logged) Log() *Log { return l.log }

func TestFollowBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := NewLog(Config{})
		s := launch(t, newManager(t, launches(logged{newInstance(), log}), newPlayback(t).tiny()), Config{})
		put(log, true, "Decode batch, #running-req: 9") // before the run
		time.Sleep(time.Second)
		start := time.Now()
		got := make(chan metrics.Sample)
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			ended <- s.FollowBatches(ctx, func(at time.Time) time.Duration { return at.Sub(start) }, func(x metrics.Sample) { got <- x })
		}()
		put(log, true, "Decode batch, #running-req: 1")
		put(log, false, "INFO: 127.0.0.1 GET /v1/loads")
		time.Sleep(ms)
		put(log, true, "Prefill batch, #new-seq: 2")
		require.Equal(t, metrics.Sample{Source: "server-0/log", Values: map[string]float64{"decode_running_req": 1}}, <-got)
		require.Equal(t, metrics.Sample{At: ms, Source: "server-0/log", Values: map[string]float64{"prefill_new_seq": 2}}, <-got)
		for range logCapacity + 7 {
			put(log, true, "Decode batch, #running-req: 3")
		}
		x := <-got // the follower had taken the first line before the others pushed lines out
		for x.Err == "" {
			x = <-got
		}
		require.Regexp(t, `^[67] lines of the log were missed$`, x.Err)
		require.Nil(t, x.Values)
		<-got
		cancel()
		go func() {
			for range got {
			}
		}()
		require.NoError(t, <-ended)
		close(got)
	})
	s := launch(t, newManager(t, launches(newInstance()), newPlayback(t).tiny()), Config{})
	require.ErrorContains(t, s.FollowBatches(t.Context(), nil, nil), "server: server-0: follow batches: its log cannot be read")
}

// The cost of one sample of /metrics: the page is that of a real server, some 80 KB.
func BenchmarkMetrics(b *testing.B) {
	page, err := os.ReadFile(refdata.Path(b, "sglang-cpu/0.5.23/metrics.txt"))
	require.NoError(b, err)
	_, page, _ = bytes.Cut(page, []byte("\r\n\r\n"))
	b.Run("scan", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = scanMetrics(page)
		}
	})
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = parseMetrics(page)
		}
	})
}

// A server that says of itself that it is simulated is asked again, because a fault can be set while it runs.
func TestSimulationIsReadAgain(t *testing.T) {
	info := func(profile string) answer {
		return answer{status: 200, body: `{"version":"0.5.23","simulated":{"profile":"` + profile + `","calibrated":"c","known_error":"e"}}`}
	}
	w := newPlayback(t).tiny().on("GET /server_info", info("h100"), info("h100 with a fault"), answer{err: errBroken})
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	require.Equal(t, "h100", s.Info().Simulation.Profile)
	label, err := s.Sampler().(*sampler).Simulation(t.Context())
	require.NoError(t, err)
	require.Equal(t, &metrics.Simulation{Profile: "h100 with a fault", Calibrated: "c", KnownError: "e"}, label)
	_, err = s.Sampler().(*sampler).Simulation(t.Context())
	require.ErrorIs(t, err, errBroken)

	w = newPlayback(t).tiny()
	s = launch(t, newManager(t, launches(newInstance()), w), Config{})
	label, err = s.Sampler().(*sampler).Simulation(t.Context())
	require.NoError(t, err)
	require.Nil(t, label)
	require.Len(t, w.made("GET /server_info"), 1, "a real server is not asked")
}

// The lateness of a simulated server is that of the run, not of what it served before, and begins anew with the server.
func TestStepLatenessIsThatOfTheRun(t *testing.T) {
	loads := func(counts string) answer {
		return answer{status: 200, body: `{"timestamp":"2026-11-24T10:00:00+00:00","loads":[{"dp_rank":0,"simulated":{"step_lateness_us":{` + counts + `}}}]}`}
	}
	w := newPlayback(t).tiny().on("GET /v1/loads", loads(`"8":1000,"20000":500`), loads(`"8":1090,"250":9,"20000":501`),
		loads(`"8":2089,"250":10,"20000":501`), loads(`"10":5`))
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	p := s.Sampler()
	for _, want := range []float64{0, 20, 0.25, 0.01} {
		v, err := p.Sample(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, v[metrics.StepLateness])
	}
}

// What was prefilled is known only where the page counts prompts, under either name.
func TestPrefilledByMetrics(t *testing.T) {
	for page, want := range map[string]struct {
		tokens  int64
		counted bool
	}{
		"sglang:prompt_tokens_total{a=\"1\"} 60\nsglang:prompt_tokens_total{a=\"2\"} 40\nsglang:cached_tokens_total 30\n": {70, true},
		"sglang_prompt_tokens_total{a=\"1\"} 60\nsglang_prompt_tokens_total{a=\"2\"} 40\nsglang_cached_tokens_total 30\n": {70, true},
		"sglang:prompt_tokens_total 60\n": {60, true},
		"sglang:num_running_reqs 0\n":     {0, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newPlayback(t).tiny().on("GET /metrics", answer{status: 200, body: page})
			s := launch(t, newManager(t, launches(newInstance()), w), Config{})
			s.mu.Lock()
			s.raw["enable_metrics"] = true
			s.mu.Unlock()
			tokens, counted, err := s.prefilledByMetrics(t.Context())
			require.NoError(t, err)
			require.Equal(t, want.tokens, tokens, page)
			require.Equal(t, want.counted, counted, page)
		})
	}
}
