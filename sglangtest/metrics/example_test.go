package metrics_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A collector can be fed by a client of one's own. load.Run makes these calls for a load.Sender.
func Example() {
	c, err := metrics.NewCollector(metrics.WithPercentiles(99))
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	if err := c.Begin(ctx, load.Info{Plan: load.Plan{Requests: 100, RequestedRate: 10}}); err != nil {
		fmt.Println(err)
		return
	}
	c.Start(load.NewClock(time.Now()))
	for i := range 100 {
		arrival := time.Duration(i) * 100 * time.Millisecond
		c.Arrived(&load.Request{ID: i, Arrival: arrival})
		res := load.Result{
			ID: i, Arrival: arrival, Due: arrival, Released: arrival, Send: arrival, Sent: true,
			FirstToken: arrival + time.Duration(40+i)*time.Millisecond,
			LastToken:  arrival + 500*time.Millisecond,
			Completion: arrival + 500*time.Millisecond,
			API:        load.Generate, Streamed: true, Outcome: load.OutcomeOK, OutputTokens: 24,
		}
		if i == 17 {
			res.Outcome, res.Status, res.Message = load.OutcomeHTTP, 503, "queue full"
		}
		c.Record(&res)
	}
	if err := c.End(ctx); err != nil {
		fmt.Println(err)
		return
	}
	sum := c.Summary()
	fmt.Printf("%d of %d ok, TTFT p50 %.1f ms\n", sum.Requests.OK, sum.Requests.Arrived, sum.TTFT.Median)
	fmt.Println(sum.Check(
		metrics.AtMost(metrics.TTFT, 0.5, 80*time.Millisecond),
		metrics.AtMost(metrics.TTFT, 0.99, time.Second),
		metrics.AtLeast(metrics.SuccessShare, 0.95),
	))
	// Output:
	// 99 of 100 ok, TTFT p50 90.5 ms
	// metrics: TTFT p50 is 90.5 ms, 10.5 ms (13.1 %) above the limit of 80 ms; 1 of 100 requests failed and count as missed
	// metrics: TTFT p99 has no value because it falls among the failures; the limit is 1000 ms; 1 of 100 requests failed and count as missed
}

// What happened before and after a parameter was changed.
func ExampleWriteWindows() {
	windows := []metrics.Window{
		{From: 0, To: time.Minute, Arrivals: 480, Completions: 401, OutputTokensPerS: 1713.4, TTFTMedian: 2310.2, InFlightMean: 71.5,
			Running: &metrics.Gauge{Mean: 15.8, Max: 16}, Waiting: &metrics.Gauge{Mean: 55.1, Max: 79}},
		{From: time.Minute, To: 2 * time.Minute, Arrivals: 475, Completions: 554, OutputTokensPerS: 2367.1, TTFTMedian: 61.9, InFlightMean: 38.2,
			Running: &metrics.Gauge{Mean: 37.9, Max: 64}, Waiting: &metrics.Gauge{Mean: 0.2, Max: 9},
			Params: map[string]any{"server-0/max_running_requests": 64}},
	}
	if err := metrics.WriteWindows(os.Stdout, windows); err != nil {
		fmt.Println(err)
	}
	// Output:
	// from s to s arrived  ok failed tok/s TTFT p50 in flight running waiting
	//       0   60     480 401      0  1713   2310.2      71.5 15.8/16 55.1/79
	//   server-0/max_running_requests := 64
	//      60  120     475 554      0  2367     61.9      38.2 37.9/64   0.2/9
}
