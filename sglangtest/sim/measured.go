package sim

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A MeasuredRun is a run of a real server that [Validate] replays.
type MeasuredRun struct {
	Name     string
	Engine   string            // which of the run's engines took these requests; empty: the only one
	Requests []MeasuredRequest // in any order
	Limits   []LimitChange     // changes of the running limit, in order of time
}

// A MeasuredRequest is one request of a MeasuredRun. Times are offsets from the run's start.
type MeasuredRequest struct {
	Sent           time.Duration
	Prompt, Output int // tokens
	// Group and Shared say that the first Shared tokens of the prompt are those of all prompts of the group.
	Group, Shared int
	Cached        int // prompt tokens that the real server found in its cache

	First, Last time.Duration // first and last token at the client
}

// A LimitChange sets pp_max_micro_batch_size.
type LimitChange struct {
	At    time.Duration
	Limit float64
}

// ReadTrace reads the per-request CSV file (gzip if it ends in .gz) of an open-loop run: the columns id, prompt, output, send,
// first, last (seconds), status and, where present, cached_tokens, group and worker. Requests that failed are left out: they
// never reached an engine. With a worker only the requests that it served are read; shared is the number of prompt tokens that
// those of one group share. If there is no column of groups, they are those that the engine's hits tell of: a request that did
// not find the shared tokens is the first of a group, and one that did is of a group that was there.
func ReadTrace(path, worker string, shared int) (MeasuredRun, error) {
	run := MeasuredRun{Name: strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(base(path), "trace_"), ".gz"), ".csv"), Engine: worker}
	rows, err := readTable(path, "id", "prompt", "output", "send", "first", "last", "status")
	if err != nil {
		return run, err
	}
	for _, r := range rows {
		if r.text("status") != "200" || worker != "" && r.text("worker") != worker {
			continue
		}
		run.Requests = append(run.Requests, MeasuredRequest{
			Sent: r.seconds("send"), Prompt: r.int("prompt"), Output: r.int("output"), Group: r.int("group"), Shared: shared,
			Cached: r.int("cached_tokens"), First: r.seconds("first"), Last: r.seconds("last")})
	}
	if _, grouped := rows[0].columns["group"]; !grouped && shared > 0 {
		groupByHits(run.Requests, shared)
	}
	if len(run.Requests) == 0 {
		rows.fail("no request that was served (by worker %q)", worker)
	}
	return run, rows.err()
}

// groupByHits makes a group of each request that found less than the shared tokens and puts all others into the first.
func groupByHits(all []MeasuredRequest, shared int) {
	first := 0
	for i, r := range all {
		if r.First < all[first].First {
			first = i
		}
	}
	for i := range all {
		if all[i].Group = first; all[i].Cached < shared {
			all[i].Group = i
		}
	}
}

// ReadMeasurements reads a folder of calibration recordings: decode_steps_from_log.csv, decode_cells.csv, prefill.csv
// and prefill_batches.csv. Base and Handover are left to the caller.
func ReadMeasurements(dir string) (Measurements, error) {
	var m Measurements
	steps, err1 := readTable(dir+"/decode_steps_from_log.csv", "batch", "context_start", "kv_tokens_in_batch", "step_ms_server")
	clients, err2 := readTable(dir+"/decode_cells.csv", "batch", "context_start", "client_itl_p50_ms")
	prefill, err3 := readTable(dir+"/prefill.csv", "new_tokens", "cached_requested", "ttft_client_ms", "e2e_server_ms")
	batches, err4 := readTable(dir+"/prefill_batches.csv", "prompts", "tokens_each", "first_first_ms", "last_first_ms")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return m, err
	}
	type key struct{ batch, context int }
	step, client := map[key][]float64{}, map[key][]float64{}
	for _, r := range steps {
		if r.int("kv_tokens_in_batch") == 0 { // logged after the batch had ended
			continue
		}
		d := DecodeMeasurement{r.int("batch"), r.int("kv_tokens_in_batch"), r.number("step_ms_server")}
		m.Decode = append(m.Decode, d)
		k := key{d.Batch, r.int("context_start")}
		step[k] = append(step[k], d.Step)
	}
	var order []key
	for _, r := range clients {
		k := key{r.int("batch"), r.int("context_start")}
		if client[k] == nil {
			order = append(order, k)
		}
		client[k] = append(client[k], r.number("client_itl_p50_ms"))
	}
	for _, k := range order {
		if len(step[k]) > 0 {
			m.Streams = append(m.Streams, StreamMeasurement{k.batch, medianOf(step[k]), medianOf(client[k])})
		}
	}
	for _, r := range prefill {
		m.Prefill = append(m.Prefill, PrefillMeasurement{r.int("new_tokens"), r.int("cached_requested"), r.number("e2e_server_ms"), r.number("ttft_client_ms")})
	}
	for _, r := range batches {
		m.Batches = append(m.Batches, BatchMeasurement{r.int("prompts"), r.int("tokens_each"), r.number("first_first_ms"), r.number("last_first_ms")})
	}
	return m, errors.Join(steps.err(), clients.err(), prefill.err(), batches.err())
}

var prefillLine = regexp.MustCompile(`^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})\] Prefill batch, #new-seq: (\d+), #new-token: (\d+), `)

// ReadBenchServing reads the JSON line (gzip) that sglang.bench_serving wrote with --output-details. It does not hold
// when requests were sent, so that is taken from the server's log (gzip): requests are computed in the order of their
// arrival, the log says when the result of each prefill of so many requests came, and the request was sent its TTFT
// before. From and to bound the part of the log, as its own times ("2026-11-24 17:23:52"); the request that the tool
// warms up with comes first there and is left out. Prompt lengths are those that the tool meant; as it sends text, the
// server's counts differ, so they are scaled to the tokens of the log batch by batch.
func ReadBenchServing(jsonl, log, from, to string) (MeasuredRun, error) {
	run := MeasuredRun{Name: "bench_serving"}
	fail := func(err error) (MeasuredRun, error) { return run, fmt.Errorf("sim: read %s: %w", jsonl, err) }
	var d struct {
		In    []int       `json:"input_lens"`
		Out   []int       `json:"output_lens"`
		TTFT  []float64   `json:"ttfts"`
		ITL   [][]float64 `json:"itls"`
		Error []string    `json:"errors"`
	}
	text, err := gunzip(jsonl)
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		return fail(err)
	}
	if n := len(d.In); n == 0 || len(d.Out) != n || len(d.TTFT) != n || len(d.ITL) != n {
		return fail(fmt.Errorf("%d, %d, %d and %d entries of input_lens, output_lens, ttfts and itls: want equal numbers", n, len(d.Out), len(d.TTFT), len(d.ITL)))
	}
	text, err = gunzip(log)
	if err != nil {
		return fail(err)
	}
	i := -1 // the warm-up
	var start time.Time
	for line := range strings.Lines(string(text)) {
		f := prefillLine.FindStringSubmatch(line)
		if f == nil || f[1] < from || f[1] >= to {
			continue
		}
		at, err := time.Parse("2006-01-02 15:04:05.000", f[1])
		if err != nil {
			return fail(err)
		}
		if start.IsZero() {
			start = at
		}
		n, _ := strconv.Atoi(f[2])
		tokens, _ := strconv.Atoi(f[3])
		if i < 0 {
			i += n
			continue
		}
		if i+n > len(d.In) {
			return fail(fmt.Errorf("the log has prefills of more than %d requests between %s and %s", len(d.In), from, to))
		}
		meant := 0
		for _, v := range d.In[i : i+n] {
			meant += v
		}
		for ; n > 0; n-- {
			first := at.Sub(start)
			r := MeasuredRequest{Sent: first - seconds(d.TTFT[i]), Prompt: max(1, d.In[i]*tokens/meant), Output: d.Out[i], First: first, Last: first}
			for _, gap := range d.ITL[i] {
				r.Last += seconds(gap)
			}
			run.Requests = append(run.Requests, r)
			i++
		}
	}
	if i != len(d.In) {
		return fail(fmt.Errorf("the log has prefills of %d requests between %s and %s: want %d", i, from, to, len(d.In)))
	}
	return run, nil
}

func gunzip(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func seconds(s float64) time.Duration { return milliseconds(s * 1e3) }

// base is the last element of a path.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// table holds the rows of a CSV file and the faults found in them.
type table []row

type row struct {
	columns map[string]int
	values  []string
	line    int
	file    *file
}

type file struct {
	path   string
	faults []error
}

func readTable(path string, want ...string) (table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("sim: read recording: %w", err)
	}
	defer f.Close()
	var from io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if from, err = gzip.NewReader(bufio.NewReader(f)); err != nil {
			return nil, fmt.Errorf("sim: read recording %s: %w", path, err)
		}
	}
	rows, err := csv.NewReader(from).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("sim: read recording %s: %w", path, err)
	}
	if len(rows) < 2 {
		return nil, fmt.Errorf("sim: recording %s has no rows", path)
	}
	columns := map[string]int{}
	for i, name := range rows[0] {
		columns[name] = i
	}
	var missing []string
	for _, name := range want {
		if _, ok := columns[name]; !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("sim: recording %s lacks the columns %s: it has %s", path, strings.Join(missing, ", "), strings.Join(rows[0], ", "))
	}
	fl := &file{path: path}
	t := make(table, len(rows)-1)
	for i, r := range rows[1:] {
		t[i] = row{columns, r, i + 2, fl}
	}
	return t, nil
}

func (t table) fail(format string, args ...any) {
	t[0].file.faults = append(t[0].file.faults, fmt.Errorf("sim: recording "+t[0].file.path+": "+format, args...))
}

// err returns the first few faults.
func (t table) err() error {
	if f := t[0].file.faults; len(f) > 10 {
		return errors.Join(append(slices.Clone(f[:10]), fmt.Errorf("sim: and %d more faults", len(f)-10))...)
	}
	return errors.Join(t[0].file.faults...)
}

// text returns a column's value, "" if there is no such column.
func (r row) text(name string) string {
	if i, ok := r.columns[name]; ok {
		return r.values[i]
	}
	return ""
}

// number returns a column's value, 0 if it is empty or there is no such column.
func (r row) number(name string) float64 {
	s := r.text(name)
	if s == "" {
		return 0
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		r.file.faults = append(r.file.faults, fmt.Errorf("sim: recording %s, line %d: %s: %w", r.file.path, r.line, name, err))
	}
	return v
}

func (r row) int(name string) int               { return int(r.number(name)) }
func (r row) seconds(name string) time.Duration { return seconds(r.number(name)) }
