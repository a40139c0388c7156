// Command fleet routes an hour of a production trace to 64 simulated H100s, once with each policy, in virtual
// time, and prints what the requests experienced. It needs no GPU and no network.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sglangtest/harness/examples/internal/cli"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
	"github.com/sglangtest/harness/sglangtest/sim/fleet"
)

func main() {
	var (
		engines  = flag.Int("engines", 64, "simulated GPUs")
		slow     = flag.Int("slow", 0, "how many of them take twice as long for everything")
		duration = flag.Duration("duration", time.Hour, "for how long requests arrive, in virtual time; the trace repeats until then")
		speed    = flag.Float64("speed", 20, "how many times as fast as recorded requests arrive")
		azure    = flag.String("azure", "", "CSV `file` of an Azure LLM trace; default: the 2,000 requests that are built in")
		mooncake = flag.String("mooncake", "", "JSON lines `file` of a Mooncake trace, instead")
		poll     = flag.Duration("poll", time.Second, "how often the router asks the engines for their load")
		kill     = flag.Duration("kill", 0, "kill engine 0 at this `time` and restart it a minute later; 0: never")
		names    = flag.String("policies", strings.Join(policies, ","), "policies to compare, of "+strings.Join(policies, ", "))
		seed     = flag.Uint64("seed", 1, "seed of the prompts and of the random policy")
	)
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: %s [flags]\n\nRoutes a production trace to simulated GPUs in virtual time and compares routing policies.\n\n", os.Args[0])
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := cli.Context()
	defer stop()

	var ds load.Dataset
	switch {
	case *azure != "" && *mooncake != "":
		cli.Exit(fmt.Errorf("fleet: -azure and -mooncake: give one trace"))
	case *azure != "":
		ds = load.AzureTrace(*azure)
	case *mooncake != "":
		ds = load.Mooncake(*mooncake)
	default:
		ds = load.AzureConversation()
	}
	gen, err := load.NewRequestGenerator(ds, load.WithArrivals(load.TraceTimes(*speed)), load.WithDuration(*duration), load.WithRepeat(), load.WithSeed(*seed))
	cli.Exit(err)
	compared := strings.Split(*names, ",")
	for _, name := range compared {
		_, err := newPolicy(name, *seed)
		cli.Exit(err)
	}
	began := time.Now()
	plan, err := gen.Plan()
	cli.Exit(err)
	fmt.Fprintf(os.Stderr, "fleet: %d requests counted in %.1f s\n", plan.Requests, time.Since(began).Seconds())
	fleetOf := fleet.Equal(*engines, sim.H100Llama8B())
	for i := range min(*slow, *engines) {
		fleetOf[i].Speed = 0.5
	}
	opts := []fleet.Option{fleet.WithPolling(*poll), fleet.WithTokenTimes(false)}
	if *kill > 0 {
		opts = append(opts, fleet.WithAction(*kill, 0, fleet.Kill()), fleet.WithAction(*kill+time.Minute, 0, fleet.Restart()))
	}

	s := fleet.Simulation(fleetOf)
	fmt.Printf("SIMULATED: %d engines, profile %s\n  calibrated on: %s\n  known error: %s\n", *engines, s.Profile, s.Calibrated, s.KnownError)
	fmt.Printf("%d requests of %s over %v (%.1f/s, %.2f/s for each engine), %d input and %d output tokens in the mean; loads polled every %v\n\n",
		plan.Requests, plan.Dataset, *duration, plan.MeanRate, plan.MeanRate/float64(*engines),
		plan.InputTokens/int64(plan.Requests), plan.OutputTokens/int64(plan.Requests), *poll)

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "policy\tTTFT p50\tp99\tTPOT p50\tp99\tE2E p50\tp99 ms\toutput tok/s\tcached\tfailed\timbalance\ttook\t")
	for i, name := range compared {
		took, err := row(ctx, w, name, *seed, gen, fleetOf, opts)
		cli.Exit(err)
		fmt.Fprintf(os.Stderr, "fleet: policy %d of %d, %s, simulated in %.1f s\n", i+1, len(compared), name, took.Seconds())
	}
	cli.Exit(w.Flush())
	fmt.Println("\nImbalance: output tokens of the busiest engine over the mean of all, less one. Failed requests count as +Inf in percentiles.")
}

var policies = []string{"random", "round_robin", "least_local", "least_polled", "least_polled_plus_own"}

func newPolicy(name string, seed uint64) (policy.Policy, error) {
	switch name {
	case "random":
		return policy.NewRandom(rand.NewPCG(seed, 0))
	case "round_robin":
		return new(policy.RoundRobin), nil
	case "least_local":
		return policy.NewLeastOutstanding(policy.Local)
	case "least_polled":
		return policy.NewLeastOutstanding(policy.Polled)
	case "least_polled_plus_own":
		return policy.NewLeastOutstanding(policy.PolledPlusOwn)
	}
	return nil, fmt.Errorf("fleet: no policy %q: want one of %s", name, strings.Join(policies, ", "))
}

// row runs the fleet with one policy, adds a row to the table, and returns how long the run took.
func row(ctx context.Context, w *tabwriter.Writer, name string, seed uint64, src load.Source, engines []fleet.Engine, opts []fleet.Option) (took time.Duration, err error) {
	pol, err := newPolicy(name, seed)
	if err != nil {
		return 0, err
	}
	col, err := metrics.NewCollector()
	if err != nil {
		return 0, err
	}
	tokens := make(map[string]int)
	began := time.Now()
	if _, err := fleet.Run(ctx, src, pol, engines, perWorker{col, tokens}, opts...); err != nil {
		return 0, err
	}
	took = time.Since(began)
	sum := col.Summary()
	most, all := 0, 0
	for _, n := range tokens {
		most, all = max(most, n), all+n
	}
	cached := float64(*sum.Throughput.CachedTokens) / float64(max(1, sum.Throughput.InputTokens)) // a simulated engine reports it
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.0f\t%.1f %%\t%d\t%.1f %%\t%.1f s\t\n", name, both(sum.TTFT, 0), both(sum.TPOT, 1), both(sum.TotalLatency, 0),
		sum.Throughput.OutputTokensPerS, 100*cached, sum.Requests.Failed, 100*(float64(most*len(engines))/float64(max(1, all))-1), took.Seconds())
	return took, nil
}

// both shows the median and the 99th percentile of d, in ms.
func both(d metrics.Distribution, digits int) string {
	i := slices.IndexFunc(d.Percentiles, func(p metrics.Percentile) bool { return p.P == 99 })
	return fmt.Sprintf("%.*f\t%.*f", digits, float64(d.Median), digits, float64(d.Percentiles[i].Value))
}

// perWorker counts the output tokens of each worker on their way to a collector.
type perWorker struct {
	*metrics.Collector
	tokens map[string]int
}

func (p perWorker) Record(res *load.Result) {
	if res.Worker != "" {
		p.tokens[res.Worker] += res.OutputTokens
	}
	p.Collector.Record(res)
}
