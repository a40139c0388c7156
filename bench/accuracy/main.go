// Command accuracy calibrates a simulated engine on recordings of a real server, replays open-loop runs of that server
// in virtual time, and prints the errors.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/sglangtest/harness/sglangtest/sim"
)

func main() {
	data := flag.String("data", "../shared/data", "`folder` of the recordings")
	flag.Parse()
	if err := run(*data); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(data string) error {
	m, err := sim.ReadMeasurements(data + "/sglang-h100/calibration")
	if err != nil {
		return err
	}
	m.Base, m.Handover = sim.H100Llama8B(), 1e6
	p, report, err := sim.Calibrate(m)
	if err != nil {
		return err
	}
	fmt.Printf("%+v\n", p)
	fmt.Println(report)
	show := func(rec sim.Recording, err error) {
		if err != nil {
			fmt.Println(err)
			return
		}
		r, err := sim.Validate(p, rec)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(r)
	}
	for _, f := range []string{"sglang-h100/traces/trace_p050.csv", "sglang-h100/traces/trace_p080.csv"} {
		show(sim.ReadTrace(data+"/"+f, "", 0))
	}
	for _, w := range []string{"w0", "w1"} {
		show(sim.ReadTrace(data+"/sglang-h100-routing/trace_conv_random.csv", w, 0))
	}
	for _, w := range []string{"w0", "w1"} {
		show(sim.ReadTrace(data+"/sglang-h100-routing/trace_prefix_rr.csv", w, 3000))
	}
	show(sim.ReadBenchServing(data+"/sglang-h100/bench_serving/bench_serving.jsonl.gz", data+"/sglang-h100/logs/traces_run.stderr.log.gz", "2026-11-24 17:22:00", "2026-11-24 17:22:41"))
	return nil
}
