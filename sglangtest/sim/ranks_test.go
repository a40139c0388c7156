package sim

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
)

// ranksRecording is what a real server with two data-parallel ranks answered.
//
//go:embed testdata/ranks.json
var ranksRecording []byte

var dpRank = regexp.MustCompile(`"dp_rank":(\w+)`)

// ranksOf returns the ranks that the answers of a body come from.
func ranksOf(body string) string {
	var ranks []string
	for _, m := range dpRank.FindAllStringSubmatch(body, -1) {
		ranks = append(ranks, m[1])
	}
	return strings.Join(ranks, " ")
}

// only keeps of got what want has.
func only(want, got any) any {
	switch want := want.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, v := range want {
			out[k] = only(v, got.(map[string]any)[k])
		}
		return out
	case []any:
		list := slices.Clone(got.([]any))
		for i := range min(len(want), len(list)) {
			list[i] = only(want[i], list[i])
		}
		return list
	}
	return got
}

func TestAnswersOfRanksAreThoseRecorded(t *testing.T) {
	var recording struct {
		Exchanges []struct {
			Method, Path, Body, Answer string
			Status                     int
		}
		ByRank  string `json:"by_rank"`
		OfFront string `json:"of_front"`
	}
	require.NoError(t, json.Unmarshal(ranksRecording, &recording))
	p := quick()
	p.GPU = "" // the recorded server had none
	s, c := start(t, p, server.Config{DPSize: 2, MaxTotalTokens: 20000, ContextLength: 4096, MaxRunningRequests: 64, ChunkedPrefillSize: 4096, EnableMetrics: true})
	c.post("/generate", `{"text":["The capital city of France is","The capital city of France is"],"sampling_params":{"max_new_tokens":8}}`) // as SGLang's warm-up
	awaitIdle(s)
	loader := regexp.MustCompile(`Failed to get model loader: [^|"]*[^|" ]`)
	for i, x := range recording.Exchanges {
		status, got := c.do(x.Method, x.Path, x.Body)
		require.Equal(t, x.Status, status, "%d %s: %s", i, x.Path, got)
		switch {
		case x.Path == "/server_info":
			var want, have any
			require.NoError(t, json.Unmarshal([]byte(x.Answer), &want))
			require.NoError(t, json.Unmarshal([]byte(got), &have))
			require.Equal(t, want, only(want, have), i)
		case strings.HasPrefix(x.Path, "/v1/loads"):
			require.Equal(t, masked(x.Answer), masked(simulatedMember.ReplaceAllString(got, "")), i)
			require.Equal(t, ranksOf(x.Answer), ranksOf(got), i)
		case x.Path == "/generate" && status == 200:
			require.Equal(t, x.Answer, ranksOf(got), "%d %s", i, x.Body)
		case x.Path == "/update_weights_from_disk":
			require.Equal(t, loader.ReplaceAllString(x.Answer, "no"), loader.ReplaceAllString(got, "no"), i)
		default:
			require.Equal(t, x.Answer, got, "%d %s", i, x.Path)
		}
	}

	_, page := c.do("GET", "/metrics", "")
	byRank, ofFront := strings.Fields(recording.ByRank), strings.Fields(recording.OfFront)
	seen := map[string]map[string]bool{}
	for l := range strings.Lines(page) {
		if m := regexp.MustCompile(`^sglang:([a-z0-9_]+?)(?:_bucket|_sum|_count)?(?:\{.*\})? `).FindStringSubmatch(l); m != nil {
			if seen[m[1]] == nil {
				seen[m[1]] = map[string]bool{}
			}
			rank := regexp.MustCompile(`dp_rank="(\d)"`).FindStringSubmatch(l)
			seen[m[1]][strings.Join(rank, "")] = true
		}
	}
	for name, ranks := range seen {
		switch {
		case slices.Contains(byRank, name):
			require.Equal(t, []string{`dp_rank="0"0`, `dp_rank="1"1`}, slices.Sorted(maps.Keys(ranks)), name)
		case slices.Contains(ofFront, name):
			require.Equal(t, map[string]bool{"": true}, ranks, name)
		}
	}
	m := parseMetrics(t, page)
	require.Equal(t, 40000.0, total(m, "max_total_num_tokens"))
	require.Equal(t, total(m, "num_requests_total"), total(m, "queue_time_seconds_count", `dp_rank="0"`)+total(m, "queue_time_seconds_count", `dp_rank="1"`)-2, "two health checks were scheduled, too")
}

// A ranksWatch collects the sizes of decode batches by rank.
type ranksWatch struct {
	mu    sync.Mutex
	most  [2]int
	full  chan struct{} // closed when both ranks decode so many
	limit int
}

func (w *ranksWatch) expect(limit int) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.most, w.limit, w.full = [2]int{}, limit, make(chan struct{})
	return w.full
}

func (w *ranksWatch) Batch(b Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := min(w.most[0], w.most[1])
	if b.Kind == DecodeStep {
		w.most[b.Rank] = max(w.most[b.Rank], b.Requests)
	}
	if w.full != nil && before < w.limit && min(w.most[0], w.most[1]) >= w.limit {
		close(w.full)
	}
}

func (*ranksWatch) Result(Result)         {}
func (*ranksWatch) Retraction(Retraction) {}

func (*ranksWatch) Lost(Loss) {}

// Each rank runs as many requests as the limit says, and obeys a new one.
func TestRanksRunTwiceTheLimit(t *testing.T) {
	w := new(ranksWatch)
	s, c := start(t, slow(), server.Config{DPSize: 2, MaxRunningRequests: 3, Args: server.Args{"load_snapshot_publish_interval": 1}}, WithObserver(w))
	for _, limit := range []string{"3", "2", "1"} {
		n := int(limit[0] - '0')
		status, body := c.post("/set_internal_state", `{"server_args":{"pp_max_micro_batch_size":`+limit+`}}`)
		require.Equal(t, 200, status)
		require.Equal(t, "[true,true]", body)
		full := w.expect(n)
		var requests sync.WaitGroup
		for range 10 {
			requests.Go(func() {
				c.post("/generate", `{"input_ids":[1],"sampling_params":{"max_new_tokens":100000,"ignore_eos":true}}`)
			})
		}
		<-full
		require.NoError(t, s.waitInFlight(t.Context(), func(n int) bool { return n == 10 }))
		_, body = c.do("GET", "/server_info", "")
		require.Equal(t, 2, strings.Count(body, `"pp_max_micro_batch_size":`+limit))
		c.post("/abort_request", `{"abort_all":true}`)
		requests.Wait()
		awaitIdle(s)
		w.mu.Lock()
		most := w.most
		w.mu.Unlock()
		require.Equal(t, [2]int{n, n}, most)
	}
}

// A request that names its rank goes there, and each control reaches both ranks.
func TestControlsReachAllRanks(t *testing.T) {
	s, c := start(t, slow(), server.Config{DPSize: 2})
	begin := func(rank string) (end func() string) {
		resp := c.open(t.Context(), "POST", "/generate", `{"input_ids":[1,2],"stream":true,"routed_dp_rank":`+rank+`,"sampling_params":{"max_new_tokens":100000,"ignore_eos":true}}`)
		r := bufio.NewReader(resp.Body)
		require.Equal(t, rank, ranksOf(line(t, r)))
		return func() string {
			defer resp.Body.Close()
			b, err := io.ReadAll(r)
			require.NoError(t, err)
			return string(b)
		}
	}
	flush := func() int { status, _ := c.post("/flush_cache", ""); return status }

	zero := begin("0")
	require.Equal(t, 200, flush(), "the idle rank answers first")
	one := begin("1")
	require.Equal(t, 400, flush())
	_, loads := c.do("GET", "/v1/loads?include=core", "")
	require.Equal(t, "0 1", ranksOf(loads))
	require.Equal(t, 2, strings.Count(loads, `"num_running_reqs":1`))

	status, _ := c.post("/pause_generation", `{"mode":"retract"}`)
	require.Equal(t, 200, status)
	of := func(what func(r *rank) int) (all []int) {
		s.host.mu.Lock()
		defer s.host.mu.Unlock()
		for _, r := range s.host.ranks {
			all = append(all, what(r))
		}
		return all
	}
	require.Equal(t, []int{1, 1}, of(func(r *rank) int { return r.loop.Engine.State().Waiting }))
	require.Equal(t, []int{0, 0}, of(func(r *rank) int { return len(r.planned) }))
	require.Equal(t, 200, flush())
	c.post("/continue_generation", `{}`)
	c.post("/slow_down", `{"forward_sleep_time":0.001}`)
	require.Equal(t, []int{1e6, 1e6}, of(func(r *rank) int { return int(r.loop.slow) }))
	c.post("/abort_request", `{"abort_all":true}`)
	for _, end := range []func() string{zero, one} {
		list := events(end())
		require.Contains(t, list[len(list)-2], `"finish_reason":{"type":"abort"`)
	}

	// The header of the OpenAI endpoints, and one rank where it was always so.
	resp := c.ask(t.Context(), "POST", "/v1/completions", `{"model":"m","prompt":"x","max_tokens":1,"routed_dp_rank":0}`, "X-Data-Parallel-Rank", "2")
	require.Contains(t, resp.line, " 400 ")
	require.Contains(t, resp.body, `routed_dp_rank=2 out of range [0, 2)`)
	_, c = start(t, quick(), server.Config{})
	_, body := c.post("/generate", `{"input_ids":[1],"routed_dp_rank":0,"sampling_params":{"max_new_tokens":1}}`)
	require.Equal(t, "null", ranksOf(body))
	_, body = c.post("/generate", `{"input_ids":[1],"routed_dp_rank":1,"sampling_params":{"max_new_tokens":1}}`)
	require.Contains(t, body, `routed_dp_rank=1 out of range [0, 1)`)
}

func TestOlderVersionsTellOfRanks(t *testing.T) {
	_, c := start(t, quick(), server.Config{DPSize: 3}, WithVersion("0.5.18"))
	_, body := c.do("GET", "/get_load", "")
	require.Equal(t, "0 1 2", ranksOf(body))
	for _, want := range []string{"0", "2", "0"} { // before 0.5.23 a health check takes its turn
		_, body = c.post("/generate", `{"input_ids":[1],"sampling_params":{"max_new_tokens":1}}`)
		require.Equal(t, want, ranksOf(body))
		if want == "0" {
			c.do("GET", "/health_generate", "")
		}
	}
}

// The controller believes what it has sent until it reads the snapshots anew, at most every 20 ms.
func TestLeastLoadedRank(t *testing.T) {
	newRanks := func(method string) *host {
		p := quick()
		h, err := newHost(p, p.EngineConfig(), 3)
		require.NoError(t, err)
		opts := defaultOptions()
		h.observe(&opts, "m")
		h.start = time.Unix(1000, 0)
		h.balancer.method = method
		for k, r := range h.ranks {
			r.loop.idle = false // or the snapshot would be made anew
			r.loads.snapshot = loadSnapshot{rank: k, at: h.start.Add(time.Second), running: 2 - k, waiting: 1, total: 100}
		}
		return h
	}
	picks := func(h *host, at time.Duration, tokens ...int) (out []int) {
		for _, n := range tokens {
			out = append(out, h.route(&stream{promptTokens: n}, at).index)
		}
		return out
	}
	h := newRanks(totalRequests)
	require.Equal(t, []int{2, 1, 2, 0}, picks(h, 0, 1, 1, 1, 1), "3, 2 and 1 requests, and what was sent")
	require.Equal(t, []int{1}, picks(h, 25*ms, 1), "the snapshots are those that were read")
	h.ranks[0].loads.snapshot = loadSnapshot{at: h.start.Add(2 * time.Second)}
	require.Equal(t, []int{2, 0}, picks(h, 40*ms, 1, 1), "too early to read them again")
	require.Equal(t, []int{0, 0, 0, 0, 0, 1}, picks(h, 45*ms, 1, 1, 1, 1, 1, 1))

	h = newRanks(totalTokens)
	require.Equal(t, []int{2, 1, 0, 0}, picks(h, 0, 50, 10, 5, 1), "of equal tokens the fewest requests")
	one := 1
	require.Equal(t, 1, h.route(&stream{routed: &one}, 0).index)
	require.Equal(t, []int{0, 1, 2, 0}, func() (out []int) {
		for range 4 {
			out = append(out, h.route(&stream{health: true}, 0).index)
		}
		return out
	}())
}

// Without data-parallel attention all ranks count evictions in one series (metrics_collector.py, radix_cache_metric_labels).
func TestEvictionsOfAllRanksAreOneSeries(t *testing.T) {
	s, c := start(t, quick(), server.Config{DPSize: 2, MaxTotalTokens: 200, EnableMetrics: true})
	for i := range 6 { // the ranks take turns
		prompt := strings.TrimSuffix(strings.Repeat(strconv.Itoa(100+i)+",", 90), ",")
		status, body := c.post("/generate", `{"input_ids":[`+prompt+`],"sampling_params":{"max_new_tokens":10,"ignore_eos":true}}`)
		require.Equal(t, 200, status, body)
	}
	awaitIdle(s)
	_, page := c.do("GET", "/metrics", "")
	passes, tokens := 0, 0
	s.host.mu.Lock()
	for _, r := range s.host.ranks {
		require.Positive(t, r.loop.Engine.evicted)
		passes += r.loop.Engine.evictions
		tokens += r.loop.Engine.evicted
	}
	s.host.mu.Unlock()
	for _, m := range parseMetrics(t, page) {
		if m.name == "evicted_tokens_total" {
			require.Equal(t, map[string]float64{`evicted_tokens_total{cache_type="UnifiedRadixCache",dp_rank="0",pp_rank="0",tp_rank="0"}`: float64(tokens)}, m.values)
		}
	}
	require.EqualValues(t, tokens, total(parseMetrics(t, page), "evicted_tokens_total"))
	require.EqualValues(t, passes, total(parseMetrics(t, page), "eviction_duration_seconds_count"))
}

// A health check does nothing at a rank that is busy, and wakes an idle one.
func TestHealthOfBusyRanks(t *testing.T) {
	s, c := start(t, slow(), server.Config{DPSize: 2})
	resp := c.open(t.Context(), "POST", "/generate", `{"input_ids":[1,2],"stream":true,"sampling_params":{"max_new_tokens":100000,"ignore_eos":true}}`)
	defer resp.Body.Close()
	_, err := io.ReadFull(resp.Body, make([]byte, 6))
	require.NoError(t, err)
	for range 2 {
		status, _ := c.do("GET", "/health", "")
		require.Equal(t, 200, status)
	}
	require.Len(t, s.InFlight(), 1)
	s.host.mu.Lock()
	steps := s.host.ranks[1].loop.Steps()
	s.host.mu.Unlock()
	require.Positive(t, steps)
}

func TestRanksAreInTheLabel(t *testing.T) {
	_, c := start(t, quick(), server.Config{DPSize: 2, MaxRunningRequests: 8})
	simulated := info(t, c)["simulated"].(map[string]any)
	const changes = "dp_size 2 (profile: 1; a separate GPU like the profile's for each rank) and max_running_requests 8 (profile: 256)"
	require.Equal(t, "quick with "+changes, simulated["profile"])
	require.Contains(t, simulated["known_error"], "not measured with "+changes)
	require.Contains(t, simulated["calibrated"], "not calibrated with "+changes)

	_, err := NewServer(quick(), server.Config{DPSize: 2, Args: server.Args{"load_balance_method": "follow_bootstrap_room"}})
	require.ErrorContains(t, err, "load_balance_method follow_bootstrap_room cannot be simulated: want one of auto, round_robin, total_requests, total_tokens")
	_, c = start(t, quick(), server.Config{DPSize: 2, Args: server.Args{"load_balance_method": "auto"}})
	require.Equal(t, "round_robin", info(t, c)["load_balance_method"])
}
