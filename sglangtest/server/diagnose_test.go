package server

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

// recordedFailures are the failures of real servers: the trimmed log, the whole one, and how the process ended.
var recordedFailures = []struct {
	name, whole string
	exit        int
	cause       Cause
	line        string // in the lines that show it
	advice      []string
}{
	{"h100-bad-value", "sglang-h100/failed_starts/bad_value/stderr.log", 2, CauseValue, "invalid int value: 'abc'", nil},
	{"h100-invalid-choice", "sglang-h100/failed_starts/invalid_choice/stderr.log", 2, CauseValue, "invalid choice: 'nonsense'", nil},
	{"cpu-bad-choice", "sglang-cpu/logs/0.5.23-bad-choice.stderr.txt", 2, CauseValue, "invalid choice: 'nope'", nil},
	{"h100-invalid-flag", "sglang-h100/failed_starts/invalid_flag/stderr.log", 2, CauseArgument, "unrecognized arguments: --no-such-flag 3", nil},
	{"cpu-unknown-flag", "sglang-cpu/logs/0.5.23-unknown-flag.stderr.txt", 2, CauseArgument, "unrecognized arguments: --nope-flag=1", nil},
	{"h100-no-model-flag", "sglang-h100/failed_starts/no_model_flag/stderr.log", 2, CauseArgument, "--model-path/--model", nil},
	{"h100-missing-model", "sglang-h100/failed_starts/missing_model/stderr.log", 1, CauseModel, "'/models/does-not-exist'", nil},
	{"h100-missing-hub-model", "sglang-h100/failed_starts/missing_hub_model/stderr.log", 1, CauseModel, "couldn't find them in the cached files", nil},
	{"cpu-missing-model", "sglang-cpu/logs/0.5.23-missing-model.stderr.txt", 1, CauseModel, "couldn't find them in the cached files", nil},
	{"h100-port-in-use", "sglang-h100/failed_starts/port_in_use/stderr.log", 3, CausePortInUse, "('127.0.0.1', 31007): address already in use", nil},
	{"cpu-port-in-use", "sglang-cpu/logs/0.5.23-port-in-use.stderr.txt", 3, CausePortInUse, "('127.0.0.1', 38720): address already in use", nil},
	{"cpu-scheduler-killed", "sglang-cpu/logs/0.5.23-scheduler-killed.stderr.txt", 137, CauseKilled, "Subprocess scheduler_0 (pid=13253) crashed with exit code -9", nil},
	{"h100-cuda-oom-gpu-in-use", "sglang-h100/failed_starts/cuda_oom_gpu_in_use/stderr.log", 137, CauseOOMLoad, "Tried to allocate 112.00 MiB", []string{
		"use another GPU or end process 1707, which holds 68.14 GiB of this one", "lower max_running_requests: its default grows with the memory",
		"lower mem_fraction_static from 0.999 to 0.94", "lower chunked_prefill_size from 8192 to 4096",
		"if the weights alone do not fit: a quantized model, or more GPUs (tp_size)"}},
	{"h100-launched-cuda-oom", "", 137, CauseOOMLoad, "Process 1058 has 67.86 GiB memory in use", nil}, // launched by LocalProcess
	{"h100-launched-port-taken", "", 3, CausePortInUse, "('127.0.0.1', 31007): address already in use", nil},
	{"h100-too-little-memory", "sglang-h100/failed_starts/too_little_memory/stderr.log", 137, CauseNoKV, "Raise --mem-fraction-static above 0.383", []string{
		"raise mem_fraction_static from 0.1 to more than 0.383, better 0.48: at the least value the cache has no room",
		"use a smaller or quantized model, or more GPUs (tp_size)", "end what else uses the GPU"}},
	{"h100-too-little-memory-030", "sglang-h100/failed_starts/too_little_memory_030/stderr.log", 137, CauseNoKV, "Raise --mem-fraction-static above 0.594", []string{
		"raise mem_fraction_static from 0.3 to more than 0.594, better 0.69: at the least value the cache has no room",
		"use a smaller or quantized model, or more GPUs (tp_size)", "end what else uses the GPU"}},
}

func TestDiagnoseRecordedFailures(t *testing.T) {
	for _, c := range recordedFailures {
		check := func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			f := Diagnose(strings.Split(string(data), "\n"), Exit{Code: c.exit}, Config{})
			require.Equal(t, c.cause, f.Cause, f)
			require.Contains(t, strings.Join(f.Lines, "\n"), c.line)
			require.LessOrEqual(t, len(f.Lines), shownLines)
			require.NotEmpty(t, f.Advice)
			if c.advice != nil {
				require.Equal(t, c.advice, f.Advice)
			}
		}
		t.Run(c.name, func(t *testing.T) { check(t, filepath.Join("testdata", "failures", c.name+".txt")) })
		if c.whole == "" {
			continue
		}
		t.Run(c.name+" whole", func(t *testing.T) { check(t, refdata.Path(t, c.whole)) })
	}
}

// A port clash is one error whenever it shows.
func TestDiagnosePortInUse(t *testing.T) {
	cfg := Config{Port: 31007}
	for line, want := range map[string]string{
		"ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 31007): address already in use": "127.0.0.1:31007",
		"OSError: [Errno 98] Address already in use":                                                                  "",
	} {
		failure := Diagnose([]string{line}, Exit{Code: 3}, cfg)
		require.Equal(t, CausePortInUse, failure.Cause)
		var in *PortInUseError
		require.ErrorAs(t, failure, &in)
		require.Equal(t, want, in.Address)
		require.ErrorContains(t, in.Err, line)
		require.Equal(t, 1, strings.Count(failure.Error(), line))
	}
	require.NotErrorAs(t, Diagnose([]string{"error: unrecognized arguments: --x"}, Exit{Code: 2}, cfg), new(*PortInUseError))
}

// Failures of the public reports: what is named, what is shown, what is advised, and what would mislead.
func TestDiagnoseReportedFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		exit   Exit
		cause  Cause
		line   string // shown
		advice string // in the first advice
		not    string // in no advice
	}{
		{"16-internal-port", Exit{Code: 137}, CauseInternalPort, "port: 18121", "port 18121 is the one on which the ranks meet", "choose another port, or 0"},
		{"17-nccl", Exit{Code: 137}, CauseNCCL, "NCCL error: unhandled system error", "NCCL_DEBUG=INFO", "traceback"},
		{"18-shm-sigbus", Exit{Code: 137}, CauseSignal, "Fatal Python error: Bus error", "/dev/shm", "traceback"},
		{"19-graph-peer-timeout", Exit{Code: 137}, CauseGraphs, "Timed out waiting 1800000ms", "see the exception above", ""},
		{"20-nccl-watchdog", Exit{Code: 137}, CauseNCCL, "Watchdog caught collective operation timeout", "find the rank that did not come", "traceback"},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, err := os.ReadFile(refdata.Path(t, "cases/"+c.name+"/log.txt"))
			require.NoError(t, err)
			f := Diagnose(strings.Split(string(data), "\n"), c.exit, Config{Port: 30000})
			require.Equal(t, c.cause, f.Cause, f)
			require.Contains(t, strings.Join(f.Lines, "\n"), c.line)
			require.Contains(t, f.Advice[0], c.advice)
			if c.not != "" {
				require.NotContains(t, strings.Join(f.Advice, "\n"), c.not)
			}
			require.NotErrorAs(t, f, new(*PortInUseError), "another HTTP port would not help")
		})
	}
}

// The port that was taken is named with what uses it and the argument that moves it.
func TestDiagnoseInternalPorts(t *testing.T) {
	args := func(more string) string {
		return "[2026-11-20 10:00:00] server_args=ServerArgs(model_path='m', port=30000, " + more + ")\n"
	}
	store := "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: %, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
	zmq := "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:%')"
	for _, c := range []struct{ args, line, port, want string }{
		{"nccl_port=28000", store, "28000", "port 28000 is nccl_port"},
		{"nccl_port=None", store, "18121", "port 18121 is the one on which the ranks meet"},
		{"dist_init_addr='10.0.0.1:5000', nccl_port=None", store, "5000", "belongs to dist_init_addr, which takes 5000"},
		{"dist_init_addr='10.0.0.1:5000', nccl_port=None", zmq, "5003", "belongs to dist_init_addr"},
		{"enable_dp_attention=True, dp_size=2", zmq, "30235", "derives from the HTTP port 30000, from 30233 on"},
		{"enable_dp_attention=True, dp_size=2", "ValueError: detokenizer_port at % is not available in 30 seconds. x", "30235", "derives from the HTTP port 30000"},
		{"disaggregation_bootstrap_port=8998", "OSError: [Errno 98] error while attempting to bind: ZMQError: Address already in use ('0.0.0.0', %)", "8998", "disaggregation_bootstrap_port"},
		{"dp_size=1", "zmq.error.ZMQError: Address already in use", "", "an internal port"},
	} {
		f := Diagnose(strings.Split(args(c.args)+strings.ReplaceAll(c.line, "%", c.port), "\n"), Exit{Code: 1}, Config{Port: 30000})
		require.Equal(t, CauseInternalPort, f.Cause, f)
		require.Contains(t, f.Advice[0], c.want)
	}
	// The HTTP server's own port, whoever finds it taken.
	f := Diagnose(strings.Split(args("dp_size=1")+strings.ReplaceAll(zmq, "%", "30000"), "\n"), Exit{Code: 1}, Config{Port: 30000})
	require.Equal(t, CausePortInUse, f.Cause)
}

// A process that ends below Python leaves no traceback: its signal is named, and the lines before its end are shown.
func TestDiagnoseSignals(t *testing.T) {
	start := "[2026-11-20 10:00:50] Load weight begin. avail mem=60 GB\n"
	for _, c := range []struct {
		log    string
		exit   Exit
		cause  Cause
		line   string
		advice string
	}{
		{start + "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n[2026-11-20 10:01:00] RuntimeError: Rank 0 scheduler died during initialization (exit code: -11). Please check", Exit{Code: 1}, CauseSignal, "Segmentation fault", "SIGSEGV"},
		{start + "python: alloc.cpp:11: void f(): Assertion `p' failed.\n[2026-11-20 10:01:00] Subprocess scheduler_0 (pid=2) crashed with exit code -6. Triggering", Exit{Code: 137}, CauseSignal, "Assertion `p' failed", "SIGABRT"},
		{start + "[2026-11-20 10:01:00] Subprocess scheduler_0 (pid=2) crashed with exit code 135. Triggering", Exit{Code: 137}, CauseSignal, "exit code 135", "/dev/shm"},
		{start + "[2026-11-20 10:01:00] Subprocess scheduler_0 (pid=2) crashed with exit code -4. Triggering", Exit{Code: 137}, CauseSignal, "exit code -4", "SIGILL"},
		{start, Exit{Code: -1, Signal: syscall.SIGBUS}, CauseSignal, "", "/dev/shm"},
		{start + "[2026-11-20 10:01:00] Subprocess scheduler_0 (pid=2) crashed with exit code 3. Triggering\nkill_process_tree called: parent_pid=1, include_parent=True, pid=1", Exit{Code: 137}, CauseSchedulerDied, "exit code 3", "no traceback"},
		{start + "OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'\n", Exit{Code: 1}, CauseSharedMemory, "No space left", "/dev/shm"},
		{start + "OSError: [Errno 28] No space left on device: '/home/u/.cache/x'\n", Exit{Code: 1}, CauseUnknown, "", ""},
		{start + "[2026-11-20 10:01:00 TP0] Scheduler hit an exception: Traceback (most recent call last):\ntorch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 217 'peer access is not supported between these two devices'", Exit{Code: 137}, CauseNCCL, "peer access", "NCCL_P2P_DISABLE=1"},
		{start + "[2026-11-20 10:01:00 TP0] Scheduler hit an exception: Traceback (most recent call last):\nRuntimeError: NCCL error: invalid usage (run with NCCL_DEBUG=WARN for details)", Exit{Code: 137}, CauseNCCL, "invalid usage", "a GPU of its own"},
		// A warning of hours ago is no cause.
		{start + "node:1:1 [0] NCCL WARN Call to ibv_reg_mr failed\n[2026-11-20 11:00:00 TP0] Scheduler hit an exception: Traceback (most recent call last):\nKeyError: 'x'", Exit{Code: 1}, CauseSchedulerDied, "KeyError: 'x'", "traceback"},
		{start + "node:1:1 [0] NCCL WARN Call to ibv_reg_mr failed\nFatal Python error: Segmentation fault\n[2026-11-20 11:00:00] Subprocess scheduler_0 (pid=12) crashed with exit code -11. Triggering SIGQUIT for cleanup...", Exit{Code: 1}, CauseSignal, "Segmentation fault", "SIGSEGV"},
		{start + "NCCL WARN Call to ibv_reg_mr failed\n[2026-11-20 10:00:51] The server is fired up and ready to roll!\n[2026-11-20 11:00:00 TP0] Scheduler hit an exception: Traceback (most recent call last):\nZeroDivisionError: x", Exit{Code: 1}, CauseSchedulerDied, "ZeroDivisionError", "traceback"},
	} {
		f := Diagnose(strings.Split(c.log, "\n"), c.exit, Config{})
		require.Equal(t, c.cause, f.Cause, f)
		require.Contains(t, strings.Join(f.Lines, "\n"), c.line)
		require.Contains(t, f.Advice[0], c.advice)
	}
}

// A log of a good run has no failure in it: what SGLang warns of is not taken for one.
func TestDiagnoseGoodRuns(t *testing.T) {
	for _, name := range []string{"0.5.15.post1-start-run-sigterm", "0.5.18-start-run-sigterm", "0.5.21-start-run-sigterm", "0.5.23-start-run-sigterm-drain", "0.5.23-sigint"} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(refdata.Path(t, "sglang-cpu/logs/"+name+".stderr.txt"))
			require.NoError(t, err)
			require.Equal(t, CauseUnknown, Diagnose(strings.Split(string(data), "\n"), Exit{}, Config{}).Cause)
		})
	}
}

// The texts of SGLang that are not in a recording, from its source (0.5.15.post1 to 0.5.23), and of its libraries.
func TestDiagnoseTexts(t *testing.T) {
	serving := "INFO:     Uvicorn running on http://127.0.0.1:30000 (Press CTRL+C to quit)\n"
	capture := "[2026-11-24 17:14:53] Capture target decode CUDA graph begin. backend=full, num_tokens_per_bs=1, bs=[1, 2]\n"
	exception := "[2026-11-24 17:14:53 TP0] Scheduler hit an exception: Traceback (most recent call last):\n"
	for text, want := range map[string]Cause{
		exception + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB":                               CauseOOMLoad,
		serving + exception + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB":                     CauseOOMRun,
		capture + exception + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB":                     CauseOOMGraphs,
		capture + exception + "Exception: Capture cuda graph failed: CUDA out of memory. Tried\nPossible solutions:":    CauseOOMGraphs,
		capture + exception + "Exception: Capture cuda graph failed: no such op\nPossible solutions:":                   CauseGraphs,
		exception + "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.":                    CauseNoKV,
		exception + "AssertionError: Memory pool size is too small":                                                     CauseNoKV,
		exception + "RuntimeError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes. ":   CauseUnbalanced,
		serving + exception + "RuntimeError: Prefill out of memory. Try to lower your batch size.":                      CauseKVRun,
		serving + exception + "RuntimeError: Decode out of memory. Try to lower your batch size.":                       CauseKVRun,
		serving + exception + "RuntimeError: Out of memory. Try to lower your batch size.\nTry to allocate 3 tokens.":   CauseKVRun, // pages of one token
		serving + exception + "RuntimeError: alloc_req_slots runs out of memory. Please set a smaller number for":       CauseKVRun,
		"OSError: m/m is not a local folder and is not a valid model identifier listed on 'https://huggingface.co'":     CauseModel,
		"huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found for url":                CauseModel,
		"OSError: You are trying to access a gated repo.\n401 Client Error.":                                            CauseGated,
		"OSError: Can't load tokenizer for 'm'. If you were trying to load it from":                                     CauseTokenizer,
		exception + "ValueError: Unknown schedule_policy: policy='x'":                                                   CauseValue,
		"sglang serve: error: ambiguous option: --cuda-graph-bs could match --cuda-graph-bs-decode":                     CauseArgument,
		"RuntimeError: SGLang only supports sm75 and above.":                                                            CauseGPU,
		exception + "RuntimeError: CUDA error: no kernel image is available for execution on the device":                CauseGPU,
		"ModuleNotFoundError: No module named 'sgl_kernel'":                                                             CausePackage,
		"/usr/bin/python3: No module named sglang.launch_server":                                                        CausePackage,
		"Exception: sglang-kernel is installed with version 0.3.1, which is less than the minimum required version 0.4": CauseVersion,
		"ImportError: /x/sgl_kernel/common_ops.abi3.so: undefined symbol: _ZN3c104cuda":                                 CauseVersion,
		serving + "[2026-11-24 17:14:53] Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)":       CauseWatchdog,
		"RuntimeError: Rank 0 scheduler died during initialization (exit code: -9). If exit code is -9 (SIGKILL)":       CauseKilled,
		"RuntimeError: Rank 0 scheduler died during initialization (exit code: 1).":                                     CauseSchedulerDied,
		serving + exception + "TypeError: '>=' not supported between instances of 'str' and 'int'":                      CauseSchedulerDied,
		serving + "[2026-11-24 17:14:53] Subprocess scheduler_0 (pid=7) crashed with exit code -11. Triggering SIGQUIT": CauseSignal,
		"Ignore import error when loading sglang.srt.models.x: ImportError: cannot import name 'y'\nsomething else":     CauseUnknown,
		// Texts in older lines show nothing.
		"[W socket.cpp:200] Address already in use\n" + exception + "torch.OutOfMemoryError: CUDA out of memory.":                      CauseOOMLoad,
		serving + "request 7: explain address already in use\n" + exception + "torch.OutOfMemoryError: CUDA out of memory.":            CauseOOMRun,
		"The memory capacity is unbalanced. Some GPUs may be occupied\n" + exception + "AssertionError: Memory pool size is too small": CauseNoKV,
		"The memory capacity is unbalanced. Some GPUs may be occupied\nbye":                                                            CauseUnknown,
		"401 Client Error: no generation_config.json\n" + exception + "torch.OutOfMemoryError: CUDA out of memory.":                    CauseOOMLoad,
		serving + "torch.OutOfMemoryError: CUDA out of memory; the preprocessing goes on on the CPU\nbye":                              CauseUnknown,
		serving + "Scheduler watchdog timeout (self.watchdog_timeout=10, self.soft=True)\nbye":                                         CauseUnknown,
		serving + "Scheduler watchdog timeout (self.watchdog_timeout=10, self.soft=True)\n" + exception + "ValueError: no":             CauseSchedulerDied,
		serving + "TokenizerManager hit an exception: Traceback (most recent call last):":                                              CauseSchedulerDied,
	} {
		require.Equal(t, want, Diagnose(strings.Split(text, "\n"), Exit{Code: 1}, Config{}).Cause, text)
	}
	require.Equal(t, CauseKilled, Diagnose([]string{"Load weight begin"}, Exit{Code: -1, Signal: syscall.SIGKILL}, Config{}).Cause)
	require.Equal(t, CauseUnknown, Diagnose([]string{"kill_process_tree called: parent_pid=1, include_parent=True, pid=1"}, Exit{Code: -1, Signal: syscall.SIGKILL}, Config{}).Cause,
		"SGLang said that it kills itself")
}

func TestDiagnoseMessage(t *testing.T) {
	f := Diagnose([]string{"a", "", "RuntimeError: CUDA out of memory. " + strings.Repeat("x", 1000)}, Exit{Code: -1, Signal: syscall.SIGKILL},
		Config{MaxRunningRequests: 64, MemFractionStatic: 0.9, ChunkedPrefillSize: -1})
	f.LogFile = "/run/server-0.stderr.log"
	require.Equal(t, "CUDA out of memory while loading (signal 9 (killed))\nwhat to do: lower max_running_requests from 64 to 32\n        or: lower mem_fraction_static from 0.9 to 0.85"+
		"\n        or: set chunked_prefill_size to 4096: it is off, so a prompt is one step\n        or: if the weights alone do not fit: a quantized model, or more GPUs (tp_size)\nits log says:\n"+
		"\tRuntimeError: CUDA out of memory. "+strings.Repeat("x", 466)+"…\nall of it: /run/server-0.stderr.log", f.Error())
	f = Diagnose([]string{"one", "two"}, Exit{Code: 1}, Config{})
	require.Equal(t, []string{"one", "two"}, f.Lines)
	require.Equal(t, CauseUnknown, f.Cause)
}

// The guide lists every cause once, under its name, with a text that shows it.
func TestTroubleshootingGuide(t *testing.T) {
	data, err := os.ReadFile("../../docs/troubleshooting.md")
	require.NoError(t, err)
	guide := string(data)
	known := map[string]bool{string(CauseUnknown): true}
	for _, k := range causes {
		known[string(k.Cause)] = true
		_, section, ok := strings.Cut(guide, "\n### "+string(k.Cause)+"\n")
		require.True(t, ok, "docs/troubleshooting.md has no section %q", k.Cause)
		section, _, _ = strings.Cut(section, "\n### ")
		for _, text := range k.texts {
			require.Contains(t, section, "`"+text+"`", "section %q", k.Cause)
		}
	}
	for line := range strings.Lines(guide) {
		if name, ok := strings.CutPrefix(line, "### "); ok {
			require.True(t, known[strings.TrimSpace(name)], "docs/troubleshooting.md has a section %q, which is no cause", name)
		}
	}
}
