package sglangtest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func TestRunNodeInVirtualTime(t *testing.T) {
	cfg := NodeConfig{DatasetName: "azure-conversation", RequestRate: 10, NumPrompts: 2000, Seed: 3, MaxRunningRequests: 128, EnableDynamicParams: true,
		ParamUpdateSchedule: map[Seconds]map[string]int{30: {"max_running_requests": 16}, 90: {"max_running_requests": 128}},
		MetricsInterval:     1, Percentiles: []float64{75}}
	store := func() (*NodeRun, string) {
		cfg := cfg
		cfg.OutputDir = filepath.Join(t.TempDir(), "run")
		run, err := RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
		require.NoError(t, err)
		requests, err := os.ReadFile(filepath.Join(cfg.OutputDir, "requests.jsonl"))
		require.NoError(t, err)
		return run, string(requests)
	}
	run, requests := store()
	sum := run.Summary
	require.Equal(t, 2000, sum.Requests.OK)
	require.Contains(t, sum.String(), "SIMULATED")
	require.Equal(t, "h100-llama-3.1-8b with max_running_requests 128 (profile: 256)", sum.Simulation.Profile)
	require.Equal(t, 75.0, sum.TTFT.Percentiles[0].P)
	require.True(t, sum.Client.OK, sum.Client.Reasons)
	require.Equal(t, 128, run.Server.MaxRunningRequests)
	require.Equal(t, run.Server.Simulation, sum.Simulation)

	events := slices.DeleteFunc(run.Collector.Events(), func(e metrics.Event) bool { return e.Kind != metrics.KindParamUpdate })
	require.Len(t, events, 2)
	require.Equal(t, Seconds(30).Duration(), events[0].At)
	for _, s := range run.Collector.Samples() {
		if s.At > Seconds(60).Duration() && s.At < Seconds(90).Duration() {
			require.LessOrEqual(t, s.Values[metrics.NumRunning], 16.0)
		}
	}

	stored, err := results.Open(run.Dir)
	require.NoError(t, err)
	require.Equal(t, results.StateFinished, stored.State)
	require.Equal(t, *sum.Simulation, stored.Meta.Simulated[0])

	_, again := store()
	require.Equal(t, requests, again, "equal configs give equal results")
}

func TestVirtualTimeRefusesWhatItCannotSimulate(t *testing.T) {
	cfg := short()
	cfg.Quantization = "fp8"
	_, err := RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
	require.ErrorContains(t, err, "quantization cannot be simulated")

	_, err = RunNode(t.Context(), short(), WithVirtualTime(sim.H100Llama8B()), WithLauncher(defaultLauncher()))
	require.ErrorContains(t, err, "both a launcher and virtual time")

	cfg = short()
	cfg.API = load.Generate
	cfg.SamplingParams = &load.SamplingParams{StreamInterval: load.Ptr(8), BeamWidth: load.Ptr(3)}
	cfg.OutputDir = filepath.Join(t.TempDir(), "run")
	_, err = RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()), WithSenderOptions(load.WithTexts()), WithServerOptions(server.WithReadyTimeout(time.Second)))
	for _, want := range []string{"options of the sender", "options of the server manager", "sampling_params.stream_interval: 8", "sampling_params.beam_width: 3"} {
		require.ErrorContains(t, err, want)
	}
	require.NoDirExists(t, cfg.OutputDir)

	cfg = short()
	cfg.RandomInputLen = 200_000
	_, err = RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
	require.ErrorContains(t, err, "tokens of prompt than the server takes")
}

// shared is a dataset whose prompts share one of a few prefixes, with more of them than a small server takes.
func shared(t *testing.T) NodeConfig {
	var b strings.Builder
	for i := range 400 {
		fmt.Fprintf(&b, `{"segments":[{"stream":%d,"length":1000},{"stream":%d,"length":64}],"output_len":32}`+"\n", i*7%5, 100+i)
	}
	path := filepath.Join(t.TempDir(), "shared.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o600))
	return NodeConfig{DatasetName: "jsonl", DatasetPath: path, RequestRate: 60, Seed: 3, MaxRunningRequests: 4}
}

func TestServerArgsInVirtualTime(t *testing.T) {
	run := func(args server.Args) *metrics.Summary {
		cfg := shared(t)
		cfg.ServerArgs = args
		run, err := RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
		require.NoError(t, err)
		require.Equal(t, 400, run.Summary.Requests.OK)
		return run.Summary
	}
	fcfs := run(nil)
	require.Equal(t, fcfs.TTFT, run(server.Args{"schedule_policy": "fcfs", "enable_metrics": true, "weight_version": "w", "random_seed": 5}).TTFT)
	for _, args := range []server.Args{{"schedule_policy": "lpm"}, {"schedule_policy": "random", "random_seed": 5}, {"schedule_policy": "shortest-prefill-first"},
		{"disable_radix_cache": true}, {"disable_overlap_schedule": true}, {"page_size": 64}, {"pp_max_micro_batch_size": 2}, {"prefill_max_requests": 1}} {
		sum := run(args)
		require.NotEqual(t, fcfs.TTFT, sum.TTFT, args)
		require.Contains(t, sum.Simulation.KnownError, "not measured with ", "the profile's error is not that of these")
	}

	cfg := shared(t)
	cfg.ServerArgs = server.Args{"stream_interval": 8, "schedule_policy": "routing-key", "dp_size": 2}
	_, err := RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
	require.ErrorContains(t, err, "server_args.stream_interval: 8; in virtual time want 1")
	require.ErrorContains(t, err, "server_args.dp_size: 2; in virtual time a server has one rank")
	require.ErrorContains(t, err, "schedule_policy routing-key cannot be simulated")
}

func TestServerArgsOfASimulatedServer(t *testing.T) {
	cfg := short()
	cfg.ServerArgs = server.Args{"schedule_policy": "lpm", "page_size": 16, "api_key": "secret", "enable_metrics": true, "incremental_streaming_output": true}
	run, err := RunNode(t.Context(), cfg, WithServerOptions(server.WithAPIKey("secret")))
	require.NoError(t, err)
	require.Equal(t, 20, run.Summary.Requests.OK)
	require.True(t, run.Server.IncrementalStreaming)
	cfg.ServerArgs["schedule_policy"] = "routing-key"
	_, err = RunNode(t.Context(), cfg)
	require.ErrorContains(t, err, "schedule_policy routing-key cannot be simulated")
}

// A server with two data-parallel ranks obeys a limit on both.
func TestServerOfTwoRanks(t *testing.T) {
	cfg := short()
	cfg.RandomOutputLen = 64
	cfg.ServerArgs = server.Args{"dp_size": 2, "load_snapshot_publish_interval": 1}
	cfg.MaxRunningRequests = 8
	cfg.MetricsInterval, cfg.EnableDynamicParams = 0.02, true
	cfg.ParamUpdateSchedule = map[Seconds]map[string]int{0.1: {server.ParamMaxRunningRequests: 1}}
	run, err := RunNode(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, 20, run.Summary.Requests.OK)
	require.Equal(t, 2, run.Server.DPSize)
	high := 0.0
	for _, e := range run.Collector.Events() {
		if e.Kind != metrics.KindParamInForce {
			continue
		}
		for _, s := range run.Collector.Samples() {
			if s.At-s.Cost > e.At { // asked for after that
				high = max(high, s.Values[metrics.NumRunning])
			}
		}
	}
	require.Equal(t, 2.0, high, "one on each rank")
	require.Contains(t, run.Summary.Simulation.KnownError, "not measured with dp_size 2")
}

// The first request of a run meets an idle engine in both kinds of time, so its latency is the same but for the
// real one's way over HTTP.
func TestVirtualTimeAgreesWithRealTime(t *testing.T) {
	cfg := short()
	cfg.NumPrompts = 5
	cfg.RequestRate = 4
	virtual, err := RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
	require.NoError(t, err)
	real, err := RunNode(t.Context(), cfg)
	require.NoError(t, err)
	v, r := virtual.Summary, real.Summary
	require.Equal(t, v.Throughput.OutputTokens, r.Throughput.OutputTokens)
	require.Equal(t, v.Plan, r.Plan)
	// A real server is never earlier; how much later depends on the machine.
	require.GreaterOrEqual(t, float64(r.TTFT.Median), float64(v.TTFT.Median)-1)
	require.Less(t, float64(r.TTFT.Median), float64(v.TTFT.Median)+1000)
}

// What is overloaded is told from what is merely busy, whatever the seed: the engine of this test does some 17 requests/s.
func TestTheVerdictOnTheLoad(t *testing.T) {
	verdict := func(rate Rate, seed uint64) *metrics.Summary {
		run, err := RunNode(t.Context(), NodeConfig{DatasetName: "random", RandomInputLen: 512, RandomOutputLen: 128, RandomRangeRatio: 1, NumPrompts: 400,
			RequestRate: rate, Seed: seed, MaxRunningRequests: 16}, WithVirtualTime(sim.H100Llama8B()))
		require.NoError(t, err)
		return run.Summary
	}
	capacity := verdict(100, 1).Steady.Requests
	for seed := range uint64(20) {
		for _, share := range []float64{0.5, 0.7, 0.8, 0.9} {
			s := verdict(Rate(share*capacity), seed)
			require.Equal(t, metrics.VerdictOK, s.Verdict, "%g of the capacity, seed %d: %s", share, seed, s)
		}
		for _, share := range []float64{1.5, 2, 4} {
			s := verdict(Rate(share*capacity), seed)
			require.Equal(t, metrics.VerdictOverloaded, s.Verdict, "%g of the capacity, seed %d: %s", share, seed, s)
			require.InEpsilon(t, capacity, s.Steady.Requests, 0.15, "sixteen end at once")
		}
	}
}

// The same plan is told in the same words in both kinds of time: what was done, what showed, and what came too late.
func TestTheSamePlanGivesTheSameEvents(t *testing.T) {
	cfg := NodeConfig{DatasetName: "random", RandomInputLen: 64, RandomOutputLen: 16, NumPrompts: 20, RequestRate: Inf, MaxConcurrency: 2, Seed: 3,
		MaxRunningRequests: 16, EnableDynamicParams: true, ParamUpdateSchedule: map[Seconds]map[string]int{
			0.1: {server.ParamMaxRunningRequests: 4}, 0.3: {server.ParamMaxRunningRequests: 8}, 3600: {server.ParamMaxRunningRequests: 16}}}
	type told struct {
		kind, source, keys string
		value, planned     any
	}
	events := func(opts ...RunOption) (all []told) {
		run, err := RunNode(t.Context(), cfg, opts...)
		require.NoError(t, err)
		for _, e := range run.Collector.Events() {
			if e.Kind != metrics.KindStartupPhase { // a server that starts is the one thing that virtual time has not
				keys := fmt.Sprint(slices.Sorted(maps.Keys(e.Data)))
				all = append(all, told{e.Kind, e.Source, keys, e.Data["value"], e.Data["planned_ns"]})
			}
		}
		return all
	}
	virtual := events(WithVirtualTime(sim.H100Llama8B()))
	require.Len(t, virtual, 6)
	require.ElementsMatch(t, virtual, events())
	require.Contains(t, virtual, told{metrics.KindParamUpdateNotMade, "server-0", "[name planned_ns reason value]", 16, int64(3600 * time.Second)})
}
