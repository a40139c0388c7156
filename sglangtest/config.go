package sglangtest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/jsondoc"
	"github.com/sglangtest/harness/sglangtest/internal/nearest"
	"github.com/sglangtest/harness/sglangtest/internal/redact"
	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/server"
)

// A NodeConfig describes an experiment on one server. It is the same in Go and in JSON. A field that is zero
// is left to the default in its comment; there is no other default. [NodeConfig.Validate] checks it.
type NodeConfig struct {
	// The server. Zero values leave a setting to SGLang, or to the profile of a simulated engine.
	ModelPath                string  `json:"model_path,omitempty"`                // required by servers that load a model
	TokenizerPath            string  `json:"tokenizer_path,omitempty"`            // default: the model's
	GPUID                    *int    `json:"gpu_id,omitempty"`                    // CUDA device; default: the launcher's choice
	Port                     int     `json:"port,omitempty"`                      // default: a free one
	MaxRunningRequests       int     `json:"max_running_requests,omitempty"`      // ≥ 1
	MemFractionStatic        float64 `json:"mem_fraction_static,omitempty"`       // (0, 1)
	ChunkedPrefillSize       int     `json:"chunked_prefill_size,omitempty"`      // tokens ≥ 1, or -1: prompts are not cut
	ScheduleConservativeness float64 `json:"schedule_conservativeness,omitempty"` // > 0
	EnableTorchCompile       bool    `json:"enable_torch_compile,omitempty"`
	Quantization             string  `json:"quantization,omitempty"`
	// ServerArgs holds all further arguments by SGLang's name, such as "attention_backend": "fa3" or "page_size": 16,
	// checked against SGLang's own table. API keys in it are used for the run's requests, and not stored.
	ServerArgs server.Args `json:"server_args,omitempty"`

	// The workload.
	DatasetName string `json:"dataset_name"`           // required: one of DatasetNames
	DatasetPath string `json:"dataset_path,omitempty"` // required by the datasets that are files
	// TimeUnit is that of the times in the file, "s", "ms", "us" or "ns"; BlockSize the tokens of a hash id of a Mooncake trace;
	// OddRows "fail" (default), or "skip" for rows that cannot be requests: see load.SkipOddRows. Default of the first two: the
	// format's own.
	TimeUnit  load.TimeUnit `json:"time_unit,omitempty"`
	BlockSize int           `json:"block_size,omitempty"`
	OddRows   string        `json:"odd_rows,omitempty"`

	RandomInputLen  int `json:"random_input_len,omitempty"`  // tokens; with dataset "random": required
	RandomOutputLen int `json:"random_output_len,omitempty"` // tokens; with dataset "random": required
	// RandomRangeRatio, in [0, 1], makes lengths of dataset "random" uniform between that share of the length and
	// the length itself, as bench_serving does: 1 is fixed lengths. Default: 0, from one token on.
	RandomRangeRatio float64              `json:"random_range_ratio,omitempty"`
	NumPrompts       int                  `json:"num_prompts,omitempty"`     // requests; default: as many as the dataset and Duration give
	RequestRate      Rate                 `json:"request_rate,omitempty"`    // Poisson arrivals/s, or Inf; this or TraceSpeed is required
	TraceSpeed       float64              `json:"trace_speed,omitempty"`     // > 0: arrive at the dataset's own times, this many times as fast
	Duration         Seconds              `json:"duration,omitempty"`        // only arrivals before this time; the dataset repeats until then
	MaxConcurrency   int                  `json:"max_concurrency,omitempty"` // cap on requests in flight; default: none
	SamplingParams   *load.SamplingParams `json:"sampling_params,omitempty"` // default: ignore_eos, all else the server's; max_new_tokens replaces the dataset's output lengths
	Seed             uint64               `json:"seed,omitempty"`

	// The client.
	API            load.API `json:"api,omitempty"`             // default: "generate"
	WarmupRequests int      `json:"warmup_requests,omitempty"` // requests before the run, not measured
	// KeepCache says what becomes of the server's prefix cache before the load, after any warm-up. False: it is emptied, whatever
	// others who use the server lose. True: it is left as it is. Absent: that of a server which the run launched is emptied, that
	// of one which it attached to is left, and the summary says that its state is unknown.
	KeepCache      *bool   `json:"keep_cache,omitempty"`
	RequestTimeout Seconds `json:"request_timeout,omitempty"` // deadline of each request; default: none

	// Batching on the client's side. The only strategy is "continuous": each request leaves when it arrives.
	BatchStrategy      string  `json:"batch_strategy,omitempty"`
	StaticBatchSize    int     `json:"static_batch_size,omitempty"`
	StaticBatchTimeout Seconds `json:"static_batch_timeout,omitempty"`

	// Parameters that change while load runs: what is set at how many seconds from the run's start. The one
	// parameter that a stock server can change is max_running_requests.
	EnableDynamicParams bool                       `json:"enable_dynamic_params,omitempty"` // must be set if there is a schedule
	ParamUpdateSchedule map[Seconds]map[string]int `json:"param_update_schedule,omitempty"`

	// What comes out.
	// OutputDir is the folder of the run; default: nothing is stored. {time} in it is the time of the start, as 20261201-093000,
	// and {label} the label, so that a config can be run again as it is.
	OutputDir       string    `json:"output_dir,omitempty"`
	Label           string    `json:"label,omitempty"`            // names the experiment for people; default: "node"
	OutputFormat    string    `json:"output_format,omitempty"`    // "jsonl" (default), or "csv": a table of the requests as well
	OmitChunks      bool      `json:"omit_chunks,omitempty"`      // store no times of single chunks, which are most of a folder
	MetricsInterval Seconds   `json:"metrics_interval,omitempty"` // how often the engine is sampled; default: 0.25
	Percentiles     []float64 `json:"percentiles,omitempty"`      // from 1 up to 100; default: 90, 95, 99, 99.9
	// SLO is what [NodeRun.Check] demands. Its percentiles are computed beside those of Percentiles.
	SLO SLO `json:"slo,omitempty"`
}

// DefaultMetricsInterval is how often the engine is sampled if a config does not say.
const DefaultMetricsInterval Seconds = 0.25

// maxSeconds bounds every span of time in a config: some thirty years.
const maxSeconds Seconds = 1e9

// LoadNodeConfig reads a config from a JSON file. Unknown keys and wrong types are reported together, each with its line and
// column, and with everything that [NodeConfig.Validate] finds. Keys that stand twice are refused before all else.
func LoadNodeConfig(path string) (NodeConfig, error) {
	var cfg NodeConfig
	data, err := os.ReadFile(path)
	if err != nil {
		return cfg, fmt.Errorf("sglangtest: config: %w", err)
	}
	doc, err := jsondoc.Parse(data)
	if err != nil {
		return cfg, fmt.Errorf("sglangtest: config %s: %w", path, err)
	}
	located := func(faults []jsondoc.Fault) error {
		errs := make([]error, len(faults))
		for i, f := range faults {
			errs[i] = fmt.Errorf("%s: %w", doc.Where(f.Path), f)
		}
		return errors.Join(errs...)
	}
	if err := located(doc.Twice()); err != nil {
		return cfg, fmt.Errorf("sglangtest: config %s:\n%w", path, err)
	}
	faults := doc.Decode(&cfg, func(key string, known []string) error { return fmt.Errorf("unknown key; %s", nearest.Hint(key, known)) })
	const schedule = "param_update_schedule"
	times := map[Seconds]string{}
	for _, key := range doc.Keys(schedule) {
		var at Seconds
		if at.UnmarshalText([]byte(key)) != nil {
			continue // reported by Decode
		}
		if other, twice := times[at]; twice {
			faults = append(faults, jsondoc.Fault{Path: jsondoc.Path(schedule, key), Err: fmt.Errorf("two keys stand for the same time: %q and this one", other)})
		}
		times[at] = key
	}
	faults = append(faults, writtenZeros(data)...)
	if err := errors.Join(located(faults), cfg.Validate()); err != nil {
		return cfg, fmt.Errorf("sglangtest: config %s:\n%w", path, err)
	}
	return cfg, nil
}

// zeros are the keys of numbers for which 0 is a value like others.
var zeros = []string{"port", "random_range_ratio", "seed", "warmup_requests"}

// writtenZeros reports the numbers that are written as 0 where that is none: in a Go struct it means the default, but who writes
// it into a file means something.
func writtenZeros(data []byte) []jsondoc.Fault {
	var members map[string]json.RawMessage
	if json.Unmarshal(data, &members) != nil {
		return nil // reported by Decode
	}
	var faults []jsondoc.Fault
	config := reflect.TypeFor[NodeConfig]()
	for i := range config.NumField() {
		f := config.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		number := f.Type.Kind() == reflect.Int || f.Type.Kind() == reflect.Float64
		if !number || !strings.Contains(options, "omitempty") || slices.Contains(zeros, key) {
			continue
		}
		if v, err := strconv.ParseFloat(string(members[key]), 64); err == nil && v == 0 {
			faults = append(faults, jsondoc.Fault{Path: key, Err: errors.New("0: want another number, or leave the key out for the default")})
		}
	}
	return faults
}

// Save writes the config to a JSON file that [LoadNodeConfig] reads back. It replaces what was there.
func (c NodeConfig) Save(path string) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("sglangtest: config: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o666); err != nil {
		return fmt.Errorf("sglangtest: config: %w", err)
	}
	return nil
}

// Validate reports all faults of the config at once, each with its JSON key and what would be valid.
func (c NodeConfig) Validate() error {
	var faults []error
	check := func(ok bool, key, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
		}
	}
	check(c.MaxRunningRequests >= 0, "max_running_requests", "%d; want ≥ 1", c.MaxRunningRequests)
	check(c.Port >= 0 && c.Port <= 65535, "port", "%d; want 1 to 65535", c.Port)
	check(c.GPUID == nil || *c.GPUID >= 0, "gpu_id", "want ≥ 0")
	check(c.MemFractionStatic >= 0 && c.MemFractionStatic < 1, "mem_fraction_static", "%v; want between 0 and 1", c.MemFractionStatic)
	check(c.ChunkedPrefillSize >= -1, "chunked_prefill_size", "%d; want ≥ 1, or -1 for no chunking", c.ChunkedPrefillSize)
	check(c.ScheduleConservativeness >= 0, "schedule_conservativeness", "%v; want > 0", c.ScheduleConservativeness)
	own := c
	if len(faults) > 0 { // of the fields above, which the server's own check would report again
		own = NodeConfig{ServerArgs: c.ServerArgs}
	}
	if _, err := own.Server(); err != nil {
		faults = append(faults, err)
	}

	if _, err := c.dataset(); err != nil {
		faults = append(faults, err)
	}
	check(c.NumPrompts >= 0, "num_prompts", "%d; want ≥ 1", c.NumPrompts)
	check(c.RequestRate >= 0, "request_rate", "%v; want > 0 or \"inf\"", float64(c.RequestRate))
	check(c.TraceSpeed >= 0 && !math.IsInf(c.TraceSpeed, 0), "trace_speed", "%v; want > 0", c.TraceSpeed)
	check(c.RequestRate != 0 || c.TraceSpeed != 0, "request_rate", "required, unless trace_speed is given; want a number of requests/s or \"inf\"")
	check(c.RequestRate == 0 || c.TraceSpeed == 0, "trace_speed", "excludes request_rate")
	check(c.Duration >= 0 && c.Duration <= maxSeconds, "duration", "%v; want more than 0 and at most 1e9 seconds", float64(c.Duration))
	check(c.Duration <= 0 || c.RequestRate != Inf, "duration", "with request_rate \"inf\" all requests arrive at once: give num_prompts instead")
	check(c.MaxConcurrency >= 0, "max_concurrency", "%d; want ≥ 1", c.MaxConcurrency)
	if c.SamplingParams != nil {
		if err := c.SamplingParams.Validate(); err != nil {
			faults = append(faults, fmt.Errorf("sampling_params: %w", err))
		}
		if err := cmp.Or(c.API, load.Generate).CheckSampling(c.SamplingParams); err != nil {
			faults = append(faults, fmt.Errorf("sampling_params: %w", err))
		}
	}
	check(slices.Contains([]load.API{"", load.Generate, load.Completions, load.ChatCompletions}, c.API), "api", "%q; want %s, %s or %s", c.API, load.Generate, load.Completions, load.ChatCompletions)
	check(c.WarmupRequests >= 0, "warmup_requests", "%d; want ≥ 0", c.WarmupRequests)
	check(c.RequestTimeout >= 0 && c.RequestTimeout <= maxSeconds, "request_timeout", "%v; want more than 0 and at most 1e9 seconds", float64(c.RequestTimeout))

	check(c.BatchStrategy == "" || c.BatchStrategy == "continuous", "batch_strategy", "%q; want \"continuous\"", c.BatchStrategy)
	check(c.StaticBatchSize == 0, "static_batch_size", "only with batch_strategy \"static\", which is not available")
	check(c.StaticBatchTimeout == 0, "static_batch_timeout", "only with batch_strategy \"static\", which is not available")

	check(c.EnableDynamicParams || len(c.ParamUpdateSchedule) == 0, "param_update_schedule", "needs enable_dynamic_params: true")
	for _, at := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule)) {
		path := fmt.Sprintf("param_update_schedule[%q]", fmt.Sprint(float64(at)))
		check(at >= 0 && at <= maxSeconds, path, "want 0 to 1e9 seconds")
		check(len(c.ParamUpdateSchedule[at]) > 0, path, "sets nothing")
		check(c.Duration <= 0 || at < c.Duration, path, "not before the end of the workload at %v s", float64(c.Duration))
		for name, value := range c.ParamUpdateSchedule[at] {
			check(name == server.ParamMaxRunningRequests, path+"."+name, "cannot be changed while a server runs; want %s", server.ParamMaxRunningRequests)
			check(value >= 1, path+"."+name, "%d; want ≥ 1", value)
			check(c.MaxRunningRequests == 0 || value <= c.MaxRunningRequests, path+"."+name, "%d; the limit can be changed up to the start-up value max_running_requests = %d, not beyond", value, c.MaxRunningRequests)
		}
	}

	check(slices.Contains([]string{"", "jsonl", "csv"}, c.OutputFormat), "output_format", "%q; want \"jsonl\" or \"csv\"", c.OutputFormat)
	check(c.OutputFormat == "" || c.OutputDir != "", "output_format", "needs output_dir")
	for _, name := range placeholder.FindAllString(c.OutputDir, -1) {
		check(name == "{time}" || name == "{label}", "output_dir", "%s; want {time} or {label}", name)
	}
	check(!strings.Contains(c.OutputDir, "{label}") || c.Label != "", "output_dir", "{label} needs label")
	check(!strings.Contains(c.OutputDir, "{label}") || !strings.ContainsAny(c.Label, `/\`), "label", "%q; want no / and \\ where it is part of output_dir", c.Label)
	check(!c.OmitChunks || c.OutputDir != "", "omit_chunks", "needs output_dir")
	check(c.MetricsInterval >= 0 && c.MetricsInterval <= maxSeconds, "metrics_interval", "%v; want more than 0 and at most 1e9 seconds", float64(c.MetricsInterval))
	for i, p := range c.Percentiles {
		check(p >= 1 && p < 100, fmt.Sprintf("percentiles[%d]", i), "%v; want from 1 up to 100, such as 99 or 99.9", p)
	}
	faults = append(faults, c.SLO.validate())
	return errors.Join(faults...)
}

// Server returns the arguments of the experiment's server. ServerArgs that SGLang does not take are faults.
func (c NodeConfig) Server() (server.Config, error) {
	cfg := server.Config{
		ModelPath: c.ModelPath, TokenizerPath: c.TokenizerPath, Port: c.Port, MaxRunningRequests: c.MaxRunningRequests,
		MemFractionStatic: c.MemFractionStatic, ChunkedPrefillSize: c.ChunkedPrefillSize,
		ScheduleConservativeness: c.ScheduleConservativeness, EnableTorchCompile: c.EnableTorchCompile, Quantization: c.Quantization,
	}
	if c.GPUID != nil {
		cfg.GPUs = []int{*c.GPUID}
	}
	if len(c.ServerArgs) == 0 {
		return cfg, nil
	}
	cfg, err := cfg.With(c.ServerArgs)
	if err := errors.Join(err, cfg.Validate()); err != nil {
		var text strings.Builder
		for line := range strings.Lines(err.Error()) {
			text.WriteString("server_args." + strings.TrimPrefix(line, "args."))
		}
		return server.Config{}, errors.New(text.String())
	}
	return cfg, nil
}

// placeholder is what stands in braces in output_dir.
var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// outputDir returns the folder of a run that starts now; empty if nothing is stored.
func (c NodeConfig) outputDir(now time.Time) string {
	return strings.NewReplacer("{time}", now.Format("20060102-150405"), "{label}", c.Label).Replace(c.OutputDir)
}

// withoutSecrets returns the config as it may be stored: with API keys and passwords replaced.
func (c NodeConfig) withoutSecrets() NodeConfig {
	c.ServerArgs = maps.Clone(c.ServerArgs)
	for _, name := range sglargs.Secrets() {
		if _, ok := c.ServerArgs[name]; ok {
			c.ServerArgs[name] = redact.NotStored
		}
	}
	return c
}

// Generator returns the experiment's workload.
func (c NodeConfig) Generator() (*load.RequestGenerator, error) {
	ds, err := c.dataset()
	if err != nil {
		return nil, fmt.Errorf("sglangtest: config: %w", err)
	}
	arrivals := load.TraceTimes(c.TraceSpeed)
	if c.RequestRate == Inf {
		arrivals = load.AllAtOnce()
	} else if c.RequestRate > 0 {
		arrivals = load.Poisson(float64(c.RequestRate))
	}
	opts := []load.GeneratorOption{load.WithArrivals(arrivals), load.WithSeed(c.Seed)}
	if c.NumPrompts > 0 {
		opts = append(opts, load.WithLimit(c.NumPrompts))
	}
	if c.Duration > 0 {
		opts = append(opts, load.WithDuration(c.Duration.Duration()))
		if c.DatasetName != "random" {
			opts = append(opts, load.WithRepeat())
		}
	}
	if c.SamplingParams != nil {
		opts = append(opts, load.WithSampling(*c.SamplingParams))
	}
	return load.NewRequestGenerator(ds, opts...)
}
