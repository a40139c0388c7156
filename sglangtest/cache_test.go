package sglangtest

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// running launches a simulated server that experiments attach to.
func running(t *testing.T, cfg server.Config) *server.Server {
	t.Helper()
	servers, err := server.NewServerManager(defaultLauncher())
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, servers.StopAll(ctx))
	})
	node, err := servers.Launch(t.Context(), cfg)
	require.NoError(t, err)
	return node
}

// text is a summary without its line breaks.
func text(s *metrics.Summary) string { return strings.Join(strings.Fields(s.String()), " ") }

// A second run with the same seed on an attached server finds the prompts of the first in its cache. It says so, whether or
// not the API tells how many tokens were cached.
func TestASecondRunOnAnAttachedServer(t *testing.T) {
	for _, api := range []load.API{load.Generate, load.Completions, load.ChatCompletions} {
		t.Run(string(api), func(t *testing.T) {
			node := running(t, server.Config{})
			run := func(keep *bool) *metrics.Summary {
				cfg := short()
				cfg.API, cfg.RandomRangeRatio, cfg.KeepCache = api, 1, keep
				run, err := RunNode(t.Context(), cfg, WithLauncher(server.Attach(node.URL())))
				require.NoError(t, err)
				require.Equal(t, 20, run.Summary.Requests.OK)
				return run.Summary
			}
			note := func(s *metrics.Summary) string {
				i := slices.IndexFunc(s.Notes, func(n string) bool { return strings.Contains(n, "from the server's prefix cache") })
				if i < 0 {
					return ""
				}
				return s.Notes[i]
			}
			first := run(nil)
			require.Empty(t, note(first))
			require.Equal(t, metrics.CacheUnknown, first.Cache)
			require.Contains(t, text(first), "prefix cache state unknown: the server ran before")
			head, _, _ := strings.Cut(text(first), " workload ")
			require.Contains(t, head, "prefix cache state unknown", "among the first lines")

			second := run(nil)
			require.Contains(t, note(second), "98.4 % of the input tokens came", "63 of each 64")
			require.Contains(t, note(second), "equal beginnings of the workload's own prompts explain at most 0.0 %: the rest was in the cache before the run")

			third := run(load.Ptr(false))
			require.Empty(t, note(third), "emptied")
			require.Equal(t, metrics.CacheFlushed, third.Cache)
			require.NotContains(t, text(third), "prefix cache")

			fourth := run(load.Ptr(true))
			require.Contains(t, note(fourth), "98.4 %")
			require.Equal(t, metrics.CacheKept, fourth.Cache)
			require.Contains(t, text(fourth), "prefix cache kept as it was before the run (keep_cache: true)")
		})
	}
}

// An attached server is flushed after a warm-up only if that is asked for; one that the run launched, unless it is not to be.
func TestWhoseCacheIsFlushed(t *testing.T) {
	node := running(t, server.Config{})
	cfg := short()
	cfg.WarmupRequests = 1
	for range 2 {
		run, err := RunNode(t.Context(), cfg, WithLauncher(server.Attach(node.URL())))
		require.NoError(t, err)
		require.Equal(t, metrics.CacheUnknown, run.Summary.Cache)
	}
	run, err := RunNode(t.Context(), cfg, WithLauncher(server.Attach(node.URL())))
	require.NoError(t, err)
	require.Greater(t, *run.Summary.Throughput.CachedTokens*2, run.Summary.Throughput.InputTokens, "what others cached is still there")

	run, err = RunNode(t.Context(), short())
	require.NoError(t, err)
	require.Equal(t, metrics.CacheFlushed, run.Summary.Cache)
	cfg = short()
	cfg.KeepCache = load.Ptr(true)
	run, err = RunNode(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, metrics.CacheKept, run.Summary.Cache)
}

// A workload whose prompts share beginnings explains its own cached tokens.
func TestSharedPromptsExplainTheCache(t *testing.T) {
	cfg := shared(t)
	cfg.NumPrompts, cfg.MaxRunningRequests = 60, 0
	run, err := RunNode(t.Context(), cfg)
	require.NoError(t, err)
	s := run.Summary
	require.Equal(t, int64(55*1000), s.Plan.Prompts.Shared, "five prefixes")
	require.Greater(t, *s.Throughput.CachedTokens*10, s.Throughput.InputTokens*5)
	require.NotContains(t, strings.Join(s.Notes, "\n"), "prefix cache")
	require.Contains(t, text(s), "55000 begin like earlier ones of the workload")
}

// Before 0.5.21 the engine counts exactly in /metrics alone: with it the note is the same, without it nothing is claimed.
func TestASecondRunOnAnOlderServer(t *testing.T) {
	for name, enabled := range map[string]bool{"with /metrics": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			servers, err := server.NewServerManager(server.LocalProcess(server.WithCommand(os.Args[0], "--sim-version", "0.5.15.post1", "--sim-files", "false"),
				server.WithEnvironment(map[string]string{envProcess: "1"})))
			require.NoError(t, err)
			t.Cleanup(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				require.NoError(t, servers.StopAll(ctx))
			})
			node, err := servers.Launch(t.Context(), server.Config{ModelPath: "llama", EnableMetrics: enabled})
			require.NoError(t, err)
			require.Equal(t, enabled, node.HasMetrics())
			for i := range 2 {
				cfg := short()
				cfg.API, cfg.RandomRangeRatio = load.Completions, 1
				run, err := RunNode(t.Context(), cfg, WithLauncher(server.Attach(node.URL())))
				require.NoError(t, err)
				require.Equal(t, 20, run.Summary.Requests.OK)
				require.Equal(t, enabled, run.Summary.Throughput.CachedByEngine != nil)
				said := strings.Contains(strings.Join(run.Summary.Notes, "\n"), "98.4 % of the input tokens came, by the engine's own count")
				require.Equal(t, enabled && i == 1, said, run.Summary)
				require.Equal(t, metrics.CacheUnknown, run.Summary.Cache)
			}
		})
	}
}
