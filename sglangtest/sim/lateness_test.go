package sim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
)

func TestLatenessQuantilesAreUpperBounds(t *testing.T) {
	var l lateness
	require.Zero(t, l.summary())
	for us := range 1000 {
		l.add(time.Duration(us+1) * time.Microsecond)
	}
	l.add(-time.Second) // early is not late
	s := l.summary()
	require.EqualValues(t, 1001, s.Pieces)
	require.Equal(t, time.Millisecond, s.Max)
	for _, q := range []struct {
		got, exact time.Duration
	}{{s.P50, 500 * time.Microsecond}, {s.P99, 990 * time.Microsecond}} {
		require.GreaterOrEqual(t, q.got, q.exact)
		require.LessOrEqual(t, q.got, min(q.exact*9/8+time.Microsecond, s.Max))
	}
	l.add(time.Hour * 24 * 365) // beyond the last bucket
	require.Equal(t, time.Hour*24*365, l.summary().Max)
}

func TestLatenessCountsWhatWasSent(t *testing.T) {
	s, c := start(t, quick(), server.Config{})
	require.Zero(t, s.StepLateness())
	c.post("/generate", `{"input_ids":[[1],[2]],"sampling_params":{"max_new_tokens":200}}`)
	require.EqualValues(t, 1, s.StepLateness().Pieces, "a whole answer")
	_, body := c.post("/generate", `{"text":"x","stream":true,"sampling_params":{"max_new_tokens":20}}`)
	require.EqualValues(t, len(events(body)), s.StepLateness().Pieces, "one, and the events but for [DONE]")
	require.Positive(t, s.StepLateness().Max)
}
