package sim

import (
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// A meter keeps the metrics of a server: those that /metrics shows and those that /v1/loads repeats. The engine's host
// tells it what happens. Its methods are safe for concurrent use. A server with data-parallel ranks has one for each; that of the
// first keeps those of the front process, too.
//
// Counters are exact. The histograms of times are of what SGLang's front process sees: see [stream.passes]. Gauges change as
// SGLang's do (metrics_reporter.py): with each prefill batch, with every interval-th decode step, and when the scheduler is idle.
type meter struct {
	patch    int
	interval int // --decode-log-interval
	model    string
	rank     string // data-parallel rank; empty on a server that has but one

	mu     sync.Mutex
	series map[string][]*series // by family

	decodes      int64
	generated    int // tokens since the last report of decodes
	lastDecode   time.Time
	throughput   float64 // of the last report of decodes
	lastReport   time.Time
	running      int // as the gauge has it
	genGauge     float64
	hitGauge     float64
	retracted    int // of the last retraction, until reported
	retractGauge int
	recent       hitWindow

	itl *series // the busiest one

	// The priorities that the scheduler's queues and the front process's series tell apart; nil: none, without
	// --enable-priority-scheduling.
	priorities, asked map[string]bool
}

// defaultDecodeLogInterval is SGLang's --decode-log-interval.
const defaultDecodeLogInterval = 40

// idleReport is how often an idle scheduler renews its gauges; throughputStale is for how long a throughput is repeated
// by prefill reports from 0.5.21 on (metrics_reporter.py).
const (
	idleReport      = 30 * time.Second
	throughputStale = 30 * time.Second
)

func newMeter(patch, interval int, model string, cfg EngineConfig, now time.Time) *meter {
	m := &meter{patch: patch, interval: interval, model: model, series: map[string][]*series{}, lastDecode: now, lastReport: now}
	if cfg.EnablePriorityScheduling {
		m.priorities, m.asked = map[string]bool{}, map[string]bool{}
	}
	for _, f := range families() {
		if f.group == 'g' && len(f.bounds) == 0 && f.name != "graph_memory_usage_gb" &&
			f.name != "routing_key_running_req_count" && f.name != "routing_key_all_req_count" {
			m.set(f.name, 0)
		}
	}
	m.set("max_total_num_tokens", float64(cfg.MaxTotalTokens))
	m.set("page_size", float64(cfg.PageSize))
	m.set("num_pages", float64(cfg.MaxTotalTokens/cfg.PageSize))
	m.set("context_len", float64(cfg.ContextLength))
	m.set("fwd_occupancy", math.NaN()) // without a device timer
	m.set("routing_keys_active", 0)
	for i := 1; i < len(routingKeyBounds); i++ {
		for _, name := range []string{"routing_key_running_req_count", "routing_key_all_req_count"} {
			m.at(name, "gt", routingKeyBounds[i-1], "le", routingKeyBounds[i])
		}
	}
	for _, phase := range []string{"prefill", "decode", "target_verify", "draft_prefill", "draft_decode", "draft_extend"} {
		m.at("graph_memory_usage_gb", "phase", phase)
		m.at("startup_cuda_graph_time_seconds", "phase", phase)
	}
	for _, phase := range []string{"load_weight", "kv_cache_allocation", "scheduler_e2e", "tokenizer_e2e"} {
		m.at("startup_time_seconds", "phase", phase)
	}
	for _, mode := range []string{"input", "device_hit", "host_hit", "storage_hit"} {
		m.at("prefill_effective_tokens_total", "mode", mode)
	}
	for _, kind := range []string{"scheduled", "imbalance"} {
		m.at("dp_attention_tokens_total", "kind", kind)
		m.at("dp_attention_pairs_total", "kind", kind)
	}
	for _, state := range []string{"active", "idle"} {
		m.at("dp_attention_steps_total", "rank_state", state)
	}
	m.at("dp_attention_token_imbalance_ratio")
	m.at("dp_attention_sync_wait_seconds")
	pid := strconv.Itoa(os.Getpid())
	m.at("num_retracted_reqs", "pid", pid)
	m.at("num_paused_reqs", "pid", pid)
	m.at("scheduler_idle_seconds_total")
	m.itl = m.newSeries("inter_token_latency_seconds")
	return m
}

func (m *meter) newSeries(name string, extra ...string) *series {
	s := &series{extra: extra}
	if n := len(bucketBounds[name]); n > 0 {
		s.counts = make([]uint64, n+1)
	}
	return s
}

// at returns the series of a family with the given labels besides the usual ones, made if there is none. Series come in
// the order in which they were first used.
func (m *meter) at(name string, extra ...string) *series {
	for _, s := range m.series[name] {
		if slices.Equal(s.extra, extra) {
			return s
		}
	}
	s := m.newSeries(name, extra...)
	m.series[name] = append(m.series[name], s)
	return s
}

func (m *meter) set(name string, v float64) { m.at(name).value = v }

func (m *meter) add(name string, v float64, extra ...string) { m.at(name, extra...).value += v }

func (m *meter) observe(name string, d time.Duration, extra ...string) {
	m.at(name, extra...).observe(bucketBounds[name], d.Seconds(), 1)
}

// batch counts a step and changes the gauges when it is time.
func (m *meter) batch(b *Batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.Retracted > 0 {
		m.retracted = b.Retracted
		m.add("num_retracted_requests_total", float64(b.Retracted))
		m.add("num_retracted_input_tokens_total", float64(b.RetractedInput))
		m.add("num_retracted_output_tokens_total", float64(b.RetractedOutput))
	}
	if b.Kind == DecodeStep {
		m.decode(b)
	} else {
		m.prefill(b)
	}
}

// prefill is report_prefill_stats.
func (m *meter) prefill(b *Batch) {
	m.add("cuda_graph_passes_total", 1, "mode", "prefill_cuda_graph")
	m.add("realtime_tokens_total", float64(b.NewTokens), "mode", "prefill_compute")
	if b.CachedTokens > 0 {
		m.add("realtime_tokens_total", float64(b.CachedTokens), "mode", "prefill_cache")
	}
	// Tokens that are computed again after a retraction do not count for the hit rate.
	input, hit := b.NewTokens-b.AgainNew, b.CachedTokens-b.AgainCached
	m.add("prefill_effective_tokens_total", float64(input), "mode", "input")
	m.add("prefill_effective_tokens_total", float64(hit), "mode", "device_hit")
	m.hitGauge = 0
	if input+hit > 0 {
		m.hitGauge = float64(hit) / float64(input+hit)
	}
	m.recent.add(b.At, hit, input+hit)
	if m.patch >= 21 {
		if b.At.Sub(m.lastDecode) > throughputStale {
			m.throughput = 0
		}
		m.genGauge = m.throughput
	}
	if b.Chunk > 0 {
		m.observe("per_stage_req_latency_seconds", b.Chunk, "stage", "chunked_prefill")
	}
	m.set("new_token_ratio", b.NewTokenRatio)
	m.reportBatch(b, b.Running)
}

// decode is report_decode_stats.
func (m *meter) decode(b *Batch) {
	m.decodes++
	m.generated += b.Requests
	m.add("cuda_graph_passes_total", 1, "mode", "decode_cuda_graph")
	m.add("realtime_tokens_total", float64(b.Requests), "mode", "decode")
	if m.decodes%int64(m.interval) != 0 {
		return
	}
	if gap := b.At.Sub(m.lastDecode); gap > 0 {
		m.throughput = float64(m.generated) / gap.Seconds()
	}
	m.lastDecode, m.generated = b.At, 0
	m.genGauge = m.throughput
	if m.patch < 21 {
		m.hitGauge = 0
	}
	m.set("decode_sum_seq_lens", float64(b.Context))
	m.reportBatch(b, b.Requests)
}

// report sets the gauges that all reports share (pool_stats_observer.py for those of memory).
func (m *meter) report(at time.Time, running int, s State, runningBy, waitingBy map[int]int) {
	m.lastReport, m.running = at, running
	usage := float64(s.UsedTokens) / float64(s.MaxTotalTokens)
	m.queueCount("num_running_reqs", running, runningBy)
	m.queueCount("num_queue_reqs", s.Waiting, waitingBy)
	m.set("gen_throughput", m.genGauge)
	m.set("cache_hit_rate", m.hitGauge)
	m.set("token_usage", roundTo(usage, 2))
	m.set("full_token_usage", usage)
	m.set("num_used_tokens", float64(s.UsedTokens))
	m.set("kv_used_tokens", float64(s.UsedTokens))
	m.set("kv_available_tokens", float64(s.FreeTokens))
	m.set("kv_evictable_tokens", float64(s.CachedTokens))
}

// reports reports whether the step that batch is told of next changes the gauges.
func (m *meter) reports(kind StepKind) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return kind != DecodeStep || (m.decodes+1)%int64(m.interval) == 0
}

// evictions sets how often the prefix cache has been made to drop tokens, and how many (base_prefix_cache.py,
// update_eviction_metrics). It takes no time in a simulation. Data-parallel ranks without data-parallel attention share a series,
// which is their sum (metrics_collector.py, radix_cache_metric_labels).
func (m *meter) evictions(passes, tokens int) {
	if passes == 0 {
		return
	}
	labels := []string{"cache_type", "RadixCache"}
	if m.patch >= 21 {
		labels = []string{"cache_type", "UnifiedRadixCache", "dp_rank", "0", "pp_rank", "0", "tp_rank", "0"}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.at("evicted_tokens_total", labels...).value = float64(tokens)
	m.at("eviction_duration_seconds", labels...).counts[0] = uint64(passes)
}

// reportBatch is report for one of a batch, which tells of the last retraction, too.
func (m *meter) reportBatch(b *Batch, running int) {
	m.report(b.At, running, b.State, b.runningBy, b.waitingBy)
	m.retractGauge, m.retracted = m.retracted, 0
	m.series["num_retracted_reqs"][0].value = float64(m.retractGauge)
}

// idle is _maybe_log_idle_metrics: what an idle scheduler does to the gauges. It is called before they are read, which
// nobody can tell from a scheduler that does it all the time.
func (m *meter) idle(now time.Time, s State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.lastReport) <= idleReport && (m.patch < 21 || m.running == 0) {
		return
	}
	m.genGauge = 0
	m.report(now, 0, s, nil, nil)
}

// stats returns the values that a load snapshot takes from the gauges.
func (m *meter) stats() (throughput, hitRate, recentHitRate float64, retracted int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.genGauge, m.hitGauge, m.recent.rate(), m.retractGauge
}

// lastThroughput returns the throughput of the last report of decodes, in tokens per second.
func (m *meter) lastThroughput() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.throughput
}

// scheduled counts a request that has its first result: the scheduler's times, health checks included.
func (m *meter) scheduled(queued, prefill time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.observe("queue_time_seconds", queued)
	m.observe("per_stage_req_latency_seconds", 0, "stage", "request_process")
	m.observe("per_stage_req_latency_seconds", prefill, "stage", "prefill_forward")
}

var streamingLabels = map[bool][]string{false: {"is_streaming", "false"}, true: {"is_streaming", "true"}}

// output counts an output of the front process (tokenizer_manager.py, collect_metrics): s has p, and had s.counted at the
// output before. An abort in the queue does not pass there.
func (m *meter) output(s *stream, p progress) {
	if s.health || p.finish != nil && p.finish.Queued {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var labels, streaming []string
	if m.priorities != nil && s.priority != "" {
		labels = []string{"priority", boundedLabel(m.asked, s.priority)}
	}
	first, n := s.counted.at.IsZero(), p.tokens-s.counted.tokens
	if !first && n > 0 {
		itl := m.itl
		if labels != nil {
			itl = m.at("inter_token_latency_seconds", labels...)
		} else if !slices.Contains(m.series["inter_token_latency_seconds"], itl) {
			m.series["inter_token_latency_seconds"] = append(m.series["inter_token_latency_seconds"], itl)
		}
		itl.observe(tokenTimes, p.at.Sub(s.counted.at).Seconds()/float64(n), n)
	}
	if !first && p.finish == nil {
		return
	}
	if m.patch >= 18 {
		streaming = streamingLabels[s.streaming]
	}
	streaming = slices.Concat(streaming, labels)
	if first && (m.patch < 23 || p.finish == nil || p.finish.Kind != FinishAbort) {
		m.observe("time_to_first_token_seconds", p.first.Sub(s.received), streaming...)
	}
	if p.finish == nil {
		return
	}
	m.add("prompt_tokens_total", float64(s.promptTokens), streaming...)
	m.add("generation_tokens_total", float64(p.tokens), streaming...)
	m.add("num_requests_total", 1, streaming...)
	if p.cached > 0 {
		m.add("cached_tokens_total", float64(p.cached), append([]string{"cache_source", "device"}, labels...)...)
	}
	m.observe("e2e_request_latency_seconds", p.at.Sub(s.received), streaming...)
	if decode := p.at.Sub(p.first); p.finish.Kind != FinishAbort && p.tokens > 1 && decode > 0 {
		m.observe("request_time_per_output_token_seconds", decode/time.Duration(p.tokens-1), streaming...)
	}
	m.at("prompt_tokens_histogram", labels...).observe(tokenCounts, float64(s.promptTokens), 1)
	m.at("uncached_prompt_tokens_histogram", labels...).observe(tokenCounts, float64(s.promptTokens-p.cached), 1)
	m.at("generation_tokens_histogram", labels...).observe(tokenCounts, float64(p.tokens), 1)
}

// aborted counts the calls that abort something: /abort_request, and clients that leave.
func (m *meter) aborted() {
	m.mu.Lock()
	m.add("num_aborted_requests_total", 1)
	m.mu.Unlock()
}

// asleep counts time without work.
func (m *meter) asleep(d time.Duration) {
	m.mu.Lock()
	m.add("scheduler_idle_seconds_total", d.Seconds())
	m.mu.Unlock()
}

// loadsTook counts the time that /v1/loads took.
func (m *meter) loadsTook(d time.Duration) {
	m.mu.Lock()
	m.observe("get_loads_duration_seconds", d)
	m.mu.Unlock()
}

// page returns the whole page, with the schedulers' series of further data-parallel ranks (metrics_collector.py, labels; as
// recorded on 0.5.23).
func (m *meter) page(further ...*meter) []byte {
	order := familiesOf(m.patch)
	copies := make([][]series, len(order))
	for k, from := range append([]*meter{m}, further...) {
		from.mu.Lock()
		for i, f := range order {
			schedulers := f.labels == 'S'
			if k > 0 && !schedulers {
				continue
			}
			for _, s := range from.series[f.name] {
				extra := s.extra
				if schedulers && from.rank != "" {
					extra = append(slices.Clone(extra), "dp_rank", from.rank)
				}
				copies[i] = append(copies[i], series{extra, s.value, slices.Clone(s.counts)})
			}
		}
		from.mu.Unlock()
	}
	tokenizer := []string{"engine_type", "unified", "model_name", m.model}
	if m.priorities != nil {
		tokenizer = append(tokenizer, "priority", "") // unless a series has one
	}
	scheduler := append(slices.Clone(tokenizer), "moe_ep_rank", "0", "pp_rank", "0", "tp_rank", "0")
	var b []byte
	for i, f := range order {
		base := map[byte][]string{'S': scheduler, 'T': tokenizer}[f.labels]
		b = appendFamily(b, f, base, copies[i])
	}
	return b
}

// hitWindow is the hit rate of prompts over the last time (metrics_reporter.py, _CacheHitRateWindow, from 0.5.21 on).
type hitWindow struct {
	samples    []hitSample
	hit, total int
}

type hitSample struct {
	at         time.Time
	hit, total int
}

// hitWindowLength is SGLANG_CACHE_HIT_RATE_WINDOW_SECONDS.
const hitWindowLength = 15 * time.Second

func (w *hitWindow) add(at time.Time, hit, total int) {
	if total > 0 {
		w.samples = append(w.samples, hitSample{at, hit, total})
		w.hit, w.total = w.hit+hit, w.total+total
	}
	n := 0
	for n < len(w.samples) && at.Sub(w.samples[n].at) >= hitWindowLength {
		w.hit, w.total = w.hit-w.samples[n].hit, w.total-w.samples[n].total
		n++
	}
	w.samples = slices.Delete(w.samples, 0, n)
}

func (w *hitWindow) rate() float64 {
	if w.total == 0 {
		return 0
	}
	return float64(w.hit) / float64(w.total)
}

// metrics is /metrics.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	if !s.opts.metrics {
		writeBody(w, http.StatusNotFound, "application/json", []byte(`{"detail":"Not Found"}`))
		return
	}
	h := s.host
	h.mu.Lock()
	h.refreshIdle(time.Now())
	passes, tokens := 0, 0
	for _, r := range h.ranks {
		passes += r.loop.Engine.evictions
		tokens += r.loop.Engine.evicted
	}
	h.meter.evictions(passes, tokens)
	h.mu.Unlock()
	var further []*meter
	for _, r := range h.ranks[1:] {
		further = append(further, r.meter)
	}
	writeBody(w, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", h.meter.page(further...))
}
