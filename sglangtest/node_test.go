package sglangtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
	"github.com/sglangtest/harness/sglangtest/sim/process"
)

// envChild makes the test binary run an experiment into the folder it names, for a test that kills it.
const envChild = "SGLANGTEST_CHILD_RUN"

// envProcess makes the test binary a simulated server, with its children.
const envProcess = "SGLANGTEST_SIM_PROCESS"

func TestMain(m *testing.M) {
	if os.Getenv(envProcess) != "" {
		os.Exit(process.Main(os.Args[1:]))
	}
	if dir := os.Getenv(envChild); dir != "" {
		childRun(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// short is an experiment of about half a second.
func short() NodeConfig {
	return NodeConfig{DatasetName: "random", RandomInputLen: 64, RandomOutputLen: 16, NumPrompts: 20, RequestRate: 50, Seed: 3}
}

// crashes launches simulated servers that end by themselves, as it seems, after a while.
type crashes struct {
	server.Launcher
	after time.Duration
}

type crashing struct {
	server.Instance
	exited chan struct{}
	once   sync.Once
	err    error // written before exited is closed
}

func (c crashes) Launch(ctx context.Context, spec server.Spec) (server.Instance, error) {
	inst, err := c.Launcher.Launch(ctx, spec)
	if err != nil {
		return nil, err
	}
	i := &crashing{Instance: inst, exited: make(chan struct{})}
	time.AfterFunc(c.after, func() { i.end(errCrash) })
	return i, nil
}

func (i *crashing) end(err error)           { i.once.Do(func() { i.err = err; close(i.exited) }) }
func (i *crashing) Exited() <-chan struct{} { return i.exited }

func (i *crashing) Err() error {
	<-i.exited // the manager asks afterwards
	return i.err
}

func (i *crashing) Stop(ctx context.Context) error {
	defer i.end(nil)
	return i.Instance.Stop(ctx)
}

var errCrash = errors.New("CUDA out of memory")

// A run whose server ends does not go on against nothing, and says why it ended.
func TestServerEndsDuringRun(t *testing.T) {
	cfg := short()
	cfg.NumPrompts, cfg.RequestRate = 1000, 10 // 100 s
	cfg.OutputDir = filepath.Join(t.TempDir(), "run")
	run, err := RunNode(t.Context(), cfg, WithLauncher(crashes{defaultLauncher(), time.Second}))
	require.ErrorIs(t, err, errCrash)
	require.ErrorAs(t, err, new(*server.ExitedError))
	require.Equal(t, 1, strings.Count(err.Error(), errCrash.Error()), err)
	require.Positive(t, run.Summary.Requests.OK)
	require.Less(t, run.Summary.Requests.Arrived, 1000)
	kinds := map[string]bool{}
	for _, e := range run.Collector.Events() {
		kinds[e.Kind] = true
	}
	require.True(t, kinds["server_ended"])
	stored, err := results.Open(run.Dir)
	require.NoError(t, err)
	require.Equal(t, results.StateFailed, stored.State)
}

func TestRunNode(t *testing.T) {
	cfg := short()
	cfg.OutputDir, cfg.OutputFormat = filepath.Join(t.TempDir(), "run"), "csv"
	cfg.WarmupRequests, cfg.MetricsInterval, cfg.Percentiles = 2, 0.05, []float64{75}
	var seen []metrics.Progress
	run, err := RunNode(t.Context(), cfg, WithProgress(func(p metrics.Progress) { seen = append(seen, p) }))
	require.NoError(t, err)

	sum := run.Summary
	require.Equal(t, 20, sum.Requests.OK)
	require.Zero(t, sum.Requests.Failed)
	require.NotNil(t, sum.Simulation, "a simulated run says so")
	require.Contains(t, sum.String(), "SIMULATED")
	require.Equal(t, "h100-llama-3.1-8b", sum.Simulation.Profile)
	require.NotEmpty(t, sum.Simulation.KnownError)
	require.Equal(t, 75.0, sum.TTFT.Percentiles[0].P)
	require.Positive(t, sum.Samplers[0].Taken)
	require.Equal(t, 20, seen[len(seen)-1].Completed)
	for r := range run.Collector.Results() {
		require.Equal(t, r.OutputLen, r.OutputTokens)
		require.Equal(t, r.InputLen, r.PromptTokens)
		require.Equal(t, "server-0", r.Worker)
		require.Equal(t, r.TotalLatency(), r.QueueTime()+r.ServerLatency())
	}

	stored, err := results.Open(run.Dir)
	require.NoError(t, err)
	require.Equal(t, results.StateFinished, stored.State)
	var again metrics.Summary
	require.NoError(t, stored.Summary(&again))
	require.Equal(t, sum.TTFT, again.TTFT)
	var back NodeConfig
	require.NoError(t, stored.Config(&back))
	require.Equal(t, cfg, back)
	n := 0
	for r, err := range stored.Requests() {
		require.NoError(t, err)
		require.True(t, r.OK())
		n++
	}
	require.Equal(t, 20, n)
	require.FileExists(t, filepath.Join(run.Dir, "requests.csv"))

	_, err = RunNode(t.Context(), cfg)
	require.ErrorContains(t, err, "already holds a run")
}

// The three APIs carry the same prompts: each length comes back as it was sent.
// An experiment on a limit that is not in force says so, in the summary and in the stored time line.
func TestALimitBeyondThePoolIsTold(t *testing.T) {
	const told = "server-0, before the run: max_running_requests: 5000 was asked for, 1024 is in force"
	for name, opts := range map[string][]RunOption{"real time": nil, "virtual time": {WithVirtualTime(sim.H100Llama8B())}} {
		t.Run(name, func(t *testing.T) {
			cfg := short()
			cfg.OutputDir = filepath.Join(t.TempDir(), "run")
			cfg.MaxRunningRequests, cfg.ServerArgs = 5000, server.Args{"max_total_tokens": 2048}
			run, err := RunNode(t.Context(), cfg, opts...)
			require.NoError(t, err)
			require.Contains(t, strings.Join(run.Summary.Notes, "\n"), told)
			stored, err := results.Open(run.Dir)
			require.NoError(t, err)
			var messages []any
			for e, err := range stored.Events() {
				require.NoError(t, err)
				if e.Kind == metrics.KindServerWarning {
					messages = append(messages, e.Data["message"])
				}
			}
			require.Equal(t, []any{"max_running_requests: 5000 was asked for, 1024 is in force"}, messages)
		})
	}
}

func TestRunNodeOnEveryAPI(t *testing.T) {
	for _, api := range []load.API{load.Generate, load.Completions, load.ChatCompletions} {
		cfg := short()
		cfg.API = api
		run, err := RunNode(t.Context(), cfg)
		require.NoError(t, err)
		require.Equal(t, 20, run.Summary.Requests.OK, run.Summary)
		require.Zero(t, run.Summary.Streams.Uncounted)
		for r := range run.Collector.Results() {
			require.Equal(t, []int{r.InputLen, r.OutputLen}, []int{r.PromptTokens, r.OutputTokens})
		}
	}
}

// A simulation is labelled whichever way its results are collected.
func TestSimulationIsLabelledByItsAnswers(t *testing.T) {
	servers, err := server.NewServerManager(defaultLauncher())
	require.NoError(t, err)
	defer servers.StopAll(context.Background())
	node, err := servers.Launch(t.Context(), server.Config{})
	require.NoError(t, err)
	gen, err := short().Generator()
	require.NoError(t, err)
	sender, err := load.NewSender(node.URL())
	require.NoError(t, err)
	defer sender.Close()
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	require.NoError(t, load.Run(t.Context(), gen, sender, col))
	sum := col.Summary()
	require.NotNil(t, sum.Simulation)
	require.Equal(t, "h100-llama-3.1-8b", sum.Simulation.Profile)
	require.Contains(t, sum.String(), "SIMULATED")

	sampled, err := metrics.NewCollector(metrics.WithSampler(node.Sampler(), 50*time.Millisecond))
	require.NoError(t, err)
	require.NoError(t, load.Run(t.Context(), gen, sender, sampled))
	require.NotNil(t, sampled.Summary().Simulation.Validation)
	require.Contains(t, sampled.Summary().Simulation.KnownError, "not covered by any measured run: 20 requests are too few")
	for _, s := range sampled.Samples() {
		require.Contains(t, s.Values, metrics.StepLateness)
	}
}

// faulted is a simulated server on which a fault is injected when its label has been asked for twice: at its launch and at
// the run's start.
type faulted struct {
	server.Instance
	asked atomic.Int32
}

func (f *faulted) Simulation() metrics.Simulation {
	label := f.Instance.(server.Simulated).Simulation()
	if f.asked.Add(1) > 2 {
		label.Profile, label.KnownError, label.Validation = label.Profile+" with a fault", "not measured", nil
	}
	return label
}

// A fault that is injected while a run is under way takes the calibration from the label of the whole run.
func TestTheLabelIsThatOfTheEnd(t *testing.T) {
	cfg := short()
	cfg.OutputDir, cfg.OutputFormat = filepath.Join(t.TempDir(), "run"), "csv"
	run, err := RunNode(t.Context(), cfg, WithLauncher(launcherFunc(func(ctx context.Context, spec server.Spec) (server.Instance, error) {
		inst, err := defaultLauncher().Launch(ctx, spec)
		return &faulted{Instance: inst}, err
	})))
	require.NoError(t, err)
	require.Equal(t, "h100-llama-3.1-8b with a fault", run.Summary.Simulation.Profile)
	require.Equal(t, "not measured", run.Summary.Simulation.KnownError)
	require.Contains(t, run.Summary.String(), "changed during the run")
	stored, err := results.Open(run.Dir)
	require.NoError(t, err)
	require.Equal(t, []metrics.Simulation{*run.Summary.Simulation}, stored.Meta.Simulated)
	table, err := os.ReadFile(filepath.Join(run.Dir, "requests.csv"))
	require.NoError(t, err)
	require.Equal(t, 20, bytes.Count(table, []byte("with a fault")))
}

func TestScheduledParameterChange(t *testing.T) {
	cfg := short()
	cfg.RandomOutputLen, cfg.RequestRate, cfg.NumPrompts, cfg.MaxRunningRequests = 60, Inf, 40, 16
	cfg.MetricsInterval, cfg.EnableDynamicParams = 0.02, true
	// A request takes half a second, so those that run before the first change is accepted have ended long before the second.
	cfg.ParamUpdateSchedule = map[Seconds]map[string]int{0: {"max_running_requests": 2}, 1.5: {"max_running_requests": 16}}
	run, err := RunNode(t.Context(), cfg)
	require.NoError(t, err)
	var updates []metrics.Event
	for _, e := range run.Collector.Events() {
		if e.Kind == metrics.KindParamUpdate {
			updates = append(updates, e)
		}
	}
	require.Len(t, updates, 2)
	for i, want := range []int{2, 16} {
		d := updates[i].Data
		require.Equal(t, want, d["value"])
		require.Equal(t, want, d["read_back"])
		require.LessOrEqual(t, d["asked_ns"], d["accepted_ns"])
		require.Equal(t, d["accepted_ns"], int64(updates[i].At))
	}
	// The raise met a full batch, so that it was in force only when a request had finished; the first was when the
	// requests beyond it had.
	var moments []metrics.Event
	for _, e := range run.Collector.Events() {
		if e.Kind == metrics.KindParamInForce {
			moments = append(moments, e)
		}
	}
	require.Len(t, moments, 2)
	for i, e := range moments {
		require.Equal(t, updates[i].Data["value"], e.Data["value"])
		require.Equal(t, updates[i].Data["accepted_ns"], e.Data["accepted_ns"])
		require.Greater(t, e.At, updates[i].At)
		require.LessOrEqual(t, e.Data["not_before_ns"], int64(e.At))
	}
	// Between the moment when the lower limit held and the raise, at most two run once those admitted before have
	// ended; afterwards more do.
	high := 0.0
	for _, s := range run.Collector.Samples() {
		if s.At > updates[1].At {
			high = max(high, s.Values[metrics.NumRunning])
		}
	}
	require.Greater(t, high, 2.0)
}

func TestRunNodeRefusesBadInputBeforeItLaunches(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("{\"prompt\": \"a\", \"output_len\": 4}\n{\"prompt\": \"b\"\n"), 0o600))
	empty := filepath.Join(dir, "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	never := WithLauncher(launcherFunc(func(context.Context, server.Spec) (server.Instance, error) {
		t.Error("launched")
		return nil, errors.New("launched")
	}))
	for want, change := range map[string]func(*NodeConfig){
		"request_rate: -1": func(c *NodeConfig) { c.RequestRate = -1 },
		file + ":2":        func(c *NodeConfig) { c.DatasetName, c.DatasetPath = "jsonl", file },
		empty:              func(c *NodeConfig) { c.DatasetName, c.DatasetPath = "jsonl", empty },
		"no such file":     func(c *NodeConfig) { c.DatasetName, c.DatasetPath = "azure", filepath.Join(dir, "none") },
		"not a directory":  func(c *NodeConfig) { c.OutputDir = filepath.Join(file, "run") },
		"the last request arrives at": func(c *NodeConfig) {
			c.EnableDynamicParams, c.ParamUpdateSchedule = true, map[Seconds]map[string]int{500: {"max_running_requests": 1}}
		},
		"2000": func(c *NodeConfig) { c.DatasetName, c.NumPrompts = "azure-conversation", 2001 },
	} {
		cfg := short()
		change(&cfg)
		if cfg.DatasetName != "random" {
			cfg.RandomInputLen, cfg.RandomOutputLen = 0, 0
			if cfg.DatasetName != "azure-conversation" {
				cfg.NumPrompts = 0
			}
		}
		_, err := RunNode(t.Context(), cfg, never)
		require.ErrorContains(t, err, want)
	}
}

// What does not fit names the requests and what to do; with the context in the config, before the launch.
func TestRequestsLongerThanTheContext(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lengths.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(`{"input_len": 10, "output_len": 90}
{"input_len": 20, "output_len": 81}
{"input_len": 30, "output_len": 10}
{"input_len": 40, "output_len": 100}
`), 0o600))
	cfg := NodeConfig{DatasetName: "jsonl", DatasetPath: file, RequestRate: Inf, ServerArgs: server.Args{"context_length": 100}}
	never := WithLauncher(launcherFunc(func(context.Context, server.Spec) (server.Instance, error) {
		t.Error("launched")
		return nil, errors.New("launched")
	}))
	_, err := RunNode(t.Context(), cfg, never)
	require.EqualError(t, err, "sglangtest: 2 of 4 requests have more tokens of prompt and output than the server's context, 100: "+
		"the first is request 1 with 101, the longest request 3 with 140; what to do: "+
		"limit the outputs: sampling_params.max_new_tokens of at most 60 replaces the lengths of the dataset; or "+
		"give the server a longer context (server_args.context_length, up to the model's), or another model; or "+
		"use a dataset with shorter requests; or stop before the first of them: num_prompts of at most 1")

	most := 60
	cfg.SamplingParams = &load.SamplingParams{MaxNewTokens: &most}
	run, err := RunNode(t.Context(), cfg)
	require.NoError(t, err)
	require.Equal(t, 4, run.Summary.Requests.OK, "the advice holds")
}

type launcherFunc func(context.Context, server.Spec) (server.Instance, error)

func (f launcherFunc) Launch(ctx context.Context, s server.Spec) (server.Instance, error) {
	return f(ctx, s)
}

func TestRunNodeRefusesWhatDoesNotFitTheServer(t *testing.T) {
	cfg := short()
	cfg.RandomInputLen = 200_000
	_, err := RunNode(t.Context(), cfg)
	require.ErrorContains(t, err, "of 20 requests have more tokens of prompt than the server takes, ")
	require.ErrorContains(t, err, "random_input_len")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	cfg = short()
	cfg.Port = l.Addr().(*net.TCPAddr).Port
	_, err = RunNode(t.Context(), cfg)
	var inUse *server.PortInUseError
	require.ErrorAs(t, err, &inUse)

	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	cfg = short()
	cfg.OutputDir = filepath.Join(t.TempDir(), "run")
	_, err = RunNode(t.Context(), cfg, WithLauncher(server.Attach(other.URL)))
	require.NoDirExists(t, cfg.OutputDir, "a run that never began leaves its folder's name free")
	var notSGLang *server.NotSGLangError
	require.ErrorAs(t, err, &notSGLang)
}

func TestCancelledRunNodeReturnsWhatItMeasured(t *testing.T) {
	cfg := short()
	cfg.NumPrompts, cfg.RequestRate, cfg.OutputDir = 100_000, 100, filepath.Join(t.TempDir(), "run")
	why := errors.New("seen enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	run, err := RunNode(ctx, cfg, WithProgress(func(p metrics.Progress) {
		if p.Completed > 20 {
			cancel(why)
		}
	}))
	require.ErrorIs(t, err, why)
	require.NotNil(t, run)
	sum := run.Summary
	require.Greater(t, sum.Requests.OK, 20)
	require.Equal(t, sum.Requests.Arrived, sum.Requests.OK+sum.Requests.Censored)
	require.Zero(t, sum.Requests.Failed)
	require.Contains(t, sum.VerdictReasons[len(sum.VerdictReasons)-1], "the run was stopped with ")
	require.Less(t, sum.Requests.Arrived, sum.Requests.Planned)
	stored, err := results.Open(run.Dir)
	require.NoError(t, err)
	require.Equal(t, results.StateFailed, stored.State)
	require.Contains(t, stored.Reason, why.Error())
	var again metrics.Summary
	require.NoError(t, stored.Summary(&again))
	require.Equal(t, sum.Requests, again.Requests)
}

// childRun reports each completion on stdout as "ID NANOSECONDS" until it is killed.
func childRun(dir string) {
	cfg := NodeConfig{DatasetName: "random", RandomInputLen: 32, RandomOutputLen: 8, NumPrompts: 1_000_000, RequestRate: 200, OutputDir: dir}
	gen, err := cfg.Generator()
	check(err)
	store, err := cfg.createRun(cfg.OutputDir)
	check(err)
	servers, err := server.NewServerManager(defaultLauncher())
	check(err)
	srv, err := cfg.Server()
	check(err)
	node, err := servers.Launch(context.Background(), srv)
	check(err)
	sender, err := load.NewSender(node.URL())
	check(err)
	col, err := metrics.NewCollector(metrics.WithSink(store))
	check(err)
	check(load.Run(context.Background(), gen, sender, reporter{col}))
}

type reporter struct{ *metrics.Collector }

func (r reporter) Record(res *load.Result) {
	r.Collector.Record(res)
	fmt.Printf("%d %d\n", res.ID, time.Now().UnixNano())
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

func TestKilledRunKeepsWhatHadCompleted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envChild+"="+dir)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	completed := map[int]int64{}
	read := func(line string) {
		var id int
		var at int64
		if _, err := fmt.Sscan(line, &id, &at); err == nil {
			completed[id] = at
		}
	}
	lines := bufio.NewScanner(out)
	for len(completed) < 400 && lines.Scan() { // two seconds at 200/s
		read(lines.Text())
	}
	killed := time.Now().UnixNano()
	require.NoError(t, cmd.Process.Kill())
	for lines.Scan() {
		read(lines.Text())
	}
	require.Error(t, cmd.Wait())
	require.Empty(t, errs.String())
	require.GreaterOrEqual(t, len(completed), 400)

	run, err := results.Open(dir)
	require.NoError(t, err)
	require.Equal(t, results.StateInterrupted, run.State)
	stored := map[int]bool{}
	for r, err := range run.Requests() {
		require.NoError(t, err)
		stored[r.ID] = true
	}
	old := 0
	for id, at := range completed {
		if killed-at > int64(time.Second) {
			old++
			require.True(t, stored[id], "request %d completed %v before the kill", id, time.Duration(killed-at))
		}
	}
	require.Positive(t, old)
	unfinished, err := run.Unfinished()
	require.NoError(t, err)
	for _, a := range unfinished {
		require.False(t, stored[a.ID])
	}
}

// TestRealSGLangNode runs the same experiment, with a limit change, against a real server.
func TestRealSGLangNode(t *testing.T) {
	url := refdata.SGLang(t)
	cfg := NodeConfig{
		DatasetName: "random", RandomInputLen: 40, RandomOutputLen: 24, NumPrompts: 60, RequestRate: 20, Seed: 5, MaxRunningRequests: 64,
		WarmupRequests: 1, MetricsInterval: 0.1, EnableDynamicParams: true, RequestTimeout: 60,
		ParamUpdateSchedule: map[Seconds]map[string]int{0.5: {"max_running_requests": 2}, 1.5: {"max_running_requests": 64}},
		OutputDir:           filepath.Join(t.TempDir(), "run"),
	}
	for _, api := range []load.API{load.Generate, load.Completions, load.ChatCompletions} {
		t.Run(string(api), func(t *testing.T) {
			cfg := cfg
			cfg.API, cfg.OutputDir = api, filepath.Join(t.TempDir(), "run")
			run, err := RunNode(t.Context(), cfg, WithLauncher(server.Attach(url)))
			require.NoError(t, err)
			require.Nil(t, run.Summary.Simulation)
			require.Contains(t, strings.Join(strings.Fields(run.Summary.String()), " "), "engine SGLang "+run.Server.Version+", model "+run.Server.ModelPath)
			require.Equal(t, 60, run.Summary.Requests.OK, run.Summary.String())
			require.Zero(t, run.Summary.Streams.Uncounted)
			require.Positive(t, run.Summary.Samplers[0].Taken)
			for _, x := range run.Collector.Samples() {
				if !strings.Contains(x.Err, "deadline exceeded") { // a busy machine answers late
					require.Empty(t, x.Err)
				}
			}
			held := slices.DeleteFunc(run.Collector.Events(), func(e metrics.Event) bool { return e.Kind != metrics.KindParamUpdate })
			require.Len(t, held, 2)
			require.Equal(t, []any{2, 64}, []any{held[0].Data["read_back"], held[1].Data["read_back"]})
			for r := range run.Collector.Results() {
				require.Equal(t, r.OutputLen, r.OutputTokens)
				require.Equal(t, r.InputLen, r.PromptTokens)
			}
		})
	}
}

// A stored run says which server was measured, with what, and tells nobody the keys.
func TestStoredRunSaysWhatWasMeasured(t *testing.T) {
	cfg := short()
	cfg.OutputDir = filepath.Join(t.TempDir(), "run")
	cfg.ModelPath, cfg.MaxRunningRequests = "llama", 32
	cfg.ServerArgs = server.Args{"api_key": "very-secret", "page_size": 16}
	run, err := RunNode(t.Context(), cfg, WithLauncher(server.LocalProcess(server.WithCommand(os.Args[0], "--sim-files", "false"),
		server.WithEnvironment(map[string]string{envProcess: "1"}))))
	require.NoError(t, err)
	stored, err := results.Open(cfg.OutputDir)
	require.NoError(t, err)
	require.Len(t, stored.Engines, 1)
	e := stored.Engines[0]
	require.Equal(t, run.Summary.Engines, []metrics.Engine{e.Engine})
	require.Equal(t, metrics.Engine{Source: "server-0", Version: run.Server.Version, Model: run.Server.ModelPath, URL: e.URL}, e.Engine)
	require.NotEmpty(t, e.Version)
	require.Equal(t, run.Server.ContextLength, e.ContextLength)
	require.Equal(t, 32, e.MaxRunningRequests)
	require.Equal(t, os.Args[0], e.Command[0])
	require.Contains(t, strings.Join(e.Command, " "), "--api-key (not stored)")
	require.Equal(t, 16.0, e.ServerInfo["page_size"])
	require.NotNil(t, e.ServerInfo["internal_states"])
	files, err := filepath.Glob(filepath.Join(cfg.OutputDir, "*.json*"))
	require.NoError(t, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NotContains(t, string(data), "very-secret", file)
	}
}

// A scheduler dies under load. Its requests fail at once and the run is over seconds before the main process ends, but it is
// a failed run all the same, with the diagnosis.
func TestServerThatCrashesFailsTheRun(t *testing.T) {
	cfg := short()
	cfg.OutputDir = filepath.Join(t.TempDir(), "run")
	cfg.ModelPath = "llama"
	run, err := RunNode(t.Context(), cfg, WithLauncher(server.LocalProcess(server.WithCommand(os.Args[0], "--sim-fault", "crash@5", "--sim-files", "false"),
		server.WithEnvironment(map[string]string{envProcess: "1"}))))
	var failure *server.FailureError
	require.ErrorAs(t, err, &failure)
	require.NotEqual(t, server.CauseUnknown, failure.Cause, err)
	require.NotNil(t, run, "%v", err)
	require.Positive(t, run.Summary.Requests.Failed)
	stored, err := results.Open(cfg.OutputDir)
	require.NoError(t, err)
	require.Equal(t, results.StateFailed, stored.State)
	// Its cause is in run.json, and in the time line.
	first, _, _ := strings.Cut(failure.Error(), "\n")
	require.Contains(t, stored.Reason, first)
	events := run.Collector.Events()
	ended := slices.IndexFunc(events, func(e metrics.Event) bool { return e.Kind == "server_ended" })
	require.GreaterOrEqual(t, ended, 0)
	require.Contains(t, events[ended].Data["error"], first)
	require.FileExists(t, filepath.Join(cfg.OutputDir, "server-0.stderr.log"))
}
