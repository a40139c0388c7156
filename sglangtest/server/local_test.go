//go:build linux

package server_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/internal/leftover"
	"github.com/sglangtest/harness/sglangtest/server"
)

// A local runs servers as processes of this host, and looks from outside at what they leave.
type local struct {
	*testing.T
	m       *server.ServerManager
	watch   *leftover.Watch
	logs    string
	onEvent func(server.Event) // set it before a launch
}

// newLocal's instance is in the names of the servers' files in /dev/shm, if they let it be chosen.
func newLocal(t *testing.T, l server.Launcher, instance string, opts ...server.Option) *local {
	r := &local{T: t, logs: t.TempDir()} // all processes have a log in it open, or its path as an argument
	start := time.Now()
	tell := func(e server.Event) {
		t.Logf("%6.2f %s %s: %s", e.Time.Sub(start).Seconds(), e.Server, e.Kind, e.Message)
		_, err := r.watch.Processes() // and their files
		if err != nil {
			t.Error(err)
		}
		if r.onEvent != nil {
			r.onEvent(e)
		}
	}
	r.watch = leftover.Begin(r.logs, instance)
	var err error
	r.m, err = server.NewServerManager(l, append(opts, server.WithLogFolder(r.logs), server.WithEvents(tell))...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.m.StopAll(context.Background())) })
	return r
}

func (r *local) launch(cfg server.Config) *server.Server {
	r.Helper()
	s, err := r.m.Launch(r.Context(), cfg)
	require.NoError(r, err)
	return s
}

// fails launches a server that fails, and returns why.
func (r *local) fails(cfg server.Config) *server.FailureError {
	r.Helper()
	_, err := r.m.Launch(r.Context(), cfg)
	var failure *server.FailureError
	require.ErrorAs(r, err, &failure)
	require.Empty(r, r.m.Servers())
	r.gone("")
	return failure
}

// gone checks that nothing of a server is left once the launcher says that it has ended.
func (r *local) gone(temp string) {
	r.Helper()
	require.NoError(r, r.watch.Gone(0))
	if temp != "" {
		require.NoDirExists(r, temp)
	}
}

// process returns the process whose command line begins like that.
func (r *local) process(command string) leftover.Process {
	r.Helper()
	processes, err := r.watch.Processes()
	require.NoError(r, err)
	for _, p := range processes {
		if strings.HasPrefix(p.Command, command) {
			return p
		}
	}
	r.Fatalf("no process %q among %v", command, processes)
	return leftover.Process{}
}

// main returns the main process of a server, which leads a process group.
func (r *local) main(s *server.Server) leftover.Process {
	r.Helper()
	processes, err := r.watch.Processes()
	require.NoError(r, err)
	for _, p := range processes {
		if group, err := syscall.Getpgid(p.ID); err == nil && group == p.ID && strings.Contains(p.Command, "--weight-version "+s.Name()) {
			return p
		}
	}
	r.Fatalf("no main process among %v", processes)
	return leftover.Process{}
}

// kill sends SIGKILL.
func (r *local) kill(p leftover.Process) {
	r.Helper()
	require.NoError(r, syscall.Kill(p.ID, syscall.SIGKILL))
}

// failed waits for the end of a server that fails, and returns why.
func (r *local) failed(s *server.Server) *server.FailureError {
	r.Helper()
	<-s.Exited()
	var failure *server.FailureError
	require.ErrorAs(r, s.Err(), &failure)
	require.FileExists(r, failure.LogFile)
	r.gone("")
	return failure
}

// stops stops a server, which must end as its version does.
func (r *local) stops(s *server.Server) server.Exit {
	r.Helper()
	temp := r.main(s).Temp
	require.DirExists(r, temp)
	require.NoError(r, s.Stop(context.Background()))
	exit, ended := s.Exit()
	require.True(r, ended)
	require.True(r, exit.Clean(s.Info().Version), "%v", exit)
	r.gone(temp)
	return exit
}

// startupInOrder checks that the phases come in order, without a gap, and that none is missing. The last one is: a server can be
// found ready before its log has been read that far.
func startupInOrder(t *testing.T, s *server.Server, also ...server.PhaseName) {
	phases := map[server.PhaseName]bool{}
	var end time.Time
	for _, p := range s.Startup() {
		phases[p.Name] = true
		require.Positive(t, p.Duration, p)
		if !end.IsZero() {
			require.WithinDuration(t, end, p.Start, 0, "%v", p)
		}
		end = p.Start.Add(p.Duration)
	}
	for _, name := range append(also, server.PhaseImport, server.PhaseSpawn, server.PhaseWeights, server.PhaseKV, server.PhaseHTTP, server.PhaseWarmup) {
		require.True(t, phases[name], "%s is missing", name)
	}
}

// closedLoop keeps n requests of different lengths at the server, from least output tokens to four times as many, until the
// function that it returns is called.
func closedLoop(t *testing.T, s *server.Server, n, least int) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			lengths := rand.New(rand.NewPCG(1, uint64(i)))
			for ctx.Err() == nil {
				body := fmt.Sprintf(`{"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": %d, "ignore_eos": true}}`, least+lengths.IntN(3*least))
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL()+"/generate", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Content-Type", "application/json")
				resp, err := client.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if ctx.Err() == nil && (err != nil || resp.StatusCode != http.StatusOK) {
					t.Errorf("a request failed: %v", err)
					return
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
		client.CloseIdleConnections()
	}
}

// changeLimits goes from 64 to 4, 16 and 64 while 24 requests are there: each limit is obeyed, and a raised one is in force
// only when a request of the full batch has finished (SGLang's batch_is_full).
func changeLimits(t *testing.T, s *server.Server, least int) (changes []server.ParamUpdate) {
	const clients = 24
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	defer closedLoop(t, s, clients, least)()
	awaitLoad(t, s, func(l server.Load) bool { return l.NumRunning == clients })
	for _, limit := range []int{4, 16, 64} {
		u, err := s.UpdateParam(ctx, server.ParamMaxRunningRequests, limit)
		require.NoError(t, err)
		u, err = s.WaitInForce(ctx, u)
		require.NoError(t, err)
		require.Equal(t, limit, u.ReadBack)
		t.Logf("%d → %d with %v running: accepted after %v, in force after %v to %v", u.Previous, u.Value, u.Running,
			u.Accepted.Sub(u.Asked), u.NotBefore.Sub(u.Asked), u.InForce.Sub(u.Asked))
		require.True(t, u.Asked.Before(u.Accepted) && u.Accepted.Before(u.InForce))
		awaitLoad(t, s, func(l server.Load) bool { return l.NumRunning == min(limit, clients) })
		changes = append(changes, u)
	}
	return changes
}

// longRequest sends a request that is under way when this returns. Its answer's status comes on the channel, or -1.
func longRequest(t *testing.T, s *server.Server, tokens int) <-chan int {
	status := make(chan int, 1)
	go func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Post(s.URL()+"/generate", "application/json",
			strings.NewReader(fmt.Sprintf(`{"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": %d, "ignore_eos": true}}`, tokens)))
		if err != nil {
			t.Log(err)
			status <- -1
			return
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Log(err)
			status <- -1
			return
		}
		status <- resp.StatusCode
	}()
	awaitLoad(t, s, func(l server.Load) bool { return l.NumRunning == 1 })
	return status
}

// describe writes a start-up in one line.
func describe(s *server.Server) string {
	var parts []string
	var total time.Duration
	for _, p := range s.Startup() {
		parts = append(parts, p.String())
		total += p.Duration
	}
	return fmt.Sprintf("%s; in all %v", strings.Join(parts, ", "), total.Round(time.Millisecond))
}

// freePort returns a port that nobody has.
func freePort(t *testing.T) int {
	l, err := listen(0)
	require.NoError(t, err)
	defer l.Close()
	return portOf(l)
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
