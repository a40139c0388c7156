package fleet

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// failing is play for a run that ends with an error.
func failing(t *testing.T, src load.Source, pol policy.Policy, engines []Engine, opts ...Option) (*metrics.Collector, error) {
	t.Helper()
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	_, err = Run(t.Context(), src, pol, engines, col, opts...)
	require.Error(t, err)
	return col, err
}

func TestRequestsWithoutAPlaceAreRecordedIfTheRunBreaksOff(t *testing.T) {
	src := requests{ask(0, 0, 10, 100), ask(1, 5*ms, 10, 1), ask(2, 30*ms, 10, 1), ask(3, 50*ms, 10, 1), ask(4, 51*ms, 10, 1)}
	why := errors.New("that was it")
	col, err := failing(t, src, new(policy.RoundRobin), Equal(1, steady()), WithMaxConcurrency(1), WithAction(50*ms, 0, Do("fail", func(Target) error { return why })))
	require.ErrorIs(t, err, why)
	cancelled := load.OutcomeCancelled
	require.Equal(t, []load.Outcome{cancelled, cancelled, cancelled, cancelled}, outcomes(col), "request 3 arrived when the action failed, 4 never")
	for i, r := range results(col) {
		require.Equal(t, i == 0, r.Sent)
		require.Equal(t, 50*ms, r.Completion)
		require.Equal(t, src[i].Arrival, r.Arrival)
	}

	var many requests
	for i := range 3000 {
		many = append(many, ask(i, time.Duration(i)*ms, 10, 100))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	col, err = metrics.NewCollector()
	require.NoError(t, err)
	stats, err := Run(ctx, many, new(policy.RoundRobin), Equal(1, steady()), col, WithMaxConcurrency(1), WithProgress(1, func() { cancel(why) }))
	require.ErrorIs(t, err, why)
	require.Len(t, outcomes(col), int(stats.End/ms)+1, "all that had arrived")
	require.Equal(t, stats.Requests, len(outcomes(col)))
	require.Less(t, stats.Requests, 3000)
}

// journal notes when requests arrived and ended, by the requests' own numbers.
type journal struct {
	*metrics.Collector
	log []string
}

func (j *journal) Arrived(r *load.Request) {
	j.log = append(j.log, "arrived "+string(rune('0'+r.ID)))
	j.Collector.Arrived(r)
}

func (j *journal) Record(r *load.Result) {
	j.log = append(j.log, "ended "+string(rune('0'+r.ID)))
	j.Collector.Record(r)
}

func TestArrivalsAreReportedWithoutAPlace(t *testing.T) {
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	j := &journal{Collector: col}
	src := requests{ask(0, 0, 10, 3), ask(1, 1*ms, 10, 1), ask(2, 2*ms, 10, 1)}
	_, err = Run(t.Context(), src, new(policy.RoundRobin), Equal(1, steady()), j, WithMaxConcurrency(1))
	require.NoError(t, err)
	require.Equal(t, []string{"arrived 0", "arrived 1", "arrived 2", "ended 0", "ended 1", "ended 2"}, j.log)
	rs := results(col)
	require.Equal(t, []time.Duration{0, 30 * ms, 40 * ms}, []time.Duration{rs[0].Send, rs[1].Send, rs[2].Send})
}

func TestAPolicyMayDispatchOneRequestPerPoll(t *testing.T) {
	var polled time.Duration = -1
	pol := pickFunc(func(_ *policy.Request, v *policy.View) policy.Decision {
		if at := v.Workers[0].Load.At; v.Workers[0].Load.Sampled && at > polled {
			polled = at
			return policy.Dispatch(1)
		}
		return policy.Hold(policy.Wake{On: policy.Sample})
	})
	var src requests
	for i := range 8 {
		src = append(src, ask(i, 0, 10, 1))
	}
	rs := results(play(t, src, pol, Equal(1, steady()), WithPolling(time.Second)))
	require.Equal(t, 7*time.Second, rs[7].Send)

	polled = -1
	pol2 := pickFunc(func(_ *policy.Request, v *policy.View) policy.Decision {
		if at := v.Workers[0].Load.At; v.Workers[0].Load.Sampled && at > polled {
			polled = at
			return policy.Reject("one at a time")
		}
		return policy.Hold(policy.Wake{On: policy.Sample})
	})
	require.Equal(t, 7*time.Second, results(play(t, src, pol2, Equal(1, steady()), WithPolling(time.Second)))[7].Completion)
}

func TestAStuckEngineIsNamed(t *testing.T) {
	cfg := steady().EngineConfig()
	cfg.MaxTotalTokens, cfg.PageSize, cfg.ChunkedPrefillSize = 64, 64, 64 // one page, and none to spare
	for name, opts := range map[string][]Option{"nothing": nil, "samples": {WithSamples(10 * ms)}, "polls": {WithPolling(10 * ms)},
		"both": {WithSamples(3 * ms), WithPolling(10 * ms)}} {
		t.Run(name, func(t *testing.T) {
			col, err := failing(t, requests{ask(0, 5*ms, 60, 4)}, new(policy.RoundRobin), []Engine{{Name: "tiny", Profile: steady(), Config: cfg}}, opts...)
			require.ErrorContains(t, err, "tiny can do nothing more for request 0")
			require.ErrorContains(t, err, "Waiting:1")
			require.NotContains(t, err.Error(), "policy")
			require.Equal(t, []load.Outcome{load.OutcomeCancelled}, outcomes(col))
		})
	}
}

func TestAWorkloadAtFaultIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*load.Request)
		want   string
	}{
		"output":   {func(r *load.Request) { r.OutputLen = 0 }, "output length 0"},
		"prompt":   {func(r *load.Request) { r.Prompt = load.Prompt{} }, "prompt is empty"},
		"segment":  {func(r *load.Request) { r.Prompt.Segments[0].Length = -3 }, "length > 0"},
		"two":      {func(r *load.Request) { r.Prompt.Text = "too" }, "more than one"},
		"n":        {func(r *load.Request) { r.Sampling = &load.SamplingParams{N: load.Ptr(2)} }, "n is 2"},
		"beams":    {func(r *load.Request) { r.Sampling = &load.SamplingParams{BeamWidth: load.Ptr(4)} }, "beam_width is 4"},
		"interval": {func(r *load.Request) { r.Sampling = &load.SamplingParams{StreamInterval: load.Ptr(8)} }, "stream_interval is 8"},
	} {
		t.Run(name, func(t *testing.T) {
			src := requests{ask(0, 0, 10, 5), ask(1, 1*ms, 10, 5)}
			c.change(&src[1])
			col, err := failing(t, src, new(policy.RoundRobin), Equal(1, steady()))
			require.ErrorContains(t, err, "fleet: workload: request 1: ")
			require.ErrorContains(t, err, c.want)
			require.Equal(t, []load.Outcome{load.OutcomeCancelled}, outcomes(col))
		})
	}
	one := requests{ask(0, 0, 10, 5)}
	one[0].Sampling = &load.SamplingParams{N: load.Ptr(1), StreamInterval: load.Ptr(1)}
	play(t, one, new(policy.RoundRobin), Equal(1, steady()))
}

// broken is a source that fails after its requests.
type broken struct {
	requests
	err error
}

func (b broken) Requests() iter.Seq2[load.Request, error] {
	return func(yield func(load.Request, error) bool) {
		for r := range b.requests.Requests() {
			if !yield(r, nil) {
				return
			}
		}
		yield(load.Request{}, b.err)
	}
}

func TestASourceThatFails(t *testing.T) {
	why := errors.New("disk gone")
	col, err := failing(t, broken{requests{ask(0, 0, 10, 9), ask(1, 0, 10, 9)}, why}, new(policy.RoundRobin), Equal(1, steady()), WithMaxConcurrency(1))
	require.ErrorIs(t, err, why)
	require.Equal(t, []load.Outcome{load.OutcomeCancelled, load.OutcomeCancelled}, outcomes(col))
}

func TestActionsThatAreNotDoneAreNoted(t *testing.T) {
	col := play(t, requests{ask(0, 0, 10, 1)}, new(policy.RoundRobin), Equal(2, steady()), WithAction(time.Hour, 1, Kill()), WithAction(time.Hour, 0, SetLimit(2)), WithAction(5*ms, 0, SetLimit(3)))
	events := col.Events()
	require.Len(t, events, 4)
	require.Equal(t, []string{metrics.KindParamUpdate, metrics.KindParamInForce}, []string{events[0].Kind, events[1].Kind})
	data := func(key string, v any) map[string]any {
		return map[string]any{key: v, "planned_ns": int64(time.Hour), "reason": "the run had ended"}
	}
	require.Equal(t, metrics.Event{At: 10 * ms, Kind: metrics.KindServerFaultNotMade, Source: "server-1", Data: data("message", "killed")}, events[2])
	limit := data("name", "max_running_requests")
	limit["value"] = 2
	require.Equal(t, metrics.Event{At: 10 * ms, Kind: metrics.KindParamUpdateNotMade, Source: "server-0", Data: limit}, events[3])

	col, _ = failing(t, requests{ask(0, 0, 10, 1)}, pickFunc(func(*policy.Request, *policy.View) policy.Decision { return policy.Decision{} }),
		Equal(1, steady()), WithAction(5*ms, 0, Kill()))
	require.Equal(t, metrics.KindServerFaultNotMade, col.Events()[0].Kind)
}

// bare is a recorder without the optional methods.
type bare struct{ load.Recorder }

func TestSamplesForARecorderThatTakesNone(t *testing.T) {
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	_, err = Run(t.Context(), requests{ask(0, 5*ms, 10, 3)}, new(policy.RoundRobin), Equal(1, steady()), bare{col}, WithSamples(10*ms))
	require.NoError(t, err)
	require.Equal(t, []load.Outcome{load.OutcomeOK}, outcomes(col))
	require.Empty(t, col.Samples())
}

// An engine's own QuietDecode changes nothing: the fleet sets it.
func TestQuietDecodeOfTheConfigChangesNothing(t *testing.T) {
	src, p, cfg := crowded(200)
	loud := results(play(t, src, new(policy.RoundRobin), []Engine{{Profile: p, Config: cfg}}, WithTimeout(3*time.Second)))
	cfg.QuietDecode = true
	quiet := results(play(t, src, new(policy.RoundRobin), []Engine{{Profile: p, Config: cfg}}, WithTimeout(3*time.Second)))
	require.Equal(t, loud, quiet)
	require.Greater(t, loud[0].OutputTokens, 1)
}

// BenchmarkHeld holds 20,000 requests back and sends them one after another: each end has the policy asked
// about the next one.
func BenchmarkHeld(b *testing.B) {
	src := make(requests, 20_000)
	for i := range src {
		src[i] = ask(i, time.Duration(i)*time.Microsecond, 10, 1)
	}
	pol := pickFunc(func(_ *policy.Request, v *policy.View) policy.Decision {
		if v.Workers[0].InFlight < 64 {
			return policy.Dispatch(1)
		}
		return policy.Hold(policy.Wake{On: policy.Freed, At: v.Now + time.Hour})
	})
	for b.Loop() {
		play(b, src, pol, Equal(1, steady()))
	}
}
