package sglangtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
	"github.com/sglangtest/harness/sglangtest/sim/fleet"
)

// WithVirtualTime carries the experiment out in virtual time, on a simulated engine of the given profile and without
// a server: hours take seconds, and equal configs give equal results. It takes the place of a launcher. Workload,
// scheduled updates, summary and run folder are the same as in real time.
//
// Some settings have nothing to act on: api, because no API is called (requests are treated as by /generate), port,
// gpu_id and the tokenizer, and warmup_requests and keep_cache, because an engine that begins has nothing to warm up and an
// empty cache. Of server_args those
// of the scheduler act as in a simulated server (see [sim.Arguments]), and those of HTTP, such as api_key and enable_metrics,
// on nothing. Of the sampling parameters only ignore_eos and max_new_tokens change what is simulated. What a simulation cannot
// honour is an error: stream_interval, beam_width and dp_size above 1, and options of a sender or of the server manager, of which
// there are none.
//
// The engine is sampled in virtual time. A sampler added with [WithCollectorOptions] is not, and this cannot be
// checked: it reads the wall clock, and its samples do not belong to the run's time line.
func WithVirtualTime(profile sim.Profile) RunOption {
	return func(o *runOptions) error { o.virtual = &profile; return nil }
}

// progressEvery is the number of ended requests between two reports of progress in virtual time.
const progressEvery = 1000

// runVirtual is RunNode in virtual time, from the checks of the config on.
func (c NodeConfig) runVirtual(ctx context.Context, o *runOptions, gen *load.RequestGenerator, plan load.Plan, collect []metrics.Option) (*NodeRun, error) {
	args, err := c.Server()
	if err != nil {
		return nil, err
	}
	// The server is not started: making it checks what can be simulated, in the same words as in real time.
	srv, err := sim.NewServer(*o.virtual, args)
	if err := errors.Join(c.checkVirtual(o, args), err); err != nil {
		return nil, err
	}
	engine := fleet.Engine{Profile: *o.virtual, Config: srv.EngineConfig()}
	scheduler, err := sim.NewEngine(engine.Config)
	if err != nil {
		return nil, err
	}
	simulation := fleet.Simulation([]fleet.Engine{engine})
	info := server.Info{Version: sim.Version, ModelPath: c.ModelPath, ServedModelName: c.ModelPath, ContextLength: engine.Config.ContextLength,
		MaxInputLen: scheduler.MaxInputLen(), MaxTotalTokens: engine.Config.MaxTotalTokens, MaxRunningRequests: scheduler.Config().MaxRunningRequests,
		DPSize: 1, Simulation: &simulation}
	if info.ModelPath == "" {
		info.ModelPath, info.ServedModelName = o.virtual.ModelPath, o.virtual.ModelPath
	}
	if err := c.checkFits(gen, plan, info); err != nil {
		return nil, err
	}
	collect = append(collect, c.figures()...)
	col, err := metrics.NewCollector(append(collect, o.collector...)...)
	if err != nil {
		return nil, err
	}

	col.Event(metrics.Event{Kind: metrics.KindCacheState, Source: "server-0", Data: map[string]any{"state": string(metrics.CacheFlushed)}}) // it begins empty
	if asked := args.MaxRunningRequests; asked > info.MaxRunningRequests {
		col.Event(metrics.Event{Kind: metrics.KindServerWarning, Source: "server-0", Data: map[string]any{
			"message": fmt.Sprintf("max_running_requests: %d was asked for, %d is in force", asked, info.MaxRunningRequests)}})
	}
	run := []fleet.Option{fleet.WithSamples(c.sampleInterval().Duration())}
	for _, at := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule)) {
		// The config's checks leave no other parameter.
		run = append(run, fleet.WithAction(at.Duration(), 0, fleet.SetLimit(c.ParamUpdateSchedule[at][server.ParamMaxRunningRequests])))
	}
	if c.MaxConcurrency > 0 {
		run = append(run, fleet.WithMaxConcurrency(c.MaxConcurrency))
	}
	if c.RequestTimeout > 0 {
		run = append(run, fleet.WithTimeout(c.RequestTimeout.Duration()))
	}
	if o.progress != nil {
		run = append(run, fleet.WithProgress(progressEvery, func() { o.progress(col.Progress()) }))
	}
	_, err = fleet.Run(ctx, gen, new(policy.RoundRobin), []fleet.Engine{engine}, col, run...)
	if err != nil && !col.Began() {
		return nil, err
	}
	if o.progress != nil {
		o.progress(col.Progress())
	}
	return &NodeRun{Summary: col.Summary(), Collector: col, Server: info, Dir: c.OutputDir, slo: c.SLO}, err
}

// checkVirtual reports what has nothing to act on in virtual time, or that a simulation cannot honour.
func (c NodeConfig) checkVirtual(o *runOptions, args server.Config) error {
	var faults []error
	if len(o.sender) > 0 {
		faults = append(faults, errors.New("sglangtest: run: options of the sender in virtual time, in which nothing is sent: leave them out"))
	}
	if len(o.servers) > 0 {
		faults = append(faults, errors.New("sglangtest: run: options of the server manager in virtual time, which has no server: leave them out"))
	}
	if o.gpus != nil {
		faults = append(faults, errors.New("sglangtest: run: GPUs in virtual time, which uses none: leave them out"))
	}
	if args.DPSize > 1 {
		faults = append(faults, fmt.Errorf("sglangtest: config: server_args.dp_size: %d; in virtual time a server has one rank: leave it out, or run fleet.Run on as many engines", args.DPSize))
	}
	if args.StreamInterval > 1 {
		faults = append(faults, fmt.Errorf("sglangtest: config: server_args.stream_interval: %d; in virtual time want 1 or none: an event for each token", args.StreamInterval))
	}
	if p := c.SamplingParams; p != nil {
		for _, f := range []struct {
			name  string
			value *int
		}{{"stream_interval", p.StreamInterval}, {"beam_width", p.BeamWidth}} {
			if f.value != nil && *f.value > 1 {
				faults = append(faults, fmt.Errorf("sglangtest: config: sampling_params.%s: %d; in virtual time want 1 or none: one answer per request, with an event for each token",
					f.name, *f.value))
			}
		}
	}
	return errors.Join(faults...)
}

// sampleInterval returns how often the engine is sampled.
func (c NodeConfig) sampleInterval() Seconds {
	if c.MetricsInterval == 0 {
		return DefaultMetricsInterval
	}
	return c.MetricsInterval
}
