// Command quickstart replays an excerpt of a production trace open-loop against a simulated SGLang server on an
// H100, over real HTTP, and prints what the requests experienced.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/sglangtest/harness/examples/internal/cli"
	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

func main() {
	rate := flag.Float64("rate", 8, "requests per second, Poisson")
	seconds := flag.Float64("seconds", 20, "for how long requests arrive")
	seed := flag.Uint64("seed", 9, "seed of the arrivals and prompts")
	out := flag.String("out", "runs/quickstart-{time}", "folder of the run")
	flag.Parse()
	ctx, stop := cli.Context()
	defer stop()

	run, err := sglangtest.RunNode(ctx, sglangtest.NodeConfig{
		DatasetName:    "azure-conversation",
		RequestRate:    sglangtest.Rate(*rate),
		Duration:       sglangtest.Seconds(*seconds),
		WarmupRequests: 1,
		Seed:           *seed,
		OutputDir:      *out,
	}, sglangtest.WithProgress(metrics.TerminalProgress(os.Stderr)))
	if run == nil {
		cli.Exit(err)
	}
	cli.Exit(run.Summary.WriteTable(os.Stdout))
	fmt.Println("\nEverything measured is in", run.Dir)
	cli.Exit(err)
}
