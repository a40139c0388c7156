package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/sglangtest/harness/sglangtest/internal/jsondoc"
	"github.com/sglangtest/harness/sglangtest/internal/nearest"
	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

// Config holds the arguments of one SGLang server. Zero values mean SGLang's own default. The JSON names are SGLang's
// argument names, but for gpus and args. [Config.Validate] checks it. [Config.CommandLine] and [ParseCommandLine],
// [Config.YAML] and [ParseYAML] and encoding/json convert it; JSON with an unknown key is refused.
//
// A Config may hold API keys. Whoever stores or logs it stores or logs them.
type Config struct {
	ModelPath       string `json:"model_path,omitempty"`
	TokenizerPath   string `json:"tokenizer_path,omitempty"`
	ServedModelName string `json:"served_model_name,omitempty"` // without ":", which separates a LoRA adapter's name
	Host            string `json:"host,omitempty"`              // empty: 127.0.0.1
	Port            int    `json:"port,omitempty"`              // 0: a free port is chosen
	APIKey          string `json:"api_key,omitempty"`           // empty: open to all
	AdminAPIKey     string `json:"admin_api_key,omitempty"`     // empty: APIKey opens the control endpoints too

	// Parallelism. The server needs DPSize × TPSize × PPSize GPUs; with data-parallel attention (enable_dp_attention)
	// DPSize is part of TPSize.
	TPSize int `json:"tp_size,omitempty"` // tensor parallelism; 0: 1
	DPSize int `json:"dp_size,omitempty"` // data parallelism; 0: 1
	PPSize int `json:"pp_size,omitempty"` // pipeline parallelism; 0: 1

	MaxRunningRequests       int     `json:"max_running_requests,omitempty"`      // 0: set by the engine
	MaxTotalTokens           int     `json:"max_total_tokens,omitempty"`          // KV pool in tokens; 0: set by memory
	MaxQueuedRequests        int     `json:"max_queued_requests,omitempty"`       // 0: no limit
	ContextLength            int     `json:"context_length,omitempty"`            // tokens; 0: the model's
	MemFractionStatic        float64 `json:"mem_fraction_static,omitempty"`       // (0, 1), of GPU memory for weights and KV pool; 0: set by the engine
	ChunkedPrefillSize       int     `json:"chunked_prefill_size,omitempty"`      // tokens; 0: set by the engine; -1: no chunking
	MaxPrefillTokens         int     `json:"max_prefill_tokens,omitempty"`        // tokens; 0: 16384
	SchedulePolicy           string  `json:"schedule_policy,omitempty"`           // empty: fcfs
	ScheduleConservativeness float64 `json:"schedule_conservativeness,omitempty"` // > 0; 0: 1.0
	DisableRadixCache        bool    `json:"disable_radix_cache,omitempty"`
	RandomSeed               *int    `json:"random_seed,omitempty"` // nil: a random one

	LoadFormat       string `json:"load_format,omitempty"`       // of the weights; "dummy" makes random ones; empty: auto
	DType            string `json:"dtype,omitempty"`             // of weights and activations; empty: auto
	Quantization     string `json:"quantization,omitempty"`      // empty: as the model says
	KVCacheDType     string `json:"kv_cache_dtype,omitempty"`    // empty: auto
	AttentionBackend string `json:"attention_backend,omitempty"` // empty: set by the engine

	EnableTorchCompile bool `json:"enable_torch_compile,omitempty"`
	// Decode steps of a batch up to the largest captured one replay a CUDA graph; larger ones run slower, without.
	CUDAGraphMaxBSDecode    int    `json:"cuda_graph_max_bs_decode,omitempty"`   // largest batch captured; 0: set by the engine
	CUDAGraphBSDecode       []int  `json:"cuda_graph_bs_decode,omitempty"`       // batches captured; nil: set by the engine
	CUDAGraphBackendDecode  string `json:"cuda_graph_backend_decode,omitempty"`  // "disabled": no graphs; empty: set by the engine
	CUDAGraphBackendPrefill string `json:"cuda_graph_backend_prefill,omitempty"` // likewise

	IncrementalStreamingOutput bool   `json:"incremental_streaming_output,omitempty"` // /generate streams increments, not the whole text so far
	StreamInterval             int    `json:"stream_interval,omitempty"`              // tokens per chunk; 0: 1
	EnableMetrics              bool   `json:"enable_metrics,omitempty"`               // serve /metrics
	LogLevel                   string `json:"log_level,omitempty"`                    // empty: info, which the start-up lines need

	GPUs []int `json:"gpus,omitempty"` // CUDA device ids; not an argument of SGLang

	// Args holds all other arguments by SGLang's name, such as "page_size": bool, numbers, string, slices and maps. What
	// has a field above is refused here.
	Args Args `json:"args,omitempty"`
}

// Args are arguments of SGLang by name. Decoded from JSON, whole numbers are ints.
type Args map[string]any

// UnmarshalJSON reads an object, in which no key may stand twice.
func (a *Args) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*a = nil
		return nil
	}
	if _, err := parseDistinct(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return err
	}
	for name, v := range m {
		m[name] = sglargs.FromJSON(name, v)
	}
	*a = m
	return nil
}

// The keys of a Config that are not arguments of SGLang.
const (
	argsKey = "args"
	gpusKey = "gpus"
)

// typed maps an argument's name to the index of its field in Config.
var typed = func() map[string]int {
	fields := map[string]int{}
	for i := range reflect.TypeFor[Config]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[Config]().Field(i).Tag.Get("json"), ",")
		if name != argsKey && name != gpusKey {
			fields[name] = i
		}
	}
	return fields
}()

// UnmarshalJSON reads a config. It refuses unknown keys, with the nearest known one, and values of a wrong type, all
// together; and, before all else, keys that stand twice. As in all of encoding/json, null changes nothing.
func (c *Config) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	doc, err := parseDistinct(data)
	if err != nil {
		return err
	}
	var read Config
	if err := together(doc.Decode(&read, unknownKey)); err != nil {
		return err
	}
	*c = read
	return nil
}

// parseDistinct parses an object in which no key stands twice.
func parseDistinct(data []byte) (*jsondoc.Doc, error) {
	doc, err := jsondoc.Parse(data)
	if err != nil {
		return nil, err
	}
	return doc, together(doc.Twice())
}

func unknownKey(key string, known []string) error {
	if _, err := sglargs.Latest().Find(key); err == nil {
		return fmt.Errorf("no key of its own: write it inside %q", argsKey)
	}
	return fmt.Errorf("unknown key; %s", nearest.Hint(key, known))
}

func together(faults []jsondoc.Fault) error {
	errs := make([]error, len(faults))
	for i, f := range faults {
		errs[i] = f
	}
	return errors.Join(errs...)
}

// Settings returns all arguments that are set, those of Args included, by SGLang's name. GPUs is not among them.
func (c Config) Settings() map[string]any {
	out := map[string]any{}
	maps.Copy(out, c.Args)
	v := reflect.ValueOf(c)
	for name, i := range typed {
		f := v.Field(i)
		if f.IsZero() {
			continue
		}
		if f.Kind() == reflect.Pointer {
			f = f.Elem()
		}
		out[name] = f.Interface()
	}
	return out
}

// With returns a copy of c with further arguments set by SGLang's name, whether they have a field of their own or go into
// Args. One that c sets already and one of a wrong type are faults, all reported together, each with its name; the rest
// is set all the same.
func (c Config) With(args Args) (Config, error) {
	given := c.Settings()
	table := sglargs.Latest()
	out := c
	out.Args = maps.Clone(c.Args)
	fields := reflect.ValueOf(&out).Elem()
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(args)) {
		i, ok := typed[name]
		switch _, twice := given[name]; {
		case twice:
			faults = append(faults, fmt.Errorf("%s: set already%s", name, toValue(name, given[name])))
		case !ok:
			if out.Args == nil {
				out.Args = Args{}
			}
			out.Args[name] = args[name]
		default:
			a, err := table.Find(name)
			if err != nil {
				panic("server: a field of Config is no argument: " + err.Error()) // a test excludes it
			}
			v, err := table.Normal(a, args[name])
			if err == nil && !setField(fields.Field(i), v) {
				err = fmt.Errorf("%v stands for \"not set\": leave it out", v)
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	return out, errors.Join(faults...)
}

// set sets an argument by its name, whatever it was before.
func (c *Config) set(name string, value any) error {
	out := c.clone()
	if i, ok := typed[name]; ok {
		reflect.ValueOf(&out).Elem().Field(i).SetZero()
	}
	delete(out.Args, name)
	out, err := out.With(Args{name: value})
	if err == nil {
		*c = out
	}
	return err
}

// clone returns a copy that shares nothing that a caller could change.
func (c Config) clone() Config {
	c.Args, c.GPUs, c.CUDAGraphBSDecode = maps.Clone(c.Args), slices.Clone(c.GPUs), slices.Clone(c.CUDAGraphBSDecode)
	if c.RandomSeed != nil {
		seed := *c.RandomSeed
		c.RandomSeed = &seed
	}
	return c
}

// toValue is the value of an argument for a message, if it is no secret.
func toValue(name string, v any) string {
	if slices.Contains(sglargs.Secrets(), name) {
		return ""
	}
	return fmt.Sprintf(", to %v", v)
}

// Validate reports everything that no known version of SGLang would take, each fault with its key: values out of
// range, of a wrong type or not among the choices, unknown and misplaced arguments, contradictions.
func (c Config) Validate() error {
	return c.ValidateFor("")
}

// ValidateFor is Validate for one version of SGLang. What only other versions have is a fault, and so is a version that
// the SDK does not work with. A version between two known ones is treated as the older one; "" is any known version.
func (c Config) ValidateFor(version string) error {
	tables, err := tablesFor(version)
	if err != nil {
		return err
	}
	_, err = c.check(tables)
	return err
}

// tablesFor returns the arguments of a version, or those of all known versions for "", oldest first.
func tablesFor(version string) ([]*sglargs.Table, error) {
	if version == "" {
		return sglargs.Tables(), nil
	}
	table, err := sglargs.For(version)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return []*sglargs.Table{table}, nil
}

// Warnings returns what a user should know before a server of a version of SGLang starts with this config: that the
// version is not a known one, and which arguments it calls deprecated.
func (c Config) Warnings(version string) ([]string, error) {
	support, err := sglargs.Support(version)
	if err != nil {
		return nil, err
	}
	table, err := sglargs.For(version)
	if err != nil {
		return nil, err
	}
	var out []string
	if support != "" {
		out = append(out, support)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Settings())) {
		if a, err := table.Find(name); err == nil && a.Deprecated {
			out = append(out, a.Warning(a.Flag()))
		}
	}
	return out, nil
}

// check returns the last of the tables that takes the whole config.
func (c Config) check(tables []*sglargs.Table) (*sglargs.Table, error) {
	faults := slices.Concat(c.ranges(), c.contradictions())
	takers := map[string][]*sglargs.Table{}
	settings := c.Settings()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		key := name
		if _, inArgs := c.Args[name]; inArgs {
			key = argsKey + "." + name
			if _, ok := typed[name]; ok {
				faults = append(faults, fmt.Errorf("%s: a key of its own: write it beside %q, not inside", key, argsKey))
				continue
			}
			if name == "config" {
				faults = append(faults, fmt.Errorf("%s: read the file with ParseYAML instead", key))
				continue
			}
		}
		var last error
		for _, table := range tables {
			err := checkArg(table, name, settings[name])
			if err == nil {
				takers[key] = append(takers[key], table)
			} else {
				last = err
			}
		}
		if takers[key] == nil {
			faults = append(faults, fmt.Errorf("%s: %w", key, last))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return common(tables, takers)
}

func checkArg(table *sglargs.Table, name string, value any) error {
	a, err := table.Find(name)
	if err != nil {
		return err
	}
	v, err := table.Normal(a, value)
	if err != nil {
		return err
	}
	_, err = table.Render(a, v)
	return err
}

// common returns the last table that takes all arguments. Where each is taken by some, but all together by none, the
// error says which wants which.
func common(tables []*sglargs.Table, takers map[string][]*sglargs.Table) (*sglargs.Table, error) {
	all := slices.Clone(tables)
	var picky []string
	for _, key := range slices.Sorted(maps.Keys(takers)) {
		if len(takers[key]) == len(tables) {
			continue
		}
		versions := make([]string, len(takers[key]))
		for i, t := range takers[key] {
			versions[i] = t.Version()
		}
		picky = append(picky, fmt.Sprintf("%s (%s)", key, strings.Join(versions, ", ")))
		all = slices.DeleteFunc(all, func(t *sglargs.Table) bool { return !slices.Contains(takers[key], t) })
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no known version of SGLang takes all of these: %s", strings.Join(picky, ", "))
	}
	return all[len(all)-1], nil
}

// ranges reports values out of range.
func (c Config) ranges() []error {
	var faults []error
	check := func(ok bool, key string, value any, want string) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s: %v; want %s", key, value, want))
		}
	}
	positive := func(key string, value int) { check(value >= 0, key, value, "≥ 1") }
	check(c.Port >= 0 && c.Port <= 65535, "port", c.Port, "1 to 65535, or 0 for a free one")
	positive("tp_size", c.TPSize)
	positive("dp_size", c.DPSize)
	positive("pp_size", c.PPSize)
	positive("max_running_requests", c.MaxRunningRequests)
	positive("max_total_tokens", c.MaxTotalTokens)
	positive("max_queued_requests", c.MaxQueuedRequests)
	positive("context_length", c.ContextLength)
	check(c.MemFractionStatic >= 0 && c.MemFractionStatic < 1, "mem_fraction_static", c.MemFractionStatic, "between 0 and 1")
	check(c.ChunkedPrefillSize >= -1, "chunked_prefill_size", c.ChunkedPrefillSize, "≥ 1, or -1 for no chunking")
	positive("max_prefill_tokens", c.MaxPrefillTokens)
	check(c.ScheduleConservativeness >= 0 && !math.IsInf(c.ScheduleConservativeness, 0), "schedule_conservativeness", c.ScheduleConservativeness, "> 0")
	if c.RandomSeed != nil {
		check(*c.RandomSeed >= 0 && *c.RandomSeed <= math.MaxUint32, "random_seed", *c.RandomSeed, "0 to 4294967295") // numpy's
	}
	positive("cuda_graph_max_bs_decode", c.CUDAGraphMaxBSDecode)
	for i, bs := range c.CUDAGraphBSDecode {
		check(bs >= 1, fmt.Sprintf("cuda_graph_bs_decode[%d]", i), bs, "≥ 1")
	}
	positive("stream_interval", c.StreamInterval)
	levels := []string{"critical", "error", "warning", "info", "debug"} // those that both Python's logging and uvicorn have
	check(c.LogLevel == "" || slices.Contains(levels, c.LogLevel), "log_level", c.LogLevel, "one of "+strings.Join(levels, ", "))
	for i, g := range c.GPUs {
		check(g >= 0, fmt.Sprintf("gpus[%d]", i), g, "≥ 0")
	}
	for _, f := range atLeast {
		if n, ok := c.Args.number(f.name); ok {
			check(n >= f.least, argsKey+"."+f.name, c.Args[f.name], fmt.Sprintf("≥ %v", f.least))
		}
	}
	return faults
}

// atLeast lists what SGLang's check_server_args demands of arguments without a field, in 0.5.15 to 0.5.23.
var atLeast = []struct {
	name  string
	least float64
}{
	{"base_gpu_id", 0}, {"gpu_id_step", 1}, {"attn_dp_size", 1}, {"pp_max_micro_batch_size", 1}, {"tokenizer_worker_num", 1}, {"detokenizer_worker_num", 1},
}

// number returns an argument that is a number.
func (a Args) number(name string) (float64, bool) {
	v := reflect.ValueOf(a[name])
	switch {
	case v.CanInt():
		return float64(v.Int()), true
	case v.CanFloat():
		return v.Float(), true
	}
	return 0, false
}

// contradictions reports settings that exclude each other in SGLang's check_server_args, in 0.5.15 to 0.5.23, or that
// its engine refuses.
func (c Config) contradictions() []error {
	var faults []error
	refuse := func(wrong bool, format string, args ...any) {
		if wrong {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	refuse(strings.Contains(c.ServedModelName, ":") && !strings.Contains(c.ServedModelName, "://"),
		"served_model_name: %q; want a name without ':', which separates a LoRA adapter's name", c.ServedModelName)
	refuse(c.SchedulePolicy == "priority",
		"schedule_policy: the engine refuses \"priority\"; want enable_priority_scheduling in args, with \"fcfs\" or \"lof\"")
	refuse(c.Args["enable_priority_scheduling"] == true && c.SchedulePolicy != "" && c.SchedulePolicy != "fcfs" && c.SchedulePolicy != "lof",
		"schedule_policy: %q excludes args.enable_priority_scheduling; want \"fcfs\" or \"lof\"", c.SchedulePolicy)
	refuse(c.EnableTorchCompile && c.Args["disable_cuda_graph_padding"] == true,
		"enable_torch_compile: excludes args.disable_cuda_graph_padding: every batch size would be compiled")
	workers, _ := c.Args.number("tokenizer_worker_num")
	refuse(workers > 1 && c.APIKey != "", "api_key: excludes args.tokenizer_worker_num above 1")
	if page, ok := c.Args.number("page_size"); ok && page > 0 && c.ChunkedPrefillSize > 0 && c.Args["disaggregation_mode"] != "decode" {
		refuse(math.Mod(float64(c.ChunkedPrefillSize), page) != 0, "chunked_prefill_size: %d; want a multiple of args.page_size, which is %v", c.ChunkedPrefillSize, page)
	}
	attention, _ := c.Args.number("attn_dp_size")
	refuse(attention > 1 && c.DPSize > 1, "dp_size: excludes args.attn_dp_size: set one of them")
	parts := max(attention, 1)
	if c.Args["enable_dp_attention"] == true {
		parts = float64(max(c.DPSize, 1))
	}
	refuse(math.Mod(float64(max(c.TPSize, 1)), parts) != 0, "tp_size: %d; want a multiple of the data-parallel size of attention, which is %v", max(c.TPSize, 1), parts)
	nodes, many := c.Args.number("nnodes")
	if many && nodes >= 1 {
		refuse(math.Mod(float64(max(c.TPSize, 1)*max(c.PPSize, 1)), nodes) != 0, "tp_size: %d with pp_size %d; want a product that is a multiple of args.nnodes, which is %v",
			max(c.TPSize, 1), max(c.PPSize, 1), nodes)
	}
	formula := "dp_size × tp_size × pp_size"
	if nodes > 1 {
		formula += " / args.nnodes"
	}
	refuse(len(c.GPUs) > 0 && len(c.GPUs) < c.gpuCount(), "gpus: %d given; want %d, which is %s", len(c.GPUs), c.gpuCount(), formula)
	twice := slices.Sorted(slices.Values(c.GPUs))
	refuse(len(slices.Compact(twice)) < len(c.GPUs), "gpus: %v; want each once", c.GPUs)
	return faults
}

// gpuCount returns the number of GPUs that the server uses on this host.
func (c Config) gpuCount() int {
	n := max(1, c.TPSize) * max(1, c.PPSize)
	if c.Args["enable_dp_attention"] != true { // else its ranks share those of TPSize
		n *= max(1, c.DPSize)
	}
	nodes, _ := c.Args.number("nnodes")
	return int(math.Ceil(float64(n) / max(1, nodes)))
}

// address returns the address to listen on.
func (c Config) address() string {
	host := c.Host
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(c.Port))
}
