// Command accuracy shows how well the simulated engine agrees with a real one. It calibrates the profile
// h100-llama-3.1-8b on the recordings of a real server, replays recorded runs of that server in virtual time, to none
// of which anything was fitted, and prints the errors per run.
//
//	go run ./bench/accuracy -data ../shared/data
//
// With -write it stores the profile that it calibrated, with the errors as its known error.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sglangtest/harness/sglangtest/sim"
)

func main() {
	data := flag.String("data", filepath.Join("..", "shared", "data"), "`folder` of the recordings")
	write := flag.String("write", "", "store the profile in this `file`, sglangtest/sim/profiles/h100-llama-3.1-8b.json")
	flag.Parse()
	p, err := accuracy(os.Stdout, *data)
	if err == nil && *write != "" {
		err = store(p, *write)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// accuracy prints all comparisons and returns the calibrated profile with its known error.
func accuracy(w io.Writer, data string) (sim.Profile, error) {
	h100, routing := filepath.Join(data, "sglang-h100"), filepath.Join(data, "sglang-h100-routing")
	m, err := sim.ReadMeasurements(filepath.Join(h100, "calibration"))
	if err != nil {
		return sim.Profile{}, err
	}
	m.Base, m.Handover = sim.H100Llama8B(), time.Millisecond
	p, calibration, err := sim.Calibrate(m)
	if err != nil {
		return p, err
	}
	fmt.Fprintf(w, "Profile %s, calibrated on: %s\n\n%v\n", p.Name, p.Calibrated, calibration)

	trace := func(folder, name, worker string, shared int) func() (sim.MeasuredRun, error) {
		return func() (sim.MeasuredRun, error) {
			return sim.ReadTrace(filepath.Join(folder, "trace_"+name+".csv"), worker, shared)
		}
	}
	p050 := trace(filepath.Join(h100, "traces"), "p050", "", 0)
	var reports []sim.ValidationReport
	for _, read := range []func() (sim.MeasuredRun, error){
		p050,
		trace(filepath.Join(h100, "traces"), "p080", "", 0),
		trace(routing, "conv_random", "w0", 0),
		trace(routing, "conv_random", "w1", 0),
		trace(routing, "prefix_rr", "w0", 3000),
		trace(routing, "prefix_rr", "w1", 3000),
		func() (sim.MeasuredRun, error) {
			return sim.ReadBenchServing(filepath.Join(h100, "bench_serving", "bench_serving.jsonl.gz"),
				filepath.Join(h100, "logs", "traces_run.stderr.log.gz"), "2026-11-24 17:22:00", "2026-11-24 17:22:41")
		},
	} {
		run, err := read()
		if err != nil {
			return p, err
		}
		r, err := sim.Validate(p, run)
		if err != nil {
			return p, err
		}
		reports = append(reports, r)
		fmt.Fprintln(w, r)
	}
	p.KnownError = sim.KnownError(calibration, reports)

	limit, err := sim.ReadLimitRun(filepath.Join(h100, "dynamic_limit", "dynamic_limit.jsonl"))
	if err != nil {
		return p, err
	}
	r, err := sim.ValidateLimit(p, limit)
	if err != nil {
		return p, err
	}
	fmt.Fprintln(w, r)

	// The recordings state one overload: the requests of p050 at once, with ramp and tail.
	const measured = 19.65
	run, err := p050()
	if err != nil {
		return p, err
	}
	rate, err := sim.BurstRate(p, run)
	if err != nil {
		return p, err
	}
	fmt.Fprintf(w, "overload: %d requests at once: %.2f requests/s, simulated %.2f (%+.1f %%)\n", len(run.Requests), measured, rate, 100*(rate/measured-1))
	fmt.Fprintf(w, "\nKnown error of the profile: %s\n", p.KnownError)
	return p, nil
}

func store(p sim.Profile, path string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", " "); err != nil {
		return err
	}
	out.WriteByte('\n')
	return os.WriteFile(path, out.Bytes(), 0o644)
}
