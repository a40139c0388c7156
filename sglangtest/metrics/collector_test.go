package metrics

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

type fakeSampler struct {
	name string
	f    func(ctx context.Context, n int) (map[string]float64, error)
	n    int
}

func (f *fakeSampler) Name() string { return f.name }
func (f *fakeSampler) Sample(ctx context.Context) (map[string]float64, error) {
	f.n++
	return f.f(ctx, f.n)
}

type fakeSink struct {
	mu     sync.Mutex
	calls  []string
	closed bool
	endErr error
	failed chan error // nil: it does not fail
}

func (f *fakeSink) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		panic("sink used after End")
	}
	f.calls = append(f.calls, s)
}
func (f *fakeSink) Begin(load.Info) error { f.note("begin"); return nil }
func (f *fakeSink) Start(load.Clock)      { f.note("start") }
func (f *fakeSink) Arrived(*load.Request) { f.note("arrived") }
func (f *fakeSink) Result(*load.Result)   { f.note("result") }
func (f *fakeSink) Sample(Sample)         { f.note("sample") }
func (f *fakeSink) Event(Event)           { f.note("event") }
func (f *fakeSink) Failed() <-chan error  { return f.failed }
func (f *fakeSink) End() error            { f.note("end"); f.closed = true; return f.endErr }

func TestSamplersRunOnTheRunsClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quick := &fakeSampler{name: "quick", f: func(_ context.Context, n int) (map[string]float64, error) {
			time.Sleep(10 * msec)
			if n == 3 {
				return nil, errors.New("503")
			}
			return map[string]float64{NumRunning: float64(n), NumWaiting: 1}, nil
		}}
		slow := &fakeSampler{name: "slow", f: func(context.Context, int) (map[string]float64, error) {
			time.Sleep(250 * msec)
			return map[string]float64{NumRunning: 1}, nil
		}}
		stuck := &fakeSampler{name: "stuck", f: func(ctx context.Context, _ int) (map[string]float64, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		sink := &fakeSink{}
		c, err := NewCollector(WithSampler(quick, 100*msec), WithSampler(slow, 100*msec), WithSampler(stuck, 100*msec), WithSink(sink))
		require.NoError(t, err)
		clock := load.NewClock(time.Now())
		time.Sleep(30 * msec)
		ctx, cancel := context.WithCancel(context.Background())
		require.NoError(t, c.Begin(ctx, load.Info{}))
		c.Start(clock)
		cancel() // the samplers outlive the run's context, so that the drain is sampled too
		time.Sleep(1020 * msec)
		require.NoError(t, c.End(context.Background()))

		var at, slowAt []time.Duration
		for _, s := range c.Samples() {
			switch s.Source {
			case "quick":
				at = append(at, s.At)
				require.Equal(t, 10*msec, s.Cost)
				if len(at) == 3 {
					require.Equal(t, "503", s.Err)
					require.Nil(t, s.Values)
				}
			case "slow":
				slowAt = append(slowAt, s.At)
			default:
				t.Fatalf("the sample of %s ended with the run", s.Source)
			}
		}
		require.Equal(t, []time.Duration{110 * msec, 210 * msec, 310 * msec, 410 * msec, 510 * msec, 610 * msec, 710 * msec, 810 * msec, 910 * msec, 1010 * msec}, at)
		require.Equal(t, []time.Duration{350 * msec, 650 * msec, 950 * msec}, slowAt, "it begins at 100, 400 and 700 ms")

		s := c.Summary()
		require.Equal(t, SamplerSummary{Source: "quick", IntervalS: 0.1, Taken: 9, Failed: 1, MaxCost: 10,
			Running: &Gauge{Mean: 52.0 / 9, Max: 10}, Waiting: &Gauge{Mean: 1, Max: 1}}, s.Samplers[0])
		require.Equal(t, 3, s.Samplers[1].Taken)
		require.Equal(t, 6+0, s.Samplers[1].Missed, "at 200, 300, 500, 600, 800 and 900 ms")
		require.Equal(t, 0, s.Samplers[2].Taken)
		require.Equal(t, 9, s.Samplers[2].Missed, "from 200 to 1000 ms")
		require.Contains(t, c.Summary().Notes, "sampler quick has 1 gaps in 10 samples (0 missed, 1 failed): its means and maxima do not cover the whole run")
		require.Equal(t, "end", sink.calls[len(sink.calls)-1])
	})
}

func TestASamplerThatIgnoresItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		deaf := &fakeSampler{name: "deaf", f: func(context.Context, int) (map[string]float64, error) { <-release; return nil, nil }}
		c, err := NewCollector(WithSampler(deaf, msec))
		require.NoError(t, err)
		require.NoError(t, c.Begin(context.Background(), load.Info{}))
		c.Start(load.NewClock(time.Now()))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		require.ErrorIs(t, c.End(ctx), context.DeadlineExceeded)
		close(release)
	})
}

func TestCollectorPassesOnAndKeeps(t *testing.T) {
	sink := &fakeSink{endErr: errors.New("disk full")}
	c, err := NewCollector(WithSink(sink))
	require.NoError(t, err)
	c.Event(Event{Kind: "launched"})
	require.NoError(t, c.Begin(context.Background(), load.Info{Plan: load.Plan{Requests: 3}}))
	c.Start(load.NewClock(time.Now()))
	r := answer(1, msec, 0, msec, msec, 3)
	r.Text, r.Worker = "abc", "server-0"
	c.Arrived(&load.Request{ID: 1, Arrival: msec})
	c.Arrived(&load.Request{ID: 2, Arrival: 2 * msec})
	p := c.Progress()
	require.Equal(t, 2, p.InFlight)
	c.Record(&r)
	c.Event(Event{At: 5 * msec, Kind: KindParamUpdate})
	c.Event(Event{At: 3 * msec, Kind: "noted"})
	p = c.Progress()
	require.Equal(t, Progress{Elapsed: p.Elapsed, Rate: p.Rate, TTFT: p.TTFT, Planned: 3, Arrived: 2, Completed: 1, InFlight: 1, OutputTokens: 3}, p)
	require.Panics(t, func() { c.Summary() })
	require.Panics(t, func() { c.Results() })
	require.ErrorContains(t, c.End(context.Background()), "disk full")
	c.Event(Event{At: time.Hour, Kind: "late"})
	require.Equal(t, []string{"begin", "event", "start", "arrived", "arrived", "result", "event", "event", "end"}, sink.calls)
	require.Equal(t, []string{"launched", "noted", KindParamUpdate, "late"}, kinds(c.Events()))

	rs := slices.Collect(c.Results())
	require.Len(t, rs, 1)
	require.Equal(t, slices.Collect(r.Chunks.All()), slices.Collect(rs[0].Chunks.All()))
	require.Empty(t, rs[0].Text, "texts were not asked for")
	require.Equal(t, "server-0", rs[0].Worker)
	require.Error(t, c.End(context.Background()))
	require.Error(t, c.Begin(context.Background(), load.Info{}))
}

func kinds(es []Event) (ks []string) {
	for _, e := range es {
		ks = append(ks, e.Kind)
	}
	return ks
}

func TestRecorderContract(t *testing.T) {
	begin := func() *Collector {
		c, err := NewCollector(WithTexts())
		require.NoError(t, err)
		require.NoError(t, c.Begin(context.Background(), load.Info{}))
		c.Start(load.NewClock(time.Now()))
		return c
	}
	c := begin()
	r := answer(4, 0, 0, msec, msec, 2)
	r.Text = "kept"
	c.Record(&r)
	require.EqualError(t, c.End(context.Background()), "metrics: a result came for request 4, which had not arrived or had already ended")
	require.Equal(t, "kept", slices.Collect(c.Results())[0].Text)
	c = begin()
	c.Arrived(&load.Request{ID: 4})
	c.Arrived(&load.Request{ID: 4})
	require.EqualError(t, c.End(context.Background()), "metrics: request 4 arrived twice")
}

func TestOptionFaultsAreReportedTogether(t *testing.T) {
	s := &fakeSampler{name: "a"}
	_, err := NewCollector(WithSampler(s, time.Second), WithSampler(s, time.Second), WithSampler(s, 0), WithPercentiles(50, 100),
		WithMaxLateness(0), WithSink(nil), WithSimulation(Simulation{}), WithGoodput(SLO{}), WithRetokenizer(nil, 0), WithBenchServingDuration(0))
	for _, part := range []string{`two samplers are named "a"`, `interval of sampler "a" is 0s`, "percentile 100", "maximum lateness 0s", "one sink",
		"a simulation needs", "goodput needs", "a retokenizer needs", "duration 0s"} {
		require.ErrorContains(t, err, part)
	}
}

func TestConcurrentUse(t *testing.T) {
	sink := &fakeSink{}
	c, err := NewCollector(WithSink(sink), WithSampler(&fakeSampler{name: "s", f: func(context.Context, int) (map[string]float64, error) {
		return map[string]float64{NumRunning: 1}, nil
	}}, msec))
	require.NoError(t, err)
	require.NoError(t, c.Begin(context.Background(), load.Info{}))
	c.Start(load.NewClock(time.Now()))
	const n = 3000
	var wg sync.WaitGroup
	next := make(chan int, n)
	for i := range n {
		c.Arrived(&load.Request{ID: i})
		next <- i
	}
	close(next)
	var total atomic.Int64
	for range 8 {
		wg.Go(func() {
			for i := range next {
				r := answer(i, 0, 0, msec, msec, 1+i%40)
				total.Add(int64(r.OutputTokens))
				c.Record(&r)
				if i%100 == 0 {
					c.Event(Event{At: c.Progress().Elapsed})
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, c.End(context.Background()))
	require.Equal(t, total.Load(), c.Progress().OutputTokens)
	i := 0
	for r := range c.Results() {
		require.Equal(t, i, r.ID)
		require.Equal(t, 1+i%40, r.Chunks.Len())
		i++
	}
	require.Equal(t, n, i)
}

// labelledSampler is one of a simulated source, whose label is what labels holds next.
type labelledSampler struct {
	fakeSampler
	labels []func() (*Simulation, error)
}

func (f *labelledSampler) Simulation(context.Context) (*Simulation, error) {
	next := f.labels[0]
	f.labels = f.labels[1:]
	return next()
}

// replacingSink notes how a simulation is replaced.
type replacingSink struct {
	fakeSink
	old, by Simulation
}

func (f *replacingSink) ReplaceSimulation(old, by Simulation) error {
	f.note("replace")
	f.old, f.by = old, by
	return nil
}

func TestALabelThatChangesDuringTheRun(t *testing.T) {
	calibrated := Simulation{Profile: "h100", Calibrated: "on one H100", KnownError: "TTFT p50 3 %"}
	faulty := Simulation{Profile: "h100 with a fault", Calibrated: "not with slow-steps:10", KnownError: "not measured"}
	says := func(s *Simulation, err error) func() (*Simulation, error) {
		return func() (*Simulation, error) { return s, err }
	}
	run := func(labels ...func() (*Simulation, error)) (*Summary, *replacingSink) {
		s := &labelledSampler{fakeSampler: fakeSampler{name: "server-0", f: func(context.Context, int) (map[string]float64, error) { return nil, nil }}, labels: labels}
		sink := &replacingSink{}
		c, err := NewCollector(WithSampler(s, time.Hour), WithSink(sink))
		require.NoError(t, err)
		require.NoError(t, c.Begin(context.Background(), load.Info{}))
		c.Start(load.NewClock(time.Now()))
		require.NoError(t, c.End(context.Background()))
		require.Empty(t, s.labels)
		require.Equal(t, "end", sink.calls[len(sink.calls)-1])
		return c.Summary(), sink
	}

	sum, sink := run(says(&calibrated, nil), says(&calibrated, nil))
	require.Equal(t, &calibrated, sum.Simulation)
	require.NotContains(t, sink.calls, "replace")
	require.NotContains(t, sum.String(), "changed during the run")

	validated := func() *Simulation { // read anew each time
		return &Simulation{Profile: "h100", KnownError: "e", Validation: &Validation{Runs: []ValidatedRun{{Name: "a"}}}}
	}
	sum, sink = run(says(validated(), nil), says(validated(), nil))
	require.NotContains(t, sink.calls, "replace")
	require.Equal(t, validated().Validation, sum.Simulation.Validation)

	sum, sink = run(says(&calibrated, nil), says(&faulty, nil))
	require.Equal(t, &faulty, sum.Simulation)
	require.Equal(t, []Simulation{calibrated, faulty}, []Simulation{sink.old, sink.by})
	require.Contains(t, sum.Notes, "what simulates server-0 changed during the run, at whose start it was profile h100: the whole run carries the label of its end")

	for _, answer := range []func() (*Simulation, error){says(nil, errors.New("connection refused")), says(nil, nil)} {
		sum, sink = run(says(&calibrated, nil), answer)
		require.Equal(t, sum.Simulation, &sink.by)
		require.Contains(t, sum.Simulation.KnownError, "not measured, as far as is known at the end of the run (")
		require.Contains(t, sum.Simulation.KnownError, "at its start: TTFT p50 3 %")
		require.Contains(t, sum.Notes[0], "what simulated server-0 at the end of the run is not known (")
	}

	other := Simulation{Profile: "h100 with another", Calibrated: "not with die", KnownError: "not measured"}
	sampler := func(name string, end *Simulation) *labelledSampler {
		return &labelledSampler{fakeSampler{name: name, f: func(context.Context, int) (map[string]float64, error) { return nil, nil }},
			[]func() (*Simulation, error){says(&calibrated, nil), says(end, nil)}}
	}
	c, err := NewCollector(WithSampler(sampler("a", &faulty), time.Hour), WithSampler(sampler("b", &calibrated), time.Hour), WithSampler(sampler("c", &other), time.Hour))
	require.NoError(t, err)
	require.NoError(t, c.Begin(context.Background(), load.Info{}))
	c.Start(load.NewClock(time.Now()))
	require.NoError(t, c.End(context.Background()))
	require.Equal(t, &Simulation{Profile: "h100 with a fault; and h100 with another", Calibrated: "not with slow-steps:10; and not with die", KnownError: "not measured"},
		c.Summary().Simulation, "of several sources")

	sum, _ = run(says(nil, nil))
	require.Nil(t, sum.Simulation, "a real source is not asked again")
}
