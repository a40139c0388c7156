package server_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func ExampleNewServerManager() {
	ctx := context.Background()
	servers, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B()), server.WithEvents(func(e server.Event) {
		fmt.Println(e.Server, e.Kind, e.Message)
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := servers.Launch(ctx, server.Config{MaxRunningRequests: 64}); err != nil {
		fmt.Println(err)
		return
	}
	if err := servers.StopAll(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
	// server-0 state starting
	// server-0 state ready
	// server-0 state stopping
	// server-0 state stopped
}

func ExampleServerManager_Launch() {
	ctx := context.Background()
	servers, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer servers.StopAll(context.WithoutCancel(ctx))

	node, err := servers.Launch(ctx, server.Config{MaxRunningRequests: 64, ContextLength: 8192})
	if err != nil {
		fmt.Println(err)
		return
	}
	info := node.Info()
	fmt.Println(node.Name(), node.State(), "SGLang", info.Version)
	fmt.Println("limit", info.MaxRunningRequests, "context", info.ContextLength)
	fmt.Println("simulated by", info.Simulation.Profile)
	// Output:
	// server-0 ready SGLang 0.5.23
	// limit 64 context 8192
	// simulated by h100-llama-3.1-8b with context_length 8192 (profile: 131072), max_running_requests 64 (profile: 256)
}

func ExampleServer_UpdateParam() {
	ctx := context.Background()
	servers, err := server.NewServerManager(sim.Launcher(sim.H100Llama8B()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer servers.StopAll(context.WithoutCancel(ctx))
	node, err := servers.Launch(ctx, server.Config{MaxRunningRequests: 64})
	if err != nil {
		fmt.Println(err)
		return
	}
	u, err := node.UpdateParam(ctx, server.ParamMaxRunningRequests, 8)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("from", u.Previous, "to", u.ReadBack)

	_, err = node.UpdateParam(ctx, server.ParamMaxRunningRequests, 100)
	var refused *server.ParamError
	fmt.Println(errors.As(err, &refused), err)
	// Output:
	// from 64 to 8
	// true server: cannot set max_running_requests to 100: the limit at start-up is 64 and cannot be exceeded; start the server with a larger max_running_requests
}

func ExampleConfig_CommandLine() {
	cfg := server.LowLatency()
	cfg.ModelPath = "meta-llama/Llama-3.1-8B-Instruct"
	cfg.TPSize = 2
	cfg.Args = server.Args{"page_size": 16, "disable_overlap_schedule": true}
	argv, err := cfg.CommandLine("0.5.23")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(strings.Join(argv, " "))

	cfg.Args = server.Args{"pagesize": 16, "max_queued_requests": 8}
	cfg.SchedulePolicy = "fifo"
	fmt.Println(cfg.ValidateFor("0.5.23"))
	// Output:
	// --model-path meta-llama/Llama-3.1-8B-Instruct --tp-size 2 --max-running-requests 32 --chunked-prefill-size 2048 --cuda-graph-max-bs-decode 32 --disable-overlap-schedule --page-size 16
	// args.max_queued_requests: a key of its own: write it beside "args", not inside
	// args.pagesize: SGLang has no such argument; did you mean "page_size"?
	// schedule_policy: "fifo" is not one that SGLang 0.5.23 takes; did you mean "fcfs"?
}

// A server as a process of this host, in another Python environment, on the first two GPUs.
func ExampleLocalProcess() {
	ctx := context.Background()
	launcher := server.LocalProcess(
		server.WithCommand("/opt/sglang/bin/python", "-m", "sglang.launch_server"),
		server.WithEnvironment(map[string]string{"SGLANG_LOG_MS": "1"}),
	)
	servers, err := server.NewServerManager(launcher, server.WithEvents(func(e server.Event) {
		fmt.Println(e.Server, e.Kind, e.Message) // such as "server-0 phase load weights: 12.3s"
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer servers.StopAll(context.WithoutCancel(ctx))
	node, err := servers.Launch(ctx, server.Config{ModelPath: "meta-llama/Llama-3.1-8B-Instruct", TPSize: 2, GPUs: []int{0, 1}})
	var failure *server.FailureError
	if errors.As(err, &failure) {
		fmt.Println(failure.Cause, failure.Advice)
	}
	if err != nil {
		return
	}
	for _, phase := range node.Startup() {
		fmt.Println(phase)
	}
}
