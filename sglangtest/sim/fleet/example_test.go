package fleet_test

import (
	"context"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
	"github.com/sglangtest/harness/sglangtest/sim/fleet"
)

// Ten minutes of traffic on eight engines, of which one dies.
func ExampleRun() {
	gen, err := load.NewRequestGenerator(load.AzureConversation(), load.WithArrivals(load.Poisson(30)), load.WithDuration(10*time.Minute), load.WithRepeat())
	if err != nil {
		panic(err)
	}
	pol, err := policy.NewLeastOutstanding(policy.PolledPlusOwn)
	if err != nil {
		panic(err)
	}
	col, err := metrics.NewCollector()
	if err != nil {
		panic(err)
	}
	stats, err := fleet.Run(context.Background(), gen, pol, fleet.Equal(8, sim.H100Llama8B()), col,
		fleet.WithPolling(2*time.Second),
		fleet.WithAction(5*time.Minute+time.Second, 3, fleet.Kill()),
		fleet.WithAction(6*time.Minute, 3, fleet.Restart()))
	if err != nil {
		panic(err)
	}
	sum := col.Summary()
	fmt.Println("simulated by", sum.Simulation.Profile)
	fmt.Println(stats.Requests == sum.Requests.OK+sum.Requests.Failed, sum.Requests.Failed > 0)
	// Output:
	// simulated by h100-llama-3.1-8b
	// true true
}
