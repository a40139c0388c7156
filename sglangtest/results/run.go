package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A Run is a run folder as it was at the moment of [Open]: if the run still goes on, what comes later is not
// seen. It holds no open files, and its methods are safe for concurrent use.
type Run struct {
	Dir  string
	Meta Meta // Config is a json.RawMessage
	// State says how far the run came, and Reason why it failed.
	State  State
	Reason string
	// Created, Started and Ended are wall-clock times. Started is what offset 0 of the run's time line stands
	// for; it is zero if the run never began. Ended is zero unless the run finished or failed.
	Created, Started, Ended time.Time
	// Plan describes the workload; nil if the run never began. MaxConcurrency is the cap, 0 for none.
	Plan           *load.Plan
	MaxConcurrency int
	Environment    Environment
	// Engines are the servers that were measured, as they were at the run's start; nil if the run never began, or nothing
	// declared them.
	Engines []metrics.EngineRecord
	// ChunksStored says whether results have the chunks of streamed answers: false of a run that was stored WithoutChunks. What
	// is computed from them (ITL, tokens over time) cannot be had then, and TPOT only from FirstToken, FirstTokens and LastToken.
	ChunksStored bool
	// Truncated lists the files that end in an incomplete line, which is not read. After an interruption that
	// is what had not been written completely; in a running run the rest may follow.
	Truncated []Truncation

	requests, arrivals, samples, events lineFile
}

// A Truncation says that a file ends in an incomplete line.
type Truncation struct {
	File  string // such as "requests.jsonl"
	Bytes int64  // length of the part that is there
}

// An Arrival is a request that arrived.
type Arrival struct {
	ID      int
	Arrival time.Duration // its intended arrival, an offset from the run's start

	// What the request was given beside its prompt, as in [load.Request]; zero values stand for none.

	Priority              *int
	Deadline              time.Duration
	Tenant, Session, LoRA string
	Rank                  *int
}

// Open reads the run in the folder dir, whether it finished, failed, was interrupted or still goes on. It
// reads no requests; the iterators do, and find what is wrong with them. If dir holds no run the error wraps
// [fs.ErrNotExist].
func Open(dir string) (*Run, error) {
	record, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	if record.State == StateRunning {
		switch record.Writer.liveness() {
		case unknown:
			record.State = StateUnknown
		case dead:
			// The writer may have ended the run between the two looks.
			if record, err = readRecord(dir); err != nil {
				return nil, err
			}
			if record.State == StateRunning {
				record.State = StateInterrupted
			}
		}
	}
	r := &Run{
		Dir:            dir,
		Meta:           Meta{Label: record.Label, Simulated: record.Simulated},
		State:          record.State,
		Reason:         record.Reason,
		Created:        record.Created,
		Plan:           record.Plan,
		MaxConcurrency: record.MaxConcurrency,
		ChunksStored:   record.ChunksStored,
	}
	if record.Started != nil {
		r.Started = *record.Started
	}
	if record.Ended != nil {
		r.Ended = *record.Ended
	}
	var config json.RawMessage
	if err := readJSON(dir, configFile, &config); err != nil {
		return nil, err
	}
	r.Meta.Config = config
	if err := readJSON(dir, environmentFile, &r.Environment); err != nil {
		return nil, err
	}
	r.Meta.Seed = r.Environment.Seed
	if err := readJSON(dir, enginesFile, &r.Engines); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// In this order no result is seen without its arrival, even while the run goes on.
	for i, into := range []*lineFile{&r.requests, &r.arrivals, &r.samples, &r.events} {
		name := journalFiles[i]
		f, torn, err := findLines(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("results: %w", err)
		}
		if want, known := record.Sizes[name]; known && want != f.size+torn {
			return nil, fmt.Errorf("results: %s has %d bytes but had %d when the run ended: it was changed since, or copied in part; copy it again",
				filepath.Join(dir, name), f.size+torn, want)
		}
		if torn > 0 {
			r.Truncated = append(r.Truncated, Truncation{File: name, Bytes: torn})
		}
		*into = f
	}
	return r, nil
}

func readRecord(dir string) (runRecord, error) {
	var record runRecord
	err := readJSON(dir, runFile, &record)
	if errors.Is(err, fs.ErrNotExist) {
		return record, fmt.Errorf("results: %s holds no run: %w", dir, err)
	}
	if err != nil {
		return record, err
	}
	if record.SchemaVersion != SchemaVersion {
		return record, fmt.Errorf("results: %s has schema version %d, but this version of the harness reads %d",
			filepath.Join(dir, runFile), record.SchemaVersion, SchemaVersion)
	}
	switch record.State {
	case StateRunning, StateFinished, StateFailed:
		return record, nil
	}
	return record, fmt.Errorf("results: %s: state %q is none of running, finished and failed", filepath.Join(dir, runFile), record.State)
}

func readJSON(dir, name string, into any) error {
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("results: reading %s: %w", path, err)
	}
	return nil
}

// Requests yields the results in the order in which they were recorded, roughly that of completion. Memory
// does not grow with their number. The sequence ends after the first error, which names file and line.
func (r *Run) Requests() iter.Seq2[load.Result, error] { return lines(r.requests, decodeResult) }

// Chunks yields the results like [Run.Requests] does, for what is computed from their chunks: ITL, tokens over time. Of a run
// that was stored without chunks it yields nothing but an error that says so.
func (r *Run) Chunks() iter.Seq2[load.Result, error] {
	if r.ChunksStored {
		return r.Requests()
	}
	return func(yield func(load.Result, error) bool) {
		yield(load.Result{}, fmt.Errorf("results: %s was stored without chunks (results.WithoutChunks, or omit_chunks in the config): the times between tokens (ITL) and "+
			"tokens over time cannot be computed from it; its summary.json holds what was measured", r.Dir))
	}
}

// Arrivals yields the requests that arrived, in order of arrival, like [Run.Requests] does.
func (r *Run) Arrivals() iter.Seq2[Arrival, error] { return lines(r.arrivals, decodeArrival) }

// Samples yields the samples in the order in which they were recorded, like [Run.Requests] does.
func (r *Run) Samples() iter.Seq2[metrics.Sample, error] { return lines(r.samples, decodeSample) }

// Events yields the events in the order in which they were recorded, like [Run.Requests] does. Numbers in
// their Data are float64, as encoding/json makes them.
func (r *Run) Events() iter.Seq2[metrics.Event, error] { return lines(r.events, decodeEvent) }

// Unfinished returns the requests that arrived and of which no end was recorded, in order of arrival: those
// that were under way when the run was interrupted. It needs memory of about one bit per request and reads
// both files once. A request that was cancelled with its run has ended, with OutcomeCancelled.
func (r *Run) Unfinished() ([]Arrival, error) {
	ended := make(map[int]uint64) // a bit set in words of 64 ids
	for id, err := range lines(r.requests, decodeID) {
		if err != nil {
			return nil, err
		}
		ended[id>>6] |= 1 << (id & 63)
	}
	var unfinished []Arrival
	for a, err := range r.Arrivals() {
		if err != nil {
			return nil, err
		}
		if ended[a.ID>>6]&(1<<(a.ID&63)) == 0 {
			unfinished = append(unfinished, a)
		}
	}
	return unfinished, nil
}

// Config decodes the experiment's configuration into the value that into points to.
func (r *Run) Config(into any) error { return readJSON(r.Dir, configFile, into) }

// Summary decodes the summary into the value that into points to. If the run has none, because it did not
// finish or was given none, the error wraps [fs.ErrNotExist].
func (r *Run) Summary(into any) error { return readJSON(r.Dir, summaryFile, into) }
