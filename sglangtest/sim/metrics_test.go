package sim

import (
	"fmt"
	"math"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/server"
)

// exposed is what a metrics page says of one family.
type exposed struct {
	name, kind, help string
	labels           []string // names, of all its series
	bounds           []string // of its buckets, in order
	values           map[string]float64
}

// parseMetrics reads a page in the text format.
func parseMetrics(t *testing.T, page string) []exposed {
	var all []exposed
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, "\r\n")
		if rest, ok := strings.CutPrefix(line, "# HELP sglang:"); ok {
			name, help, _ := strings.Cut(rest, " ")
			all = append(all, exposed{name: name, help: help, values: map[string]float64{}})
		} else if rest, ok := strings.CutPrefix(line, "# TYPE sglang:"); ok {
			name, kind, _ := strings.Cut(rest, " ")
			require.Equal(t, all[len(all)-1].name, name)
			all[len(all)-1].kind = kind
		} else if rest, ok := strings.CutPrefix(line, "sglang:"); ok {
			e := &all[len(all)-1]
			series, value, _ := strings.Cut(rest, " ")
			v, err := strconv.ParseFloat(value, 64)
			require.NoError(t, err, line)
			require.Equal(t, value, goFloat(v), "numbers are written as Python's client writes them")
			e.values[series] = v
			_, labels, _ := strings.Cut(strings.TrimSuffix(series, "}"), "{")
			for label := range strings.SplitSeq(labels, `",`) {
				name, v, ok := strings.Cut(label, `="`)
				if !ok {
					continue
				}
				if !slices.Contains(e.labels, name) {
					e.labels = append(e.labels, name)
				}
				if v = strings.TrimSuffix(v, `"`); name == "le" && !slices.Contains(e.bounds, v) {
					e.bounds = append(e.bounds, v)
				}
			}
			sort.Strings(e.labels)
		}
	}
	return all
}

func recordedMetrics(t *testing.T, path string) []exposed {
	b, err := os.ReadFile(refdata.Path(t, path))
	require.NoError(t, err)
	return parseMetrics(t, string(b))
}

// notSimulated are the recorded families that a simulated server does not have, and why.
var notSimulated = map[string]string{
	"process_cpu_seconds_total":           "CPU time of processes that are not there",
	"scheduler_process_cpu_seconds_total": "CPU time of processes that are not there",
	"scheduler_stage_seconds_total":       "the loop of a simulated scheduler takes no time",
}

var testBatchConfig = EngineConfig{MaxTotalTokens: 20000, PageSize: 1, ContextLength: 4096, MaxRunningRequests: 64}

// usedMeter returns a meter to which everything happened that the recorded servers did.
func usedMeter(patch int) *meter { return usedMeterOf(patch, testBatchConfig) }

func usedMeterOf(patch int, cfg EngineConfig) *meter {
	start := time.Unix(1000, 0)
	m := newMeter(patch, 2, "tiny-llama", cfg, start)
	m.mu.Lock()
	m.add("http_requests_active", 0, "endpoint", "/generate", "method", "POST")
	m.add("http_requests_total", 1, "endpoint", "/generate", "method", "POST")
	m.add("http_responses_total", 1, "endpoint", "/generate", "method", "POST", "status_code", "200")
	m.mu.Unlock()
	m.batch(&Batch{Kind: PrefillStep, At: start.Add(time.Second), Requests: 1, NewTokens: 4, CachedTokens: 2, NewTokenRatio: 0.7, Chunk: time.Millisecond,
		State: State{MaxTotalTokens: 20000, UsedTokens: 4, CachedTokens: 6, FreeTokens: 19990}})
	for i := range 2 {
		m.batch(&Batch{Kind: DecodeStep, At: start.Add(time.Duration(i+2) * time.Second), Requests: 1, Decodes: 1, Context: 8 + i,
			State: State{MaxTotalTokens: 20000, UsedTokens: 9}})
	}
	for _, streaming := range []bool{false, true} {
		s := &stream{streaming: streaming, priority: "5", received: start, promptTokens: 6}
		m.scheduled(time.Millisecond, time.Millisecond)
		p := progress{tokens: 1, cached: 2, first: start.Add(time.Second), at: start.Add(time.Second)}
		m.output(s, p)
		s.counted = p
		p.tokens, p.at, p.finish = 5, start.Add(3*time.Second), finishedByLength
		m.output(s, p)
	}
	m.aborted()
	m.loadsTook(time.Millisecond)
	return m
}

func TestMetricsAreThoseOfRealServers(t *testing.T) {
	for _, c := range []struct {
		path  string
		patch int
	}{
		{"sglang-cpu/0.5.15.post1/metrics.txt", 15}, {"sglang-cpu/0.5.18/metrics.txt", 18}, {"sglang-cpu/0.5.21/metrics.txt", 21},
		{"sglang-cpu/0.5.23/metrics.txt", 23}, {"sglang-h100/fixtures/metrics_after_load.txt", 15}, {"sglang-h100/fixtures/metrics_after_warmup.txt", 15},
	} {
		t.Run(c.path, func(t *testing.T) {
			got := map[string]exposed{}
			var gotOrder, wantOrder []string
			m := usedMeter(c.patch)
			if strings.HasSuffix(c.path, "after_load.txt") { // nothing was evicted in the others
				m.evictions(1128, 2164297)
			}
			for _, e := range parseMetrics(t, string(m.page())) {
				got[e.name] = e
				gotOrder = append(gotOrder, e.name)
			}
			for _, want := range recordedMetrics(t, c.path) {
				if notSimulated[want.name] != "" {
					require.NotContains(t, got, want.name)
					continue
				}
				require.Contains(t, got, want.name)
				e := got[want.name]
				require.Equal(t, want.kind, e.kind, want.name)
				require.Equal(t, want.help, e.help, want.name)
				require.Equal(t, want.labels, e.labels, want.name)
				require.Equal(t, want.bounds, e.bounds, want.name)
				wantOrder = append(wantOrder, want.name)
			}
			if strings.Contains(c.path, "cpu") {
				require.Equal(t, wantOrder, gotOrder)
			}
		})
	}
}

func TestMetricsText(t *testing.T) {
	page := string(usedMeter(23).page())
	for _, want := range []string{
		"# HELP sglang:num_running_reqs The number of running requests.\n# TYPE sglang:num_running_reqs gauge\n" +
			`sglang:num_running_reqs{engine_type="unified",model_name="tiny-llama",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 1.0` + "\n",
		`sglang:time_to_first_token_seconds_bucket{engine_type="unified",is_streaming="true",le="0.8",model_name="tiny-llama"} 0.0` + "\n" +
			`sglang:time_to_first_token_seconds_bucket{engine_type="unified",is_streaming="true",le="1.0",model_name="tiny-llama"} 1.0` + "\n",
		`sglang:inter_token_latency_seconds_sum{engine_type="unified",model_name="tiny-llama"} 4.0` + "\n",
		`sglang:inter_token_latency_seconds_count{engine_type="unified",model_name="tiny-llama"} 8.0` + "\n",
		`sglang:cached_tokens_total{cache_source="device",engine_type="unified",model_name="tiny-llama"} 4.0` + "\n",
		`sglang:http_responses_total{endpoint="/generate",method="POST",status_code="200"} 1.0` + "\n",
		`sglang:routing_key_all_req_count{engine_type="unified",gt="200",le="+Inf",model_name="tiny-llama",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.0` + "\n",
		`} NaN` + "\n",
	} {
		require.Contains(t, page, want)
	}
	for text, v := range map[string]float64{"3.218719e+06": 3218719, "1e+06": 1e6, "941331.0": 941331, "0.0": 0, "1e-05": 1e-5, "0.0001": 1e-4,
		"1.23456789015e+010": 12345678901.5, "-1.0": -1} {
		require.Equal(t, text, goFloat(v))
	}
}

// total sums a family's series whose labels contain all of the given texts.
func total(all []exposed, series string, labels ...string) float64 {
	sum := 0.0
	for _, e := range all {
		for s, v := range e.values {
			if name, _, _ := strings.Cut(s, "{"); name == series && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(s, l) }) {
				sum += v
			}
		}
	}
	return sum
}

func TestMetricsCountWhatWasServed(t *testing.T) {
	s, c := start(t, quick(), server.Config{EnableMetrics: true, Args: server.Args{"decode_log_interval": 10}})
	c.post("/generate", `{"input_ids":[1,2,3,4,5,6,7,8],"sampling_params":{"max_new_tokens":30,"ignore_eos":true}}`)
	c.post("/generate", `{"input_ids":[1,2,3,4,5,6,7,9],"stream":true,"sampling_params":{"max_new_tokens":20,"ignore_eos":true}}`)
	c.post("/generate", `{"input_ids":[[1,2],[3,4]],"sampling_params":{"max_new_tokens":1,"ignore_eos":true}}`)
	awaitIdle(s)
	c.do("GET", "/nope", "")
	c.do("GET", "/v1/models/a/b", "")
	status, page := c.do("GET", "/metrics", "")
	require.Equal(t, 200, status)
	m := parseMetrics(t, page)
	for series, want := range map[string]float64{"prompt_tokens_total": 20, "generation_tokens_total": 52, "num_requests_total": 4, "num_aborted_requests_total": 0,
		"cached_tokens_total": 8, "time_to_first_token_seconds_count": 4, "e2e_request_latency_seconds_count": 4, "inter_token_latency_seconds_count": 19,
		"queue_time_seconds_count": 4, "generation_tokens_histogram_sum": 52, "prompt_tokens_histogram_sum": 20, "uncached_prompt_tokens_histogram_sum": 12,
		"request_time_per_output_token_seconds_count": 2, "num_running_reqs": 0, "num_retracted_reqs": 0, "http_requests_total": 6,
		"http_responses_total": 5, "http_requests_active": 1} {
		require.Equal(t, want, total(m, series), series)
	}
	require.Equal(t, 20.0, total(m, "generation_tokens_total", `is_streaming="true"`))
	require.Equal(t, 1.0, total(m, "http_responses_total", `endpoint="/nope"`, `status_code="404"`))
	require.Equal(t, 1.0, total(m, "http_requests_total", `endpoint="/v1/models/{model:path}"`))
	require.Equal(t, 12.0, total(m, "realtime_tokens_total", "prefill_compute"))
	require.Equal(t, 8.0, total(m, "realtime_tokens_total", "prefill_cache"))
	require.Positive(t, total(m, "gen_throughput"))
	require.Positive(t, total(m, "scheduler_idle_seconds_total"))
	require.Equal(t, total(m, "max_total_num_tokens"), total(m, "kv_available_tokens")+total(m, "kv_evictable_tokens")+total(m, "kv_used_tokens"))
	require.Equal(t, 410620.0, total(m, "max_total_num_tokens"))

	_, c = start(t, quick(), server.Config{})
	status, body := c.do("GET", "/metrics", "")
	require.Equal(t, 404, status)
	require.Equal(t, `{"detail":"Not Found"}`, body)
}

// A driver advances a host step by step without a clock.
type driver struct {
	h  *host
	id int
}

func driveHost(t *testing.T, cfg EngineConfig, change ...func(*options)) *driver {
	h, err := newHost(quick(), cfg, 1)
	require.NoError(t, err)
	opts := defaultOptions()
	for _, f := range change {
		f(&opts)
	}
	h.observe(&opts, "m")
	h.start = time.Unix(1000, 0)
	return &driver{h: h}
}

func (d *driver) add(at time.Duration, input, output int) *stream {
	d.id++
	s := &stream{rid: strconv.Itoa(d.id), rank: d.h.ranks[0], promptTokens: input, arrives: at, received: d.h.start.Add(at), notify: make(chan struct{}, 1),
		req: Request{InputLen: input, MaxNewTokens: output, IgnoreEOS: true}}
	s.req.Owner = s
	d.h.streams[s.rid] = s
	d.h.ranks[0].loop.Add(at, &s.req)
	return s
}

// step carries out the next event and reports whether there was one.
func (d *driver) step() bool {
	at, ok := d.h.ranks[0].loop.Next()
	if ok {
		for _, o := range d.h.ranks[0].advance(at) {
			if s := o.Request.Owner.(*stream); s.prefilled == 0 {
				s.prefilled = at // as hold does
			}
			d.h.deliver(o, d.h.start.Add(at))
		}
	}
	return ok
}

func TestGaugesChangeByTheRule(t *testing.T) {
	d := driveHost(t, quick().EngineConfig(), func(o *options) { o.decodeLogInterval = 10 })
	m := d.h.meter
	value := func(name string) float64 { return m.series[name][0].value }
	d.add(0, 100, 45)
	var changes []int64
	seen := m.lastReport
	for d.step() {
		if m.lastReport != seen {
			seen = m.lastReport
			changes = append(changes, m.decodes)
			if m.decodes > 0 {
				require.Equal(t, 1.0, value("num_running_reqs"))
				require.Equal(t, value("num_used_tokens")-1, value("decode_sum_seq_lens"), "as recorded on a GPU: the next step has its place already")
			}
		}
	}
	require.Equal(t, []int64{0, 10, 20, 30, 40}, changes, "with the prefill, and with every tenth decode step")
	require.Equal(t, 1.0, value("num_running_reqs"), "until the idle scheduler renews it")
	require.InDelta(t, 10/m.lastReport.Sub(d.h.start).Seconds()*4, value("gen_throughput"), 30)
	state := d.h.ranks[0].loop.Engine.State()
	m.idle(m.lastReport.Add(time.Second), state)
	require.Zero(t, value("num_running_reqs"))
	require.Zero(t, value("gen_throughput"))
	require.Equal(t, 144.0, value("kv_evictable_tokens"))

	old := newMeter(18, 40, "m", testBatchConfig, d.h.start)
	old.report(d.h.start, 3, State{MaxTotalTokens: 1}, nil, nil)
	old.idle(d.h.start.Add(29*time.Second), state)
	require.Equal(t, 3, old.running, "before 0.5.21 an idle scheduler waits for half a minute")
	old.idle(d.h.start.Add(31*time.Second), state)
	require.Zero(t, old.running)
}

// The scheduler sends the front process the tokens of an answer that is not streamed by fifties, and what the histograms of
// times see are these.
func TestTimesAreThoseOfOutputs(t *testing.T) {
	for _, c := range []struct {
		patch, interval int // interval 0: not streamed
		first           int // token whose time is the first; 0: the end of the prefill
		tokens          float64
	}{{21, 0, 50, 70}, {23, 0, 0, 70}, {21, 1, 1, 119}, {23, 1, 1, 119}, {23, 30, 1, 119}} {
		d := driveHost(t, quick().EngineConfig(), func(o *options) { o.metrics, o.release.patch = true, c.patch })
		s := d.add(0, 100, 120)
		s.streaming, s.interval = c.interval > 0, c.interval
		var at, last time.Duration // of the token that counts as the first, and of the last
		outputs, seen := 0, progress{}
		for d.step() {
			if at == 0 && s.got.tokens > 0 && s.got.tokens >= c.first {
				at = s.got.at.Sub(d.h.start) // with no time between scheduler and front process, also the end of the prefill
			}
			if s.counted.tokens != seen.tokens {
				outputs++
				seen = s.counted
			}
			last = max(last, s.got.at.Sub(d.h.start))
		}
		page := parseMetrics(t, string(d.h.meter.page()))
		name := fmt.Sprint(c)
		require.Equal(t, map[int]int{0: 3, 1: 120, 30: 5}[c.interval], outputs, name)
		require.Equal(t, 1.0, total(page, "time_to_first_token_seconds_count"), name)
		require.InDelta(t, at.Seconds(), total(page, "time_to_first_token_seconds_sum"), 1e-9, name)
		require.Equal(t, c.tokens, total(page, "inter_token_latency_seconds_count"), name)
		require.InDelta(t, last.Seconds(), total(page, "e2e_request_latency_seconds_sum"), 1e-9, name)
		if c.patch >= 23 {
			require.InDelta(t, (last-at).Seconds()/119, total(page, "request_time_per_output_token_seconds_sum"), 1e-9, name)
		}
	}
}

func TestHealthChecksAreLeftOut(t *testing.T) {
	d := driveHost(t, quick().EngineConfig(), func(o *options) { o.metrics = true })
	d.add(0, 1, 1).health = true
	for d.step() {
	}
	page := parseMetrics(t, string(d.h.meter.page()))
	require.Zero(t, total(page, "num_requests_total"))
	require.Zero(t, total(page, "time_to_first_token_seconds_count"))
	require.Equal(t, 1.0, total(page, "queue_time_seconds_count"), "the scheduler counts them")
	require.Zero(t, d.h.ranks[0].loads.snapshot.prefillTokens)
}

func TestEndpointsAreBounded(t *testing.T) {
	m := usedMeter(23)
	for i := range 2 * mostEndpoints {
		m.add("http_requests_total", 1, m.endpoint(fmt.Sprintf("/%d", i), "GET")...)
		m.add("http_requests_total", 1, m.endpoint("/generate", fmt.Sprintf("M%d", i))...)
	}
	require.Len(t, m.series["http_requests_total"], mostEndpoints+1)
	require.Equal(t, []string{"endpoint", "/generate", "method", "PUT"}, m.endpoint("/generate", "PUT"))
	require.Equal(t, []string{"endpoint", "/3", "method", "GET"}, m.endpoint("/3", "GET"), "it was told apart before")
}

func TestRetractionsAreCounted(t *testing.T) {
	cfg := quick().EngineConfig()
	cfg.MaxTotalTokens, cfg.DisableRadixCache, cfg.ScheduleConservativeness = 600, false, 0.1
	w := &watcher{}
	d := driveHost(t, cfg, func(o *options) { o.metrics, o.observers = true, []Observer{w} })
	var all []*stream
	for range 6 {
		s := d.add(0, 20, 180)
		s.req.IgnoreEOS = false
		all = append(all, s)
	}
	for d.step() {
	}
	want, tokens := 0, 0
	for _, s := range all {
		want += s.req.Retractions()
		tokens += s.req.Produced()
	}
	require.Positive(t, want)
	require.Equal(t, 6*180, tokens)
	m := d.h.meter
	page := parseMetrics(t, string(m.page()))
	require.EqualValues(t, want, total(page, "num_retracted_requests_total"))
	require.EqualValues(t, 20*want, total(page, "num_retracted_input_tokens_total"))
	require.Positive(t, total(page, "num_retracted_output_tokens_total"))
	require.EqualValues(t, 120, total(page, "prefill_effective_tokens_total"), "what is computed again does not count")
	require.Greater(t, total(page, "realtime_tokens_total", "prefill_compute"), 120.0)
	require.EqualValues(t, tokens, total(page, "generation_tokens_total"))
	told := 0
	for _, r := range w.retractions {
		told += r.Requests
		require.GreaterOrEqual(t, r.Gained, 20*r.Requests, "at least their prompts")
		require.Less(t, r.OldRatio, r.NewRatio, "fewer admissions from then on")
		require.Empty(t, r.Aborted)
	}
	require.Equal(t, want, told)
}

func TestEvictionsAreCounted(t *testing.T) {
	for patch, labels := range map[int]string{15: `{cache_type="RadixCache"}`, 23: `{cache_type="UnifiedRadixCache",dp_rank="0",pp_rank="0",tp_rank="0"}`} {
		cfg := quick().EngineConfig()
		cfg.MaxTotalTokens, cfg.DisableRadixCache = 200, false
		d := driveHost(t, cfg, func(o *options) { o.release.patch = patch })
		for range 4 {
			d.add(0, 90, 10)
		}
		for d.step() {
		}
		e := d.h.ranks[0].loop.Engine
		require.Equal(t, 4*99, e.State().CachedTokens+e.evicted, "all but the last token of each was cached")
		d.h.meter.evictions(e.evictions, e.evicted)
		page := string(d.h.meter.page())
		require.Contains(t, page, fmt.Sprintf("sglang:evicted_tokens_total%s %d.0\n", labels, e.evicted))
		require.Contains(t, page, fmt.Sprintf("sglang:eviction_duration_seconds_count%s %d.0\n", labels, e.evictions))
	}
}

func TestObserveFallsIntoTheRightBucket(t *testing.T) {
	s := &series{counts: make([]uint64, len(latencyBounds)+1)}
	s.observe(latencyBounds, 0.1, 1) // le is inclusive
	s.observe(latencyBounds, 0.11, 2)
	s.observe(latencyBounds, math.Inf(1), 1)
	require.Equal(t, []uint64{1, 2, 0}, s.counts[:3])
	require.EqualValues(t, 1, s.counts[len(latencyBounds)])
	require.Equal(t, "{a=\"1\",b=\"x\\\"\\\\\\n\"}", labelText([]string{"b", "x\"\\\n"}, []string{"a", "1"}))
}

func BenchmarkMetricsPage(b *testing.B) {
	m := usedMeter(23)
	for b.Loop() {
		m.page()
	}
}

func BenchmarkMeterOutput(b *testing.B) {
	m := usedMeter(23)
	at := time.Unix(2000, 0)
	s := &stream{streaming: true, received: at, counted: progress{tokens: 9, at: at}}
	p := progress{tokens: 10, first: at, at: at.Add(time.Millisecond)}
	b.ReportAllocs()
	for b.Loop() {
		m.output(s, p)
	}
}
