// Command fleet measures how many requests per second a simulated fleet carries out on this machine, on the whole
// path: generator, policy, scheduler core, collector and, if asked, the journal of the run folder. It prints
// one JSON object. Set GOMAXPROCS=1 for the speed of one core, the garbage collector's work included.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/results"
	"github.com/sglangtest/harness/sglangtest/sim"
	"github.com/sglangtest/harness/sglangtest/sim/fleet"
)

type flags struct {
	engines, requests, in, out int
	perEngine                  float64
	times, journal, sink       bool
	mooncake, policy           string
	dir, profile               string
	seed                       uint64
}

func main() {
	var f flags
	flag.IntVar(&f.engines, "engines", 8, "simulated engines")
	flag.IntVar(&f.requests, "requests", 100000, "requests")
	flag.IntVar(&f.in, "in", 512, "prompt tokens of each request")
	flag.IntVar(&f.out, "out", 512, "output tokens of each request")
	flag.Float64Var(&f.perEngine, "rate", 12, "Poisson arrivals per second and engine")
	flag.BoolVar(&f.times, "token-times", true, "record the time of each token")
	flag.BoolVar(&f.journal, "journal", false, "store the run in a folder as well")
	flag.BoolVar(&f.sink, "stream", false, "store the run in a folder and keep nothing in memory (no collector)")
	flag.StringVar(&f.dir, "dir", "", "`folder` of the run; default: a temporary one, removed at the end")
	flag.StringVar(&f.mooncake, "mooncake", "", "replay this Mooncake trace `file` at its own times instead, as often as -requests needs")
	flag.StringVar(&f.policy, "policy", "round_robin", "round_robin, random or least_outstanding")
	flag.StringVar(&f.profile, "cpuprofile", "", "write a CPU profile of the run to this `file`")
	flag.Uint64Var(&f.seed, "seed", 1, "seed of the workload")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := run(ctx, f)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(report)
}

// A Report is what the command prints. Memory is in MiB.
type Report struct {
	Engines      int     `json:"engines"`
	Policy       string  `json:"policy"`
	Requests     int     `json:"requests"`
	Failed       int     `json:"failed"`
	OutputTokens int64   `json:"output_tokens"`
	TokenTimes   bool    `json:"token_times"`
	Journal      bool    `json:"journal"`
	GOMAXPROCS   int     `json:"gomaxprocs"`
	PlanS        float64 `json:"plan_s"`    // the generator's pass before the run; not in wall_s
	WallS        float64 `json:"wall_s"`    // generator, policy, engines and recorder
	SummaryS     float64 `json:"summary_s"` // the collector's summary after the run
	CPUS         float64 `json:"cpu_s"`     // user and system time of the run, all cores
	RequestsPerS float64 `json:"requests_per_s"`
	// The same by CPU time. On a machine that others use too it is the steadier figure.
	RequestsPerCPUS float64        `json:"requests_per_cpu_s"`
	TokensPerS      float64        `json:"tokens_per_s"`
	Steps           uint64         `json:"steps"`
	BatchMean       float64        `json:"tokens_per_step"`
	SimulatedS      float64        `json:"simulated_s"`
	HeapMidMiB      float64        `json:"heap_mid_mib"` // live heap when a quarter of the requests had ended
	HeapEndMiB      float64        `json:"heap_end_mib"` // live heap when all had, before the summary
	FolderMiB       float64        `json:"folder_mib"`
	TPOTMedianMS    metrics.Millis `json:"tpot_p50_ms"`
	TTFTMedianMS    metrics.Millis `json:"ttft_p50_ms"`
	InFlightMean    float64        `json:"in_flight_mean"`
	CachedPercent   float64        `json:"cached_percent"`
}

func run(ctx context.Context, f flags) (*Report, error) {
	gen, err := workload(f)
	if err != nil {
		return nil, err
	}
	pol, err := policyOf(f)
	if err != nil {
		return nil, err
	}
	rep := &Report{Engines: f.engines, Policy: f.policy, Requests: f.requests, TokenTimes: f.times, Journal: f.journal || f.sink, GOMAXPROCS: runtime.GOMAXPROCS(0)}
	began := time.Now()
	if _, err := gen.Plan(); err != nil {
		return nil, err
	}
	rep.PlanS = time.Since(began).Seconds()

	var store *results.Writer
	if f.journal || f.sink {
		dir := f.dir
		if dir == "" {
			if dir, err = os.MkdirTemp("", "bench-fleet-"); err != nil {
				return nil, err
			}
			defer os.RemoveAll(dir)
		}
		if store, err = results.Create(filepath.Join(dir, "run"), results.Meta{Label: "bench-fleet", Config: f.requests, Seed: f.seed}); err != nil {
			return nil, err
		}
	}
	count := &counter{quarter: f.requests / 4}
	var col *metrics.Collector
	if f.sink {
		count.Recorder = streaming{store}
	} else {
		var opts []metrics.Option
		if store != nil {
			opts = append(opts, metrics.WithSink(store))
		}
		if col, err = metrics.NewCollector(opts...); err != nil {
			return nil, err
		}
		count.Recorder = col
	}

	if f.profile != "" {
		file, err := os.Create(f.profile)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return nil, err
		}
	}
	cpu := cpuTime()
	began = time.Now()
	stats, err := fleet.Run(ctx, gen, pol, fleet.Equal(f.engines, sim.H100Llama8B()), count, fleet.WithTokenTimes(f.times))
	rep.WallS = time.Since(began).Seconds()
	rep.CPUS = (cpuTime() - cpu).Seconds()
	if f.profile != "" {
		pprof.StopCPUProfile()
	}
	if err != nil {
		return nil, err
	}
	rep.RequestsPerCPUS = float64(stats.Requests) / rep.CPUS
	rep.WallS -= count.paused.Seconds()
	rep.HeapMidMiB, rep.HeapEndMiB = count.heap, liveHeap()
	rep.Failed, rep.OutputTokens = count.failed, count.tokens
	rep.RequestsPerS = float64(stats.Requests) / rep.WallS
	rep.TokensPerS = float64(count.tokens) / rep.WallS
	rep.Steps, rep.BatchMean = stats.Steps, float64(count.tokens)/float64(stats.Steps)
	rep.SimulatedS = stats.End.Seconds()
	if count.prompt > 0 {
		rep.CachedPercent = 100 * float64(count.cached) / float64(count.prompt)
	}
	var sum any
	if col != nil {
		began = time.Now()
		s := col.Summary()
		rep.SummaryS = time.Since(began).Seconds()
		rep.TPOTMedianMS, rep.TTFTMedianMS, rep.InFlightMean = s.TPOT.Median, s.TTFT.Median, s.InFlight.Mean
		sum = s
	}
	if store != nil {
		if err := store.Finish(sum); err != nil {
			return nil, err
		}
		if info, err := os.Stat(filepath.Join(store.Dir(), "requests.jsonl")); err == nil {
			rep.FolderMiB = float64(info.Size()) / (1 << 20)
		}
	}
	return rep, nil
}

func policyOf(f flags) (policy.Policy, error) {
	switch f.policy {
	case "round_robin":
		return new(policy.RoundRobin), nil
	case "random":
		return policy.NewRandom(rand.NewPCG(f.seed, 0))
	case "least_outstanding":
		return policy.NewLeastOutstanding(policy.Local)
	}
	return nil, fmt.Errorf("policy %q: want round_robin, random or least_outstanding", f.policy)
}

func workload(f flags) (*load.RequestGenerator, error) {
	if f.mooncake != "" {
		return load.NewRequestGenerator(load.Mooncake(f.mooncake), load.WithArrivals(load.TraceTimes(1)), load.WithLimit(f.requests), load.WithRepeat(), load.WithSeed(f.seed))
	}
	return load.NewRequestGenerator(load.Random(f.in, f.out, 1), load.WithArrivals(load.Poisson(f.perEngine*float64(f.engines))),
		load.WithLimit(f.requests), load.WithSeed(f.seed))
}

// counter passes everything on to a recorder, and counts.
type counter struct {
	load.Recorder
	quarter        int
	ended, failed  int
	tokens         int64
	prompt, cached int64
	heap           float64
	paused         time.Duration // for the look at the heap
}

func (c *counter) AddSimulation(s metrics.Simulation) error {
	return c.Recorder.(interface {
		AddSimulation(metrics.Simulation) error
	}).AddSimulation(s)
}

func (c *counter) Record(res *load.Result) {
	c.ended++
	c.tokens += int64(res.OutputTokens)
	c.prompt += int64(res.PromptTokens)
	c.cached += int64(res.CachedTokens)
	if !res.OK() {
		c.failed++
	}
	c.Recorder.Record(res)
	if c.ended == c.quarter {
		began := time.Now()
		c.heap = liveHeap()
		c.paused = time.Since(began)
	}
}

// streaming is a recorder that stores and keeps nothing.
type streaming struct{ *results.Writer }

func (s streaming) Begin(_ context.Context, info load.Info) error { return s.Writer.Begin(info) }
func (s streaming) Record(res *load.Result)                       { s.Writer.Result(res) }
func (s streaming) End(context.Context) error                     { return s.Writer.End() }

// liveHeap collects garbage and returns what is left, in MiB.
func liveHeap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
