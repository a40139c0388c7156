package sim

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/server"
)

// Each argument of the scheduler sets its part of the engine's configuration, and nothing else.
func TestArgumentsReachTheEngine(t *testing.T) {
	seed := 7
	for name, tc := range map[string]struct {
		cfg  server.Config
		want func(*EngineConfig)
	}{
		"nothing":                   {server.Config{}, func(*EngineConfig) {}},
		"defaults":                  {server.Config{TPSize: 1, SchedulePolicy: "fcfs", Args: server.Args{"num_continuous_decode_steps": 1}}, func(*EngineConfig) {}},
		"max_running_requests":      {server.Config{MaxRunningRequests: 8}, func(c *EngineConfig) { c.MaxRunningRequests = 8 }},
		"max_total_tokens":          {server.Config{MaxTotalTokens: 5000}, func(c *EngineConfig) { c.MaxTotalTokens = 5000 }},
		"max_queued_requests":       {server.Config{MaxQueuedRequests: 3}, func(c *EngineConfig) { c.MaxQueuedRequests = 3 }},
		"context_length":            {server.Config{ContextLength: 4096}, func(c *EngineConfig) { c.ContextLength = 4096 }},
		"chunked_prefill_size":      {server.Config{ChunkedPrefillSize: 512}, func(c *EngineConfig) { c.ChunkedPrefillSize = 512 }},
		"no chunks":                 {server.Config{ChunkedPrefillSize: -1}, func(c *EngineConfig) { c.ChunkedPrefillSize = -1 }},
		"max_prefill_tokens":        {server.Config{MaxPrefillTokens: 1000}, func(c *EngineConfig) { c.MaxPrefillTokens = 1000 }},
		"schedule_conservativeness": {server.Config{ScheduleConservativeness: 0.3}, func(c *EngineConfig) { c.ScheduleConservativeness = 0.3 }},
		"schedule_policy":           {server.Config{SchedulePolicy: "lpm"}, func(c *EngineConfig) { c.SchedulePolicy = LPM }},
		"random_seed":               {server.Config{SchedulePolicy: "random", RandomSeed: &seed}, func(c *EngineConfig) { c.SchedulePolicy, c.Seed = Random, 7 }},
		"disable_radix_cache":       {server.Config{DisableRadixCache: true}, func(c *EngineConfig) { c.DisableRadixCache = true }},
		"page_size":                 {server.Config{Args: server.Args{"page_size": 16}}, func(c *EngineConfig) { c.PageSize = 16 }},
		"page_size from JSON":       {server.Config{Args: server.Args{"page_size": 16.0}}, func(c *EngineConfig) { c.PageSize = 16 }},
		"radix_eviction_policy":     {server.Config{Args: server.Args{"radix_eviction_policy": "slru"}}, func(c *EngineConfig) { c.EvictionPolicy = EvictSLRU }},
		"enable_mixed_chunk":        {server.Config{Args: server.Args{"enable_mixed_chunk": true}}, func(c *EngineConfig) { c.EnableMixedChunk = true }},
		"disable_overlap_schedule":  {server.Config{Args: server.Args{"disable_overlap_schedule": true}}, func(c *EngineConfig) { c.DisableOverlap = true }},
		"prefill_max_requests":      {server.Config{Args: server.Args{"prefill_max_requests": 4}}, func(c *EngineConfig) { c.PrefillMaxRequests = 4 }},
		"pp_max_micro_batch_size":   {server.Config{Args: server.Args{"pp_max_micro_batch_size": 4}}, func(c *EngineConfig) { c.MaxMicroBatch = 4 }},
		"prefill_decode_interval": {server.Config{Args: server.Args{"prefill_decode_interval": 5, "prefill_decode_interval_min_bs": 2}},
			func(c *EngineConfig) { c.PrefillDecodeInterval, c.PrefillDecodeIntervalMinBS = 5, 2 }},
		"priorities": {server.Config{SchedulePolicy: "lof", Args: server.Args{"enable_priority_scheduling": true, "schedule_low_priority_values_first": true,
			"priority_scheduling_preemption_threshold": 0, "disable_priority_preemption": true, "retraction_policy": "priority"}}, func(c *EngineConfig) {
			c.SchedulePolicy, c.EnablePriorityScheduling, c.LowPriorityValuesFirst, c.DisablePriorityPreemption, c.RetractByPriority = LOF, true, true, true, true
			c.PreemptionThreshold = 0
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := NewServer(quick(), tc.cfg)
			require.NoError(t, err)
			want := quick().EngineConfig()
			want.PageSize, want.SchedulePolicy, want.EvictionPolicy = 1, FCFS, EvictLRU
			tc.want(&want)
			want.MaxTotalTokens -= want.MaxTotalTokens % want.PageSize
			require.Equal(t, want, s.EngineConfig())
		})
	}
}

func TestArgumentsThatAreRefused(t *testing.T) {
	for _, tc := range []struct {
		version string
		cfg     server.Config
		want    []string
	}{
		{"0.5.23", server.Config{Quantization: "fp8", TPSize: 2, LogLevel: "debug", Args: server.Args{"enable_dp_attention": true, "page_size": 0, "max_runing_requests": 1}}, []string{
			"sim: enable_dp_attention cannot be simulated: the simulated engine does not have it",
			"sim: log_level cannot be simulated: a server in this process writes no log",
			`sim: max_runing_requests: SGLang has no such argument; did you mean "max_running_requests"?`,
			"sim: page_size is 0: want at least 1",
			"sim: quantization cannot be simulated: step times come from the profile; choose a profile of the quantized model",
			"sim: tp_size cannot be simulated: an engine has the profile's GPU alone"}},
		{"0.5.23", server.Config{SchedulePolicy: "routing-key", Args: server.Args{"radix_eviction_policy": "tlru"}}, []string{
			"sim: radix_eviction_policy tlru cannot be simulated: want one of lru, lfu, slru, priority",
			"sim: schedule_policy routing-key cannot be simulated: want one of fcfs, lpm,"}},
		{"0.5.23", server.Config{SchedulePolicy: "lmp", Args: server.Args{"page_size": "16"}}, []string{
			`sim: page_size: "16"; want a whole number`, `sim: schedule_policy: "lmp" is not one that SGLang 0.5.23 takes; did you mean "lpm"?`}},
		{"0.5.23", server.Config{SchedulePolicy: "lpm", Args: server.Args{"enable_priority_scheduling": true}}, []string{"enable_priority_scheduling needs schedule_policy fcfs or lof"}},
		{"0.5.23", server.Config{Args: server.Args{"retraction_policy": "priority"}}, []string{"retraction_policy priority needs enable_priority_scheduling"}},
		{"0.5.23", server.Config{MaxRunningRequests: 4, Args: server.Args{"pp_max_micro_batch_size": 5}}, []string{"pp_max_micro_batch_size is 5: want at most max_running_requests, 4"}},
		{"0.5.23", server.Config{ChunkedPrefillSize: 100, Args: server.Args{"page_size": 16}}, []string{"chunked_prefill_size is 100: want a multiple of page_size, 16"}},
		{"0.5.19", server.Config{SchedulePolicy: "hrrn", Args: server.Args{"prefill_decode_interval": 3}}, []string{
			"sim: prefill_decode_interval: SGLang 0.5.18 does not have it: known from 0.5.21 on", `sim: schedule_policy: "hrrn" is not one that SGLang 0.5.18 takes`}},
		{"0.5.21", server.Config{Args: server.Args{"prefill_decode_interval_min_bs": 3}}, []string{"SGLang 0.5.21 does not have it: known from 0.5.23 on"}},
		{"0.5.15.post1", server.Config{Args: server.Args{"retraction_policy": "length"}}, []string{"does not have it: known from 0.5.18 on"}},
	} {
		_, err := NewServer(quick(), tc.cfg, WithVersion(tc.version))
		for _, want := range tc.want {
			require.ErrorContains(t, err, want)
		}
		require.Len(t, strings.Split(err.Error(), "\n"), len(tc.want), err)
	}
}

// Every honoured argument takes each of its values in each version that has it, and every field of a config is in the table.
func TestArgumentTableIsWhole(t *testing.T) {
	names := map[string]bool{}
	for _, a := range arguments {
		require.False(t, names[a.Name], "%s is there twice", a.Name)
		names[a.Name] = true
		_, err := sglargs.Latest().Find(a.Name)
		require.NoError(t, err)
		for _, table := range sglargs.Tables() {
			arg, err := table.Find(a.Name)
			if err != nil || a.to == nil {
				continue
			}
			values := arg.Choices
			if values == nil {
				values = []any{map[sglargs.Kind]any{sglargs.Bool: true, sglargs.Int: 8, sglargs.HumanInt: 64, sglargs.Float: 0.5, sglargs.String: "x", sglargs.NullableStr: "x"}[arg.Kind]}
			}
			for _, v := range values {
				if a.Simulates(v) {
					s := defaultOptions().settings
					require.NoError(t, s.apply(table.Version(), server.Config{Args: server.Args{a.Name: v}}))
					require.Equal(t, map[string]any{a.Name: v}, s.given)
				}
			}
		}
	}
	for i := range reflect.TypeFor[server.Config]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[server.Config]().Field(i).Tag.Get("json"), ",")
		require.True(t, names[name] || name == "args" || name == "gpus", name)
	}
	require.Less(t, len(Arguments()), len(arguments))
}

func TestArgumentsAreShown(t *testing.T) {
	_, c := start(t, quick(), server.Config{SchedulePolicy: "lof", ScheduleConservativeness: 2, MaxRunningRequests: 8, AdminAPIKey: "secret",
		Args: server.Args{"page_size": 16, "pp_max_micro_batch_size": 3, "enable_priority_scheduling": true, "weight_version": "w"}})
	_, body := c.do("GET", "/server_info", "")
	require.NotContains(t, body, "secret")
	require.Contains(t, body, `"schedule_conservativeness":2.0,`)
	m := info(t, c)
	for name, want := range map[string]any{"schedule_policy": "lof", "page_size": 16.0, "pp_max_micro_batch_size": 3.0, "enable_priority_scheduling": true, "weight_version": "w",
		"max_running_requests": 8.0, "max_queued_requests": nil, "radix_eviction_policy": "lru", "enable_metrics": false, "admin_api_key": nil} {
		require.Equal(t, want, m[name], name)
	}
	require.Equal(t, 3.0, m["internal_states"].([]any)[0].(map[string]any)["pp_max_micro_batch_size"])
}

// firsts notes the requests in the order of their first results.
type firsts struct {
	mu    sync.Mutex
	order []string
}

func (f *firsts) Batch(Batch) {}

func (f *firsts) Retraction(Retraction) {}

func (f *firsts) Lost(Loss) {}

func (f *firsts) Result(r Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Previous.IsZero() {
		f.order = append(f.order, r.RID)
	}
}

// scheduled has a server with one place queue the requests, one after the other, and returns the order in which they ran.
func scheduled(t *testing.T, cfg server.Config, requests ...string) []string {
	cfg.MaxRunningRequests = 1
	f := &firsts{}
	s, c := start(t, quick(), cfg, WithObserver(f))
	_, body := c.post("/generate", `{"input_ids":[1,2,3,4,5,6,7,8],"rid":"before","sampling_params":{"max_new_tokens":1}}`)
	require.Contains(t, body, `"finish_reason"`)
	c.post("/pause_generation", `{"mode":"in_place"}`)
	var wg sync.WaitGroup
	for i, r := range requests {
		wg.Go(func() { c.post("/generate", r) })
		require.NoError(t, s.waitInFlight(t.Context(), func(n int) bool { return n > i }))
	}
	c.post("/continue_generation", `{}`)
	wg.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.order[1:]
}

func TestQueueOrder(t *testing.T) {
	with := func(policy string, args server.Args) server.Config {
		return server.Config{SchedulePolicy: policy, Args: args}
	}
	request := func(rid, ids string, tokens int, more string) string {
		return fmt.Sprintf(`{"rid":%q,"input_ids":[%s],"sampling_params":{"max_new_tokens":%d}%s}`, rid, ids, tokens, more)
	}
	plain := []string{request("a", "9,9,9,9", 2, ""), request("b", "1,2,3,9", 3, ""), request("c", "1,2,3,4,5,6,7,8,9", 4, "")}
	ranked := []string{request("a", "9", 2, ""), request("b", "8", 2, `,"priority":-5`), request("c", "7", 2, `,"priority":7`)}
	on := func(args server.Args) server.Args { args["enable_priority_scheduling"] = true; return args }
	for _, tc := range []struct {
		name     string
		cfg      server.Config
		requests []string
		want     string
	}{
		{"arrival", with("", nil), plain, "abc"},
		{"longest prefix", with("lpm", nil), plain, "cba"},
		{"no prefixes", server.Config{SchedulePolicy: "lpm", DisableRadixCache: true}, plain, "abc"},
		{"no whole page in common", with("lpm", server.Args{"page_size": 16}), plain, "abc"},
		{"longest output", with("lof", nil), plain, "cba"},
		{"priorities that are off", with("", nil), ranked, "abc"},
		{"high first, none last", with("", on(server.Args{})), ranked, "cba"},
		{"low first, none last", with("", on(server.Args{"schedule_low_priority_values_first": true})), ranked, "bca"},
		{"a default", with("", on(server.Args{"default_priority_value": 8})), ranked, "acb"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tc.want, strings.Join(scheduled(t, tc.cfg, tc.requests...), ""))
		})
	}
}

func TestPriorityPreempts(t *testing.T) {
	for _, tc := range []struct {
		name      string
		args      server.Args
		preempted int
	}{
		{"by more than the threshold", server.Args{}, 1},
		{"not by as much", server.Args{"priority_scheduling_preemption_threshold": 20}, 0},
		{"not if disabled", server.Args{"disable_priority_preemption": true}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.args["enable_priority_scheduling"] = true
			w := newTokensOf()
			_, c := start(t, slow(), server.Config{MaxRunningRequests: 1, Args: tc.args}, WithObserver(w))
			low := make(chan string)
			go func() {
				_, body := c.post("/generate", `{"text":"x","rid":"low","priority":1,"sampling_params":{"max_new_tokens":20}}`)
				low <- body
			}()
			w.wait("low", 1)
			c.post("/generate", `{"text":"y","priority":21,"sampling_params":{"max_new_tokens":2}}`)
			require.Contains(t, <-low, fmt.Sprintf(`"num_retractions":%d`, tc.preempted))
		})
	}
}

func TestPriorityOfNobodysUse(t *testing.T) {
	const message = "Using priority is disabled for this server. Please send a new request without a priority."
	_, c := start(t, quick(), server.Config{Args: server.Args{"abort_on_priority_when_disabled": true}})
	for path, body := range map[string]string{"/generate": `{"text":"x","priority":%s}`, "/v1/completions": `{"prompt":"x","max_tokens":1,"priority":%s}`,
		"/v1/chat/completions": `{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"priority":%s}`} {
		status, _ := c.post(path, fmt.Sprintf(body, "null"))
		require.Equal(t, 200, status, path)
		status, answer := c.post(path, fmt.Sprintf(body, "0"))
		require.Equal(t, 503, status, path)
		require.JSONEq(t, `{"object":"error","message":"`+message+`","type":"503","param":null,"code":503}`, answer)
	}
	_, body := c.post("/generate", `{"text":"x","priority":3,"stream":true}`)
	require.Len(t, events(body), 2)
	require.Contains(t, body, `"finish_reason":{"type":"abort","message":"`+message+`","status_code":503,"err_type":null}`)

	_, c = start(t, quick(), server.Config{})
	for _, priority := range []string{"3", "9e18"} {
		status, body := c.post("/generate", `{"text":"x","priority":`+priority+`,"sampling_params":{"max_new_tokens":1}}`)
		require.Equal(t, 200, status, body)
	}
}

func TestPrefixCacheByPages(t *testing.T) {
	ids, err := json.Marshal(slices.Repeat([]int{5}, 40))
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		cfg  server.Config
		want int
	}{
		"tokens": {server.Config{}, 39}, "pages": {server.Config{Args: server.Args{"page_size": 16}}, 32}, "off": {server.Config{DisableRadixCache: true}, 0},
	} {
		_, c := start(t, quick(), tc.cfg)
		var body string
		for range 2 {
			_, body = c.post("/generate", fmt.Sprintf(`{"input_ids":%s,"sampling_params":{"max_new_tokens":1}}`, ids))
		}
		require.Contains(t, body, fmt.Sprintf(`"cached_tokens":%d,`, tc.want), name)
	}
}

// What a profile says of its error holds for its own configuration.
func TestLabelNamesOtherSettings(t *testing.T) {
	label := func(cfg server.Config) [3]string {
		s, err := NewServer(quick(), cfg)
		require.NoError(t, err)
		l := s.Simulation()
		return [3]string{l.Profile, l.Calibrated, l.KnownError}
	}
	seed := 3
	require.Equal(t, [3]string{"quick", "nothing", "not measured"}, label(server.Config{SchedulePolicy: "fcfs", EnableMetrics: true, RandomSeed: &seed}))
	const changes = "page_size 4 (profile: 1), other scheduler settings"
	require.Equal(t, [3]string{"quick with " + changes, "not calibrated with " + changes + "; the profile as it is: nothing",
		"not measured with " + changes + "; the profile as it is: not measured"}, label(server.Config{SchedulePolicy: "lpm", Args: server.Args{"page_size": 4}}))
}

func TestInitialLimit(t *testing.T) {
	e, err := NewEngine(EngineConfig{MaxTotalTokens: 1000, ContextLength: 100, MaxRunningRequests: 8, MaxMicroBatch: 2, MaxPrefillTokens: 100, ScheduleConservativeness: 1})
	require.NoError(t, err)
	for range 3 {
		e.Add(&Request{InputLen: 4, MaxNewTokens: 4})
	}
	require.Len(t, e.Plan().Rows, 2)
	require.True(t, e.SetLimit(8))
}
