package metrics

import (
	"encoding/json"
	"errors"
	"strings"
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

// What the client did wrong, what the server did not say and what could not be observed must not pass for a measurement.
func TestNothingPassesUnseen(t *testing.T) {
	const s = 1000 * msec
	many := func(change func(i int, r *load.Result)) *Summary {
		var rs []load.Result
		for i := range 1000 {
			r := answer(i, time.Duration(i)*s/100, 0, 20*msec, 2*msec, 5)
			change(i, &r)
			rs = append(rs, r)
		}
		return collect(t, load.Plan{}, rs, nil).Summary()
	}
	late := func(r *load.Result, by time.Duration) {
		chunks := r.Chunks
		r.Chunks = load.Chunks{}
		for c := range chunks.All() {
			c.At += by
			r.Chunks.Append(c)
		}
		r.Released, r.Send, r.FirstToken, r.LastToken, r.Completion = r.Released+by, r.Send+by, r.FirstToken+by, r.LastToken+by, r.Completion+by
	}

	sum := many(func(i int, r *load.Result) {
		if i%200 == 0 { // five in a thousand, below the 99th percentile
			late(r, 10*s)
		}
	})
	require.False(t, sum.Client.OK, "the tail is the client's own")
	require.Contains(t, sum.Client.Reasons[0], "its lateness p99.9 is")
	require.Error(t, sum.Check(ClientOK()))
	err := sum.Check(AtMost(TTFT, 0.999, s))
	require.ErrorContains(t, err, "TTFT p99.9 is")
	require.ErrorContains(t, err, "mind that the client released 5 of 1000 requests")
	require.NoError(t, sum.Check(AtMost(TTFT, 0.99, s)))

	sum = many(func(_ int, r *load.Result) { r.CachedTokens, r.Retractions = load.NotReported, load.NotReported })
	require.Nil(t, sum.Throughput.CachedTokens)
	require.Nil(t, sum.Throughput.Retractions)
	require.Contains(t, sum.String(), "cached: not reported")
	require.NoError(t, sum.Check(ClientOK()))

	loaded := func(arrivals string, rate float64, last time.Duration) string {
		rs := []load.Result{answer(0, s, 0, msec, msec, 2), answer(1, 2*s, 0, msec, msec, 2), answer(2, 11*s, 0, last, 0, 1)}
		return strings.Join(collect(t, load.Plan{Arrivals: arrivals, RequestedRate: rate}, rs, nil).Summary().Notes, "\n")
	}
	require.NotContains(t, loaded("poisson 0.21/s", 0.21, s), "arrivals", "4.8 % and 9.1 %")
	text := loaded("poisson 0.25/s", 0.25, 2*s)
	require.Contains(t, text, "arrivals were scheduled at 0.2/s, -20.0 % from the requested 0.25/s: chance moves the rate of 3 Poisson arrivals by some ±57.7 %")
	require.Contains(t, text, "throughput and goodput are over 12.00 s, of which 2.00 s are drain, in which no load was added\n")
	require.Contains(t, loaded("constant 0.18/s", 0.18, s), "+11.1 % from the requested 0.18/s\n")

	before := func(send time.Duration, held time.Duration) string {
		return strings.Join(many(func(i int, r *load.Result) {
			if i < 30 { // 3 %: at p99 and beyond
				*r = answer(i, r.Arrival, send, 20*msec, 2*msec, 5)
				r.Due += held
				r.Released = r.Due
			}
		}).Notes, "\n")
	}
	require.NotContains(t, before(2*msec, 0), "server TTFT", "10 %")
	require.Contains(t, before(3*msec, 0), "TTFT is more than 10 % longer than server TTFT at p99 (23.0 and 20.0 ms), p99.9 (23.0 and 20.0 ms): "+
		"that part passed before the request was written, in the client or until it had a connection")
	require.NotContains(t, before(30*msec, 29*msec), "server TTFT", "a cap held them back")

	sum = many(func(i int, r *load.Result) { r.OutputLen, r.PromptTokens = 100, 7 })
	require.Contains(t, sum.Notes, "1000 successful answers are shorter than asked for, by the server's count: 5000 of 100000 tokens")
	require.Contains(t, sum.Notes, "1000 prompts have another length by the server's count than by the dataset's: 7000 instead of 10000 tokens")

	sum = many(func(i int, r *load.Result) {
		if i > 0 { // waited for a connection that others held
			r.Connect = 40 * msec
		}
	})
	require.Contains(t, sum.String(), "requests waited for a connection, p99 40.0 ms")

	sum = many(func(i int, r *load.Result) {
		if i%2 == 0 { // all tokens in one read
			r.LastToken, r.Completion = r.FirstToken, r.FirstToken
			r.Chunks = load.Chunks{}
			r.Chunks.Append(load.Chunk{At: r.FirstToken, Tokens: 5, TextBytes: 9})
		}
	})
	require.ErrorContains(t, sum.Check(AtMost(TPOT, 0.99, s)), "could not be observed for 500 of 1000")

	var rs []load.Result
	for i := range 10 { // a cancelled run: these waited for a place
		r := failure(i, 0, load.OutcomeCancelled, 0, "stopped")
		r.Due, r.Released, r.Send, r.Completion, r.Sent = s, s, s, s, false
		rs = append(rs, r)
	}
	rs = append(rs, answer(10, 0, 0, 20*msec, 2*msec, 5))
	require.Equal(t, 1, collect(t, load.Plan{}, rs, nil).Summary().Client.Lateness.Count)
}

// A mean that leaves failures out would flatter: one failed request is infinitely late.
func TestMeanAtMost(t *testing.T) {
	good := []load.Result{answer(0, 0, 0, 10*msec, msec, 3), answer(1, msec, 0, 20*msec, msec, 3)}
	s := collect(t, load.Plan{}, good, nil).Summary()
	require.NoError(t, s.Check(MeanAtMost(TTFT, 15*time.Millisecond)))
	require.ErrorContains(t, s.Check(MeanAtMost(TTFT, 14*time.Millisecond)), "TTFT mean is 15")
	bad := load.Result{ID: 2, Arrival: 2 * msec, Due: 2 * msec, Released: 2 * msec, Send: 2 * msec, Sent: true, Completion: 3 * msec, Outcome: load.OutcomeTimeout}
	s = collect(t, load.Plan{}, append(good, bad), nil).Summary()
	require.Error(t, s.Check(MeanAtMost(TTFT, time.Hour)))
	require.NoError(t, s.Check(MeanAtMost(ITL, time.Hour)), "which is over tokens")
	require.ErrorContains(t, s.Check(MeanAtMost(TTFT, -1)), "want a limit ≥ 0")
}
