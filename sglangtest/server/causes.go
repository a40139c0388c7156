package server

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The causes. Each stands in docs/troubleshooting.md.
const (
	CauseOOMLoad       Cause = "CUDA out of memory while loading"
	CauseOOMGraphs     Cause = "CUDA out of memory while capturing graphs"
	CauseOOMRun        Cause = "CUDA out of memory while serving"
	CauseNoKV          Cause = "no room for the KV cache"
	CauseUnbalanced    Cause = "GPU in use by another process"
	CauseKVRun         Cause = "KV cache or request slots ran out while serving"
	CauseSharedMemory  Cause = "shared memory full"
	CauseNCCL          Cause = "NCCL failed"
	CauseGraphs        Cause = "graph capture failed"
	CauseInternalPort  Cause = "internal port in use"
	CausePortInUse     Cause = "port in use"
	CauseModel         Cause = "model not found"
	CauseGated         Cause = "access to the model refused"
	CauseTokenizer     Cause = "tokenizer not found"
	CauseArgument      Cause = "unknown argument"
	CauseValue         Cause = "bad argument value"
	CauseGPU           Cause = "GPU or driver not supported"
	CausePackage       Cause = "package missing"
	CauseVersion       Cause = "versions do not fit together"
	CauseWatchdog      Cause = "watchdog time-out"
	CauseKilled        Cause = "killed from outside"
	CauseSignal        Cause = "ended below Python"
	CauseSchedulerDied Cause = "scheduler died"
	CauseUnknown       Cause = "unknown cause"
)

// A causeRule recognises a cause by texts in the log; the texts are those of SGLang 0.5.15 to 0.5.23 and of the
// libraries that it uses.
type causeRule struct {
	Cause   Cause
	texts   []string
	also    func(evidence) bool               // what must hold as well; nil: nothing
	instead func(evidence) ([]string, bool)   // what shows it without any of the texts, and the lines; nil: nothing does
	advice  func(evidence, []string) []string // given the lines that were found
}

func (k causeRule) recognise(e evidence) ([]string, bool) {
	if k.also != nil && !k.also(e) {
		return nil, false
	}
	lines := e.find(k.texts...)
	if k.Cause == CauseSchedulerDied && len(lines) > 0 && strings.Contains(lines[0], exception) {
		lines = append(lines[:1], append(e.diedOf(), lines[1:]...)...) // what it died of, before what followed
		lines = lines[:min(len(lines), shownLines)]
	}
	if len(lines) == 0 && k.instead != nil {
		return k.instead(e)
	}
	return lines, len(lines) > 0
}

// diedOf is the exception that the first traceback in the log ends with; nil if there is none.
func (e evidence) diedOf() []string {
	i := slices.IndexFunc(e.log, func(line string) bool { return strings.Contains(line, exception) })
	for _, line := range e.log[i+1:] {
		if lastOfTraceback.MatchString(line) {
			return []string{shorten(line)}
		}
	}
	return nil
}

// lastOfTraceback is the line of a Python traceback that names the exception.
var lastOfTraceback = regexp.MustCompile(`^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b`)

// say gives advice that does not depend on values.
func say(advice ...string) func(evidence, []string) []string {
	return func(evidence, []string) []string { return advice }
}

var oom = []string{"torch.OutOfMemoryError", "CUDA out of memory", "CUDA error: out of memory", "cudaErrorMemoryAllocation"}

var (
	otherProcess = regexp.MustCompile(`Process (\d+) has ([0-9.]+ .iB) memory in use`)
	viable       = regexp.MustCompile(`Raise --mem-fraction-static above ([0-9.]+)`)
)

// others says which other process holds memory of the GPU, if one of the lines does.
func others(lines []string) []string {
	for _, line := range lines {
		if m := otherProcess.FindStringSubmatch(line); m != nil {
			return []string{fmt.Sprintf("use another GPU or end process %s, which holds %s of this one", m[1], m[2])}
		}
	}
	return nil
}

// causes is the one table of causes: the first one that is recognised is the diagnosis, so what causes comes before
// what follows from it.
var causes = []causeRule{
	{CauseInternalPort, internalPortTexts, func(e evidence) bool { return e.unbound() && e.internalPort() }, nil, internalPortAdvice},
	{CausePortInUse, []string{"error while attempting to bind on address", "address already in use", "Address already in use"}, evidence.unbound, nil,
		say("choose another port, or 0 for a free one; the one that answers on this port is another server")},
	{CauseArgument, []string{"error: unrecognized arguments", "error: ambiguous option", "error: the following arguments are required"}, evidence.loading, nil,
		say("correct the name: this version of SGLang does not know it, or requires one that is not set")},
	{CauseValue, []string{"error: argument ", "Unknown schedule_policy"}, evidence.loading, nil,
		say("correct the value: the line says what this version of SGLang takes")},
	{CauseGated, []string{"GatedRepoError", "gated repo", "401 Client Error", "403 Client Error"}, evidence.loading, nil,
		say("accept the model's terms on its page and set HF_TOKEN in the server's environment", "use a local folder as model_path")},
	{CauseTokenizer, []string{"Can't load tokenizer for", "Couldn't instantiate the backend tokenizer", "Unable to load vocabulary from file"}, evidence.loading, nil,
		say("set tokenizer_path to a folder or model that has the tokenizer's files")},
	{CauseModel, []string{"is not a local folder and is not a valid model identifier", "Repository Not Found", "RepositoryNotFoundError", "Repo id must be in the form",
		"does not appear to have a file named config.json", "We couldn't connect to 'https://huggingface.co'", "LocalEntryNotFoundError",
		"Cannot find any model weights", "Cannot find the requested files in the disk cache"}, evidence.loading, nil,
		say("correct model_path: neither a folder of this host nor a model that it can download", "if the host has no access to the hub, download the model before and give its folder")},
	{CauseOOMGraphs, oom, func(e evidence) bool {
		return e.startup.capturing || len(e.find("Capture cuda graph failed", "CUDA graph failed")) > 0
	}, nil,
		func(e evidence, lines []string) []string {
			return append(append(others(lines), e.memory()...), "capture fewer graphs: cuda-graph-max-bs-decode")
		}},
	{CauseSharedMemory, []string{"unable to open shared memory object", "unable to mmap", "insufficient shared memory", "Error while creating shared memory segment",
		"unable to write to file </torch_"}, nil, evidence.sharedMemory,
		say("give /dev/shm more room or empty it (df -h /dev/shm); in a container: docker --shm-size 32g, or --ipc=host")},
	{CauseNCCL, ncclTexts, evidence.nccl, nil, ncclAdvice},
	{CauseGraphs, []string{"Capture cuda graph failed", "CUDA graph failed"}, nil, nil,
		func(e evidence, _ []string) []string {
			return append([]string{"see the exception above these lines; if it is about memory: " + e.memory()[1]},
				"capture fewer graphs: cuda-graph-max-bs-decode", "do without (slow): cuda-graph-backend-decode=disabled")
		}},
	{CauseNoKV, []string{"Not enough memory. Please try to increase --mem-fraction-static", "leave no GPU memory for the KV cache", "Memory pool size is too small"}, nil, nil,
		func(e evidence, lines []string) []string {
			advice := "raise mem_fraction_static"
			for _, line := range lines {
				if m := viable.FindStringSubmatch(line); m != nil {
					least, _ := strconv.ParseFloat(m[1], 64) // the pattern takes only numbers; an odd one reads as 0
					advice = fmt.Sprintf("raise mem_fraction_static from %.3g to more than %s, better %.2f: at the least value the cache has no room", e.settings.fraction, m[1], min(least+0.1, 0.9))
				}
			}
			return []string{advice, "use a smaller or quantized model, or more GPUs (tp_size)", "end what else uses the GPU"}
		}},
	{CauseUnbalanced, []string{"The memory capacity is unbalanced"}, evidence.raised, nil, // else it is only a warning
		say("end the other process, or use other GPUs: one of these has less free memory than the rest")},
	{CauseKVRun, []string{"Prefill out of memory. Try to lower your batch size", "Decode out of memory. Try to lower your batch size", "Out of memory. Try to lower your batch size", "alloc_req_slots runs out of memory"}, nil, nil,
		func(e evidence, _ []string) []string {
			return append(e.memory()[:1], "raise schedule_conservativeness, so that fewer requests are admitted", "raise mem_fraction_static: the cache is too small for the load")
		}},
	{CauseOOMRun, oom, func(e evidence) bool { return !e.loading() && e.raised() }, nil,
		func(e evidence, lines []string) []string { return append(others(lines), e.memory()...) }},
	{CauseOOMLoad, oom, evidence.loading, nil,
		func(e evidence, lines []string) []string {
			return append(append(others(lines), e.memory()...), "if the weights alone do not fit: a quantized model, or more GPUs (tp_size)")
		}},
	{CauseWatchdog, []string{"watchdog timeout ("}, nil, nil,
		say("find what made a step so long (its stack is in the log)", "raise watchdog-timeout if such steps are meant")},
	{CauseVersion, []string{"less than the minimum required version", "undefined symbol", "ImportError: cannot import name"},
		evidence.early, nil,
		say("install the versions that this SGLang asks for (pip install --upgrade \"sglang[all]\" in an environment of its own)")},
	{CauseGPU, []string{"SGLang only supports sm75 and above", "no kernel image is available for execution on the device", "driver on your system is too old",
		"No CUDA GPUs are available", "CUDA driver version is insufficient", "Found no NVIDIA driver", "No accelerator (CUDA", "nvidia-smi not found", "invalid device ordinal", "Torch not compiled with CUDA enabled"},
		evidence.early, nil,
		say("check that the server sees its GPUs (gpus, CUDA_VISIBLE_DEVICES, nvidia-smi) and that driver and SGLang support them")},
	{CausePackage, []string{"ModuleNotFoundError: No module named", "with minimum required version", "No module named sglang"}, evidence.early, nil,
		say("install the package into the server's Python environment", "give the right interpreter with WithCommand")},
	{CauseSignal, nil, nil, evidence.bySignal, signalAdvice},
	{CauseKilled, []string{"died during initialization (exit code: -9)", "crashed with exit code -9"}, nil, evidence.killed,
		say("look whether the kernel ran out of memory (dmesg -T | grep -i oom), and leave more memory to the host", "look who else sent SIGKILL: a job limit, or somebody")},
	{CauseSchedulerDied, []string{"hit an exception: ", "died during initialization", "crashed with exit code", "Initialization failed"}, nil, nil,
		func(e evidence, _ []string) []string {
			if e.raised() || len(e.find("Traceback (most recent call last)")) > 0 {
				return []string{"read the traceback of that exception in the log"}
			}
			return []string{"the log has no traceback of it: read the lines before its end, and look at the kernel's log (dmesg -T)"}
		}},
}
