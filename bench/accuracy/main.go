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

// accuracy prints all comparisons and returns the calibrated profile of the H100 with its validation.
func accuracy(w io.Writer, data string) (sim.Profile, error) {
	var h100 sim.Profile
	for _, g := range gpus() {
		p, err := g.validated(w, data)
		if err != nil {
			return p, err
		}
		if g.name == "H100" {
			h100 = p
			if err := other(w, data, p); err != nil {
				return p, err
			}
		}
		fmt.Fprintf(w, "\n%s: known error of the profile: %s\n\n%v\n", g.name, p.KnownError, leaveOneOut(p.Validation))
	}
	return h100, nil
}

// other prints what was measured on the H100 without a record of each request.
func other(w io.Writer, data string, p sim.Profile) error {
	h100 := filepath.Join(data, "sglang-h100")
	limit, err := sim.ReadLimitRun(filepath.Join(h100, "dynamic_limit", "dynamic_limit.jsonl"))
	if err != nil {
		return err
	}
	r, err := sim.ValidateLimit(p, limit)
	if err != nil {
		return err
	}
	fmt.Fprintln(w, r)
	// The requests of p050 at once, with ramp and tail.
	const measured = 19.65
	run, err := sim.ReadTrace(filepath.Join(h100, "traces", "trace_p050.csv"), "", 0)
	if err != nil {
		return err
	}
	rate, err := sim.BurstRate(p, run)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "overload: %d requests at once: %.2f requests/s, simulated %.2f (%+.1f %%)\n", len(run.Requests), measured, rate, 100*(rate/measured-1))
	return nil
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
