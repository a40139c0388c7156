package sglangtest

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/server"
)

// A server that was only attached to and is killed ends the run as one that the run launched: with an error, an event, a failed
// state. It does not matter whether the load outlasts its end.
func TestAttachedServerThatIsKilled(t *testing.T) {
	for name, requests := range map[string]int{"while load goes on": 2000, "before the last requests": 22} {
		t.Run(name, func(t *testing.T) {
			node := running(t, server.Config{})
			cfg := short()
			cfg.NumPrompts, cfg.RequestRate, cfg.OutputDir = requests, 20, filepath.Join(t.TempDir(), "run")
			var once bool
			kill := WithProgress(func(p metrics.Progress) {
				if p.Completed >= 10 && !once {
					once = true
					now, cancel := context.WithCancel(context.Background())
					cancel()
					_ = node.Stop(now) // by force
				}
			})
			began := time.Now()
			run, err := RunNode(t.Context(), cfg, WithLauncher(server.Attach(node.URL())), kill)
			require.Less(t, time.Since(began), 20*time.Second)
			var ended *server.ExitedError
			require.ErrorAs(t, err, &ended)
			require.ErrorContains(t, err, "the server that was attached to is no longer there")
			s := run.Summary
			require.Equal(t, metrics.VerdictFailed, s.Verdict)
			require.Positive(t, s.Requests.OK)
			require.Positive(t, s.Requests.Failed)
			require.Zero(t, s.Requests.Censored)
			events := run.Collector.Events()
			i := slices.IndexFunc(events, func(e metrics.Event) bool { return e.Kind == metrics.KindServerEnded })
			require.GreaterOrEqual(t, i, 0)
			require.Equal(t, "server-0", events[i].Source)
			stored, err := results.Open(run.Dir)
			require.NoError(t, err)
			require.Equal(t, results.StateFailed, stored.State)
		})
	}
}
