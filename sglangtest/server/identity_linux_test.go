package server

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// sleeper starts a process that ends when it is killed, at the end of the test at the latest.
func sleeper(t *testing.T, change func(*exec.Cmd)) *exec.Cmd {
	cmd := exec.Command("sleep", "600")
	cmd.Env = []string{}
	change(cmd)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

func leads(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// lockedLog returns a log that is locked as a server's is.
func lockedLog(t *testing.T) *os.File {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	require.NoError(t, lockLog(f))
	return f
}

// proofs are what a process can be known by, each alone, and what looks like it and is another program's.
var proofs = map[string]func(t *testing.T) (id identity, own, foreign *exec.Cmd){
	"group": func(t *testing.T) (identity, *exec.Cmd, *exec.Cmd) {
		own := sleeper(t, leads)
		return identity{leader: own.Process.Pid, start: startOf(own.Process.Pid)}, own, sleeper(t, leads)
	},
	"group whose number is another's": func(t *testing.T) (identity, *exec.Cmd, *exec.Cmd) {
		foreign := sleeper(t, leads)
		return identity{leader: foreign.Process.Pid, start: "1"}, nil, foreign
	},
	"variable": func(t *testing.T) (identity, *exec.Cmd, *exec.Cmd) {
		id := identity{variable: markerVariable + "=proof"}
		return id, sleeper(t, func(c *exec.Cmd) { c.Env = []string{id.variable} }),
			sleeper(t, func(c *exec.Cmd) { c.Env = []string{markerVariable + "=another"} })
	},
	"log": func(t *testing.T) (identity, *exec.Cmd, *exec.Cmd) {
		f := lockedLog(t)
		same, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
		require.NoError(t, err)
		defer same.Close()
		return identity{locks: []string{lockOf("self", int(f.Fd()))}}, sleeper(t, func(c *exec.Cmd) { c.Stderr = f }),
			sleeper(t, func(c *exec.Cmd) { c.Stdout, c.Stderr = same, same })
	},
	"control group": func(t *testing.T) (identity, *exec.Cmd, *exec.Cmd) {
		group := nameCgroup("sglangtest-proof")
		f, err := group.make()
		if err != nil {
			t.Skip("no control group can be made here: ", err)
		}
		defer f.Close()
		t.Cleanup(func() { require.NoError(t, group.remove()) })
		return identity{cgroup: group.path}, sleeper(t, func(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}; into(c.SysProcAttr, f) }),
			sleeper(t, leads)
	},
}

// Exactly the server's processes get a signal, with and without descriptors of processes.
func TestIdentity(t *testing.T) {
	for _, without := range []string{"", ", without pidfd_open"} {
		for name, make := range proofs {
			t.Run(name+without, func(t *testing.T) {
				if without != "" {
					before := pidfdOpen
					pidfdOpen = func(int) (int, error) { return -1, unix.ENOSYS }
					defer func() { pidfdOpen = before }()
				}
				id, own, foreign := make(t)
				require.ErrorIs(t, id.signal(foreign.Process.Pid, syscall.SIGKILL), syscall.ESRCH)
				if own == nil {
					require.Empty(t, id.members())
					require.ErrorIs(t, id.signalAll(syscall.SIGKILL), syscall.ESRCH)
				} else {
					require.Equal(t, []int{own.Process.Pid}, id.members())
					require.NoError(t, id.signalAll(syscall.SIGKILL))
					require.Error(t, own.Wait())
				}
				s, ok := statOf(foreign.Process.Pid)
				require.True(t, ok && !s.dead())
			})
		}
	}
}

// The watchdog ends the same processes, and no other.
func TestWatchdogIdentity(t *testing.T) {
	for name, make := range proofs {
		t.Run(name, func(t *testing.T) {
			id, own, foreign := make(t)
			f := nameFolder("")
			require.NoError(t, f.make(Config{}))
			group := cgroup{}
			if id.cgroup != "" {
				group = nameCgroup(filepath.Base(id.cgroup))
			}
			if id.variable == "" {
				id.variable = markerVariable + "=no such"
			}
			w, err := startWatchdog(id.variable, f, group)
			require.NoError(t, err)
			for _, lock := range id.locks {
				w.tell("lock", lock)
			}
			if id.leader > 0 {
				w.tell("leader", id.leader, id.start)
			}
			w.to.Close() // as when the harness ends
			require.NoError(t, w.cmd.Wait())
			require.NoDirExists(t, f.root)
			if own != nil {
				require.Error(t, own.Wait())
			}
			s, ok := statOf(foreign.Process.Pid)
			require.True(t, ok && !s.dead() && s.state != 'T')
		})
	}
}

// A group outlives its leader, and is still the server's if one of its processes is.
func TestWatchdogGroupWithoutLeader(t *testing.T) {
	for _, marked := range []bool{true, false} {
		leader := sleeper(t, leads)
		id := identity{leader: leader.Process.Pid, start: startOf(leader.Process.Pid), variable: markerVariable + "=without leader"}
		joins := func(c *exec.Cmd) {
			c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: id.leader}
		}
		bare := sleeper(t, joins)
		if marked {
			sleeper(t, func(c *exec.Cmd) { joins(c); c.Env = []string{id.variable} })
		}
		require.NoError(t, leader.Process.Kill())
		require.Error(t, leader.Wait())
		f := nameFolder("")
		w, err := startWatchdog(id.variable, f, cgroup{})
		require.NoError(t, err)
		w.tell("leader", id.leader, id.start)
		w.to.Close()
		require.NoError(t, w.cmd.Wait())
		s, ok := statOf(bare.Process.Pid)
		require.Equal(t, marked, !ok || s.dead(), "nothing else proves whose group it is")
	}
}

// Where the kernel gives no notice of new files, a server is launched all the same, with a warning, and its files are found.
func TestSharedWatchWithoutNotices(t *testing.T) {
	before := newInotify
	newInotify = func() (*os.File, error) { return nil, errors.New("too many open files") }
	defer func() { newInotify = before }()
	seen := &events{}
	s := launch(t, newManager(t, fakeLauncher("serve"), nil, WithEvents(seen.add)), localConfig())
	left := traces(t, s)
	require.NoError(t, s.Stop(context.Background()))
	left.requireGone(t)
	require.Contains(t, strings.Join(seen.all(), "\n"), "server-0 warning new files in /dev/shm are looked for each 1s only")
	require.Contains(t, strings.Join(seen.all(), "\n"), "too many open files")
}

// All servers of a program share one watch.
func TestSharedWatchIsOne(t *testing.T) {
	calls, before := 0, newInotify
	newInotify = func() (*os.File, error) { calls++; return before() }
	defer func() { newInotify = before }()
	m := newManager(t, fakeLauncher("serve"), nil)
	first := launch(t, m, localConfig())
	second := launch(t, m, localConfig())
	require.Equal(t, 1, calls)
	one, two := traces(t, first), traces(t, second)
	require.NotEqual(t, one.Shared, two.Shared)
	require.NoError(t, first.Stop(context.Background()))
	one.requireGone(t)
	require.FileExists(t, two.Shared[0], "the other's stays")
	require.NoError(t, second.Stop(context.Background()))
	two.requireGone(t)
}

// A watchdog that was stopped holds nothing up.
func TestWatchdogStopped(t *testing.T) {
	w, err := startWatchdog(markerVariable+"=stopped", nameFolder(""), cgroup{})
	require.NoError(t, err)
	require.NoError(t, w.cmd.Process.Signal(syscall.SIGSTOP))
	numbers := make([]any, 100_000) // more than a pipe takes
	for i := range numbers {
		numbers[i] = i
	}
	w.tell("not", numbers...)
	require.True(t, w.deaf)
	w.dismiss()
}

// A server's sockets fit into its folder, however long the system's TMPDIR is.
func TestFolderIsShortEnoughForSockets(t *testing.T) {
	for n := 1; n < 120; n++ {
		t.Setenv("TMPDIR", "/"+strings.Repeat("t", n-1))
		f := nameFolder("")
		require.LessOrEqual(t, len(filepath.Join(f.temp, "tmp12345678")), 107, "%d bytes", n)
		require.Equal(t, n <= maxTempDir, filepath.Dir(f.root) == os.TempDir(), "%d bytes", n)
	}
}

// A file that a server only reads was made by somebody else, who need not have it open any more, and stays. One that it may
// write to is the server's, and goes.
func TestSharedMemoryThatIsOnlyRead(t *testing.T) {
	_, device := sharedEntries()
	require.NotZero(t, device)
	for _, ending := range []string{"removed", "its harness is killed"} {
		for name, c := range map[string]struct {
			flag int
			goes bool
		}{"read": {os.O_RDONLY, false}, "written": {os.O_RDWR, true}} {
			t.Run(name+", "+ending, func(t *testing.T) {
				id := identity{variable: markerVariable + "=" + rand.Text()}
				f := &sharedFiles{id: func() (identity, bool) { return id, true }, tell: func(string, ...any) {},
					not: map[uint64]bool{}, ours: map[uint64]bool{}}
				entries, _ := sharedEntries()
				var before []any
				for ino := range entries {
					f.not[ino] = true
					before = append(before, ino)
				}
				path := filepath.Join(sharedFolder, "handed-over-"+rand.Text())
				require.NoError(t, os.WriteFile(path, []byte("weights"), 0o600))
				t.Cleanup(func() { os.Remove(path) })
				file, err := os.OpenFile(path, c.flag, 0)
				require.NoError(t, err)
				defer file.Close()
				sleeper(t, func(cmd *exec.Cmd) { cmd.Env, cmd.Stdin = []string{id.variable}, file })
				require.NoError(t, file.Close())
				if ending == "removed" {
					f.note(id.members)
					require.NoError(t, id.signalAll(syscall.SIGKILL))
					require.NoError(t, f.remove())
				} else {
					w, err := startWatchdog(id.variable, nameFolder(""), cgroup{})
					require.NoError(t, err)
					w.tell("device", mapsDevice(device))
					w.tell("not", before...)
					w.to.Close()
					require.NoError(t, w.cmd.Wait())
				}
				_, err = os.Lstat(path)
				require.Equal(t, c.goes, os.IsNotExist(err))
			})
		}
	}
}
