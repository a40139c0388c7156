package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

// A timeline plays a server whose load changes with time.
type timeline struct {
	*playback
	steps []step
	age   time.Duration // of the snapshots
	inst  *instance
}

type step struct {
	at               time.Duration // from the playback's start
	running, waiting int
	err              error // no answer
}

func (l *timeline) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path != "/v1/loads" {
		return l.playback.RoundTrip(req)
	}
	var last step
	now := time.Since(l.start)
	for _, s := range l.steps {
		if s.at <= now {
			last = s
		}
	}
	if last.err != nil {
		return nil, last.err
	}
	at := time.Unix(1_800_000_000, 0).UTC()
	body := fmt.Sprintf(`{"timestamp":%q,"loads":[{"timestamp":%f,"num_running_reqs":%d,"num_waiting_reqs":%d}]}`,
		at.Format(time.RFC3339Nano), float64(at.Add(-l.age).UnixMicro())/1e6, last.running, last.waiting)
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

// attachTo launches a server of which l says the load and whose limit is the given one.
func attachTo(t *testing.T, l *timeline, limit int) *Server {
	l.playback = newPlayback(t).tiny().on("GET /server_info", answer{status: 200, body: strings.ReplaceAll(tinyInfo(limit), "_per_dp\":64", "_per_dp\":256")})
	l.inst = newInstance()
	m := newManager(t, launches(l.inst), nil)
	m.transport = l
	return launch(t, m, Config{})
}

// change changes the limit at the given moment of the timeline.
func (l *timeline) change(t *testing.T, s *Server, at time.Duration, limit int) ParamUpdate {
	l.wait(at)
	l.on("GET /server_info", answer{status: 200, body: tinyInfo(limit)})
	u, err := s.UpdateParam(context.Background(), ParamMaxRunningRequests, limit)
	require.NoError(t, err)
	return u
}

func (l *timeline) wait(until time.Duration) { time.Sleep(until - time.Since(l.start)) } // in a bubble

// recordedTimeline reads a recording of /v1/loads with the given keys.
func recordedTimeline(t *testing.T, name, running, waiting string) []step {
	f, err := os.Open(refdata.Path(t, name))
	require.NoError(t, err)
	defer f.Close()
	var steps []step
	for in := bufio.NewScanner(f); in.Scan(); {
		var x map[string]any
		require.NoError(t, json.Unmarshal(in.Bytes(), &x))
		if n, ok := x[running].(float64); ok {
			steps = append(steps, step{at: time.Duration(x["t"].(float64) * 1e9), running: int(n), waiting: int(x[waiting].(float64))})
		}
	}
	return steps
}

// On a real SGLang 0.5.23 the limit went from 4 to 16 with 20 requests waiting, and nothing was admitted until the
// first of the four finished, 1.7 s later.
func TestRecordedLatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &timeline{steps: recordedTimeline(t, "sglang-cpu/0.5.23/cap_latch.jsonl", "run", "wait")}
		s := attachTo(t, l, 4)
		u := l.change(t, s, 2040*ms, 16)
		require.Equal(t, []int{4}, u.Running)
		u, err := s.WaitInForce(t.Context(), u)
		require.NoError(t, err)
		offset := func(at time.Time) time.Duration { return at.Sub(l.start) }
		require.Equal(t, 2040*ms, offset(u.Accepted))
		require.Equal(t, 3840*ms, offset(u.InForce), "the first look after the sample at 3.81 s")
		require.Equal(t, 3790*ms, offset(u.NotBefore))
	})
}

// A real H100 under a closed loop of 64 clients: 256 → 8 → 64 → 1 → 16 → 256.
func TestRecordedLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &timeline{steps: recordedTimeline(t, "sglang-h100/dynamic_limit/dynamic_limit.jsonl", "running", "waiting")}
		s := attachTo(t, l, 256)
		for _, c := range []struct {
			at           time.Duration
			limit        int
			from, inTime time.Duration
		}{
			{15283 * ms, 8, 16439 * ms, 16534 * ms}, // the drain from 64
			{21296 * ms, 64, 21370 * ms, 21470 * ms},
			{26316 * ms, 1, 27706 * ms, 27808 * ms},
			{30320 * ms, 16, 30630 * ms, 30731 * ms}, // the latch: some 0.4 s until the one running finishes
			{34330 * ms, 256, 34354 * ms, 34456 * ms},
		} {
			u := l.change(t, s, c.at, c.limit)
			u, err := s.WaitInForce(t.Context(), u)
			require.NoError(t, err)
			require.InDelta(t, c.inTime, u.InForce.Sub(l.start), float64(watchInterval))
			require.LessOrEqual(t, u.NotBefore.Sub(l.start), c.inTime)
			require.LessOrEqual(t, u.InForce.Sub(u.NotBefore), watchInterval+c.inTime-c.from)
		}
	})
}

func TestWaitInForce(t *testing.T) {
	const sec = time.Second
	for name, c := range map[string]struct {
		steps         []step
		age           time.Duration
		before, limit int
		notBefore, in time.Duration // from the change, at 1 s; in = 0: never within 10 s
		want          string
	}{
		"at once":          {[]step{{0, 2, 0, nil}}, 0, 64, 4, 0, 1, ""},
		"drain":            {[]step{{0, 8, 5, nil}, {1120 * ms, 4, 9, nil}}, 0, 64, 4, 100 * ms, 150 * ms, ""},
		"stale snapshots":  {[]step{{0, 8, 5, nil}, {1120 * ms, 4, 9, nil}}, 80 * ms, 64, 4, 20 * ms, 150 * ms, ""},
		"gap":              {[]step{{0, 8, 5, nil}, {1110 * ms, 0, 0, errBroken}, {2010 * ms, 4, 9, nil}}, 0, 64, 4, 100 * ms, 1050 * ms, ""},
		"never drains":     {[]step{{0, 8, 5, nil}}, 0, 64, 4, 0, 0, "server: max_running_requests 4 was not seen in force: 8 running and 5 waiting at the last of 200 looks; the requests beyond it have not finished: context deadline exceeded"},
		"no look":          {[]step{{0, 8, 5, nil}, {900 * ms, 0, 0, errBroken}}, 0, 64, 4, 0, 0, "server: max_running_requests 4 was not seen in force: no look at the server was answered: context deadline exceeded"},
		"raise":            {[]step{{0, 4, 9, nil}, {1501 * ms, 13, 0, nil}}, 0, 4, 64, 500 * ms, 550 * ms, ""},
		"raise held back":  {[]step{{0, 4, 9, nil}}, 0, 4, 64, 0, 0, "server: max_running_requests 64 was not seen in force: 4 running and 9 waiting at the last of 200 looks; a full batch admits none before one finishes: context deadline exceeded"},
		"raise not needed": {[]step{{0, 3, 0, nil}}, 0, 4, 64, 0, 0, "no request waited for a place, so the raise could not show"},
		"raise in a drain": {[]step{{0, 40, 9, nil}, {1100 * ms, 30, 9, nil}, {1200 * ms, 15, 20, nil}, {1300 * ms, 16, 19, nil}}, 0, 4, 16, 250 * ms, 300 * ms, ""},
		"raise at once":    {[]step{{0, 4, 9, nil}, {1001 * ms, 13, 0, nil}}, 0, 4, 64, 0, 50 * ms, ""},
		"the same":         {[]step{{0, 9, 9, nil}}, 0, 8, 8, 0, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &timeline{steps: c.steps, age: c.age}
				s := attachTo(t, l, c.before)
				u := l.change(t, s, sec, c.limit)
				ctx, cancel := context.WithTimeout(t.Context(), 10*sec-time.Nanosecond)
				defer cancel()
				u, err := s.WaitInForce(ctx, u)
				if c.in == 0 {
					require.ErrorAs(t, err, new(*NotInForceError))
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorContains(t, err, c.want)
					require.Zero(t, u.InForce)
					return
				}
				require.NoError(t, err)
				require.Equal(t, c.in.Truncate(ms), u.InForce.Sub(u.Asked))
				require.Equal(t, c.notBefore, u.NotBefore.Sub(u.Asked))
			})
		})
	}
}

func TestWaitInForceEnds(t *testing.T) {
	held := []step{{0, 8, 5, nil}}
	t.Run("changed again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &timeline{steps: held}
			s := attachTo(t, l, 64)
			u := l.change(t, s, time.Second, 4)
			again := make(chan ParamUpdate)
			go func() { again <- l.change(t, s, 2*time.Second, 16) }()
			_, err := s.WaitInForce(t.Context(), u)
			require.ErrorContains(t, err, "the limit was changed again")
			<-again
		})
	})
	t.Run("server ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &timeline{steps: held}
			s := attachTo(t, l, 64)
			u := l.change(t, s, time.Second, 4)
			go func() {
				l.wait(2 * time.Second)
				l.inst.end(errors.New("killed"))
			}()
			_, err := s.WaitInForce(t.Context(), u)
			require.ErrorAs(t, err, new(*ExitedError))
			require.Equal(t, 2*time.Second, time.Since(l.start))
		})
	})
	t.Run("no load to be had", func(t *testing.T) {
		w := newPlayback(t).tiny()
		s := launch(t, newManager(t, launches(newInstance()), w), Config{})
		w.on("GET /server_info", answer{status: 200, body: tinyInfo(4)})
		u, err := s.UpdateParam(t.Context(), ParamMaxRunningRequests, 4)
		require.NoError(t, err)
		_, err = s.WaitInForce(t.Context(), u)
		require.ErrorAs(t, err, new(*StatusError))
		_, err = s.WaitInForce(t.Context(), ParamUpdate{Name: "stream_interval"})
		require.ErrorContains(t, err, "want an accepted update of max_running_requests")
	})
}
