package sglangtest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// bounded returns the config with a size that takes milliseconds to simulate, and with files of the test alone.
func (c NodeConfig) bounded(dir, dataset string) NodeConfig {
	const requests, tokens = 20, 200
	least := func(v *int, most int) { *v = min(*v, most) }
	least(&c.NumPrompts, requests)
	if c.NumPrompts == 0 {
		c.NumPrompts = requests
	}
	least(&c.RandomInputLen, tokens)
	least(&c.RandomOutputLen, tokens)
	if p := c.SamplingParams; p != nil && p.MaxNewTokens != nil {
		least(p.MaxNewTokens, tokens)
	}
	// So many requests at this rate, in samples at this interval, are few.
	if c.RequestRate > 0 {
		c.RequestRate = max(c.RequestRate, 0.1)
	}
	if c.MetricsInterval > 0 {
		c.MetricsInterval = max(c.MetricsInterval, 0.1)
	}
	if c.DatasetPath != "" {
		c.DatasetPath = dataset
	}
	if c.OutputDir != "" {
		c.OutputDir = filepath.Join(dir, "run")
	}
	return c
}

// FuzzConfig goes from the bytes of a config and of a dataset to a run in virtual time: whatever they are, it ends, with an error
// or a summary that can be stored. A run that would take long is broken off, which has to end it at once.
func FuzzConfig(f *testing.F) {
	rows := "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 5, \"hash_ids\": [0]}\n{\"timestamp\": 250, \"input_length\": 700, \"output_length\": 3, \"hash_ids\": [0, 1]}\n"
	f.Add([]byte(`{"dataset_name": "azure-conversation", "request_rate": 8, "num_prompts": 9, "seed": 3, "max_running_requests": 16, "enable_dynamic_params": true,
		"param_update_schedule": {"0.5": {"max_running_requests": 2}, "1": {"max_running_requests": 16}}}`), []byte(""))
	f.Add([]byte(`{"dataset_name": "random", "random_input_len": 64, "random_output_len": 16, "random_range_ratio": 0.5, "request_rate": "inf", "num_prompts": 7,
		"max_concurrency": 2, "output_dir": "x", "output_format": "csv", "omit_chunks": true, "percentiles": [50, 99.9], "metrics_interval": 0.5}`), []byte(""))
	f.Add([]byte(`{"dataset_name": "mooncake", "dataset_path": "x", "trace_speed": 2, "duration": 3, "time_unit": "ms", "block_size": 512, "odd_rows": "skip",
		"chunked_prefill_size": 256, "schedule_conservativeness": 0.5, "server_args": {"schedule_policy": "lpm", "page_size": 16, "max_total_tokens": 4096,
		"disable_radix_cache": false, "max_queued_requests": 4, "context_length": 2048}}`), []byte(rows))
	f.Add([]byte(`{"dataset_name": "sharegpt", "dataset_path": "x", "request_rate": 4, "request_timeout": 0.2, "sampling_params": {"max_new_tokens": 8, "temperature": 0,
		"ignore_eos": false, "stop": ["x"]}, "api": "chat_completions"}`), []byte(`[{"conversations": [{"from": "human", "value": "x y"}, {"from": "gpt", "value": "z"}]}]`))
	f.Add([]byte(`{"dataset_name": "jsonl", "dataset_path": "x", "request_rate": 4, "server_args": {"enable_mixed_chunk": true, "max_prefill_tokens": 512,
		"enable_priority_scheduling": true}}`), []byte("{\"prompt\": \"a\", \"output_len\": 4}\n{\"input_len\": 9, \"output_len\": 2}\n{\"input_ids\": [1, 2], \"output_len\": 2}"))
	f.Add([]byte(`{"dataset_name": "azure", "dataset_path": "x", "trace_speed": 1, "warmup_requests": 1, "keep_cache": true}`),
		[]byte("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:47,3,4\n"))
	f.Add([]byte(`{"dataset_name": "burstgpt", "dataset_path": "x", "trace_speed": 1}`),
		[]byte("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"))
	f.Fuzz(func(t *testing.T, config, dataset []byte) {
		dir := t.TempDir()
		path, data := filepath.Join(dir, "config.json"), filepath.Join(dir, "dataset")
		require.NoError(t, os.WriteFile(path, config, 0o600))
		require.NoError(t, os.WriteFile(data, dataset, 0o600))
		cfg, err := LoadNodeConfig(path)
		if err != nil {
			return
		}
		require.NoError(t, cfg.Save(path))
		again, err := LoadNodeConfig(path)
		require.NoError(t, err)
		require.Equal(t, cfg, again)

		const most, grace = 2 * time.Second, 20 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), most)
		defer cancel()
		began := time.Now()
		run, err := RunNode(ctx, cfg.bounded(dir, data), WithVirtualTime(sim.H100Llama8B()))
		require.Less(t, time.Since(began), most+grace, "a run that is broken off ends")
		if run == nil {
			require.Error(t, err)
			return
		}
		_, marshal := json.Marshal(run.Summary)
		require.NoError(t, marshal)
		require.NotEmpty(t, run.Summary.String())
		if run.Dir != "" {
			stored, open := results.Open(run.Dir)
			require.NoError(t, open)
			want := results.StateFinished
			if err != nil {
				want = results.StateFailed
			}
			require.Equal(t, want, stored.State)
		}
	})
}
