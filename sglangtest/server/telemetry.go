package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// How the series of one name become one value: over data-parallel ranks and, of counters, over the other labels.
type combine int

const (
	sumAll   combine = iota + 1 // counters
	sumCount                    // numbers of requests, which with priority scheduling come in total and for each priority
	mean                        // ratios
)

// wantedSeries are the series of /metrics that a sample holds (observability/metrics_collector.py of 0.5.15 to 0.5.23).
var wantedSeries = map[string]combine{
	"sglang:num_running_reqs": sumCount, "sglang:num_queue_reqs": sumCount, "sglang:num_grammar_queue_reqs": sumCount,
	"sglang:num_used_tokens": sumAll, "sglang:kv_available_tokens": sumAll, "sglang:kv_evictable_tokens": sumAll, "sglang:gen_throughput": sumAll,
	"sglang:token_usage": mean, "sglang:cache_hit_rate": mean, "sglang:new_token_ratio": mean, "sglang:is_cuda_graph": mean,
	"sglang:spec_accept_length": mean, "sglang:spec_accept_rate": mean,
	"sglang:prompt_tokens_total": sumAll, "sglang:generation_tokens_total": sumAll, "sglang:cached_tokens_total": sumAll,
	"sglang:num_requests_total": sumAll, "sglang:num_aborted_requests_total": sumAll, "sglang:num_retracted_requests_total": sumAll,
	"sglang:evicted_tokens_total": sumAll, "sglang:scheduler_idle_seconds_total": sumAll,
	"sglang:time_to_first_token_seconds_sum": sumAll, "sglang:time_to_first_token_seconds_count": sumAll,
	"sglang:inter_token_latency_seconds_sum": sumAll, "sglang:inter_token_latency_seconds_count": sumAll,
	"sglang:e2e_request_latency_seconds_sum": sumAll, "sglang:e2e_request_latency_seconds_count": sumAll,
	"sglang:queue_time_seconds_sum": sumAll, "sglang:queue_time_seconds_count": sumAll,
}

// Metrics reads and parses all of /metrics, for the begin and the end of a run; [Server.MetricsSampler] is cheaper. The
// server must have been started with --enable-metrics.
func (s *Server) Metrics(ctx context.Context) ([]Series, error) {
	page, err := s.metricsPage(ctx)
	if err != nil {
		return nil, err
	}
	series, err := parseMetrics(page)
	return series, s.wrap("metrics: GET /metrics", err)
}

func (s *Server) metricsPage(ctx context.Context) ([]byte, error) {
	var page []byte
	err := s.client.once(ctx, http.MethodGet, "/metrics", nil, &page)
	var status *StatusError
	if errors.As(err, &status) && status.Status == http.StatusNotFound {
		err = fmt.Errorf("%w: start the server with --enable-metrics", err)
	}
	return page, s.wrap("metrics", err)
}

// HasMetrics reports whether the server has /metrics, as it said of itself when it became ready.
func (s *Server) HasMetrics() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw["enable_metrics"] == true
}

// MetricsSampler returns a sampler of some thirty series of /metrics under their own names, such as
// "sglang:gen_throughput": queues, tokens, the KV pool, cache and speculation, counters, and sum and count of the server's
// own latencies, from which the mean between two samples follows. Its name is the server's with "/metrics" after it. Counts,
// throughput and counters are sums over the data-parallel ranks and labels, ratios are means over the ranks; a series that
// the server does not have is left out.
//
// The server must have been started with --enable-metrics. Its schedulers renew their values at each prefill, every
// --decode-log-interval (40) decode steps and when idle: they are that much older than the sample. With
// --enable-metrics-for-all-schedulers sums would count each request many times, so that samples fail.
func (s *Server) MetricsSampler() metrics.Sampler { return metricsSampler{s} }

type metricsSampler struct{ s *Server }

func (p metricsSampler) Name() string { return p.s.name + "/metrics" }

func (p metricsSampler) Sample(ctx context.Context) (map[string]float64, error) {
	p.s.mu.Lock()
	all := p.s.raw["enable_metrics_for_all_schedulers"] == true
	p.s.mu.Unlock()
	if all {
		return nil, p.s.wrap("metrics", errors.New("every rank of tensor parallelism reports (--enable-metrics-for-all-schedulers), so that sums mean nothing: use Metrics"))
	}
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	page, err := p.s.metricsPage(ctx)
	if err != nil {
		return nil, err
	}
	values, err := scanMetrics(page)
	return values, p.s.wrap("metrics: GET /metrics", err)
}
