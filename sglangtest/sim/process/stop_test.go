//go:build unix

package process

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// clean is what SGLang 0.5.23 left on the disk after a clean end with --enable-metrics (observed), and killed after
// SIGKILL.
var (
	clean  = map[string]int{"ipc": 2, "sockets": 3, "snapshot": 1}
	killed = map[string]int{"ipc": 2, "sockets": 3, "snapshot": 1, "metrics": 1}
)

var stamps = regexp.MustCompile(`^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] `)

// after returns the lines from the first with text on, without their times and process ids.
func (c *child) after(text string) []string {
	var out []string
	for _, l := range c.seen {
		if len(out) == 0 && !strings.Contains(l, text) {
			continue
		}
		if strings.Contains(l, "] sglang-sim: ") {
			continue // a busy machine is late
		}
		l = stamps.ReplaceAllString(l, "")
		out = append(out, regexp.MustCompile(`pid=\d+|process \[\d+\]`).ReplaceAllString(l, "PID"))
	}
	return out
}

func TestSIGTERM(t *testing.T) {
	graceful := []string{
		"SIGTERM received. signum=None frame=None. Draining requests and shutting down...",
		"Gracefully exiting... Remaining number of requests 0. Remaining requests remaining_rids=[].",
	}
	for version, want := range map[string]struct {
		status int
		left   map[string]int
		lines  []string
	}{
		"0.5.15.post1": {-9, killed, []string{"kill_process_tree called: parent_PID, include_parent=True, PID"}},
		"0.5.18":       {-9, killed, []string{"kill_process_tree called: parent_PID, include_parent=True, PID"}},
		"0.5.21": {0, clean, []string{"kill_process_tree called: parent_PID, include_parent=False, PID", "INFO:     Shutting down",
			"INFO:     Waiting for application shutdown.", "INFO:     Application shutdown complete.", "INFO:     Finished server PID",
			"kill_process_tree called: parent_PID, include_parent=False, PID"}},
		"0.5.23": {0, clean, []string{"kill_process_tree called: parent_PID, include_parent=False, PID", "INFO:     Shutting down",
			"INFO:     Waiting for application shutdown.", "INFO:     Application shutdown complete.", "INFO:     Finished server PID",
			"kill_process_tree called: parent_PID, include_parent=False, PID"}},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := start(t, "--sim-version", version, "--enable-metrics").ready()
			c.signal(syscall.SIGTERM)
			require.Equal(t, want.status, c.wait())
			require.Equal(t, append(graceful, want.lines...), c.after("SIGTERM received"))
			c.gone()
			require.Equal(t, want.left, c.left())
		})
	}
}

// stream begins a long generation and returns its answer when the first event is there.
func (c *child) stream(rid string) *http.Response {
	c.t.Helper()
	res, err := http.Post(c.url("/generate"), "application/json",
		strings.NewReader(`{"text":"hello","stream":true,"rid":"`+rid+`","sampling_params":{"max_new_tokens":100,"ignore_eos":true}}`))
	require.NoError(c.t, err)
	c.t.Cleanup(func() { res.Body.Close(); http.DefaultClient.CloseIdleConnections() })
	_, err = bufio.NewReader(res.Body).ReadString('\n')
	require.NoError(c.t, err)
	return res
}

// A draining server waits for what is in flight, says so, is not healthy, and takes new requests all the same.
func TestDrain(t *testing.T) {
	t.Parallel()
	c := start(t, "--sim-fault", "slow-step:20ms").ready()
	c.stream("term-1")
	c.signal(syscall.SIGTERM)
	l := c.line("Gracefully exiting... Remaining number of requests 1.")
	require.Contains(t, l, "Remaining requests remaining_rids=['term-1'].")
	res, err := http.Get(c.url("/health"))
	require.NoError(t, err)
	res.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	status, _ := c.post("/generate", `{"text":"new","sampling_params":{"max_new_tokens":2}}`)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, 0, c.wait())
	require.Contains(t, c.stderr(), "Gracefully exiting... Remaining number of requests 0. Remaining requests remaining_rids=[].")
	c.gone()
}

func TestForcedShutdown(t *testing.T) {
	t.Setenv("SGL_FORCE_SHUTDOWN", "true")
	c := start(t, "--sim-version", "0.5.18", "--sim-fault", "slow-step:20ms").ready()
	c.stream("term-1")
	c.signal(syscall.SIGTERM)
	require.Equal(t, -9, c.wait())
	require.Contains(t, c.stderr(), "Signal SIGTERM received while force shutdown flag set. Force exiting.")
	c.gone()
}

func TestSIGINT(t *testing.T) {
	t.Parallel()
	c := start(t).ready()
	c.signal(syscall.SIGINT)
	require.Equal(t, 0, c.wait())
	require.Equal(t, []string{"INFO:     Shutting down", "INFO:     Waiting for application shutdown.", "INFO:     Application shutdown complete.",
		"INFO:     Finished server PID", "kill_process_tree called: parent_PID, include_parent=False, PID"}, c.after("Shutting down"))
	c.gone()
}

func TestSecondSIGINT(t *testing.T) {
	t.Parallel()
	c := start(t).ready()
	status, _ := c.post("/sim/fault", `{"fault":"hang"}`)
	require.Equal(t, http.StatusOK, status)
	res, err := c.try("/generate", `{"text":"x","stream":true}`)
	require.NoError(t, err)
	defer res.Body.Close()
	c.signal(syscall.SIGINT)
	c.line("Waiting for connections to close. (CTRL+C to force quit)")
	c.signal(syscall.SIGINT)
	require.Equal(t, 0, c.wait())
	_, err = io.ReadAll(res.Body)
	require.Error(t, err)
	require.False(t, strings.Contains(c.stderr(), "Application shutdown complete."), "%q", c.after("fired up"))
	c.gone()
}

// A fault that is asked for while the server ends does not hold that up.
func TestSIGINTDuringFaultRequest(t *testing.T) {
	for fault, status := range map[string]int{"slow-step:2": 0, "hang": 0, "error-rate:0.5/503": 0, "killed": -9} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			c := start(t).ready()
			conn, err := net.Dial("tcp", strings.TrimPrefix(c.url(""), "http://"))
			require.NoError(t, err)
			defer conn.Close()
			body := `{"fault":"` + fault + `"}`
			_, err = fmt.Fprintf(conn, "POST /sim/fault HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", len(body))
			require.NoError(t, err)
			answer := bufio.NewReader(conn)
			line, err := answer.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "HTTP/1.1 100 Continue\r\n", line, "it is being answered")
			c.signal(syscall.SIGINT)
			c.line("Shutting down")
			_, err = conn.Write([]byte(body))
			require.NoError(t, err)
			require.Equal(t, status, c.wait())
			c.gone()
		})
	}
}

// Schedulers that do not end are waited for once, and not each for ever.
func TestDrainOfHungSchedulers(t *testing.T) {
	t.Parallel()
	c := start(t, "--tp-size", "2").ready()
	for title, pid := range c.group() {
		if strings.HasPrefix(title, "sglang::scheduler") {
			require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		}
	}
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
	c.gone()
}

// While it loads, SIGTERM ends the process as Python does by default. The detokenizer can stay.
func TestSIGTERMWhileLoading(t *testing.T) {
	for name, args := range map[string][]string{"gone": nil, "orphan": {"--sim-fault", "orphan-detokenizer"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, append(args, "--sim-startup", "60s", "--enable-metrics")...)
			require.Eventually(t, func() bool { return len(c.group()) == 3 && c.left()["sockets"] == 3 }, limit, 1e7)
			c.signal(syscall.SIGTERM)
			if name == "gone" {
				require.Equal(t, -15, c.wait())
				c.gone()
				return
			}
			_, err := c.cmd.Process.Wait()
			require.NoError(t, err)
			require.Eventually(t, func() bool { return len(c.group()) == 1 }, limit, 1e7)
			pid := c.group()["sglang::detokenizer"]
			require.NotZero(t, pid)
			require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
			for range c.lines {
			}
			c.readers.Wait()
			c.ended = true
			c.gone()
		})
	}
}

// Before the first generation uvicorn's own handler of SIGTERM is in place, which raises the signal anew.
func TestSIGTERMBeforeFirstRequest(t *testing.T) {
	t.Parallel()
	c := start(t, "--skip-server-warmup").ready()
	c.signal(syscall.SIGTERM)
	require.Equal(t, -15, c.wait())
	require.Equal(t, "INFO:     Finished server PID", c.after("Shutting down")[3])
	c.gone()
}

func TestSIGKILL(t *testing.T) {
	t.Parallel()
	c := start(t, "--enable-metrics", "--tp-size", "2").ready()
	for _, title := range []string{"sglang::scheduler_TP0", "sglang::scheduler_TP1", "sglang::detokenizer"} {
		require.Contains(t, c.group(), title)
	}
	c.signal(syscall.SIGKILL)
	require.Equal(t, -9, c.wait())
	c.gone()
	require.Equal(t, killed, c.left())
}

// There is no file at any time, so that none is left by SIGKILL.
func TestNoFiles(t *testing.T) {
	t.Parallel()
	c := start(t, "--enable-metrics", "--sim-files=false").ready()
	require.Empty(t, c.left())
	c.signal(syscall.SIGKILL)
	require.Equal(t, -9, c.wait())
	require.Empty(t, c.left())
}

func TestDataParallel(t *testing.T) {
	t.Parallel()
	c := start(t, "--dp-size", "2").ready()
	for _, title := range []string{"sglang::data_parallel_controller", "sglang::scheduler_DP0", "sglang::scheduler_DP1", "sglang::detokenizer"} {
		require.Contains(t, c.group(), title)
	}
	for _, rank := range []string{"DP0", "DP1"} {
		status, body := c.post("/generate", `{"text":"hello","sampling_params":{"max_new_tokens":2,"ignore_eos":true}}`)
		require.Equal(t, http.StatusOK, status)
		require.Contains(t, body, `"dp_rank":`+rank[2:])
	}
	status, body := c.post("/set_internal_state", `{"server_args":{"pp_max_micro_batch_size":4}}`)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "[true,true]", body)
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
	c.gone()
	require.Contains(t, c.stderr(), "] Launch DP1 starting at GPU #1.\n")
	for _, rank := range []string{"DP0", "DP1"} {
		for text, times := range map[string]int{"Load weight begin.": 1, "KV Cache is allocated.": 1, "max_total_num_tokens=": 1, "Prefill batch, #new-seq: 1,": 2} {
			require.Equal(t, times, strings.Count(c.stderr(), " "+rank+"] "+text), "%s, the warm-up included: %s", rank, text)
		}
	}
}
