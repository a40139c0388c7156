package fleet

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// limits returns the events of changed limits but the changes themselves.
func limits(col *metrics.Collector) []metrics.Event {
	var es []metrics.Event
	for _, e := range col.Events() {
		if e.Kind == metrics.KindParamInForce || e.Kind == metrics.KindParamNotInForce {
			es = append(es, e)
		}
	}
	return es
}

// A changed limit is in force when the running requests obey it, as on a real server.
func TestWhenAChangedLimitIsInForce(t *testing.T) {
	// Four requests that end after 3, 6, 9 and 12 steps of 10 ms.
	src := requests{ask(0, 0, 10, 3), ask(1, 0, 10, 6), ask(2, 0, 10, 9), ask(3, 0, 10, 12)}
	col := play(t, src, new(policy.RoundRobin), Equal(1, steady()), WithAction(25*ms, 0, SetLimit(2)), WithSamples(ms))
	es := limits(col)
	require.Len(t, es, 1)
	require.Equal(t, metrics.KindParamInForce, es[0].Kind)
	require.Equal(t, 50*ms, es[0].At, "the last step of the second has been launched: the engine counts it no more")
	require.Equal(t, map[string]any{"name": "max_running_requests", "value": 2, "asked_ns": int64(25 * ms), "accepted_ns": int64(25 * ms),
		"not_before_ns": int64(50 * ms)}, es[0].Data)
	for _, s := range col.Samples() {
		if s.At != es[0].At && s.Values[metrics.MaxTokens] > 0 && s.At > 10*ms {
			require.Equal(t, s.At > es[0].At, s.Values[metrics.NumRunning] <= 2, "%v: %v", s.At, s.Values)
		}
	}

	// A raise shows when requests that waited run beside each other: after the first that ends.
	col = play(t, src, new(policy.RoundRobin), Equal(1, steady()), WithAction(0, 0, SetLimit(1)), WithAction(25*ms, 0, SetLimit(3)), WithSamples(ms))
	es = limits(col)
	require.Len(t, es, 2)
	require.Equal(t, 0*ms, es[0].At, "none ran")
	require.Equal(t, metrics.KindParamInForce, es[1].Kind)
	require.Equal(t, 30*ms, es[1].At)
	for _, s := range col.Samples() {
		if s.At != es[1].At && s.At < 60*ms {
			require.Equal(t, s.At > es[1].At, s.Values[metrics.NumRunning] > 1, "%v: %v", s.At, s.Values)
		}
	}

	for _, tc := range []struct {
		then []Option
		want string
	}{
		{nil, "the run had ended"},
		{[]Option{WithAction(30*ms, 0, SetLimit(64))}, "the limit was changed again"},
		{[]Option{WithAction(30*ms, 0, Kill())}, "the server ended"},
	} {
		opts := append([]Option{WithAction(0, 0, SetLimit(5)), WithAction(25*ms, 0, SetLimit(8))}, tc.then...)
		es = limits(play(t, src, new(policy.RoundRobin), Equal(1, steady()), opts...))
		require.Equal(t, metrics.KindParamNotInForce, es[1].Kind, tc.want)
		require.Equal(t, tc.want, es[1].Data["reason"])
	}
}
