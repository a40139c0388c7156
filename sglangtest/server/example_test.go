package server_test

import (
	"context"
	"errors"
	"fmt"

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
	// simulated by h100-llama-3.1-8b
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
