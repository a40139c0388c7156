// Package nodetest is an experiment as a Go test: it fails when a latency objective is missed, and says by how much.
//
//	go test ./examples/nodetest
//	go test ./examples/nodetest -v
//	go test ./examples/nodetest -args -rate 100 -requests 100 -ttft 50ms
package nodetest

import (
	"flag"
	"testing"
	"time"

	"github.com/sglangtest/harness/examples/internal/cli"
	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

var (
	rate     = flag.Float64("rate", 8, "requests per second, Poisson")
	requests = flag.Int("requests", 30, "requests to send")
	ttft     = flag.Duration("ttft", 2*time.Second, "objective for the 95th percentile of TTFT")
	total    = flag.Duration("total", 20*time.Second, "objective for the 95th percentile of the total latency")
	engine   = cli.EngineFlags(flag.CommandLine)
)

func TestNodeMeetsItsObjectives(t *testing.T) {
	cfg := sglangtest.NodeConfig{
		DatasetName: "azure-conversation",
		RequestRate: sglangtest.Rate(*rate),
		NumPrompts:  *requests,
		Seed:        1,
	}
	opts, release, err := engine.Configure(t.Context(), &cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	run, err := sglangtest.RunNode(t.Context(), cfg, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + run.Summary.String())
	if err := run.Summary.Check(
		metrics.AtMost(metrics.TTFT, 0.95, *ttft),
		metrics.AtMost(metrics.TotalLatency, 0.95, *total),
		metrics.AtLeast(metrics.SuccessShare, 1),
	); err != nil {
		t.Error(err)
	}
}
