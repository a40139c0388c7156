package sglangtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// progressInterval is how often progress is reported.
const progressInterval = 200 * time.Millisecond

// stopTimeout bounds the stop of the servers at the end of a run, whatever became of the run.
const stopTimeout = 30 * time.Second

// failureTimeout bounds the wait for a server to end whose log tells that it will: SGLang gives itself 5 s.
const failureTimeout = 20 * time.Second

// flushTimeout bounds the wait for a server to become idle before its cache is emptied.
const flushTimeout = time.Minute

type runOptions struct {
	servers   []server.Option
	sender    []load.SenderOption
	collector []metrics.Option
	launcher  server.Launcher // nil: the default
	virtual   *sim.Profile    // not nil: in virtual time
	gpus      GPUs            // nil: no GPU telemetry
	progress  func(metrics.Progress)
}

func defaultLauncher() server.Launcher { return sim.Launcher(sim.H100Llama8B()) }

// A RunOption configures [RunNode].
type RunOption func(*runOptions) error

// WithLauncher says what brings the server up. Default: the simulated engine with the profile of an H100 that
// serves Llama-3.1-8B, sim.Launcher(sim.H100Llama8B()). For a server that already runs, use server.Attach.
func WithLauncher(l server.Launcher) RunOption {
	return func(o *runOptions) error {
		if l == nil {
			return errors.New("launcher is nil")
		}
		o.launcher = l
		return nil
	}
}

// WithProgress makes f be called five times a second while requests are under way, and once when all have ended; and before that,
// while a server starts, every second and at each phase of the start. In virtual time it is called after every 1,000 requests
// instead. The calls come one after the other. [metrics.TerminalProgress] is such a function.
func WithProgress(f func(metrics.Progress)) RunOption {
	return func(o *runOptions) error { o.progress = f; return nil }
}

// WithServerOptions adds options of the server manager, such as server.WithReadyTimeout or server.WithAPIKey.
func WithServerOptions(opts ...server.Option) RunOption {
	return func(o *runOptions) error { o.servers = append(o.servers, opts...); return nil }
}

// WithSenderOptions adds options of the sender, such as load.WithAPIKey or load.WithTexts. They come after those that
// follow from the config.
func WithSenderOptions(opts ...load.SenderOption) RunOption {
	return func(o *runOptions) error { o.sender = append(o.sender, opts...); return nil }
}

// WithCollectorOptions adds options of the collector, such as metrics.WithGoodput or another sampler.
func WithCollectorOptions(opts ...metrics.Option) RunOption {
	return func(o *runOptions) error { o.collector = append(o.collector, opts...); return nil }
}

// A NodeRun is what an experiment on one server yielded.
type NodeRun struct {
	Summary   *metrics.Summary
	Collector *metrics.Collector // every result, sample and event; windows of the time line
	Server    server.Info
	Dir       string // the run's folder; empty if nothing was stored

	slo SLO
}

// RunNode carries out the experiment that cfg describes: it brings a server up, replays the workload against it,
// changes parameters as scheduled, measures, stores, and stops the server. Sampled are the server's load; with
// enable_metrics among its arguments /metrics; where the log of its server can be read, each batch that this tells of; and
// with [WithGPUs] the GPUs. Before the load the prefix cache of a server that the run launched is emptied; see
// NodeConfig.KeepCache.
//
// Everything that can be wrong with the config, the dataset or the output folder is an error before a server is
// launched, and a workload or schedule that does not fit the server one before a request is sent; then the output
// folder is as it was, but for the log of a server that failed. If the run was under way when it failed, ctx was done or
// the server ended, RunNode returns what was measured together with the error, and stores it as a failed run. A server
// that ended by itself ends the run at once: the error is a [server.ExitedError], which says why.
//
// It is made of the parts of the packages below and nothing else; the module's example "parts" shows the same by hand.
func RunNode(ctx context.Context, cfg NodeConfig, opts ...RunOption) (run *NodeRun, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("sglangtest: config:\n%w", err)
	}
	var o runOptions
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(&o))
	}
	if o.virtual != nil && o.launcher != nil {
		faults = append(faults, errors.New("both a launcher and virtual time, which has no server: give one of them"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("sglangtest: run: %w", err)
	}
	gen, err := cfg.Generator()
	if err != nil {
		return nil, err
	}
	plan, err := gen.Plan()
	if err != nil {
		return nil, err
	}
	srv, err := cfg.Server()
	if err != nil {
		return nil, err // Validate has found it
	}
	// The context that the config asks for need not be the one that the server will have, but is known before a launch.
	if err := errors.Join(cfg.checkPlan(plan), cfg.checkFits(gen, plan, server.Info{ContextLength: srv.ContextLength})); err != nil {
		return nil, err
	}

	var collect []metrics.Option
	var store *results.Writer
	if cfg.OutputDir != "" {
		dir := cfg.outputDir(time.Now())
		if store, err = cfg.createRun(dir); err != nil {
			return nil, err
		}
		cfg.OutputDir = dir
		defer func() { err = conclude(store, run, err) }()
		collect = append(collect, metrics.WithSink(store))
	}

	if o.virtual != nil {
		return cfg.runVirtual(ctx, &o, gen, plan, collect)
	}
	if o.launcher == nil {
		o.launcher = defaultLauncher()
	}
	if store != nil {
		o.servers = append([]server.Option{server.WithLogFolder(cfg.OutputDir)}, o.servers...)
	}
	if o.gpus != nil {
		o.servers = append(o.servers, server.WithGPUs(o.gpus))
	}
	var told serverEvents
	o.servers = append(o.servers, server.WithEvents(told.tell))
	starting := startProgress{report: o.progress}
	if o.progress != nil {
		o.servers = append(o.servers, server.WithEvents(starting.tell))
	}
	servers, err := server.NewServerManager(o.launcher, o.servers...)
	if err != nil {
		return nil, err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, servers.StopAll(stopCtx))
	}()
	var node *server.Server
	launch := func() (err error) { node, err = servers.Launch(ctx, srv); return err }
	if o.progress != nil {
		err = starting.during(launch)
	} else {
		err = launch()
	}
	if err != nil {
		return nil, err
	}
	info := node.Info()
	if err := cfg.checkFits(gen, plan, info); err != nil {
		return nil, err
	}

	sender, err := load.NewSender(node.URL(), append(cfg.senderOptions(info), o.sender...)...)
	if err != nil {
		return nil, err
	}
	defer sender.Close()
	interval := cfg.sampleInterval().Duration()
	collect = append(collect, metrics.WithSampler(node.Sampler(), interval))
	if srv.EnableMetrics || node.HasMetrics() {
		collect = append(collect, metrics.WithSampler(node.MetricsSampler(), interval))
	}
	if o.gpus != nil {
		sampler, err := o.gpus.Sampler(ctx, node.Config().GPUs...)
		if err != nil {
			return nil, err
		}
		collect = append(collect, metrics.WithSampler(sampler, interval))
	}
	collect = append(collect, cfg.figures()...)
	col, err := metrics.NewCollector(append(collect, o.collector...)...)
	if err != nil {
		return nil, err
	}

	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	how := []load.RunOption{load.WithWarmup(cfg.WarmupRequests), load.WithBackground(cfg.updateParams(node, col)), load.WithBackground(watchServer(node, col, end)),
		load.WithBackground(told.follow(col))}
	how = append(how, cfg.prepareCache(node, col)...)
	if cfg.MaxConcurrency > 0 {
		how = append(how, load.WithMaxConcurrency(cfg.MaxConcurrency))
	}
	if node.Log() != nil {
		how = append(how, load.WithBackground(func(ctx context.Context, clock load.Clock) error {
			err := node.FollowBatches(ctx, clock.Offset, col.AddSample)
			if err != nil && ctx.Err() == nil { // known now, not at the run's end
				col.Event(metrics.Event{At: clock.Now(), Kind: metrics.KindServerWarning, Source: node.Name(),
					Data: map[string]any{"message": "the batches that its log tells of are not followed from here on: " + err.Error()}})
			}
			return err
		}))
	}
	if o.progress != nil {
		how = append(how, load.WithBackground(reportProgress(col, o.progress)))
	}
	err = load.Run(ctx, gen, sender, col, how...)
	if why := node.Err(); why != nil && !errors.Is(err, why) { // it ended during the warm-up, or with the run
		err = errors.Join(err, fmt.Errorf("sglangtest: %s: %w", node.Name(), &server.ExitedError{Err: why}))
	}
	if err != nil && !col.Began() {
		return nil, err // it never began
	}
	return &NodeRun{Summary: col.Summary(), Collector: col, Server: info, Dir: cfg.OutputDir, slo: cfg.SLO}, err
}

// conclude ends the stored run as the experiment ended: with run and err as RunNode is about to return them.
func conclude(store *results.Writer, run *NodeRun, err error) error {
	switch {
	case run == nil:
		return errors.Join(err, store.Discard())
	case err != nil:
		return errors.Join(err, store.Fail(err, run.Summary))
	}
	return store.Finish(run.Summary)
}

// checkPlan reports what the workload does not go with: parameter updates that would come after the load has ended, and
// an API that does not take its prompts.
func (c NodeConfig) checkPlan(plan load.Plan) error {
	var faults []error
	if plan.Messages > 0 && c.API != load.ChatCompletions {
		faults = append(faults, fmt.Errorf("sglangtest: config: api: %d prompts of the dataset are chat messages; want %q", plan.Messages, load.ChatCompletions))
	}
	for _, at := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule)) {
		if at.Duration() > plan.LastArrival && plan.LastArrival > 0 {
			faults = append(faults, fmt.Errorf("sglangtest: config: param_update_schedule[%q]: the last request arrives at %.3f s, before this update",
				fmt.Sprint(float64(at)), plan.LastArrival.Seconds()))
		}
	}
	return errors.Join(faults...)
}

func (c NodeConfig) createRun(dir string) (*results.Writer, error) {
	var opts []results.Option
	if c.OutputFormat == "csv" {
		opts = append(opts, results.WithCSV())
	}
	if c.OmitChunks {
		opts = append(opts, results.WithoutChunks())
	}
	return results.Create(dir, results.Meta{Label: cmp.Or(c.Label, "node"), Config: c.withoutSecrets(), Seed: c.Seed}, opts...)
}

func (c NodeConfig) senderOptions(info server.Info) []load.SenderOption {
	var opts []load.SenderOption
	if c.API != "" {
		opts = append(opts, load.WithAPI(c.API))
	}
	if info.ServedModelName != "" {
		opts = append(opts, load.WithModel(info.ServedModelName))
	}
	if info.IncrementalStreaming {
		opts = append(opts, load.WithIncrementalStreaming())
	}
	if key, ok := c.ServerArgs["api_key"].(string); ok {
		opts = append(opts, load.WithAPIKey(key))
	}
	if c.RequestTimeout > 0 {
		opts = append(opts, load.WithTimeout(c.RequestTimeout.Duration()))
	}
	return opts
}

// updateParams returns a background task that makes the scheduled parameter updates and puts each into the time
// line: when it was asked for, when it was accepted, and, of a limit, when the running requests first obeyed it.
func (c NodeConfig) updateParams(node *server.Server, col *metrics.Collector) func(context.Context, load.Clock) error {
	return func(ctx context.Context, clock load.Clock) error {
		var watching sync.WaitGroup
		defer watching.Wait() // ends with the run, if not before
		for _, at := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule)) {
			if (load.TimerWaiter{}).WaitUntil(ctx, clock.Time(at.Duration())) != nil { // the run has ended
				for _, name := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule[at])) {
					col.Event(metrics.Event{At: clock.Now(), Kind: metrics.KindParamUpdateNotMade, Source: node.Name(), Data: map[string]any{
						"name": name, "value": c.ParamUpdateSchedule[at][name], "planned_ns": int64(at.Duration()), "reason": metrics.ReasonRunEnded}})
				}
				continue
			}
			for _, name := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule[at])) {
				value := c.ParamUpdateSchedule[at][name]
				u, err := node.UpdateParam(ctx, name, value)
				col.Event(u.Event(clock.Offset, err))
				if err != nil {
					return err
				}
				if name == server.ParamMaxRunningRequests {
					watching.Go(func() { // the wait ends with the next change of the limit, at the latest with the run
						u, err := node.WaitInForce(ctx, u)
						col.Event(u.InForceEvent(clock.Offset, err))
					})
				}
			}
		}
		return nil
	}
}

// watchServer returns a background task that puts the phases of the server's start into the time line, at moments before the
// run's, and its end, with which it ends the run.
func watchServer(node *server.Server, col *metrics.Collector, end context.CancelCauseFunc) func(context.Context, load.Clock) error {
	return func(ctx context.Context, clock load.Clock) error {
		for _, p := range node.Startup() {
			col.Event(metrics.Event{At: clock.Offset(p.Start), Kind: metrics.KindStartupPhase, Source: node.Name(), Data: map[string]any{
				"phase": string(p.Name), "duration_ns": int64(p.Duration)}})
		}
		if node.Attached() {
			checkAlive(ctx, node)
		}
		select {
		case <-node.Exited():
		case <-ctx.Done():
			// The requests of a scheduler that died fail at once, so that the run can end before the server.
			if node.Err() == nil && !node.Failing() {
				return nil
			}
			select {
			case <-node.Exited():
			case <-time.After(failureTimeout):
				return fmt.Errorf("sglangtest: the log of %s tells of a failure, but the server goes on", node.Name())
			}
		}
		why := &server.ExitedError{Err: node.Err()}
		col.Event(metrics.Event{At: clock.Now(), Kind: metrics.KindServerEnded, Source: node.Name(), Data: map[string]any{"error": why.Error()}})
		end(why)
		return nil
	}
}

// aliveInterval is how often a server that was only attached to is asked whether it is still there.
const aliveInterval = time.Second

// checkAlive asks until the server has ended or ctx is done, and once more then: the requests of a server that has gone fail at
// once, so that the run can end before it is asked.
func checkAlive(ctx context.Context, node *server.Server) {
	tick := time.NewTicker(aliveInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = node.CheckAlive(ctx) // Exited tells
		case <-node.Exited():
			return
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout)
			defer cancel()
			_ = node.CheckAlive(last)
			return
		}
	}
}

// reportProgress returns a background task that calls f until the run ends, and once then.
func reportProgress(col *metrics.Collector, f func(metrics.Progress)) func(context.Context, load.Clock) error {
	return func(ctx context.Context, _ load.Clock) error {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f(col.Progress())
			case <-ctx.Done():
				f(col.Progress())
				return nil
			}
		}
	}
}
