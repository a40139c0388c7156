package metrics

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// Ten requests, one each 100 ms: seven good ones, a refused one, an HTTP error, a cancelled one; and one that vanished.
func mixedRun(t testing.TB, opts ...Option) *Collector {
	var rs []load.Result
	for i := range 7 {
		rs = append(rs, answer(i, time.Duration(i)*100*msec, msec, time.Duration(20+i)*msec, 10*msec, 5))
	}
	refused := failure(7, 700*msec, load.OutcomeRefused, 0, "connection refused")
	refused.Sent, refused.Send = false, refused.Completion
	broken := failure(8, 800*msec, load.OutcomeHTTP, 503, "queue full")
	broken.OutputTokens = 3
	rs = append(rs, refused, broken, failure(9, 900*msec, load.OutcomeCancelled, 0, "run cancelled"))
	return collect(t, load.Plan{Requests: 20, RequestedRate: 10, Dataset: "random", Arrivals: "uniform 10/s", Seed: 7}, rs,
		[]load.Request{{ID: 10, Arrival: time.Second}}, opts...)
}

func TestSummaryCounts(t *testing.T) {
	s := mixedRun(t).Summary()
	require.Equal(t, Requests{Planned: 20, Arrived: 11, OK: 7, Failed: 3, Censored: 1, Unfinished: 2, UnfinishedIDs: []int{9, 10}, Outcomes: []OutcomeCount{
		{Outcome: load.OutcomeOK, Count: 7},
		{Outcome: load.OutcomeHTTP, Count: 1, Message: "status 503: queue full"},
		{Outcome: load.OutcomeRefused, Count: 1, Message: "connection refused"},
		{Outcome: load.OutcomeCancelled, Count: 1, Message: "run cancelled"},
		{Outcome: NoRecord, Count: 1, Message: "arrived, but nothing was recorded of it"},
	}}, s.Requests)
	require.Equal(t, Durations{Measured: 1, Arrivals: 1, Drain: 0}, s.Durations)
	require.InDelta(t, 10, *s.Rates.Scheduled, 1e-9)
	require.EqualValues(t, 10, *s.Rates.Requested)
	require.Equal(t, Throughput{Requests: 7, InputTokensPerS: 70, OutputTokensPerS: 35, InputTokens: 70, OutputTokens: 35,
		CachedTokens: load.Ptr[int64](0), FailedOutputTokens: 3, Retractions: load.Ptr(0)}, s.Throughput)
	require.Contains(t, s.Notes, "9 of the 20 planned requests never arrived")
}

func TestStrictLatencies(t *testing.T) {
	s := mixedRun(t, WithPercentiles(200.0/3, 95)).Summary()
	// TTFT of request i is 21 + i ms; three of ten have none, and one was under way when the run was stopped.
	require.Equal(t, 7, s.TTFT.Count)
	require.Equal(t, 3, s.TTFT.Failed)
	require.InDelta(t, 24, float64(s.TTFT.Mean), 1e-9)
	require.InDelta(t, 25.5, float64(s.TTFT.Median), 1e-9, "between the fifth and the sixth of ten")
	require.InDelta(t, 27, float64(s.TTFT.Percentiles[0].Value), 1e-9, "exactly the seventh of ten, the last success")
	require.False(t, s.TTFT.Percentiles[1].Value.Valid(), "p95 falls among the failures")
	require.InDelta(t, 23, float64(s.ServerTTFT.Mean), 1e-9)
	require.InDelta(t, 10, float64(s.TPOT.Mean), 1e-9)
	require.InDelta(t, 64, float64(s.TotalLatency.Mean), 1e-9)
	require.InDelta(t, 63, float64(s.ServerLatency.Mean), 1e-9)
	require.Equal(t, 9, s.QueueTime.Count, "failed or not, they were sent")
	require.Equal(t, 2, s.QueueTime.Failed, "the refused and the lost one never left")
	require.Equal(t, 28, s.ITL.Count)
	require.Zero(t, s.ITL.Failed)
	require.InDelta(t, 10, float64(s.ITL.Max), 1e-9)
}

func TestITLPerToken(t *testing.T) {
	r := answer(0, 0, 0, 10*msec, 0, 1)
	r.Chunks = load.Chunks{}
	for _, c := range []load.Chunk{
		{At: 10 * msec, Tokens: 2, TextBytes: 4},  // starts the clock; its second token has no gap
		{At: 40 * msec, Tokens: 3, TextBytes: 4},  // three of 10 ms
		{At: 50 * msec, TextBytes: 4},             // held-back text: no token, the stamp stays
		{At: 60 * msec, Tokens: 1, TextBytes: 4},  // 20 ms
		{At: 60 * msec, Tokens: 2, TextBytes: 4},  // the same read: two of 0
		{At: 100 * msec, Tokens: 1, TextBytes: 4}, // 40 ms
	} {
		r.Chunks.Append(c)
	}
	r.OutputTokens, r.LastToken, r.Completion = 9, 100*msec, 100*msec
	s := collect(t, load.Plan{}, []load.Result{r}, nil, WithPercentiles(90)).Summary()
	require.Equal(t, 7, s.ITL.Count) // 0 0 10 10 10 20 40
	require.InDelta(t, 90.0/7, float64(s.ITL.Mean), 1e-9)
	require.InDelta(t, 10, float64(s.ITL.Median), 1e-9)
	require.InDelta(t, 28, float64(s.ITL.Percentiles[0].Value), 1e-9)
	require.Equal(t, 2, s.Streams.CoalescedTokens)
	require.InDelta(t, 90.0/7, float64(s.TPOT.Mean), 1e-9, "over the tokens after the first two")

	// The same stream of a server that counts only at the end: no ITL rather than a guess.
	r.OutputTokens = 12
	s = collect(t, load.Plan{}, []load.Result{r}, nil).Summary()
	require.Zero(t, s.ITL.Count)
	require.Equal(t, 1, s.Streams.Uncounted)
	require.Contains(t, s.Notes, "1 answers have no ITL: how many tokens each of their events added is not known, or was not kept")
}

func TestOneReadHasNoTPOT(t *testing.T) {
	r := answer(0, 0, 0, 10*msec, 0, 5) // five tokens, all at 10 ms
	s := collect(t, load.Plan{}, []load.Result{r}, nil).Summary()
	require.Zero(t, s.TPOT.Count)
	require.Equal(t, 1, s.Streams.OneRead)
}

// Each answer takes 50 ms for five tokens after its first event.
func TestTPOTCountsFromTheFirstStamp(t *testing.T) {
	stream := func(id int, chunks ...load.Chunk) load.Result {
		r := answer(id, 0, 0, 10*msec, 0, 1)
		r.Chunks, r.OutputTokens = load.Chunks{}, 0
		for _, c := range chunks {
			r.Chunks.Append(c)
			r.OutputTokens += c.Tokens
			r.LastToken = c.At
		}
		r.Completion = r.LastToken
		return r
	}
	chunk := func(at time.Duration, tokens int) load.Chunk {
		return load.Chunk{At: at, Tokens: tokens, TextBytes: 4}
	}
	several := stream(0, chunk(10*msec, 5), chunk(60*msec, 5))
	sameRead := stream(1, chunk(10*msec, 1), chunk(10*msec, 3), chunk(35*msec, 2), chunk(60*msec, 3))
	single := stream(2, chunk(10*msec, 1), chunk(60*msec, 5))
	noChunks := several
	noChunks.ID, noChunks.Chunks, noChunks.FirstTokens = 3, load.Chunks{}, 5
	for _, r := range []load.Result{several, sameRead, single, noChunks} {
		s := collect(t, load.Plan{}, []load.Result{r}, nil, WithGoodput(SLO{TPOT: 10 * msec})).Summary()
		require.InDelta(t, 10, float64(s.TPOT.Mean), 1e-9, r.ID)
		require.Equal(t, 1, s.Goodput.Good)
	}
	s := collect(t, load.Plan{}, []load.Result{several, sameRead, single, noChunks}, nil).Summary()
	require.Equal(t, []int{3, 14, 0, 0}, []int{s.Streams.FirstSeveral, s.Streams.FirstTokens, s.Streams.FirstUnknown, s.Streams.OneRead})
	require.Contains(t, s.Notes, "3 answers began with several tokens at once, 4.7 in the mean: their TTFT is that of all of these, and TPOT is over the tokens "+
		"after them; bench_serving's TPOT counts them as if they had come one by one, and is shorter")
	require.InDelta(t, 50.0/9, float64(collect(t, load.Plan{}, []load.Result{several}, nil).Summary().BenchServing.TPOT.Mean), 1e-9, "bench_serving's own form")

	// All tokens came first; what came later was text that had been held back.
	late := stream(0, chunk(10*msec, 5), load.Chunk{At: 60 * msec, TextBytes: 4})
	s = collect(t, load.Plan{}, []load.Result{late}, nil, WithGoodput(SLO{TPOT: time.Second})).Summary()
	require.Equal(t, []int{0, 1, 0}, []int{s.TPOT.Count, s.Streams.OneRead, s.Goodput.Good})

	// A server that counts only at the end.
	unknown := stream(0, chunk(10*msec, 0), chunk(60*msec, 0))
	unknown.OutputTokens = 6
	s = collect(t, load.Plan{}, []load.Result{unknown}, nil).Summary()
	require.InDelta(t, 10, float64(s.TPOT.Mean), 1e-9)
	require.Equal(t, 1, s.Streams.FirstUnknown)
	require.Contains(t, s.Notes, "1 answers do not tell how many tokens came first: their TPOT takes one, and is too short if there were more")

	// In a long run of answers of one token at a time nobody needs to know of one that began with two.
	var many []load.Result
	for i := range 50 {
		many = append(many, answer(i, 0, 0, msec, msec, 10))
	}
	many[0] = stream(0, chunk(10*msec, 2), chunk(20*msec, 1))
	s = collect(t, load.Plan{}, many, nil).Summary()
	require.Equal(t, 1, s.Streams.FirstSeveral)
	require.NotContains(t, s.String(), "began with several")
}

func TestInFlight(t *testing.T) {
	at := func(id int, send, completion time.Duration) load.Result {
		r := answer(id, send, 0, completion-send, 0, 1)
		return r
	}
	s := collect(t, load.Plan{}, []load.Result{
		at(0, 0, 10*msec), at(1, 5*msec, 15*msec), at(2, 10*msec, 20*msec), // the third starts as the first ends
		at(3, 30*msec, 40*msec), at(4, 35*msec, 35*msec),
	}, nil).Summary()
	require.Equal(t, 2, s.InFlight.Peak)
	require.InDelta(t, 1, s.InFlight.Mean, 1e-9) // 40 ms of 40 ms
}

func TestGoodput(t *testing.T) {
	s := mixedRun(t, WithGoodput(SLO{TTFT: 24 * msec, E2E: 63 * msec})).Summary()
	require.Equal(t, 3, s.Goodput.Good) // TTFT 21…27, E2E 61…67
	require.InDelta(t, 3.0/10, s.Goodput.Share, 1e-12)
	require.Equal(t, map[string]float64{"ttft": 4.0 / 10, "e2el": 3.0 / 10}, s.Goodput.ByLimit)
	require.InDelta(t, 3, s.Goodput.PerSecond, 1e-12)
}

func TestSummaryJSONRoundTrip(t *testing.T) {
	s := mixedRun(t, WithGoodput(SLO{TTFT: time.Second}), WithSimulation(Simulation{Profile: "h100", KnownError: "TTFT p50 3 %"})).Summary()
	first, err := json.Marshal(s)
	require.NoError(t, err)
	var back Summary
	require.NoError(t, json.Unmarshal(first, &back))
	second, err := json.Marshal(back)
	require.NoError(t, err)
	require.JSONEq(t, string(first), string(second))
	require.Equal(t, SchemaVersion, back.SchemaVersion)
	require.Equal(t, s.String(), back.String())
}

func TestClientVerdict(t *testing.T) {
	run := func(late time.Duration, every int, opts ...Option) Client {
		var rs []load.Result
		for i := range 100 {
			r := answer(i, time.Duration(i)*10*msec, 20*msec, msec, msec, 2)
			if i%every == every-1 {
				r.Released += late
			}
			rs = append(rs, r)
		}
		return collect(t, load.Plan{}, rs, nil, opts...).Summary().Client
	}
	require.True(t, run(4*msec, 2).OK)
	c := run(9*msec, 10)
	require.False(t, c.OK)
	require.Equal(t, []string{"client released 10 of 100 requests more than 5ms late; p99 9.0 ms: the measured latencies include the client's own delay; use a faster client machine or a lower rate"}, c.Reasons)
	require.True(t, run(9*msec, 10, WithMaxLateness(10*msec)).OK)
	require.Equal(t, 100, c.Lateness.Count)

	// The last release 16 ms late stretches 990 ms by more than 1 %, though p99 may be within its bound.
	c = run(16*msec, 100, WithMaxLateness(15*msec))
	require.Len(t, c.Reasons, 1)
	require.Contains(t, c.Reasons[0], "client released requests at 98.41/s instead of 100/s (-1.6 %)")

	require.Equal(t, []string{"no request was released: nothing was measured"}, collect(t, load.Plan{}, nil, nil).Summary().Client.Reasons)
}

func TestParamChanges(t *testing.T) {
	run := func(events ...Event) *Summary {
		c, err := NewCollector()
		require.NoError(t, err)
		require.NoError(t, c.Begin(context.Background(), load.Info{}))
		c.Start(load.NewClock(time.Now()))
		for i, r := range []load.Result{answer(0, time.Second, 0, msec, msec, 2), answer(1, 20*time.Second, 0, msec, msec, 2)} {
			c.Arrived(&load.Request{ID: i, Arrival: r.Arrival})
			c.Record(&r)
		}
		for _, e := range events {
			c.Event(e)
		}
		require.NoError(t, c.End(context.Background()))
		return c.Summary()
	}
	set := func(at time.Duration, source string, value int) Event {
		return Event{At: at, Kind: KindParamUpdate, Source: source, Data: map[string]any{"name": "max_running_requests", "value": value}}
	}
	s := run(set(16050*msec, "server-0", 16), set(8030*msec, "server-0", 2), set(500*msec, "server-0", 4), set(time.Minute, "server-0", 8),
		Event{At: 9 * time.Second, Kind: KindParamInForce, Source: "server-0"})
	require.Equal(t, []ParamChange{{8030 * msec, "server-0", "max_running_requests", 2}, {16050 * msec, "server-0", "max_running_requests", 16}},
		s.ParamChanges, "one before the load or after it mixes nothing")
	require.Contains(t, s.String(), "\nchanged       server-0 max_running_requests := 2 at 8.030 s, := 16 at 16.050 s:\n"+
		"              figures mix these phases; see the windows\n")
	b, err := json.Marshal(s)
	require.NoError(t, err)
	require.Contains(t, string(b), `"param_changes":[{"at_ns":8030000000,"source":"server-0","name":"max_running_requests","value":2}`)
	var back Summary
	require.NoError(t, json.Unmarshal(b, &back))
	require.Equal(t, s.String(), back.String())

	var many []Event
	for i := range 10 {
		many = append(many, set(2*time.Second, []string{"a", "b"}[i%2], i))
	}
	text := strings.Join(strings.Fields(run(many...).String()), " ")
	require.Contains(t, text, "changed a max_running_requests := 0 at 2.000 s, b max_running_requests := 1 at 2.000 s, a ")
	require.Contains(t, text, "b max_running_requests := 7 at 2.000 s, and 2 more: figures mix")

	require.NotContains(t, run().String(), "changed")
}

func TestTable(t *testing.T) {
	s := mixedRun(t, WithSimulation(Simulation{Profile: "h100-llama8b", Calibrated: "SGLang 0.5.23 on one H100", KnownError: "TTFT p50 3 %, p99 11 %"})).Summary()
	text := s.String()
	for _, line := range strings.Split(text, "\n") {
		require.LessOrEqual(t, len([]rune(line)), tableWidth, line)
	}
	lines := strings.Split(text, "\n")
	require.Equal(t, "verdict       requests failed: 3 of the 10 requests that ended failed; the run", lines[0])
	require.Equal(t, "              was stopped with 1 requests under way and 9 yet to come: figures", lines[1])
	require.Equal(t, "SIMULATED     h100-llama8b; known error: TTFT p50 3 %, p99 11 %", lines[3])
	require.Equal(t, "", lines[4], "the latencies follow")
	require.Contains(t, text, "\nsimulation    profile h100-llama8b, calibrated on SGLang 0.5.23 on one H100\n")
	require.Contains(t, text, "              1 http_error: status 503: queue full\n")
	require.Contains(t, text, "\nTTFT                7      3    24.0    25.5  failed  failed  failed  failed\n")
	require.Contains(t, text, "\nclient queue        9      2   0.778   1.000  failed  failed  failed  failed\n")
	require.Contains(t, text, "arrival rate  requested 10/s, scheduled 10/s, achieved 8.8988/s\n")
	require.Less(t, strings.Index(text, "\nE2E "), strings.Index(text, "\nthroughput "))
	require.Less(t, strings.Index(text, "\nthroughput "), strings.Index(text, "\nserver TTFT "))

	many := mixedRun(t, WithPercentiles(1, 5, 10, 25, 75, 90, 95)).Summary().String()
	require.Contains(t, many, "p75     p90     p95\n", "the rest follows in a block of its own")
	require.True(t, strings.Contains(many, "\nengine        not declared to be simulated\n"))

	s.Simulation = nil
	s.Engines = []Engine{{Source: "server-0", Version: "0.5.23", Model: "llama", URL: "http://gpu-7:30000"}, {Source: "server-1", URL: "http://gpu-8:30000"}}
	require.True(t, strings.Contains(s.String(), "\nengine        SGLang 0.5.23, model llama, at http://gpu-7:30000\n"+
		"engine        SGLang of unknown version, model (not named), at\n              http://gpu-8:30000\n"))
}

func TestOpeningOfAClosedLoop(t *testing.T) {
	// 1,000 requests in four waves of 250, 100 ms each.
	run := func(requests, limit int, lateAtFirst, lateThen, ttft time.Duration) *Summary {
		var rs []load.Result
		for i := range requests {
			wave := i / 250
			due, late := time.Duration(wave)*100*msec, lateThen
			if wave == 0 {
				late = lateAtFirst * time.Duration(i) / 250
			}
			r := answer(i, 0, due+late, ttft, msec, 2)
			r.Due, r.Released = due, r.Send
			rs = append(rs, r)
		}
		c, err := NewCollector()
		require.NoError(t, err)
		require.NoError(t, c.Begin(context.Background(), load.Info{Plan: load.Plan{Requests: requests}, MaxConcurrency: limit}))
		c.Start(load.NewClock(time.Now()))
		for i := range rs {
			c.Arrived(&load.Request{ID: i})
		}
		for i := range rs {
			c.Record(&rs[i])
		}
		require.NoError(t, c.End(context.Background()))
		return c.Summary()
	}
	s := run(1000, 250, 62*msec, 200*time.Microsecond, 98*msec)
	require.True(t, s.Client.OK, "%v", s.Client.Reasons)
	require.Equal(t, 229, s.Client.Late, "they are counted all the same")
	require.Contains(t, s.Notes, "the client took 61.8 ms to release the 250 requests that were due together at the run's first moment: "+
		"that is part of their TTFT, and not held against the client")

	s = run(1000, 250, 62*msec, 9*msec, 98*msec)
	require.Equal(t, "client released 750 of 750 requests more than 5ms late; p99 9.0 ms: the measured latencies include the client's own delay; "+
		"give the client more CPU, or keep fewer requests in flight", s.Client.Reasons[0])

	s = run(250, 0, 62*msec, 0, 20*msec)
	require.Len(t, s.Client.Reasons, 1)
	require.Contains(t, s.Client.Reasons[0], "a large part of the TTFT p90 of 75.6 ms: a client needs some time to send requests that are due at the same moment")
	require.True(t, run(250, 0, 62*msec, 0, 2*time.Second).Client.OK)
	s = run(250, 0, 3*msec, 0, 20*msec)
	require.True(t, s.Client.OK)
	require.NotContains(t, s.String(), "first moment")
}

func TestEmptyRun(t *testing.T) {
	c := collect(t, load.Plan{Requests: 5}, nil, nil)
	s := c.Summary()
	_, err := json.Marshal(s)
	require.NoError(t, err)
	require.False(t, s.TTFT.Median.Valid())
	require.NotEmpty(t, s.String())
	require.Empty(t, c.Windows(time.Second))
	require.True(t, s.BenchServing.NoSuccess)
}

// The median has a place of its own in table and JSON, and is not a second time among the percentiles.
func TestTheMedianComesOnce(t *testing.T) {
	s := mixedRun(t, WithPercentiles(50, 95, 50)).Summary()
	require.Len(t, s.TTFT.Percentiles, 1)
	require.Equal(t, 95.0, s.TTFT.Percentiles[0].P)
	_, err := s.TTFT.Quantile(0.5)
	require.NoError(t, err)
	require.NotContains(t, mixedRun(t, WithPercentiles(50)).Summary().String(), "p95")
}
