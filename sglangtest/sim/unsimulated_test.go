package sim

import (
	"maps"
	"slices"
	"testing"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

// An argument that is shown and may change times, capacity or schedule voids what is known of the error.
func TestLabelNamesWhatIsNotSimulated(t *testing.T) {
	p := H100Llama8B()
	args := map[string]any{
		"model_path": "meta-llama/Llama-3.1-70B", "quantization": "fp8", "tp_size": 4, "enable_torch_compile": true, "disable_cuda_graph": true,
		"mem_fraction_static": 0.9, "dtype": "float16", "kv_cache_dtype": "fp8_e5m2", "speculative_algorithm": "EAGLE", "enable_dp_attention": true,
		"attention_backend": "triton", "max_queued_requests": 0, "schedule_policy": "routing-key", "stream_interval": 4, "pp_size": 2,
		"json_model_override_args": `{"a": "ü"}`, "log_requests": true, "load_format": "dummy", "download_dir": "/models", "api_key": "secret", "port": 1,
	}
	const want = `arguments not simulated: attention_backend triton, disable_cuda_graph, dtype float16, enable_dp_attention, enable_torch_compile, ` +
		`json_model_override_args "{\"a\": \"\u00fc\"}", kv_cache_dtype fp8_e5m2, max_queued_requests 0, mem_fraction_static 0.9, ` +
		`model meta-llama/Llama-3.1-70B (profile: meta-llama/Llama-3.1-8B-Instruct), pp_size 2, quantization fp8, schedule_policy routing-key, ` +
		`speculative_algorithm EAGLE, stream_interval 4, tp_size 4`
	s, err := NewServer(p, server.Config{DPSize: 2}, WithServerArgs(args))
	require.NoError(t, err)
	l := s.Simulation()
	require.Equal(t, p.Name+" with dp_size 2 (profile: 1; a separate GPU like the profile's for each rank) and "+want, l.Profile)
	require.Regexp(t, "^not calibrated with .*tp_size 4; the profile as it is: SGLang 0.5.15", l.Calibrated)
	require.Regexp(t, "^not measured with .*tp_size 4; the profile as it is: by kind of workload, from 5 measured runs", l.KnownError)
	require.Nil(t, l.Validation, "it was made with another server")
	require.Equal(t, p.Name+" with "+want, s.SimulatedBy())
	require.Contains(t, s.Unsimulated(), "model_path")
	s.NoteFault("hang")
	require.Equal(t, p.Name+" with "+want+" and faults hang", s.SimulatedBy())
}

// What the profile was calibrated with, SGLang's defaults and what does not matter leave the label as it is.
func TestLabelLeavesOut(t *testing.T) {
	p := H100Llama8B()
	for _, args := range []map[string]any{
		{"model_path": "/models/llama-3.1-8B-instruct/", "dtype": "bfloat16", "kv_cache_dtype": "bf16", "attention_backend": "fa3", "mem_fraction_static": 0.83,
			"cuda_graph_max_bs_decode": 256, "device": "cuda", "sampling_backend": "pytorch", "grammar_backend": "none"},
		{"tp_size": 1, "quantization": nil, "disable_cuda_graph": false, "dtype": "auto", "kv_cache_dtype": "auto", "grammar_backend": "xgrammar", "speculative_algorithm": nil},
		{"log_level": "debug", "load_format": "dummy", "watchdog_timeout": 5, "trust_remote_code": true, "crash_dump_folder": "x", "enable_metrics_for_all_schedulers": true},
	} {
		s, err := NewServer(p, server.Config{}, WithServerArgs(args))
		require.NoError(t, err)
		require.Equal(t, p.Name, s.Simulation().Profile)
		require.Equal(t, p.KnownError, s.Simulation().KnownError)
		require.Equal(t, p.Name, s.SimulatedBy())
		require.Empty(t, s.Unsimulated())
	}
	four, err := ProfileByName("h100x4-llama-3.1-70b-uncalibrated")
	require.NoError(t, err)
	require.Empty(t, four.lacks(Version, map[string]any{"tp_size": 4}))
	require.Len(t, four.lacks(Version, map[string]any{"tp_size": 1}), 1)
	require.Len(t, four.lacks(Version, map[string]any{"tp_size": 2, "mem_fraction_static": 0.83}), 2)
}

// The names are SGLang's, and what the scheduler works with is none of them.
func TestHarmlessArgumentsExist(t *testing.T) {
	for _, name := range append(slices.Clone(harmless), slices.Sorted(maps.Keys(calibration))...) {
		known := slices.ContainsFunc(sglargs.Tables(), func(table *sglargs.Table) bool { _, ok := table.Lookup(name); return ok })
		require.True(t, known, name)
	}
	for _, a := range arguments {
		if a.why == byProfile || a.why == oneGPU {
			require.NotContains(t, harmless, a.Name)
		}
	}
}
