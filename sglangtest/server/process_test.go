//go:build linux

package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// eventually polls: what is waited for is another process.
func eventually(t *testing.T, what string, ok func() bool) {
	require.Eventually(t, ok, 20*time.Second, 20*ms, what)
}

// traces returns what a server would leave.
func traces(t *testing.T, s *Server) fakeTraces {
	l := s.present().inst.(*local)
	eventually(t, "the load snapshot has been noticed", func() bool { return len(l.shared.names()) > 0 })
	return tracesOf(l)
}

func (f fakeTraces) requireGone(t *testing.T) {
	require.Empty(t, f.identity().members())
	require.Error(t, syscall.Kill(f.Watchdog, 0), "the watchdog has ended")
	require.NoFileExists(t, f.Folder)
	require.NoDirExists(t, f.Folder)
	for _, path := range f.Shared {
		require.NoFileExists(t, path)
	}
}

func localConfig() Config { return Config{ModelPath: "m"} }

func TestLocalProcess(t *testing.T) {
	seen := &events{}
	logs := t.TempDir()
	m := newManager(t, fakeLauncher("serve"), nil, WithLogFolder(logs), WithEvents(seen.add), WithAbortOnStop())
	s := launch(t, m, localConfig())
	left := traces(t, s)
	require.Len(t, left.Shared, 1, "the load snapshot is known")
	require.GreaterOrEqual(t, len(left.identity().members()), 2, "the child that left the group is known")
	require.Equal(t, "0.5.23", s.Info().Version)
	require.InDelta(t, (firstPort+lastPort)/2, s.Config().Port, (lastPort-firstPort)/2)

	var names []PhaseName
	eventually(t, "the log has been read", func() bool { return len(s.Startup()) >= 7 })
	phases := s.Startup()
	for _, p := range phases {
		names = append(names, p.Name)
	}
	require.Equal(t, []PhaseName{PhaseImport, PhaseSpawn, PhaseWeights, PhaseKV, PhaseGraphs, PhaseHTTP, PhaseWarmup}, names[:7])
	for i, p := range phases[1:] {
		require.InDelta(t, 0, p.Start.Sub(phases[i].Start.Add(phases[i].Duration)), 1, "no gap")
	}
	require.Equal(t, []int{4, 4}, []int{phases[2].Done, phases[2].Of})

	var text []string
	for _, line := range s.Log().Tail(100) {
		text = append(text, line.Text)
	}
	require.Contains(t, text, "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:00<00:00,  2.00it/s]")
	require.NoError(t, s.Stop(context.Background()))
	exit, ok := s.Exit()
	require.True(t, ok)
	require.Equal(t, []any{0, syscall.Signal(0), true, false}, []any{exit.Code, exit.Signal, exit.Asked, exit.Forced})
	require.True(t, exit.Clean(s.Info().Version))
	require.NoError(t, s.Err())
	left.requireGone(t)
	data, err := os.ReadFile(filepath.Join(logs, "server-0.stderr.log"))
	require.NoError(t, err)
	require.Contains(t, string(data), startLines)

	all := seen.all()
	require.Equal(t, "server-0 state starting", all[0])
	require.Equal(t, "server-0 state stopped", all[len(all)-1])
	require.Contains(t, strings.Join(all, "\n"), "server-0 phase load weights: ")
	require.Contains(t, strings.Join(all, "\n"), "server-0 exit exit status 0 after ")
}

func TestLocalProcessForced(t *testing.T) {
	t.Run("deaf", func(t *testing.T) {
		s := launch(t, newManager(t, fakeLauncher("deaf", WithStopTimeout(50*ms)), nil), localConfig())
		left := traces(t, s)
		require.NoError(t, s.Stop(context.Background()))
		exit, _ := s.Exit()
		require.Equal(t, syscall.SIGKILL, exit.Signal)
		require.True(t, exit.Forced)
		require.NoError(t, s.Err())
		require.Equal(t, StateStopped, s.State())
		left.requireGone(t)
	})
	t.Run("stopped from outside, and no time", func(t *testing.T) {
		s := launch(t, newManager(t, fakeLauncher("serve"), nil), localConfig())
		left := traces(t, s)
		require.NoError(t, syscall.Kill(left.Group, syscall.SIGSTOP))
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		require.NoError(t, s.Stop(ctx))
		left.requireGone(t)
	})
	t.Run("suspended", func(t *testing.T) {
		s := launch(t, newManager(t, fakeLauncher("serve"), nil), localConfig())
		require.NoError(t, s.Suspend(t.Context()))
		require.NoError(t, s.Stop(context.Background()))
		exit, _ := s.Exit()
		require.Zero(t, exit.Code, "it could end in order")
	})
}

// A process that the kernel holds, as a driver that hangs makes it, does not hold up the harness.
func TestLocalProcessCannotBeEnded(t *testing.T) {
	seen := &events{}
	m := newManager(t, fakeLauncher("serve"), nil, WithEvents(seen.add))
	s, err := m.Launch(context.Background(), localConfig())
	require.NoError(t, err)
	left := traces(t, s)
	defer os.RemoveAll(left.Folder)
	l := s.present().inst.(*local)
	l.goneTime = 50 * ms
	l.ask(true) // as Kill does, but for the signal
	close(l.killed)
	<-s.Exited()
	require.ErrorContains(t, s.Stop(context.Background()), "are still there 50ms after SIGKILL")
	require.Contains(t, seen.all(), "server-0 warning processes of it are still there, so that its port and its GPUs are not given out again")
	require.Equal(t, "server-0", m.portOf[place{"", s.Config().Port}])
	require.NoError(t, syscall.Kill(l.watchdog.cmd.Process.Pid, 0), "the watchdog goes on")
	require.NoError(t, syscall.Kill(-left.Group, syscall.SIGKILL))
	for _, pid := range left.identity().members() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != syscall.ESRCH { // it may have ended already
			require.NoError(t, err)
		}
	}
	l.watchdog.dismiss()
	defer func() { require.NoError(t, l.removeCgroup()) }()
	eventually(t, "they end", func() bool { return len(left.identity().members()) == 0 })
	for _, path := range left.Shared {
		require.NoFileExists(t, path)
	}
}

// What two servers write to one file would be taken for one server's, and their processes likewise.
func TestLogOfAnotherServer(t *testing.T) {
	logs := t.TempDir()
	first := launch(t, newManager(t, fakeLauncher("serve"), nil, WithLogFolder(logs)), localConfig())
	second := newManager(t, fakeLauncher("serve"), nil, WithLogFolder(logs))
	_, err := second.Launch(context.Background(), localConfig())
	require.ErrorContains(t, err, "another server writes to "+filepath.Join(logs, "server-0.stdout.log")+": give each manager a log folder of its own")
	require.NoError(t, first.Stop(context.Background()))
	launch(t, second, localConfig())
}

// SGLang logs its arguments with the API keys.
func TestLogHidesKeys(t *testing.T) {
	cfg := localConfig()
	cfg.APIKey, cfg.AdminAPIKey = "secret", "secret-of-admins"
	s := launch(t, newManager(t, fakeLauncher("serve"), nil), cfg)
	var found bool
	for _, line := range s.Log().Tail(logCapacity) {
		require.NotContains(t, line.Text, "secret")
		found = found || line.Text == "api_key=(key)"
	}
	require.True(t, found)
	info, err := os.Stat(s.present().keepLog())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, s.Stop(context.Background()))
	require.NoError(t, os.RemoveAll(filepath.Dir(s.present().keepLog())))
}

func TestSecretsAreHidden(t *testing.T) {
	hide := hideSecrets(Config{APIKey: "s3cr3t", AdminAPIKey: "s3cr3t-of-admins", Args: Args{"ssl_keyfile_password": "p4ss"}})
	require.Equal(t, "api_key='(key)' admin_api_key='(key)' ssl_keyfile_password='(key)'",
		hide.Replace("api_key='s3cr3t' admin_api_key='s3cr3t-of-admins' ssl_keyfile_password='p4ss'"))
	short := Config{APIKey: "info"}
	require.Equal(t, "INFO: information log_level='(key)', api_key='(key)' (key)", hideSecrets(short).Replace("INFO: information log_level='info', api_key='info' info"))
	require.Equal(t, []string{"api_key has 4 bytes: where the log has the same word, it reads (key); use 8 bytes or more"}, shortSecrets(short))
	require.Empty(t, shortSecrets(Config{APIKey: "s3cr3t-of-admins"}))
	require.Equal(t, "x(key)y", hideSecrets(Config{APIKey: "$.*("}).Replace("x$.*(y"))
	require.Equal(t, "as it is", hideSecrets(Config{}).Replace("as it is"))
}

func TestLocalProcessKilledAndRestarted(t *testing.T) {
	seen := &events{}
	m := newManager(t, fakeLauncher("serve"), nil, WithEvents(seen.add))
	s := launch(t, m, localConfig())
	left, url := traces(t, s), s.URL()
	require.NoError(t, s.Suspend(t.Context()))
	require.NoError(t, s.Resume(t.Context()))
	require.NoError(t, s.Kill(context.Background()))
	require.ErrorIs(t, s.Err(), ErrKilled)
	require.Equal(t, StateFailed, s.State())
	left.Folder = filepath.Join(left.Folder, "tmp") // the log stays: it did not end as asked
	left.requireGone(t)

	require.NoError(t, s.Restart(context.Background(), func(cfg *Config) error { cfg.MaxRunningRequests = 32; return nil }))
	require.Equal(t, StateReady, s.State())
	require.Equal(t, url, s.URL())
	require.Equal(t, 32, s.Config().MaxRunningRequests)
	require.NoError(t, s.Err())
	require.NoError(t, s.Restart(context.Background(), nil), "one that runs")
	require.NoError(t, s.Stop(context.Background()))
	faults := []string{}
	for _, e := range seen.all() {
		if strings.HasPrefix(e, "server-0 fault") || strings.HasPrefix(e, "server-0 state") {
			faults = append(faults, strings.TrimPrefix(e, "server-0 "))
		}
	}
	require.Equal(t, []string{"state starting", "state ready", "fault suspended", "fault resumed", "fault killed", "state failed", "fault restarted", "state starting",
		"state ready", "state stopping", "state stopped", "fault restarted", "state starting", "state ready", "state stopping", "state stopped"}, faults)
}

func TestLocalProcessCrash(t *testing.T) {
	s := launch(t, newManager(t, fakeLauncher("serve"), nil), localConfig())
	left := traces(t, s)
	require.NoError(t, syscall.Kill(left.Group, syscall.SIGKILL)) // only the main process
	<-s.Exited()
	var failure *FailureError
	require.ErrorAs(t, s.Err(), &failure)
	require.Equal(t, CauseKilled, failure.Cause)
	require.FileExists(t, failure.LogFile)
	defer os.RemoveAll(left.Folder)
	left.Folder = filepath.Join(left.Folder, "tmp")
	left.requireGone(t)
}

func TestLocalProcessFailsToStart(t *testing.T) {
	oom := filepath.Join(t.TempDir(), "oom.log")
	require.NoError(t, os.WriteFile(oom, []byte(startLines[:strings.Index(startLines, "[2026-11-24 17:00:05]")]+
		"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 112.00 MiB. GPU 0 has a total capacity of 79.18 GiB\n"), 0o600))
	logs := t.TempDir()
	m := newManager(t, fakeLauncher("fail:"+oom), nil, WithLogFolder(logs))
	_, err := m.Launch(context.Background(), localConfig())
	var failure *FailureError
	require.ErrorAs(t, err, &failure)
	require.ErrorAs(t, err, new(*ExitedError))
	require.Equal(t, CauseOOMGraphs, failure.Cause)
	require.Equal(t, 3, failure.Exit.Code)
	require.Equal(t, filepath.Join(logs, "server-0.stderr.log"), failure.LogFile)
	require.Equal(t, "lower mem_fraction_static from 0.83 to 0.78", failure.Advice[1])
	require.Empty(t, m.Servers())

	t.Run("no such program", func(t *testing.T) {
		_, err := newManager(t, LocalProcess(WithCommand("/no/such/python")), nil).Launch(context.Background(), localConfig())
		require.ErrorContains(t, err, "set the command that starts SGLang with WithCommand")
		l := LocalProcess(WithCommand("sh"), WithEnvironment(map[string]string{"PATH": "/no/such"})) // the harness's PATH has it
		_, err = newManager(t, l, nil).Launch(context.Background(), localConfig())
		require.ErrorContains(t, err, `exec: "sh": not found in the PATH that WithEnvironment sets, /no/such: set the command`)
	})
	t.Run("what contradicts or cannot be spoken to", func(t *testing.T) {
		l := LocalProcess(WithEnvironment(map[string]string{"CUDA_VISIBLE_DEVICES": "MIG-1"}))
		_, err := newManager(t, l, nil).Launch(context.Background(), Config{ModelPath: "m", GPUs: []int{3}, Args: Args{"ssl_certfile": "c"}})
		require.ErrorContains(t, err, "args.ssl_certfile: the servers of this package speak plain HTTP: leave it out\n"+
			"environment: CUDA_VISIBLE_DEVICES contradicts the GPUs [3], of the config or chosen by the manager: set only one of them")
	})
	t.Run("bad options", func(t *testing.T) {
		_, err := NewServerManager(LocalProcess(), WithLogFolder("/no/such"))
		require.ErrorContains(t, err, "log folder: stat /no/such")
		_, err = newManager(t, LocalProcess(WithCommand(""), WithStopTimeout(0), WithEnvironment(map[string]string{"A=B": ""})), nil).
			Launch(context.Background(), localConfig())
		for _, text := range []string{"command: empty", "stop time-out 0s: want > 0", `"A=B" is no name`} {
			require.ErrorContains(t, err, text)
		}
	})
}

func TestLocalProcessNotReady(t *testing.T) {
	logs := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	m := newManager(t, fakeLauncher("slow"), nil, WithLogFolder(logs), WithEvents(func(e Event) {
		if e.Kind == KindPhase && e.Phase.Name == PhaseGraphs {
			cancel()
		}
	}))
	_, err := m.Launch(ctx, localConfig())
	require.ErrorContains(t, err, "its log shows: open HTTP ("+filepath.Join(logs, "server-0.stderr.log")+"); last: GET /ready: ")
	require.ErrorContains(t, err, "connection refused")
	require.Empty(t, m.Servers())
}

// Another server answers on the port while ours loads: the port was free when it was launched.
func TestLocalProcessStranger(t *testing.T) {
	t.Run("of another name", func(t *testing.T) {
		_, err := newManager(t, fakeLauncher("stranger"), nil).Launch(context.Background(), localConfig())
		var in *PortInUseError
		require.ErrorAs(t, err, &in)
		require.ErrorContains(t, err, `its weight_version is "default", not "server-0"`)
	})
	t.Run("that says nothing, so SGLang hangs", func(t *testing.T) {
		logs := t.TempDir()
		_, err := newManager(t, fakeLauncher("taken", WithStopTimeout(100*ms)), nil, WithLogFolder(logs)).Launch(context.Background(), localConfig())
		var failure *FailureError
		require.ErrorAs(t, err, &failure)
		require.Equal(t, CausePortInUse, failure.Cause)
		require.ErrorContains(t, err, "port in use (not ended)")
		var in *PortInUseError
		require.ErrorAs(t, err, &in)
		require.Regexp(t, `^127\.0\.0\.1:\d+$`, in.Address)
	})
}

func TestPortRefusedBeforeLaunch(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = newManager(t, fakeLauncher("serve"), nil).Launch(context.Background(), Config{ModelPath: "m", Port: l.Addr().(*net.TCPAddr).Port})
	require.ErrorAs(t, err, new(*PortInUseError))
}

// A harness that is killed leaves nothing: no process, also none that left the group, and no file.
func TestHarnessKilled(t *testing.T) {
	for _, mode := range []string{"idle", "its server is suspended"} {
		t.Run(mode, func(t *testing.T) {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), fakeVariable+"=harness")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			defer in.Close()
			require.NoError(t, cmd.Start())
			var left fakeTraces
			require.NoError(t, json.NewDecoder(out).Decode(&left), &stderr)
			eventually(t, "both of its processes are there", func() bool { return len(left.identity().members()) >= 2 })
			require.Len(t, left.Shared, 1)
			if mode != "idle" {
				require.NoError(t, syscall.Kill(-left.Group, syscall.SIGSTOP))
			}
			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())
			eventually(t, "the watchdog has done its work", func() bool { return errors.Is(syscall.Kill(left.Watchdog, 0), syscall.ESRCH) || zombie(left.Watchdog) })
			require.Empty(t, left.identity().members())
			require.NoDirExists(t, left.Folder)
			require.NoFileExists(t, left.Shared[0])
		})
	}
}

// The watchdog finds a process also by nothing but the marker in its environment, which is all that is left of a server
// whose process redirects its output and leaves the group.
func TestWatchdogFindsMarked(t *testing.T) {
	f := nameFolder("")
	require.NoError(t, f.make(Config{}))
	w, err := startWatchdog(markerVariable+"=marker-of-a-test", f, cgroup{})
	require.NoError(t, err)
	cmd := exec.Command("sleep", "600")
	cmd.Env = []string{markerVariable + "=marker-of-a-test"}
	require.NoError(t, cmd.Start())
	other := exec.Command("sleep", "600")
	require.NoError(t, other.Start())
	w.to.Close() // as when the harness ends
	require.Error(t, cmd.Wait())
	require.Equal(t, syscall.SIGKILL, cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	require.NoError(t, w.cmd.Wait())
	require.NoDirExists(t, f.root)
	require.NoError(t, other.Process.Kill(), "it is another program's")
	require.Error(t, other.Wait())
}

// zombie reports whether a process has ended and nobody has waited for it, as in a container without an init.
func zombie(pid int) bool {
	s, ok := statOf(pid)
	return !ok || s.dead()
}
