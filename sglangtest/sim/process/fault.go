//go:build unix

package process

import (
	"embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A moment says when a fault strikes.
type moment int

const (
	resolving moment = iota + 1 // the main process reads arguments and model configuration: traceback, exit 1
	weights                     // a scheduler fails at this phase of the load: SIGQUIT, signal 9
	pool
	graphs
	dying   // the scheduler vanishes during the load: exit 1
	binding // the HTTP port: exit 3
	running // the server is up; it may be given with @, a time after readiness or a number of requests
	setting // changes how the process behaves from the start
)

// A fault is one way to fail. The texts are SGLang's.
type fault struct {
	name   string
	when   moment
	frames string // file in texts with the traceback, without its last line
	err    string // last line of the traceback, or the line that is logged
	exit   string // how the main process ends; empty: it goes on
	value  string // what its value means; empty: it has none
	doc    string
}

// oom is the message of torch.OutOfMemoryError, recorded on an H100.
const oom = "CUDA out of memory. Tried to allocate %s. GPU 0 has a total capacity of 79.18 GiB of which %s is free. " +
	"Including non-PyTorch memory, this process has %s memory in use. Of the allocated memory %s is allocated by PyTorch, " +
	"and 1.65 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True " +
	"to avoid fragmentation.  See documentation for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"

func oomText(want, free, used, allocated string) string {
	return fmt.Sprintf(oom, want, free, used, allocated)
}

// graphHelp is CUDA_GRAPH_CAPTURE_FAILED_MSG.
const graphHelp = `Possible solutions:
1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)
2. set --cuda-graph-max-bs-decode to a smaller value (e.g., 16)
3. disable decode CUDA graph by --cuda-graph-backend-decode=disabled. (Not recommended. Huge performance loss)
Open an issue on GitHub https://github.com/sgl-project/sglang/issues/new/choose ` + "\n"

// faults are all that can be asked for. In texts, {model}, {mem_fraction}, {free}, {site} and {lib} are filled in. The
// frames are those of recorded tracebacks (of 0.5.15.post1, and of 0.5.23 for a model that the hub does not have); where
// none was recorded, those of the same phase. The last lines are the same in all versions from 0.5.15.post1 to 0.5.23.
var faults = []fault{
	{"missing-model", resolving, "missing", "", "1", "",
		"the model's configuration is not found; also without this fault for a --model-path that is a path and does not exist"},
	{"gated-model", resolving, "missing", "OSError: You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/{model}.\n" +
		"401 Client Error. (Request ID: Root=1-simulated)\n\nCannot access gated repo for url https://huggingface.co/{model}/resolve/main/config.json.\n" +
		"Access to model {model} is restricted. You must have access to it and be authenticated to access it. Please log in.", "1", "",
		"the model or tokenizer needs a login"},
	{"missing-package", resolving, "frames-main", "Exception: sglang-kernel with minimum required version 0.4.4 is not installed. " +
		"Please reinstall the latest version with `pip install sglang-kernel --force-reinstall`", "1", "", "a package is missing"},
	{"unsupported-gpu", weights, "frames-load", "RuntimeError: SGLang only supports sm75 and above.", "signal 9", "", "the GPU is too old"},
	{"unbalanced-memory", weights, "frames-load", "RuntimeError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes. " +
		"pre_model_load_memory=10.36, local_gpu_memory=78.5, local_gpu_memory * 0.9=70.65", "signal 9", "", "another process has memory of one of the GPUs"},
	{"oom-at-load", weights, "frames-load", "torch.OutOfMemoryError: " + oomText("112.00 MiB", "85.00 MiB", "10.94 GiB", "10.28 GiB"), "signal 9", "",
		"CUDA out of memory while the weights are loaded"},
	{"no-kv-weights", pool, "frames-memory", "  File \"{site}/sglang/srt/model_executor/model_runner_kv_cache_mixin.py\", line 129, in _profile_available_bytes\n    raise ValueError(\n" +
		"ValueError: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static={mem_fraction}. " +
		"Raise --mem-fraction-static above 0.383 (minimum viable = 1 - available/pre = 0.3820). If using speculative decoding, draft weights are now counted.",
		"signal 9", "", "the weights take all memory of the static fraction"},
	{"no-kv-memory", pool, "frames-memory", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static={mem_fraction}",
		"signal 9", "", "no memory is left for the KV pool"},
	{"kv-pool-small", pool, "frames-memory", "AssertionError: Memory pool size is too small", "signal 9", "", "the KV pool holds no request"},
	{"oom-at-graphs", graphs, "frames-memory", "Exception: Capture cuda graph failed: " + oomText("256.00 MiB", "131.00 MiB", "79.04 GiB", "77.85 GiB") + "\n" + graphHelp,
		"signal 9", "", "CUDA out of memory while CUDA graphs are captured; needs them enabled"},
	{"killed-at-load", dying, "frames-main", "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). " +
		"If exit code is -9 (SIGKILL), a common cause is the OS OOM killer. Run `dmesg -T | grep -i oom` to check.", "1", "", "the operating system kills the scheduler while it loads"},
	{"port-in-use", binding, "", "", "3", "", "another server has the port: found only after the load, with the readiness line printed all the same"},

	{"crash", running, "frames-loop", "RuntimeError: CUDA error: an illegal memory access was encountered", "signal 9", "", "the scheduler raises an exception"},
	{"oom-prefill", running, "frames-loop", "RuntimeError: Prefill out of memory. Try to lower your batch size.\nTry to allocate 8192 tokens.\n{free}", "signal 9", "",
		"the next prefill finds no room in the KV pool"},
	{"oom-decode", running, "frames-loop", "RuntimeError: Decode out of memory. Try to lower your batch size.\nTry to allocate 1 tokens.\n{free}", "signal 9", "",
		"the next decode finds no room in the KV pool"},
	{"oom-running", running, "frames-loop", "torch.OutOfMemoryError: " + oomText("1.96 GiB", "1.21 GiB", "77.95 GiB", "76.60 GiB"), "signal 9", "",
		"CUDA out of memory in the next step"},
	{"no-request-slot", running, "frames-loop", "RuntimeError: alloc_req_slots runs out of memory. Please set a smaller number for `--max-running-requests`. " +
		"req_to_token_pool.available_size()=0, num_reqs=1, ", "signal 9", "", "the next prefill finds no request slot"},
	{"watchdog", running, "", "", "signal 9", "", "a step exceeds --watchdog-timeout (at once here)"},
	{"scheduler-killed", running, "", "", "signal 9", "", "the scheduler process gets SIGKILL, as from the OS OOM killer"},
	{"detokenizer-killed", running, "", "", "signal 9", "", "the detokenizer process gets SIGKILL"},
	{"killed", running, "", "", "signal 9", "", "the main process gets SIGKILL"},
	{"hang", running, "", "", "", "", "the scheduler takes no further step; HTTP still answers; --watchdog-timeout applies"},
	{"slow-step", running, "", "", "", "factor such as 2, or duration such as 5ms", "every step takes so many times as long, or so much longer"},
	{"error-rate", running, "", "", "", "fraction and status such as 0.1/503", "so many of the generations are answered with that status"},
	{"broken-stream", running, "", "", "", "number of events", "the connection of each stream breaks after so many events"},
	{"refuse", running, "", "", "", "duration; none: for good", "the listener is closed: new connections are refused"},
	{"orphan-detokenizer", setting, "", "", "", "", "the detokenizer outlives the main process, as was seen after SIGTERM while loading"},
}

//go:embed texts/*.txt
var texts embed.FS

// A planned fault is one that was asked for: NAME[:VALUE][@AFTER], where AFTER is a duration from readiness or a number of
// generation requests.
type planned struct {
	*fault
	Value    string
	After    time.Duration
	Requests int64         // 0: AFTER is a duration
	sprung   bool          // the step that it waited for has come
	done     chan struct{} // closed when it has struck; nil: nobody waits
}

// String is how it was asked for, without AFTER.
func (p planned) String() string {
	if p.Value == "" {
		return p.name
	}
	return p.name + ":" + p.Value
}

func parseFault(spec string) (planned, error) {
	name, after, timed := strings.Cut(spec, "@")
	name, value, valued := strings.Cut(name, ":")
	i := slices.IndexFunc(faults, func(f fault) bool { return f.name == name })
	if i < 0 {
		return planned{}, fmt.Errorf("sglang-sim: no fault is called %q: see --help", name)
	}
	p := planned{fault: &faults[i], Value: value}
	wrong := func(what, want string) (planned, error) {
		return planned{}, fmt.Errorf("sglang-sim: fault %q: %s: want %s", spec, what, want)
	}
	if timed {
		if p.when != running {
			return wrong("it strikes during the start", "no @")
		}
		d, err := time.ParseDuration(after)
		n, errN := strconv.ParseInt(after, 10, 64)
		switch {
		case err == nil && d >= 0:
			p.After = d
		case errN == nil && n > 0:
			p.Requests = n
		default:
			return wrong("@"+after, "a duration such as 30s, or a number of requests ≥ 1")
		}
	}
	if valued && p.value == "" {
		return wrong(":"+value, "no value")
	}
	if p.value != "" && (valued || p.name != "refuse") {
		if err := p.check(); err != nil {
			return wrong(fmt.Sprintf("value %q", value), p.value)
		}
	}
	return p, nil
}

var errValue = errors.New("bad value")

// check reports whether the value can be used.
func (p planned) check() (err error) {
	switch p.name {
	case "slow-step":
		_, _, err = p.slow()
	case "error-rate":
		_, _, err = p.rate()
	case "broken-stream":
		if n, e := strconv.Atoi(p.Value); e != nil || n < 1 {
			err = errValue
		}
	case "refuse":
		_, err = time.ParseDuration(p.Value)
	}
	return err
}

func (p planned) slow() (factor float64, more time.Duration, err error) {
	if d, err := time.ParseDuration(p.Value); err == nil && d >= 0 {
		return 1, d, nil
	}
	f, err := strconv.ParseFloat(p.Value, 64)
	if err != nil || !(f > 0 && f < 1e6) {
		return 0, 0, errValue
	}
	return f, 0, nil
}

func (p planned) rate() (fraction float64, status int, err error) {
	a, b, ok := strings.Cut(p.Value, "/")
	fraction, errA := strconv.ParseFloat(a, 64)
	status, errB := strconv.Atoi(b)
	if !ok || errA != nil || errB != nil || !(fraction >= 0 && fraction <= 1) || status < 400 || status > 599 {
		return 0, 0, errValue
	}
	return fraction, status, nil
}

// text is the traceback of a fault.
func (f *fault) text(file string, fill *strings.Replacer) string {
	b, err := texts.ReadFile("texts/" + file + ".txt")
	if err != nil {
		panic(err) // embedded
	}
	return fill.Replace(string(b) + f.err)
}
