package sim

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
)

// The families, their order within a group, labels and texts are those of a real 0.5.23 with --enable-priority-scheduling that retracted and evicted.
func TestMetricsWithPrioritiesAreThoseOfARealServer(t *testing.T) {
	b, err := os.ReadFile("testdata/metrics-priority-0.5.23.tsv")
	require.NoError(t, err)
	cfg := testBatchConfig
	cfg.EnablePriorityScheduling = true
	m := usedMeterOf(23, cfg)
	m.batch(&Batch{Kind: DecodeStep, Retracted: 1, State: State{MaxTotalTokens: 20000}, runningBy: map[int]int{5: 1}})
	m.evictions(18, 1535)
	var got, want []string
	for _, e := range parseMetrics(t, string(m.page())) {
		got = append(got, strings.Join([]string{e.name, e.kind, strings.Join(e.labels, ","), e.help}, "\t"))
	}
	for l := range strings.Lines(string(b)) {
		if name, _, _ := strings.Cut(l, "\t"); notSimulated[name] == "" {
			want = append(want, strings.TrimSuffix(l, "\n"))
		}
	}
	// Nobody had aborted, asked for loads or used the cache in the real one.
	got = slices.DeleteFunc(got, func(l string) bool {
		return strings.HasPrefix(l, "cached_tokens_total") || strings.HasPrefix(l, "num_aborted") || strings.HasPrefix(l, "get_loads")
	})
	group := map[string]byte{}
	for _, f := range families() {
		group[f.name] = f.group
	}
	groupOf := func(l string) int { name, _, _ := strings.Cut(l, "\t"); return int(group[name]) }
	for _, all := range [][]string{got, want} {
		slices.SortStableFunc(all, func(a, b string) int { return groupOf(a) - groupOf(b) })
	}
	require.Equal(t, want, got)
}

// With --enable-priority-scheduling totals have an empty priority, queues are told by priority besides, and what the front process
// counts has the priority of the request (metrics_collector.py, _log_gauge_queue_count; tokenizer_manager.py, collect_metrics).
func TestPrioritiesAreToldApart(t *testing.T) {
	w := newTokensOf()
	s, c := start(t, slow(), server.Config{EnableMetrics: true, MaxRunningRequests: 1, Args: server.Args{"enable_priority_scheduling": true,
		"disable_priority_preemption": true, "decode_log_interval": 1}}, WithObserver(w))
	ask := func(rid, more string, tokens int) *http.Response {
		return c.open(t.Context(), "POST", "/generate", fmt.Sprintf(`{"text":"x","rid":%q,"stream":true%s,"sampling_params":{"max_new_tokens":%d,"ignore_eos":true}}`, rid, more, tokens))
	}
	page := func() []exposed {
		_, body := c.do("GET", "/metrics", "")
		return parseMetrics(t, body)
	}
	first := ask("a", `,"priority":5`, 60)
	line(t, bufio.NewReader(first.Body))
	rest := []*http.Response{ask("b", `,"priority":5`, 2), ask("c", "", 3)}
	w.more("a", 4)
	m := page()
	require.Equal(t, 2.0, total(m, "num_queue_reqs", `priority=""`))
	for _, e := range m {
		for series := range e.values {
			if !strings.HasPrefix(e.name, "http_") && e.name != "routing_keys_active" {
				require.Contains(t, series, `priority="`)
			}
		}
	}
	require.Equal(t, 1.0, total(m, "num_running_reqs", `priority=""`))
	require.Equal(t, 1.0, total(m, "num_running_reqs", `priority="5"`))
	require.Equal(t, 1.0, total(m, "num_queue_reqs", `priority="5"`))
	require.Equal(t, 1.0, total(m, "num_queue_reqs", `priority="-9223372036854775808"`), "what the scheduler makes of none")
	for _, r := range append(rest, first) {
		_, err := io.Copy(io.Discard, r.Body)
		require.NoError(t, err)
		r.Body.Close()
	}
	awaitIdle(s)
	m = page()
	require.Equal(t, 62.0, total(m, "generation_tokens_total", `priority="5"`))
	require.Equal(t, 3.0, total(m, "generation_tokens_total", `priority=""`), "the front process sees none")
	require.Equal(t, 60.0, total(m, "inter_token_latency_seconds_count", `priority="5"`))
	require.Equal(t, 2.0, total(m, "inter_token_latency_seconds_count", `priority=""`))
	require.Equal(t, 2.0, total(m, "time_to_first_token_seconds_count", `priority="5"`))
	require.Equal(t, 3.0, total(m, "queue_time_seconds_count", `priority=""`))
	require.Zero(t, total(m, "num_running_reqs", `priority="5"`))

	s, c = start(t, quick(), server.Config{EnableMetrics: true, Args: server.Args{"enable_priority_scheduling": true, "default_priority_value": 3}})
	c.post("/generate", `{"text":"x","sampling_params":{"max_new_tokens":2}}`)
	awaitIdle(s)
	m = page()
	require.Equal(t, 1.0, total(m, "num_requests_total", `priority="3"`))
	for _, e := range m {
		if e.name == "num_running_reqs" {
			require.Len(t, e.values, 1, "as in the real one: when it was planned nothing ran, and nothing was reported later")
		}
	}

	meter := newMeter(23, 40, "m", EngineConfig{MaxTotalTokens: 1, PageSize: 1, EnablePriorityScheduling: true}, time.Now())
	for p := range 2 * mostPriorities {
		meter.queueCount("num_queue_reqs", 1, map[int]int{p: 1})
	}
	require.Len(t, meter.series["num_queue_reqs"], mostPriorities+2)
}

// crowded is an engine at its limit of two, whose better request and a third, as good, do not fit into the pool together.
func crowded() (EngineConfig, []*Request) {
	cfg := EngineConfig{MaxTotalTokens: 1000, ContextLength: 10_000, MaxRunningRequests: 2, MaxPrefillTokens: 1000, ScheduleConservativeness: 1,
		EnablePriorityScheduling: true, PreemptionThreshold: DefaultPreemptionThreshold}
	return cfg, []*Request{{RID: "a", InputLen: 100, MaxNewTokens: 50}, {RID: "b", InputLen: 400, MaxNewTokens: 20, Priority: 100},
		{RID: "c", InputLen: 580, MaxNewTokens: 5, Priority: 100}}
}

// Before 0.5.23 a request that was preempted in vain is lost (schedule_policy.py, preempt_to_schedule; scheduler.py,
// _get_new_batch_prefill_raw).
func TestPreemptedInVain(t *testing.T) {
	for rules := Rules0523; rules <= Rules0515; rules++ {
		for _, keep := range []bool{false, true} {
			cfg, reqs := crowded()
			cfg.Rules, cfg.KeepPreempted = rules, keep
			e, err := NewEngine(cfg)
			require.NoError(t, err)
			l := NewLoop(e, constant())
			ended := map[string]bool{}
			for i := 0; ; {
				at, busy := l.Next()
				if i < len(reqs) && (!busy || at >= time.Duration(i)*30*ms) {
					l.Add(at, reqs[i])
					i++
					continue
				}
				if !busy {
					break
				}
				for _, o := range l.Advance() {
					if o.Finish != nil {
						ended[o.Request.RID] = true
					}
				}
			}
			lost := e.Lost()
			require.Equal(t, map[string]bool{"b": true, "c": true}, map[string]bool{"b": ended["b"], "c": ended["c"]})
			if rules.old() && !keep {
				require.Equal(t, reqs[:1], lost)
				require.True(t, reqs[0].Lost())
			} else {
				require.Empty(t, lost)
			}
			require.Equal(t, !reqs[0].Lost(), ended["a"], "rules %d", rules)
			require.Empty(t, e.Lost())
			e.Abort(reqs[0])
			require.True(t, e.FlushCache(), "the scheduler does not know the lost request")
		}
	}
}
