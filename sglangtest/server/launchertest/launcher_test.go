// Package launchertest_test launches servers on hosts that do not exist, with nothing but exported names: what a launcher for
// SSH, Slurm or Kubernetes would need.
package launchertest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started is what SGLang 0.5.23 logs on a start, cut.
const started = `[2026-11-24 17:00:00] server_args={'model_path': 'm', 'mem_fraction_static': 0.83, 'api_key': 'sk-very-secret'}
[2026-11-24 17:00:01] Load weight begin. avail mem=78.50 GB
Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:00<00:00,  2.00it/s]` + "\r" + `Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:01<00:00,  2.00it/s]
[2026-11-24 17:00:02] Load weight end. elapsed=0.11 s, avail mem=63.48 GB, mem usage=15.02 GB.
[2026-11-24 17:00:06] max_total_num_tokens=410620, max_running_requests=256, context_len=131072, available_gpu_mem=11.21 GB
`

const (
	open    = "INFO:     Uvicorn running on http://10.1.2.3:30000\n[2026-11-24 17:00:24] The server is fired up and ready to roll!\n"
	noSpace = "[2026-11-24 17:00:03] Scheduler hit an exception: Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
)

// remote launches servers on hosts of its own.
type remote struct {
	hosts []server.Host
	text  string                                  // what a server logs on its start
	dies  error                                   // not nil: servers end at once
	alter func(*pod, server.Spec) server.Instance // nil: the pod
	up    func(server.Spec, *pod) (url string, down func(), err error)

	mu    sync.Mutex
	specs []server.Spec
	pods  []*pod
}

func (r *remote) Hosts(context.Context, server.Config) ([]server.Host, error) { return r.hosts, nil }

func (r *remote) Launch(ctx context.Context, spec server.Spec) (server.Instance, error) {
	p := &pod{spec: spec, log: server.NewLog(spec.Config), exited: make(chan struct{}), down: func() {}}
	var err error
	if r.up != nil {
		if p.url, p.down, err = r.up(spec, p); err != nil {
			return nil, err
		}
	} else {
		p.url = "http://" + net.JoinHostPort(spec.Host, fmt.Sprint(spec.Config.Port))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.specs, r.pods = append(r.specs, spec), append(r.pods, p)
	_, _ = io.WriteString(p.log.Stderr(), r.text)
	if r.dies != nil {
		p.end(r.dies, server.Exit{Code: 3})
	}
	if r.alter != nil {
		return r.alter(p, spec), nil
	}
	return p, nil
}

// A pod is a server somewhere else, with all that an instance can do.
type pod struct {
	spec    server.Spec
	url     string
	log     *server.Log
	down    func()
	remains bool

	once   sync.Once
	exited chan struct{}
	err    error
	exit   server.Exit

	mu    sync.Mutex
	calls []string
}

var _ interface {
	server.Logged
	server.LogKeeper
	server.Named
	server.Exiter
	server.Killer
	server.Suspender
	server.Remainer
	server.Commanded
	server.Warned
} = (*pod)(nil)

func (p *pod) end(err error, exit server.Exit) {
	p.once.Do(func() {
		p.down()
		p.err, p.exit = err, exit
		p.log.End()
		close(p.exited)
	})
}

func (p *pod) note(call string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, call)
}

func (p *pod) noted() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.calls...)
}

func (p *pod) URL() string             { return p.url }
func (p *pod) Exited() <-chan struct{} { return p.exited }
func (p *pod) Log() *server.Log        { return p.log }
func (p *pod) KeepLog() string         { return p.spec.Host + ":/var/log/" + p.spec.Name }
func (p *pod) WeightVersion() string   { return p.spec.WeightVersion() }
func (p *pod) Warnings() []string      { return []string{"its clock is 3 s ahead"} }
func (p *pod) Remains() bool           { return p.remains }

func (p *pod) CommandLine() []string {
	args, err := p.spec.CommandLine("")
	if err != nil {
		return nil
	}
	return append([]string{"ssh", p.spec.Host, "python", "-m", "sglang.launch_server"}, args...)
}

func (p *pod) hasEnded() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

func (p *pod) Err() error {
	if p.hasEnded() {
		return p.err
	}
	return nil
}

func (p *pod) Exit() (server.Exit, bool) {
	if p.hasEnded() {
		return p.exit, true
	}
	return server.Exit{}, false
}

func (p *pod) Stop(context.Context) error {
	p.note("stop")
	p.end(nil, server.Exit{Asked: true})
	return nil
}

func (p *pod) Kill(context.Context) error {
	p.note("kill")
	p.end(nil, server.Exit{Code: -1, Signal: syscall.SIGKILL, Asked: true, Forced: true})
	return nil
}

func (p *pod) Suspend(context.Context) error { p.note("suspend"); return nil }
func (p *pod) Resume(context.Context) error  { p.note("resume"); return nil }

// wire plays the network: every server answers as SGLang does, under the name that its pod has, or that is given.
type wire struct {
	r       *remote
	foreign string // the name under which another server answers everywhere
	after   time.Duration
}

func (w wire) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case <-time.After(w.after):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	w.r.mu.Lock()
	name := w.foreign
	found := false
	for _, p := range w.r.pods {
		if p.url == "http://"+req.URL.Host && !p.hasEnded() {
			found = true
			if name == "" {
				name = p.spec.WeightVersion()
			}
		}
	}
	w.r.mu.Unlock()
	if !found {
		return nil, errors.New("connection refused")
	}
	body, known := map[string]string{
		"/ready":       "",
		"/model_info":  `{"model_path":"m","is_generation":true,"weight_version":"` + name + `"}`,
		"/server_info": `{"version":"0.5.23","frontend":"python","log_level":"info","internal_states":[{"effective_max_running_requests_per_dp":64}]}`,
		"/v1/models":   `{"data":[{"id":"m","max_model_len":4096}]}`,
		"/generate":    `{"meta_info":{"completion_tokens":1,"weight_version":"` + name + `"}}`,
	}[req.URL.Path]
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: req, Body: io.NopCloser(strings.NewReader(body))}
	if !known {
		resp.StatusCode = http.StatusNotFound
	}
	return resp, nil
}

func (r *remote) manager(t *testing.T, opts ...server.Option) (*server.ServerManager, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var told []string
	m, err := server.NewServerManager(r, append([]server.Option{server.WithTransport(wire{r: r}), server.WithEvents(func(e server.Event) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, e.Kind+" "+e.Message)
	})}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.StopAll(context.Background())) })
	return m, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), told...)
	}
}

func gpu7(more ...server.Host) *remote {
	return &remote{text: started + open, hosts: append([]server.Host{{Name: "gpu-7", Port: true, GPUs: true}}, more...)}
}

// A launcher of one's own gets all that a local process gets.
func TestAllOfALauncherOfOnesOwn(t *testing.T) {
	r := gpu7()
	m, told := r.manager(t)
	s, err := m.Launch(t.Context(), server.Config{ModelPath: "m", Host: "10.1.2.3", Port: 30000, GPUs: []int{0}, APIKey: "sk-very-secret"})
	require.NoError(t, err)
	host, known := s.Host()
	require.True(t, known)
	require.Equal(t, "gpu-7", host)
	require.Equal(t, "gpu-7", r.specs[0].Host)

	var phases []server.PhaseName
	for _, p := range s.Startup() {
		phases = append(phases, p.Name)
	}
	require.Equal(t, []server.PhaseName{server.PhaseImport, server.PhaseSpawn, server.PhaseWeights, server.PhaseKV, server.PhaseHTTP, server.PhaseWarmup, server.PhaseCheck}, phases)
	require.Equal(t, "[2026-11-24 17:00:00] server_args={'model_path': 'm', 'mem_fraction_static': 0.83, 'api_key': '(key)'}", s.Log().Tail(100)[0].Text)
	require.Contains(t, told(), "warning its clock is 3 s ahead")
	require.Equal(t, []string{"ssh", "gpu-7", "python", "-m", "sglang.launch_server", "--model-path", "m", "--host", "10.1.2.3", "--port", "30000"}, s.Record().Command[:11])
	require.Contains(t, s.Record().Command, "--weight-version")
	require.NotContains(t, fmt.Sprint(s.Record().Command), "sk-very-secret")

	require.NoError(t, s.Suspend(t.Context()))
	require.NoError(t, s.Resume(t.Context()))
	require.NoError(t, s.Suspend(t.Context()))
	require.NoError(t, s.Restart(t.Context(), nil))
	require.Equal(t, []string{"suspend", "resume", "suspend", "resume", "stop"}, r.pods[0].noted(), "a stop resumes it first")
	require.NoError(t, s.Kill(t.Context()))
	require.ErrorIs(t, s.Err(), server.ErrKilled)
	exit, ok := s.Exit()
	require.True(t, ok)
	require.Equal(t, "signal 9 (killed), forced", exit.String())
	require.Contains(t, told(), "exit signal 9 (killed), forced")
}

// Each host has its own ports and GPUs, and nothing of them is looked for here.
func TestReservationByHost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // taken here, and nowhere else
	require.NoError(t, err)
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	asked := ""
	r := gpu7(server.Host{Name: "gpu-8", Port: true, GPUs: true, CanListen: func(_ context.Context, address string) error {
		asked = address
		return nil
	}})
	m, _ := r.manager(t)
	cfg := server.Config{Port: port, GPUs: []int{0}}
	var hosts []string
	for range 2 {
		s, err := m.Launch(t.Context(), cfg)
		require.NoError(t, err)
		host, _ := s.Host()
		hosts = append(hosts, fmt.Sprint(host, " ", s.Config().Port == port, s.Config().GPUs))
	}
	require.Equal(t, []string{"gpu-7 true [0]", "gpu-8 true [0]"}, hosts)
	require.Equal(t, l.Addr().String(), asked)

	_, err = m.Launch(t.Context(), cfg)
	require.EqualError(t, err, "server: GPU 0 of gpu-7 is taken by server-0: choose others\nserver: GPU 0 of gpu-8 is taken by server-1: choose others")
	cfg.GPUs = []int{1}
	_, err = m.Launch(t.Context(), cfg)
	var inUse *server.PortInUseError
	require.ErrorAs(t, err, &inUse)
	require.Equal(t, server.PortInUseError{Host: "gpu-7", Address: l.Addr().String(), By: "server-0"}, *inUse)

	chosen, err := m.Launch(t.Context(), server.Config{})
	require.NoError(t, err)
	require.Positive(t, chosen.Config().Port)
	require.NoError(t, m.Servers()[0].Stop(t.Context()))
	cfg.GPUs = []int{0}
	_, err = m.Launch(t.Context(), cfg)
	require.NoError(t, err, "what is given back can be had again")
}

// plain hides all that a launcher can do but the least.
type plain struct{ server.Launcher }

// What a launcher does not say is not guessed: an address that is not this host's is no fault.
func TestConfigReachesALauncherAsItIs(t *testing.T) {
	r := &remote{text: started + open}
	m, err := server.NewServerManager(plain{r}, server.WithTransport(wire{r: r}))
	require.NoError(t, err)
	defer func() { require.NoError(t, m.StopAll(context.Background())) }()
	r.up = func(spec server.Spec, _ *pod) (string, func(), error) {
		return "http://pod-" + spec.Name, func() {}, nil
	}
	for range 2 { // two hosts may both use port 30000
		s, err := m.Launch(t.Context(), server.Config{Host: "10.1.2.3", Port: 30000, GPUs: []int{0}})
		require.NoError(t, err)
		require.NoError(t, s.Restart(t.Context(), nil))
		require.Equal(t, "10.1.2.3", s.Config().Host)
	}
}

// Why a server failed is told from the log of any launcher.
func TestDiagnosis(t *testing.T) {
	r := gpu7()
	r.text, r.dies = started+noSpace, errors.New("pod evicted")
	m, _ := r.manager(t)
	_, err := m.Launch(t.Context(), server.Config{})
	var failure *server.FailureError
	require.ErrorAs(t, err, &failure)
	require.Equal(t, server.CauseOOMLoad, failure.Cause, "%v", err)
	require.Equal(t, "gpu-7:/var/log/server-0", failure.LogFile)
	require.ErrorIs(t, err, r.dies)
	require.ErrorContains(t, err, "exit status 3, pod evicted")

	r.alter = func(p *pod, _ server.Spec) server.Instance { // it has a log, and no exit
		return struct {
			server.Instance
			logged
		}{p, logged{p}}
	}
	_, err = m.Launch(t.Context(), server.Config{})
	require.ErrorAs(t, err, &failure)
	require.ErrorContains(t, err, "(pod evicted)")
	require.NotContains(t, err.Error(), "exit status")
}

// logged is the log of a pod, without all else.
type logged struct{ p *pod }

func (l logged) Log() *server.Log { return l.p.log }

// A server is ready only if it answers under the name that it was launched with.
func TestProofByName(t *testing.T) {
	r := gpu7()
	m, _ := r.manager(t, server.WithTransport(wire{r: r, foreign: "server-of-others"}))
	_, err := m.Launch(t.Context(), server.Config{Host: "10.1.2.3", Port: 30000})
	var inUse *server.PortInUseError
	require.ErrorAs(t, err, &inUse)
	require.ErrorContains(t, err, `10.1.2.3:30000 of gpu-7`)
	require.ErrorContains(t, err, `another server answers at http://gpu-7:30000: its weight_version is "server-of-others", not "server-0"`)

	synctest.Test(t, func(t *testing.T) { // it answers, but its log does not show that it has opened the socket
		r := gpu7()
		r.text = started
		m, _ := r.manager(t, server.WithReadyTimeout(time.Minute), server.WithTransport(wire{r: r, after: time.Millisecond}))
		_, err := m.Launch(t.Context(), server.Config{})
		require.ErrorContains(t, err, "the log does not show that the server has opened its socket")
	})
}

// What could not be ended keeps what it has.
func TestRemains(t *testing.T) {
	r := gpu7()
	r.alter = func(p *pod, _ server.Spec) server.Instance { p.remains = true; return p }
	m, told := r.manager(t)
	s, err := m.Launch(t.Context(), server.Config{Port: 30000})
	require.NoError(t, err)
	require.NoError(t, s.Stop(t.Context()))
	require.Contains(t, told(), "warning processes of it are still there, so that its port and its GPUs are not given out again")
	_, err = m.Launch(t.Context(), server.Config{Port: 30000})
	require.ErrorContains(t, err, "127.0.0.1:30000 of gpu-7 is the port of server-0")
}

// broken is a pod some of whose calls do not return, or do nothing.
type broken struct {
	*pod
	what string
}

func (b broken) hang(what string) {
	if b.what == what {
		<-b.pod.exited // which nothing closes but the end of the test
	}
}

func (b broken) Stop(ctx context.Context) error {
	if b.what == "does not end" {
		return nil
	}
	b.hang("Stop")
	return b.pod.Stop(ctx)
}

func (b broken) Kill(ctx context.Context) error    { b.hang("Kill"); return b.pod.Kill(ctx) }
func (b broken) Suspend(ctx context.Context) error { b.hang("Suspend"); return nil }
func (b broken) Resume(ctx context.Context) error  { b.hang("Resume"); return nil }

// No call of a launcher keeps a caller much longer than its context.
func TestLaunchersThatHang(t *testing.T) {
	bubble := func(name string, f func(t *testing.T, r *remote)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { f(t, gpu7()) }) })
	}
	soon := func(t *testing.T) (context.Context, context.CancelFunc) {
		return context.WithTimeout(t.Context(), time.Second)
	}
	const most = time.Minute

	bubble("a log that does not end with its server", func(t *testing.T, r *remote) {
		r.dies = errors.New("crashed")
		r.alter = func(p *pod, _ server.Spec) server.Instance { return endless{p, server.NewLog(server.Config{})} }
		m, told := r.manager(t)
		ctx, cancel := soon(t)
		defer cancel()
		begin := time.Now()
		_, err := m.Launch(ctx, server.Config{})
		var gone *server.ExitedError
		require.ErrorAs(t, err, &gone)
		require.Less(t, time.Since(begin), 5*time.Second)
		require.Contains(t, fmt.Sprint(told()), "its log has not ended")
	})
	bubble("Launch", func(t *testing.T, r *remote) {
		goOn := make(chan struct{})
		r.up = func(spec server.Spec, _ *pod) (string, func(), error) {
			<-goOn
			return "http://late", func() {}, nil
		}
		m, _ := r.manager(t)
		ctx, cancel := soon(t)
		defer cancel()
		begin := time.Now()
		_, err := m.Launch(ctx, server.Config{Port: 30000})
		require.ErrorContains(t, err, "the launcher has not returned")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(begin), most)
		_, err = m.Launch(ctx, server.Config{Port: 30000})
		require.ErrorContains(t, err, "is the port of server-0", "it may still come up")
		ctx, cancel = soon(t)
		defer cancel()
		require.ErrorContains(t, m.StopAll(ctx), "server-0: the launcher has not returned from its launch")
		close(goOn)
		require.NoError(t, m.StopAll(t.Context()))
		require.Equal(t, []string{"stop"}, r.pods[0].noted(), "what comes late is stopped")
		r.up = nil
		_, err = m.Launch(t.Context(), server.Config{Port: 30000})
		require.NoError(t, err)
	})
	for _, what := range []string{"Stop", "does not end", "Kill", "Suspend", "Resume"} {
		bubble(what, func(t *testing.T, r *remote) {
			r.alter = func(p *pod, _ server.Spec) server.Instance { return broken{p, what} }
			m, _ := r.manager(t)
			s, err := m.Launch(t.Context(), server.Config{})
			require.NoError(t, err)
			ctx, cancel := soon(t)
			defer cancel()
			begin := time.Now()
			switch what {
			case "Kill":
				err = s.Kill(ctx)
			case "Suspend":
				err = s.Suspend(ctx)
			case "Resume":
				require.NoError(t, s.Suspend(ctx))
				err = s.Resume(ctx)
			default:
				err = s.Stop(ctx)
			}
			require.Error(t, err)
			require.Less(t, time.Since(begin), most)
			r.pods[0].end(nil, server.Exit{})
			<-s.Exited()
		})
	}
	for _, what := range []string{"CanListen", "an inventory"} {
		bubble(what, func(t *testing.T, r *remote) {
			goOn := make(chan struct{})
			defer close(goOn)
			var opts []server.Option
			if what == "CanListen" {
				r.hosts[0].CanListen = func(context.Context, string) error { <-goOn; return nil }
			} else {
				opts = append(opts, server.WithGPUs(cards{host: "gpu-7", wait: goOn}))
			}
			m, _ := r.manager(t, opts...)
			begin := time.Now()
			_, err := m.Launch(t.Context(), server.Config{Port: 30000})
			require.ErrorContains(t, err, "has not returned")
			require.Less(t, time.Since(begin), most)
			m.Servers()
		})
	}
	bubble("neither an instance nor an error", func(t *testing.T, r *remote) {
		r.alter = func(*pod, server.Spec) server.Instance { return nil }
		m, _ := r.manager(t)
		_, err := m.Launch(t.Context(), server.Config{})
		require.EqualError(t, err, "server: launch server-0: the launcher returned neither an instance nor an error")
	})
	bubble("an end that nobody explains", func(t *testing.T, r *remote) {
		r.alter = func(p *pod, _ server.Spec) server.Instance { p.end(nil, server.Exit{}); return p.bare() }
		m, _ := r.manager(t)
		_, err := m.Launch(t.Context(), server.Config{})
		require.ErrorContains(t, err, "it ended by itself; its launcher does not say why")
	})
}

func (p *pod) bare() server.Instance { return struct{ server.Instance }{p} }

// endless is a pod whose log does not end.
type endless struct {
	*pod
	log *server.Log
}

func (e endless) Log() *server.Log { return e.log }

// cards are GPUs of another maker.
type cards struct {
	host string
	wait chan struct{} // not nil: they do not answer before
}

func (c cards) Host() string { return c.host }

func (c cards) GPUs(context.Context) ([]server.GPU, error) {
	if c.wait != nil {
		<-c.wait
	}
	return []server.GPU{{Index: 4, UUID: "card-4", Name: "Instinct MI300X", MemoryTotal: 192 << 30}}, nil
}

func (c cards) Sampler(_ context.Context, indices ...int) (metrics.Sampler, error) {
	return power(indices), nil
}

// power samples 500 W of each card.
type power []int

func (p power) Name() string { return "cards" }

func (p power) Sample(context.Context) (map[string]float64, error) {
	values := map[string]float64{}
	for _, i := range p {
		values[metrics.GPUSeries(metrics.GPUPower, i)] = 500
	}
	return values, nil
}

// A GPU source from outside is the inventory of a run, and is sampled by it.
func TestGPUsOfAnotherMaker(t *testing.T) {
	r := gpu7()
	r.up = func(spec server.Spec, p *pod) (string, func(), error) { // something that really serves
		spec.Config.Host, spec.Config.Port = "", 0
		inst, err := sim.Launcher(sim.H100Llama8B()).Launch(t.Context(), spec)
		if err != nil {
			return "", nil, err
		}
		return inst.URL(), func() { _ = inst.Stop(context.Background()) }, nil
	}
	cfg := sglangtest.NodeConfig{DatasetName: "random", NumPrompts: 20, RequestRate: 100, RandomInputLen: 20, RandomOutputLen: 10}
	run, err := sglangtest.RunNode(t.Context(), cfg, sglangtest.WithLauncher(r), sglangtest.WithGPUs(cards{host: "gpu-7"}))
	require.NoError(t, err)
	require.Equal(t, []int{4}, r.specs[0].Config.GPUs, "it is chosen")
	found := false
	for _, s := range run.Summary.Samplers {
		if s.Source == "cards" {
			found = true
			require.Equal(t, 500.0, s.GPUs[0].Power.Mean)
			require.Equal(t, 4, s.GPUs[0].Index)
		}
	}
	require.True(t, found)

	_, err = sglangtest.RunNode(t.Context(), cfg, sglangtest.WithLauncher(r), sglangtest.WithGPUs(cards{}))
	require.ErrorContains(t, err, "those of this host, and the server would run on gpu-7")
}
