package metrics

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// notesOf returns the notes of a run with the given events.
func notesOf(t *testing.T, plan load.Plan, rs []load.Result, events ...Event) string {
	t.Helper()
	return strings.Join(summaryOf(t, plan, rs, events...).Notes, "\n")
}

func summaryOf(t *testing.T, plan load.Plan, rs []load.Result, events ...Event) *Summary {
	t.Helper()
	c, err := NewCollector()
	require.NoError(t, err)
	require.NoError(t, c.Begin(context.Background(), load.Info{Plan: plan}))
	c.Start(load.NewClock(time.Now()))
	for _, e := range events {
		c.Event(e)
	}
	for i := range rs {
		r := &rs[i]
		c.Arrived(&load.Request{ID: r.ID, Arrival: r.Arrival, InputLen: r.InputLen, OutputLen: r.OutputLen})
		c.Record(r)
	}
	require.NoError(t, c.End(context.Background()))
	return c.Summary()
}

// each makes n results, the i-th arriving at i·gap.
func each(n int, gap time.Duration, f func(i int, at time.Duration) load.Result) []load.Result {
	rs := make([]load.Result, n)
	for i := range rs {
		rs[i] = f(i, time.Duration(i)*gap)
	}
	return rs
}

// A note on failures says how they failed, and that a server ended only if an event says so.
func TestNotesOnFailuresClaimNoCause(t *testing.T) {
	bad := each(30, 10*msec, func(i int, at time.Duration) load.Result {
		return failure(i, at, load.OutcomeHTTP, 400, "too long")
	})
	text := notesOf(t, load.Plan{}, bad)
	require.Contains(t, text, "no request succeeded: 30 http_error (status 400)")
	require.NotContains(t, text, "lost")

	// Under overload all that arrived after the first second time out, while earlier ones still succeed.
	slow := each(40, 100*msec, func(i int, at time.Duration) load.Result {
		if i < 10 {
			return answer(i, at, 0, 5*time.Second, msec, 5)
		}
		r := failure(i, at, load.OutcomeTimeout, 200, "no end within 1s")
		r.Completion = at + time.Second
		return r
	})
	text = notesOf(t, load.Plan{}, slow)
	require.NotContains(t, text, "last success", "the last success ended after the last failure")

	// A closed loop in which all arrive at once: 64 succeed before the server goes.
	dead := each(1000, 0, func(i int, at time.Duration) load.Result {
		if i < 64 {
			return answer(i, at, 0, 50*msec, msec, 2)
		}
		r := failure(i, at, load.OutcomeRefused, 0, "connection refused")
		r.Completion = 60*msec + time.Duration(i)*msec
		return r
	})
	ended := Event{At: 52 * msec, Kind: KindServerEnded, Source: "server-0"}
	text = notesOf(t, load.Plan{}, dead, ended)
	require.Contains(t, text, "the last success ended at 0.051 s; the 936 requests that ended later all failed: 936 refused; the end of server-0 was noticed at 0.052 s")
	require.NotContains(t, notesOf(t, load.Plan{}, dead), "server-0")
}

// Rates are compared only where there is one to compare with, and over the same requests.
func TestNotesOnRates(t *testing.T) {
	ok := func(i int, at time.Duration) load.Result { return answer(i, at, 0, msec, msec, 2) }
	// A ramp without a rate of its own, cut short: what arrived is slower than the plan's mean.
	text := notesOf(t, load.Plan{Requests: 200, Arrivals: "ramp", MeanRate: 11.166}, each(60, 130*msec, ok))
	require.NotContains(t, text, "requested")
	require.NotContains(t, text, "scheduled")
	require.Contains(t, text, "140 of the 200 planned requests never arrived")

	// A capped run that is stopped: those that waited for a place count as arrived, but were never sent.
	cut := each(112, 10*msec, func(i int, at time.Duration) load.Result {
		if i < 100 {
			return ok(i, at)
		}
		r := failure(i, 990*msec, load.OutcomeCancelled, 0, "stopped")
		r.Sent, r.Due, r.Released, r.Send, r.Completion = false, 991*msec, 991*msec, 991*msec, 991*msec
		return r
	})
	require.NotContains(t, notesOf(t, load.Plan{Requests: 1000, RequestedRate: 100}, cut), "their scheduled")

	late := each(100, 10*msec, func(i int, at time.Duration) load.Result { return answer(i, at, at/2, msec, msec, 2) })
	require.Contains(t, notesOf(t, load.Plan{}, late), "the 100 requests that were sent left at 66.667/s, -33.3 % from their scheduled 100/s")
	// Two requests, one of them a millisecond late.
	require.NotContains(t, notesOf(t, load.Plan{}, each(2, 10*msec, func(i int, at time.Duration) load.Result { return answer(i, at, at/10, msec, msec, 2) })), "their scheduled")
}

func TestNotesOnPercentiles(t *testing.T) {
	bad := each(100, msec, func(i int, at time.Duration) load.Result { return failure(i, at, load.OutcomeHTTP, 400, "no") })
	require.NotContains(t, notesOf(t, load.Plan{}, bad), "p99.9", "there are no values")
	ok := func(i int, at time.Duration) load.Result { return answer(i, at, 0, msec, msec, 2) }
	require.Contains(t, notesOf(t, load.Plan{}, each(100, msec, ok)), "p99.9 of 100 requests rests on the largest value alone")
	require.NotContains(t, notesOf(t, load.Plan{}, each(1000, msec, ok)), "p99.9 of", "the thousandth is another one")
}

func TestNotesOnThePlan(t *testing.T) {
	ok := func(i int, at time.Duration) load.Result { return answer(i, at, 0, msec, msec, 2) }
	plan := load.Plan{Requests: 10, Passes: 3, Rows: 4, LastArrival: 9 * msec, InputTokens: 100, OutputTokens: 20, Prompts: &load.SharedPrompts{Tokens: 100, Shared: 60}}
	require.Contains(t, notesOf(t, plan, each(10, msec, ok)), "the dataset is begun 3 times: its 4 rows come again, and with them the prompts that it states, which a prefix cache may hold")
	plan.Prompts.Shared = 0
	require.Contains(t, summaryOf(t, plan, each(10, msec, ok)).Notes, "the dataset is begun 3 times: its 4 rows come again")
	plan.Passes = 1
	text := notesOf(t, plan, each(10, msec, ok))
	require.NotContains(t, text, "begun")
	require.NotContains(t, text, "second reading")
	plan.InputTokens = 101
	require.Contains(t, notesOf(t, plan, each(10, msec, ok)), "the workload's second reading, for the run, differs from the first, for the plan: 100 input and 20 output tokens until 0.009 s instead of 101 and 20 until 0.009 s")
	plan.Requests = 9
	require.Contains(t, notesOf(t, plan, each(10, msec, ok)), "1 more requests arrived than the 9 planned")
}

// Only what the workload does not explain is a note.
func TestNotesOnTheCache(t *testing.T) {
	run := func(p *load.SharedPrompts, cached int, api load.API, events ...Event) string {
		rs := each(100, 10*msec, func(i int, at time.Duration) load.Result {
			r := answer(i, at, 0, msec, msec, 2)
			r.InputLen, r.PromptTokens, r.CachedTokens, r.API = 64, 64, cached, api
			return r
		})
		s := summaryOf(t, load.Plan{Requests: 100, LastArrival: 990 * msec, InputTokens: 6400, OutputTokens: 200, Prompts: p}, rs, events...)
		for _, n := range s.Notes {
			if strings.Contains(n, "prefix cache") {
				return n
			}
		}
		return ""
	}
	fresh := &load.SharedPrompts{Tokens: 6400}
	require.Empty(t, run(fresh, 0, load.Generate))
	require.Empty(t, run(fresh, 1, load.Generate), "the first of random tokens meet by chance")
	require.Equal(t, "15.6 % of the input tokens came from the server's prefix cache; equal beginnings of the workload's own prompts explain at most 0.0 %: "+
		"the rest was in the cache before the run, or comes from requests that are not of this run", run(fresh, 10, load.Generate), "not only above half")
	require.Contains(t, run(fresh, 10, load.Generate, Event{Kind: KindCacheState, Data: map[string]any{"state": "flushed"}}),
		"the cache was emptied before the load, so that the rest comes from requests that are not of this run")
	repeats := &load.SharedPrompts{Tokens: 6400, Shared: 4979} // 77.8 %: conversations that come again
	require.Empty(t, run(repeats, 49, load.Generate))
	require.Contains(t, run(repeats, 63, load.Generate), "98.4 % of the input tokens came from the server's prefix cache; equal beginnings of the workload's own prompts explain at most 77.8 %")
	texts := &load.SharedPrompts{Bytes: 30_000, SharedBytes: 15_000}
	require.Empty(t, run(texts, 33, load.ChatCompletions))
	require.Contains(t, run(texts, 50, load.Completions), "explain at most 50.0 %: the rest was in the cache before the run, or comes from requests that are not of this run")
	require.Contains(t, run(texts, 50, load.ChatCompletions), "or is what the chat template puts before each prompt")
	require.Contains(t, run(nil, 50, load.Generate), "how much of that the workload's own prompts explain is not known")

	// Where the answers do not tell, the engine's own count of what it computed does.
	prefilled := func(n int64) Event { return Event{Kind: KindPrefilled, Data: map[string]any{"tokens": n}} }
	require.Empty(t, run(fresh, load.NotReported, load.Completions))
	require.Empty(t, run(fresh, load.NotReported, load.Completions, prefilled(6400)))
	require.Empty(t, run(fresh, load.NotReported, load.Completions, prefilled(9999)), "others use the server")
	require.Contains(t, run(fresh, load.NotReported, load.Completions, prefilled(100)), "98.4 % of the input tokens came, by the engine's own count of prefilled tokens, from the server's prefix cache")

	// Prefills of requests that failed, and of others', hide what came from the cache.
	untold := summaryOf(t, load.Plan{}, each(10, 10*msec, func(i int, at time.Duration) load.Result {
		r := answer(i, at, 0, msec, msec, 2)
		r.PromptTokens, r.CachedTokens = 64, load.NotReported
		return r
	}), prefilled(100))
	require.Contains(t, strings.Join(strings.Fields(untold.String()), " "), "640 in (at least 540 cached, by the engine's count)")

	s := summaryOf(t, load.Plan{}, nil, Event{Kind: KindCacheState, Data: map[string]any{"state": "unknown"}})
	require.Equal(t, CacheUnknown, s.Cache)
	require.Contains(t, strings.Join(strings.Fields(s.String()), " "), "prefix cache state unknown: the server ran before, and latencies can be shorter for what earlier requests left there; \"keep_cache\": false (or Server.FlushCache) empties it before the load")
}
