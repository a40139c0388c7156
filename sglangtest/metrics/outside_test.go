package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// What comes from outside may be anything. It must not end the program, and not hide in a figure.

func TestAResultThatContradictsItself(t *testing.T) {
	for name, spoil := range map[string]func(r *load.Result){
		"first token after the end":  func(r *load.Result) { r.FirstToken, r.LastToken = time.Hour, time.Hour },
		"first token before send":    func(r *load.Result) { r.FirstToken = 1 },
		"ends before it begins":      func(r *load.Result) { r.Completion = 0 },
		"ends in 292 years":          func(r *load.Result) { r.Completion = math.MaxInt64 },
		"arrives 292 years ago":      func(r *load.Result) { r.Arrival = math.MinInt64 },
		"as many tokens as possible": func(r *load.Result) { r.OutputTokens = math.MaxInt },
		"fewer tokens than none":     func(r *load.Result) { r.OutputTokens = -5 },
		"huge lengths":               func(r *load.Result) { r.InputLen, r.OutputLen, r.OutputTokens = math.MaxInt, math.MaxInt, 0 },
		"chunks out of order":        func(r *load.Result) { r.Chunks.Append(load.Chunk{At: 1, Tokens: 1}) },
		"chunks after the end":       func(r *load.Result) { r.Chunks.Append(load.Chunk{At: time.Hour, Tokens: 1}) },
		"no outcome":                 func(r *load.Result) { r.Outcome = "" },
	} {
		t.Run(name, func(t *testing.T) {
			sink := &fakeSink{}
			c, err := NewCollector(WithSink(sink), WithGoodput(SLO{TTFT: time.Second, TPOT: time.Second}), WithRetokenizer(words, 2))
			require.NoError(t, err)
			begin(t, c, load.NewClock(time.Now()))
			for i := range 3 {
				r := answer(i, time.Duration(i)*msec, msec, 20*msec, 10*msec, 5)
				c.Arrived(&load.Request{ID: i, Arrival: r.Arrival})
				if i == 1 {
					spoil(&r)
				}
				c.Record(&r)
			}
			require.ErrorContains(t, c.End(context.Background()), "metrics: the result of request 1 contradicts itself: ")
			s := c.Summary()
			require.Equal(t, []int{3, 2, 1}, []int{s.Requests.Arrived, s.Requests.OK, s.Requests.Failed})
			require.Equal(t, 1, s.TTFT.Failed)
			require.InDelta(t, 21, float64(s.TTFT.Mean), 1e-9)
			require.Less(t, s.Durations.Measured, 10.0)
			writable(t, c)
		})
	}
}

// writable checks that everything that a collector makes can be written.
func writable(t *testing.T, c *Collector) {
	s := c.Summary()
	b, err := json.Marshal(s)
	require.NoError(t, err)
	var back Summary
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, s.String(), back.String())
	require.NoError(t, s.BenchServing.WriteTable(io.Discard))
	ws := c.Windows(time.Second)
	require.NoError(t, WriteWindows(io.Discard, ws))
	_, err = json.Marshal(ws)
	require.NoError(t, err)
	c.Windows(math.MaxInt64)
}

func TestResultsOfUnknownRequestsAreCounted(t *testing.T) {
	c, err := NewCollector()
	require.NoError(t, err)
	begin(t, c, load.NewClock(time.Now()))
	r := answer(4, msec, 0, msec, msec, 2)
	c.Arrived(&load.Request{ID: 4, Arrival: msec})
	c.Record(&r)
	c.Record(&r)
	require.EqualError(t, c.End(context.Background()), "metrics: a result came for request 4, which had not arrived or had already ended")
	c.Record(&r)
	c.Arrived(&load.Request{ID: 5})
	q := c.Summary().Requests
	require.Equal(t, []int{2, 2, 0}, []int{q.Arrived, q.OK, q.Failed})
}

func TestSampledValuesThatAreNoNumbers(t *testing.T) {
	c := collect(t, load.Plan{}, []load.Result{answer(0, 0, 0, msec, msec, 2)}, nil)
	for _, v := range []float64{math.NaN(), 3, math.Inf(1), math.Inf(-1)} {
		c.AddSample(Sample{Source: "x", At: math.MinInt64, Values: map[string]float64{NumRunning: v, TokenUsage: v, SnapshotAge: v, StepLateness: v,
			GPUSeries(GPUPower, 0): v, GPUSeries(GPUEnergy, 0): v}})
	}
	require.Equal(t, &Gauge{Mean: 3, Max: 3}, c.Summary().Samplers[0].Running)
	writable(t, c)
}

func TestAPlanWithoutAUsableRate(t *testing.T) {
	for _, rate := range []float64{math.NaN(), math.Inf(1), -1} {
		c, err := NewCollector()
		require.NoError(t, err)
		require.ErrorContains(t, c.Begin(context.Background(), load.Info{Plan: load.Plan{RequestedRate: rate}}), "requested rate")
	}
}

// Ten thousand seconds between two requests are no reason to hold a number for each.
func TestBenchServingOfARunOfYears(t *testing.T) {
	year := 365 * 24 * time.Hour
	b := collect(t, load.Plan{}, []load.Result{answer(0, 0, 0, msec, msec, 7), answer(1, 20*year, 0, msec, msec, 2), answer(2, 20*year, msec, 10*year, msec, 2)}, nil).Summary().BenchServing
	require.Equal(t, 2, b.MaxConcurrentRequests)
	require.EqualValues(t, 7, b.MaxOutputTokensPerS)
}

func TestNumbersInTextsAreAlwaysWritten(t *testing.T) {
	require.NotPanics(t, func() { sig(math.MaxFloat64) })
	require.Equal(t, []string{"+Inf", "NaN", "0.00012346"}, []string{sig(math.Inf(1)), sig(math.NaN()), sig(0.000123456)})
}

type failingSource struct{}

func (failingSource) Plan() (load.Plan, error) {
	return load.Plan{}, errors.New("trace.jsonl: no such file")
}
func (failingSource) Requests() iter.Seq2[load.Request, error] { return nil }

// The sequence that the README shows, of a run whose workload is at fault.
func TestSummaryOfARunThatNeverBegan(t *testing.T) {
	c, err := NewCollector(WithGoodput(SLO{TTFT: time.Second}))
	require.NoError(t, err)
	err = load.Run(t.Context(), failingSource{}, nil, c)
	require.ErrorContains(t, err, "trace.jsonl: no such file")
	require.False(t, c.Began())
	s := c.Summary()
	require.False(t, s.Began)
	require.Contains(t, s.Notes, "the run never began, so that nothing was measured: the error of load.Run says why")
	require.Contains(t, s.String(), "\nstarted       never, no concurrency cap\n")
	require.ErrorContains(t, s.Check(AtMost(TTFT, 0.99, time.Second)), "nothing was measured")
	require.Error(t, s.Check(ClientOK()))
	require.Empty(t, slices.Collect(c.Results()))
	require.Empty(t, c.Windows(time.Second))
	writable(t, c)
}

func TestSummaryWhileSamplesStillCome(t *testing.T) {
	c := collect(t, load.Plan{}, []load.Result{answer(0, 0, 0, msec, msec, 2)}, nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 500 {
			c.AddSample(Sample{Source: "late", At: time.Duration(i), Values: map[string]float64{NumRunning: 1, StepLateness: 1}})
			c.Event(Event{At: time.Duration(i)})
			r := answer(1+i, 0, 0, msec, msec, 2)
			c.Arrived(&load.Request{ID: r.ID})
			c.Record(&r)
		}
	})
	for range 50 {
		require.Equal(t, 1, c.Summary().Requests.OK)
		c.Windows(time.Second)
	}
	wg.Wait()
	require.Equal(t, 500, c.Summary().Samplers[0].Taken)
}

// hangingSink is one whose End returns when release is closed.
type hangingSink struct {
	fakeSink
	release chan struct{}
}

func (h *hangingSink) End() error { <-h.release; return nil }

func TestASinkThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &hangingSink{release: make(chan struct{})}
		c, err := NewCollector(WithSink(sink))
		require.NoError(t, err)
		start := time.Now()
		begin(t, c, load.NewClock(start))
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = c.End(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "the sink did not end")
		require.Equal(t, 30*time.Second+sinkGrace, time.Since(start))
		require.True(t, c.Summary().Began)
		close(sink.release)
	})
}

// A sampler that uses up the time of End leaves the sink some of its own.
func TestASinkIsClosedAfterASamplerThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		deaf := &fakeSampler{name: "deaf", f: func(context.Context, int) (map[string]float64, error) { <-release; return nil, nil }}
		sink := &slowSink{}
		c, err := NewCollector(WithSampler(deaf, msec), WithSink(sink))
		require.NoError(t, err)
		begin(t, c, load.NewClock(time.Now()))
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err = c.End(ctx)
		require.ErrorContains(t, err, "a sampler did not return")
		require.NotContains(t, err.Error(), "the sink")
		require.True(t, sink.ended)
		close(release)
	})
}

type slowSink struct {
	fakeSink
	ended bool
}

func (s *slowSink) End() error {
	time.Sleep(4 * time.Second) // of a synctest bubble
	s.ended = true
	return nil
}

func begin(t *testing.T, c *Collector, clock load.Clock) {
	t.Helper()
	require.NoError(t, c.Begin(context.Background(), load.Info{}))
	c.Start(clock)
}
