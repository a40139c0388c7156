package sim

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/server"
)

// recordedBy returns the content type and body of a recording of the given version.
func recordedBy(t *testing.T, version, name string) (contentType, body string) {
	b, err := os.ReadFile(refdata.Path(t, "sglang-cpu/"+version+"/"+name+".txt"))
	require.NoError(t, err)
	head, body, _ := strings.Cut(string(b), "\r\n\r\n")
	return regexp.MustCompile(`(?i)content-type: (.*)\r\n`).FindStringSubmatch(head + "\r\n")[1], body
}

var number = regexp.MustCompile(`([" T]|:|\[|,)-?\d[\d.e+-]*`)

// masked replaces values, but keeps the difference between integers and others.
func masked(s string) string {
	return number.ReplaceAllStringFunc(s, func(v string) string {
		if strings.ContainsAny(v, ".e") {
			return v[:1] + "F"
		}
		return v[:1] + "N"
	})
}

// simulatedMember is what a simulated server adds to each load.
var simulatedMember = regexp.MustCompile(`,"simulated":\{"step_lateness_us":\{[^}]*\}\}`)

func TestLoadsAreThoseOfRealServers(t *testing.T) {
	for _, version := range []string{"0.5.15.post1", "0.5.18", "0.5.21", "0.5.23"} {
		t.Run(version, func(t *testing.T) {
			p := quick()
			p.GPU = "" // the recorded servers had none
			s, c := start(t, p, server.Config{MaxTotalTokens: 20000, ContextLength: 4096, MaxRunningRequests: 64}, WithVersion(version))
			// As there, something was decoded before.
			c.post("/generate", `{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":8,"ignore_eos":true}}`)
			awaitIdle(s)
			for name, path := range map[string]string{"v1_loads": "/v1/loads", "v1_loads_core": "/v1/loads?include=core", "v1_loads_busy": "/v1/loads?include=all",
				"v1_loads_prometheus": "/v1/loads?format=prometheus", "get_load": "/get_load"} {
				wantType, want := recordedBy(t, version, name)
				resp := c.open(t.Context(), "GET", path, "")
				defer resp.Body.Close()
				b := make([]byte, 1<<16)
				n, _ := resp.Body.Read(b)
				got := simulatedMember.ReplaceAllString(string(b[:n]), "")
				require.Equal(t, wantType, resp.Header.Get("Content-Type"), name)
				require.Equal(t, masked(want), masked(got), name)
			}
		})
	}
}

// awaitIdle returns when the loops have nothing left to do, which is a little later than the last answer.
func awaitIdle(s *Server) {
	for {
		s.host.mu.Lock()
		_, busy := s.host.loops.Next()
		busy = busy || len(s.host.arrivals) > 0
		s.host.mu.Unlock()
		if !busy {
			return
		}
		s.host.waiter.Wake()
	}
}

func TestLoadsQuery(t *testing.T) {
	_, c := start(t, quick(), server.Config{})
	_, body := c.do("GET", "/v1/loads?include=memory,%20queues", "")
	require.Contains(t, body, `"memory":{`)
	require.Contains(t, body, `"queues":{`)
	require.NotContains(t, body, `"disaggregation"`)
	require.Contains(t, body, `"accelerator":"`+quick().GPU+`"`)
	_, body = c.do("GET", "/v1/loads?dp_rank=0", "")
	require.Contains(t, body, `"dp_rank":0`)
	status, body := c.do("GET", "/v1/loads?dp_rank=1", "")
	require.Equal(t, 200, status)
	require.True(t, strings.HasSuffix(body, `,"loads":[]}`), body)
	status, _ = c.do("GET", "/v1/loads?dp_rank=x", "")
	require.Equal(t, 400, status)
	status, _ = c.do("GET", "/v1/loads?include=core,nonsense", "")
	require.Equal(t, 500, status)
	status, _ = c.do("GET", "/get_load", "")
	require.Equal(t, 404, status, "0.5.21 has taken it away")
}

func TestSnapshotIsRenewedByTheRule(t *testing.T) {
	d := driveHost(t, quick().EngineConfig())
	h := d.h
	type renewal struct{ decodes, running, waiting, used int }
	var got []renewal
	last := h.ranks[0].loads.snapshot.at
	note := func() {
		if s := h.ranks[0].loads.snapshot; s.at != last {
			last = s.at
			got = append(got, renewal{int(h.meter.decodes), s.running, s.waiting, s.used})
		}
	}
	d.add(0, 100, 40)
	for d.step() {
		note()
	}
	// With the prefill before its result is processed: the request has joined the running batch for the step that was
	// planned meanwhile. Then before the result of every fifteenth decode step, and when the loop has nothing left.
	// The step count is that after the result.
	require.Equal(t, []renewal{{0, 1, 0, 101}, {15, 1, 0, 116}, {30, 1, 0, 131}, {39, 0, 0, 0}}, got)
	require.Equal(t, 100, h.ranks[0].loads.snapshot.prefillTokens)
	require.Positive(t, h.ranks[0].loads.snapshot.prefillBusy)
	m := h.ranks[0].loads.snapshot.moments
	require.Equal(t, [6]float64{38, 38, m[2], 38, m[2], 38}, m, "all decode steps but the first have one before them")

	d = driveHost(t, quick().EngineConfig(), func(o *options) { o.loadInterval = 1 })
	h, got, last = d.h, nil, time.Time{}
	d.add(0, 100, 10)
	for d.step() {
		note()
	}
	require.Len(t, got, 1+9, "and the idle loop comes together with the last")
}

func TestWaitingTokensAreEstimatedByTheHitRate(t *testing.T) {
	cfg := quick().EngineConfig()
	cfg.MaxRunningRequests = 1
	d := driveHost(t, cfg)
	d.add(0, 100, 10)
	d.step()
	d.add(0, 200, 10)
	require.Equal(t, 200, d.h.ranks[0].uncached(0.5), "without metrics SGLang does not know the hit rate")
	d.h.metrics = true
	require.Equal(t, 100, d.h.ranks[0].uncached(0.5))
	d.h.meter.patch = 18
	require.Equal(t, 200, d.h.ranks[0].uncached(0.5))
	for d.step() {
	}
}

func TestStepCounters(t *testing.T) {
	const ms = time.Millisecond
	steps := []struct {
		kind          StepKind
		launched, end time.Duration
		health, idle  bool // idle: nothing was there to do before
	}{
		{PrefillStep, 0, 10 * ms, false, false}, {PrefillStep, 1 * ms, 25 * ms, false, false},
		{DecodeStep, 11 * ms, 30 * ms, false, false}, {DecodeStep, 25 * ms, 35 * ms, false, false}, {DecodeStep, 30 * ms, 40 * ms, false, false},
		{PrefillStep, 35 * ms, 3000 * ms, false, false},
		{DecodeStep, 3100 * ms, 3105 * ms, false, true}, {DecodeStep, 6000 * ms, 6005 * ms, false, false},
		{PrefillStep, 7000 * ms, 7001 * ms, true, true}, {DecodeStep, 7001 * ms, 7002 * ms, false, false},
	}
	for patch, want := range map[int]struct {
		tokens int
		busy   time.Duration
	}{18: {100, 1 * ms}, 21: {200, 25 * ms}, 23: {300, 25*ms + 2965*ms}} {
		var c stepCounters
		for _, s := range steps {
			if s.idle {
				c.contiguous = false
			}
			c.add(patch, &Batch{Kind: s.kind, Requests: 2, NewTokens: 100, launched: s.launched, health: s.health}, s.end)
		}
		require.Equal(t, want.tokens, c.tokens, patch)
		require.Equal(t, want.busy, c.busy, patch)
		// 14 ms and 5 ms; one of more than 2 s, one after a prefill and two after a pause or a health check do not count.
		require.Equal(t, [6]float64{2, 4, 19000, 8, 38000, 4}, c.moments, patch)
	}
}
