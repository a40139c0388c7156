package sglangtest_test

import (
	"context"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// An experiment in one call, with an objective.
func ExampleRunNode() {
	run, err := sglangtest.RunNode(context.Background(), sglangtest.NodeConfig{
		DatasetName: "azure-conversation",
		RequestRate: 20,
		NumPrompts:  10,
		Seed:        1,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(run.Summary.Requests.OK, "requests on", run.Summary.Simulation.Profile)
	fmt.Println(run.Summary.Check(metrics.AtMost(metrics.TTFT, 0.95, 5*time.Second)))
	// Output:
	// 10 requests on h100-llama-3.1-8b
	// <nil>
}

// The same from its parts, to vary what RunNode does not.
func Example_parts() {
	ctx := context.Background()
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	servers, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B())) // or server.Attach(url)
	check(err)
	defer servers.StopAll(context.WithoutCancel(ctx))
	node, err := servers.Launch(ctx, server.Config{MaxRunningRequests: 256})
	check(err)

	gen, err := load.NewRequestGenerator(load.AzureConversation(),
		load.WithArrivals(load.Poisson(20)), load.WithSeed(7), load.WithLimit(10))
	check(err)
	sender, err := load.NewSender(node.URL(), load.WithTimeout(time.Minute))
	check(err)
	defer sender.Close()
	col, err := metrics.NewCollector(metrics.WithSampler(node.Sampler(), 250*time.Millisecond))
	check(err)

	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	whenServerEnds := func(ctx context.Context, _ load.Clock) error { // without it, the rest of the load meets nothing
		select {
		case <-node.Exited():
			end(&server.ExitedError{Err: node.Err()})
		case <-ctx.Done():
		}
		return nil
	}
	lowerLimit := func(ctx context.Context, clock load.Clock) error {
		u, err := node.UpdateParam(ctx, server.ParamMaxRunningRequests, 8)
		col.Event(u.Event(clock.Offset, err)) // into the run's time line
		if err != nil {
			return err
		}
		u, err = node.WaitInForce(ctx, u)
		col.Event(u.InForceEvent(clock.Offset, err))
		return nil
	}
	// Open loop: releases at absolute times, returns when all have ended.
	check(load.Run(ctx, gen, sender, col, load.WithBackground(whenServerEnds), load.WithBackground(lowerLimit)))
	fmt.Println(col.Summary().Requests.OK)
	for _, e := range col.Events() {
		fmt.Println(e.Kind, e.Data["value"])
	}
	// Output:
	// 10
	// param_update 8
	// param_in_force 8
}

// A limit on the running batch that changes while load runs.
func ExampleNodeConfig_dynamic() {
	cfg := sglangtest.NodeConfig{
		DatasetName: "azure-conversation", RequestRate: 8, Duration: 90,
		MaxRunningRequests:  256,
		EnableDynamicParams: true,
		ParamUpdateSchedule: map[sglangtest.Seconds]map[string]int{
			30: {server.ParamMaxRunningRequests: 16},
			60: {server.ParamMaxRunningRequests: 256},
		},
	}
	fmt.Println(cfg.Validate())
	// Output: <nil>
}
