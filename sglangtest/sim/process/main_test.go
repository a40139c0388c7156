//go:build unix

package process

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// asCommand makes the test binary the command sglang-sim.
const asCommand = "TEST_AS_SGLANG_SIM"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(Main(os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// limit is how long a test waits for something that must come.
const limit = 60 * time.Second

// A child is a simulated server as a child process, in a process group of its own.
type child struct {
	t        *testing.T
	cmd      *exec.Cmd
	port     int
	tmp, shm string
	lines    chan string // of its stderr, closed at its end
	seen     []string
	mu       sync.Mutex
	stdout   bytes.Buffer
	readers  sync.WaitGroup
	status   int // exit status, or minus the signal
	ended    bool
}

func freePort(t *testing.T) int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// start starts a server. SGLang's waiting times are a twentieth of what they are.
func start(t *testing.T, args ...string) *child {
	t.Helper()
	tmp, err := os.MkdirTemp("", "sim") // short: it holds sockets
	require.NoError(t, err)
	c := &child{t: t, tmp: tmp, shm: filepath.Join(tmp, "shm"), port: freePort(t), lines: make(chan string, 4096)}
	require.NoError(t, os.Mkdir(c.shm, 0o700))
	all := append([]string{"serve", "--model-path", "llama", "--port", strconv.Itoa(c.port), "--sim-waits", "0.05", "--sim-shm", c.shm}, args...)
	if len(args) > 0 && args[0] == "raw" {
		all = args[1:]
	}
	c.cmd = exec.Command(os.Args[0], all...)
	c.cmd.Env = append(os.Environ(), asCommand+"=1", "TMPDIR="+tmp)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := c.cmd.StderrPipe()
	require.NoError(t, err)
	stdout, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.cmd.Start())
	c.readers.Go(func() {
		s := bufio.NewScanner(stderr)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			c.lines <- s.Text()
		}
		close(c.lines)
	})
	c.readers.Go(func() {
		b := make([]byte, 4096)
		for {
			n, err := stdout.Read(b)
			c.mu.Lock()
			c.stdout.Write(b[:n])
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		if !c.ended {
			_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
			c.wait()
		}
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // orphans that a test asked for
		os.RemoveAll(tmp)
	})
	return c
}

// line waits for a line that contains text, and returns it.
func (c *child) line(text string) string {
	c.t.Helper()
	timeout := time.After(limit)
	for {
		select {
		case l, ok := <-c.lines:
			if !ok {
				c.t.Fatalf("no line %q before the end of:\n%s", text, strings.Join(c.seen, "\n"))
			}
			c.seen = append(c.seen, l)
			if strings.Contains(l, text) {
				return l
			}
		case <-timeout:
			c.t.Fatalf("no line %q in %v; so far:\n%s", text, limit, strings.Join(c.seen, "\n"))
		}
	}
}

const readyLine = "The server is fired up and ready to roll!"

func (c *child) ready() *child { c.t.Helper(); c.line(readyLine); return c }

func (c *child) signal(s syscall.Signal) { require.NoError(c.t, c.cmd.Process.Signal(s)) }

// wait waits for the end and returns the exit status, or minus the signal.
func (c *child) wait() int {
	c.t.Helper()
	stop := time.AfterFunc(limit, func() { c.cmd.Process.Kill() })
	for l := range c.lines {
		c.seen = append(c.seen, l)
	}
	c.readers.Wait()
	c.status = exitCode(c.cmd.Wait())
	c.ended = true
	require.True(c.t, stop.Stop(), "it did not end; so far:\n%s", strings.Join(c.seen, "\n"))
	return c.status
}

// stderr is all that has been read.
func (c *child) stderr() string { return strings.Join(c.seen, "\n") + "\n" }

func (c *child) out() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stdout.String()
}

func (c *child) url(path string) string { return fmt.Sprintf("http://127.0.0.1:%d%s", c.port, path) }

func (c *child) post(path, body string) (int, string) {
	c.t.Helper()
	res, err := c.try(path, body)
	require.NoError(c.t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(c.t, err)
	return res.StatusCode, string(b)
}

func (c *child) try(path, body string) (*http.Response, error) {
	return (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Post(c.url(path), "application/json", strings.NewReader(body))
}

// group returns the command lines of the processes of the child's group that live.
func (c *child) group() map[string]int {
	out := map[string]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(c.t, err)
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // state, parent, group
		if f[0] == "Z" || f[0] == "X" || f[2] != strconv.Itoa(c.cmd.Process.Pid) {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		require.NoError(c.t, err)
		title, _, _ := strings.Cut(string(cmdline), "\x00")
		out[title] = pid
	}
	return out
}

// gone checks that no process of the group is left.
func (c *child) gone() {
	c.t.Helper()
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return
	}
	require.Eventually(c.t, func() bool { return len(c.group()) == 0 }, limit, 20*time.Millisecond, "processes are left")
}

// left are the kinds of files that are left: ipc, sockets, metrics, snapshot.
func (c *child) left() map[string]int {
	out := map[string]int{}
	entries, err := os.ReadDir(c.tmp)
	require.NoError(c.t, err)
	python := regexp.MustCompile(`^tmp[a-z0-9_]{8}$`)
	for _, e := range entries {
		switch {
		case e.Name() == "shm":
		case !python.MatchString(e.Name()):
			c.t.Errorf("%s is no name of Python's tempfile", e.Name())
		case e.IsDir():
			out["metrics"]++
		case e.Type()&os.ModeSocket != 0:
			out["sockets"]++
		default:
			out["ipc"]++
		}
	}
	entries, err = os.ReadDir(c.shm)
	require.NoError(c.t, err)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(c.t, err)
		require.Regexp(c.t, `^sglang_loads_[0-9a-f]{12}_[0-9a-f]{8}\.shm$`, e.Name())
		require.EqualValues(c.t, 16396, info.Size())
		out["snapshot"]++
	}
	return out
}
