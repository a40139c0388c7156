// Command client measures what the load client itself costs, on the whole path: generator, runner, sender,
// collector and the journal of the run folder. It prints one JSON object; bench/README.md says how to run it
// beside other clients.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
)

func main() {
	var (
		url         = flag.String("url", "http://127.0.0.1:30000", "base `URL` of the server")
		api         = flag.String("api", string(load.Generate), "`API`: generate, completions or chat_completions")
		requests    = flag.Int("requests", 2000, "requests to send")
		rate        = flag.Float64("rate", 0, "Poisson arrivals per second; 0: all at once, with -concurrency places")
		concurrency = flag.Int("concurrency", 64, "requests in flight with -rate 0")
		in          = flag.Int("in", 32, "input tokens of each request")
		out         = flag.Int("out", 16, "output tokens of each request")
		jsonl       = flag.String("jsonl", "", "`file` of requests (load.JSONLines) instead of -in and -out")
		greedy      = flag.Bool("greedy", false, "ask for temperature 0, as bench_serving does; default: the server's own")
		seed        = flag.Uint64("seed", 1, "seed of the workload")
		profile     = flag.String("cpuprofile", "", "`file` for a CPU profile")
		dir         = flag.String("dir", "", "`folder` of the run; default: a temporary one, removed at the end")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		defer pprof.StopCPUProfile()
	}
	report, err := run(ctx, *url, load.API(*api), *requests, *rate, *concurrency, dataset(*jsonl, *in, *out), *greedy, *seed, *dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(report)
}

func dataset(jsonl string, in, out int) load.Dataset {
	if jsonl != "" {
		return load.JSONLines(jsonl)
	}
	return load.Random(in, out, 1)
}

// firstRelease passes everything on to a collector and notes the age of the process at the first arrival.
type firstRelease struct {
	*metrics.Collector
	age time.Duration
}

func (f *firstRelease) Arrived(req *load.Request) {
	if f.age == 0 {
		f.age = processAge()
	}
	f.Collector.Arrived(req)
}

func run(ctx context.Context, url string, api load.API, requests int, rate float64, concurrency int, ds load.Dataset, greedy bool, seed uint64, dir string) (map[string]any, error) {
	arrivals, opts := load.AllAtOnce(), []load.RunOption{load.WithMaxConcurrency(concurrency)}
	if rate > 0 {
		arrivals, opts = load.Poisson(rate), nil
	}
	workload := []load.GeneratorOption{load.WithArrivals(arrivals), load.WithLimit(requests), load.WithSeed(seed)}
	if greedy {
		workload = append(workload, load.WithSampling(load.BenchServingSampling()))
	}
	gen, err := load.NewRequestGenerator(ds, workload...)
	if err != nil {
		return nil, err
	}
	sender, err := load.NewSender(url, load.WithAPI(api))
	if err != nil {
		return nil, err
	}
	defer sender.Close()
	if dir == "" {
		tmp, err := os.MkdirTemp("", "client-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		dir = filepath.Join(tmp, "run")
	}
	store, err := results.Create(dir, results.Meta{Label: "client benchmark", Seed: seed})
	if err != nil {
		return nil, err
	}
	col, err := metrics.NewCollector(metrics.WithSink(store))
	if err != nil {
		return nil, err
	}
	rec := &firstRelease{Collector: col}
	before := cpuTime()
	if err := load.Run(ctx, gen, sender, rec, opts...); err != nil {
		return nil, err
	}
	cpu, peak := cpuTime()-before, peakMemory()
	sum := col.Summary()
	if err := store.Finish(sum); err != nil {
		return nil, err
	}
	events := 0
	for r := range col.Results() {
		events += r.Chunks.Len()
	}
	n, s := float64(sum.Requests.Arrived), sum.Durations.Measured
	return map[string]any{
		"ok": sum.Requests.OK, "failed": sum.Requests.Failed, "outcomes": sum.Requests.Outcomes,
		"req_per_s": n / s, "events_per_s": float64(events) / s, "output_tokens_per_s": sum.Throughput.OutputTokensPerS,
		"cpu_us_per_req": float64(cpu.Microseconds()) / n, "cpu_us_per_event": float64(cpu.Microseconds()) / float64(max(events, 1)),
		"peak_memory_mb": peak, "start_to_first_request_s": rec.age.Seconds(), "gomaxprocs": runtime.GOMAXPROCS(0),
		"server_ttft_ms": row(sum.ServerTTFT), "itl_ms": row(sum.ITL), "tpot_ms": row(sum.TPOT), "server_latency_ms": row(sum.ServerLatency),
		"bench_serving": sum.BenchServing, "lateness_ms": row(sum.Client.Lateness), "read_delay": sum.Client.ReadDelay, "client_ok": sum.Client.OK, "reasons": sum.Client.Reasons, "rates": sum.Rates,
	}, nil
}

func row(d metrics.Distribution) map[string]any {
	m := map[string]any{"mean": d.Mean, "p50": d.Median}
	for _, p := range d.Percentiles {
		m["p"+strconv.FormatFloat(p.P, 'f', -1, 64)] = p.Value
	}
	return m
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peakMemory returns the largest resident set so far in MB, or 0 where the system does not tell.
func peakMemory() float64 {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			v, _ := strconv.ParseFloat(strings.Fields(kb)[0], 64)
			return v * 1024 / 1e6
		}
	}
	return 0
}

// processAge returns the time since the process was started, to 10 ms; 0 where the system does not tell.
func processAge() time.Duration {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	started, _ := strconv.ParseFloat(fields[19], 64) // field 22: clock ticks of 10 ms from boot to start
	up, _ := strconv.ParseFloat(strings.Fields(string(uptime))[0], 64)
	return time.Duration((up - started/100) * float64(time.Second))
}
