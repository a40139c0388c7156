package server

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

func TestConfigFaults(t *testing.T) {
	seed := -1
	for _, c := range []struct {
		name   string
		config Config
		want   []string
	}{
		{"ranges", Config{TPSize: -1, StreamInterval: -2, RandomSeed: &seed, CUDAGraphBSDecode: []int{1, 0}, LogLevel: "INFO"}, []string{
			"tp_size: -1; want ≥ 1",
			"random_seed: -1; want 0 to 4294967295",
			"cuda_graph_bs_decode[1]: 0; want ≥ 1",
			"stream_interval: -2; want ≥ 1",
			"log_level: INFO; want one of critical, error, warning, info, debug",
		}},
		{"choices", Config{SchedulePolicy: "lmp", Quantization: "fp88", CUDAGraphBackendDecode: "tc_piecewise"}, []string{
			`quantization: "fp88" is not one that SGLang 0.5.23 takes; did you mean "fp8"?`,
			`schedule_policy: "lmp" is not one that SGLang 0.5.23 takes; did you mean "lpm"?`,
		}},
		{"names", Config{Args: Args{"pagesize": 1, "port": 5, "cuda_graph_max_bs": 8, "page-size": 1, "config": "x.yaml"}}, []string{
			"args.config: read the file with ParseYAML instead",
			"args.cuda_graph_max_bs: SGLang 0.5.23 does not have it: last known in 0.5.18; use --cuda-graph-max-bs-decode",
			`args.page-size: the name of this argument is "page_size"`,
			`args.pagesize: SGLang has no such argument; did you mean "page_size"?`,
			`args.port: a key of its own: write it beside "args", not inside`,
		}},
		{"types", Config{Args: Args{"page_size": "16", "enable_mixed_chunk": 1, "base_gpu_id": -1, "pp_max_micro_batch_size": 0, "gc_threshold": 3}}, []string{
			"args.base_gpu_id: -1; want ≥ 0",
			"args.pp_max_micro_batch_size: 0; want ≥ 1",
			"args.enable_mixed_chunk: 1; want true or false",
			"args.gc_threshold: 3; want a list",
			`args.page_size: "16"; want a whole number`,
		}},
		{"contradictions", Config{ServedModelName: "a:b", SchedulePolicy: "lpm", EnableTorchCompile: true, ChunkedPrefillSize: 1000, TPSize: 3, DPSize: 2, GPUs: []int{1, 1, 2},
			Args: Args{"enable_priority_scheduling": true, "disable_cuda_graph_padding": true, "page_size": 16, "enable_dp_attention": true, "nnodes": 2}}, []string{
			"served_model_name: \"a:b\"; want a name without ':', which separates a LoRA adapter's name",
			`schedule_policy: "lpm" excludes args.enable_priority_scheduling; want "fcfs" or "lof"`,
			"enable_torch_compile: excludes args.disable_cuda_graph_padding: every batch size would be compiled",
			"chunked_prefill_size: 1000; want a multiple of args.page_size, which is 16",
			"tp_size: 3; want a multiple of the data-parallel size of attention, which is 2",
			"tp_size: 3 with pp_size 1; want a product that is a multiple of args.nnodes, which is 2",
			"gpus: [1 1 2]; want each once",
		}},
		{"keys", Config{APIKey: "secret", Args: Args{"tokenizer_worker_num": 2}}, []string{"api_key: excludes args.tokenizer_worker_num above 1"}},
		{"GPUs", Config{TPSize: 2, DPSize: 2, GPUs: []int{0, 1}}, []string{"gpus: 2 given; want 4, which is dp_size × tp_size × pp_size"}},
		{"GPUs of one node", Config{TPSize: 16, GPUs: []int{0, 1}, Args: Args{"nnodes": 2}}, []string{"gpus: 2 given; want 8, which is dp_size × tp_size × pp_size / args.nnodes"}},
		{"versions", Config{Args: Args{"attn_dp_size": 2, "elastic_ep_rejoin": true}, TPSize: 2}, []string{
			"no known version of SGLang takes all of these: args.attn_dp_size (0.5.23), args.elastic_ep_rejoin (0.5.15.post1, 0.5.18)",
		}},
		{"right", Config{ModelPath: "m", TPSize: 2, DPSize: 2, SchedulePolicy: "lof", Args: Args{"enable_dp_attention": true, "enable_priority_scheduling": true}, GPUs: []int{0, 1}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.config.Validate()
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, strings.Join(c.want, "\n"))
		})
	}
}

func TestConfigForVersion(t *testing.T) {
	old := Config{CUDAGraphBackendDecode: "tc_piecewise", Args: Args{"elastic_ep_rejoin": true}}
	require.NoError(t, old.Validate())
	require.NoError(t, old.ValidateFor("0.5.15.post1"))
	require.NoError(t, old.ValidateFor("0.5.19"))
	require.ErrorContains(t, old.ValidateFor("0.5.23"), "args.elastic_ep_rejoin: SGLang 0.5.23 does not have it: last known in 0.5.18")
	require.ErrorContains(t, Config{Args: Args{"attn_dp_size": 1}}.ValidateFor("0.5.21"), "args.attn_dp_size: SGLang 0.5.21 does not have it: known from 0.5.23 on")
	require.ErrorContains(t, Config{}.ValidateFor("0.2.0"), "SGLang 0.2.0 is too old: want 0.3.0 or newer")
	require.ErrorContains(t, Config{}.ValidateFor("new"), "not a version")
}

func TestConfigWarnings(t *testing.T) {
	c := Config{DPSize: 2, TPSize: 2, Args: Args{"enable_dp_attention": true, "page_size": 1}}
	warnings, err := c.Warnings("0.5.23")
	require.NoError(t, err)
	require.Equal(t, []string{"'--enable-dp-attention' is deprecated and will be removed in a future release. Use '--attn-dp-size <dp-size>' instead."}, warnings)
	warnings, err = c.Warnings("0.5.18")
	require.NoError(t, err)
	require.Empty(t, warnings)
	warnings, err = Config{}.Warnings("0.7.0")
	require.NoError(t, err)
	require.Equal(t, []string{"SGLang 0.7.0 is newer than the known versions, 0.5.15.post1 to 0.5.23: it is treated as 0.5.23"}, warnings)
	_, err = c.Warnings("0.1")
	require.ErrorContains(t, err, "too old")
}

func TestConfigJSONFaults(t *testing.T) {
	var c Config
	err := json.Unmarshal([]byte(`{"model_path": "m", "page_size": 16, "max_runing_requests": 3, "gpus": [0], "args": {"page_size": 16, "swa_full_tokens_ratio": 1}}`), &c)
	require.EqualError(t, err, `max_runing_requests: unknown key; did you mean "max_running_requests"?
page_size: no key of its own: write it inside "args"`)
	require.Equal(t, Config{}, c)
	require.NoError(t, json.Unmarshal([]byte(`{"model_path": "m", "gpus": [0], "args": {"page_size": 16, "swa_full_tokens_ratio": 1, "bucket_time_to_first_token": [1, 2.5]}}`), &c))
	require.Equal(t, Config{ModelPath: "m", GPUs: []int{0}, Args: Args{"page_size": 16, "swa_full_tokens_ratio": 1.0, "bucket_time_to_first_token": []any{1.0, 2.5}}}, c)
	before := c
	for text, want := range map[string]string{
		`[]`: "want a JSON object",
		`{"port": "x", "gpus": [0, 1.5], "args": 3}`: "args: want a JSON object\ngpus[1]: want int, not a JSON number 1.5\nport: want int, not a JSON string",
		`{"port": 1, "port": 2, "args": {"page_size": 1, "page_size": 2}}`: "port: this key stands twice: delete one of the two\n" +
			"args.page_size: this key stands twice: delete one of the two",
	} {
		require.EqualError(t, json.Unmarshal([]byte(text), &c), want)
		require.Equal(t, before, c)
	}
	require.NoError(t, json.Unmarshal([]byte(`null`), &c))
	require.Equal(t, before, c)
	var args Args
	require.EqualError(t, json.Unmarshal([]byte(`{"a": {"b": 1, "b": 2}}`), &args), "a.b: this key stands twice: delete one of the two")
	require.NoError(t, json.Unmarshal([]byte(`null`), &args))
}

// Every field but GPUs and Args is an argument of every known version, of the field's type.
func TestFieldsAreArguments(t *testing.T) {
	for name, i := range typed {
		for _, table := range sglargs.Tables() {
			a, err := table.Find(name)
			require.NoError(t, err, "%s in %s", name, table.Version())
			want := map[sglargs.Kind]string{sglargs.Bool: "bool", sglargs.Int: "int", sglargs.HumanInt: "int", sglargs.Float: "float64"}[a.Kind]
			if want == "" {
				want = "string"
			}
			if a.NArgs == "+" {
				want = "[]" + want
			}
			require.Equal(t, want, strings.TrimPrefix(reflect.TypeFor[Config]().Field(i).Type.String(), "*"), name)
		}
	}
}

func TestPresets(t *testing.T) {
	for name, c := range map[string]Config{"throughput": HighThroughput(), "latency": LowLatency(), "memory": LittleMemory()} {
		for _, version := range sglargs.Versions() {
			require.NoError(t, c.ValidateFor(version), name)
		}
	}
}

func TestConfigWith(t *testing.T) {
	base := Config{Port: 31000, Args: Args{"page_size": 16}}
	c, err := base.With(Args{"attention_backend": "fa3", "tp_size": 2.0, "random_seed": 0, "max_loras_per_batch": 4})
	require.NoError(t, err)
	zero := 0
	require.Equal(t, Config{Port: 31000, AttentionBackend: "fa3", TPSize: 2, RandomSeed: &zero, Args: Args{"page_size": 16, "max_loras_per_batch": 4}}, c)
	require.Equal(t, Args{"page_size": 16}, base.Args, "the original is left alone")

	_, err = base.With(Args{"port": 1, "page_size": 1, "tp_size": "two", "stream_interval": 0})
	require.ErrorContains(t, err, "port: set already, to 31000")
	require.ErrorContains(t, err, "page_size: set already, to 16")
	require.ErrorContains(t, err, "tp_size: ")
	require.ErrorContains(t, err, `stream_interval: 0 stands for "not set"`)
}
