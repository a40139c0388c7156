package sglangtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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

type runOptions struct {
	launcher server.Launcher // nil: the default
	virtual  *sim.Profile    // not nil: in virtual time
	progress func(metrics.Progress)
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

// WithProgress makes f be called five times a second while requests are under way, and once when all have ended. In
// virtual time it is called after every 1,000 requests instead. The calls come one after the other.
func WithProgress(f func(metrics.Progress)) RunOption {
	return func(o *runOptions) error { o.progress = f; return nil }
}

// A NodeRun is what an experiment on one server yielded.
type NodeRun struct {
	Summary   *metrics.Summary
	Collector *metrics.Collector // every result, sample and event; windows of the time line
	Server    server.Info
	Dir       string // the run's folder; empty if nothing was stored
}

// RunNode carries out the experiment that cfg describes: it brings a server up, replays the workload against it,
// changes parameters as scheduled, measures, stores, and stops the server.
//
// Everything that can be wrong with the config, the dataset or the output folder is an error before a server is
// launched, and a prompt that does not fit the server one before a request is sent. If the run was under way
// when it failed or ctx was done, RunNode returns what was measured together with the error.
//
// It is made of the parts of the packages below and nothing else: copy it to build a variation.
func RunNode(ctx context.Context, cfg NodeConfig, opts ...RunOption) (_ *NodeRun, err error) {
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
	if err := cfg.checkSchedule(plan); err != nil {
		return nil, err
	}

	var collect []metrics.Option
	var store *results.Writer
	if cfg.OutputDir != "" {
		if store, err = cfg.createRun(); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, store.Fail(err))
			}
		}()
		collect = append(collect, metrics.WithSink(store))
	}

	if o.virtual != nil {
		return cfg.runVirtual(ctx, &o, gen, plan, store, collect)
	}
	if o.launcher == nil {
		o.launcher = defaultLauncher()
	}
	servers, err := server.NewServerManager(o.launcher)
	if err != nil {
		return nil, err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, servers.StopAll(stopCtx))
	}()
	node, err := servers.Launch(ctx, cfg.Server())
	if err != nil {
		return nil, err
	}
	info := node.Info()
	if err := checkFits(plan, info); err != nil {
		return nil, err
	}
	if s := info.Simulation; s != nil {
		collect = append(collect, metrics.WithSimulation(*s))
		if store != nil {
			store.AddSimulation(*s)
		}
	}

	sender, err := load.NewSender(node.URL(), cfg.senderOptions(info)...)
	if err != nil {
		return nil, err
	}
	defer sender.Close()
	collect = append(collect, metrics.WithSampler(node.Sampler(), cfg.sampleInterval().Duration()))
	if len(cfg.Percentiles) > 0 {
		collect = append(collect, metrics.WithPercentiles(cfg.Percentiles...))
	}
	col, err := metrics.NewCollector(collect...)
	if err != nil {
		return nil, err
	}

	run := []load.RunOption{load.WithWarmup(cfg.WarmupRequests), load.WithBackground(cfg.updateParams(node, col))}
	if cfg.WarmupRequests > 0 {
		run = append(run, load.WithAfterWarmup(node.FlushCache))
	}
	if cfg.MaxConcurrency > 0 {
		run = append(run, load.WithMaxConcurrency(cfg.MaxConcurrency))
	}
	if o.progress != nil {
		run = append(run, load.WithBackground(reportProgress(col, o.progress)))
	}
	if err := load.Run(ctx, gen, sender, col, run...); err != nil {
		if col.Progress().Elapsed == 0 {
			return nil, err
		}
		return &NodeRun{Summary: col.Summary(), Collector: col, Server: info, Dir: cfg.OutputDir}, err
	}
	sum := col.Summary()
	if store != nil {
		if err := store.Finish(sum); err != nil {
			return nil, err
		}
	}
	return &NodeRun{Summary: sum, Collector: col, Server: info, Dir: cfg.OutputDir}, nil
}

// checkSchedule reports parameter updates that would come after the load has ended.
func (c NodeConfig) checkSchedule(plan load.Plan) error {
	var faults []error
	for _, at := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule)) {
		if at.Duration() > plan.LastArrival && plan.LastArrival > 0 {
			faults = append(faults, fmt.Errorf("sglangtest: config: param_update_schedule[%q]: the last request arrives at %.3f s, before this update",
				fmt.Sprint(float64(at)), plan.LastArrival.Seconds()))
		}
	}
	return errors.Join(faults...)
}

// checkFits reports a workload with prompts that the server would refuse.
func checkFits(plan load.Plan, info server.Info) error {
	if most := info.MaxInputLen; most > 0 && plan.LongestInput > most {
		return fmt.Errorf("sglangtest: the longest prompt has %d tokens, but the server takes at most %d: raise its context length or KV pool, or use shorter prompts",
			plan.LongestInput, most)
	}
	if most := info.ContextLength; most > 0 && plan.LongestTotal > most {
		return fmt.Errorf("sglangtest: a request has %d tokens of prompt and output, but the model's context has %d", plan.LongestTotal, most)
	}
	return nil
}

func (c NodeConfig) createRun() (*results.Writer, error) {
	var opts []results.Option
	if c.OutputFormat == "csv" {
		opts = append(opts, results.WithCSV())
	}
	return results.Create(c.OutputDir, results.Meta{Label: "node", Config: c, Seed: c.Seed}, opts...)
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
	if c.RequestTimeout > 0 {
		opts = append(opts, load.WithTimeout(c.RequestTimeout.Duration()))
	}
	return opts
}

// updateParams returns a background task that makes the scheduled parameter updates and puts each into the time
// line: when it was asked for, and from when it held.
func (c NodeConfig) updateParams(node *server.Server, col *metrics.Collector) func(context.Context, load.Clock) error {
	return func(ctx context.Context, clock load.Clock) error {
		for _, at := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule)) {
			if (load.TimerWaiter{}).WaitUntil(ctx, clock.Time(at.Duration())) != nil {
				return nil // the run has ended
			}
			for _, name := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule[at])) {
				value := c.ParamUpdateSchedule[at][name]
				u, err := node.UpdateParam(ctx, name, value)
				if err != nil {
					col.Event(metrics.Event{At: clock.Now(), Kind: "param_update_failed", Source: node.Name(),
						Data: map[string]any{"name": name, "value": value, "error": err.Error()}})
					return err
				}
				col.Event(metrics.Event{At: clock.Offset(u.Accepted), Kind: metrics.KindParamUpdate, Source: node.Name(), Data: map[string]any{
					"name": name, "value": value, "previous": u.Previous, "read_back": u.ReadBack, "mechanism": u.Mechanism,
					"asked_ns": int64(clock.Offset(u.Asked)), "held_ns": int64(clock.Offset(u.Accepted)),
				}})
			}
		}
		return nil
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
