package metrics

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// A SamplerSummary says how sampling one source went and what it showed.
type SamplerSummary struct {
	Source    string  `json:"source"`
	IntervalS float64 `json:"interval_s"` // 0: the samples came by Collector.AddSample
	Taken     int     `json:"taken"`      // samples with values
	Failed    int     `json:"failed"`     // attempts that failed
	Missed    int     `json:"missed"`     // moments skipped because an attempt took longer than the interval
	MaxCost   Millis  `json:"max_cost_ms"`
	// Stale counts those of Taken whose load was old: its [SnapshotAge] was above 2 s and above twice the interval. An idle
	// SGLang publishes its load once a second or more often, and one that hangs answers with the load from before. MaxAge is
	// the largest age of a load; null if the source does not tell it (SGLang 0.5.15), so that none can be found stale.
	Stale  int     `json:"stale"`
	MaxAge *Millis `json:"max_age_ms"`
	// What an engine reported; null if the source does not report it or all of it was stale. Means are over the samples
	// that are not stale, each of the same weight.
	Running    *Gauge `json:"running"`
	Waiting    *Gauge `json:"waiting"`
	TokenUsage *Gauge `json:"token_usage"`
	// What a GPU sampler reported, in order of index; nil for other sources.
	GPUs []GPUSummary `json:"gpus,omitempty"`
}

// A GPUSummary sums up the samples of one GPU. What it does not tell is nil.
type GPUSummary struct {
	Index       int    `json:"index"`
	Utilization *Gauge `json:"utilization_pct"` // share of the time in which any kernel ran
	MemoryUsed  *Gauge `json:"memory_used_bytes"`
	Power       *Gauge `json:"power_w"`
	Temperature *Gauge `json:"temperature_c"`
	// Energy is what the GPU used from the first sample to the last, in J, by its own counter.
	Energy *float64 `json:"energy_j"`
}

// A Gauge sums up a sampled value.
type Gauge struct {
	Mean float64 `json:"mean"`
	Max  float64 `json:"max"`
}

func (b *builder) samplers() {
	var sources []SamplerSummary
	known := make(map[string]bool)
	for _, l := range b.c.samplers {
		sources = append(sources, SamplerSummary{Source: l.name, IntervalS: l.interval.Seconds(), Missed: l.missedBy(b.c.ended)})
		known[l.name] = true
	}
	samples := make(map[string][]Sample)
	for _, x := range b.samples {
		samples[x.Source] = append(samples[x.Source], x)
		if !known[x.Source] { // it came by AddSample
			sources = append(sources, SamplerSummary{Source: x.Source})
			known[x.Source] = true
		}
	}
	for _, s := range sources {
		var running, waiting, usage gaugeSum
		for _, x := range samples[s.Source] {
			s.MaxCost = max(s.MaxCost, millis(x.Cost))
			if x.Err != "" {
				s.Failed++
				continue
			}
			s.Taken++
			if age, ok := loadAge(x); ok {
				if s.MaxAge == nil || age > *s.MaxAge {
					s.MaxAge = &age
				}
			}
			if stale(x, s.IntervalS) {
				s.Stale++
				continue
			}
			running.add(x.Values, NumRunning)
			waiting.add(x.Values, NumWaiting)
			usage.add(x.Values, TokenUsage)
		}
		s.Running, s.Waiting, s.TokenUsage = running.gauge(), waiting.gauge(), usage.gauge()
		s.GPUs = sumGPUs(samples[s.Source])
		b.sum.Samplers = append(b.sum.Samplers, s)
	}
}

// staleAfter is the age from which on a load is stale, if the sampling interval is short: with --sleep-on-idle an idle
// scheduler publishes its load about each second (SGLang 0.5.23, managers/scheduler_components/idle_sleeper.py).
const staleAfter = 2 * time.Second

// loadAge returns the age of the engine's load that x holds, if it holds one and the source tells its age.
func loadAge(x Sample) (Millis, bool) {
	_, load := x.Values[NumRunning]
	age, told := x.Values[SnapshotAge]
	return Millis(age), load && told && !math.IsNaN(age) && !math.IsInf(age, 0)
}

// stale reports whether x, from a source that is sampled at the given interval in seconds, holds a load that is too old to
// count.
func stale(x Sample, interval float64) bool {
	age, ok := loadAge(x)
	return ok && age > max(millis(staleAfter), Millis(2e3*interval))
}

// sumGPUs sums up the series of GPUs among samples.
func sumGPUs(samples []Sample) []GPUSummary {
	indices := make(map[int]bool)
	for _, x := range samples {
		for name := range x.Values {
			var i int
			var kind string
			if n, _ := fmt.Sscanf(name, "gpu%d_%s", &i, &kind); n == 2 {
				indices[i] = true
			}
		}
	}
	var gpus []GPUSummary
	for _, i := range slices.Sorted(maps.Keys(indices)) {
		var utilization, memory, power, temperature gaugeSum
		var energy []float64
		for _, x := range samples {
			utilization.add(x.Values, GPUSeries(GPUUtilization, i))
			memory.add(x.Values, GPUSeries(GPUMemoryUsed, i))
			power.add(x.Values, GPUSeries(GPUPower, i))
			temperature.add(x.Values, GPUSeries(GPUTemperature, i))
			if v, ok := x.Values[GPUSeries(GPUEnergy, i)]; ok && !math.IsNaN(v) && !math.IsInf(v, 0) {
				energy = append(energy, v)
			}
		}
		g := GPUSummary{Index: i, Utilization: utilization.gauge(), MemoryUsed: memory.gauge(), Power: power.gauge(), Temperature: temperature.gauge()}
		if len(energy) > 1 {
			used := energy[len(energy)-1] - energy[0]
			g.Energy = &used
		}
		gpus = append(gpus, g)
	}
	return gpus
}

// A gaugeSum adds up the values of one name.
type gaugeSum struct {
	n        int
	sum, max float64
}

func (g *gaugeSum) add(values map[string]float64, name string) {
	v, ok := values[name]
	if !ok || math.IsNaN(v) || math.IsInf(v, 0) { // not told
		return
	}
	if g.n == 0 || v > g.max {
		g.max = v
	}
	g.n++
	g.sum += v
}

func (g gaugeSum) gauge() *Gauge {
	if g.n == 0 {
		return nil
	}
	return &Gauge{Mean: g.sum / float64(g.n), Max: g.max}
}
