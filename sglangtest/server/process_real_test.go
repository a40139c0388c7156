//go:build linux

package server

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// envSGLangDir names a folder with a real SGLang that runs on the CPU: its Python as "python", and the model "tiny-llama".
// These tests take minutes, and are for whoever changes how servers are launched and stopped.
const envSGLangDir = "SGLANGTEST_SGLANG_DIR"

type realSGLang struct {
	*testing.T
	m      *ServerManager
	config Config
	logs   string
}

func newRealSGLang(t *testing.T, opts ...Option) realSGLang {
	dir := os.Getenv(envSGLangDir)
	if dir == "" {
		t.Skipf("no real SGLang to launch: set %s to its folder", envSGLangDir)
	}
	r := realSGLang{T: t, logs: t.TempDir(), config: Config{
		ModelPath: filepath.Join(dir, "tiny-llama"), LoadFormat: "dummy", DType: "float32", AttentionBackend: "torch_native", MaxTotalTokens: 20000,
		MemFractionStatic: 0.1, MaxRunningRequests: 64, EnableMetrics: true, Args: Args{"device": "cpu", "sampling_backend": "pytorch"},
	}}
	start := time.Now()
	opts = append([]Option{WithEvents(func(e Event) { t.Logf("%6.2f %s %s: %s", e.Time.Sub(start).Seconds(), e.Server, e.Kind, e.Message) })}, opts...)
	l := LocalProcess(WithCommand(filepath.Join(dir, "python"), "-m", "sglang.launch_server"))
	r.m = newManager(t, l, nil, append(opts, WithLogFolder(r.logs))...)
	t.Cleanup(func() { require.NoError(t, r.m.StopAll(context.Background())) })
	return r
}

// quietVariable says that nobody else starts and stops SGLang servers on this machine, real or simulated ones.
const quietVariable = "SGLANGTEST_QUIET"

// shm lists the load snapshots of SGLang in /dev/shm; none unless the machine is quiet.
func shm(t *testing.T) []string {
	if os.Getenv(quietVariable) == "" {
		return nil
	}
	names, err := filepath.Glob("/dev/shm/sglang_loads_*")
	require.NoError(t, err)
	return names
}

func (r realSGLang) fails(cfg Config) *FailureError {
	before := shm(r.T)
	_, err := r.m.Launch(r.Context(), cfg)
	r.Logf("%v", err)
	var failure *FailureError
	require.ErrorAs(r, err, &failure)
	require.Empty(r, r.m.Servers())
	require.Equal(r, before, shm(r.T))
	return failure
}

func TestRealProcessRefuses(t *testing.T) {
	r := newRealSGLang(t)
	cfg := r.config
	cfg.ModelPath = "/no/such/model"
	require.Equal(t, CauseModel, r.fails(cfg).Cause)
	r.m.launcher = LocalProcess(WithCommand(filepath.Join(os.Getenv(envSGLangDir), "python"), "-m", "sglang.launch_server", "--no-such-flag"))
	require.Equal(t, CauseArgument, r.fails(r.config).Cause)
}

func TestRealProcessPortTakenMeanwhile(t *testing.T) {
	r := newRealSGLang(t)
	port := freePort(t)
	took := make(chan net.Listener, 1)
	r.m.events = newStream(func(e Event) {
		t.Log(e.Kind, e.Message)
		if e.Kind == KindPhase && e.Phase.Name == PhaseImport {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strings.TrimPrefix(r.m.servers[0].URL(), "http://127.0.0.1:")))
			if err == nil {
				took <- l
			}
		}
	})
	cfg := r.config
	cfg.Port = port
	failure := r.fails(cfg)
	(<-took).Close()
	require.Equal(t, CausePortInUse, failure.Cause) // the server may hang, since nobody answers its first request
}

func TestRealProcessLife(t *testing.T) {
	r := newRealSGLang(t)
	before := shm(t)
	s, err := r.m.Launch(t.Context(), r.config)
	require.NoError(t, err)
	for _, p := range s.Startup() {
		t.Log(p)
	}
	left := traces(t, s)
	t.Logf("%+v, processes %v", left, members(left.Group, left.Marker, left.Logs...))

	t.Log("stop under load")
	done := make(chan error, 1)
	go func() {
		done <- s.client.once(context.Background(), "POST", "/generate", map[string]any{"input_ids": []int{1, 2, 3},
			"sampling_params": map[string]any{"max_new_tokens": 1500, "ignore_eos": true}}, nil)
	}()
	eventually(t, "it runs", func() bool {
		loads, err := s.Loads(t.Context())
		return err == nil && loads[0].NumRunning == 1
	})
	require.NoError(t, s.Stop(t.Context()))
	t.Log("the request under way:", <-done)
	exit, _ := s.Exit()
	t.Logf("exit %v after %v", exit, exit.Took)
	require.True(t, exit.Clean(s.Info().Version))
	left.requireGone(t)
	require.Equal(t, before, shm(t))

	t.Log("stop idle")
	require.NoError(t, s.Restart(t.Context(), nil))
	left = traces(t, s)
	require.NoError(t, s.Stop(t.Context()))
	exit, _ = s.Exit()
	t.Logf("exit %v after %v", exit, exit.Took)
	require.True(t, exit.Clean(s.Info().Version))
	left.requireGone(t)
	require.Equal(t, before, shm(t))

	t.Log("a scheduler that dies")
	require.NoError(t, s.Restart(t.Context(), nil))
	left = traces(t, s)
	killed := false
	for _, pid := range members(left.Group, left.Marker, left.Logs...) {
		title, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		require.NoError(t, err)
		if strings.HasPrefix(string(title), "sglang::scheduler") {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			killed = true
		}
	}
	require.True(t, killed)
	at := time.Now()
	<-s.Exited()
	t.Logf("ended after %v: %v", time.Since(at), s.Err())
	var failure *FailureError
	require.ErrorAs(t, s.Err(), &failure)
	left.requireGone(t)
	require.Equal(t, before, shm(t))
}

func TestRealProcessKilled(t *testing.T) {
	r := newRealSGLang(t)
	before := shm(t)
	t.Log("stopped while it loads")
	ctx, cancel := context.WithCancel(t.Context())
	var left fakeTraces
	report := r.m.events.deliver
	r.m.events = newStream(func(e Event) {
		report(e)
		if e.Kind == KindPhase && e.Phase.Name == PhaseSpawn {
			left = traces(t, r.m.servers[0])
			cancel()
		}
	})
	_, err := r.m.Launch(ctx, r.config)
	require.ErrorIs(t, err, context.Canceled)
	left.requireGone(t)
	require.Equal(t, before, shm(t))

	t.Log("killed from outside")
	s, err := r.m.Launch(t.Context(), r.config)
	require.NoError(t, err)
	left = traces(t, s)
	require.NoError(t, syscall.Kill(left.Group, syscall.SIGKILL))
	<-s.Exited()
	t.Log(s.Err())
	left.requireGone(t)
	require.Equal(t, before, shm(t))
}
