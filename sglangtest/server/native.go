package server

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// nativeEnd are texts with which a process ends below Python, without a traceback: Python's fault handler, the C++ and C
// libraries, and the watchdog of torch's NCCL process group, after which torch aborts the process.
var nativeEnd = []string{"Fatal Python error: ", "terminate called ", "Watchdog caught collective operation timeout",
	"watchdog thread terminated with exception", "Segfault encountered", "double free or corruption", "corrupted size vs. prev_size",
	"malloc(): ", "free(): invalid", "munmap_chunk(): ", "stack smashing detected", "core dumped"}

// nativeLines tell what went wrong below Python, but do not end a process by themselves.
var nativeLines = append([]string{"  what():", ": Assertion `", "Bus error", "Segmentation fault", "Illegal instruction", "CUDA error: "}, nativeEnd...)

// childExit is how SGLang says with which status a child ended (engine.py, _wait_for_scheduler_ready; utils/watchdog.py):
// -n is the signal n, and 128+n is a shell's word for it.
var childExit = regexp.MustCompile(`(?:exit code: |exit code )(-?\d+)`)

// childSignal returns the signal that ended a child process, or the process itself, and the line that says so.
func (e evidence) childSignal() (syscall.Signal, string) {
	for _, line := range e.find("died during initialization", "crashed with exit code") {
		if m := childExit.FindStringSubmatch(line); m != nil {
			code, _ := strconv.Atoi(m[1]) // an overlong number is no signal
			if code > 128 {
				code = 128 - code
			}
			if code < 0 && code >= -64 {
				return syscall.Signal(-code), line
			}
		}
	}
	// SIGKILL and SIGTERM end the process after a failure, too: SGLang ends its own process group.
	if s := e.exit.Signal; !e.exit.Asked && s != 0 && s != syscall.SIGKILL && s != syscall.SIGTERM {
		return s, ""
	}
	return 0, ""
}

// signalMeans says what usually sends a signal to a server. The numbers are Linux's, as in [Exit] and in SGLang's log: other
// systems count some of them differently or lack them.
var signalMeans = map[syscall.Signal]struct {
	name   string
	advice []string
}{
	7: {"SIGBUS, a bus error", []string{"look whether /dev/shm is full (df -h /dev/shm): memory that is shared there and has no room ends like this; in a container give it more (docker: --shm-size 32g or --ipc=host)",
		"look for an I/O error of the disk that the weights are mapped from (dmesg -T)"}},
	11: {"SIGSEGV, an access to memory that is not there", []string{"the stack of the fault handler in the log names the library: install the versions that this SGLang asks for",
		"try without what is compiled at run time (enable_torch_compile) or another attention_backend"}},
	6:  {"SIGABRT: a library ended the process itself", []string{"read the lines before the end: what() or an assertion says why"}},
	4:  {"SIGILL, an instruction that this processor does not have", []string{"install a build for this processor (lscpu)"}},
	8:  {"SIGFPE, a division by zero in native code", []string{"the stack of the fault handler in the log names the library"}},
	5:  {"SIGTRAP", []string{"the stack of the fault handler in the log names the library"}},
	31: {"SIGSYS, a system call that is forbidden", []string{"look at the seccomp profile of the container"}},
}

// bySignal returns the lines that show that a child ended below Python.
func (e evidence) bySignal() ([]string, bool) {
	signal, said := e.childSignal()
	if _, known := signalMeans[signal]; !known {
		return nil, false
	}
	lines := e.firstOf(shownLines-1, nativeLines...)
	if said != "" {
		lines = append(lines, said)
	}
	return lines, true
}

func signalAdvice(e evidence, _ []string) []string {
	signal, _ := e.childSignal()
	means := signalMeans[signal]
	return append([]string{fmt.Sprintf("%s (signal %d): %s", means.name, int(signal), means.advice[0])}, means.advice[1:]...)
}

// sharedMemory returns the lines that say that a file system is full, where they name /dev/shm.
func (e evidence) sharedMemory() ([]string, bool) {
	lines := e.find("No space left on device", "Errno 28")
	all := strings.Join(append(lines, e.find("/dev/shm", "shared memory", "shm_open")...), "\n")
	return lines, len(lines) > 0 && containsAny(all, []string{"/dev/shm", "shared memory", "shm_open"})
}

// firstOf returns the first lines, n at most, that contain one of the texts, without repetitions: what causes comes first.
func (e evidence) firstOf(n int, texts ...string) []string {
	var lines []string
	seen := map[string]bool{}
	for _, line := range e.log {
		if len(lines) == n {
			break
		}
		if line = shorten(line); containsAny(line, texts) && !containsAny(line, harmless) && !seen[unstamped(line)] {
			seen[unstamped(line)] = true
			lines = append(lines, line)
		}
	}
	return lines
}

// ncclFailures are of failures of NCCL, as torch, SGLang's pynccl and NCCL itself report them.
var ncclFailures = []string{"NCCL error", "DistBackendError", "Watchdog caught collective operation timeout", "ncclSystemError", "ncclInternalError",
	"ncclUnhandledCudaError", "ncclRemoteError", "ncclInvalidUsage", "ncclInvalidArgument", "peer access is not supported"}

// ncclTexts are those and what NCCL warns of, which it does also where nothing fails.
var ncclTexts = append([]string{"NCCL WARN"}, ncclFailures...)

// nccl reports whether it failed, and the server with it.
func (e evidence) nccl() bool {
	return len(e.find(ncclFailures...)) > 0 && (e.raised() || len(e.find(nativeEnd...)) > 0)
}

const ncclDebug = "set NCCL_DEBUG=INFO in the server's environment: NCCL then logs which call failed and why"

// ncclAdvice says what to do about NCCL, by what the lines say of it.
func ncclAdvice(e evidence, lines []string) []string {
	text := strings.Join(append(lines, e.firstOf(shownLines, ncclTexts...)...), "\n")
	switch {
	case strings.Contains(text, "Watchdog caught collective operation timeout"):
		return []string{"find the rank that did not come to this collective: its last lines in the log, and its stack (py-spy dump), tell why it hung or ended",
			"look at the links and GPUs (nvidia-smi, dmesg -T | grep -i xid)", ncclDebug, "raise dist_timeout if a step may take that long"}
	case strings.Contains(text, "peer access is not supported"):
		return []string{"these GPUs cannot reach each other's memory (nvidia-smi topo -p2p r): set NCCL_P2P_DISABLE=1 in the server's environment, and disable_custom_all_reduce"}
	case containsAny(text, []string{"nvalid usage", "nvalid argument", "ncclInvalidUsage", "ncclInvalidArgument"}):
		return []string{"give each rank a GPU of its own: see gpus and tp_size", ncclDebug}
	case containsAny(text, []string{"emote process", "ncclRemoteError"}):
		return []string{"another rank ended first: its lines in the log say why", ncclDebug}
	}
	return []string{ncclDebug, "give /dev/shm more room (df -h /dev/shm; docker: --shm-size 32g or --ipc=host): NCCL shares memory there",
		"if the GPUs cannot reach each other's memory (nvidia-smi topo -p2p r): NCCL_P2P_DISABLE=1 and disable_custom_all_reduce"}
}
