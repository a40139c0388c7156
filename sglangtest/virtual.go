package sglangtest

import (
	"context"
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
// gpu_id and the tokenizer, and warmup_requests, because an engine that begins has nothing to warm up. What a
// simulation cannot honour is an error.
func WithVirtualTime(profile sim.Profile) RunOption {
	return func(o *runOptions) error { o.virtual = &profile; return nil }
}

// progressEvery is the number of ended requests between two reports of progress in virtual time.
const progressEvery = 1000

// runVirtual is RunNode in virtual time, from the checks of the config on.
func (c NodeConfig) runVirtual(ctx context.Context, o *runOptions, gen *load.RequestGenerator, plan load.Plan, collect []metrics.Option) (*NodeRun, error) {
	// The server is not started: making it checks what can be simulated, in the same words as in real time.
	srv, err := sim.NewServer(*o.virtual, c.Server())
	if err != nil {
		return nil, err
	}
	engine := fleet.Engine{Profile: *o.virtual, Config: srv.EngineConfig()}
	scheduler, err := sim.NewEngine(engine.Config)
	if err != nil {
		return nil, err
	}
	simulation := fleet.Simulation([]fleet.Engine{engine})
	info := server.Info{Version: sim.Version, ModelPath: c.ModelPath, ServedModelName: c.ModelPath, ContextLength: engine.Config.ContextLength,
		MaxInputLen: scheduler.MaxInputLen(), MaxTotalTokens: engine.Config.MaxTotalTokens, MaxRunningRequests: engine.Config.MaxRunningRequests,
		DPSize: 1, Simulation: &simulation}
	if info.ModelPath == "" {
		info.ModelPath, info.ServedModelName = o.virtual.ModelPath, o.virtual.ModelPath
	}
	if err := c.checkFits(plan, info); err != nil {
		return nil, err
	}
	if len(c.Percentiles) > 0 {
		collect = append(collect, metrics.WithPercentiles(c.Percentiles...))
	}
	col, err := metrics.NewCollector(append(collect, o.collector...)...)
	if err != nil {
		return nil, err
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
	if err != nil && col.Progress().Elapsed == 0 {
		return nil, err
	}
	if o.progress != nil {
		o.progress(col.Progress())
	}
	return &NodeRun{Summary: col.Summary(), Collector: col, Server: info, Dir: c.OutputDir}, err
}

// sampleInterval returns how often the engine is sampled.
func (c NodeConfig) sampleInterval() Seconds {
	if c.MetricsInterval == 0 {
		return DefaultMetricsInterval
	}
	return c.MetricsInterval
}
