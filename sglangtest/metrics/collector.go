package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
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
	demanded      []float64 // percentiles of WithLimits
	keepTexts     bool
	retokenize    func(string) int
	acceptLength  float64
	benchDuration time.Duration

	mu        sync.Mutex
	state     state
	info      load.Info
	clock     load.Clock // as of Start
	started   bool
	store     store
	pending   map[int]time.Duration // arrivals of the requests that have not ended, by ID
	arrived   int
	firstArr  time.Duration
	lastArr   time.Duration
	inputLen  int64 // tokens of the requests that arrived, as the dataset states them
	outputLen int64
	sampled   int // arrived, and did not ask for temperature 0
	completed int
	failed    int
	tokens    int64
	recent    recent
	fault     error // the first breach of the recorder's contract
	samples   []Sample
	events    []Event
	problems  []string        // see Progress
	gaps      map[string]bool // sources of which a problem says that they cannot be sampled
	ended     time.Duration   // when End was called

	sinkMu   sync.RWMutex // held for reading by calls to the sink that could come after End
	sinkOpen bool

	ctx  context.Context // of the samplers and the watch over the sink
	stop context.CancelFunc
	wg   sync.WaitGroup
}

type state int

const (
	stateNew state = iota
	stateBegun
	stateRunning
	stateEnding // in End
	stateEnded
)

var _ load.Recorder = (*Collector)(nil)

// NewCollector returns a collector for one run. All faults of the options are reported together.
func NewCollector(opts ...Option) (*Collector, error) {
	c := &Collector{
		percentiles: DefaultPercentiles(),
		maxLateness: DefaultMaxLateness,
		pending:     make(map[int]time.Duration),
		gaps:        make(map[string]bool),
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
	c.percentiles = append(c.percentiles, c.demanded...)
	slices.Sort(c.percentiles)
	c.percentiles = slices.Compact(c.percentiles)
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
	if r := info.Plan.RequestedRate; !(r >= 0) || math.IsInf(r, 0) {
		return fmt.Errorf("metrics: begin: the plan's requested rate is %g; want a number of requests/s, or 0 for none", r)
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
	if c.sink != nil {
		c.wg.Go(c.watchSink)
	}
	return nil
}

// watchSink tells at once, not at the end of the run, that storing has failed.
func (c *Collector) watchSink() {
	select {
	case err := <-c.sink.Failed():
		c.Event(Event{At: c.Progress().Elapsed, Kind: KindStoringFailed, Data: map[string]any{"error": err.Error()}})
	case <-c.ctx.Done():
	}
}

// Start starts the samplers, which run until End even if the run is cancelled before. It panics unless Begin has succeeded.
func (c *Collector) Start(clock load.Clock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateBegun {
		panic("metrics: Start without a Begin before it")
	}
	c.state, c.clock, c.started = stateRunning, clock, true
	if c.sink != nil {
		c.sink.Start(clock)
	}
	for _, l := range c.samplers {
		c.wg.Go(func() { l.run(c.ctx, clock, c.AddSample) })
	}
}

// Arrived notes that req has arrived. Outside of a run, before Start or after End, it does nothing.
func (c *Collector) Arrived(req *load.Request) {
	c.mu.Lock()
	if c.state != stateRunning {
		c.mu.Unlock()
		return
	}
	if _, twice := c.pending[req.ID]; twice {
		c.breach(fmt.Errorf("metrics: request %d arrived twice", req.ID))
	}
	arrival := min(max(req.Arrival, 0), load.MaxTime)
	if arrival != req.Arrival {
		c.breach(fmt.Errorf("metrics: request %d arrived at %v; want 0 to %v", req.ID, req.Arrival, load.MaxTime))
	}
	c.pending[req.ID] = arrival
	c.count(arrival)
	c.inputLen, c.outputLen = c.inputLen+int64(req.InputLen), c.outputLen+int64(req.OutputLen)
	if p := req.Sampling; p == nil || p.Temperature == nil || *p.Temperature != 0 {
		c.sampled++
	}
	c.mu.Unlock()
	if c.sink != nil {
		c.sink.Arrived(req)
	}
}

// count counts an arrival. c.mu is held.
func (c *Collector) count(arrival time.Duration) {
	if c.arrived == 0 {
		c.firstArr = arrival
	}
	c.arrived++
	c.firstArr = min(c.firstArr, arrival)
	c.lastArr = max(c.lastArr, arrival)
}

// breach keeps the first breach of the recorder's contract. c.mu is held.
func (c *Collector) breach(err error) {
	if c.fault == nil {
		c.fault = err
		c.problems = append(c.problems, err.Error())
	}
}

// Record keeps a copy of res. Of one that contradicts itself (see [load.Result.Check]) it keeps that the request failed, and
// why, and End says so; so it does of one that had not arrived or had ended already, which counts as a further request.
// Outside of a run, before Start or after End, it does nothing.
func (c *Collector) Record(res *load.Result) {
	c.mu.Lock()
	if c.state != stateRunning {
		c.mu.Unlock()
		return
	}
	fault := res.Check()
	if fault == nil && res.Outcome == "" {
		fault = errors.New("its Outcome is not set")
	}
	if fault != nil {
		c.breach(fmt.Errorf("metrics: the result of request %d contradicts itself: %w", res.ID, fault))
		void := res.Void("the result contradicts itself: "+fault.Error(), max(c.clock.Now(), 0))
		res = &void
	}
	if _, ok := c.pending[res.ID]; !ok {
		c.breach(fmt.Errorf("metrics: a result came for request %d, which had not arrived or had already ended", res.ID))
		c.count(res.Arrival)
	}
	delete(c.pending, res.ID)
	c.store.add(res, c.keepTexts)
	if res.OK() {
		c.completed++
	} else {
		c.failed++
	}
	c.tokens += int64(res.OutputTokens)
	c.recent.add(res)
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
	if problem := e.problem(); problem != "" {
		c.problems = append(c.problems, problem)
	}
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
	if s.Err != "" && c.state == stateRunning && !c.gaps[s.Source] {
		c.gaps[s.Source] = true
		c.problems = append(c.problems, fmt.Sprintf("%s could not be sampled: %s", s.Source, s.Err))
	}
	c.mu.Unlock()
	c.sinkMu.RLock()
	defer c.sinkMu.RUnlock()
	if c.sinkOpen {
		c.sink.Sample(s)
	}
}

// sinkGrace is the least time that a sink has for its end: a sampler that hung may have used up that of End.
const sinkGrace = 5 * time.Second

// End stops the samplers, waits for them, asks those of simulated sources once more by what they are simulated, and closes
// the sink. It returns what went wrong in storing, and the first breach of the [load.Recorder] contract. If ctx ends while a
// sampler or the sink is still busy, that is an error too; the sink has five seconds at least.
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
	c.state = stateEnding
	errs := []error{c.fault}
	c.mu.Unlock()

	c.stop()
	errs = append(errs,
		within(ctx, 0, "a sampler did not return after its context was cancelled", func() error { c.wg.Wait(); return nil }),
		within(ctx, sinkGrace, "what simulates the engines could not be asked again", func() error { return c.relabel(ctx) }))
	if c.sink != nil {
		errs = append(errs, within(ctx, sinkGrace, "the sink did not end: what it had not stored by then may be lost", c.closeSink))
	}
	c.mu.Lock()
	c.state = stateEnded
	c.mu.Unlock()
	return errors.Join(errs...)
}

func (c *Collector) closeSink() error {
	c.sinkMu.Lock()
	c.sinkOpen = false
	c.sinkMu.Unlock()
	if err := c.sink.End(); err != nil {
		return fmt.Errorf("metrics: end: close sink: %w", err)
	}
	return nil
}

// within returns what f returns, or an error if ctx ends before f does, and grace has passed since then. The goroutine then
// lives until f returns: what hangs cannot be stopped, only left behind.
func within(ctx context.Context, grace time.Duration, late string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(grace):
		return fmt.Errorf("metrics: end: %s: %w", late, ctx.Err())
	}
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

// Began reports whether the run began: whether Start was called.
func (c *Collector) Began() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.started
}

// Results iterates over the recorded results in order of ID; there are none if the run never began. They are copies that
// share their chunk lists with the collector. It panics while the run is under way.
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
	if c.state == stateBegun || c.state == stateRunning || c.state == stateEnding {
		panic("metrics: " + what + " called before End: a run that is under way has no summary; see Progress")
	}
	rs := c.store.all()
	slices.SortFunc(rs, func(a, b *load.Result) int { return cmp.Compare(a.ID, b.ID) })
	return rs
}
