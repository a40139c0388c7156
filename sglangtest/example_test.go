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

	check(load.Run(ctx, gen, sender, col)) // open loop: releases at absolute times, returns when all have ended
	fmt.Println(col.Summary().Requests.OK)
	// Output: 10
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
