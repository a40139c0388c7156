//go:build unix

package process

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/sim"
)

// sitePackages is where tracebacks say that SGLang is installed: its place in the official image.
const sitePackages = "/usr/local/lib/python3.12/dist-packages"

// A phase is a part of the start. The share is its part of the start of SGLang 0.5.15.post1 with warm caches on one
// H100 (the warm-up is that of the start with cold caches).
type phase struct {
	name  string
	share float64
}

var (
	resolve    = phase{"resolve", 3.6}
	spawn      = phase{"spawn", 30.5}
	loading    = phase{"load", 3.3}
	allocate   = phase{"allocate", 7.0}
	prefills   = phase{"prefill graphs", 9.6}
	decodes    = phase{"decode graphs", 3.8}
	warmUp     = phase{"warm-up", 9.3}
	phaseTotal = 67.1
)

func (c *command) took(p phase) time.Duration {
	return time.Duration(float64(c.startup) * p.share / phaseTotal)
}

// Sizes of memory in the log are those of the recorded start on an H100 with 8 billion parameters in 16 bits, whatever the
// profile; the log says so.
const (
	availBefore, weightGB = 78.50, 15.02
	bytesPerToken         = 131072
)

// graphSizes are the batch sizes of decode graphs and the token numbers of prefill graphs, as recorded on the H100.
func graphSizes(decode bool) []int {
	var out []int
	add := func(from, to, step int) {
		for n := from; n <= to; n += step {
			out = append(out, n)
		}
	}
	if decode {
		out = []int{1, 2, 4}
		add(8, 8, 1)
		add(12, 12, 1)
		add(16, 256, 8)
		return out
	}
	add(4, 32, 4)
	add(48, 256, 16)
	add(288, 512, 32)
	add(576, 1024, 64)
	add(1280, 4096, 256)
	add(4608, 8192, 512)
	return out
}

// bar is one state of a tqdm progress bar of ten characters, or in SGLang's own form (utils/common.py, BAR_FORMAT).
func bar(label string, n, total int, elapsed time.Duration, own bool) string {
	const parts = "▏▎▍▌▋▊▉█"
	eighths := 80 * n / total
	blocks := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		blocks += string([]rune(parts)[rest-1])
	}
	blocks += strings.Repeat(" ", (80-eighths)/8)
	clock := func(d time.Duration) string { return fmt.Sprintf("%02d:%02d", int(d.Minutes()), int(d.Seconds())%60) }
	left, speed := "?", "?it/s"
	if n > 0 && elapsed > 0 {
		left, speed = clock(elapsed*time.Duration(total-n)/time.Duration(n)), fmt.Sprintf("%.2fit/s", float64(n)/elapsed.Seconds())
	}
	middle := "|" + blocks + "|"
	if own {
		middle = " Completed |"
	}
	if label != "" {
		label += ": "
	}
	return fmt.Sprintf("\r%s%3.0f%%%s %d/%d [%s<%s, %s]", label, 100*float64(n)/float64(total), middle, n, total, clock(elapsed), left, speed)
}

// onGPU is what a server with a GPU makes of arguments that were not given, as recorded on the H100 and as /server_info has it.
var onGPU = map[string]any{"mem_fraction_static": 0.83, "attention_backend": "fa3", "sampling_backend": "pytorch"}

// resolved is the value of an argument as given, or else as SGLang resolves it, or else the default.
func (c *command) resolved(field string) any {
	if v := c.args.Value(field); v != nil || c.device() != "cuda" {
		return v
	}
	return onGPU[field]
}

// serverArgs is the line "server_args=": all fields with their values, as the version writes it.
func (c *command) serverArgs(ec sim.EngineConfig) string {
	resolved := map[string]any{"tokenizer_path": c.config.TokenizerPath, "served_model_name": c.config.ServedModelName,
		"chunked_prefill_size": ec.ChunkedPrefillSize, "device": c.device()}
	seen := map[string]bool{"help": true, "config": true}
	var parts []string
	for _, a := range c.table.Args() {
		if seen[a.Field] || a.Field == "" {
			continue
		}
		seen[a.Field] = true
		v := c.resolved(a.Field)
		if r, ok := resolved[a.Field]; ok {
			v = r
		}
		if c.release < v21 {
			parts = append(parts, a.Field+"="+repr(v))
		} else {
			parts = append(parts, repr(a.Field)+": "+repr(v))
		}
	}
	if text := strings.Join(parts, ", "); c.release < v21 {
		return "server_args=ServerArgs(" + text + ")"
	} else {
		return "server_args={" + text + "}"
	}
}

func (c *command) device() string {
	if d := c.str("device"); d != "" {
		return d
	}
	return "cuda"
}

// graphsOf reports whether graphs are captured for "decode" or "prefill".
func (c *command) graphsOf(kind string) bool {
	return c.device() == "cuda" && !c.set("disable_cuda_graph") && c.str("cuda_graph_backend_"+kind) != "disabled"
}

// repr is Python's repr of a value of the command line.
func repr(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(v) + "'"
	case float64:
		s := strconv.FormatFloat(v, 'g', -1, 64)
		if !strings.ContainsAny(s, ".en") {
			s += ".0"
		}
		return s
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = repr(x)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case []string:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = repr(x)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		parts := make([]string, 0, len(v))
		for k, x := range v {
			parts = append(parts, repr(k)+": "+repr(x))
		}
		sort.Strings(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return fmt.Sprint(v)
}

// load is what the schedulers do before they are ready. Progress bars are shown once for all of them.
func (p *mainProc) load() error {
	ec := p.sim.EngineConfig()
	kv := float64(ec.MaxTotalTokens) * bytesPerToken / 2 / (1 << 30)
	after := availBefore - weightGB
	rest := after - 2*kv - 0.15
	if p.dp() > 1 && !p.set("enable_dp_attention") {
		for d := range p.dp() {
			p.log.logf(info, "Launch DP%d starting at GPU #%d.", d, d*p.tp())
		}
	}
	if p.release < v21 {
		p.say("Init torch distributed begin.")
		p.say("Init torch distributed ends. elapsed=0.19 s, mem usage=0.09 GB")
	} else {
		p.say("Init parallel begin.")
		p.say("Init parallel ends. elapsed=0.19 s")
		p.say("Memory baseline taken. mem usage=0.09 GB")
	}
	if f := p.asks(dying); f != nil {
		p.kids.signal("scheduler_0", syscall.SIGKILL)
		return p.wait(time.Hour) // its death ends this
	}
	p.say("Load weight begin. avail mem=%.2f GB", availBefore)
	if err := p.fail(weights); err != nil {
		return err
	}
	if p.str("load_format") != "dummy" {
		if err := p.progress(p.took(loading), 4, true, func(int) string { return "Loading safetensors checkpoint shards" }); err != nil {
			return err
		}
	} else if err := p.wait(p.took(loading)); err != nil {
		return err
	}
	p.say("Load weight end. elapsed=%.2f s, type=LlamaForCausalLM, avail mem=%.2f GB, mem usage=%.2f GB.", p.took(loading).Seconds(), after, weightGB)
	if err := errors.Join(p.fail(pool), p.wait(p.took(allocate))); err != nil {
		return err
	}
	dtype := p.str("dtype")
	if dtype == "auto" {
		dtype = "bfloat16"
	}
	if asked := p.command.config.MaxRunningRequests; asked > ec.MaxRunningRequests { // model_runner_kv_cache_mixin.py, pool_configurator.py
		why := "(per attention-DP worker) due to the available KV cache or auxiliary-state capacity."
		if p.release < v18 {
			why = "(per dp worker) due to the available KV cache capacity."
		}
		p.log.logf(warning, "max_running_requests was reduced from the requested %d to %d %s", asked, ec.MaxRunningRequests, why)
	}
	p.say("KV Cache is allocated. dtype: torch.%s, #tokens: %d, K size: %.2f GB, V size: %.2f GB", dtype, ec.MaxTotalTokens, kv, kv)
	p.say("Memory pool end. avail mem=%.2f GB", rest)
	for _, kind := range []string{"prefill", "decode"} {
		if err := p.capture(kind, &rest); err != nil {
			return err
		}
	}
	unit := "gpu"
	if p.device() != "cuda" {
		unit = p.device()
	}
	p.say("max_total_num_tokens=%d, chunked_prefill_size=%d, max_prefill_tokens=%d, max_running_requests=%d, context_len=%d, available_%s_mem=%.2f GB",
		ec.MaxTotalTokens, ec.ChunkedPrefillSize, ec.MaxPrefillTokens, ec.MaxRunningRequests, ec.ContextLength, unit, rest)
	chunks := ec.DisableRadixCache && ec.ChunkedPrefillSize > 0 // mem_cache/registry.py, default_radix_cache_factory
	if p.release >= v21 && !chunks {
		p.say("Init Unified Radix Cache. Components: (<ComponentType.FULL: 0>,). Tree Core: RustUnifiedTreeCore")
	}
	cache := [...]string{"RadixCache", "RadixCache", "UnifiedRadixCache", "UnifiedRadixCache"}[p.release]
	if chunks {
		cache = "ChunkCache"
	}
	p.say("Tree cache initialized: source=default impl=%s hybrid_swa=False hybrid_ssm=False %s", cache, [...]string{
		"hierarchical=False streaming_wrapped=False", "hicache_attached=False streaming_wrapped=False",
		"hicache_attached=False streaming_wrapped=False", "hicache_attached=False"}[p.release])
	if p.command.files {
		if err := p.files.loadSnapshot(p.dp()); err != nil {
			return err
		}
	}
	if p.release >= v18 {
		p.log.logf(info, "Engine startup timings (s): load_weight=%.2f, kv_cache_allocation=%.2f, scheduler_e2e=%.2f, cuda_graph={prefill=%.2f, decode=%.2f, "+
			"target_verify=0.00, draft_prefill=0.00, draft_decode=0.00, draft_extend=0.00}, tokenizer_e2e=%.2f", p.took(loading).Seconds(), p.took(allocate).Seconds(),
			(p.took(loading) + p.took(allocate) + p.took(prefills) + p.took(decodes)).Seconds(), p.took(prefills).Seconds(), p.took(decodes).Seconds(), p.startup.Seconds())
	}
	p.web.uvicorn(info, "Started server process [%d]", os.Getpid())
	p.web.uvicorn(info, "Waiting for application startup.")
	p.web.uvicorn(info, "Application startup complete.")
	return nil
}

// capture captures the CUDA graphs of one kind.
func (p *mainProc) capture(kind string, rest *float64) error {
	if !p.graphsOf(kind) {
		if kind == "prefill" {
			p.say("Disable prefill CUDA graph because cuda_graph_config resolved prefill.backend='disabled' (e.g. via --cuda-graph-backend-prefill=disabled or auto-disable rules).")
		}
		return nil
	}
	sizes, used, head, label, took := graphSizes(false), 1.59, "backend=breakable, num_tokens=", "Capturing num tokens (num_tokens=%d avail_mem=%.2f GB)", p.took(prefills)
	if kind == "decode" {
		sizes, used, head, label, took = graphSizes(true), 0.41, "backend=full, num_tokens_per_bs=1, bs=", "Capturing batches (bs=%d avail_mem=%.2f GB)", p.took(decodes)
	}
	list := make([]any, len(sizes))
	for i, n := range sizes {
		list[i] = n
	}
	p.say("Capture target %s CUDA graph begin. %s%s, avail mem=%.2f GB", kind, head, repr(list), *rest)
	if kind == "decode" {
		if err := p.fail(graphs); err != nil {
			return err
		}
	}
	free := *rest
	if err := p.progress(took, len(sizes), false, func(n int) string {
		return fmt.Sprintf(label, sizes[len(sizes)-1-n], free-used*float64(n)/float64(len(sizes)))
	}); err != nil {
		return err
	}
	*rest -= used
	p.say("Capture target %s CUDA graph end. elapsed=%.2f s, mem usage=%.2f GB, avail mem=%.2f GB.", kind, took.Seconds(), used, *rest)
	return nil
}

// progress shows a bar of total steps that takes the given time. The bars of graphs show each label before and after its
// step.
func (p *mainProc) progress(took time.Duration, total int, own bool, label func(n int) string) error {
	begin := time.Now()
	if own {
		p.log.raw(bar(label(0), 0, total, 0, own))
	} else {
		p.log.raw(bar("", 0, total, 0, own))
	}
	for n := range total {
		if !own {
			p.log.raw(bar(label(n), n, total, time.Since(begin), own))
		}
		if err := p.wait(took / time.Duration(total)); err != nil {
			return err
		}
		p.log.raw(bar(label(n), n+1, total, time.Since(begin), own))
	}
	p.log.raw("\n")
	return nil
}
