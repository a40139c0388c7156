//go:build linux

package server_test

import (
	"context"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/internal/leftover"
	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// These tests launch a real SGLang on the CPU, several times, each of which takes a minute. They are parallel: a start
// waits for one core most of the time.

func newReal(t *testing.T, args ...string) (*local, server.Config) {
	dir := refdata.SGLangDir(t)
	t.Parallel()
	l := server.LocalProcess(server.WithCommand(filepath.Join(dir, "python"), append([]string{"-m", "sglang.launch_server"}, args...)...))
	return newLocal(t, l, ""), server.Config{ModelPath: filepath.Join(dir, "tiny-llama"), LoadFormat: "dummy", DType: "float32",
		AttentionBackend: "torch_native", MaxTotalTokens: 20000, MemFractionStatic: 0.1, MaxRunningRequests: 64, EnableMetrics: true,
		Args: server.Args{"device": "cpu", "sampling_backend": "pytorch"}}
}

func TestRealProcessMissingModel(t *testing.T) {
	r, cfg := newReal(t)
	cfg.ModelPath = "/no/such/model"
	failure := r.fails(cfg)
	require.Equal(t, server.CauseModel, failure.Cause)
	require.Equal(t, 1, failure.Exit.Code)
}

func TestRealProcessUnknownArgument(t *testing.T) {
	r, cfg := newReal(t, "--no-such-flag")
	failure := r.fails(cfg)
	require.Equal(t, server.CauseArgument, failure.Cause)
	require.Equal(t, 2, failure.Exit.Code)
}

// The port is taken while the server loads, which SGLang finds only then.
func TestRealProcessPortTaken(t *testing.T) {
	for _, answers := range []bool{true, false} {
		name := "by what answers nothing, so that SGLang hangs"
		if answers {
			name = "by what answers, so that SGLang says that it is ready"
		}
		t.Run(name, func(t *testing.T) {
			r, cfg := newReal(t)
			cfg.Port = freePort(t)
			r.onEvent = func(e server.Event) {
				if e.Kind != server.KindPhase || e.Phase.Name != server.PhaseImport {
					return
				}
				takePort(t, cfg.Port, answers)
			}
			failure := r.fails(cfg)
			require.Equal(t, server.CausePortInUse, failure.Cause)
			t.Logf("exit: %v", failure.Exit) // status 3, if its own first request to the other server ends soon
		})
	}
}

func TestRealProcessStoppedWhileLoading(t *testing.T) {
	r, cfg := newReal(t)
	ctx, cancel := context.WithCancel(t.Context())
	var s *server.Server
	var temp string
	var waiter sync.WaitGroup
	r.onEvent = func(e server.Event) {
		if e.Kind != server.KindPhase || e.Phase.Name != server.PhaseImport {
			return
		}
		s = r.m.Servers()[0]
		temp = r.main(s).Temp
		waiter.Go(func() { // events must not wait
			defer cancel()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ; ctx.Err() == nil; <-tick.C { // until the first child has imported, and taken its name
				processes, err := r.watch.Processes()
				if err != nil || slices.ContainsFunc(processes, func(p leftover.Process) bool { return strings.HasPrefix(p.Command, "sglang::") }) {
					return
				}
			}
		})
	}
	defer waiter.Wait()
	defer cancel()
	_, err := r.m.Launch(ctx, cfg)
	require.ErrorIs(t, err, context.Canceled)
	r.gone(temp)
	exit, _ := s.Exit()
	t.Logf("exit while loading: %v after %v", exit, exit.Took)
	require.Equal(t, syscall.SIGTERM, exit.Signal)
	require.True(t, exit.Clean(""))
}

func TestRealProcessLife(t *testing.T) {
	r, cfg := newReal(t)
	s := r.launch(cfg)
	version := s.Info().Version
	t.Logf("SGLang %s: %s", version, describe(s))
	startupInOrder(t, s)

	loads, err := s.Loads(t.Context())
	require.NoError(t, err)
	require.Len(t, loads, 1)
	require.Equal(t, 20000, loads[0].MaxTotalTokens)
	sample, err := s.Sampler().Sample(t.Context())
	require.NoError(t, err)
	require.Contains(t, sample, metrics.NumRunning)
	series, err := s.MetricsSampler().Sample(t.Context())
	require.NoError(t, err)
	require.Contains(t, series, "sglang:num_running_reqs")
	t.Logf("telemetry: %d values of /v1/loads, %d of /metrics", len(sample), len(series))

	changeLimits(t, s, 400)
	decodes, prefills := 0, 0
	for _, line := range s.Log().Tail(4096) {
		if b, ok := server.ParseBatch(line.Text); ok && b.Prefill {
			prefills++
		} else if ok {
			decodes++
		}
	}
	t.Logf("telemetry: %d prefill and %d decode batches in the log", prefills, decodes)
	require.True(t, prefills > 0 && decodes > 0)

	answer := longRequest(t, s, 500)
	exit := r.stops(s)
	t.Logf("exit under load: %v after %v", exit, exit.Took)
	require.Equal(t, http.StatusOK, <-answer, "it drains")

	require.NoError(t, s.Restart(t.Context(), nil))
	exit = r.stops(s)
	t.Logf("exit idle: %v after %v", exit, exit.Took)

}

func TestRealProcessKilled(t *testing.T) {
	r, cfg := newReal(t)
	s := r.launch(cfg)
	t.Logf("SGLang %s: %s", s.Info().Version, describe(s))
	r.kill(r.process("sglang::scheduler"))
	at := time.Now()
	failure := r.failed(s)
	t.Logf("after SIGKILL of the scheduler it ended within %v: %v", time.Since(at), failure)
	require.Equal(t, server.CauseKilled, failure.Cause)

	require.NoError(t, s.Restart(t.Context(), nil))
	r.kill(r.main(s))
	at = time.Now()
	failure = r.failed(s)
	t.Logf("after SIGKILL all of it had gone within %v: %v", time.Since(at), failure)
	require.Equal(t, server.CauseKilled, failure.Cause)
	require.Equal(t, syscall.SIGKILL, failure.Exit.Signal)
}
