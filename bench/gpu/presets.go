package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/gpu"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// presets starts a server with each preset, one after the other, and puts the same load on each.
func presets(ctx context.Context, l server.Launcher, devices *gpu.Devices, further server.Config) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "preset\tstart s\tKV tokens\tlimit\tfree GiB\toutput tok/s\tTTFT p50 ms\tp99\tTPOT p50 ms\tp99\ttotal p50 ms\tp99\tok\t")
	known := map[string]server.Config{"Defaults": {}, "HighThroughput": server.HighThroughput(), "LowLatency": server.LowLatency(), "LittleMemory": server.LittleMemory()}
	names := strings.Split(*each, ",")
	for _, name := range names {
		if _, ok := known[name]; !ok {
			return fmt.Errorf("-presets: no preset %q: want some of %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	}
	var failed error
	for _, name := range names {
		preset := known[name]
		say("== %s: %v", name, preset.Settings())
		zero := 0
		args := further.Settings()
		maps.Copy(args, preset.Settings())
		delete(args, "model_path")
		limit, _ := args[server.ParamMaxRunningRequests].(int)
		delete(args, server.ParamMaxRunningRequests)
		var start, ready time.Time
		free := math.NaN() // GiB
		run, err := sglangtest.RunNode(ctx, sglangtest.NodeConfig{
			ModelPath: *model, GPUID: &zero, ServerArgs: args, MaxRunningRequests: limit,
			DatasetName: "azure-conversation", RequestRate: sglangtest.Rate(*rate), Duration: sglangtest.Seconds(*seconds), Seed: 1, WarmupRequests: 4,
			OutputDir: filepath.Join(*out, name),
		}, sglangtest.WithLauncher(l), sglangtest.WithGPUs(devices), sglangtest.WithServerOptions(server.WithEvents(func(e server.Event) {
			event(e)
			switch {
			case e.Kind == server.KindState && e.Message == string(server.StateStarting):
				start = time.Now()
			case e.Kind == server.KindState && e.Message == string(server.StateReady):
				ready = time.Now()
				if g, err := devices.GPUs(ctx); err != nil {
					say("%s: free memory is not known: %v", name, err)
				} else {
					free = float64(g[0].MemoryTotal-g[0].MemoryUsed) / (1 << 30)
				}
			}
		})))
		if err != nil { // the others may still start
			say("%s: %v", name, err)
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
			continue
		}
		s := run.Summary
		fmt.Println(s)
		fmt.Fprintf(table, "%s\t%.0f\t%d\t%d\t%.1f\t%.0f\t%.1f\t%.1f\t%.2f\t%.2f\t%.0f\t%.0f\t%d/%d\t\n", name, ready.Sub(start).Seconds(),
			run.Server.MaxTotalTokens, run.Server.MaxRunningRequests, free, s.Throughput.OutputTokensPerS,
			float64(s.TTFT.Median), p99(s.TTFT), float64(s.TPOT.Median), p99(s.TPOT),
			float64(s.TotalLatency.Median), p99(s.TotalLatency), s.Requests.OK, s.Requests.Arrived)
	}
	return errors.Join(failed, table.Flush())
}

func p99(d metrics.Distribution) float64 {
	for _, p := range d.Percentiles {
		if p.P == 99 {
			return float64(p.Value)
		}
	}
	panic("no p99")
}
