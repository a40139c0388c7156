package fleet

import (
	"context"
	"iter"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ms = time.Millisecond

// steady is a profile with steps of 10 ms, whatever is in them, and no time between client and scheduler.
func steady() sim.Profile {
	return sim.Profile{Name: "steady", ModelPath: "test", KVTokens: 100_000, ContextLength: 10_000, MaxRunning: 64, ChunkedSize: 4096,
		Model: sim.Linear{DecodeBase: 10, PrefillBase: 10}, Calibrated: "on nothing", KnownError: "not measured"}
}

// requests is a workload that is written out.
type requests []load.Request

func (rs requests) Plan() (load.Plan, error) {
	p := load.Plan{Dataset: "test", Arrivals: "test", Requests: len(rs)}
	for _, r := range rs {
		p.LastArrival = r.Arrival
	}
	return p, nil
}

func (rs requests) Requests() iter.Seq2[load.Request, error] {
	return func(yield func(load.Request, error) bool) {
		for i, r := range rs {
			r.ID = i
			if !yield(r, nil) {
				return
			}
		}
	}
}

// ask is a request with a prompt of its own.
func ask(id int, at time.Duration, in, out int) load.Request {
	return load.Request{ID: id, Arrival: at, InputLen: in, OutputLen: out,
		Prompt: load.Prompt{Segments: []load.Segment{{Stream: uint64(id) + 1, Length: in}}}}
}

// play runs a fleet into a collector.
func play(t testing.TB, src load.Source, pol policy.Policy, engines []Engine, opts ...Option) *metrics.Collector {
	t.Helper()
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	_, err = Run(context.Background(), src, pol, engines, col, opts...)
	require.NoError(t, err)
	return col
}

func results(c *metrics.Collector) []load.Result {
	var rs []load.Result
	for r := range c.Results() {
		rs = append(rs, r)
	}
	return rs
}

func outcomes(c *metrics.Collector) []load.Outcome {
	var os []load.Outcome
	for r := range c.Results() {
		os = append(os, r.Outcome)
	}
	return os
}

func tokenTimes(r *load.Result) []time.Duration {
	var at []time.Duration
	for ch := range r.Chunks.All() {
		for range ch.Tokens {
			at = append(at, ch.At)
		}
	}
	return at
}
