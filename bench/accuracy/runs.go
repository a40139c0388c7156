package main

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/sglangtest/harness/sglangtest/sim"
)

// A gpu is what was measured on one kind of GPU. Its first model is the one whose profile is validated; the
// runs of the others, each replayed with a profile calibrated for its own model, say as much of the method's
// error.
type gpu struct {
	name   string
	models []model
}

// A model is one model on a GPU: its calibration and runs.
type model struct {
	base        sim.Profile
	calibration string // folder
	runs        []recording
}

// A recording is one run of one engine.
type recording struct {
	name   string // as it is to be called; empty: as in the file
	file   string
	worker string // the engine; empty: the only one
	shared int    // prompt tokens that those of a group share
}

func gpus() []gpu {
	h100 := sim.H100Llama8B()
	// Sizes as the servers reported them.
	h200, small := h100, h100
	h200.Name, h200.GPU, h200.KVTokens = "h200-llama-3.1-8b", "NVIDIA H200", 906_051
	small.Name, small.ModelPath, small.GPU, small.KVTokens = "h200-llama-3b", "a Llama of 3.6 G parameters", "NVIDIA H200", 1_112_452
	h200.Calibrated = "SGLang 0.5.15.post1, Llama-3.1-8B shape (random weights, bf16), one NVIDIA H200, 2026-11-30"
	small.Calibrated = "SGLang 0.5.15.post1, a 3B Llama shape (random weights, bf16), one NVIDIA H200, 2026-11-30"

	routed := func(file string, shared int, workers ...string) (out []recording) {
		for _, w := range workers {
			out = append(out, recording{file: file, worker: w, shared: shared})
		}
		return out
	}
	join := func(lists ...[]recording) (all []recording) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	return []gpu{
		{"H100", []model{{h100, "sglang-h100/calibration", join(
			[]recording{{file: "sglang-h100/traces/trace_p050.csv"}, {file: "sglang-h100/traces/trace_p080.csv"}},
			routed("sglang-h100-routing/trace_conv_random.csv", 0, "w0", "w1"),
			routed("sglang-h100-routing/trace_prefix_rr.csv", 3000, "w0", "w1"),
			[]recording{{file: benchServing}},
		)}}},
		{"H200", []model{
			{h200, "sglang-h200/calibration", join(
				[]recording{{file: "sglang-h200/traces/trace_p050.csv.gz"}, {file: "sglang-h200/traces/trace_sat.csv.gz"},
					{file: "sglang-h200/traces/trace_code.csv.gz"}, {file: "sglang-h200/traces/trace_prefix.csv.gz", shared: 3000}},
				routed("sglang-h200-routing/trace_conv_rr.csv.gz", 0, "w0", "w1"),
				routed("sglang-h200-routing/trace_prefix_rr.csv.gz", 3000, "w0", "w1"),
				routed("sglang-h200-routing/trace_prefix_ca.csv.gz", 3000, "w0", "w1"),
				routed("sglang-h200-routing/trace_wide_rr.csv.gz", 3000, "w0", "w1"),
				// The engine that was not killed; the other's requests are not those of an engine that works.
				routed("sglang-h200-routing/trace_kill_rr.csv.gz", 0, "w0"),
			)},
			{small, "sglang-h200-shapes/3b/calibration", []recording{{name: "3b p050", file: "sglang-h200-shapes/3b/traces/trace_p050.csv.gz"},
				{name: "3b sat", file: "sglang-h200-shapes/3b/traces/trace_sat.csv.gz"}, {name: "3b code", file: "sglang-h200-shapes/3b/traces/trace_code.csv.gz"}}},
		}},
	}
}

const benchServing = "sglang-h100/bench_serving/bench_serving.jsonl.gz"

func (r recording) read(data string) (sim.MeasuredRun, error) {
	path := filepath.Join(data, filepath.FromSlash(r.file))
	if r.file == benchServing {
		return sim.ReadBenchServing(path, filepath.Join(data, "sglang-h100", "logs", "traces_run.stderr.log.gz"), "2026-11-24 17:22:00", "2026-11-24 17:22:41")
	}
	run, err := sim.ReadTrace(path, r.worker, r.shared)
	if r.name != "" {
		run.Name = r.name
	}
	return run, err
}

// validated calibrates the profiles, replays all runs, and returns the first model's profile with what they
// say of it.
func (g gpu) validated(w io.Writer, data string) (sim.Profile, error) {
	var first sim.Profile
	var report sim.CalibrationReport
	var replayed []sim.ValidationReport
	for i, m := range g.models {
		measured, err := sim.ReadMeasurements(filepath.Join(data, filepath.FromSlash(m.calibration)))
		if err != nil {
			return first, err
		}
		measured.Base, measured.Handover = m.base, time.Millisecond
		p, calibration, err := sim.Calibrate(measured)
		if err != nil {
			return first, err
		}
		fmt.Fprintf(w, "Profile %s, calibrated on: %s\n\n%v\n", p.Name, p.Calibrated, calibration)
		if i == 0 {
			first, report = p, calibration
		}
		for _, r := range m.runs {
			run, err := r.read(data)
			if err != nil {
				return first, err
			}
			v, err := sim.Validate(p, run)
			if err != nil {
				return first, err
			}
			replayed = append(replayed, v)
			fmt.Fprintln(w, v)
		}
	}
	return sim.Validated(first, report, replayed), nil
}
