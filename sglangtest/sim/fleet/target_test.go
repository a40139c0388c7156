package fleet

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
)

func TestKillAndRestart(t *testing.T) {
	p := steady()
	p.Ingest, p.Egress = 2*ms, 1*ms
	src := requests{
		ask(0, 0, 10, 100),     // has tokens when the engine is killed
		ask(1, 24*ms, 10, 100), // on the way to the scheduler
		ask(2, 30*ms, 10, 1),   // nobody listens
		ask(3, 70*ms, 10, 1),   // back again
	}
	o := new(observer)
	col := play(t, src, o, Equal(1, p), WithAction(60*ms, 0, Restart()), WithAction(25*ms, 0, Kill()), WithSamples(50*ms))
	rs := results(col)
	require.Equal(t, []load.Outcome{load.OutcomeTruncated, load.OutcomeReset, load.OutcomeRefused, load.OutcomeOK}, outcomes(col))
	require.Equal(t, 25*ms, rs[0].Completion)
	require.Equal(t, []time.Duration{13 * ms, 23 * ms}, tokenTimes(&rs[0]), "what had reached the client")
	require.Equal(t, 2, rs[0].OutputTokens)
	require.True(t, rs[1].Sent)
	require.Zero(t, rs[1].FirstToken)
	require.False(t, rs[2].Sent)
	require.Equal(t, 30*ms, rs[2].Send)
	require.Equal(t, 83*ms, rs[3].FirstToken)

	events := col.Events()
	require.Equal(t, []metrics.Event{
		{At: 25 * ms, Kind: metrics.KindServerFault, Source: "server-0", Data: map[string]any{"message": "killed", "requests": 2}},
		{At: 60 * ms, Kind: metrics.KindServerFault, Source: "server-0", Data: map[string]any{"message": "restarted"}},
	}, events)
	require.NotEmpty(t, col.Samples()[1].Err, "a dead engine leaves a gap in the samples")
}

func TestADeadWorkerIsFoundByPolling(t *testing.T) {
	var src requests
	for i := range 12 {
		src = append(src, ask(i, time.Duration(i)*10*ms, 10, 1))
	}
	col := play(t, src, new(policy.RoundRobin), Equal(2, steady()), WithPolling(40*ms), WithAction(15*ms, 1, Kill()), WithAction(75*ms, 1, Restart()))
	got := outcomes(col)
	ok, refused := load.OutcomeOK, load.OutcomeRefused
	require.Equal(t, []load.Outcome{ok, load.OutcomeReset, ok, refused, ok, ok, ok, ok, ok, ok, ok, ok}, got)
	rs := results(col)
	require.ElementsMatch(t, []string{"server-0", "server-1"}, []string{rs[10].Worker, rs[11].Worker}, "it is found again")

	col = play(t, src[:2], new(policy.RoundRobin), Equal(1, steady()), WithPolling(5*ms), WithAction(0, 0, Kill()))
	require.Equal(t, load.OutcomeRejected, outcomes(col)[1], "no healthy worker")
}

func TestSetLimitAndSlow(t *testing.T) {
	var src requests
	for i := range 40 {
		src = append(src, ask(i, time.Duration(i)*ms, 10, 50))
	}
	col := play(t, src, new(policy.RoundRobin), Equal(1, steady()), WithSamples(100*ms), WithAction(0, 0, SetLimit(4)))
	most := 0.0
	for _, s := range col.Samples() {
		most = max(most, s.Values[metrics.NumRunning])
	}
	require.Equal(t, 4.0, most)
	e := col.Events()[0]
	require.Equal(t, metrics.KindParamUpdate, e.Kind)
	require.Equal(t, map[string]any{"name": "max_running_requests", "value": 4, "asked_ns": int64(0), "accepted_ns": int64(0), "previous": 64, "read_back": 4,
		"mechanism": "pp_max_micro_batch_size of the simulated scheduler"}, e.Data)

	col = play(t, requests{ask(0, 0, 10, 7)}, new(policy.RoundRobin), Equal(1, steady()), WithAction(25*ms, 0, Slow(3)), WithAction(65*ms, 0, Slow(1)))
	r := results(col)[0]
	// A step is planned, and its time fixed, when the one before it begins.
	require.Equal(t, []time.Duration{10 * ms, 20 * ms, 30 * ms, 40 * ms, 70 * ms, 100 * ms, 110 * ms}, tokenTimes(&r))
}

func TestARestartedEngineHasItsOwnSpeed(t *testing.T) {
	src := requests{ask(0, 0, 10, 2), ask(1, 50*ms, 10, 2)}
	rs := results(play(t, src, new(policy.RoundRobin), []Engine{{Profile: steady(), Speed: 0.5}}, WithAction(5*ms, 0, Slow(3)),
		WithAction(45*ms, 0, Kill()), WithAction(46*ms, 0, Restart())))
	require.Equal(t, []time.Duration{70 * ms, 90 * ms}, tokenTimes(&rs[1]))
}

func TestActionFaultsEndTheRun(t *testing.T) {
	for name, c := range map[string]struct {
		opts []Option
		want string
	}{
		"limit":   {[]Option{WithAction(0, 0, SetLimit(65))}, "want 1 to 64"},
		"kill":    {[]Option{WithAction(0, 0, Kill()), WithAction(0, 0, Kill())}, "down already"},
		"set":     {[]Option{WithAction(0, 0, Kill()), WithAction(0, 0, SetLimit(1))}, "is down"},
		"restart": {[]Option{WithAction(0, 0, Restart())}, "not down"},
		"slow":    {[]Option{WithAction(0, 0, Slow(0))}, "factor 0"},
	} {
		t.Run(name, func(t *testing.T) {
			col, err := metrics.NewCollector()
			require.NoError(t, err)
			_, err = Run(context.Background(), requests{ask(0, 0, 10, 5)}, new(policy.RoundRobin), Equal(1, steady()), col, c.opts...)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// A factor beyond all measure makes an engine slow and not fast, and a hang is one.
func TestHangAndSlowWithoutEnd(t *testing.T) {
	src := requests{ask(0, 0, 10, 5), ask(1, 30*ms, 10, 5), ask(2, 200*ms, 10, 2)}
	for name, act := range map[string]Action{"hang": Hang(), "slow": Slow(1e15), "slowest": Slow(1.7e308)} {
		t.Run(name, func(t *testing.T) {
			col := play(t, src, new(policy.RoundRobin), Equal(1, steady()), WithAction(15*ms, 0, act), WithTimeout(100*ms), WithSamples(50*ms), WithPolling(10*ms),
				WithAction(150*ms, 0, Kill()), WithAction(160*ms, 0, Restart()))
			rs := results(col)
			require.Equal(t, []load.Outcome{load.OutcomeTimeout, load.OutcomeTimeout, load.OutcomeOK}, outcomes(col))
			require.Equal(t, []time.Duration{100 * ms, 130 * ms}, []time.Duration{rs[0].Completion, rs[1].Completion})
			require.Equal(t, 10*ms, rs[0].FirstToken, "what had been made")
			require.LessOrEqual(t, rs[0].OutputTokens, 3, "what was under way")
			require.Zero(t, rs[1].FirstToken)
			if name == "hang" {
				require.Equal(t, map[string]any{"message": "hung"}, col.Events()[0].Data)
				require.Contains(t, col.Samples()[1].Err, "hangs since 15ms")
			}

			c, err := metrics.NewCollector()
			require.NoError(t, err)
			_, err = Run(context.Background(), src[:2], new(policy.RoundRobin), Equal(1, steady()), c, WithAction(15*ms, 0, act))
			require.ErrorContains(t, err, "nothing else is left to happen")
			require.Equal(t, []load.Outcome{load.OutcomeCancelled, load.OutcomeCancelled}, outcomes(c))
		})
	}
}

// An answer for which the pool or the context has no room is shorter, and that is said.
func TestShortenedAnswersAreCounted(t *testing.T) {
	cfg := steady().EngineConfig()
	cfg.MaxTotalTokens, cfg.ChunkedPrefillSize = 500, 100
	col, err := metrics.NewCollector()
	require.NoError(t, err)
	stats, err := Run(context.Background(), requests{ask(0, 0, 100, 1000), ask(1, 0, 100, 50), ask(2, 0, 200, 700), ask(3, 0, 100, 60)}, new(policy.RoundRobin),
		[]Engine{{Profile: steady(), Config: cfg}, {Profile: steady()}}, col)
	require.NoError(t, err)
	require.Equal(t, 2, stats.Shortened)
	rs := results(col)
	require.Equal(t, load.OutcomeOK, rs[0].Outcome)
	notes := strings.Join(col.Summary().Notes, "\n")
	require.Contains(t, notes, "server-0, at ")
	require.Contains(t, notes, "2 answers are shorter than asked for, since a prompt and its answer may have no more than the pool of 500 KV tokens or the context of 10000")
	require.Equal(t, 1, strings.Count(notes, "KV tokens or the context"))
}

// Requests that the pool can never hold end, each with its reason, or the run says which one nothing can admit.
func TestRequestsBeyondThePool(t *testing.T) {
	var src requests
	for i := range 60 {
		size := [][2]int{{500, 400}, {790, 50}, {100, 50}, {500, 400}, {790, 50}, {100, 50}, {500, 400}, {790, 50}, {100, 50}, {912, 10}}[i%10]
		src = append(src, ask(i, time.Duration(i)*ms, size[0], size[1]))
	}
	for _, radix := range []bool{true, false} {
		cfg := steady().EngineConfig()
		cfg.MaxTotalTokens, cfg.DisableRadixCache = 800, !radix
		col, err := metrics.NewCollector()
		require.NoError(t, err)
		stats, err := Run(context.Background(), src, new(policy.RoundRobin), []Engine{{Profile: steady(), Config: cfg}}, col)
		rs := results(col)
		require.Len(t, rs, 60)
		counts := map[load.Outcome]int{}
		for _, r := range rs {
			counts[r.Outcome]++
			if !r.OK() {
				require.NotEmpty(t, r.Message)
			}
			if r.Outcome == load.OutcomeAbort {
				require.Contains(t, r.Message, "Input length (912 tokens) exceeds the maximum allowed length (794 tokens)")
			}
		}
		if err != nil { // SGLang's own rule without the cache stalls
			require.False(t, radix)
			require.ErrorContains(t, err, "can do nothing more for request ")
			continue
		}
		require.Equal(t, map[load.Outcome]int{load.OutcomeOK: 54, load.OutcomeAbort: 6}, counts)
		require.Equal(t, 36, stats.Shortened)
	}
}
