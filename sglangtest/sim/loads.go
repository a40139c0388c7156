package sim

import (
	"cmp"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// defaultLoadInterval is SGLang's --load-snapshot-publish-interval.
const defaultLoadInterval = 15

// A loadSnapshot is what the scheduler last published of its load (managers/load_snapshot.py).
type loadSnapshot struct {
	rank             int
	at               time.Time
	running, waiting int
	uncached         int // waiting tokens that have to be computed, as far as is known
	used, total      int // KV tokens in use; and with those of waiting prompts
	throughput, hit  float64
	retracted        int
	prefillTokens    int
	prefillBusy      time.Duration
	moments          [6]float64
}

// published is the state of a rank's load snapshots.
type published struct {
	steps    int // decode steps since the last
	snapshot loadSnapshot
	counters stepCounters
}

// stepCounters are cumulative: what prefill computed and how long it took, and the moments of decode steps, from which a
// router can fit a line (scheduler.py, _record_step_counters).
type stepCounters struct {
	tokens     int
	busy       time.Duration
	moments    [6]float64 // steps, Σ requests, Σ µs, Σ requests², Σ requests·µs, Σ tokens
	previous   StepKind
	launched   time.Duration // the step before
	prefilled  time.Duration // when the result of the last prefill was processed
	contiguous bool          // there was a step before, and nothing was idle since
}

// stepMost is from which time on a step does not count (STEP_MAX_US).
const stepMost = 2 * time.Second

// add counts a step whose result was processed at the given time. A decode step, and before 0.5.21 a prefill step, counts if
// one of its kind came directly before; its time is that from the launch of the one to that of the other. From 0.5.21 on a
// prefill's time is that from its launch, or the end of the prefill before, to its end. Pauses, which 0.5.23 takes out of
// it, count here.
func (c *stepCounters) add(patch int, b *Batch, at time.Duration) {
	if b.health {
		c.contiguous = false
		return
	}
	prefill := b.Kind != DecodeStep
	counts := c.contiguous && (c.previous != DecodeStep) == prefill
	took := b.launched - c.launched
	if prefill && patch >= 21 {
		start := max(b.launched, c.prefilled)
		if counts {
			start = c.prefilled
		}
		took, counts = at-start, true
	}
	if prefill {
		c.prefilled = at
	}
	c.previous, c.launched, c.contiguous = b.Kind, b.launched, true
	us := math.Floor(float64(took) / float64(time.Microsecond))
	if prefill && patch >= 21 {
		// Two results that the simulated loop processes at one moment are a pass of the loop apart in SGLang, never 0 µs.
		us = max(us, 1)
	}
	if !counts || us <= 0 || took >= stepMost && !(prefill && patch >= 23) {
		return
	}
	if prefill {
		c.tokens += b.NewTokens
		c.busy += took
		return
	}
	n := float64(b.Requests)
	for i, v := range [6]float64{1, n, us, n * n, n * us, n} {
		c.moments[i] += v
	}
}

// publish renews the snapshot: as SGLang before it processes the result of a step, with each prefill, and with every
// interval-th decode step. h.mu must be held.
func (r *rank) publish(at time.Duration, force bool) {
	r.loads.steps++
	if !force && r.loads.steps < r.host.loadInterval {
		return
	}
	r.loads.steps = 0
	e := r.loop.Engine
	s := e.State()
	throughput, hit, recent, retracted := r.meter.stats()
	r.loads.snapshot = loadSnapshot{rank: r.index, at: r.host.start.Add(at), running: len(e.Running()), waiting: s.Waiting, uncached: r.uncached(recent),
		used: s.UsedTokens, total: s.UsedTokens + s.WaitingTokens, throughput: throughput, hit: hit, retracted: retracted,
		prefillTokens: r.loads.counters.tokens, prefillBusy: r.loads.counters.busy, moments: r.loads.counters.moments}
}

// uncached is get_num_waiting_uncached_tokens (load_inquirer.py). Unless the policy has matched the queue with the
// prefix cache, versions from 0.5.21 on estimate by the hit rate of the last seconds, which they know only with metrics.
func (r *rank) uncached(recent float64) int {
	e := r.loop.Engine
	if r.meter.patch < 21 || !r.host.metrics {
		recent = 0
	}
	n := 0
	switch matched := e.cfg.SchedulePolicy == LPM || e.cfg.SchedulePolicy == DFSWeight; {
	case matched:
		for _, q := range e.Waiting() {
			n += max(0, q.queued-q.matched)
		}
	case recent == 0:
		n = e.waiting.tokens
	default:
		for _, q := range e.Waiting() {
			n += int(float64(q.queued) * (1 - recent))
		}
	}
	if q := e.Chunked(); q != nil {
		n += max(0, q.InputLen+q.produced-q.prefix)
	}
	return n
}

// refreshIdle does what idle schedulers do all the time: they publish their load, and renew their gauges now and then.
// h.mu must be held.
func (h *host) refreshIdle(now time.Time) {
	for _, r := range h.ranks {
		if r.loop.idle && !r.loop.paused {
			r.meter.idle(now, r.loop.Engine.State())
			r.slept(now.Sub(h.start))
			r.publish(now.Sub(h.start), true)
		}
	}
}

// A loadField is one value of a load: an int, a float64, a string, nil, a list of numbers, or fields of its own.
type loadField struct {
	name  string
	value any
}

// The sections of a load, by the name in the query.
var loadSections = []string{"all", "core", "disagg", "lora", "memory", "queues", "spec"}

// fields returns what a server of the given version says of the load, in its order. Sections speculative and lora are
// there only on servers that have such a thing. Sizes in GB are 0: a profile does not know them.
func (l loadSnapshot) fields(patch int, cfg EngineConfig, include func(section string) bool) []loadField {
	var out []loadField
	put := func(since int, name string, value any) {
		if patch >= since {
			out = append(out, loadField{name, value})
		}
	}
	moments := any(nil)
	if l.moments[0] > 0 {
		moments = l.moments[:]
	}
	put(18, "timestamp", float64(l.at.UnixMicro())/1e6)
	put(0, "dp_rank", l.rank)
	put(0, "num_running_reqs", l.running)
	put(0, "num_waiting_reqs", l.waiting)
	put(0, "num_waiting_uncached_tokens", l.uncached)
	put(0, "num_used_tokens", l.used)
	put(0, "num_total_tokens", l.total)
	put(18, "num_active_tokens", l.total)
	put(21, "num_prealloc_ready_tokens", 0)
	put(0, "max_total_num_tokens", cfg.MaxTotalTokens)
	put(0, "max_running_requests", cfg.MaxRunningRequests)
	put(0, "token_usage", roundTo(float64(l.used)/float64(cfg.MaxTotalTokens), 4))
	put(0, "gen_throughput", roundTo(l.throughput, 2))
	put(0, "cache_hit_rate", roundTo(l.hit, 4))
	put(0, "utilization", 0.0)
	put(18, "total_prefill_uncached_tokens", l.prefillTokens)
	put(18, "total_prefill_busy_us", int(l.prefillBusy/time.Microsecond))
	put(18, "decode_moments", moments)
	if include("memory") {
		put(0, "memory", []loadField{{"weight_gb", 0.0}, {"kv_cache_gb", 0.0}, {"graph_gb", 0.0}, {"token_capacity", cfg.MaxTotalTokens}})
	}
	if include("disagg") {
		put(0, "disaggregation", []loadField{{"mode", "null"}, {"prefill_bootstrap_queue_reqs", 0}, {"prefill_inflight_queue_reqs", 0},
			{"decode_prealloc_queue_reqs", 0}, {"decode_transfer_queue_reqs", 0}, {"decode_retracted_queue_reqs", 0},
			{"kv_transfer_speed_gb_s", 0.0}, {"kv_transfer_latency_ms", 0.0}})
	}
	if include("queues") {
		queues := []loadField{{"waiting", l.waiting}, {"grammar", 0}, {"paused", 0}, {"retracted", l.retracted}}
		if patch >= 18 {
			queues = append(queues, loadField{"prealloc_ready", 0})
		}
		put(0, "queues", queues)
	}
	return out
}

func roundTo(v float64, digits int) float64 {
	r, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'f', digits, 64), 64) // as Python's round, by the decimal value
	return r
}

func appendFields(b []byte, fields []loadField) []byte {
	b = append(b, '{')
	for i, f := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, f.name), ':')
		b = appendValue(b, f.value)
	}
	return append(b, '}')
}

func appendValue(b []byte, value any) []byte {
	switch v := value.(type) {
	case nil:
		return append(b, "null"...)
	case int:
		return strconv.AppendInt(b, int64(v), 10)
	case float64:
		return append(b, pyFloat(v)...)
	case string:
		return appendString(b, v)
	case []loadField:
		return appendFields(b, v)
	case []float64:
		b = append(b, '[')
		for i, x := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, pyFloat(x)...)
		}
		return append(b, ']')
	}
	panic(fmt.Sprintf("sim: a load has a %T", value))
}

// appendGauges appends the numbers of the loads of the given ranks, which have the same fields, as gauges (v1_loads.py,
// _format_loads_prometheus).
func appendGauges(b []byte, prefix string, ranks []int, loads [][]loadField) []byte {
	for i, f := range loads[0] {
		switch v := f.value.(type) {
		case []loadField:
			sections := [][]loadField{v}
			for _, l := range loads[1:] {
				sections = append(sections, l[i].value.([]loadField))
			}
			section := map[string]string{"disaggregation": "disagg"}[f.name]
			b = appendGauges(b, prefix+cmp.Or(section, f.name)+"_", ranks, sections)
		case int, float64:
			if f.name == "dp_rank" {
				continue
			}
			name := prefix + f.name
			b = fmt.Appendf(b, "# TYPE %s gauge\n", name)
			for k, l := range loads {
				b = fmt.Appendf(b, "%s{dp_rank=\"%d\"} ", name, ranks[k])
				b = append(appendValue(b, l[i].value), '\n')
			}
		}
	}
	return b
}

// load returns the present snapshots of all ranks.
func (h *host) load() ([]loadSnapshot, EngineConfig) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refreshIdle(time.Now())
	var all []loadSnapshot
	for _, r := range h.ranks {
		all = append(all, r.loads.snapshot)
	}
	return all, h.config()
}

// loads is /v1/loads: the last snapshot of each rank, in JSON with the member "simulated" besides SGLang's. Unlike SGLang's
// they have throughput and hit rate also without metrics.
func (s *Server) loads(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	q := r.URL.Query()
	only := -1
	if rank := q.Get("dp_rank"); q.Has("dp_rank") {
		n, err := strconv.Atoi(strings.TrimSpace(rank))
		if err != nil {
			badRequest(w, fmt.Sprintf("[{'type': 'int_parsing', 'loc': ('query', 'dp_rank'), 'msg': 'Input should be a valid integer, unable to parse "+
				"string as an integer', 'input': %s}]", pyString(rank)))
			return
		}
		if only = n; n < 0 || n >= len(s.host.ranks) {
			s.writeLoads(w, q.Get("format"), nil, nil)
			return
		}
	}
	var sections []string
	if v := q.Get("include"); v != "" {
		for name := range strings.SplitSeq(v, ",") {
			sections = append(sections, strings.TrimSpace(name))
		}
	}
	all := len(sections) == 0 || slices.Contains(sections, "all")
	for _, name := range sections {
		if !all && !slices.Contains(loadSections, name) { // a ValueError that nothing catches
			writeBody(w, http.StatusInternalServerError, "text/plain; charset=utf-8", []byte("Internal Server Error"))
			return
		}
	}
	snapshots, cfg := s.host.load()
	s.host.meter.loadsTook(time.Since(begin))
	var ranks []int
	var loads [][]loadField
	for _, l := range snapshots {
		if only < 0 || l.rank == only {
			ranks = append(ranks, l.rank)
			loads = append(loads, l.fields(s.host.meter.patch, cfg, func(section string) bool { return all || slices.Contains(sections, section) }))
		}
	}
	s.writeLoads(w, q.Get("format"), ranks, loads)
}

// writeLoads writes the loads of the given ranks.
func (s *Server) writeLoads(w http.ResponseWriter, format string, ranks []int, loads [][]loadField) {
	if format == "prometheus" {
		b := []byte("\n")
		if len(loads) > 0 {
			b = appendGauges(nil, "sglang_", ranks, loads)
		}
		writeBody(w, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", b)
		return
	}
	b := fmt.Appendf(nil, `{"timestamp":"%s","version":"%s"`, time.Now().UTC().Format("2006-01-02T15:04:05.000000-07:00"), s.opts.release.name)
	if s.host.meter.patch >= 18 {
		b = append(b, `,"accelerator":`...)
		if s.profile.GPU == "" {
			b = append(b, `null`...)
		} else {
			b = appendString(b, s.profile.GPU)
		}
		b = append(b, `,"num_accelerators":1`...)
	}
	b = append(b, `,"loads":[`...)
	simulated := loadField{"simulated", []loadField{{"step_lateness_us", s.host.late.counts()}}}
	for i, fields := range loads {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFields(b, append(fields, simulated))
	}
	writeBody(w, http.StatusOK, "application/json", append(b, `]}`...))
}

// getLoad is /get_load, which 0.5.15 to 0.5.18 have for older clients.
func (s *Server) getLoad(w http.ResponseWriter, _ *http.Request) {
	all, _ := s.host.load()
	b := []byte{'['}
	for i, l := range all {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendFields(b, []loadField{{"dp_rank", l.rank}, {"num_reqs", l.running + l.waiting}, {"num_waiting_reqs", l.waiting},
			{"num_tokens", l.total}, {"num_pending_tokens", l.total - l.used}, {"ts_tic", time.Since(s.host.start).Seconds()}})
	}
	writeBody(w, http.StatusOK, "application/json", append(b, ']'))
}
