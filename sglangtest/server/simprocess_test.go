//go:build linux

package server_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim/process"
)

// asSimulated makes the test binary the command sglang-sim.
const asSimulated = "SGLANGTEST_SERVER_AS_SIMULATED"

func init() {
	if os.Getenv(asSimulated) != "" {
		os.Exit(process.Main(os.Args[1:]))
	}
}

// simulatedVersions are those with recordings, and how each ends when it is asked to.
var simulatedVersions = []struct {
	name string
	exit server.Exit
}{
	{"0.5.15.post1", server.Exit{Code: -1, Signal: syscall.SIGKILL}},
	{"0.5.18", server.Exit{Code: -1, Signal: syscall.SIGKILL}},
	{"0.5.21", server.Exit{}},
	{"0.5.23", server.Exit{}},
}

// newSimulated launches simulated servers. SGLang's waiting times are a twentieth of what they are.
func newSimulated(t *testing.T, version string, args ...string) *local {
	return newSimulatedWith(t, version, nil, nil, args...)
}

func newSimulatedWith(t *testing.T, version string, process []server.ProcessOption, opts []server.Option, args ...string) *local {
	exe, err := os.Executable()
	require.NoError(t, err)
	args = append([]string{"--sim-version", version, "-m", "sglang.launch_server"}, args...)
	environment, instance := simulatedEnvironment()
	process = append([]server.ProcessOption{server.WithCommand(exe, args...), environment}, process...)
	return newLocal(t, server.LocalProcess(process...), instance, opts...)
}

func simulatedEnvironment() (_ server.ProcessOption, instance string) {
	instance = fmt.Sprintf("%08x", rand.Uint32())
	return server.WithEnvironment(map[string]string{asSimulated: "1", "SGLANG_SIM_WAITS": "0.05", "SGLANG_SIM_INSTANCE": instance}), instance
}

func simulatedConfig() server.Config {
	return server.Config{ModelPath: "llama", MaxRunningRequests: 64, MaxTotalTokens: 20000, EnableMetrics: true}
}

const newest = "0.5.23"

// plan asks a simulated server for a fault.
func plan(t *testing.T, s *server.Server, fault string) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"fault": fault})
	require.NoError(t, err)
	resp, err := once().Post(s.URL()+"/sim/fault", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Log(err) // it struck before the answer was sent
		return
	}
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

func once() *http.Client { return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} }

// deadly says how each fault that ends a simulated server is diagnosed. A fault of the start makes Launch fail.
var deadly = map[string]struct {
	cause   server.Cause
	text    string // in the lines that show it
	args    string
	serving bool
}{
	"missing-model":      {server.CauseModel, "We couldn't connect to 'https://huggingface.co' to load the files", "", false},
	"gated-model":        {server.CauseGated, "Cannot access gated repo", "", false},
	"missing-package":    {server.CausePackage, "with minimum required version", "", false},
	"unsupported-gpu":    {server.CauseGPU, "SGLang only supports sm75 and above", "", false},
	"unbalanced-memory":  {server.CauseUnbalanced, "The memory capacity is unbalanced", "", false},
	"oom-at-load":        {server.CauseOOMLoad, "torch.OutOfMemoryError: CUDA out of memory", "", false},
	"no-kv-weights":      {server.CauseNoKV, "Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=", "", false},
	"no-kv-memory":       {server.CauseNoKV, "Not enough memory. Please try to increase --mem-fraction-static.", "", false},
	"kv-pool-small":      {server.CauseNoKV, "Memory pool size is too small", "", false},
	"oom-at-graphs":      {server.CauseOOMGraphs, "Capture cuda graph failed", "", false},
	"killed-at-load":     {server.CauseKilled, "scheduler died during initialization (exit code: -9)", "", false},
	"port-in-use":        {server.CausePortInUse, "error while attempting to bind on address", "--sim-startup 3s", false},
	"crash":              {server.CauseSchedulerDied, "Scheduler hit an exception", "", true},
	"oom-prefill":        {server.CauseKVRun, "Prefill out of memory. Try to lower your batch size.", "", true},
	"oom-decode":         {server.CauseKVRun, "Decode out of memory. Try to lower your batch size.", "", true},
	"oom-running":        {server.CauseOOMRun, "CUDA out of memory", "", true},
	"no-request-slot":    {server.CauseKVRun, "alloc_req_slots runs out of memory. Please set a smaller number for", "", true},
	"watchdog":           {server.CauseWatchdog, "watchdog timeout", "", true},
	"scheduler-killed":   {server.CauseKilled, "Subprocess scheduler_0", "", true},
	"detokenizer-killed": {server.CauseKilled, "Subprocess detokenizer", "", true},
	"killed":             {server.CauseKilled, "", "", true}, // it has no time to say anything
	"hang":               {server.CauseWatchdog, "watchdog timeout", "--watchdog-timeout 0.5", true},
}

// Every fault of the simulated server that ends it is diagnosed, with its lines, whatever the version.
func TestSimProcessDeadlyFaults(t *testing.T) {
	r := newSimulated(t, newest)
	s := r.launch(simulatedConfig())
	resp, err := once().Get(s.URL() + "/sim/fault")
	require.NoError(t, err)
	defer resp.Body.Close()
	var listed []struct{ Name, Exit string }
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&listed))
	r.stops(s)
	exits := map[string]string{"hang": "signal 9"} // by the watchdog
	for _, f := range listed {
		if f.Exit != "" {
			exits[f.Name] = f.Exit
		}
	}
	require.Len(t, deadly, len(exits))
	for i, name := range slices.Sorted(maps.Keys(deadly)) {
		want := deadly[name]
		version := simulatedVersions[i%len(simulatedVersions)].name
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, exits, name)
			args := strings.Fields(want.args)
			if !want.serving {
				args = append(args, "--sim-fault", name)
			}
			r := newSimulated(t, version, args...)
			var failure *server.FailureError
			if name == "port-in-use" { // its other server answers until it ends
				_, err := r.m.Launch(t.Context(), simulatedConfig())
				r.gone("")
				require.ErrorAs(t, err, new(*server.PortInUseError), "whichever shows first")
				if !errors.As(err, &failure) {
					return
				}
			} else if !want.serving {
				failure = r.fails(simulatedConfig())
			} else {
				s := r.launch(simulatedConfig())
				plan(t, s, name)
				var requests sync.WaitGroup
				requests.Go(func() { askUntilEnd(s) })
				failure = r.failed(s)
				requests.Wait()
			}
			require.Equal(t, want.cause, failure.Cause, "%v", failure)
			require.Contains(t, strings.Join(failure.Lines, "\n"), want.text)
			require.NotEmpty(t, failure.Advice)
			require.Contains(t, failure.Exit.String(), exits[name])
			require.False(t, failure.Exit.Asked)
		})
	}
}

// askUntilEnd sends generations until the server has ended.
func askUntilEnd(s *server.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		<-s.Exited()
		cancel()
	})
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL()+"/generate", strings.NewReader(`{"text": "hello", "sampling_params": {"max_new_tokens": 8, "ignore_eos": true}}`))
		if err != nil {
			panic(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if resp, err := once().Do(req); err == nil {
			resp.Body.Close()
		}
	}
}

// What SGLang's argument parser refuses, and texts that come from no fault of the simulated server.
func TestSimProcessRefused(t *testing.T) {
	for name, want := range map[string]struct {
		args  string
		cause server.Cause
		code  int
		text  string
	}{
		"unknown":       {"--no-such-flag 1", server.CauseArgument, 2, "error: unrecognized arguments: --no-such-flag 1"},
		"choice":        {"--kv-cache-dtype nope", server.CauseValue, 2, "error: argument --kv-cache-dtype: invalid choice: 'nope'"},
		"policy":        {"--schedule-policy nope", server.CauseValue, 2, "error: argument --schedule-policy: invalid choice: 'nope'"},
		"value":         {"--tp-size abc", server.CauseValue, 2, "invalid int value: 'abc'"},
		"path of model": {"--model-path /no/such/model", server.CauseModel, 1, "/no/such/model"},
	} {
		for _, v := range simulatedVersions {
			t.Run(name+" "+v.name, func(t *testing.T) {
				t.Parallel()
				cfg := simulatedConfig()
				args := strings.Fields(want.args)
				if name == "path of model" {
					cfg.ModelPath, args = args[1], nil
				}
				failure := newSimulated(t, v.name, args...).fails(cfg)
				require.Equal(t, want.cause, failure.Cause, "%v", failure)
				require.Contains(t, strings.Join(failure.Lines, "\n"), want.text)
				require.Equal(t, want.code, failure.Exit.Code)
			})
		}
	}
	t.Run("policy that only the scheduler refuses", func(t *testing.T) {
		t.Parallel()
		l := server.LocalProcess(server.WithCommand("/bin/sh", "-c", `echo "ValueError: Unknown schedule_policy: policy='x'" >&2; kill -KILL $$`))
		require.Equal(t, server.CauseValue, newLocal(t, l, "").fails(simulatedConfig()).Cause)
	})
	t.Run("retraction is a warning", func(t *testing.T) {
		t.Parallel()
		l := server.LocalProcess(server.WithCommand("/bin/sh", "-c",
			`echo "KV cache pool is full. Retract requests. #retracted_reqs: 1, #new_tokens_gained: 40, #new_token_ratio: 0.5 -> 0.6" >&2; exit 7`))
		require.Equal(t, server.CauseUnknown, newLocal(t, l, "").fails(simulatedConfig()).Cause)
	})
}

// Each version ends by itself when it is stopped: idle, under load, and while it loads.
func TestSimProcessStops(t *testing.T) {
	for _, v := range simulatedVersions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			r := newSimulated(t, v.name)
			s := r.launch(simulatedConfig())
			require.Equal(t, v.name, s.Info().Version)
			exit := r.stops(s)
			require.Equal(t, [2]any{v.exit.Code, v.exit.Signal}, [2]any{exit.Code, exit.Signal}, "idle")
			require.NoError(t, s.Err())
			require.Equal(t, server.StateStopped, s.State())
		})
		t.Run(v.name+" under load", func(t *testing.T) {
			t.Parallel()
			r := newSimulated(t, v.name, "--sim-fault", "slow-step:10ms")
			s := r.launch(simulatedConfig())
			answer := longRequest(t, s, 100)
			exit := r.stops(s)
			require.Equal(t, [2]any{v.exit.Code, v.exit.Signal}, [2]any{exit.Code, exit.Signal})
			require.Equal(t, http.StatusOK, <-answer, "it drains")
			tail := s.Log().Tail(100)
			require.Contains(t, texts(tail), "Gracefully exiting... Remaining number of requests 1.")
		})
		for _, orphan := range []bool{false, true} {
			name, args := v.name+" while it loads", []string{"--sim-startup", "60s"}
			if orphan {
				name, args = name+", its detokenizer stays", append(args, "--sim-fault", "orphan-detokenizer")
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := newSimulated(t, v.name, args...)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var s *server.Server
				r.onEvent = func(e server.Event) {
					if e.Kind == server.KindPhase && e.Phase.Name == server.PhaseImport {
						s = r.m.Servers()[0]
						go func() { // events must not wait
							defer cancel()
							for { // until the detokenizer is there
								if processes, err := r.watch.Processes(); err != nil || strings.Contains(fmt.Sprint(processes), "sglang::detokenizer") {
									return
								}
							}
						}()
					}
				}
				_, err := r.m.Launch(ctx, simulatedConfig())
				require.ErrorIs(t, err, context.Canceled)
				r.gone("")
				exit, _ := s.Exit()
				require.Equal(t, syscall.SIGTERM, exit.Signal)
				require.True(t, exit.Clean(v.name))
			})
		}
	}
}

func texts(lines []server.Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.Text + "\n")
	}
	return b.String()
}

// A wrapper script turns the signal by which old versions end into status 137.
func TestSimProcessWrapped(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	script := `"$0" "$@" & server=$!
		trap 'kill -TERM $server' TERM
		while :; do wait $server; status=$?; kill -0 $server 2>/dev/null || exit $status; done`
	for _, v := range simulatedVersions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			environment, instance := simulatedEnvironment()
			r := newLocal(t, server.LocalProcess(environment,
				server.WithCommand("/bin/sh", "-c", script, exe, "--sim-version", v.name, "-m", "sglang.launch_server")), instance)
			s := r.launch(simulatedConfig())
			exit := r.stops(s)
			if v.exit.Signal != 0 {
				require.Equal(t, 137, exit.Code)
			} else {
				require.Zero(t, exit.Code)
			}
		})
	}
}

// What is killed from outside is diagnosed, while it loads and when it serves.
func TestSimProcessKilled(t *testing.T) {
	for _, what := range []string{"main", "sglang::scheduler", "sglang::detokenizer"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newSimulated(t, newest)
			s := r.launch(simulatedConfig())
			victim := r.main(s)
			if what != "main" {
				victim = r.process(what)
			}
			r.kill(victim)
			require.Equal(t, server.CauseKilled, r.failed(s).Cause)
			require.Equal(t, server.StateFailed, s.State())
			_, err := s.Loads(t.Context())
			require.Error(t, err)
			require.NoError(t, s.Restart(t.Context(), nil), "it can begin anew")
			r.stops(s)
		})
	}
	for _, what := range []string{"main", "sglang::scheduler"} {
		t.Run(what+" while it loads", func(t *testing.T) {
			t.Parallel()
			r := newSimulated(t, newest, "--sim-startup", "5s")
			r.onEvent = func(e server.Event) {
				if e.Kind == server.KindPhase && e.Phase.Name == server.PhaseSpawn { // it has begun to load weights
					victim := r.main(r.m.Servers()[0])
					if what != "main" {
						victim = r.process(what)
					}
					r.kill(victim)
				}
			}
			require.Equal(t, server.CauseKilled, r.fails(simulatedConfig()).Cause)
		})
	}
}

// A server that hangs holds up nothing beyond its deadline.
func TestSimProcessHangs(t *testing.T) {
	const deadline = 500 * time.Millisecond
	suspend := func(r *local, s *server.Server) { // from outside: the launcher does not know
		main := r.main(s).ID
		require.NoError(r, syscall.Kill(-main, syscall.SIGSTOP))
		require.NoError(r, unix.Waitid(unix.P_PID, main, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)) // its threads run on for a moment
	}
	impatient := []server.ProcessOption{server.WithStopTimeout(deadline)}
	t.Run("calls", func(t *testing.T) {
		t.Parallel()
		r := newSimulated(t, newest)
		s := r.launch(simulatedConfig())
		main := r.main(s)
		suspend(r, s)
		for name, call := range map[string]func(context.Context) error{
			"loads":  func(ctx context.Context) error { _, err := s.Loads(ctx); return err },
			"sample": func(ctx context.Context) error { _, err := s.MetricsSampler().Sample(ctx); return err },
			"flush":  s.FlushCache,
			"abort":  s.AbortAll,
			"limit": func(ctx context.Context) error {
				_, err := s.UpdateParam(ctx, server.ParamMaxRunningRequests, 8)
				return err
			},
			"pause": func(ctx context.Context) error { return s.Pause(ctx, server.PauseInPlace) },
		} {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			require.ErrorIs(t, call(ctx), context.DeadlineExceeded, name)
			cancel()
		}
		require.NoError(t, syscall.Kill(-main.ID, syscall.SIGCONT))
		_, err := s.Loads(t.Context())
		require.NoError(t, err, "it goes on")
		r.stops(s)
	})
	t.Run("stop", func(t *testing.T) {
		t.Parallel()
		r := newSimulatedWith(t, newest, impatient, nil)
		s := r.launch(simulatedConfig())
		suspend(r, s)
		require.NoError(t, s.Stop(t.Context()))
		exit, _ := s.Exit()
		require.True(t, exit.Forced)
		r.gone("")
	})
	t.Run("stop with requests that do not end", func(t *testing.T) {
		t.Parallel()
		r := newSimulatedWith(t, newest, impatient, nil)
		s := r.launch(simulatedConfig())
		plan(t, s, "hang")
		answer := make(chan struct{})
		go func() { defer close(answer); askUntilEnd(s) }()
		require.NoError(t, s.Stop(t.Context()))
		exit, _ := s.Exit()
		t.Log(exit)
		r.gone("")
		<-answer
	})
	t.Run("kill", func(t *testing.T) {
		t.Parallel()
		r := newSimulatedWith(t, newest, impatient, nil)
		s := r.launch(simulatedConfig())
		suspend(r, s)
		require.NoError(t, s.Kill(t.Context()))
		require.ErrorIs(t, s.Err(), server.ErrKilled)
		r.gone("")
	})
	t.Run("start", func(t *testing.T) {
		t.Parallel()
		r := newSimulatedWith(t, newest, impatient, []server.Option{server.WithReadyTimeout(3 * time.Second)}, "--sim-startup", "5s")
		r.onEvent = func(e server.Event) {
			if e.Kind == server.KindPhase && e.Phase.Name == server.PhaseImport {
				suspend(r, r.m.Servers()[0])
			}
		}
		_, err := r.m.Launch(t.Context(), simulatedConfig())
		var late *server.NotReadyError
		require.ErrorAs(t, err, &late)
		require.Equal(t, "spawn", late.Phase)
		r.gone("")
	})
	t.Run("suspended by the experiment", func(t *testing.T) {
		t.Parallel()
		r := newSimulated(t, newest)
		s := r.launch(simulatedConfig())
		require.NoError(t, s.Suspend(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		_, err := s.Loads(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, s.Resume(t.Context()))
		_, err = s.Loads(t.Context())
		require.NoError(t, err)
		require.NoError(t, s.Suspend(t.Context()))
		r.stops(s) // which resumes it first
	})
}

// Another server, simulated too, has the port when the server has loaded.
func TestSimProcessPortTaken(t *testing.T) {
	for _, v := range simulatedVersions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			r := newSimulated(t, v.name, "--sim-startup", "3s")
			cfg := simulatedConfig()
			cfg.Port = freePort(t)
			r.onEvent = func(e server.Event) {
				if e.Kind == server.KindPhase && e.Phase.Name == server.PhaseImport {
					takePort(t, cfg.Port, true)
				}
			}
			failure := r.fails(cfg)
			require.Equal(t, server.CausePortInUse, failure.Cause)
			var in *server.PortInUseError
			require.ErrorAs(t, failure, &in)
			require.Equal(t, fmt.Sprintf("127.0.0.1:%d", cfg.Port), in.Address)
			require.Contains(t, strings.Join(failure.Lines, "\n"), fmt.Sprintf("('127.0.0.1', %d): address already in use", cfg.Port))
			require.Equal(t, 3, failure.Exit.Code)
			stderr, err := os.ReadFile(failure.LogFile)
			require.NoError(t, err)
			require.Contains(t, string(stderr), "The server is fired up and ready to roll!", "which proves nothing")
		})
	}
	t.Run("before", func(t *testing.T) {
		r := newSimulated(t, newest)
		l, err := listen(0)
		require.NoError(t, err)
		defer l.Close()
		cfg := simulatedConfig()
		cfg.Port = portOf(l)
		_, err = r.m.Launch(t.Context(), cfg)
		require.ErrorAs(t, err, new(*server.PortInUseError))
		require.Empty(t, r.m.Servers())
	})
}

// takePort listens on a port until the test ends, and answers like a server that does not become ready, or not at all.
func takePort(t *testing.T, port int, answers bool) {
	l, err := listen(port)
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { l.Close() })
	if !answers {
		return
	}
	stranger := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/ready" || req.URL.Path == "/health" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte("{}"))
	})}
	served := make(chan error, 1)
	go func() { served <- stranger.Serve(l) }()
	t.Cleanup(func() { stranger.Close(); <-served })
}

// The phases of a start are those that the log shows, with their progress; the simulated start has the shares of a real one.
func TestSimProcessStartup(t *testing.T) {
	for _, v := range simulatedVersions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			const startup = 3 * time.Second
			r := newSimulated(t, v.name, "--sim-startup", startup.String())
			s := r.launch(simulatedConfig())
			t.Log(describe(s))
			startupInOrder(t, s, server.PhaseGraphs)
			total := time.Duration(0)
			for _, p := range s.Startup() {
				total += p.Duration
				switch p.Name {
				case server.PhaseWeights:
					require.Equal(t, [2]int{4, 4}, [2]int{p.Done, p.Of})
				case server.PhaseGraphs:
					require.Positive(t, p.Of)
					require.Equal(t, p.Of, p.Done)
				case server.PhaseSpawn:
					require.GreaterOrEqual(t, p.Duration, startup*4/10, "30.5 of 67.1 parts")
				}
			}
			require.GreaterOrEqual(t, total, startup)
			r.stops(s)
		})
	}
}

func TestSimProcessLimits(t *testing.T) {
	for _, v := range simulatedVersions {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			r := newSimulated(t, v.name)
			s := r.launch(simulatedConfig())
			for _, u := range changeLimits(t, s, 300) {
				require.False(t, u.NotBefore.Before(u.Accepted), "%d: not in force when it was accepted", u.Value)
			}
			_, err := s.UpdateParam(t.Context(), server.ParamMaxRunningRequests, 65)
			require.ErrorAs(t, err, new(*server.ParamError))
			r.stops(s)
		})
	}
}

// A limit of which half of the pool leaves less is told, and the simulated server logs what SGLang of its version logs.
func TestSimProcessLimitBeyondThePool(t *testing.T) {
	for version, why := range map[string]string{
		"0.5.15.post1": "(per dp worker) due to the available KV cache capacity.",
		"0.5.18":       "(per attention-DP worker) due to the available KV cache or auxiliary-state capacity.",
		"0.5.23":       "(per attention-DP worker) due to the available KV cache or auxiliary-state capacity.",
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			r := newSimulated(t, version)
			var warned []string
			r.onEvent = func(e server.Event) {
				if e.Kind == server.KindWarning {
					warned = append(warned, e.Message)
				}
			}
			cfg := simulatedConfig()
			cfg.MaxRunningRequests, cfg.MaxTotalTokens = 5000, 2048
			s := r.launch(cfg)
			require.Equal(t, 1024, s.Info().MaxRunningRequests)
			require.Contains(t, texts(s.Log().Tail(1000)), "max_running_requests was reduced from the requested 5000 to 1024 "+why)
			require.Equal(t, []string{"max_running_requests: 5000 was asked for, 1024 is in force"}, warned)
			r.stops(s)
		})
	}
}

// Port and name stay over restarts, of a server that runs and of one that ended; what was changed is in force.
func TestSimProcessRestart(t *testing.T) {
	t.Parallel()
	r := newSimulated(t, newest)
	s := r.launch(simulatedConfig())
	url, first := s.URL(), r.main(s)
	require.NoError(t, s.Restart(t.Context(), func(cfg *server.Config) error { cfg.MaxRunningRequests = 32; return nil }))
	require.Equal(t, 32, s.Info().MaxRunningRequests)
	require.NotEqual(t, first.ID, r.main(s).ID)
	require.NoError(t, s.Kill(t.Context()))
	r.gone("")
	require.NoError(t, s.Restart(t.Context(), nil))
	u, err := s.UpdateParam(t.Context(), server.ParamMaxRunningRequests, 48, server.WithRestart())
	require.NoError(t, err)
	require.Equal(t, "restart", u.Mechanism)
	require.Equal(t, [3]any{url, 48, server.StateReady}, [3]any{s.URL(), s.Info().MaxRunningRequests, s.State()})
	r.stops(s)
	_, err = net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
