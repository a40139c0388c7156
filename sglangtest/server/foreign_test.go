//go:build linux

package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/internal/leftover"
	"github.com/sglangtest/harness/sglangtest/server"
)

// asOther makes the test binary another program: one of otherPrograms.
const asOther = "SGLANGTEST_SERVER_AS"

// madeFile is where a program that makes files in /dev/shm says which.
const madeFile = "SGLANGTEST_SERVER_MADE"

var otherPrograms = map[string]func(args []string) error{"wrapper": wrapper, "stranger": stranger, "harness": harness}

func init() {
	if f := otherPrograms[os.Getenv(asOther)]; f != nil {
		if err := f(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// other is a command that runs the test binary as another program.
func other(t *testing.T, program string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asOther+"="+program)
	cmd.Stderr = os.Stderr
	return cmd
}

// makeShared makes files of all kinds in /dev/shm, as the libraries in an SGLang server do.
func makeShared(salt string) (paths []string, err error) {
	path := func(format string, args ...any) string {
		p := filepath.Join("/dev/shm", fmt.Sprintf(format, args...))
		paths = append(paths, p)
		return p
	}
	write := func(path string) *os.File {
		f, e := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if e == nil {
			e = f.Truncate(4096)
		}
		if e != nil && err == nil {
			err = e
		}
		return f
	}
	mapped := func(f *os.File) {
		if _, e := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); e != nil && err == nil {
			err = e
		}
	}
	pid := os.Getpid()
	for _, format := range []string{"sem.loky-%d-" + salt, "sem.mp-%d" + salt} { // as glibc's sem_open does
		temporary := filepath.Join("/dev/shm", "sem."+salt)
		f := write(temporary)
		mapped(f)
		if e := os.Link(temporary, path(format, pid)); e != nil {
			return paths, e
		}
		os.Remove(temporary)
		f.Close()
	}
	for _, name := range []string{"psm_" + salt, "nccl-" + salt, "cuda.shm.0." + salt, "sglang_loads_" + salt + ".shm", "sglang_host_pool_" + salt + ".mmap", "another " + salt,
		"." + salt, "-rf " + salt, "psm_$(true)*'\"\\ " + salt, "psm_" + salt + "\nnot 1\ngroup 1"} {
		f := write(path("%s", name))
		mapped(f)
		f.Close()
	}
	keep = append(keep, write(path("open only %s", salt)))
	for _, format := range []string{"multi_tokenizer_args_%d", "sgl_shm_mm_%d_" + salt, "torch_%d_" + salt} { // closed at once
		write(path(format, pid)).Close()
	}
	folder := path("joblib_memmapping_folder_%d_%s", pid, salt)
	if e := os.Mkdir(folder, 0o700); e != nil {
		return paths, e
	}
	f := write(filepath.Join(folder, "a.pkl"))
	mapped(f)
	f.Close()
	return paths, err
}

var keep []*os.File // open

func sayMade(paths []string) error {
	text, err := json.Marshal(paths)
	if err != nil {
		return err
	}
	name := os.Getenv(madeFile)
	return os.Rename(writeTemporary(name, text), name)
}

func writeTemporary(name string, text []byte) string {
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		panic(err)
	}
	return name + ".new"
}

// made waits for what a program says that it made.
func made(t *testing.T, file string) (paths []string) {
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(file)
		return err == nil && json.Unmarshal(text, &paths) == nil
	}, 30*time.Second, 5*time.Millisecond)
	require.NotEmpty(t, paths)
	t.Cleanup(func() {
		for _, p := range paths {
			os.RemoveAll(p)
		}
	})
	return paths
}

// wrapper makes files in /dev/shm and runs a simulated server.
func wrapper(args []string) error {
	paths, err := makeShared(fmt.Sprintf("w%d", os.Getpid()))
	if err != nil {
		return err
	}
	if err := sayMade(paths); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asOther+"=", asSimulated+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}()
	return cmd.Wait()
}

// stranger makes the same files, or none, and goes on until its input ends.
func stranger([]string) error {
	if os.Getenv(madeFile) != "" {
		paths, err := makeShared(fmt.Sprintf("s%d", os.Getpid()))
		if err != nil {
			return err
		}
		if err := sayMade(paths); err != nil {
			return err
		}
	}
	fmt.Println("up")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return nil // its end
	}
	return nil
}

// harness launches a server whose logs are in the folder args[0] and whose program is args[1:], and goes on until it is killed.
func harness(args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	l := server.LocalProcess(server.WithCommand(exe, args[2:]...), server.WithEnvironment(map[string]string{asOther: args[1], asSimulated: map[bool]string{true: "1"}[args[1] == ""]}))
	m, err := server.NewServerManager(l, server.WithLogFolder(args[0]))
	if err != nil {
		return err
	}
	if _, err := m.Launch(context.Background(), simulatedConfig()); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return nil
}

// A foreigner is a process that no server owns.
type foreigner struct {
	*testing.T
	cmd *exec.Cmd
}

// begin starts it and returns when it is up. It is ended with the test.
func begin(t *testing.T, cmd *exec.Cmd, up func() bool) foreigner {
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	f := foreigner{t, cmd}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // as it is
	})
	require.Eventually(t, up, 30*time.Second, 5*time.Millisecond, "it comes up")
	return f
}

func (f foreigner) requireAlive() {
	f.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", f.cmd.Process.Pid))
	require.NoError(f, err)
	state := strings.TrimSpace(string(text[strings.LastIndexByte(string(text), ')')+1:]))[0]
	require.NotContains(f, "ZXT", string(state), "the foreign process goes on")
}

// contains reports whether a file has the text.
func contains(path, text string) func() bool {
	return func() bool {
		data, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(data), text)
	}
}

// foreigners are processes that write to the paths of a server's logs, or did, and are not the server's.
var foreigners = map[string]func(t *testing.T, logs string) foreigner{
	"with the files of a folder that was deleted and made anew": func(t *testing.T, logs string) foreigner {
		cmd := other(t, "stranger")
		for i, stream := range []string{"stdout", "stderr"} {
			out, err := os.Create(filepath.Join(logs, "server-0."+stream+".log"))
			require.NoError(t, err)
			defer out.Close()
			if i == 0 {
				cmd.Stdout = out
			} else {
				cmd.Stderr = out
			}
		}
		f := begin(t, cmd, contains(filepath.Join(logs, "server-0.stdout.log"), "up"))
		require.NoError(t, os.RemoveAll(logs))
		require.NoError(t, os.Mkdir(logs, 0o700))
		return f
	},
	"with the same paths in another mount namespace": func(t *testing.T, logs string) foreigner {
		if os.Getuid() != 0 {
			t.Skip("needs root: unshare")
		}
		exe, err := os.Executable()
		require.NoError(t, err)
		pipe, err := os.CreateTemp(t.TempDir(), "up")
		require.NoError(t, err)
		cmd := exec.Command("unshare", "-m", "/bin/sh", "-c", `mount -t tmpfs none "$1" && exec "$0" >>"$1/server-0.stdout.log" 2>>"$1/server-0.stderr.log"`, exe, logs)
		cmd.Env = append(os.Environ(), asOther+"=stranger")
		cmd.Stderr = os.Stderr
		pipe.Close()
		return begin(t, cmd, func() bool {
			return contains(fmt.Sprintf("/proc/%d/root%s/server-0.stdout.log", cmd.Process.Pid, logs), "up")()
		})
	},
	"that opened the logs itself": func(t *testing.T, logs string) foreigner {
		cmd := other(t, "stranger")
		out, err := os.OpenFile(filepath.Join(logs, "server-0.stderr.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
		require.NoError(t, err)
		defer out.Close()
		cmd.Stdout, cmd.Stderr = out, out
		return begin(t, cmd, contains(out.Name(), "up"))
	},
	"with another server's mark": func(t *testing.T, _ string) foreigner {
		cmd := other(t, "stranger")
		cmd.Env = append(cmd.Env, "SGLANGTEST_SERVER=another")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return begin(t, cmd, func() bool { return true })
	},
}

// No end of a server ends a process that is not the server's.
func TestForeignProcessSurvives(t *testing.T) {
	for name, start := range foreigners {
		t.Run(name, func(t *testing.T) {
			for _, ending := range []string{"stopped", "killed", "its harness is killed"} {
				logs := filepath.Join(t.TempDir(), "logs")
				require.NoError(t, os.Mkdir(logs, 0o700))
				f := start(t, logs)
				if ending == "its harness is killed" {
					h := startHarness(t, logs, "", "-m", "sglang.launch_server")
					h.kill()
				} else {
					environment, instance := simulatedEnvironment()
					exe, err := os.Executable()
					require.NoError(t, err)
					m, err := server.NewServerManager(server.LocalProcess(environment, server.WithCommand(exe, "-m", "sglang.launch_server")), server.WithLogFolder(logs))
					require.NoError(t, err)
					s, err := m.Launch(t.Context(), simulatedConfig())
					require.NoError(t, err)
					if ending == "stopped" {
						require.NoError(t, s.Stop(t.Context()))
					} else {
						require.NoError(t, s.Kill(t.Context()))
					}
					require.NoError(t, leftover.Begin(instance, instance).Gone(0))
				}
				f.requireAlive()
			}
		})
	}
}

// A killable is a harness that is to be killed.
type killable struct {
	*testing.T
	cmd   *exec.Cmd
	watch *leftover.Watch
}

// startHarness starts a harness whose server is ready when this returns.
func startHarness(t *testing.T, logs, program string, args ...string) killable {
	id := fmt.Sprintf("%08x", time.Now().UnixNano()&0xffffffff)
	cmd := other(t, "harness", append([]string{logs, program}, args...)...)
	temp := t.TempDir()
	cmd.Env = append(cmd.Env, "SGLANG_SIM_INSTANCE="+id, "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	t.Cleanup(func() { in.Close() })
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return killable{t, cmd, leftover.Begin(temp, id)}
}

// kill kills it, and returns when nothing is left.
func (k killable) kill() {
	require.NoError(k, k.cmd.Process.Kill())
	_ = k.cmd.Wait() // killed
	require.NoError(k, k.watch.Gone(40*time.Second))
}

// Files in /dev/shm go with the server that made them, whatever their names, and those of another process stay, also of the same
// kinds and made in the same seconds.
func TestSharedMemoryGoesWithItsServer(t *testing.T) {
	for _, ending := range []string{"stopped", "killed", "its harness is killed"} {
		t.Run(ending, func(t *testing.T) {
			logs, files := t.TempDir(), t.TempDir()
			beforeFile, ours, theirs := filepath.Join(files, "before"), filepath.Join(files, "ours"), filepath.Join(files, "theirs")
			stay := func(file string) []string {
				cmd := other(t, "stranger")
				cmd.Env = append(cmd.Env, madeFile+"="+file)
				begin(t, cmd, func() bool { return true })
				return made(t, file)
			}
			foreign := stay(beforeFile)
			t.Setenv(madeFile, ours)
			var end func()
			args := []string{"--sim-version", newest, "-m", "sglang.launch_server"}
			if ending == "its harness is killed" {
				h := startHarness(t, logs, "wrapper", args...)
				end = h.kill
			} else {
				exe, err := os.Executable()
				require.NoError(t, err)
				l := server.LocalProcess(server.WithCommand(exe, args...), server.WithEnvironment(map[string]string{asOther: "wrapper", "SGLANG_SIM_WAITS": "0.05"}))
				r := newLocal(t, l, "")
				s := r.launch(simulatedConfig())
				end = func() {
					if ending == "stopped" {
						require.NoError(t, s.Stop(t.Context()))
					} else {
						require.NoError(t, s.Kill(t.Context()))
					}
					r.gone("")
				}
			}
			require.Eventually(t, func() bool { return exists(ours) }, 30*time.Second, time.Millisecond)
			paths := made(t, ours)
			foreign = append(foreign, stay(theirs)...)
			for _, p := range paths {
				require.True(t, exists(p), "%q is there while the server is", p)
			}
			end()
			require.Eventually(t, func() bool { return !slices.ContainsFunc(paths, exists) }, 20*time.Second, 20*time.Millisecond, "%q", paths)
			for _, p := range foreign {
				require.True(t, exists(p), "%q is another process's", p)
			}
		})
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// What could spoil messages, or the watchdog's input, is refused before anything starts.
func TestControlCharactersAreRefused(t *testing.T) {
	for _, c := range []string{"\n", "\r", "\t", "\x7f", "\x1b[2J", "\u0085"} {
		folder := filepath.Join(t.TempDir(), "a"+c+"shared b")
		require.NoError(t, os.Mkdir(folder, 0o700))
		_, err := server.NewServerManager(server.LocalProcess(), server.WithLogFolder(folder))
		require.ErrorContains(t, err, "has a control character at byte")

		l := server.LocalProcess(server.WithCommand("/bin/true"))
		_, err = l.Launch(t.Context(), server.Spec{Name: "a" + c, Config: simulatedConfig(), LogFolder: folder})
		require.ErrorContains(t, err, `name: "a`)
		require.ErrorContains(t, err, "log folder: ")
		t.Setenv("TMPDIR", folder)
		_, err = l.Launch(t.Context(), server.Spec{Name: "a", Config: simulatedConfig()})
		require.ErrorContains(t, err, "TMPDIR: ")
	}
	for _, name := range []string{"", "..", "a/b", "/etc/passwd"} {
		_, err := server.LocalProcess(server.WithCommand("/bin/true")).Launch(t.Context(), server.Spec{Name: name, Config: simulatedConfig(), LogFolder: t.TempDir()})
		require.ErrorContains(t, err, "is no name of a file")
	}
}

// Folders of any other name are removed when the harness is killed, and nothing beside them.
func TestHarnessKilledWithOddFolders(t *testing.T) {
	for _, name := range []string{"with space", "quote'and\"", "$(touch injected)`touch injected`", `back\slash\n`, "-rf", "glob*?[a-z]", "semi;colon & more", "~", "#", "ü"} {
		t.Run(name, func(t *testing.T) {
			short, err := os.MkdirTemp("/tmp", "odd")
			require.NoError(t, err)
			defer os.RemoveAll(short)
			dir := filepath.Join(short, name)
			logs, beside := filepath.Join(dir, "logs "+name), filepath.Join(dir, "beside")
			require.NoError(t, os.MkdirAll(logs, 0o700))
			require.NoError(t, os.MkdirAll(beside, 0o700))
			t.Setenv("TMPDIR", dir)
			id := fmt.Sprintf("%08x", time.Now().UnixNano()&0xffffffff)
			cmd := other(t, "harness", logs, "", "-m", "sglang.launch_server")
			cmd.Env = append(cmd.Env, "SGLANG_SIM_INSTANCE="+id)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			defer in.Close()
			require.NoError(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "ready\n", line)
			require.True(t, hasFolder(t, dir))
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait() // killed
			require.NoError(t, leftover.Begin(id, id).Gone(40*time.Second))
			require.Eventually(t, func() bool { return !hasFolder(t, dir) }, 20*time.Second, 20*time.Millisecond)
			require.DirExists(t, beside)
			require.FileExists(t, filepath.Join(logs, "server-0.stderr.log"))
			require.False(t, exists("/injected") || exists(filepath.Join(dir, "injected")))
		})
	}
}

// hasFolder reports whether a server's folder is in another one.
func hasFolder(t *testing.T, dir string) bool {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "sglangtest-") })
}
