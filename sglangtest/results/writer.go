package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

const (
	// FlushInterval is the longest time for which a record stays in the process's memory, unless the
	// operating system takes longer to accept a write.
	FlushInterval = 250 * time.Millisecond
	// flushBytes is how much may wait before the flusher is woken early.
	flushBytes = 256 << 10
)

// An Option changes how runs are stored.
type Option func(*options) error

type options struct {
	csv           bool
	withoutChunks bool
}

func newOptions(opts []Option) (options, error) {
	var o options
	var errs []error
	for _, opt := range opts {
		errs = append(errs, opt(&o))
	}
	return o, errors.Join(errs...)
}

// WithCSV makes [Writer.Finish] write requests.csv as well, the result of [Run.WriteCSV]. Without it, none is written.
func WithCSV() Option {
	return func(o *options) error {
		o.csv = true
		return nil
	}
}

// WithoutChunks leaves out the moments, token counts and lengths of the single chunks of streamed answers, which are most of
// a folder: run.json says so, and [Run.Chunks] refuses what needs them. The summary is not affected: it is made of what
// was measured, not of what is stored.
func WithoutChunks() Option {
	return func(o *options) error {
		o.withoutChunks = true
		return nil
	}
}

// A Writer stores one run. It is a [metrics.Sink], and ends with exactly one call of [Writer.Finish] or
// [Writer.Fail], which a run that never began needs too:
//
//	Create → (AddSimulation, AddEngine) → Begin → Start → records → (ReplaceSimulation) → End → (late events) → Finish or Fail
//
// Recording never waits for the disk: lines are collected in memory, and one goroutine, which lives from
// Begin to End, hands them to the operating system every [FlushInterval]. If the disk stalls, memory grows.
// From then on the death of the process, by SIGKILL too, cannot lose them. A crash of the machine or loss
// of power can, until End has made them durable.
//
// The records of a run are complete on disk when End has returned nil, and only then can run.json come to
// say "finished". If storing fails (a full disk, say), the file concerned ends there, other files go on,
// [Writer.Failed] tells of the first error at once, End returns it, and the run counts as failed. Room for
// the run.json that says so is kept from the start.
//
// A Writer is safe for concurrent use.
type Writer struct {
	dir  string
	opts options

	requests, arrivals, samples, events *journal
	journals                            []*journal // the four, in the order of journalFiles

	flushing sync.Mutex // held during a flush; guards the journals' files and pending bytes
	wake     chan struct{}
	stop     chan struct{} // closed by End
	stopped  chan struct{} // closed by the flusher

	errMu  sync.Mutex
	err    error      // the first that storing met
	failed chan error // takes it

	mu      sync.Mutex // guards the run's life: record, engines and phase
	record  runRecord
	engines []metrics.EngineRecord
	phase   phase
	dating  sync.WaitGroup // the goroutine that writes into run.json when the run started
}

type phase int

const (
	created phase = iota
	begun
	ended
	sealed
)

var _ metrics.Sink = (*Writer)(nil)

// Create makes the folder dir, if need be with its parents, and starts a run in it. It fails, with an error
// that wraps [fs.ErrExist], if dir holds a run: runs are never overwritten. Other files in dir are left alone.
func Create(dir string, meta Meta, opts ...Option) (*Writer, error) {
	if dir == "" {
		return nil, errors.New("results: the run folder needs a name")
	}
	o, err := newOptions(opts)
	errs := []error{err}
	for _, s := range meta.Simulated {
		errs = append(errs, checkSimulation(s))
	}
	config, err := json.MarshalIndent(meta.Config, "", "  ")
	if err != nil {
		errs = append(errs, fmt.Errorf("results: the config cannot be stored: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	w := &Writer{
		dir:  dir,
		opts: o,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}), failed: make(chan error, 1),
		record: runRecord{
			SchemaVersion: SchemaVersion,
			State:         StateRunning,
			Label:         meta.Label,
			Simulated:     append([]metrics.Simulation(nil), meta.Simulated...),
			Writer:        currentProcess(),
			ChunksStored:  !o.withoutChunks,
		},
	}
	environment, err := json.MarshalIndent(currentEnvironment(meta.Seed), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("results: %s: %w", environmentFile, err)
	}
	if err := w.claim(config, environment); err != nil {
		return nil, err
	}
	return w, nil
}

// claim puts the first files into the folder, or leaves the folder as it was. Creating requests.jsonl
// exclusively is what decides between two writers; run.json comes last, so that a folder that has it is complete.
func (w *Writer) claim(config, environment []byte) (err error) {
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return fmt.Errorf("results: cannot make the run folder: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(w.dir, runFile)); err == nil {
		return fmt.Errorf("results: %s already holds a run, which is never overwritten: choose another folder: %w", w.dir, fs.ErrExist)
	}
	var made []string
	defer func() {
		if err != nil {
			for _, j := range w.journals {
				j.file.Close()
			}
			for _, name := range made {
				os.Remove(filepath.Join(w.dir, name))
			}
		}
	}()
	for _, name := range journalFiles {
		f, err := os.OpenFile(filepath.Join(w.dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("results: %s holds %s of another run: choose another folder: %w", w.dir, name, fs.ErrExist)
		}
		if err != nil {
			return fmt.Errorf("results: the run folder is not writable: %w", err)
		}
		made = append(made, name)
		w.journals = append(w.journals, &journal{file: f})
	}
	w.requests, w.arrivals, w.samples, w.events = w.journals[0], w.journals[1], w.journals[2], w.journals[3]
	for name, data := range map[string][]byte{configFile: config, environmentFile: environment} {
		if err := writeFile(w.dir, name, append(data, '\n')); err != nil {
			return err
		}
		made = append(made, name)
	}
	if err := writeFile(w.dir, reserveFile, make([]byte, reserveBytes)); err != nil {
		return err
	}
	made = append(made, reserveFile)
	w.record.Created = time.Now()
	return w.record.write(w.dir)
}

// Dir returns the run folder.
func (w *Writer) Dir() string { return w.dir }

// AddSimulation records that an engine of the run is simulated; a profile that is known already is not
// added again. It must be called before Begin, because launching servers is what tells.
func (w *Writer) AddSimulation(s metrics.Simulation) error {
	if err := checkSimulation(s); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase != created {
		return errors.New("results: AddSimulation after Begin: say that a run is simulated before it starts")
	}
	if !slices.ContainsFunc(w.record.Simulated, s.Equal) {
		w.record.Simulated = append(w.record.Simulated, s)
	}
	return nil
}

// ReplaceSimulation records that old has turned out to be another simulation, such as one with a fault that was injected
// while the run was under way. It may be called until the run has been finished or failed.
func (w *Writer) ReplaceSimulation(old, by metrics.Simulation) error {
	if err := checkSimulation(by); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == sealed {
		return errors.New("results: ReplaceSimulation of a run that has been finished or failed")
	}
	i := slices.IndexFunc(w.record.Simulated, old.Equal)
	if i < 0 {
		return fmt.Errorf("results: no simulation of the run is %q with what is said of it", old.Profile)
	}
	w.record.Simulated[i] = by
	return w.record.write(w.dir)
}

// Begin records the run's plan and accepts records from then on.
func (w *Writer) Begin(info load.Info) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase != created {
		return errors.New("results: a run folder holds one run: Begin was called before, or the run has been ended")
	}
	record := w.record
	record.Plan, record.MaxConcurrency = &info.Plan, info.MaxConcurrency
	if err := w.writeEngines(); err != nil {
		return err
	}
	if err := record.write(w.dir); err != nil {
		return err
	}
	w.record, w.phase = record, begun
	for _, j := range w.journals {
		j.setMode(buffered)
	}
	go w.flushPeriodically()
	return nil
}

// Start records when the run started. run.json says so a moment later: making it durable can take as long as a disk is slow,
// and neither the run nor the flusher waits for that.
func (w *Writer) Start(clock load.Clock) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase != begun {
		return // it has been ended
	}
	started := clock.Start()
	w.record.Started = &started
	w.dating.Go(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if err := w.record.write(w.dir); err != nil {
			w.keep(err)
		}
	})
}

// scratch holds buffers in which lines are encoded outside of any lock.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// Arrived stores that a request has arrived.
func (w *Writer) Arrived(req *load.Request) {
	line := scratch.Get().(*[]byte)
	*line = appendArrival((*line)[:0], Arrival{ID: req.ID, Arrival: req.Arrival, Priority: req.Priority, Deadline: req.Deadline,
		Tenant: req.Tenant, Session: req.Session, LoRA: req.LoRA, Rank: req.Rank})
	w.append(w.arrivals, *line)
	scratch.Put(line)
}

// Result stores what became of a request. A result that contradicts itself (see [load.Result.Check]) is stored as a failure that
// says so, and makes the run fail: no reader would take it.
func (w *Writer) Result(res *load.Result) {
	if fault := res.Check(); fault != nil {
		w.keep(fmt.Errorf("results: the result of request %d contradicts itself: %w", res.ID, fault))
		void := res.Void("the result contradicts itself: "+fault.Error(), 0)
		res = &void
	}
	line := scratch.Get().(*[]byte)
	*line = appendResult((*line)[:0], res, !w.opts.withoutChunks)
	w.append(w.requests, *line)
	scratch.Put(line)
}

// Sample stores a sample.
func (w *Writer) Sample(s metrics.Sample) {
	var values map[string]number
	if s.Values != nil {
		values = make(map[string]number, len(s.Values))
	}
	for name, v := range s.Values {
		values[name] = number(v)
	}
	w.appendEncoded(w.samples, wireSample{At: &s.At, Cost: s.Cost, Source: s.Source, Values: values, Err: orNull(s.Err)})
}

// Event stores an event. Unlike other records, events such as the verdict of a check may come after End.
func (w *Writer) Event(e metrics.Event) {
	w.appendEncoded(w.events, wireEvent{At: &e.At, Kind: e.Kind, Source: orNull(e.Source), Data: e.Data})
}

func (w *Writer) append(j *journal, line []byte) {
	m, waiting, err := j.append(line)
	switch {
	case err != nil:
		w.keep(err)
	case m == through:
		w.flush()
	case waiting >= flushBytes:
		select {
		case w.wake <- struct{}{}:
		default: // it has been woken already
		}
	}
}

// keep remembers the first error that storing met.
func (w *Writer) keep(err error) {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	if w.err == nil {
		w.err = err
		w.failed <- err
	}
}

// Failed returns a channel that yields the first error that storing meets, at most [FlushInterval] after the record that could
// not be stored.
func (w *Writer) Failed() <-chan error { return w.failed }

func (w *Writer) firstError() error {
	w.errMu.Lock()
	defer w.errMu.Unlock()
	return w.err
}

func (w *Writer) flushPeriodically() {
	defer close(w.stopped)
	ticker := time.NewTicker(FlushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-w.wake:
		case <-w.stop:
			return
		}
		w.flush()
	}
}

// flush hands all lines to the operating system. A request's arrival is appended before its result; taking
// the results first and writing them last keeps that order on disk whenever the process dies.
func (w *Writer) flush() {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	for _, j := range w.journals {
		j.take()
	}
	for _, j := range slices.Backward(w.journals) {
		if err := j.write(); err != nil {
			w.keep(fmt.Errorf("results: storing: %w", err))
		}
	}
}

// End makes everything recorded so far durable and returns the first error that storing met. It does not
// end the run: run.json says "running" until Finish or Fail. Records that still come are written at once.
// End may be called again.
func (w *Writer) End() error {
	w.dating.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end()
	return w.firstError()
}

// end stops the flusher and syncs. It is called with mu held.
func (w *Writer) end() {
	if w.phase != begun {
		return
	}
	w.phase = ended
	close(w.stop)
	<-w.stopped
	for _, j := range w.journals {
		j.setMode(through)
	}
	w.flush()
	w.sync()
}

func (w *Writer) sync() {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	for _, j := range w.journals {
		if err := j.file.Sync(); err != nil {
			w.keep(fmt.Errorf("results: making %s durable: %w", j.file.Name(), err))
		}
	}
	if err := syncDir(w.dir); err != nil {
		w.keep(fmt.Errorf("results: making %s durable: %w", w.dir, err))
	}
}

// Finish ends the run as finished, with a summary that encoding/json can write; nil stores none. It does
// what End does first, and writes run.json last, when all else is durable. If anything fails the run is
// recorded as failed, and Finish returns why.
func (w *Writer) Finish(summary any) error {
	w.dating.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == created {
		return errors.New("results: Finish of a run that never began: use Fail")
	}
	if w.phase == sealed {
		return errors.New("results: the run has been finished or failed before")
	}
	w.seal()
	err := w.firstError()
	if err == nil && summary != nil {
		err = w.writeSummary(summary)
	}
	if err == nil && w.opts.csv {
		err = w.writeCSV()
	}
	if err != nil {
		return errors.Join(err, w.conclude(StateFailed, err.Error()))
	}
	return w.conclude(StateFinished, "")
}

// Fail ends the run as failed, because of reason, which must not be nil. What had been recorded is kept, and so is
// summary, if it is not nil. The error it returns is that of storing, unless reason wraps it.
func (w *Writer) Fail(reason error, summary any) error {
	if reason == nil {
		return errors.New("results: Fail needs the reason")
	}
	w.dating.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase == sealed {
		return errors.New("results: the run has been finished or failed before")
	}
	w.seal()
	err := w.firstError()
	if err == nil && summary != nil {
		err = w.writeSummary(summary)
	}
	if errors.Is(reason, err) {
		err = nil // it has been told
	}
	return errors.Join(err, w.conclude(StateFailed, errors.Join(reason, err).Error()))
}

// Discard removes the folder of a run that never began, so that its name can be used again. Files that are not the
// run's stay.
func (w *Writer) Discard() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.phase != created {
		return errors.New("results: Discard of a run that has begun: use Fail")
	}
	w.phase = sealed
	var errs []error
	for _, j := range w.journals {
		j.setMode(closed)
		errs = append(errs, j.file.Close())
	}
	for _, name := range append(journalFiles[:], configFile, environmentFile, reserveFile, runFile) {
		errs = append(errs, os.Remove(filepath.Join(w.dir, name)))
	}
	os.Remove(filepath.Join(w.dir, enginesFile)) // is there only after a Begin that failed
	os.Remove(w.dir)                             // unless it holds something else
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	return nil
}

// seal makes the journals complete, durable and closed. It is called with mu held.
func (w *Writer) seal() {
	w.end()
	w.phase = sealed
	for _, j := range w.journals {
		j.setMode(closed)
	}
	w.flush()
	w.sync()
	w.flushing.Lock()
	defer w.flushing.Unlock()
	sizes := make(map[string]int64)
	for i, j := range w.journals {
		if err := j.file.Close(); err != nil {
			w.keep(fmt.Errorf("results: closing %s: %w", j.file.Name(), err))
		}
		sizes[journalFiles[i]] = j.size
	}
	if w.firstError() == nil {
		w.record.Sizes = sizes // a reader checks them; after an error they would vouch for damaged files
	}
}

func (w *Writer) conclude(state State, reason string) error {
	now := time.Now()
	w.record.State, w.record.Reason, w.record.Ended = state, reason, &now
	os.Remove(filepath.Join(w.dir, reserveFile)) // who has taken it away has made room
	return w.record.write(w.dir)
}

func (w *Writer) writeSummary(summary any) error {
	data, err := json.MarshalIndent(summary, "", "  ")
	if err != nil {
		return fmt.Errorf("results: the summary cannot be stored: %w", err)
	}
	return writeFile(w.dir, summaryFile, append(data, '\n'))
}

func (w *Writer) writeCSV() error {
	stored := lineFile{path: filepath.Join(w.dir, requestsFile), size: w.requests.size}
	return replaceFile(w.dir, csvFile, func(out io.Writer) error {
		return writeCSV(out, lines(stored, decodeResult), w.record.Simulated, w.record.ChunksStored)
	})
}
