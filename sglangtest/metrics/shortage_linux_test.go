package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asChild names the part that a process started by runInChild plays.
const asChild = "SGLANGTEST_CLIENT_CHILD"

// runInChild runs the calling test again in a process of its own, which plays the named part. In that process it returns
// that part; in this one it returns "" when that process has succeeded.
func runInChild(t *testing.T, part string, attr *syscall.SysProcAttr, env ...string) string {
	t.Helper()
	if part := os.Getenv(asChild); part != "" {
		return part
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(append(os.Environ(), asChild+"="+part), env...)
	cmd.SysProcAttr = attr
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("a process of its own needs rights that this one has not: %v", err)
	} else if err != nil || !strings.Contains(out.String(), "--- PASS") {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return ""
}

// generating serves /generate: an answer of one token, after hold.
func generating(hold time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		select {
		case <-time.After(hold):
		case <-r.Context().Done():
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, `data: {"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"}}}`+"\n\ndata: [DONE]\n\n")
	}
}

// fortyStreams arrive within 40 ms and are under way together.
func fortyStreams(t *testing.T, url string) *Summary {
	gen, err := load.NewRequestGenerator(load.Random(4, 1, 1), load.WithLimit(40), load.WithArrivals(load.Poisson(1000)))
	require.NoError(t, err)
	sender, err := load.NewSender(url)
	require.NoError(t, err)
	defer sender.Close()
	col, err := NewCollector(WithMaxLateness(time.Second))
	require.NoError(t, err)
	require.NoError(t, load.Run(t.Context(), gen, sender, col))
	return col.Summary()
}

// requireRefused checks that a closed loop of forty is refused before a request is sent.
func requireRefused(t *testing.T, url string, says ...string) {
	t.Helper()
	gen, err := load.NewRequestGenerator(load.Random(4, 1, 1), load.WithLimit(400), load.WithArrivals(load.AllAtOnce()))
	require.NoError(t, err)
	sender, err := load.NewSender(url)
	require.NoError(t, err)
	defer sender.Close()
	col, err := NewCollector()
	require.NoError(t, err)
	err = load.Run(t.Context(), gen, sender, col, load.WithMaxConcurrency(40))
	for _, part := range append(says, "40 requests are due at the same moment", "40 connections are needed at once", "max_concurrency") {
		require.ErrorContains(t, err, part)
	}
	require.False(t, col.Began(), "nothing was sent")
}

func requireClientFault(t *testing.T, s *Summary, says ...string) {
	t.Helper()
	failed := 0
	for _, o := range s.Requests.Outcomes {
		switch o.Outcome {
		case load.OutcomeClient:
			failed = o.Count
		case load.OutcomeOK:
		default:
			t.Errorf("%d %s: %s", o.Count, o.Outcome, o.Message)
		}
	}
	require.Positive(t, failed)
	require.False(t, s.Client.OK)
	require.Contains(t, s.Client.Reasons[0], fmt.Sprintf("client failed %d of 40 requests by itself, which says nothing of the server: ", failed))
	for _, part := range says {
		require.Contains(t, s.Client.Reasons[0], part)
	}
	require.NotContains(t, s.String(), "server may have been lost")
}

func TestNoLocalPortIsTheClientsFault(t *testing.T) {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Getuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	}
	if runInChild(t, "ten ports", attr) == "" {
		return
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	require.NoError(t, err)
	ifr, err := unix.NewIfreq("lo")
	require.NoError(t, err)
	ifr.SetUint16(unix.IFF_UP)
	require.NoError(t, unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr))
	unix.Close(fd)
	srv := httptest.NewServer(generating(100 * msec))
	defer srv.Close()
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40009"), 0))
	requireRefused(t, srv.URL, "this machine has 10 local ports for them (40000 to 40009): widen net.ipv4.ip_local_port_range")
	s := fortyStreams(t, srv.URL)
	requireClientFault(t, s, "no local port is left", "widen net.ipv4.ip_local_port_range, which is 40000 to 40009, 10 ports", "max_concurrency")
	require.Equal(t, 10, s.Requests.OK)
}

func TestNoFileDescriptorIsTheClientsFault(t *testing.T) {
	if os.Getenv(asChild) == "" {
		srv := httptest.NewServer(generating(100 * msec))
		defer srv.Close()
		runInChild(t, "few descriptors", nil, "SGLANGTEST_URL="+srv.URL)
		return
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 24, Max: 24}))
	requireRefused(t, os.Getenv("SGLANGTEST_URL"), "this process may have 24 files open, and has ", "raise that limit (ulimit -n ")
	s := fortyStreams(t, os.Getenv("SGLANGTEST_URL"))
	requireClientFault(t, s, "this process has no file descriptor left", "raise its limit (ulimit -n), which is 24", "max_concurrency")
}
