package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// SchemaVersion is the version of the folder's format. Open refuses every other version.
const SchemaVersion = 2

// The files of a run folder. See the package comment for what each holds.
const (
	runFile         = "run.json"
	configFile      = "config.json"
	environmentFile = "environment.json"
	enginesFile     = "engines.json"
	summaryFile     = "summary.json"
	csvFile         = "requests.csv"

	requestsFile = "requests.jsonl"
	arrivalsFile = "arrivals.jsonl"
	samplesFile  = "samples.jsonl"
	eventsFile   = "events.jsonl"

	// reserveFile keeps room on the disk for the last run.json, which has to be written however full it is.
	reserveFile  = "reserve.tmp"
	reserveBytes = 64 << 10
)

// journalFiles lists the files of lines in the order in which their buffers are taken; see [Writer.flush].
var journalFiles = [...]string{requestsFile, arrivalsFile, samplesFile, eventsFile}

// Meta says what a run is, before it starts. The zero value is usable.
type Meta struct {
	// Label is free text for people; it need not be unique.
	Label string
	// Config is the experiment's configuration: any value that encoding/json can write. In a run that [Open]
	// returns it is a json.RawMessage.
	Config any
	// Seed is the experiment's seed.
	Seed uint64
	// Simulated names what stood in for real engines, one entry for each profile; empty for a run that
	// measures real engines only.
	Simulated []metrics.Simulation
}

func checkSimulation(s metrics.Simulation) error {
	if s.Profile == "" {
		return errors.New("results: a simulation needs the name of its profile")
	}
	return nil
}

// A State says how far a run came.
type State string

// The states. Only the first three are written to a run folder; the others are what [Open] concludes.
const (
	// StateRunning: the process that writes the run is alive.
	StateRunning State = "running"
	// StateFinished: [Writer.Finish] succeeded, everything is on disk.
	StateFinished State = "finished"
	// StateFailed: the run ended with an error, or storing it did; see Run.Reason.
	StateFailed State = "failed"
	// StateInterrupted: the process that wrote the run ended without saying how the run ended.
	StateInterrupted State = "interrupted"
	// StateUnknown: the run has not been ended, and from here it cannot be known whether its writer is alive:
	// it runs or ran on another machine, in another PID namespace, before a reboot, or not on Linux.
	StateUnknown State = "running or interrupted"
)

// runRecord is the content of run.json.
type runRecord struct {
	SchemaVersion  int                  `json:"schema_version"`
	State          State                `json:"state"`
	Reason         string               `json:"reason,omitempty"`
	Label          string               `json:"label"`
	Created        time.Time            `json:"created"`
	Started        *time.Time           `json:"started"`
	Ended          *time.Time           `json:"ended"`
	Simulated      []metrics.Simulation `json:"simulated"`
	Plan           *load.Plan           `json:"plan"`
	MaxConcurrency int                  `json:"max_concurrency"`
	Writer         process              `json:"writer"`
	ChunksStored   bool                 `json:"chunks_stored"`
	Sizes          map[string]int64     `json:"size_bytes,omitempty"`
}

func (r runRecord) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("results: %s: %w", runFile, err)
	}
	return writeFile(dir, runFile, append(data, '\n'))
}
