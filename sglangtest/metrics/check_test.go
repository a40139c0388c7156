package metrics

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// 1000 requests with TTFT i/2 + 114.5 ms; three of them fail.
func checkRun(t *testing.T) *Summary {
	var rs []load.Result
	for i := range 1000 {
		r := answer(i, time.Duration(i)*10*msec, 0, time.Duration(i)*msec/2+114500*time.Microsecond, 10*msec, 10)
		if i >= 997 {
			r = failure(i, r.Arrival, load.OutcomeHTTP, 503, "queue full")
		}
		rs = append(rs, r)
	}
	return collect(t, load.Plan{Requests: 1000}, rs, nil, WithGoodput(SLO{TTFT: 500 * msec})).Summary()
}

func TestCheck(t *testing.T) {
	live := checkRun(t)
	b, err := json.Marshal(live)
	require.NoError(t, err)
	var read Summary
	require.NoError(t, json.Unmarshal(b, &read))
	for name, s := range map[string]*Summary{"live": live, "read back": &read} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, s.Check(AtMost(TTFT, 0.99, 610*msec), AtMost(TTFT, 0.5, 400*msec), AtLeast(SuccessShare, 0.99)))

			err := s.Check(AtMost(TTFT, 0.99, 500*msec), AtMost(TotalLatency, 0.5, time.Second), AtMost(TTFT, 0.999, time.Hour),
				AtMost(TTFT, 1, time.Hour), AtLeast(SuccessShare, 1), AtLeast(GoodputShare, 0.9))
			var missed *CheckError
			require.ErrorAs(t, err, &missed)
			require.Len(t, missed.Missed, 5)
			require.Equal(t, `metrics: TTFT p99 is 609 ms, 109 ms (21.8 %) above the limit of 500 ms; 3 of 1000 requests failed and count as missed
metrics: TTFT p99.9 has no value because it falls among the failures; the limit is 3600000 ms; 3 of 1000 requests failed and count as missed
metrics: TTFT p100 has no value because it falls among the failures; the limit is 3600000 ms; 3 of 1000 requests failed and count as missed
metrics: success share is 0.997 of all requests, 0.003 (0.3 %) below the limit of 1
metrics: goodput share is 0.772 of all requests, 0.128 (14.2 %) below the limit of 0.9`, err.Error())

			err = s.Check(AtMost(TTFT, 0.97, time.Second), AtMost("ttft", 0.5, time.Second), Limit{}, AtLeast(RequestThroughput, -1))
			require.False(t, errors.As(err, &missed))
			require.EqualError(t, err, `metrics: check: TTFT p97: quantile 0.97 was not computed: the summary has 0.5, 0.9, 0.95, 0.99, 0.999 and 1; use WithPercentiles
metrics: check: "ttft" is not a latency of the summary
metrics: check: a zero Limit; use AtMost or AtLeast
metrics: check: request throughput at least -1: want a limit > 0`)
		})
	}
}

func TestCheckWithNothingMeasured(t *testing.T) {
	s := collect(t, load.Plan{}, nil, nil).Summary()
	require.ErrorContains(t, s.Check(AtMost(TTFT, 0.99, time.Second)), "nothing was measured")
	require.ErrorContains(t, s.Check(AtLeast(SuccessShare, 0.5)), "no request arrived")
	require.ErrorContains(t, s.Check(AtLeast(GoodputRate, 1)), "use WithGoodput")
}
