// Command gpu brings a real SGLang up on this host's first GPU and shows what the SDK makes of it: the phases of the
// start, all telemetry, a limit that is lowered and raised under load, a port clash, a CUDA out-of-memory, a clean stop
// with the GPU's memory back. bench/README.md says how to build it for another machine.
//
//	gpu -model PATH -out FOLDER [-command "python3 -m sglang.launch_server"] [-server-args "..."] [-high 64] [-low 8] [-presets Defaults,LowLatency]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-shellwords"

	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/gpu"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

var (
	command = flag.String("command", "python3 -m sglang.launch_server", "`command` that starts a server")
	model   = flag.String("model", "", "`path` of the model")
	args    = flag.String("server-args", "", "further `arguments`, as on SGLang's command line")
	out     = flag.String("out", "", "`folder` for the run and the logs")
	high    = flag.Int("high", 64, "limit at the start and in the last third")
	low     = flag.Int("low", 8, "limit in the second third")
	rate    = flag.Float64("rate", 12, "requests per second")
	seconds = flag.Float64("seconds", 45, "of arrivals")
	each    = flag.String("presets", "", "only compare these `presets` under one load, such as Defaults,LowLatency")
	began   = time.Now()
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func say(format string, args ...any) {
	fmt.Printf("%7.2f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

func event(e server.Event) {
	if e.Phase == nil || e.Phase.Duration > 0 {
		say("  event %s %s: %s", e.Server, e.Kind, strings.ReplaceAll(e.Message, "\n", "\n           "))
	}
}

func run(ctx context.Context) error {
	devices, err := gpu.Open(ctx)
	if err != nil {
		return err
	}
	defer devices.Close()
	say("GPUs by %s", devices.Source())
	gpus, err := devices.GPUs(ctx)
	if err != nil {
		return err
	}
	for _, g := range gpus {
		say("  %d %s %s: %d of %d MiB used", g.Index, g.UUID, g.Name, g.MemoryUsed>>20, g.MemoryTotal>>20)
	}
	before := gpus[0].MemoryUsed

	if err := os.MkdirAll(*out, 0o777); err != nil {
		return err
	}
	words, err := shellwords.Parse(*args)
	if err != nil {
		return fmt.Errorf("-server-args: %w", err)
	}
	further, err := server.ParseCommandLine("", append([]string{"--model-path", *model}, words...))
	if err != nil {
		return err
	}
	start, err := shellwords.Parse(*command)
	if err != nil || len(start) == 0 {
		return fmt.Errorf("-command %q: want a command: %w", *command, err)
	}
	launcher := server.LocalProcess(server.WithCommand(start[0], start[1:]...))
	parts := []func() error{
		func() error { return underLoad(ctx, launcher, devices, further) },
		func() error { return outOfMemory(ctx, launcher, devices, further) },
		func() error { return portClash(ctx, launcher, devices, further) },
	}
	if *each != "" {
		parts = []func() error{func() error { return presets(ctx, launcher, devices, further) }}
	}
	for _, part := range parts {
		if err := part(); err != nil {
			return err
		}
		gpus, err := devices.GPUs(ctx)
		if err != nil {
			return err
		}
		say("GPU 0 has %d MiB more in use than at the beginning", (gpus[0].MemoryUsed-before)>>20)
	}
	return nil
}

// underLoad is a run with the limit high, low, high.
func underLoad(ctx context.Context, l server.Launcher, devices *gpu.Devices, further server.Config) error {
	say("== limit %d, %d, %d under load", *high, *low, *high)
	third := sglangtest.Seconds(*seconds / 3)
	zero := 0
	cfg := sglangtest.NodeConfig{
		ModelPath: *model, GPUID: &zero, MaxRunningRequests: *high, ServerArgs: further.Settings(),
		DatasetName: "azure-conversation", RequestRate: sglangtest.Rate(*rate), Duration: 3 * third, Seed: 1, WarmupRequests: 4,
		EnableDynamicParams: true, ParamUpdateSchedule: map[sglangtest.Seconds]map[string]int{
			third: {server.ParamMaxRunningRequests: *low}, 2 * third: {server.ParamMaxRunningRequests: *high}},
		OutputDir: filepath.Join(*out, "run"),
	}
	delete(cfg.ServerArgs, "model_path")
	cfg.ServerArgs["enable_metrics"] = true
	var stopping time.Time
	run, err := sglangtest.RunNode(ctx, cfg, sglangtest.WithLauncher(l), sglangtest.WithGPUs(devices), sglangtest.WithServerOptions(server.WithEvents(func(e server.Event) {
		event(e)
		switch {
		case e.Kind == server.KindState && e.Message == string(server.StateStopping):
			stopping = time.Now()
		case e.Kind == server.KindState && e.Message == string(server.StateStopped):
			say("  stopped, its port and GPU memory free, after %v", time.Since(stopping).Round(time.Millisecond))
		}
	})))
	if err != nil {
		return err
	}
	fmt.Println(run.Summary)
	fmt.Println("The run in windows of 3 s:")
	if err := metrics.WriteWindows(os.Stdout, run.Collector.Windows(3*time.Second)); err != nil {
		return err
	}
	for _, e := range run.Collector.Events() {
		fmt.Printf("event at %.3f s: %s %v\n", e.At.Seconds(), e.Kind, e.Data)
	}
	return nil
}

// outOfMemory starts a second server on a GPU that is full: refused by the inventory, and without one diagnosed.
func outOfMemory(ctx context.Context, l server.Launcher, devices *gpu.Devices, cfg server.Config) error {
	say("== a server on a GPU that another has filled")
	cfg.GPUs = []int{0}
	cfg.Args = withArg(cfg.Args, "skip_server_warmup", true)
	cfg.CUDAGraphBackendDecode, cfg.CUDAGraphBackendPrefill = "disabled", "disabled" // a faster start
	logs := filepath.Join(*out, "oom")
	if err := os.MkdirAll(logs, 0o777); err != nil {
		return err
	}
	first, err := server.NewServerManager(l, server.WithGPUs(devices), server.WithEvents(event))
	if err != nil {
		return err
	}
	defer stopAll(ctx, first)
	if _, err := first.Launch(ctx, cfg); err != nil {
		return err
	}
	blind, err := server.NewServerManager(l, server.WithEvents(event), server.WithLogFolder(logs))
	if err != nil {
		return err
	}
	defer stopAll(ctx, blind)
	sighted, err := server.NewServerManager(l, server.WithGPUs(devices), server.WithEvents(event))
	if err != nil {
		return err
	}
	start := time.Now()
	_, err = sighted.Launch(ctx, cfg)
	if taken := (*server.GPUError)(nil); !errors.As(err, &taken) {
		return fmt.Errorf("a full GPU was not refused: %v", err)
	}
	say("with an inventory refused after %v: %v", time.Since(start).Round(time.Millisecond), err)
	start = time.Now()
	cfg.MemFractionStatic = 0.999
	_, err = blind.Launch(ctx, cfg)
	return diagnosed(err, start)
}

// portClash takes a server's port while its model loads.
func portClash(ctx context.Context, l server.Launcher, devices *gpu.Devices, cfg server.Config) error {
	say("== a port that is in use")
	logs := filepath.Join(*out, "port")
	if err := os.MkdirAll(logs, 0o777); err != nil {
		return err
	}
	cfg.GPUs, cfg.Port = []int{0}, 31007
	cfg.Args = withArg(cfg.Args, "skip_server_warmup", true)
	cfg.CUDAGraphBackendDecode, cfg.CUDAGraphBackendPrefill = "disabled", "disabled"
	var held net.Listener
	m, err := server.NewServerManager(l, server.WithGPUs(devices), server.WithLogFolder(logs), server.WithEvents(func(e server.Event) {
		event(e)
		if e.Phase != nil && e.Phase.Name == server.PhaseWeights && held == nil {
			var err error
			held, err = net.Listen("tcp", "127.0.0.1:31007")
			say("  took its port: %v", err)
		}
	}))
	if err != nil {
		return err
	}
	defer stopAll(ctx, m)
	start := time.Now()
	_, err = m.Launch(ctx, cfg)
	if err := diagnosed(err, start); err != nil {
		return err
	}
	if held == nil {
		return errors.New("the port was not taken")
	}
	start = time.Now()
	_, err = m.Launch(ctx, cfg)
	if clash := (*server.PortInUseError)(nil); !errors.As(err, &clash) {
		return fmt.Errorf("a port in use was not refused: %v", err)
	}
	say("beforehand refused after %v: %v", time.Since(start).Round(time.Millisecond), err)
	return held.Close()
}

func withArg(args server.Args, name string, value any) server.Args {
	out := server.Args{name: value}
	for k, v := range args {
		out[k] = v
	}
	return out
}

func diagnosed(err error, start time.Time) error {
	failure := (*server.FailureError)(nil)
	if !errors.As(err, &failure) {
		return fmt.Errorf("no diagnosis: %v", err)
	}
	say("diagnosed after %v: %s", time.Since(start).Round(time.Second), failure.Cause)
	fmt.Println(err)
	return nil
}

func stopAll(ctx context.Context, m *server.ServerManager) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := m.StopAll(ctx); err != nil {
		say("stop: %v", err)
	}
}
