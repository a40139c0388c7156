package server

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

func TestCommandLine(t *testing.T) {
	seed := 0
	c := Config{ModelPath: "m", Port: 30001, TPSize: 2, MemFractionStatic: 0.875, ChunkedPrefillSize: -1, RandomSeed: &seed, CUDAGraphBSDecode: []int{1, 2, 4},
		IncrementalStreamingOutput: true, ServedModelName: "-x", GPUs: []int{0, 1},
		Args: Args{"page_size": int64(16), "enable_mixed_chunk": true, "enable_lora": false, "lora_strict_loading": false, "log_requests_target": []string{"stdout", "/x"},
			"preferred_sampling_params": map[string]any{"n": 1}}}
	argv, err := c.CommandLine("0.5.23")
	require.NoError(t, err)
	require.Equal(t, []string{"--model-path", "m", "--served-model-name=-x", "--port", "30001", "--tp-size", "2", "--mem-fraction-static", "0.875",
		"--chunked-prefill-size", "-1", "--random-seed", "0", "--cuda-graph-bs-decode", "1", "2", "4", "--incremental-streaming-output",
		"--enable-mixed-chunk", "--log-requests-target", "stdout", "/x", "--no-lora-strict-loading", "--page-size", "16", "--preferred-sampling-params", `{"n":1}`}, argv)
	back, err := ParseCommandLine("0.5.23", argv)
	require.NoError(t, err)
	back.GPUs = c.GPUs
	table, err := sglargs.For("0.5.23")
	require.NoError(t, err)
	require.Equal(t, c.normal(table), back)

	_, err = Config{Port: -1}.CommandLine("")
	require.EqualError(t, err, "server: config:\nmodel_path: want a path or a name on the hub\nport: -1; want 1 to 65535, or 0 for a free one")
}

// Without a version, the newest one that takes the config decides on the spelling.
func TestCommandLineOfAnyVersion(t *testing.T) {
	argv, err := Config{ModelPath: "m", Args: Args{"smg_http_sidecar_port": 5}}.CommandLine("")
	require.NoError(t, err)
	require.Equal(t, []string{"--model-path", "m", "--smg-http-sidecar-port", "5"}, argv)
	argv, err = Config{ModelPath: "m", Args: Args{"elastic_ep_rejoin": true}}.CommandLine("")
	require.NoError(t, err)
	require.Equal(t, []string{"--model-path", "m", "--elastic-ep-rejoin"}, argv)
	c, err := ParseCommandLine("", argv)
	require.NoError(t, err)
	require.Equal(t, Args{"elastic_ep_rejoin": true}, c.Args)
}

func TestParseCommandLine(t *testing.T) {
	for _, c := range []struct {
		argv string
		want string // the fault, or the config as JSON
	}{
		{"--model m --tensor-parallel=2 --context-length 8k --enable-metrics", `{"model_path":"m","tp_size":2,"context_length":8000,"enable_metrics":true}`},
		{"--model m --cuda-graph-max-bs-dec 8 --page-size 1", `{"model_path":"m","cuda_graph_max_bs_decode":8,"args":{"page_size":1}}`},
		{"--model m --stream-output", `{"model_path":"m","incremental_streaming_output":true}`}, // the newest version that knows it
		{"--model m --random-seed 0", `{"model_path":"m","random_seed":0}`},
		{"--model m --quantization-param-path None", `{"model_path":"m"}`},
		{"--port 1", "server: command line: sglang serve: error: the following arguments are required: --model-path/--model"},
		{"--model m --port x", "server: command line: sglang serve: error: argument --port: invalid int value: 'x'"},
		{"--model m --nope 1", "server: command line: sglang serve: error: unrecognized arguments: --nope 1"},
		{"--model m --max-queued-requests 0 --mem-fraction-static 0", "server: config:\n" +
			"max_queued_requests: 0 cannot be asked for in a Config, where it stands for \"not set\"\nmem_fraction_static: 0 cannot be asked for in a Config, where it stands for \"not set\""},
		{"--model m --port 70000", "server: config:\nport: 70000; want 1 to 65535, or 0 for a free one"},
		{"--model m --config=x.yaml", "server: config:\nconfig: SGLang reads the file only if it is written --config FILE, as two arguments"},
		{"-h", "server: command line: sglargs: help was asked for"},
	} {
		t.Run(c.argv, func(t *testing.T) {
			config, err := ParseCommandLine("", strings.Fields(c.argv))
			if err != nil {
				require.EqualError(t, err, c.want)
				return
			}
			data, err := json.Marshal(config)
			require.NoError(t, err)
			require.Equal(t, c.want, string(data))
		})
	}
	_, err := ParseCommandLine("0.5.23", []string{"--model", "m", "--stream-output"})
	require.ErrorContains(t, err, "unrecognized arguments: --stream-output")
	_, err = ParseCommandLine("x", nil)
	require.ErrorContains(t, err, "not a version")
}

func TestConfigFileUnderCommandLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.yaml")
	text, err := Config{ModelPath: "m", Port: 1, MaxRunningRequests: 8}.YAML("")
	require.NoError(t, err)
	require.Equal(t, "model-path: \"m\"\nport: 1\nmax-running-requests: 8\n", string(text))
	require.NoError(t, os.WriteFile(path, text, 0o600))
	c, err := ParseCommandLine("", []string{"--config", path, "--port", "2"})
	require.NoError(t, err)
	require.Equal(t, Config{ModelPath: "m", Port: 2, MaxRunningRequests: 8}, c)
}

func TestYAMLFaults(t *testing.T) {
	for _, c := range []struct {
		version string
		config  Config
		want    string
	}{
		{"0.5.23", Config{ModelPath: "m", Args: Args{"lora_strict_loading": true}}, "Unsupported config option 'lora_strict_loading' with action 'BooleanOptionalAction'"},
		{"0.5.23", Config{ModelPath: "m", ServedModelName: "-x"}, "expected one argument"},
		{"0.5.18", Config{ModelPath: "m", CUDAGraphMaxBSDecode: 8}, "Unsupported config option 'cuda_graph_max_bs_decode' with action 'DeprecatedAliasStoreAction'"},
		{"0.5.23", Config{ModelPath: "m", CUDAGraphMaxBSDecode: 8}, ""},
		{"0.5.23", Config{}, "model_path: want a path"},
	} {
		_, err := c.config.YAML(c.version)
		if c.want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, c.want)
	}
	_, err := ParseYAML("", []byte("max_running_requests: 3\nmodel-path: m\n"))
	require.ErrorContains(t, err, "unrecognized arguments: --max_running_requests 3")
	_, err = ParseYAML("", []byte("[]"))
	require.ErrorContains(t, err, "Config file must contain a dictionary at root level")
}

// A config of any arguments is the same after a round trip through a command line, JSON, and YAML where SGLang can take it.
func TestRoundTrips(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	written := 0
	for i := range 600 {
		table := sglargs.Tables()[i%len(sglargs.Versions())]
		c := randomConfig(rng, table)
		if c.ValidateFor(table.Version()) != nil { // contradictions of what was drawn
			continue
		}
		argv, err := c.CommandLine(table.Version())
		require.NoError(t, err)
		back, err := ParseCommandLine(table.Version(), argv)
		require.NoError(t, err, "%q", argv)
		require.Equal(t, c, back, "%q", argv)

		data, err := json.Marshal(c)
		require.NoError(t, err)
		back = Config{}
		require.NoError(t, json.Unmarshal(data, &back), "%s", data)
		require.Equal(t, c, back, "%s", data)

		text, err := c.YAML(table.Version())
		if err != nil {
			require.ErrorContains(t, err, "cannot say this")
			continue
		}
		written++
		back, err = ParseYAML(table.Version(), text)
		require.NoError(t, err)
		require.Equal(t, c, back, "%s", text)
	}
	t.Logf("%d configs could be written as YAML", written)
	require.Greater(t, written, 200)
}

func randomConfig(rng *rand.Rand, table *sglargs.Table) Config {
	c := Config{ModelPath: "model"}
	fields := reflect.ValueOf(&c).Elem()
	for _, a := range table.Args() {
		if found, err := table.Find(a.Field); err != nil || found != a || a.Field == "config" || a.Field == "model_path" || rng.IntN(60) != 0 {
			continue
		}
		v := randomValue(rng, a)
		if a.Field == "log_level" {
			v = "debug"
		}
		v, err := table.Normal(a, v)
		if err != nil || v == false && a.Action == sglargs.StoreTrue {
			continue
		}
		if i, ok := typed[a.Field]; ok {
			setField(fields.Field(i), v)
			continue
		}
		if c.Args == nil {
			c.Args = Args{}
		}
		c.Args[a.Field] = v
	}
	return c
}

func randomValue(rng *rand.Rand, a *sglargs.Arg) any {
	pick := func(values ...any) any { return values[rng.IntN(len(values))] }
	one := func() any {
		if a.Choices != nil {
			return pick(a.Choices...)
		}
		switch a.Kind {
		case sglargs.Bool:
			return rng.IntN(2) == 0
		case sglargs.Int, sglargs.HumanInt:
			return rng.IntN(9) + 1
		case sglargs.Float:
			return pick(0.5, 0.25, 1e-7, 0.0625)
		case sglargs.JSON, sglargs.JSONList:
			return map[string]any{"a": []any{1, 2.5, "é<>😀", nil, true, 1e-7}}
		case sglargs.GraphConfig:
			return map[string]any{"decode": map[string]any{"max_bs": rng.IntN(100)}}
		}
		return pick("a", "a b", "-x", "yes", "1e5", "017", "null", "", "a=b", "it's", "{a: b}", "é😀\n\"\\", "a: b # c")
	}
	if a.Action == sglargs.LoRAPaths {
		return []any{"path", map[string]any{"lora_name": "n", "lora_path": "p"}}
	}
	if a.NArgs == "*" || a.NArgs == "+" {
		return slices.Repeat([]any{one()}, 1+rng.IntN(2))
	}
	return one()
}
