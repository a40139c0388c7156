//go:build unix

package process

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// unlike are the recorded lines of a start that the simulation does not print: what a Python package says of the machine.
var unlike = regexp.MustCompile(`UserWarning|FutureWarning|warnings\.warn|Example: sglang|Ignore import|init_threads_binding|init_cpu_threads_env|Cannot detect CUDA|` +
	`Using fallback token IDs|Cuda graph is disabled|Fail to set RLIMIT|chat template|Freezing GC|torch\.jit|tilelang|Registered linear attn|Using the Python TreeCore|^W\d{4} |^@|` +
	`Compiled-kernel caches|server_args=|sglang-sim: `)

// numbers differ: sizes, times, ports and process ids. The tree core is that of the machine's torch.
var numbers = regexp.MustCompile(`\d+(\.\d+)?|Rust`)

// shape is the sequence of lines up to the readiness line, without numbers.
func shape(text string) []string {
	var out []string
	for l := range strings.Lines(text) {
		l = strings.TrimRight(stamps.ReplaceAllString(l, ""), "\n")
		if !unlike.MatchString(l) && strings.TrimSpace(l) != "" && !strings.HasPrefix(l, " ") {
			out = append(out, numbers.ReplaceAllString(l, "N"))
		}
		if strings.Contains(l, readyLine) {
			break
		}
	}
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], "Core: NUnified", "Core: Unified")
	}
	return out
}

// A start logs what the recorded servers logged, in the same order; and its end as well.
func TestStartAsRecorded(t *testing.T) {
	for version, recording := range map[string]string{"0.5.15.post1": "0.5.15.post1-start-run-sigterm", "0.5.18": "0.5.18-start-run-sigterm",
		"0.5.21": "0.5.21-start-run-sigterm", "0.5.23": "0.5.23-start-run-sigterm-drain"} {
		t.Run(version, func(t *testing.T) {
			b, err := os.ReadFile(refdata.Path(t, "sglang-cpu/logs/"+recording+".stderr.txt"))
			require.NoError(t, err)
			text := regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(string(b), "")
			c := start(t, "--sim-version", version, "--load-format", "dummy", "--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native",
				"--sampling-backend", "pytorch", "--max-total-tokens", "20000", "--mem-fraction-static", "0.1", "--max-running-requests", "64", "--enable-metrics").ready()
			require.Equal(t, shape(text), shape(c.stderr()))

			// The arguments, in their order; those that no flag sets are not shown.
			want, got := argNames(text), argNames(c.stderr())
			both := func(names, others []string) (out []string) {
				for _, n := range names {
					if slices.Contains(others, n) {
						out = append(out, n)
					}
				}
				return out
			}
			require.Greater(t, len(got), 400)
			require.GreaterOrEqual(t, len(both(want, got)), len(want)-20)
			require.ElementsMatch(t, both(want, got), both(got, want))

			c.signal(syscall.SIGTERM)
			c.wait()
			_, end, _ := strings.Cut(text[strings.Index(text, "SIGTERM received"):], "\n")
			var ended []string
			for l := range strings.Lines(end) {
				l = stamps.ReplaceAllString(strings.TrimRight(l, "\n"), "")
				if !strings.Contains(l, "Remaining number of requests 1.") && !strings.HasPrefix(l, "Health check") {
					ended = append(ended, regexp.MustCompile(`pid=\d+|process \[\d+\]`).ReplaceAllString(l, "PID"))
				}
			}
			require.Equal(t, ended, c.after("SIGTERM received")[1:])
		})
	}
}

// argNames are the names of the fields in the line server_args=.
func argNames(text string) []string {
	_, line, _ := strings.Cut(text, "server_args=")
	line, _, _ = strings.Cut(strings.TrimPrefix(line, "ServerArgs"), "\n")
	line = regexp.MustCompile(`'[^']*'(:)|'[^']*'`).ReplaceAllStringFunc(line, func(s string) string {
		if name, ok := strings.CutSuffix(s, ":"); ok {
			return strings.Trim(name, "'") + "="
		}
		return "text"
	})
	for nested := regexp.MustCompile(`(.)[\[({][^\[\](){}]*[\])}]`); nested.MatchString(line); {
		line = nested.ReplaceAllString(line, "$1")
	}
	var out []string
	for _, m := range regexp.MustCompile(`([a-z][a-z0-9_]*)=`).FindAllStringSubmatch(line, -1) {
		out = append(out, m[1])
	}
	return out
}

// The access log goes to stdout, the warm-up first.
func TestAccessLog(t *testing.T) {
	b, err := os.ReadFile(refdata.Path(t, "sglang-cpu/logs/0.5.23-start.stdout.txt"))
	require.NoError(t, err)
	t.Parallel()
	c := start(t).ready()
	c.post("/v1/loads?include=core", "")
	c.post("/nope", "{}")
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
	var got, want []string
	for l := range strings.Lines(c.out()) {
		got = append(got, numbers.ReplaceAllString(stamps.ReplaceAllString(l, ""), "N"))
	}
	for l := range strings.Lines(string(b)) {
		want = append(want, numbers.ReplaceAllString(stamps.ReplaceAllString(l, ""), "N"))
	}
	require.Equal(t, want[:3], got[:3])
	require.Equal(t, []string{"INFO:     N.N:N - \"POST /vN/loads?include=core HTTP/N\" N Method Not Allowed\n", "INFO:     N.N:N - \"POST /nope HTTP/N\" N Not Found\n"}, got[3:])
}

// The batch lines have the recorded form.
func TestBatchLines(t *testing.T) {
	b, err := os.ReadFile(refdata.Path(t, "sglang-cpu/logs/0.5.23-start-run-sigterm-drain.stderr.txt"))
	require.NoError(t, err)
	form := func(text, kind string) string {
		for l := range strings.Lines(text) {
			if strings.Contains(l, kind) {
				return numbers.ReplaceAllString(stamps.ReplaceAllString(l, ""), "N")
			}
		}
		return ""
	}
	t.Parallel()
	c := start(t, "--device", "cpu", "--decode-log-interval", "5").ready()
	c.post("/generate", `{"text":"hello","sampling_params":{"max_new_tokens":40,"ignore_eos":true}}`)
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
	for _, kind := range []string{"Prefill batch", "Decode batch"} {
		require.Equal(t, form(string(b), kind), form(c.stderr(), kind))
	}
	require.GreaterOrEqual(t, strings.Count(c.stderr(), "Decode batch"), 7)
}

// Requests that are taken back are told of with the counts of the engine, in the words of scheduler.py.
func TestRetractionWarning(t *testing.T) {
	t.Parallel()
	c := start(t, "--max-total-tokens", "600", "--schedule-conservativeness", "0.1", "--disable-radix-cache").ready()
	ids := strings.Repeat("[1,2,3,4,5],", 6)
	status, body := c.post("/generate", `{"input_ids":[`+ids[:len(ids)-1]+`],"sampling_params":{"max_new_tokens":180}}`)
	require.Equal(t, 200, status, body)
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
	taken := 0
	for l := range strings.Lines(c.stderr()) {
		m := retractionLine.FindStringSubmatch(l)
		if m == nil {
			require.NotContains(t, l, "Retract")
			continue
		}
		n, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		taken += n
	}
	require.Positive(t, taken)
	for _, m := range regexp.MustCompile(`"num_retractions":(\d+)`).FindAllStringSubmatch(body, -1) {
		n, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		taken -= n
	}
	require.Zero(t, taken)
}

var retractionLine = regexp.MustCompile(`^\[[^]]+\] KV cache pool is full\. Retract requests\. #retracted_reqs: (\d+), #new_tokens_gained: \d+, #new_token_ratio: 0\.\d{4} -> \d\.\d{4}\n$`)

// The start takes the time that was asked for, in phases with progress.
func TestStartupTime(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	c := start(t, "--sim-startup", "700ms", "--tp-size", "2").ready()
	require.GreaterOrEqual(t, time.Since(begin), 700*time.Millisecond)
	text := c.stderr()
	for _, want := range []string{"TP0] Load weight begin. avail mem=", "Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]",
		"Loading safetensors checkpoint shards: 100% Completed | 4/4 [", "\r  0%|          | 0/36 [00:00<?, ?it/s]\rCapturing batches (bs=256 avail_mem=",
		"GB): 100%|██████████| 36/36 [", "TP0] Capture target decode CUDA graph end. elapsed="} {
		require.True(t, strings.Contains(text, want), "no %q", want)
	}
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
}

// A string as a limit kills 0.5.15's scheduler, and with it the server.
func TestCrashByRequest(t *testing.T) {
	t.Parallel()
	c := start(t, "--sim-version", "0.5.15.post1").ready()
	req := `{"server_args":{"pp_max_micro_batch_size":"8"}}`
	_, _ = c.try("/set_internal_state", req)
	require.Equal(t, -9, c.wait())
	require.Contains(t, c.stderr(), "Scheduler hit an exception: Traceback (most recent call last):")
	require.Contains(t, c.stderr(), "TypeError: '>' not supported between instances of 'str' and 'int'")
	c.gone()
}

// A scheduler that has let more decodes ride in a prefill than its pool holds dies, and with it the server.
func TestCrashOfMemory(t *testing.T) {
	t.Parallel()
	c := start(t, "--sim-version", "0.5.15.post1", "--max-total-tokens", "3004", "--max-running-requests", "8", "--chunked-prefill-size", "8",
		"--enable-mixed-chunk", "--schedule-conservativeness", "0.3", "--decode-log-interval", "1").ready()
	var all sync.WaitGroup
	ask := func(id, in, out int) {
		all.Go(func() {
			_, _ = c.try("/generate", fmt.Sprintf(`{"input_ids":[%s1],"sampling_params":{"max_new_tokens":%d}}`, strings.Repeat(fmt.Sprint(id, ","), in-1), out))
		})
	}
	c.post("/slow_down", `{"forward_sleep_time":0.05}`) // until all are under way
	for i := range 5 {
		ask(i, 10, 600)
	}
	c.line("Decode batch, #running-req: 5")
	ask(9, 1500, 1)
	c.line("#new-token: 3,")
	c.post("/slow_down", `{"forward_sleep_time":null}`)
	require.Equal(t, -9, c.wait())
	all.Wait()
	require.Contains(t, c.stderr(), "RuntimeError: Out of memory. Try to lower your batch size.\nTry to allocate ")
	c.gone()
}

// Arguments of the scheduler act on the simulated one, and are shown in the log and in /server_info.
func TestSchedulerArguments(t *testing.T) {
	t.Parallel()
	c := start(t, "--schedule-policy", "lpm", "--page-size", "4", "--max-running-requests", "1", "--load-snapshot-publish-interval", "1", "--quantization", "fp8").ready()
	text := c.stderr()
	for _, want := range []string{"'schedule_policy': 'lpm'", "'page_size': 4", "'mem_fraction_static': 0.83", "'sampling_backend': 'pytorch'", "'load_format': 'auto'", "accepted but not simulated: --quantization --model-path\n"} {
		require.Contains(t, text, want)
	}
	get := func(path string) string {
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(c.url(path))
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return fmt.Sprint(string(b), err)
	}
	require.Regexp(t, `"page_size":4,.*"schedule_policy":"lpm",|"schedule_policy":"lpm",.*"page_size":4,`, get("/server_info"))

	for _, path := range []string{"/server_info", "/model_info", "/get_model_info"} {
		require.Regexp(t, `"model_path":"llama",.*"load_format":"auto"`, get(path))
	}
	require.Regexp(t, `"mem_fraction_static":0.83,.*"sampling_backend":"pytorch"`, get("/server_info"))

	const request = `{"rid":%q,"input_ids":[%s],"sampling_params":{"max_new_tokens":%d,"ignore_eos":true}}`
	const shared = "1,2,3,4,5,6,7,8"
	c.post("/generate", fmt.Sprintf(request, "before", shared, 1))
	ended := make(chan string, 3)
	ask := func(rid, ids string, tokens, waiting int) {
		go func() {
			c.post("/generate", fmt.Sprintf(request, rid, ids, tokens))
			ended <- rid
		}()
		require.Eventually(t, func() bool {
			return strings.Contains(get("/v1/loads?include=core"), fmt.Sprintf(`"num_running_reqs":1,"num_waiting_reqs":%d,`, waiting))
		}, limit, 5*time.Millisecond)
	}
	ask("long", "9,9", 100000, 0)
	ask("first", "8,8,8,8,8", 1, 1)
	ask("prefix", shared+",8,8,8", 1, 2)
	c.post("/abort_request", `{"rid":"long"}`)
	require.Equal(t, []string{"long", "prefix", "first"}, []string{<-ended, <-ended, <-ended})
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
}

// Who attaches to the server with what it was started with is at the right one.
func TestAttach(t *testing.T) {
	t.Parallel()
	c := start(t, "--mem-fraction-static", "0.7").ready()
	m, err := server.NewServerManager(server.Attach(c.url("")))
	require.NoError(t, err)
	_, err = m.Launch(t.Context(), server.Config{ModelPath: "llama", MemFractionStatic: 0.7})
	require.NoError(t, err)
	_, err = m.Launch(t.Context(), server.Config{ModelPath: sim.H100Llama8B().ModelPath})
	require.ErrorContains(t, err, "llama")
	require.NoError(t, m.StopAll(context.Background()))
	http.DefaultClient.CloseIdleConnections()
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
}

// A proxy of the environment is for other servers than this host's own.
func TestProxyOfTheEnvironment(t *testing.T) {
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"} {
		t.Setenv(name, "http://127.0.0.1:9") // nothing is there
	}
	t.Setenv("no_proxy", "localhost,127.0.0.1")
	for _, host := range []string{"0.0.0.0", "::", "localhost"} {
		c := start(t, "--host", host).ready()
		for range 10 {
			status, body := c.post("/generate", generation)
			require.Equal(t, http.StatusOK, status, body)
		}
		c.signal(syscall.SIGTERM)
		require.Equal(t, 0, c.wait())
	}
}
