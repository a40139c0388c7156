package sim

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/server"
)

// settings are what the arguments of a server set.
type settings struct {
	given  map[string]any // by name, for /server_info
	engine EngineConfig

	weightVersion     string
	incremental       bool
	streamInterval    int
	metrics           bool
	cacheReport       bool
	apiKey, adminKey  string
	decodeLogInterval int
	loadInterval      int
	ranks             int    // data-parallel
	balance           string // load_balance_method, resolved
	defaultPriority   *int
	abortOnPriority   bool
}

// An Argument is one of SGLang's that a simulated server honours. Its values are those of the server's version of SGLang.
type Argument struct {
	Name string // as in SGLang, such as "schedule_policy"
	Note string // what its effect lacks of that in SGLang; empty: nothing

	to      func(*settings) any // the setting: a pointer to it, or a func(string); nil: NewServer reads the config itself
	least   int                 // of a number
	choices []string            // values that are simulated; nil: all
	why     string              // not honoured: the reason
}

// Simulates reports whether a value of the argument's type is simulated: of a few policies SGLang has more.
func (a Argument) Simulates(value any) bool {
	text, isText := value.(string)
	return !isText || a.choices == nil || slices.Contains(a.choices, text)
}

// Arguments returns all arguments of SGLang that a simulated server honours, in [NewServer] or as the command sglang-sim.
func Arguments() []Argument {
	return slices.DeleteFunc(slices.Clone(arguments), func(a Argument) bool { return a.why != "" })
}

// Reasons why an argument is not honoured.
const (
	byProfile = "step times come from the profile"
	oneGPU    = "an engine has the profile's GPU alone"
	noWeights = "no weights are loaded"
	noLog     = "a server in this process writes no log"
	notThere  = "the simulated engine does not have it"
)

// arguments says for each argument what it sets, or why it is not honoured; one that is not here is not honoured either.
// Since when SGLang has an argument and a choice is in package sglargs, which is asked first.
var arguments = []Argument{
	{Name: "model_path", Note: "only the profile's model is simulated"},
	{Name: "tokenizer_path", Note: "shown only"},
	{Name: "served_model_name"},
	{Name: "host"},
	{Name: "port", least: 1},
	{Name: "api_key", to: func(s *settings) any { return &s.apiKey }},
	{Name: "admin_api_key", to: func(s *settings) any { return &s.adminKey }},
	{Name: "weight_version", to: func(s *settings) any { return &s.weightVersion }},

	{Name: "max_running_requests", least: 1, to: func(s *settings) any { return &s.engine.MaxRunningRequests }},
	{Name: "max_total_tokens", least: 8, to: func(s *settings) any { return &s.engine.MaxTotalTokens }},
	{Name: "max_queued_requests", least: 1, to: func(s *settings) any { return &s.engine.MaxQueuedRequests }},
	{Name: "context_length", least: 8, to: func(s *settings) any { return &s.engine.ContextLength }},
	{Name: "chunked_prefill_size", least: -1, to: func(s *settings) any { return &s.engine.ChunkedPrefillSize }},
	{Name: "max_prefill_tokens", least: 1, to: func(s *settings) any { return &s.engine.MaxPrefillTokens }},
	{Name: "prefill_max_requests", least: 1, to: func(s *settings) any { return &s.engine.PrefillMaxRequests }},
	{Name: "prefill_decode_interval", to: func(s *settings) any { return &s.engine.PrefillDecodeInterval }},
	{Name: "prefill_decode_interval_min_bs", to: func(s *settings) any { return &s.engine.PrefillDecodeIntervalMinBS }},
	{Name: "pp_max_micro_batch_size", least: 1, Note: "at most max_running_requests", to: func(s *settings) any { return &s.engine.MaxMicroBatch }},
	{Name: "schedule_conservativeness", to: func(s *settings) any { return &s.engine.ScheduleConservativeness }},
	{Name: "schedule_policy", Note: "all but routing-key", choices: []string{string(FCFS), string(LPM), string(DFSWeight), string(LOF), string(Random), string(HRRN),
		string(ShortestPrefillFirst)}, to: func(s *settings) any { return &s.engine.SchedulePolicy }},
	{Name: "random_seed", Note: "of the schedule policy random, whose numbers are not SGLang's; without it, 0", to: func(s *settings) any { return &s.engine.Seed }},
	{Name: "enable_priority_scheduling", to: func(s *settings) any { return &s.engine.EnablePriorityScheduling }},
	{Name: "schedule_low_priority_values_first", to: func(s *settings) any { return &s.engine.LowPriorityValuesFirst }},
	{Name: "priority_scheduling_preemption_threshold", to: func(s *settings) any { return &s.engine.PreemptionThreshold }},
	{Name: "disable_priority_preemption", to: func(s *settings) any { return &s.engine.DisablePriorityPreemption }},
	{Name: "default_priority_value", least: math.MinInt, to: func(s *settings) any { return &s.defaultPriority }},
	{Name: "abort_on_priority_when_disabled", to: func(s *settings) any { return &s.abortOnPriority }},
	{Name: "retraction_policy", to: func(s *settings) any {
		return func(policy string) { s.engine.RetractByPriority = policy == "priority" }
	}},
	{Name: "page_size", least: 1, Note: "the same step times for all", to: func(s *settings) any { return &s.engine.PageSize }},
	{Name: "disable_radix_cache", to: func(s *settings) any { return &s.engine.DisableRadixCache }},
	{Name: "radix_eviction_policy", Note: "all but tlru", choices: []string{string(EvictLRU), string(EvictLFU), string(EvictSLRU), string(EvictPriority)},
		to: func(s *settings) any { return &s.engine.EvictionPolicy }},
	{Name: "enable_mixed_chunk", to: func(s *settings) any { return &s.engine.EnableMixedChunk }},
	{Name: "disable_overlap_schedule", Note: "the scheduler itself takes no time but for launching a prefill", to: func(s *settings) any { return &s.engine.DisableOverlap }},

	{Name: "dp_size", least: 1, Note: "engines of their own, each on a GPU like the profile's, behind one front process", to: func(s *settings) any { return &s.ranks }},
	{Name: "load_balance_method", Note: "all but follow_bootstrap_room", choices: []string{balanceAuto, roundRobin, totalRequests, totalTokens}, to: func(s *settings) any {
		return func(method string) {
			if s.balance = method; method == balanceAuto {
				s.balance = roundRobin
			}
		}
	}},

	{Name: "stream_interval", least: 1, to: func(s *settings) any { return &s.streamInterval }},
	{Name: "incremental_streaming_output", to: func(s *settings) any { return &s.incremental }},
	{Name: "enable_cache_report", to: func(s *settings) any { return &s.cacheReport }},
	{Name: "enable_metrics", Note: "without the CPU times of SGLang's processes; memory in GB and start-up times are 0", to: func(s *settings) any { return &s.metrics }},
	{Name: "decode_log_interval", least: 1, to: func(s *settings) any { return &s.decodeLogInterval }},
	{Name: "load_snapshot_publish_interval", least: 1, to: func(s *settings) any { return &s.loadInterval }},

	{Name: "quantization", why: byProfile + "; choose a profile of the quantized model"},
	{Name: "mem_fraction_static", why: "the KV pool comes from the profile; set max_total_tokens instead"},
	{Name: "dtype", why: byProfile},
	{Name: "kv_cache_dtype", why: byProfile},
	{Name: "attention_backend", why: byProfile},
	{Name: "enable_torch_compile", why: byProfile},
	{Name: "disable_cuda_graph", why: byProfile},
	{Name: "cuda_graph_max_bs_decode", why: byProfile},
	{Name: "cuda_graph_bs_decode", why: byProfile},
	{Name: "cuda_graph_backend_decode", why: byProfile},
	{Name: "cuda_graph_backend_prefill", why: byProfile},
	{Name: "tp_size", why: oneGPU},
	{Name: "pp_size", why: oneGPU},
	{Name: "load_format", why: noWeights},
	{Name: "log_level", why: noLog},
	{Name: "log_level_http", why: noLog},
}

// apply sets what a config sets, and reports all that cannot be simulated or is out of range. What has SGLang's default needs
// no simulation.
func (s *settings) apply(version string, cfg server.Config) error {
	table, err := sglargs.For(version)
	if err != nil {
		return fmt.Errorf("sim: %w", err)
	}
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf("sim: "+format, args...)) }
	s.given = map[string]any{}
	all := cfg.Settings()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		arg, err := table.Find(name)
		if err != nil {
			refuse("%s: %w", name, err)
			continue
		}
		v, err := table.Normal(arg, all[name])
		if err != nil {
			refuse("%s: %w", name, err)
			continue
		}
		i := slices.IndexFunc(arguments, func(a Argument) bool { return a.Name == name })
		switch {
		case (i < 0 || arguments[i].why != "") && reflect.DeepEqual(v, table.Default(name)):
		case i < 0:
			refuse("%s cannot be simulated: %s", name, notThere)
		case arguments[i].why != "":
			refuse("%s cannot be simulated: %s", name, arguments[i].why)
		case !arguments[i].Simulates(v):
			refuse("%s %s cannot be simulated: want one of %s", name, v, strings.Join(arguments[i].choices, ", "))
		default:
			if n, isInt := v.(int); isInt && n < arguments[i].least {
				refuse("%s is %d: want at least %d", name, n, arguments[i].least)
				continue
			}
			s.given[name] = v
			if arguments[i].to != nil {
				set(arguments[i].to(s), v)
			}
		}
	}
	return errors.Join(errs...)
}

// set gives a setting its value, of the type that sglargs has for the argument.
func set(to, v any) {
	switch to := to.(type) {
	case *int:
		*to = v.(int)
	case **int:
		n := v.(int)
		*to = &n
	case *uint64:
		*to = uint64(v.(int)) // at least 0
	case *float64:
		*to = v.(float64)
	case *bool:
		*to = v.(bool)
	case *string:
		*to = v.(string)
	case *Policy:
		*to = Policy(v.(string))
	case *EvictionPolicy:
		*to = EvictionPolicy(v.(string))
	case func(string):
		to(v.(string))
	default:
		panic(fmt.Sprintf("sim: an argument sets a %T", to)) // a test excludes it
	}
}

// extremePriority is the worst priority on either side. SGLang's is 2⁶³; a quarter of it leaves room for sums and differences.
const extremePriority = 1 << 61

// priority returns what the scheduler takes for a request's priority, and how it ends a request that has one although
// nobody asked for priorities to be (tokenizer_manager.py, _set_default_priority; scheduler.py, _set_or_validate_priority).
func (s *settings) priority(given lax) (int, *Finish) {
	on := s.engine.EnablePriorityScheduling
	switch {
	case given.set && !on && s.abortOnPriority:
		return 0, priorityDisabled
	case given.set:
		return int(max(-extremePriority, min(given.v, extremePriority))), nil
	case on && s.defaultPriority != nil:
		return s.engine.Priority(s.defaultPriority), nil
	}
	return s.engine.Priority(nil), nil
}

// Priority returns what the scheduler takes for the priority of a request that was sent with the given one; nil: without. With
// EnablePriorityScheduling such a request is behind all others (SGLang 0.5.23, scheduler.py, _set_or_validate_priority).
func (c *EngineConfig) Priority(given *int) int {
	switch {
	case given != nil:
		return max(-extremePriority, min(*given, extremePriority))
	case !c.EnablePriorityScheduling:
		return 0
	case c.LowPriorityValuesFirst:
		return extremePriority
	}
	return -extremePriority
}
