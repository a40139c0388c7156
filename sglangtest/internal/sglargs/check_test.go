package sglargs_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

func table(t *testing.T, version string) *sglargs.Table {
	t.Helper()
	out, err := sglargs.For(version)
	require.NoError(t, err)
	return out
}

// What Render writes, Parse reads back, for every argument of every version.
func TestRenderAndParse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, version := range sglargs.Versions() {
		table := table(t, version)
		for _, a := range table.Args() {
			field, err := table.Find(a.Field)
			if err != nil || field != a || a.Field == "config" || a.Field == "log_level" {
				continue
			}
			for range 5 {
				want, err := table.Normal(a, sample(rng, a))
				require.NoError(t, err, "%s: %v", a.Field, a)
				argv, err := table.Render(a, want)
				if err != nil && strings.Contains(err.Error(), "looks like a flag") {
					continue
				}
				require.NoError(t, err)
				if a.Field != "model_path" {
					argv = append([]string{"--model-path", "m"}, argv...)
				}
				parsed, err := table.Parse(argv)
				require.NoError(t, err, "%q", argv)
				require.Equal(t, want, parsed.Value(a.Field), "%s: %q", a.Field, argv)
			}
		}
	}
}

// sample makes a value that an argument takes.
func sample(rng *rand.Rand, a *sglargs.Arg) any {
	pick := func(values ...any) any { return values[rng.IntN(len(values))] }
	one := func() any {
		if a.Choices != nil {
			return pick(a.Choices...)
		}
		switch a.Kind {
		case sglargs.Bool:
			return rng.IntN(2) == 0 || a.Action == sglargs.StoreTrue
		case sglargs.Int, sglargs.HumanInt:
			return rng.IntN(1000) - 200
		case sglargs.Float:
			return pick(0.5, -2.0, 1e-7, 3, 1e22)
		case sglargs.JSON, sglargs.JSONList:
			return pick(map[string]any{"a": []any{1, 2.5, "é<>", nil, true}}, []any{}, map[string]any{})
		case sglargs.GraphConfig:
			return map[string]any{"decode": map[string]any{"max_bs": rng.IntN(100)}}
		}
		return pick("a", "a b", "-x", "--port", "--", "-", "-1", "a=b", "it's", `{"a"`, "-x y")
	}
	if a.Action != sglargs.LoRAPaths && a.NArgs != "*" && a.NArgs != "+" {
		return one()
	}
	list := make([]any, 1+rng.IntN(3))
	for i := range list {
		list[i] = one()
		if a.Action == sglargs.LoRAPaths {
			list[i] = pick("path", "name=path", map[string]any{"lora_name": "n", "lora_path": "-p"})
		}
	}
	return list
}

func TestFind(t *testing.T) {
	for _, c := range []struct{ version, field, want string }{
		{"0.5.23", "page_size", ""},
		{"0.5.23", "pagesize", `SGLang has no such argument; did you mean "page_size"?`},
		{"0.5.23", "max_runing_requests", `SGLang has no such argument; did you mean "max_running_requests"?`},
		{"0.5.23", "--tp-size", `the name of this argument is "tp_size"`},
		{"0.5.23", "tensor_parallel_size", `the name of this argument is "tp_size"`},
		{"0.5.23", "cuda_graph_max_bs", "SGLang 0.5.23 does not have it: last known in 0.5.18; use --cuda-graph-max-bs-decode"},
		{"0.5.18", "cuda_graph_max_bs", "deprecated: use --cuda-graph-max-bs-decode"},
		{"0.5.18", "attn_dp_size", "SGLang 0.5.18 does not have it: known from 0.5.23 on"},
		{"0.5.18", "enable_expert_distribution_metrics", "--enable-expert-distribution-metrics is no longer supported. Use --expert-balancedness-report-mode with one of: off, server_log, prometheus, both"},
		{"0.5.18", "collect_tokens_histogram", "SGLang 0.5.18 ignores it: leave it out"},
		{"0.5.23", "help", "SGLang has no such argument; --help lists them"},
		{"0.5.23", "disable_cuda_graph", ""},
	} {
		_, err := table(t, c.version).Find(c.field)
		if c.want == "" {
			require.NoError(t, err, c.field)
			continue
		}
		if c.field == "help" {
			require.Error(t, err)
			continue
		}
		require.EqualError(t, err, c.want, c.field)
	}
}

func TestNormal(t *testing.T) {
	latest := sglargs.Latest()
	for _, c := range []struct {
		field string
		value any
		want  string // the value as Go writes it, or what is wrong
	}{
		{"page_size", int64(16), "16"},
		{"page_size", 16.0, "16"},
		{"page_size", 16.5, "16.5; want a whole number"},
		{"page_size", "16", `"16"; want a whole number`},
		{"page_size", true, "true; want a whole number"},
		{"context_length", "8k", "8000"},
		{"context_length", "8x", "Invalid integer value: '8x'. Use a plain integer, SI suffixes (1k, 1M), or IEC suffixes (1Ki, 1Mi). Suffixes are case-sensitive."},
		{"enable_metrics", 1, "1; want true or false"},
		{"lora_strict_loading", false, "false"},
		{"swa_full_tokens_ratio", 1, "1"},
		{"swa_full_tokens_ratio", "0.5", `"0.5"; want a number`},
		{"schedule_policy", "lmp", `"lmp" is not one that SGLang 0.5.23 takes; did you mean "lpm"?`},
		{"log_requests_level", 7, "7 is not one that SGLang 0.5.23 takes; valid are 0, 1, 2, 3"},
		{"gc_threshold", []int{700, 10}, "[700 10]"},
		{"gc_threshold", 700, "700; want a list"},
		{"gc_threshold", []int{}, "want at least one value in the list"},
		{"gc_threshold", []any{1, "x"}, `[1]: "x"; want a whole number`},
		{"preferred_sampling_params", map[string]int{"n": 1}, "map[n:1]"},
		{"preferred_sampling_params", `{"n":1}`, `"{\"n\":1}"; want a JSON object or list, not its text`},
		{"cuda_graph_config", map[string]any{"decode": map[string]any{"max_bz": 1}},
			"--cuda-graph-config['decode']: unknown key 'max_bz', expected one of ('backend', 'max_bs', 'bs')"},
		{"lora_paths", []any{map[string]any{"lora_name": "a"}}, "[0]: want a path, or an object with lora_name and lora_path"},
		{"page_size", nil, "want a value: leave the argument out for SGLang's default"},
	} {
		a, err := latest.Find(c.field)
		require.NoError(t, err)
		v, err := latest.Normal(a, c.value)
		if err != nil {
			require.EqualError(t, err, c.want, c.field)
			continue
		}
		require.Equal(t, c.want, fmt.Sprint(v), c.field)
	}
}
