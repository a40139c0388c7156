package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// sampleTimeout bounds one sample, so that a server that hangs shows as failed samples.
const sampleTimeout = 2 * time.Second

// A Load is what one data-parallel rank says of its load (GET /v1/loads, 0.5.15 to 0.5.23).
type Load struct {
	DPRank         int     `json:"dp_rank"`
	NumRunning     int     `json:"num_running_reqs"`
	NumWaiting     int     `json:"num_waiting_reqs"`
	NumUsedTokens  int     `json:"num_used_tokens"`
	MaxTotalTokens int     `json:"max_total_num_tokens"`
	TokenUsage     float64 `json:"token_usage"` // 0 to 1
	// Age is how old the rank's snapshot was when the server answered, by the server's clock; 0 if it does not tell
	// (0.5.15).
	Age time.Duration `json:"-"`
	// Simulated is what a simulated server adds; nil for a real one.
	Simulated     *SimulatedLoad `json:"simulated"`
	GenThroughput float64        `json:"gen_throughput"` // output tokens/s; meaningful only with --enable-metrics
	// PrefilledTokens counts the tokens that were computed in prefills since the server started: those of prompts that did not
	// come from a cache, and those of requests that were taken back. From 0.5.21 on it counts every prefill; nil where it is not
	// told, before 0.5.18. The snapshot holds it up to the prefill before the last.
	PrefilledTokens *int64 `json:"total_prefill_uncached_tokens"`
}

// A SimulatedLoad is what a simulated server says of itself as a host.
type SimulatedLoad struct {
	// StepLateness counts the pieces of answers that it has sent since it started by how late they were: at most so many µs,
	// but later than the next smaller key.
	StepLateness map[int]int64 `json:"step_lateness_us"`
}

// Loads reads the load of every data-parallel rank. The server takes it from a snapshot that its scheduler
// publishes at each prefill, when idle and every few decode steps; no step waits for it.
func (s *Server) Loads(ctx context.Context) ([]Load, error) {
	var answer struct {
		At    string `json:"timestamp"`
		Loads []struct {
			Load
			At float64 `json:"timestamp"` // seconds since 1970; from 0.5.18 on
		} `json:"loads"`
	}
	if err := s.client.once(ctx, http.MethodGet, "/v1/loads", nil, &answer); err != nil {
		return nil, s.wrap("loads", err)
	}
	if len(answer.Loads) == 0 {
		return nil, s.wrap("loads", errors.New("GET /v1/loads names no rank"))
	}
	loads := make([]Load, len(answer.Loads))
	at, err := time.Parse(time.RFC3339, answer.At)
	for i, l := range answer.Loads {
		loads[i] = l.Load
		if l.At > 0 && err == nil {
			loads[i].Age = max(0, time.Duration((float64(at.UnixMicro())-l.At*1e6)*1e3))
		}
	}
	return loads, nil
}

// Prefilled returns how many tokens the server has computed in prefills since it started, of all ranks and for all clients,
// once it is idle: while requests are under way its count lags behind. It is false if this server does not count them
// exactly: SGLang before 0.5.21 without --enable-metrics. It waits for an idle server until ctx is done.
func (s *Server) Prefilled(ctx context.Context) (tokens int64, counted bool, err error) {
	if old, known := olderThan(s.Info().Version, "0.5.21"); old || !known {
		return s.prefilledByMetrics(ctx)
	}
	began := time.Now()
	tick := time.NewTicker(prefilledInterval)
	defer tick.Stop()
	for {
		loads, err := s.look(ctx)
		if err != nil {
			return 0, false, err
		}
		idle, all := true, int64(0)
		for _, l := range loads {
			if l.PrefilledTokens == nil {
				return 0, false, nil
			}
			all += *l.PrefilledTokens
			idle = idle && l.NumRunning == 0 && l.NumWaiting == 0 && l.Age < time.Since(began)
		}
		if idle {
			return all, true, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, false, s.wrap("prefilled tokens", fmt.Errorf("the server did not become idle: %w", context.Cause(ctx)))
		}
	}
}

// prefilledInterval is the time between two looks at a server whose count of prefilled tokens is waited for.
const prefilledInterval = 50 * time.Millisecond

// prefilledByMetrics takes the difference of what finished requests had in their prompts and what of it came from caches
// (observability/metrics_collector.py of 0.5.15).
func (s *Server) prefilledByMetrics(ctx context.Context) (int64, bool, error) {
	if !s.HasMetrics() {
		return 0, false, nil
	}
	values, err := metricsSampler{s}.Sample(ctx)
	if err != nil {
		return 0, false, err
	}
	prompts, counted := values["sglang:prompt_tokens_total"]
	return int64(prompts - values["sglang:cached_tokens_total"]), counted, nil // what is 0 need not be on the page
}

// look is Loads within the time of a sample.
func (s *Server) look(ctx context.Context) ([]Load, error) {
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	return s.Loads(ctx)
}

// Sampler returns a sampler of the server's load, under the server's name. Counts are sums over the data-parallel
// ranks, the token usage is their mean, the snapshot's age that of the oldest (left out where it is not told). The throughput
// is left out where the server does not measure it. A sample is tried once: a second try would hide a gap.
func (s *Server) Sampler() metrics.Sampler { return &sampler{s: s} }

type sampler struct {
	s      *Server
	before map[int]int64 // the lateness of a simulated server before the first sample
}

func (p *sampler) Name() string { return p.s.name }

// Engine makes a collector, and the run folder that it writes to, name the server.
func (p *sampler) Engine() metrics.EngineRecord { return p.s.Record() }

// Simulation makes a collector label what it measures here, if the engine is simulated. The server is asked each time,
// because a fault that is set while it runs changes its label.
func (p *sampler) Simulation(ctx context.Context) (*metrics.Simulation, error) {
	if p.s.Info().Simulation == nil {
		return nil, nil
	}
	var raw map[string]any
	if _, here := p.s.present().inst.(Simulated); !here {
		ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
		defer cancel()
		if err := p.s.client.once(ctx, http.MethodGet, "/server_info", nil, &raw); err != nil {
			return nil, p.s.wrap("simulation", err)
		}
	}
	return p.s.simulation(raw), nil
}

func (p *sampler) Sample(ctx context.Context) (map[string]float64, error) {
	loads, err := p.s.look(ctx)
	if err != nil {
		return nil, err
	}
	p.s.mu.Lock()
	throughput := p.s.raw["enable_metrics"] == true || p.s.info.Simulation != nil
	p.s.mu.Unlock()
	v := map[string]float64{}
	if simulated := loads[0].Simulated; simulated != nil { // all ranks share a host
		v[metrics.StepLateness] = p.latenessP99(simulated.StepLateness)
	}
	for _, l := range loads {
		if l.Age > 0 {
			v[metrics.SnapshotAge] = max(v[metrics.SnapshotAge], float64(l.Age)/1e6)
		}
		v[metrics.NumRunning] += float64(l.NumRunning)
		v[metrics.NumWaiting] += float64(l.NumWaiting)
		v[metrics.NumUsedTokens] += float64(l.NumUsedTokens)
		v[metrics.MaxTokens] += float64(l.MaxTotalTokens)
		v[metrics.TokenUsage] += l.TokenUsage / float64(len(loads))
		if throughput {
			v[metrics.GenThroughput] += l.GenThroughput
		}
	}
	return v, nil
}

// latenessP99 returns the 99th percentile, in ms, of the lateness since the first sample, or since the server was started anew.
func (p *sampler) latenessP99(counts map[int]int64) float64 {
	restarted := false
	for us, n := range p.before {
		restarted = restarted || counts[us] < n
	}
	if restarted {
		p.before = map[int]int64{}
	}
	if p.before == nil {
		p.before = counts
	}
	var pieces int64
	for us, n := range counts {
		pieces += n - p.before[us]
	}
	later := pieces
	for _, us := range slices.Sorted(maps.Keys(counts)) {
		if later -= counts[us] - p.before[us]; later*100 < pieces {
			return float64(us) / 1e3
		}
	}
	return 0
}
