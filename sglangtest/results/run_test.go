package results

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// The pace of TestKilledWriter's child, and how long it writes before it is killed. At this pace it is the
// interval that makes it flush, not the size of what waits.
const (
	childPace = 5 * time.Millisecond
	childTime = 1600 * time.Millisecond
)

// writeUntilKilled is the child of TestKilledWriter: it stores results and, after each, reports its id and
// the wall-clock time on standard output. Every tenth request never ends.
func writeUntilKilled(dir string) {
	w, err := Create(dir, Meta{Label: "killed"})
	if err == nil {
		err = w.Begin(load.Info{})
	}
	if err != nil {
		panic(err)
	}
	w.Start(load.NewClock(time.Now()))
	ticker := time.NewTicker(childPace)
	for id := 0; ; id++ {
		<-ticker.C
		r := sampleResult()
		r.ID = id
		w.Arrived(&load.Request{ID: id, Arrival: time.Duration(id)})
		if id%10 != 9 {
			w.Result(&r)
		}
		fmt.Println(id, time.Now().UnixNano())
	}
}

func TestKilledWriter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer cmd.Process.Kill() // if the test ends early; the child is gone otherwise

	type report struct {
		id int
		at time.Time
	}
	var reports []report
	var killed time.Time
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var id int
		var at int64
		if _, err := fmt.Sscan(lines.Text(), &id, &at); err != nil {
			require.False(t, killed.IsZero(), "bad report %q", lines.Text())
			break // the kill cut it short
		}
		reports = append(reports, report{id, time.Unix(0, at)})
		if killed.IsZero() && reports[len(reports)-1].at.Sub(reports[0].at) >= childTime {
			run, err := Open(dir)
			require.NoError(t, err)
			if runtime.GOOS == "linux" {
				require.Equal(t, StateRunning, run.State)
			} else {
				require.Equal(t, StateUnknown, run.State)
			}
			killed = time.Now()
			require.NoError(t, cmd.Process.Kill())
		}
	}
	require.Error(t, cmd.Wait())
	require.False(t, killed.IsZero(), "the child ended by itself")

	run, err := Open(dir)
	require.NoError(t, err)
	if runtime.GOOS == "linux" {
		require.Equal(t, StateInterrupted, run.State)
	}
	require.True(t, run.Ended.IsZero())
	stored := make(map[int]bool)
	want := sampleResult()
	for r, err := range run.Requests() {
		require.NoError(t, err)
		want.ID = r.ID
		require.Equal(t, want, r)
		stored[r.ID] = true
	}
	unfinished, err := run.Unfinished()
	require.NoError(t, err)
	open := make(map[int]bool)
	for _, a := range unfinished {
		require.Equal(t, time.Duration(a.ID), a.Arrival)
		open[a.ID] = true
	}
	old := 0
	for _, r := range reports {
		if killed.Sub(r.at) <= time.Second {
			continue
		}
		old++
		if r.id%10 == 9 {
			require.True(t, open[r.id], "request %d arrived and never ended, but is not named", r.id)
		} else {
			require.True(t, stored[r.id], "request %d was recorded %v before the kill and is lost", r.id, killed.Sub(r.at))
		}
	}
	require.NotZero(t, old)
	for _, a := range collect(t, run.Arrivals()) {
		require.True(t, stored[a.ID] != open[a.ID])
		delete(stored, a.ID)
	}
	require.Empty(t, stored, "results without an arrival")
	t.Logf("%d reported, %d of them more than 1 s before the kill, %d unfinished", len(reports), old, len(unfinished))
}

// interrupted makes a run folder as a writer leaves it that has died.
func interrupted(t *testing.T, results ...load.Result) string {
	w := begin(t, t.TempDir())
	for _, r := range results {
		w.Arrived(&load.Request{ID: r.ID, Arrival: r.Arrival})
		w.Result(&r)
	}
	require.NoError(t, w.End())
	for _, j := range w.journals {
		require.NoError(t, j.file.Close())
	}
	w.record.Writer.StartTicks++ // another process with this PID
	require.NoError(t, w.record.write(w.dir))
	return w.dir
}

func appendTo(t *testing.T, dir, name, text string) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestTornLines(t *testing.T) {
	one, two := sampleResult(), sampleResult()
	two.ID, two.Text = 8, strings.Repeat("long ", 100_000) // longer than any read buffer
	line := string(appendResult(nil, &two, true))
	for _, cut := range []int{1, 10, len(line) / 2, len(line) - 1} {
		dir := interrupted(t, one)
		appendTo(t, dir, requestsFile, line[:cut])
		run, err := Open(dir)
		require.NoError(t, err)
		require.Equal(t, []Truncation{{requestsFile, int64(cut)}}, run.Truncated)
		require.Equal(t, []load.Result{one}, collect(t, run.Requests()))
		if runtime.GOOS == "linux" {
			require.Equal(t, StateInterrupted, run.State)
		}

		// The rest of the line, as a writer would add it, changes nothing in a run that is open already.
		appendTo(t, dir, requestsFile, line[cut:])
		require.Len(t, collect(t, run.Requests()), 1)
		run, err = Open(dir)
		require.NoError(t, err)
		require.Empty(t, run.Truncated)
		require.Equal(t, []load.Result{one, two}, collect(t, run.Requests()))
	}
	dir := interrupted(t)
	appendTo(t, dir, eventsFile, "{")
	run, err := Open(dir)
	require.NoError(t, err)
	require.Equal(t, []Truncation{{eventsFile, 1}}, run.Truncated)
	require.Empty(t, collect(t, run.Events()))
}

func TestBadLines(t *testing.T) {
	for _, bad := range []string{"{\"id\":\n", "\n", "{}\n", "\x00\x00\n", "null\n"} {
		dir := interrupted(t, sampleResult())
		for _, name := range journalFiles {
			appendTo(t, dir, name, bad)
		}
		run, err := Open(dir)
		require.NoError(t, err)
		var got []load.Result
		var last error
		for r, err := range run.Requests() {
			if last = err; err == nil {
				got = append(got, r)
			}
		}
		require.Len(t, got, 1)
		require.ErrorContains(t, last, filepath.Join(dir, requestsFile)+":2: ")
		for _, err := range run.Arrivals() {
			last = err
		}
		require.ErrorContains(t, last, filepath.Join(dir, arrivalsFile)+":2: ")
		for _, err := range run.Samples() {
			last = err
		}
		require.ErrorContains(t, last, filepath.Join(dir, samplesFile)+":1: ")
		for _, err := range run.Events() {
			last = err
		}
		require.ErrorContains(t, last, filepath.Join(dir, eventsFile)+":1: ")
		_, err = run.Unfinished()
		require.Error(t, err)
		require.Error(t, run.WriteCSV(&strings.Builder{}))
	}
}

func TestDamagedFolders(t *testing.T) {
	_, err := Open(t.TempDir())
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "holds no run")

	finished := func() string {
		w := begin(t, t.TempDir())
		r := sampleResult()
		w.Result(&r)
		require.NoError(t, w.Finish(nil))
		return w.Dir()
	}
	rewrite := func(dir, name, old, replacement string) {
		path := filepath.Join(dir, name)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Contains(t, string(data), old)
		require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(data), old, replacement, 1)), 0o644))
	}
	dir := finished()
	rewrite(dir, requestsFile, `,"text":"a b"`, ``)
	_, err = Open(dir)
	require.ErrorContains(t, err, "copied in part")

	dir = finished()
	require.NoError(t, os.Remove(filepath.Join(dir, samplesFile)))
	_, err = Open(dir)
	require.ErrorContains(t, err, samplesFile)

	dir = finished()
	rewrite(dir, runFile, `"schema_version": 2`, `"schema_version": 1`)
	_, err = Open(dir)
	require.ErrorContains(t, err, "schema version 1")

	dir = finished()
	rewrite(dir, runFile, `"finished"`, `"perhaps"`)
	_, err = Open(dir)
	require.ErrorContains(t, err, `"perhaps"`)

	dir = finished()
	rewrite(dir, runFile, `{`, ``)
	_, err = Open(dir)
	require.ErrorContains(t, err, runFile)

	// A file that shrinks while it is read is noticed.
	dir = finished()
	run, err := Open(dir)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(filepath.Join(dir, requestsFile), 20))
	for _, err = range run.Requests() {
	}
	require.ErrorContains(t, err, requestsFile+":1: ")
}

func TestLiveness(t *testing.T) {
	if runtime.GOOS != "linux" {
		require.Equal(t, unknown, currentProcess().liveness())
		return
	}
	me := currentProcess()
	require.Equal(t, alive, me.liveness())
	other := me
	other.StartTicks++
	require.Equal(t, dead, other.liveness(), "the PID was reused")
	other = me
	other.PID = 1 << 30
	require.Equal(t, dead, other.liveness())
	other = me
	other.BootID = "another machine"
	require.Equal(t, unknown, other.liveness())
	other = me
	other.PIDNamespace = "pid:[1]"
	require.Equal(t, unknown, other.liveness())
	require.Equal(t, unknown, process{PID: me.PID}.liveness())
}

func TestList(t *testing.T) {
	m, err := NewResultManager(filepath.Join(t.TempDir(), "a", "b"))
	require.NoError(t, err)
	entries, err := m.List()
	require.NoError(t, err)
	require.Empty(t, entries)
	for _, name := range []string{"z", "a"} {
		w, err := m.Create(name, Meta{Label: "label of " + name})
		require.NoError(t, err)
		require.NoError(t, w.Fail(errForTest, nil))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(m.Root(), "0-broken"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(m.Root(), "0-broken", runFile), []byte("{"), 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(m.Root(), "no run"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(m.Root(), "file"), nil, 0o644))
	entries, err = m.List()
	require.NoError(t, err)
	require.Len(t, entries, 3)
	require.Equal(t, "z", entries[0].Name)
	require.Equal(t, "label of z", entries[0].Run.Meta.Label)
	require.Equal(t, StateFailed, entries[0].Run.State)
	require.Equal(t, "a", entries[1].Name)
	require.Equal(t, "0-broken", entries[2].Name)
	require.Error(t, entries[2].Err)
}

func TestCSV(t *testing.T) {
	w, err := Create(t.TempDir(), Meta{Simulated: []metrics.Simulation{{Profile: "p, q"}}})
	require.NoError(t, err)
	require.NoError(t, w.Begin(load.Info{}))
	w.Start(load.NewClock(time.Now()))
	full, bare := sampleResult(), load.Result{ID: 1, Outcome: load.OutcomeRefused, Message: "a,b\r\n\"c\""}
	w.Result(&full)
	w.Result(&bare)
	require.NoError(t, w.Finish(nil))
	run, err := Open(w.Dir())
	require.NoError(t, err)
	var out strings.Builder
	require.NoError(t, run.WriteCSV(&out))
	header, rest, _ := strings.Cut(out.String(), "\r\n")
	require.Equal(t, "id,conversation,turn,arrival_ns,due_ns,released_ns,send_ns,first_event_ns,first_token_ns,first_tokens,last_token_ns,completion_ns,"+
		"queue_time_ns,server_latency_ns,total_latency_ns,sent,connect_ns,reused,idle_ns,held_open,overhead_ns,api,streamed,outcome,status,message,input_len,"+
		"output_len,prompt_tokens,output_tokens,cached_tokens,cached_device,cached_host,cached_storage,retractions,finish_reason,worker,routed_ns,routed_by,route_reason,attempt,chunks,simulated_by", header)
	require.Contains(t, rest, `"a,b`+"\r\n"+`""c""",0,0,`, "line ends inside a cell stay as they are")
	rows, err := csv.NewReader(strings.NewReader(out.String())).ReadAll()
	require.NoError(t, err)
	require.Len(t, rows, 3)
	require.Equal(t, []string{"7", "c-1", "2", "1000", "1001", "1002", "1003", "1900", "2000", "1", "2500", "3000", "3", "1997", "2000", "true", "5",
		"true", "8", "true", "6", "generate", "true", "ok", "200", full.Message, "10", "4", "11", "4", "3", "1", "0", "2", "1", "length", "server-0",
		"1001", "policy.RoundRobin", "its turn", "2", "2", "p, q"}, rows[1])
	require.Equal(t, []string{"", "", "", ""}, rows[2][7:11], "no token is not time 0")
	require.Equal(t, "", rows[2][24], "no status is not status 0")
	require.Equal(t, "a,b\n\"c\"", rows[2][25], "the standard reader folds CRLF in cells")
}

func TestParseGitStatus(t *testing.T) {
	git, err := parseGitStatus("# branch.oid abc\n# branch.head main\n")
	require.NoError(t, err)
	require.Equal(t, Git{Commit: "abc"}, git)
	git, err = parseGitStatus("# branch.oid abc\n# branch.head main\n1 .M N... 100644 100644 100644 a a f.go\n")
	require.NoError(t, err)
	require.True(t, git.Dirty)
	_, err = parseGitStatus("")
	require.Error(t, err)
}

// A folder without chunks says so, and refuses what cannot be computed from it.
func TestWithoutChunks(t *testing.T) {
	res := sampleResult()
	w := begin(t, t.TempDir()+"/run", WithoutChunks(), WithCSV())
	w.Arrived(&load.Request{ID: res.ID, Arrival: res.Arrival})
	w.Result(&res)
	require.NoError(t, w.Finish(nil))
	line, err := os.ReadFile(filepath.Join(w.Dir(), requestsFile))
	require.NoError(t, err)
	require.Contains(t, string(line), `"chunk_gap_ns":null,"chunk_tokens":null,"chunk_text_bytes":null,`)
	run, err := Open(w.Dir())
	require.NoError(t, err)
	require.False(t, run.ChunksStored)
	want := res
	want.Chunks = load.Chunks{}
	require.Equal(t, []load.Result{want}, collect(t, run.Requests()))
	n := 0
	for _, err := range run.Chunks() {
		require.ErrorContains(t, err, "stored without chunks (results.WithoutChunks, or omit_chunks in the config): the times between tokens (ITL) and tokens over time cannot be computed")
		n++
	}
	require.Equal(t, 1, n)
	table, err := os.ReadFile(filepath.Join(w.Dir(), csvFile))
	require.NoError(t, err)
	require.Contains(t, string(table), ",server-0,1001,policy.RoundRobin,its turn,2,,\r\n", "their number is not 0")

	w = begin(t, t.TempDir()+"/run")
	w.Result(&res)
	require.NoError(t, w.Finish(nil))
	run, err = Open(w.Dir())
	require.NoError(t, err)
	require.True(t, run.ChunksStored)
	require.Equal(t, []load.Result{res}, collect(t, run.Chunks()))
}

// Every line of every file has all keys, whatever is known.
func TestEveryLineHasEveryKey(t *testing.T) {
	w := begin(t, t.TempDir()+"/run")
	res := sampleResult()
	w.Result(&load.Result{Outcome: load.OutcomeRefused, CachedTokens: load.NotReported, Retractions: load.NotReported})
	w.Result(&res)
	w.Arrived(&load.Request{})
	w.Arrived(&load.Request{ID: 1, Arrival: 5})
	w.Sample(metrics.Sample{Source: "server-0", Err: "refused"})
	w.Sample(metrics.Sample{At: 1, Cost: 2, Source: "server-0", Values: map[string]float64{"x": 1}})
	w.Event(metrics.Event{})
	w.Event(metrics.Event{At: 1, Kind: "k", Source: "s", Data: map[string]any{"a": 1}})
	require.NoError(t, w.Finish(nil))
	for _, name := range journalFiles {
		data, err := os.ReadFile(filepath.Join(w.Dir(), name))
		require.NoError(t, err)
		var keys [][]string
		for line := range strings.Lines(string(data)) {
			var v map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &v))
			keys = append(keys, slices.Sorted(maps.Keys(v)))
		}
		require.Len(t, keys, 2)
		require.Equal(t, keys[0], keys[1], name)
	}
	samples, err := os.ReadFile(filepath.Join(w.Dir(), samplesFile))
	require.NoError(t, err)
	require.Equal(t, `{"at_ns":0,"cost_ns":0,"source":"server-0","values":null,"error":"refused"}`+"\n"+
		`{"at_ns":1,"cost_ns":2,"source":"server-0","values":{"x":1},"error":null}`+"\n", string(samples))
	events, err := os.ReadFile(filepath.Join(w.Dir(), eventsFile))
	require.NoError(t, err)
	require.Equal(t, `{"at_ns":0,"kind":"","source":null,"data":null}`+"\n"+`{"at_ns":1,"kind":"k","source":"s","data":{"a":1}}`+"\n", string(events))
}

// A result that contradicts itself, handed to a writer without a collector, is stored as a failure and fails the run.
func TestAResultThatContradictsItself(t *testing.T) {
	res := sampleResult()
	res.FirstToken = res.Completion + 1
	w := begin(t, t.TempDir()+"/run")
	w.Result(&res)
	require.ErrorContains(t, w.Finish(nil), "the result of request 7 contradicts itself")
	run, err := Open(w.Dir())
	require.NoError(t, err)
	require.Equal(t, StateFailed, run.State)
	require.Equal(t, load.OutcomeProtocol, collect(t, run.Requests())[0].Outcome)
}
