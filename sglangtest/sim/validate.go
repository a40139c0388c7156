package sim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// simulated is one request of a recording in the simulation.
type simulated struct {
	MeasuredRequest
	req         Request
	arrives     time.Duration // at the scheduler
	first, last time.Duration // at the client, simulated
}

// simulate runs a recording through an engine and its loop in virtual time. The answers are in the order of run.Requests.
func simulate(p Profile, run MeasuredRun) ([]*simulated, error) {
	return simulateWatched(p, run, func(time.Duration, *Engine) {})
}

// simulateWatched also shows the engine before each of the loop's events, with the event's time.
func simulateWatched(p Profile, run MeasuredRun, watch func(time.Duration, *Engine)) ([]*simulated, error) {
	e, err := NewEngine(p.EngineConfig())
	if err != nil {
		return nil, err
	}
	l := NewLoop(e, p)
	front := p.Front()
	all := make([]*simulated, len(run.Requests))
	for i, r := range run.Requests {
		if r.Prompt < 1 || r.Output < 1 || r.Shared < 0 || r.Shared > r.Prompt {
			return nil, fmt.Errorf("sim: recording %s: request %d has %d prompt tokens, %d of them shared, and %d output tokens: want at least 1 of each, and 0 shared",
				run.Name, i, r.Prompt, r.Shared, r.Output)
		}
		x := &simulated{MeasuredRequest: r}
		x.req = Request{Prompt: r.prompt(i), InputLen: r.Prompt, MaxNewTokens: r.Output, IgnoreEOS: true, Owner: x}
		x.arrives = r.Sent + p.ingest(r.Prompt)
		all[i] = x
	}
	order := slices.Clone(all)
	slices.SortStableFunc(order, func(a, b *simulated) int { return cmp.Compare(a.arrives, b.arrives) })
	limits := run.Limits
	for len(order) > 0 || e.Busy() {
		at, busy := l.Next()
		if len(limits) > 0 && (!busy || limits[0].At <= at) && (len(order) == 0 || limits[0].At <= order[0].arrives) {
			if !l.SetLimit(limits[0].At, limits[0].Limit) {
				return nil, fmt.Errorf("sim: recording %s: limit %v is out of range", run.Name, limits[0].Limit)
			}
			limits = limits[1:]
			continue
		}
		if len(order) > 0 && (!busy || order[0].arrives <= at) {
			l.Add(order[0].arrives, &order[0].req)
			order = order[1:]
			continue
		}
		if !busy {
			return nil, fmt.Errorf("sim: recording %s: the engine is idle with requests that never end", run.Name)
		}
		watch(at, e)
		outputs := l.Advance()
		first, each := front.Burst(at, len(outputs))
		for i, o := range outputs {
			x := o.Request.Owner.(*simulated)
			if o.Tokens == 0 {
				return nil, fmt.Errorf("sim: recording %s: the engine refused a request of %d and %d tokens: %s", run.Name, x.Prompt, x.Output, o.Finish.Message)
			}
			x.last = first + time.Duration(i)*each
			if x.first == 0 {
				x.first = x.last
			}
		}
	}
	return all, nil
}

// prompt names the prompt's tokens: those that the group shares, and those of request i alone.
func (r MeasuredRequest) prompt(i int) load.Prompt {
	own := load.Segment{Stream: uint64(i)<<1 | 1, Length: r.Prompt - r.Shared}
	if r.Shared == 0 {
		return load.Prompt{Segments: []load.Segment{own}}
	}
	shared := load.Segment{Stream: uint64(r.Group) << 1, Length: r.Shared}
	if own.Length == 0 {
		return load.Prompt{Segments: []load.Segment{shared}}
	}
	return load.Prompt{Segments: []load.Segment{shared, own}}
}

// A ValidationReport compares a recording with its simulation, under several assumptions.
type ValidationReport struct {
	Run      string
	Engine   string // of the run; empty: the only one
	Requests int
	// Queue is the simulation with the profile's egress queue, Direct the one without.
	Queue, Direct Accuracy
	// CachedMeasured and CachedSimulated are the shares of prompt tokens that came from the prefix cache.
	CachedMeasured, CachedSimulated float64
	// Workload is what the recording is like.
	Workload metrics.Workload
}

// Accuracy is the error of a simulation by metric.
type Accuracy struct {
	TTFT, TPOT, E2E MetricError
}

// A MetricError compares the quantiles of a metric. TPOT is that of each request, (last − first token)/(tokens − 1).
type MetricError struct {
	Measured, Simulated Quantiles
	// PerRequest is the median over the requests of |simulated/measured − 1|.
	PerRequest float64
}

// Quantiles of a duration, each by linear interpolation between the order statistics around it.
type Quantiles struct{ P50, P90, P99 time.Duration }

// Relative returns simulated/measured − 1 of p50, p90 and p99.
func (m MetricError) Relative() [3]float64 {
	of := func(s, w time.Duration) float64 { return float64(s)/float64(w) - 1 }
	return [3]float64{of(m.Simulated.P50, m.Measured.P50), of(m.Simulated.P90, m.Measured.P90), of(m.Simulated.P99, m.Measured.P99)}
}

// Validate replays a recorded run in virtual time, through an [Engine] and a [Loop] with the profile's sizes and
// times, and compares what the clients see, from send on. It is deterministic.
func Validate(p Profile, run MeasuredRun) (ValidationReport, error) {
	report := ValidationReport{Run: run.Name, Engine: run.Engine, Requests: len(run.Requests)}
	if err := p.validate(); err != nil {
		return report, err
	}
	queue, err := simulate(p, run)
	if err != nil {
		return report, err
	}
	direct, err := simulate(p.WithoutEgressQueue(), run)
	if err != nil {
		return report, err
	}
	report.Queue, report.Direct = compare(queue), compare(direct)
	prompt, hit, simulated := 0, 0, 0
	for _, x := range queue {
		prompt, hit, simulated = prompt+x.Prompt, hit+x.Cached, simulated+x.req.CachedTokens()
	}
	report.CachedMeasured, report.CachedSimulated = float64(hit)/float64(prompt), float64(simulated)/float64(prompt)
	report.Workload = workloadOf(CapacityOf(p), run)
	return report, nil
}

func compare(all []*simulated) Accuracy {
	var a Accuracy
	for _, m := range []struct {
		to                  *MetricError
		measured, simulated func(*simulated) time.Duration
	}{
		{&a.TTFT, func(x *simulated) time.Duration { return x.First - x.Sent }, func(x *simulated) time.Duration { return x.first - x.Sent }},
		{&a.E2E, func(x *simulated) time.Duration { return x.Last - x.Sent }, func(x *simulated) time.Duration { return x.last - x.Sent }},
		{&a.TPOT, func(x *simulated) time.Duration { return perToken(x.First, x.Last, x.Output) },
			func(x *simulated) time.Duration { return perToken(x.first, x.last, x.Output) }},
	} {
		var want, got, each []float64
		for _, x := range all {
			w, g := m.measured(x), m.simulated(x)
			if m.to == &a.TPOT && x.Output < 2 {
				continue
			}
			want, got, each = append(want, float64(w)), append(got, float64(g)), append(each, math.Abs(float64(g)/float64(w)-1))
		}
		*m.to = MetricError{quantiles(want), quantiles(got), medianOf(each)}
	}
	return a
}

func perToken(first, last time.Duration, tokens int) time.Duration {
	return (last - first) / time.Duration(max(tokens-1, 1))
}

func quantiles(v []float64) Quantiles {
	if len(v) == 0 {
		return Quantiles{}
	}
	slices.Sort(v)
	at := func(q float64) time.Duration {
		x := q * float64(len(v)-1)
		i := int(x)
		if i+1 >= len(v) {
			return time.Duration(v[len(v)-1])
		}
		return time.Duration(v[i] + (x-float64(i))*(v[i+1]-v[i]))
	}
	return Quantiles{at(0.5), at(0.9), at(0.99)}
}

// cacheSlack is by how much the shares of cached tokens may differ for a run to be comparable.
const cacheSlack = 0.05

// String returns the report as a table.
func (r ValidationReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d requests", strings.TrimSpace(r.Run+" "+r.Engine), r.Requests)
	if r.CachedMeasured > 0.001 || r.CachedSimulated > 0.001 {
		fmt.Fprintf(&b, ", %.1f %% of prompt tokens cached (simulated %.1f %%)", 100*r.CachedMeasured, 100*r.CachedSimulated)
	}
	header := func() {
		fmt.Fprintf(&b, "\n  %-27s %-5s %-32s %-32s %-24s %s\n", "", "", "measured p50, p90, p99 in ms", "simulated", "error in %", "per request")
	}
	if math.Abs(r.CachedMeasured-r.CachedSimulated) > cacheSlack {
		b.WriteString(": not comparable, as the engine does not find the prefixes that the real one found\n")
		return b.String()
	}
	line := func(name string, a Accuracy) {
		for _, m := range []struct {
			name string
			MetricError
		}{{"TTFT", a.TTFT}, {"TPOT", a.TPOT}, {"E2E", a.E2E}} {
			three := func(q Quantiles) string {
				return fmt.Sprintf("%9.2f %9.2f %9.2f", inMilliseconds(q.P50), inMilliseconds(q.P90), inMilliseconds(q.P99))
			}
			e := m.Relative()
			fmt.Fprintf(&b, "  %-27s %-5s %-32s %-32s %+6.1f %+6.1f %+6.1f     %4.1f %%\n", name, m.name, three(m.Measured), three(m.Simulated), 100*e[0], 100*e[1], 100*e[2], 100*m.PerRequest)
			name = ""
		}
	}
	header()
	line("with the egress queue", r.Queue)
	line("without it", r.Direct)
	return b.String()
}

// BurstRate returns the requests per second that an engine completes if it gets all requests of a run at once: the most
// that it can do on them, with ramp and tail.
func BurstRate(p Profile, run MeasuredRun) (float64, error) {
	if err := p.validate(); err != nil {
		return 0, err
	}
	run.Requests = slices.Clone(run.Requests)
	for i := range run.Requests {
		run.Requests[i].Sent = 0
	}
	all, err := simulate(p, run)
	if err != nil {
		return 0, err
	}
	var end time.Duration
	for _, x := range all {
		end = max(end, x.last)
	}
	return float64(len(all)) / end.Seconds(), nil
}
