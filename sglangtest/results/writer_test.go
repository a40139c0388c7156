package results

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

func TestFinishedRun(t *testing.T) {
	m, err := NewResultManager(t.TempDir(), WithCSV())
	require.NoError(t, err)
	sim := metrics.Simulation{Profile: "h100-llama8b", Calibrated: "H100", KnownError: "TTFT 3 %"}
	w, err := m.Create("first", Meta{Label: "a label", Config: map[string]any{"request_rate": "inf"}, Seed: math.MaxUint64})
	require.NoError(t, err)
	require.NoError(t, w.AddSimulation(sim))
	require.NoError(t, w.AddSimulation(sim))
	engine := metrics.EngineRecord{Engine: metrics.Engine{Source: "server-0", Version: "0.5.23", Model: "llama", URL: "http://gpu-7:30000"},
		MaxRunningRequests: 256, GPUs: []metrics.GPUName{{Index: 3, Name: "NVIDIA H100 80GB HBM3"}}, Command: []string{"python", "-m", "sglang.launch_server"},
		ServerInfo: map[string]any{"page_size": 16.0}}
	require.NoError(t, w.AddEngine(engine))
	require.NoError(t, w.AddEngine(engine))
	clock := load.NewClock(time.Now())
	plan := load.Plan{Dataset: "random", Arrivals: "poisson 8/s", Seed: 9, Requests: 2}
	require.NoError(t, w.Begin(load.Info{Plan: plan, MaxConcurrency: 5}))
	w.Start(clock)

	want := []load.Result{sampleResult(), {ID: 8, Outcome: load.OutcomeRefused, Message: "no, \"never\""}}
	for _, r := range want {
		w.Arrived(&load.Request{ID: r.ID, Arrival: r.Arrival})
		w.Result(&r)
	}
	faulty := metrics.Simulation{Profile: "h100-llama8b with a fault", Calibrated: "not with it", KnownError: "not measured"}
	require.NoError(t, w.ReplaceSimulation(sim, faulty))
	require.ErrorContains(t, w.ReplaceSimulation(sim, faulty), "no simulation of the run")
	require.ErrorContains(t, w.AddEngine(engine), "before the run starts")
	require.NoError(t, w.End())
	require.NoError(t, w.End(), "End may be called again")

	run, err := m.Open("first")
	require.NoError(t, err)
	require.Contains(t, []State{StateRunning, StateUnknown}, run.State, "End alone does not end the run")
	require.ErrorIs(t, run.Summary(new(any)), fs.ErrNotExist)

	w.Event(metrics.Event{At: 1, Kind: "check", Data: map[string]any{"passed": true}}) // a verdict comes after End
	require.NoError(t, w.Finish(map[string]int{"completed": 2}))

	run, err = m.Open("first")
	require.NoError(t, err)
	require.Equal(t, StateFinished, run.State)
	require.Equal(t, "a label", run.Meta.Label)
	require.Equal(t, uint64(math.MaxUint64), run.Meta.Seed)
	require.Equal(t, []metrics.Simulation{faulty}, run.Meta.Simulated)
	require.Equal(t, []metrics.EngineRecord{engine}, run.Engines)
	require.True(t, run.Started.Equal(clock.Start()))
	require.False(t, run.Ended.Before(run.Created))
	require.Equal(t, &plan, run.Plan)
	require.Equal(t, 5, run.MaxConcurrency)
	require.Empty(t, run.Truncated)
	require.NotEmpty(t, run.Environment.GoVersion)
	require.NotZero(t, run.Environment.CPUs)
	require.True(t, (run.Environment.Git == nil) != (run.Environment.GitError == ""))
	require.Equal(t, want, collect(t, run.Requests()))
	require.Equal(t, []Arrival{{ID: 7, Arrival: 1000}, {ID: 8}}, collect(t, run.Arrivals()))
	require.Equal(t, "check", collect(t, run.Events())[0].Kind)
	unfinished, err := run.Unfinished()
	require.NoError(t, err)
	require.Empty(t, unfinished)
	var config, summary map[string]any
	require.NoError(t, run.Config(&config))
	require.Equal(t, "inf", config["request_rate"])
	require.NoError(t, run.Summary(&summary))
	require.Equal(t, 2.0, summary["completed"])

	csv, err := os.ReadFile(filepath.Join(run.Dir, csvFile))
	require.NoError(t, err)
	var direct strings.Builder
	require.NoError(t, run.WriteCSV(&direct))
	require.Equal(t, direct.String(), string(csv))

	// What ran once can be run again from what was stored.
	again, err := m.Create("again", run.Meta)
	require.NoError(t, err)
	require.NoError(t, again.Fail(errForTest, nil))

	// Nothing but the documented files is left behind.
	files, err := filepath.Glob(filepath.Join(run.Dir, "*"))
	require.NoError(t, err)
	require.Len(t, files, 10)

	// Whatever comes too late is not lost in silence.
	w.Result(&want[0])
	require.ErrorIs(t, w.End(), errClosed)
	require.Error(t, w.Finish(nil))
	require.Error(t, w.Fail(errForTest, nil))
	require.Len(t, collect(t, run.Requests()), 2)
}

func TestFailedRun(t *testing.T) {
	for _, began := range []bool{false, true} {
		dir := t.TempDir()
		w, err := Create(dir, Meta{})
		require.NoError(t, err)
		require.Error(t, w.Finish(nil), "a run that never began cannot finish")
		require.Error(t, w.Fail(nil, nil))
		if began {
			require.NoError(t, w.Begin(load.Info{}))
			w.Start(load.NewClock(time.Now()))
			w.Result(&load.Result{ID: 1})
		}
		require.NoError(t, w.Fail(errForTest, nil))
		run, err := Open(dir)
		require.NoError(t, err)
		require.Equal(t, StateFailed, run.State)
		require.Equal(t, errForTest.Error(), run.Reason)
		require.Equal(t, !began, run.Started.IsZero())
		require.Equal(t, began, len(collect(t, run.Requests())) == 1)
		require.Error(t, w.Begin(load.Info{}))
	}
}

func TestStorageFaults(t *testing.T) {
	t.Run("an event that JSON cannot hold", func(t *testing.T) {
		w := begin(t, t.TempDir())
		w.Event(metrics.Event{Kind: "x", Data: map[string]any{"v": math.NaN()}})
		require.ErrorContains(t, w.Finish("summary"), "a record cannot be stored")
		run, err := Open(w.Dir())
		require.NoError(t, err)
		require.Equal(t, StateFailed, run.State)
		require.Contains(t, run.Reason, "a record cannot be stored")
	})
	t.Run("a summary that JSON cannot hold", func(t *testing.T) {
		w := begin(t, t.TempDir())
		require.ErrorContains(t, w.Finish(math.NaN()), "summary")
		run, err := Open(w.Dir())
		require.NoError(t, err)
		require.Equal(t, StateFailed, run.State)
	})
	t.Run("a record before Begin", func(t *testing.T) {
		w, err := Create(t.TempDir(), Meta{})
		require.NoError(t, err)
		w.Result(&load.Result{})
		require.ErrorIs(t, w.End(), errNotBegun)
		require.ErrorIs(t, w.Fail(errForTest, nil), errNotBegun)
	})
	t.Run("a write that fails", func(t *testing.T) {
		w := begin(t, t.TempDir())
		w.Result(&load.Result{ID: 1})
		w.flush()
		file := w.requests.file
		readOnly, err := os.Open(file.Name()) // every write to it fails
		require.NoError(t, err)
		w.flushing.Lock()
		w.requests.file = readOnly
		w.flushing.Unlock()
		require.NoError(t, file.Close())
		w.Result(&load.Result{ID: 2})
		w.Arrived(&load.Request{ID: 2})
		failed := <-w.Failed() // while the run goes on
		require.ErrorContains(t, failed, "storing")
		ended := w.End()
		require.Equal(t, failed, ended)
		require.NoError(t, w.Fail(fmt.Errorf("run: %w", ended), nil), "the reason says it")
		run, err := Open(w.Dir())
		require.NoError(t, err)
		require.Equal(t, StateFailed, run.State)
		unfinished, err := run.Unfinished()
		require.NoError(t, err)
		require.Equal(t, []Arrival{{ID: 2}}, unfinished, "other files go on")
	})
}

func TestCreateRefuses(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	m, err := NewResultManager(root)
	require.NoError(t, err)

	w, err := m.Create("run", Meta{})
	require.NoError(t, err)
	before, err := os.ReadFile(filepath.Join(root, "run", runFile))
	require.NoError(t, err)
	_, err = m.Create("run", Meta{})
	require.ErrorIs(t, err, fs.ErrExist)
	require.ErrorContains(t, err, "already holds a run")
	require.NoError(t, w.Fail(errForTest, nil))
	_, err = m.Create("run", Meta{})
	require.ErrorIs(t, err, fs.ErrExist)
	after, err := os.ReadFile(filepath.Join(root, "run", eventsFile))
	require.NoError(t, err)
	require.Empty(t, after)
	require.NotEmpty(t, before)

	// A folder that has one of the files is left as it was.
	partial := filepath.Join(root, "partial")
	require.NoError(t, os.Mkdir(partial, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(partial, samplesFile), []byte("x"), 0o644))
	_, err = m.Create("partial", Meta{})
	require.ErrorIs(t, err, fs.ErrExist)
	left, err := os.ReadDir(partial)
	require.NoError(t, err)
	require.Len(t, left, 1)

	_, err = NewResultManager(filepath.Join(file, "below"))
	require.ErrorContains(t, err, "root folder")
	_, err = Create(filepath.Join(file, "below"), Meta{})
	require.ErrorContains(t, err, "run folder")
	_, err = m.Create("file", Meta{})
	require.ErrorContains(t, err, "run folder")
	for _, name := range []string{"", ".", "..", "a/b", "/a", "a/"} {
		_, err = m.Create(name, Meta{})
		require.ErrorContains(t, err, "no name for a run", name)
	}
	_, err = NewResultManager("")
	require.Error(t, err)
	_, err = Create("", Meta{})
	require.Error(t, err)

	// All faults at once, before anything is made.
	bad := filepath.Join(root, "bad")
	_, err = Create(bad, Meta{Config: math.NaN(), Simulated: []metrics.Simulation{{}}})
	require.ErrorContains(t, err, "config")
	require.ErrorContains(t, err, "profile")
	require.NoDirExists(t, bad)
}

func TestReadOnlyFolder(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("permission bits do not bind root")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o555))
	_, err := Create(dir, Meta{})
	require.ErrorContains(t, err, "not writable")
}

func TestOnlyOneWriterGetsAFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	writers := make([]*Writer, 8)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() { writers[i], _ = Create(dir, Meta{}) })
	}
	wg.Wait()
	var got []*Writer
	for _, w := range writers {
		if w != nil {
			got = append(got, w)
		}
	}
	require.Len(t, got, 1)
	require.NoError(t, got[0].Fail(errForTest, nil))
	_, err := Open(dir)
	require.NoError(t, err)
}

// A record that is 250 ms old has been handed to the operating system and is safe from the process's death.
func TestFlushInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := begin(t, t.TempDir())
		w.Result(&load.Result{ID: 1})
		count := func() int {
			run, err := Open(w.Dir())
			require.NoError(t, err)
			return len(collect(t, run.Requests()))
		}
		synctest.Wait()
		require.Zero(t, count())
		time.Sleep(250 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, 1, count())
		// More than may wait is written without waiting for the interval.
		w.Result(&load.Result{ID: 2, Text: strings.Repeat("x", flushBytes)})
		synctest.Wait()
		require.Equal(t, 2, count())
		require.NoError(t, w.Finish(nil))
	})
}

func TestConcurrentWriters(t *testing.T) {
	const workers, each = 8, 500
	w := begin(t, t.TempDir())
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for i := range each {
				r := benchResult()
				r.ID = worker*each + i
				w.Arrived(&load.Request{ID: r.ID})
				w.Result(&r)
				w.Sample(metrics.Sample{Source: "server", Values: map[string]float64{"a": float64(i)}})
				w.Event(metrics.Event{Kind: "tick"})
			}
		})
	}
	for range 5 { // a reader beside the writers sees no result without its arrival
		w.flush()
		run, err := Open(w.Dir())
		require.NoError(t, err)
		arrived := make(map[int]bool)
		for _, a := range collect(t, run.Arrivals()) {
			arrived[a.ID] = true
		}
		for _, r := range collect(t, run.Requests()) {
			require.True(t, arrived[r.ID])
		}
	}
	wg.Wait()
	require.NoError(t, w.Finish(nil))
	run, err := Open(w.Dir())
	require.NoError(t, err)
	seen := make(map[int]bool)
	want := benchResult()
	for r, err := range run.Requests() {
		require.NoError(t, err)
		require.False(t, seen[r.ID])
		seen[r.ID] = true
		want.ID = r.ID
		require.Equal(t, want, r)
	}
	require.Len(t, seen, workers*each)
	require.Len(t, collect(t, run.Arrivals()), workers*each)
	require.Len(t, collect(t, run.Samples()), workers*each)
	require.Len(t, collect(t, run.Events()), workers*each)
}

func TestLateEventsRaceWithFinish(t *testing.T) {
	w := begin(t, t.TempDir())
	require.NoError(t, w.End())
	var wg sync.WaitGroup
	const n = 100
	wg.Go(func() {
		for range n {
			w.Event(metrics.Event{Kind: "late"})
		}
	})
	finished := w.Finish(nil)
	wg.Wait()
	run, err := Open(w.Dir())
	require.NoError(t, err)
	// Every event is on disk or has been reported.
	if len(collect(t, run.Events())) < n {
		require.ErrorIs(t, w.End(), errClosed)
	} else {
		require.NoError(t, finished)
	}
}

func TestRunRecordIsReadable(t *testing.T) {
	w := begin(t, t.TempDir())
	w.dating.Wait()
	var record map[string]any
	data, err := os.ReadFile(filepath.Join(w.Dir(), runFile))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &record))
	require.Equal(t, "running", record["state"])
	require.Nil(t, record["simulated"])
	require.Nil(t, record["ended"])
	_, err = time.Parse(time.RFC3339Nano, record["started"].(string))
	require.NoError(t, err)
	require.NoError(t, w.Finish(nil))
}
