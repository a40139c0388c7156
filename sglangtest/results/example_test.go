package results_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/results"
)

// Reading a run back: what it was, what became of its requests, and which never ended.
func ExampleOpen() {
	dir := exampleRun()
	defer os.RemoveAll(filepath.Dir(dir))

	run, err := results.Open(dir)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(run.Meta.Label, "-", run.State)
	for res, err := range run.Requests() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(res.ID, res.Outcome, res.TotalLatency())
	}
	unfinished, err := run.Unfinished()
	if err != nil {
		log.Fatal(err)
	}
	for _, a := range unfinished {
		fmt.Println("unfinished:", a.ID, a.Arrival)
	}
	// Output:
	// low rate - failed
	// 0 ok 250ms
	// unfinished: 1 1s
}

// exampleRun stores a run of two requests, of which one never ends. In an experiment, load.Run and a
// metrics.Collector call everything between Create and Fail or Finish.
func exampleRun() string {
	root, err := os.MkdirTemp("", "runs")
	if err != nil {
		log.Fatal(err)
	}
	runs, err := results.NewResultManager(root)
	if err != nil {
		log.Fatal(err)
	}
	w, err := runs.Create("rate-8", results.Meta{Label: "low rate", Config: map[string]any{"request_rate": 8}, Seed: 7})
	if err != nil {
		log.Fatal(err)
	}
	if err := w.Begin(load.Info{}); err != nil {
		log.Fatal(err)
	}
	w.Start(load.NewClock(time.Now()))
	w.Arrived(&load.Request{ID: 0})
	w.Arrived(&load.Request{ID: 1, Arrival: time.Second})
	w.Result(&load.Result{ID: 0, Completion: 250 * time.Millisecond, Outcome: load.OutcomeOK})
	if err := w.Fail(fmt.Errorf("server-0 died"), nil); err != nil {
		log.Fatal(err)
	}
	return w.Dir()
}
