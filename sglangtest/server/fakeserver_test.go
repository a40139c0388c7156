package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// fakeVariable makes the test binary another program: a small imitation of an SGLang server, or a harness.
const fakeVariable = "SGLANGTEST_FAKE"

// startLines is what SGLang 0.5.23 logs on a start, cut.
const startLines = `[2026-11-24 17:00:00] server_args={'model_path': 'm', 'mem_fraction_static': 0.83, 'chunked_prefill_size': 8192, 'log_level': 'info'}
[2026-11-24 17:00:01] Load weight begin. avail mem=78.50 GB
Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:00<00:00,  2.00it/s]` + "\r" + `Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:01<00:00,  2.00it/s]
[2026-11-24 17:00:02] Load weight end. elapsed=0.11 s, type=LlamaForCausalLM, avail mem=63.48 GB, mem usage=15.02 GB.
[2026-11-24 17:00:03] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 410620, K size: 25.06 GB, V size: 25.06 GB
[2026-11-24 17:00:04] Capture target decode CUDA graph begin. backend=full, num_tokens_per_bs=1, bs=[1, 2, 4]
[2026-11-24 17:00:05] Capture target decode CUDA graph end. elapsed=3.80 s, mem usage=0.41 GB, avail mem=11.21 GB.
[2026-11-24 17:00:06] max_total_num_tokens=410620, chunked_prefill_size=8192, max_prefill_tokens=16384, max_running_requests=256, context_len=131072, available_gpu_mem=11.21 GB
`

// forever does not return. (A bare select ends a program without cgo as a deadlock.)
func forever() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR2)
	for range c {
	}
}

// fakeProgram runs the program that mode names and returns its exit status.
func fakeProgram(mode string) int {
	argument := func(flag string) string {
		if i := slices.Index(os.Args, flag); i >= 0 {
			return os.Args[i+1]
		}
		return ""
	}
	mode, file, _ := strings.Cut(mode, ":")
	switch mode {
	case "child": // of a server
		fmt.Fprintln(os.Stderr, "child", os.Getpid())
		forever()
	case "fail": // prints a log and exits
		data, err := os.ReadFile(file)
		if err != nil {
			panic(err)
		}
		os.Stderr.Write(data)
		return 3
	case "harness":
		return fakeHarness()
	}
	child := exec.Command(os.Args[0])
	child.Env = []string{fakeVariable + "=child"} // neither marker nor group: only the log gives it away
	child.Stderr = os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(os.Getenv("TMPDIR"), "tmp1234"), nil, 0o600); err != nil {
		panic(err)
	}
	shared, err := os.Create(fmt.Sprintf("/dev/shm/sglang_loads_test%d.shm", os.Getpid()))
	if err == nil { // Linux
		shared.Truncate(4096)
		if _, err := syscall.Mmap(int(shared.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err != nil {
			panic(err)
		}
	}
	fmt.Fprintln(os.Stderr, "api_key="+argument("--api-key"))
	fmt.Fprint(os.Stderr, startLines)
	if mode == "slow" {
		forever()
	}
	signals := make(chan os.Signal, 1)
	if mode == "deaf" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(signals, syscall.SIGTERM)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+argument("--port"))
	if mode == "taken" {
		fmt.Fprintln(os.Stderr, "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use")
		forever()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ERROR:    [Errno 98] error while attempting to bind on address: address already in use")
		return 3
	}
	fmt.Fprintln(os.Stderr, "INFO:     Uvicorn running on http://127.0.0.1:"+argument("--port"))
	version := argument("--weight-version")
	if mode == "stranger" {
		version = "default"
	}
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) }
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", answer(nil))
	mux.HandleFunc("/model_info", answer(map[string]any{"model_path": "m", "is_generation": true, "weight_version": version}))
	mux.HandleFunc("/server_info", answer(map[string]any{"version": "0.5.23", "frontend": "python", "log_level": "info",
		"internal_states": []any{map[string]any{"pp_max_micro_batch_size": 64, "effective_max_running_requests_per_dp": 64}}}))
	mux.HandleFunc("/v1/models", answer(map[string]any{"data": []any{map[string]any{"id": "m", "max_model_len": 4096}}}))
	mux.HandleFunc("/generate", answer(map[string]any{"meta_info": map[string]any{"weight_version": version, "completion_tokens": 1}}))
	mux.HandleFunc("/abort_request", answer(nil))
	go http.Serve(l, mux)
	fmt.Fprintln(os.Stderr, "[2026-11-24 17:00:24] The server is fired up and ready to roll!")
	<-signals
	return 0
}

// fakeHarness launches a server, says where it is, and goes on until it is killed.
func fakeHarness() int {
	m, err := NewServerManager(fakeLauncher("serve"))
	if err != nil {
		panic(err)
	}
	s, err := m.Launch(context.Background(), Config{ModelPath: "m"})
	if err != nil {
		panic(err)
	}
	l := s.present().inst.(*local)
	l.shared.note(l.identity.members) // its process has mapped the file before it was ready
	json.NewEncoder(os.Stdout).Encode(tracesOf(l))
	io.Copy(io.Discard, os.Stdin) // it is to be killed
	return 1
}

// fakeTraces are what a server leaves if nobody cleans up.
type fakeTraces struct {
	Group, Watchdog         int
	Start, Variable, Cgroup string
	Folder                  string
	Locks, Shared           []string
}

func tracesOf(l *local) fakeTraces {
	id, _ := l.known()
	return fakeTraces{Group: id.leader, Start: id.start, Variable: id.variable, Cgroup: id.cgroup, Locks: id.locks, Folder: l.folder.root,
		Shared: l.shared.names(), Watchdog: l.watchdog.cmd.Process.Pid}
}

func (f fakeTraces) identity() identity {
	return identity{leader: f.Group, start: f.Start, variable: f.Variable, locks: f.Locks, cgroup: f.Cgroup}
}

func fakeLauncher(mode string, opts ...ProcessOption) Launcher {
	return LocalProcess(append([]ProcessOption{WithCommand(os.Args[0]), WithEnvironment(map[string]string{fakeVariable: mode})}, opts...)...)
}
