package sim_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func ExampleLauncher() {
	ctx := context.Background()
	launcher := sim.Launcher(sim.H100Llama8B())
	node, err := launcher.Launch(ctx, server.Spec{Name: "node-a", Config: server.Config{MaxRunningRequests: 64}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Stop(ctx)

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(node.URL()+"/generate", "application/json",
		strings.NewReader(`{"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4}}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(strings.SplitAfter(string(body), ",\"meta_info")[0])
	fmt.Println(node.(server.Simulated).Simulation().Profile)
	// Output:
	// {"text":" bird tree lake rain","output_ids":[1000,1001,1002,1003],"meta_info
	// h100-llama-3.1-8b with max_running_requests 64 (profile: 256)
}
