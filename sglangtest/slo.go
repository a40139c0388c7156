package sglangtest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// An SLO is a set of limits on latencies, each in milliseconds, > 0. A key is METRIC_STATISTIC_ms, such as "ttft_p99_ms",
// "tpot_mean_ms" or "e2e_max_ms".
//
// Metrics: ttft, tpot, itl, e2e, client_queue (the wait at the client), server_ttft and server_latency (both from sending); see
// the fields of [metrics.Summary]. Statistics: mean, max, or a percentile from 1 up to 100, such as p50, p99 or p99.9.
// A request that failed counts as over every limit, so that one is enough to miss a mean or a maximum; itl is over the tokens
// of the successful requests alone. Limits on the maximum of ttft, tpot and e2e are such that each request meets or misses,
// so the summary's goodput counts the requests that met them all, unless metrics.WithGoodput says otherwise.
type SLO map[string]float64

// sloMetrics are the metrics that an SLO can name.
var sloMetrics = []struct {
	key    string
	metric metrics.Metric
}{
	{"ttft", metrics.TTFT}, {"tpot", metrics.TPOT}, {"itl", metrics.ITL}, {"e2e", metrics.TotalLatency}, {"client_queue", metrics.QueueTime},
	{"server_ttft", metrics.ServerTTFT}, {"server_latency", metrics.ServerLatency},
}

// maxLimit bounds a limit, in milliseconds.
const maxLimit = float64(maxSeconds) * 1000

// limits returns what the SLO demands, in the order of the keys, or all of its faults, each with the key's path.
func (s SLO) limits() ([]metrics.Limit, error) {
	var limits []metrics.Limit
	var faults []error
	for _, key := range slices.Sorted(maps.Keys(s)) {
		l, err := sloLimit(key, s[key])
		if err != nil {
			faults = append(faults, fmt.Errorf("slo.%s: %w", key, err))
			continue
		}
		limits = append(limits, l)
	}
	return limits, errors.Join(faults...)
}

func (s SLO) validate() error {
	_, err := s.limits()
	return err
}

func sloLimit(key string, ms float64) (metrics.Limit, error) {
	name, unit := strings.CutSuffix(key, "_ms")
	cut := strings.LastIndexByte(name, '_')
	var keys []string
	for _, m := range sloMetrics {
		if keys = append(keys, m.key); !unit || cut < 0 || m.key != name[:cut] {
			continue
		}
		if !(ms > 0 && ms <= maxLimit) {
			return metrics.Limit{}, fmt.Errorf("%v; want more than 0 and at most 1e12 ms", ms)
		}
		limit := time.Duration(math.Round(ms * 1e6))
		switch statistic := name[cut+1:]; statistic {
		case "mean":
			return metrics.MeanAtMost(m.metric, limit), nil
		case "max":
			return metrics.AtMost(m.metric, 1, limit), nil
		default:
			text, isP := strings.CutPrefix(statistic, "p")
			p, err := strconv.ParseFloat(text, 64)
			// One spelling for each, so that two keys never mean the same.
			if !isP || err != nil || !(p >= 1 && p < 100) || strconv.FormatFloat(p, 'f', -1, 64) != text {
				return metrics.Limit{}, fmt.Errorf("statistic %q; want mean, max or a percentile from 1 up to 100, such as p99 or p99.9", statistic)
			}
			return metrics.AtMost(m.metric, p/100, limit), nil
		}
	}
	return metrics.Limit{}, fmt.Errorf("want METRIC_STATISTIC_ms, such as ttft_p99_ms, where the metric is one of %s", strings.Join(keys, ", "))
}

// goodput returns the limits that each request meets or misses.
func (s SLO) goodput() metrics.SLO {
	limit := func(key string) time.Duration { return time.Duration(math.Round(s[key] * 1e6)) }
	return metrics.SLO{TTFT: limit("ttft_max_ms"), TPOT: limit("tpot_max_ms"), E2E: limit("e2e_max_ms")}
}

// figures returns what the summary has to hold beside what it always holds. The config is valid.
func (c NodeConfig) figures() []metrics.Option {
	var opts []metrics.Option
	if len(c.Percentiles) > 0 {
		opts = append(opts, metrics.WithPercentiles(c.Percentiles...))
	}
	if limits, err := c.SLO.limits(); err == nil && len(limits) > 0 {
		opts = append(opts, metrics.WithLimits(limits...))
	}
	if good := c.SLO.goodput(); good != (metrics.SLO{}) {
		opts = append(opts, metrics.WithGoodput(good))
	}
	return opts
}

// Check returns nil if the run met its config's SLO, a *[metrics.CheckError] if it missed some of it, and another error if it
// cannot be told, as with [metrics.Summary.Check]. A config without an SLO is an error: nothing was demanded, so nothing is met.
func (r *NodeRun) Check() error {
	limits, err := r.slo.limits()
	if err != nil {
		return fmt.Errorf("sglangtest: config: %w", err)
	}
	if len(limits) == 0 {
		return errors.New("sglangtest: check: the config has no slo; give one, or use Summary.Check")
	}
	return r.Summary.Check(limits...)
}
