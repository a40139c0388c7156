package metrics

import (
	"context"
	"strconv"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// Names of values that engine samplers report, as SGLang's /v1/loads calls them.
const (
	NumRunning    = "num_running_reqs"     // requests in the running batch
	NumWaiting    = "num_waiting_reqs"     // requests in the engine's waiting queue
	NumUsedTokens = "num_used_tokens"      // KV tokens in use
	MaxTokens     = "max_total_num_tokens" // KV pool size in tokens
	TokenUsage    = "token_usage"          // used share of the KV pool, 0 to 1
	GenThroughput = "gen_throughput"       // output tokens/s by the engine's own count

	// StepLateness is how late a simulated server was with its steps since the sampler's first sample, 99th percentile in
	// ms: by so much its machine, not the simulation, made latencies longer.
	StepLateness = "step_lateness_p99_ms"

	// SnapshotAge is how old the load was that an engine told, in ms by its own clock; that of its oldest rank. A load that is
	// too old does not count: see [SamplerSummary].Stale.
	SnapshotAge = "snapshot_age_ms"
)

// Names of values that a GPU sampler reports for each GPU, under [GPUSeries].
const (
	GPUUtilization       = "utilization_pct"        // share of the time in which any kernel ran, 0 to 100
	GPUMemoryUtilization = "memory_utilization_pct" // share of the time in which memory was read or written, 0 to 100
	GPUMemoryUsed        = "memory_used_bytes"      // of all processes
	GPUPower             = "power_w"
	GPUEnergy            = "energy_j" // since the driver was loaded; differences are more exact than the mean of GPUPower
	GPUTemperature       = "temperature_c"
	GPUSMClock           = "sm_clock_mhz"
	GPUMemoryClock       = "memory_clock_mhz"
)

// GPUSeries names a value of one GPU, such as "gpu0_power_w". The index is that of the GPU among all of its host.
func GPUSeries(name string, index int) string { return "gpu" + strconv.Itoa(index) + "_" + name }

// A Sample is a set of values read from one source at one moment.
type Sample struct {
	At     time.Duration      `json:"at_ns"`            // when the values had been read, offset from the run's start
	Cost   time.Duration      `json:"cost_ns"`          // how long reading them took; they are at most this old, plus the source's own delay
	Source string             `json:"source"`           // the sampler's name, such as "server-0"
	Values map[string]float64 `json:"values,omitempty"` // nil if the sample failed
	Err    string             `json:"error,omitempty"`  // why it failed: a gap is recorded, never filled in
}

// A Sampler reads values from one source. Sample is never called twice at once on one Sampler. One that also has the
// method Simulation(context.Context) (*Simulation, error) tells the collector, with a result that is not nil, that its source
// is simulated. It is called at the run's start and, if the source was simulated then, at its end: the later label counts.
// One that has the method Engine() EngineRecord tells the collector which server its source is: see [Collector.AddEngine].
type Sampler interface {
	Name() string
	// Sample reads the values. The map it returns belongs to the caller.
	Sample(ctx context.Context) (map[string]float64, error)
}

// A Sink stores what a run yields, as it happens. Its methods but Begin and End do not return errors: a sink
// keeps the first one, tells it by Failed and returns it from End. They are safe for concurrent use and must not keep
// what pointers lead to.
type Sink interface {
	Begin(info load.Info) error
	// Start is called once after Begin, when the run's clock starts. It must return at once.
	Start(clock load.Clock)
	Arrived(req *load.Request)
	Result(res *load.Result)
	Sample(s Sample)
	Event(e Event)
	// Failed returns a channel that yields the first error that storing meets, as soon as it is met. The collector receives from
	// it from Begin to End. A sink that cannot fail may return nil.
	Failed() <-chan error
	// End makes everything durable and returns the first error that storing met.
	End() error
}
