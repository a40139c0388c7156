package metrics

import (
	"context"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collect records results as a run would and ends it. Requests of lost arrive and get no record.
func collect(t testing.TB, plan load.Plan, results []load.Result, lost []load.Request, opts ...Option) *Collector {
	t.Helper()
	c, err := NewCollector(opts...)
	require.NoError(t, err)
	require.NoError(t, c.Begin(context.Background(), load.Info{Plan: plan}))
	c.Start(load.NewClock(time.Now()))
	for i := range results {
		r := &results[i]
		c.Arrived(&load.Request{ID: r.ID, Arrival: r.Arrival, InputLen: r.InputLen, OutputLen: r.OutputLen})
	}
	for i := range lost {
		c.Arrived(&lost[i])
	}
	for i := len(results) - 1; i >= 0; i-- { // completions come in any order
		c.Record(&results[i])
	}
	require.NoError(t, c.End(context.Background()))
	return c
}

const msec = time.Millisecond

// answer makes a successful /generate result on time: tokens come at first, first+gap, …, one in each event.
func answer(id int, arrival, queue, first, gap time.Duration, tokens int) load.Result {
	r := load.Result{ID: id, Arrival: arrival, Due: arrival, Released: arrival, Send: arrival + queue, Sent: true, Reused: true,
		API: load.Generate, Streamed: true, Outcome: load.OutcomeOK, InputLen: 10, PromptTokens: 10, OutputLen: tokens, OutputTokens: tokens}
	for i := range tokens {
		r.Chunks.Append(load.Chunk{At: r.Send + first + time.Duration(i)*gap, Tokens: 1, TextBytes: 4})
	}
	r.FirstToken = r.Send + first
	r.LastToken = r.FirstToken + time.Duration(tokens-1)*gap
	r.Completion = r.LastToken
	return r
}

func failure(id int, arrival time.Duration, outcome load.Outcome, status int, message string) load.Result {
	return load.Result{ID: id, Arrival: arrival, Due: arrival, Released: arrival, Send: arrival, Sent: true, Completion: arrival + msec,
		API: load.Generate, Outcome: outcome, Status: status, Message: message, InputLen: 10, OutputLen: 10}
}
