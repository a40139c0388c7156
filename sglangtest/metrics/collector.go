package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A Collector records one run: its results, samples and events. It implements [load.Recorder] and is safe for
// concurrent use. It keeps every result with its chunk list but without its text, some 330 bytes and five more
// for each chunk, and computes nothing before [Collector.Summary].
type Collector struct {
	samplers      []*samplerLoop
	sink          Sink
	percentiles   []float64
	maxLateness   time.Duration
	simulation    *Simulation
	engines       []Engine
	relabelled    []string // notes: what simulates a source was not the same at the run's end
	slo           *SLO
	keepTexts     bool
	retokenize    func(string) int
	acceptLength  float64
	benchDuration time.Duration

	mu        sync.Mutex
	state     state
	info      load.Info
	clock     load.Clock // as of Start
	store     store
	pending   map[int]time.Duration // arrivals of the requests that have not ended, by ID
	arrived   int
	firstArr  time.Duration
	lastArr   time.Duration
	inputLen  int64 // tokens of the requests that arrived, as the dataset states them
	outputLen int64
	completed int
	failed    int
	tokens    int64
	fault     error // the first breach of the recorder's contract
	samples   []Sample
	events    []Event
	ended     time.Duration // when End was called

	sinkMu   sync.RWMutex // held for reading by calls to the sink that could come after End
	sinkOpen bool

	ctx  context.Context // of the samplers
	stop context.CancelFunc
	wg   sync.WaitGroup
}

type state int

const (
	stateNew state = iota
	stateBegun
	stateRunning
	stateEnded
)

var _ load.Recorder = (*Collector)(nil)

// NewCollector returns a collector for one run. All faults of the options are reported together.
func NewCollector(opts ...Option) (*Collector, error) {
	c := &Collector{
		percentiles: DefaultPercentiles(),
		maxLateness: DefaultMaxLateness,
		pending:     make(map[int]time.Duration),
	}
	var errs []error
	for _, o := range opts {
		if err := o(c); err != nil {
			errs = append(errs, fmt.Errorf("metrics: new collector: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return c, nil
}

// Begin opens the sink. A collector records one run; a second Begin is an error.
func (c *Collector) Begin(ctx context.Context, info load.Info) error {
	if err := errors.Join(c.label(ctx), c.recordEngines()); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateNew {
		return errors.New("metrics: begin: a collector records one run only; make another one")
	}
	if c.sink != nil {
		if err := c.sink.Begin(info); err != nil {
			return fmt.Errorf("metrics: begin: open sink: %w", err)
		}
		for _, e := range c.events { // those that came before
			c.sink.Event(e)
		}
		c.sinkMu.Lock()
		c.sinkOpen = true
		c.sinkMu.Unlock()
	}
	c.state, c.info = stateBegun, info
	c.ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	return nil
}

// Start starts the samplers, which run until End even if the run is cancelled before. It panics unless Begin has succeeded.
func (c *Collector) Start(clock load.Clock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateBegun {
		panic("metrics: Start without a Begin before it")
	}
	c.state, c.clock = stateRunning, clock
	if c.sink != nil {
		c.sink.Start(clock)
	}
	for _, l := range c.samplers {
		c.wg.Go(func() { l.run(c.ctx, clock, c.AddSample) })
	}
}

// Arrived notes that req has arrived.
func (c *Collector) Arrived(req *load.Request) {
	c.mu.Lock()
	if _, twice := c.pending[req.ID]; twice && c.fault == nil {
		c.fault = fmt.Errorf("metrics: request %d arrived twice", req.ID)
	}
	c.pending[req.ID] = req.Arrival
	if c.arrived == 0 {
		c.firstArr = req.Arrival
	}
	c.arrived++
	c.inputLen, c.outputLen = c.inputLen+int64(req.InputLen), c.outputLen+int64(req.OutputLen)
	c.lastArr = max(c.lastArr, req.Arrival)
	c.mu.Unlock()
	if c.sink != nil {
		c.sink.Arrived(req)
	}
}

// Record keeps a copy of res.
func (c *Collector) Record(res *load.Result) {
	c.mu.Lock()
	if _, ok := c.pending[res.ID]; !ok && c.fault == nil {
		c.fault = fmt.Errorf("metrics: a result came for request %d, which had not arrived or had already ended", res.ID)
	}
	delete(c.pending, res.ID)
	c.store.add(res, c.keepTexts)
	if res.OK() {
		c.completed++
	} else {
		c.failed++
	}
	c.tokens += int64(res.OutputTokens)
	c.mu.Unlock()
	if c.sink != nil {
		c.sink.Result(res)
	}
}

// Event puts e into the time line and hands it to the sink; one that comes before Begin is handed on by Begin. An event that
// comes after End is in [Collector.Events] but does not reach the sink.
func (c *Collector) Event(e Event) {
	c.mu.Lock()
	c.events = append(c.events, e)
	c.mu.Unlock()
	c.sinkMu.RLock()
	defer c.sinkMu.RUnlock()
	if c.sinkOpen {
		c.sink.Event(e)
	}
}

// AddSample puts s into the time line and hands it to the sink, for a host of engines in virtual time that samplers
// on the run's clock could not follow. Samples of one source come in order of time. One that comes before Begin or
// after End does not reach the sink.
func (c *Collector) AddSample(s Sample) {
	c.mu.Lock()
	c.samples = append(c.samples, s)
	c.mu.Unlock()
	c.sinkMu.RLock()
	defer c.sinkMu.RUnlock()
	if c.sinkOpen {
		c.sink.Sample(s)
	}
}

// End stops the samplers, waits for them, asks those of simulated sources once more by what they are simulated, and closes
// the sink. It returns what went wrong in storing, and the first breach of the [load.Recorder] contract. If ctx ends while a
// sampler is still busy, that is an error too.
func (c *Collector) End(ctx context.Context) error {
	c.mu.Lock()
	switch c.state {
	case stateRunning:
		c.ended = c.clock.Now()
	case stateBegun: // it was given up before it started
	default:
		c.mu.Unlock()
		return errors.New("metrics: end: the run has not begun or has already ended")
	}
	c.state = stateEnded
	errs := []error{c.fault}
	c.mu.Unlock()

	c.stop()
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }() // ends with the last sampler
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done:
		default:
			errs = append(errs, fmt.Errorf("metrics: end: a sampler did not return after its context was cancelled: %w", ctx.Err()))
		}
	}
	errs = append(errs, c.relabel(ctx))
	if c.sink != nil {
		c.sinkMu.Lock()
		c.sinkOpen = false
		c.sinkMu.Unlock()
		if err := c.sink.End(); err != nil {
			errs = append(errs, fmt.Errorf("metrics: end: close sink: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Samples returns the samples so far, in the order in which they were read.
func (c *Collector) Samples() []Sample {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.samples)
}

// Events returns the events so far, in order of time.
func (c *Collector) Events() []Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	es := slices.Clone(c.events)
	slices.SortStableFunc(es, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	return es
}

// Progress is a snapshot of a run.
type Progress struct {
	Elapsed   time.Duration // since the run's start; 0 before it
	Planned   int           // requests of the plan
	Arrived   int
	Completed int // successes
	Failed    int
	// InFlight is the number of requests that have arrived and not ended, whether they have been sent or not.
	InFlight int
	// OutputTokens counts those of the requests that have ended, failed ones included.
	OutputTokens int64
}

// Progress returns a snapshot. It is cheap and may be called at any time; before Begin it is zero.
func (c *Collector) Progress() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := Progress{Planned: c.info.Plan.Requests, Arrived: c.arrived, Completed: c.completed, Failed: c.failed,
		InFlight: len(c.pending), OutputTokens: c.tokens, Elapsed: c.ended}
	if c.state == stateRunning {
		p.Elapsed = max(c.clock.Now(), 0)
	}
	return p
}

// Results iterates over the recorded results in order of ID. They are copies that share their chunk lists with
// the collector. It panics before End.
func (c *Collector) Results() iter.Seq[load.Result] {
	rs := c.finished("Results")
	return func(yield func(load.Result) bool) {
		for _, r := range rs {
			if !yield(*r) {
				return
			}
		}
	}
}

// finished returns the results in order of ID. Nothing changes them after End.
func (c *Collector) finished(what string) []*load.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateEnded {
		panic("metrics: " + what + " called before End: a run that is under way has no summary; see Progress")
	}
	rs := c.store.all()
	slices.SortFunc(rs, func(a, b *load.Result) int { return cmp.Compare(a.ID, b.ID) })
	return rs
}
