// Command dynamic changes the running-request limit of a server while load runs, and shows the number of running
// requests following it.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/sglangtest/harness/examples/internal/cli"
	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

func main() {
	rate := flag.Float64("rate", 8, "requests per second, Poisson")
	high := flag.Int("high", 64, "limit at the start and in the last third")
	low := flag.Int("low", 8, "limit in the second third")
	seconds := flag.Float64("seconds", 30, "for how long requests arrive")
	engine := cli.EngineFlags(flag.CommandLine)
	out := flag.String("out", "runs/dynamic-{time}", "folder of the run")
	flag.Parse()
	ctx, stop := cli.Context()
	defer stop()

	third := sglangtest.Seconds(*seconds / 3)
	cfg := sglangtest.NodeConfig{
		MaxRunningRequests:  *high,
		DatasetName:         "azure-conversation",
		RequestRate:         sglangtest.Rate(*rate),
		Duration:            3 * third,
		Seed:                1,
		EnableDynamicParams: true,
		ParamUpdateSchedule: map[sglangtest.Seconds]map[string]int{
			third:     {server.ParamMaxRunningRequests: *low},
			2 * third: {server.ParamMaxRunningRequests: *high},
		},
		OutputDir: *out,
	}
	opts, release, err := engine.Configure(ctx, &cfg)
	cli.Exit(err)
	defer release()
	run, err := sglangtest.RunNode(ctx, cfg, append(opts, sglangtest.WithProgress(metrics.TerminalProgress(os.Stderr)))...)
	if run == nil {
		cli.Exit(err)
	}
	cli.Exit(run.Summary.WriteTable(os.Stdout))

	fmt.Println("\nThe run in windows of 2 s:")
	cli.Exit(metrics.WriteWindows(os.Stdout, run.Collector.Windows(2*time.Second)))
	fmt.Println()
	for _, e := range run.Collector.Events() {
		switch e.Kind {
		case metrics.KindParamUpdate:
			asked, _ := e.Number("asked_ns")
			fmt.Printf("%s := %v: asked at %.3f s, accepted at %.3f s,\n    by %s, read back as %v\n", e.Data["name"], e.Data["value"],
				asked/1e9, e.At.Seconds(), e.Data["mechanism"], e.Data["read_back"])
		case metrics.KindParamInForce:
			fmt.Printf("%s := %v: in force at %.3f s\n", e.Data["name"], e.Data["value"], e.At.Seconds())
		case metrics.KindParamNotInForce:
			fmt.Printf("%s := %v: not seen in force: %s\n", e.Data["name"], e.Data["value"], e.Data["reason"])
		}
	}
	fmt.Println("\nEverything measured is in", run.Dir)
	cli.Exit(err)
}
