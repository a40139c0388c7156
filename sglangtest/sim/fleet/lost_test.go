package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// prioritise gives the requests from the given one on a priority at which they may preempt, between two steps.
func prioritise(from int) Action {
	return Do("prioritise", func(t Target) error {
		for f := t.(target).w.flights.first; f != nil; f = f.next {
			if f.load.ID >= from {
				f.request.Priority = 100
			}
		}
		return nil
	})
}

// A run in which a scheduler loses a request says so: an event and a note, and, if nothing ends the wait, the error.
func TestLostRequests(t *testing.T) {
	engine := func(rules sim.Rules, keep bool) []Engine {
		e := Equal(1, steady())
		e[0].Config = sim.EngineConfig{Rules: rules, KeepPreempted: keep, MaxTotalTokens: 1000, ContextLength: 10_000, MaxRunningRequests: 2,
			MaxPrefillTokens: 1000, ScheduleConservativeness: 1, EnablePriorityScheduling: true, PreemptionThreshold: 10}
		return e
	}
	src := requests{ask(0, 0, 100, 50), ask(1, 25*ms, 400, 20), ask(2, 75*ms, 580, 5)}
	opts := []Option{WithAction(26*ms, 0, prioritise(1)), WithAction(76*ms, 0, prioritise(1))}
	ok, timeout := load.OutcomeOK, load.OutcomeTimeout

	_, err := failing(t, src, new(policy.RoundRobin), engine(sim.Rules0515, false), opts...)
	require.ErrorContains(t, err, "server-0 lost request 0")
	require.ErrorContains(t, err, "KeepPreempted")
	require.NotContains(t, err.Error(), "nothing more")

	col := play(t, src, new(policy.RoundRobin), engine(sim.Rules0515, false), append(opts, WithTimeout(10*time.Second))...)
	require.Equal(t, []load.Outcome{timeout, ok, ok}, outcomes(col))
	events := col.Events()
	require.Equal(t, metrics.KindRequestLost, events[len(events)-1].Kind)
	require.Equal(t, map[string]any{"request": 0}, events[len(events)-1].Data)
	require.Contains(t, col.Summary().Notes, "the simulated scheduler lost 1 requests, as SGLang before 0.5.23 does with a request that it preempted for one that is "+
		"then not admitted: they can only run into a deadline; the first IDs: [0]")

	for _, e := range [][]Engine{engine(sim.Rules0515, true), engine(sim.Rules0523, false)} {
		require.Equal(t, []load.Outcome{ok, ok, ok}, outcomes(play(t, src, new(policy.RoundRobin), e, opts...)))
	}
}

// A scheduler that dies for want of memory, as SGLang's would, takes its requests with it.
func TestEngineDiesOfMemory(t *testing.T) {
	e := Equal(2, steady())
	e[0].Config = sim.EngineConfig{MaxTotalTokens: 3000, ContextLength: 10_000, MaxRunningRequests: 8, MaxPrefillTokens: 1000,
		ScheduleConservativeness: 0.3, ChunkedPrefillSize: 8, EnableMixedChunk: true}
	var src requests
	for i := range 6 { // even ones go to engine 0
		src = append(src, ask(2*i, 0, 10, 600), ask(2*i+1, 0, 10, 1))
		src[2*i].Sampling = &load.SamplingParams{IgnoreEOS: new(bool)}
	}
	src[10] = ask(10, 0, 1500, 1)
	col := play(t, src, new(policy.RoundRobin), e)
	lost := 0
	for _, r := range results(col) {
		if r.ID%2 == 1 {
			require.Equal(t, load.OutcomeOK, r.Outcome)
			continue
		}
		require.Contains(t, []load.Outcome{load.OutcomeReset, load.OutcomeTruncated}, r.Outcome)
		require.Contains(t, r.Message, "of memory")
		lost++
	}
	require.Equal(t, 6, lost)
	events := col.Events()
	require.Len(t, events, 1)
	require.Equal(t, metrics.KindServerEnded, events[0].Kind)
	require.Equal(t, "server-0", events[0].Source)
	require.Contains(t, events[0].Data["error"], "Out of memory")
}
