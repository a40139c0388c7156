package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
)

// shown returns what a terminal of so many columns is sent, call by call.
func shown(columns int, ps ...Progress) []string {
	var out strings.Builder
	at := time.Unix(0, 0)
	f := terminalProgress(&out, func() int { return columns }, func() time.Time { at = at.Add(10 * time.Second); return at })
	var lines []string
	for _, p := range ps {
		out.Reset()
		f(p)
		lines = append(lines, out.String())
	}
	return lines
}

func TestTerminalProgressFits(t *testing.T) {
	p := Progress{Elapsed: 3725 * time.Second, LastArrival: 7450 * time.Second, Planned: 100000, Arrived: 50020, Completed: 49000, Failed: 1000, InFlight: 20,
		Rate: 13.4567, TTFT: 123.456}
	const whole = "1:02:05  50 %  10 s to go  13.5/s  TTFT 123 ms  20 in flight  1000 failed  50000 of 100000 done"
	for _, columns := range []int{200, 80, 40, 10, 1} {
		lines := shown(columns, p, p)
		text, ok := strings.CutPrefix(lines[1], "\r\x1b[K")
		require.True(t, ok)
		require.Less(t, utf8.RuneCountInString(text), columns+1)
		require.True(t, strings.HasPrefix(whole, text), text)
	}
	require.Equal(t, "\r\x1b[K"+whole, shown(200, p, p)[1])
}

func TestTerminalProgressPhases(t *testing.T) {
	none := Millis(math.NaN())
	lines := shown(0,
		Progress{Phase: "server-0 starts; load weights: 3 of 8", Elapsed: 12 * time.Second, TTFT: none},
		Progress{LastArrival: 20 * time.Second, Planned: 4, TTFT: none},
		Progress{Elapsed: 21 * time.Second, LastArrival: 20 * time.Second, Planned: 4, Arrived: 4, Completed: 3, InFlight: 1, Rate: 0.6, TTFT: none},
		Progress{Elapsed: 22 * time.Second, LastArrival: 20 * time.Second, Planned: 4, Arrived: 4, Completed: 4, TTFT: 5})
	require.Equal(t, []string{
		"12 s  server-0 starts; load weights: 3 of 8\n",
		"0 s  0 %  0 in flight  0 of 4 done\n",
		"21 s  75 %  draining  0.6/s  1 in flight  3 of 4 done\n",
		"22 s  100 %  0 in flight  4 of 4 done\n"}, lines)
	// All at once: the requests tell how much is left.
	require.Equal(t, "30 s  25 %  30 s to go  0.1/s  TTFT 5 ms  3 in flight  1 of 4 done\n",
		shown(0, Progress{}, Progress{Elapsed: 30 * time.Second, Planned: 4, Arrived: 4, Completed: 1, InFlight: 3, Rate: 0.1, TTFT: 5})[1])
}

func TestRecentRateAndTTFT(t *testing.T) {
	var r recent
	end := func(at, ttft time.Duration, ok bool) {
		res := load.Result{Completion: at, Arrival: at - time.Second, FirstToken: at - time.Second + ttft, Outcome: load.OutcomeTimeout}
		if ok {
			res.Outcome = load.OutcomeOK
		}
		r.add(&res)
	}
	for i := range 100 { // ten a second for ten seconds
		end(2*time.Second+time.Duration(i)*100*time.Millisecond, time.Duration(i)*time.Millisecond, i%2 == 0)
	}
	rate, ttft := r.at(12 * time.Second)
	require.InDelta(t, 10, rate, 1e-9)
	require.InDelta(t, 74, float64(ttft), 1e-9, "of the last fifty, the even ones")
	rate, ttft = r.at(time.Hour)
	require.Zero(t, rate)
	require.False(t, ttft.Valid())
}

func TestNumbersOfEvents(t *testing.T) {
	for _, v := range []any{int64(7), 7, 7.0, uint64(7), json.Number("7")} {
		n, ok := Event{Data: map[string]any{"x": v}}.Number("x")
		require.True(t, ok, "%T", v)
		require.Equal(t, 7.0, n)
	}
	_, ok := Event{}.Number("x")
	require.False(t, ok)
}

// What goes wrong in the background is told while the run goes on, once.
func TestProblemsAreToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &fakeSink{failed: make(chan error, 1)}
		broken := &fakeSampler{name: "gpu", f: func(context.Context, int) (map[string]float64, error) { return nil, errors.New("no driver") }}
		c, err := NewCollector(WithSink(sink), WithSampler(broken, time.Second))
		require.NoError(t, err)
		c.Event(Event{Kind: KindServerWarning, Source: "server-0", Data: map[string]any{"message": "8 was asked for, 4 is in force"}})
		begin(t, c, load.NewClock(time.Now()))
		time.Sleep(2500 * msec)
		sink.failed <- errors.New("no space left on device")
		synctest.Wait()
		early := c.Progress()
		c.Event(Event{Kind: KindParamUpdateFailed, Source: "server-0", Data: map[string]any{"name": "max_running_requests", "value": 8, "error": "refused"}})
		c.Event(Event{Kind: KindServerFault, Source: "server-0", Data: map[string]any{"message": "killed"}}) // as planned
		c.Event(Event{Kind: KindServerEnded, Source: "server-0", Data: map[string]any{"error": "exit status 1\nTraceback"}})
		late := c.Progress()
		require.Equal(t, []string{
			"server-0: 8 was asked for, 4 is in force", "gpu could not be sampled: no driver",
			"not all that is measured is stored from here on: no space left on device",
			"server-0: max_running_requests was not changed to 8: refused", "server-0 ended: exit status 1"}, late.Problems)
		require.Equal(t, late.Problems[:3], early.Problems)
		require.NoError(t, c.End(context.Background()))

		events := slices.DeleteFunc(c.Events(), func(e Event) bool { return e.Kind != KindStoringFailed })
		require.Equal(t, []Event{{At: 2500 * msec, Kind: KindStoringFailed, Data: map[string]any{"error": "no space left on device"}}}, events)
		require.Contains(t, sink.calls, "event")

		early.Planned = 4
		lines := shown(80, early, early)
		require.Equal(t, 3, strings.Count(lines[0], "\r\x1b[K3 s  problem: "))
		require.Equal(t, 3, strings.Count(lines[0], "\n"), "and the line that rewrites itself")
		require.NotContains(t, lines[1], "problem")
		require.Contains(t, shown(0, early)[0], "3 s  problem: gpu could not be sampled: no driver\n")
	})
}
