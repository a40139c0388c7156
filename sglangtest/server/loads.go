package server

import (
	"context"
	"errors"
	"net/http"
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
	TokenUsage     float64 `json:"token_usage"`    // 0 to 1
	GenThroughput  float64 `json:"gen_throughput"` // output tokens/s; meaningful only with --enable-metrics
}

// Loads reads the load of every data-parallel rank. The server takes it from a snapshot that its scheduler
// publishes at each prefill, when idle and every few decode steps; no step waits for it.
func (s *Server) Loads(ctx context.Context) ([]Load, error) {
	var answer struct {
		Loads []Load `json:"loads"`
	}
	if err := s.client.once(ctx, http.MethodGet, "/v1/loads", nil, &answer); err != nil {
		return nil, s.wrap("loads", err)
	}
	if len(answer.Loads) == 0 {
		return nil, s.wrap("loads", errors.New("GET /v1/loads names no rank"))
	}
	return answer.Loads, nil
}

// Sampler returns a sampler of the server's load, under the server's name. Counts are sums over the data-parallel
// ranks, the token usage is their mean. The throughput is left out where the server does not measure it. A sample is
// tried once: a second try would hide a gap.
func (s *Server) Sampler() metrics.Sampler { return sampler{s} }

type sampler struct{ s *Server }

func (p sampler) Name() string { return p.s.name }

// Simulation makes a collector label what it measures here, if the engine is simulated.
func (p sampler) Simulation() *metrics.Simulation { return p.s.Info().Simulation }

func (p sampler) Sample(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	loads, err := p.s.Loads(ctx)
	if err != nil {
		return nil, err
	}
	p.s.mu.Lock()
	throughput := p.s.raw["enable_metrics"] == true || p.s.info.Simulation != nil
	p.s.mu.Unlock()
	v := map[string]float64{}
	for _, l := range loads {
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
