package sglangtest

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func fullConfig() NodeConfig {
	gpu := 3
	return NodeConfig{
		ModelPath: "meta-llama/Llama-3.1-8B-Instruct", TokenizerPath: "tok", GPUID: &gpu, Port: 30001, MaxRunningRequests: 512,
		MemFractionStatic: 0.85, ChunkedPrefillSize: 4096, ScheduleConservativeness: 1.2, EnableTorchCompile: true, Quantization: "fp8",
		DatasetName: "random", RandomRangeRatio: 0.5, RandomInputLen: 512, RandomOutputLen: 128, NumPrompts: 1000, RequestRate: 8.5, Duration: 90, MaxConcurrency: 256,
		SamplingParams: &load.SamplingParams{Temperature: load.Ptr(0.7)}, Seed: 7,
		API: load.ChatCompletions, WarmupRequests: 4, RequestTimeout: 60, BatchStrategy: "continuous",
		EnableDynamicParams: true, ParamUpdateSchedule: map[Seconds]map[string]int{30: {"max_running_requests": 64}, 60.5: {"max_running_requests": 512}},
		OutputDir: "runs/{label}-{time}", Label: "a", OutputFormat: "csv", OmitChunks: true, MetricsInterval: 0.5, Percentiles: []float64{50, 99},
		SLO: SLO{"ttft_p99_ms": 500, "tpot_mean_ms": 30},
	}
}

func TestNodeConfigRoundTrip(t *testing.T) {
	for name, cfg := range map[string]NodeConfig{
		"every field": fullConfig(),
		"least":       {DatasetName: "azure-conversation", TraceSpeed: 2},
		"a file":      {DatasetName: "mooncake", DatasetPath: "m.jsonl", TimeUnit: load.Seconds, BlockSize: 16, OddRows: "skip", TraceSpeed: 1},
		"at once":     {DatasetName: "azure-conversation", RequestRate: Inf, NumPrompts: 10},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "node.json")
			require.NoError(t, cfg.Save(path))
			got, err := LoadNodeConfig(path)
			require.NoError(t, err)
			require.Equal(t, cfg, got)
		})
	}
}

func TestNodeConfigKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.json")
	require.NoError(t, os.WriteFile(path, []byte(`{
		"model_path": "m", "dataset_name": "azure-conversation", "request_rate": "inf", "num_prompts": 20, "max_running_requests": 512,
		"enable_dynamic_params": true, "param_update_schedule": {"60": {"max_running_requests": 256}},
		"request_timeout": 30, "sampling_params": {"temperature": 0}, "output_dir": "x"}`), 0o600))
	cfg, err := LoadNodeConfig(path)
	require.NoError(t, err)
	require.Equal(t, Inf, cfg.RequestRate)
	require.Equal(t, map[Seconds]map[string]int{60: {"max_running_requests": 256}}, cfg.ParamUpdateSchedule)
}

func TestNodeConfigReportsAllFaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.json")
	require.NoError(t, os.WriteFile(path, []byte(`{
		"dataset_name": "random", "random_input_len": -1, "request_rate": -2, "num_prompt": 3, "max_running_requests": 8, "port": 70000,
		"param_update_schedule": {"10": {"max_running_requests": 9, "chunked_prefill_size": 1}, "soon": {}},
		"sampling_params": {"temprature": 1}, "percentiles": [50, 100], "batch_strategy": "static", "duration": "5m"}`), 0o600))
	_, err := LoadNodeConfig(path)
	for _, want := range []string{
		`num_prompt: unknown key; did you mean "num_prompts"?`,
		`sampling_params:`, `"temperature"`,
		`param_update_schedule: "soon" is not a number of seconds`,
		`duration: "5m" is not a number of seconds`,
		`random_input_len: -1; want ≥ 1`,
		`random_output_len: 0; want ≥ 1`,
		`request_rate: -2; want > 0 or "inf"`,
		`port: 70000; want 1 to 65535`,
		`percentiles[1]: 100; want from 1 up to 100`,
		`batch_strategy: "static"; want "continuous"`,
		path,
	} {
		require.ErrorContains(t, err, want)
	}
}

// Who writes 0 into a file means something, which is not the default of everything.
func TestNodeConfigWrittenZeros(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"dataset_name": "azure-conversation", "request_rate": 8,
		"num_prompts": 0, "max_concurrency": 0, "duration": 0.0, "warmup_requests": 0, "port": 0, "seed": 0, "max_running_requests": null}`), 0o600))
	_, err := LoadNodeConfig(path)
	require.ErrorContains(t, err, "line 2, column 3: num_prompts: 0: want another number, or leave the key out")
	require.ErrorContains(t, err, "max_concurrency: 0")
	require.ErrorContains(t, err, "duration: 0")
	for _, fine := range []string{"warmup", "port", "seed", "running"} {
		require.NotContains(t, err.Error(), fine)
	}
}

func TestNodeConfigContradictions(t *testing.T) {
	ok := NodeConfig{DatasetName: "azure-conversation", RequestRate: 8, NumPrompts: 10, MaxRunningRequests: 64}
	require.NoError(t, ok.Validate())
	for want, change := range map[string]func(*NodeConfig){
		"dataset_name: \"azur\"; want one of":                   func(c *NodeConfig) { c.DatasetName = "azur" },
		"dataset_path: required with dataset_name \"sharegpt\"": func(c *NodeConfig) { c.DatasetName = "sharegpt" },
		"output_dir: {run}; want {time} or {label}":             func(c *NodeConfig) { c.OutputDir = "runs/{run}" },
		"output_dir: {label} needs label":                       func(c *NodeConfig) { c.OutputDir = "runs/{label}" },
		"label: \"a/b\"; want no /":                             func(c *NodeConfig) { c.OutputDir, c.Label = "runs/{label}", "a/b" },
		"time_unit: dataset \"azure-conversation\" is not a":    func(c *NodeConfig) { c.TimeUnit = "s" },
		"block_size: dataset \"azure-conversation\" is not a":   func(c *NodeConfig) { c.BlockSize = 16 },
		"odd_rows: dataset \"azure-conversation\" is not a":     func(c *NodeConfig) { c.OddRows = "skip" },
		"odd_rows: \"drop\"; want \"fail\" or \"skip\"":         func(c *NodeConfig) { c.DatasetName, c.DatasetPath, c.OddRows = "jsonl", "x", "drop" },
		"time unit \"min\": want one of [s ms us ns]":           func(c *NodeConfig) { c.DatasetName, c.DatasetPath, c.TimeUnit = "jsonl", "x", "min" },
		"time unit \"s\": its times need none":                  func(c *NodeConfig) { c.DatasetName, c.DatasetPath, c.TimeUnit = "azure", "x", "s" },
		"dataset_path: dataset \"azure-conversation\" is not":   func(c *NodeConfig) { c.DatasetPath = "x" },
		"random_input_len: only with":                           func(c *NodeConfig) { c.RandomInputLen = 5 },
		"request_rate: required, unless trace_speed":            func(c *NodeConfig) { c.RequestRate = 0 },
		"trace_speed: excludes request_rate":                    func(c *NodeConfig) { c.TraceSpeed = 1 },
		"duration: with request_rate \"inf\"":                   func(c *NodeConfig) { c.RequestRate, c.Duration = Inf, 5 },
		"request_rate: NaN":                                     func(c *NodeConfig) { c.RequestRate = Rate(math.NaN()) },
		"needs enable_dynamic_params": func(c *NodeConfig) {
			c.ParamUpdateSchedule = map[Seconds]map[string]int{1: {"max_running_requests": 2}}
		},
		`param_update_schedule["1"].max_running_requests: 65; the limit can be changed up to the start-up value`: func(c *NodeConfig) {
			c.EnableDynamicParams, c.ParamUpdateSchedule = true, map[Seconds]map[string]int{1: {"max_running_requests": 65}}
		},
		`param_update_schedule["1"].quantization: cannot be changed while a server runs`: func(c *NodeConfig) {
			c.EnableDynamicParams, c.ParamUpdateSchedule = true, map[Seconds]map[string]int{1: {"quantization": 1}}
		},
		`param_update_schedule["9"]: not before the end of the workload at 5 s`: func(c *NodeConfig) {
			c.Duration, c.EnableDynamicParams, c.ParamUpdateSchedule = 5, true, map[Seconds]map[string]int{9: {"max_running_requests": 2}}
		},
		"omit_chunks: needs output_dir":                      func(c *NodeConfig) { c.OmitChunks = true },
		"output_format: needs output_dir":                    func(c *NodeConfig) { c.OutputFormat = "csv" },
		"output_format: \"parquet\"; want":                   func(c *NodeConfig) { c.OutputFormat, c.OutputDir = "parquet", "x" },
		"static_batch_size: only with":                       func(c *NodeConfig) { c.StaticBatchSize = 4 },
		"sampling_params: sampling parameter n is 2":         func(c *NodeConfig) { c.SamplingParams = &load.SamplingParams{N: load.Ptr(2)} },
		"sampling_params: ":                                  func(c *NodeConfig) { c.SamplingParams = &load.SamplingParams{TopP: load.Ptr(2.0)} },
		"api: \"chat\"; want":                                func(c *NodeConfig) { c.API = "chat" },
		"mem_fraction_static: 1; want between":               func(c *NodeConfig) { c.MemFractionStatic = 1 },
		"chunked_prefill_size: -2; want":                     func(c *NodeConfig) { c.ChunkedPrefillSize = -2 },
		"metrics_interval: -1; want more than 0 and at most": func(c *NodeConfig) { c.MetricsInterval = -1 },
	} {
		c := ok
		change(&c)
		require.ErrorContains(t, c.Validate(), want)
	}
}

func TestConfigCorners(t *testing.T) {
	ok := NodeConfig{DatasetName: "azure-conversation", RequestRate: 8, NumPrompts: 10}
	ok.SamplingParams = &load.SamplingParams{StreamInterval: load.Ptr(4)} // for the default API, /generate
	require.NoError(t, ok.Validate())
	ok.API = load.Completions
	require.ErrorContains(t, ok.Validate(), "stream_interval: /v1/completions ignores it")
	long := NodeConfig{DatasetName: "azure-conversation", RequestRate: 8, NumPrompts: 10, RequestTimeout: 1e10}
	require.ErrorContains(t, long.Validate(), "at most 1e9 seconds")
	path := filepath.Join(t.TempDir(), "twice.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"dataset_name": "azure-conversation", "request_rate": 8, "num_prompts": 9, "enable_dynamic_params": true,
		"param_update_schedule": {"1": {"max_running_requests": 2}, "1.0": {"max_running_requests": 3}}}`), 0o600))
	_, err := LoadNodeConfig(path)
	require.ErrorContains(t, err, `line 2, column 63: param_update_schedule["1.0"]: two keys stand for the same time: "1" and this one`)
}

func TestSecretsAreNotStored(t *testing.T) {
	given := server.Args{"api_key": "a", "admin_api_key": "b", "ssl_keyfile_password": "c", "page_size": 16}
	stored := NodeConfig{ServerArgs: given}.withoutSecrets()
	require.Equal(t, server.Args{"api_key": "(not stored)", "admin_api_key": "(not stored)", "ssl_keyfile_password": "(not stored)", "page_size": 16}, stored.ServerArgs)
	require.Equal(t, "a", given["api_key"])
}

func TestLoadNodeConfigFiles(t *testing.T) {
	_, err := LoadNodeConfig(filepath.Join(t.TempDir(), "none.json"))
	require.ErrorIs(t, err, os.ErrNotExist)
	path := filepath.Join(t.TempDir(), "bad.json")
	for text, want := range map[string]string{
		`[1]`: ": want a JSON object",
		"{\n  \"port\": 30000,\n  \"server_args\": {\"page_size\": 16,}\n}": ": line 3, column 35, inside server_args: invalid character '}' looking for beginning of object key string",
		"{\"request_rate\": 8,\n \"request_rate\": 80, \"server_args\": {\"page_size\": 1, \"page_size\": 16}}": ":\nline 2, column 2: request_rate: this key stands twice: delete one of the two\n" +
			"line 2, column 54: server_args.page_size: this key stands twice: delete one of the two",
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err = LoadNodeConfig(path)
		require.EqualError(t, err, "sglangtest: config "+path+want)
	}
	require.NoError(t, os.WriteFile(path, []byte(`{"dataset_name": "azure-conversation", "request_rate": 8,
		"port": "x", "enable_dynamic_params": true, "param_update_schedule": {"30": {"max_running_requests": 2.5}}}`), 0o600))
	_, err = LoadNodeConfig(path)
	require.ErrorContains(t, err, "line 2, column 3: port: want int, not a JSON string")
	require.ErrorContains(t, err, `line 2, column 80: param_update_schedule["30"].max_running_requests: want int, not a JSON number 2.5`)
}

// A dataset that is added to the table is known to configs, and makes a workload.
func TestEveryDatasetIsKnown(t *testing.T) {
	for _, d := range datasets {
		cfg := NodeConfig{DatasetName: d.name, RequestRate: 8, NumPrompts: 1, SamplingParams: &load.SamplingParams{MaxNewTokens: load.Ptr(3)}}
		if d.file {
			cfg.DatasetPath = "no/such/file"
		}
		if d.name == randomDataset {
			cfg.RandomInputLen, cfg.RandomOutputLen = 5, 5
		}
		require.NoError(t, cfg.Validate(), d.name)
		gen, err := cfg.Generator()
		require.NoError(t, err)
		_, err = gen.Plan()
		if d.file {
			require.ErrorIs(t, err, os.ErrNotExist)
		} else {
			require.NoError(t, err)
		}
		require.ErrorContains(t, NodeConfig{DatasetName: "none", RequestRate: 1}.Validate(), d.name)
	}
}

// What is left out of a file is counted in the summary.
func TestOddRowsAreInTheSummary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "burst.csv")
	require.NoError(t, os.WriteFile(path, []byte("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"+
		"0,ChatGPT,47,8,55,Conversation log\n1,ChatGPT,87,0,87,Conversation log\n2,GPT-4,41,6,47,API log\n"), 0o600))
	cfg := NodeConfig{DatasetName: "burstgpt", DatasetPath: path, TraceSpeed: 10, OddRows: "skip"}
	run, err := RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
	require.NoError(t, err)
	require.Equal(t, 2, run.Summary.Requests.OK)
	require.Contains(t, run.Summary.Notes, "left out of the dataset: 1 row, no output tokens (a failed call); the first is line 3")
}

// A config that names its folder by time and label is run again as it is.
func TestOutputDirOfEachRun(t *testing.T) {
	cfg := short()
	cfg.OutputDir, cfg.Label = filepath.Join(t.TempDir(), "{label}-{time}"), "base"
	run, err := RunNode(t.Context(), cfg, WithVirtualTime(sim.H100Llama8B()))
	require.NoError(t, err)
	require.Regexp(t, `^base-\d{8}-\d{6}$`, filepath.Base(run.Dir))
	stored, err := results.Open(run.Dir)
	require.NoError(t, err)
	require.Equal(t, "base", stored.Meta.Label)
	var back NodeConfig
	require.NoError(t, stored.Config(&back))
	require.Equal(t, cfg, back)
}
