//go:build unix

package process

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/sim"
)

const generation = `{"text":"hello there","sampling_params":{"max_new_tokens":4}}`

// launchDeath and runningDeath are the lines of a main process whose child has sent SIGQUIT.
var (
	launchDeath  = []string{"Received sigquit from a child process. It usually means the child failed.", "kill_process_tree called: parent_PID, include_parent=True, PID"}
	runningDeath = []string{"SIGQUIT received. signum=None, frame=None. It usually means one child failed.", "Sleeping 5 seconds before crash diagnostics to let GPU activity settle.",
		"No live scheduler processes found; skipping py-spy and CUDA coredump.", "kill_process_tree called: parent_PID, include_parent=True, PID"}
)

// Every fault that ends the process ends it as its entry says, with its text, whatever the version.
func TestDeadlyFaults(t *testing.T) {
	texts := map[string]string{ // where the last line of the entry is not the whole story
		"missing-model":      "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.",
		"port-in-use":        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', ",
		"watchdog":           "Scheduler watchdog timeout (self.watchdog_timeout=300.0, self.soft=False)",
		"scheduler-killed":   "Triggering SIGQUIT for cleanup...",
		"detokenizer-killed": "Subprocess detokenizer (pid=",
	}
	for i, f := range faults {
		if f.exit == "" {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			version := releases[i%len(releases)]
			c := start(t, "--sim-version", version, "--sim-fault", f.name)
			var requests sync.WaitGroup
			defer requests.Wait()
			if f.when == running && f.name != "killed" {
				c.ready()
				requests.Go(func() { // until the process is gone: a fault may strike later than the first has ended
					for {
						res, err := c.try("/generate", generation)
						if err != nil {
							return
						}
						res.Body.Close()
					}
				})
			}
			status := c.wait()
			want := map[string]int{"1": 1, "3": 3, "signal 9": -9}[f.exit]
			require.Equal(t, want, status, "stderr:\n%s", c.stderr())
			text := texts[f.name]
			if text == "" {
				text = strings.NewReplacer("{site}", sitePackages, "{model}", "llama", "{mem_fraction}", "0.83", "{free}", "Available tokens: 0 (available_size=0 + evictable_size=0)\n").Replace(f.err)
			}
			require.Contains(t, c.stderr(), text)
			switch {
			case f.name == "detokenizer-killed", f.name == "killed", f.exit != "signal 9":
			case f.when == running:
				require.Equal(t, runningDeath, c.after("SIGQUIT received."))
			default:
				require.Equal(t, launchDeath, c.after("Received sigquit"))
			}
			c.gone()
		})
	}
}

// The tracebacks of failed starts are those recorded on an H100 and a CPU.
func TestRecordedTracebacks(t *testing.T) {
	places := strings.NewReplacer("/tmp/site/", "SITE/", "/opt/torch/.venv/lib/python3.12/site-packages/", "SITE/", "SITE-PACKAGES/", "SITE/", sitePackages+"/", "SITE/")
	traceback := func(text string) string {
		i := strings.Index(text, "Traceback (most recent")
		require.GreaterOrEqual(t, i, 0, text)
		text, _, _ = strings.Cut(text[i:], "\n\n[2")
		text = regexp.MustCompile(`Process \d+ has [0-9.]+ GiB memory in use\. `).ReplaceAllString(text, "")
		return strings.TrimSpace(places.Replace(text))
	}
	for name, s := range map[string]struct {
		recording string
		args      []string
	}{
		"missing path":      {"sglang-h100/failed_starts/missing_model/stderr.log", []string{"--model-path", "/models/does-not-exist", "--sim-version", "0.5.15.post1"}},
		"missing hub model": {"sglang-h100/failed_starts/missing_hub_model/stderr.log", []string{"--model-path", "no-org/no-such-model", "--sim-version", "0.5.15.post1", "--sim-fault", "missing-model"}},
		"missing, 0.5.23":   {"sglang-cpu/logs/0.5.23-missing-model.stderr.txt", []string{"--sim-fault", "missing-model"}},
		"oom at load":       {"sglang-h100/failed_starts/cuda_oom_gpu_in_use/stderr.log", []string{"--sim-version", "0.5.15.post1", "--sim-fault", "oom-at-load"}},
		"no memory for KV":  {"sglang-h100/failed_starts/too_little_memory/stderr.log", []string{"--sim-version", "0.5.15.post1", "--sim-fault", "no-kv-weights", "--mem-fraction-static", "0.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(refdata.Path(t, s.recording))
			require.NoError(t, err)
			c := start(t, s.args...)
			c.wait()
			require.Equal(t, traceback(string(b)), traceback(c.stderr()))
		})
	}
}

// A port that is really in use is found only after the load.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	c := start(t).ready()
	d := start(t, "raw", "-m", "sglang.launch_server", "--model-path", "llama", "--port", fmt.Sprint(c.port), "--sim-waits", "0.05", "--sim-shm", c.shm)
	require.Equal(t, 3, d.wait())
	require.Equal(t, []string{
		fmt.Sprintf("ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', %d): address already in use", c.port),
		"INFO:     Waiting for application shutdown.", readyLine, "INFO:     Application shutdown complete.",
		"kill_process_tree called: parent_PID, include_parent=False, PID"}, d.after("[Errno 98]"))
	require.Contains(t, c.out(), `"GET /model_info HTTP/1.1" 200 OK`)
	d.gone()
}

// A scheduler that is really killed is found by the watchdog; during the load it ends the start.
func TestSchedulerKilled(t *testing.T) {
	t.Parallel()
	c := start(t).ready()
	require.NoError(t, syscall.Kill(c.group()["sglang::scheduler"], syscall.SIGKILL))
	require.Equal(t, -9, c.wait())
	lines := c.after("Subprocess scheduler_0")
	require.Equal(t, "Subprocess scheduler_0 (PID) crashed with exit code -9. Triggering SIGQUIT for cleanup...", lines[0])
	require.Equal(t, runningDeath, lines[1:])
	c.gone()

	d := start(t, "--sim-startup", "60s")
	require.Eventually(t, func() bool { return d.left()["sockets"] == 3 }, limit, 1e7)
	require.NoError(t, syscall.Kill(d.group()["sglang::scheduler"], syscall.SIGKILL))
	require.Equal(t, 1, d.wait())
	require.Contains(t, d.stderr(), "RuntimeError: Rank 0 scheduler died during initialization (exit code: -9).")
	d.gone()
}

// A hung scheduler leaves HTTP alive until the watchdog's time is over.
func TestHang(t *testing.T) {
	t.Parallel()
	c := start(t, "--watchdog-timeout", "0.5").ready()
	status, _ := c.post("/sim/fault", `{"fault":"hang"}`)
	require.Equal(t, http.StatusOK, status)
	res, err := http.Get(c.url("/model_info"))
	require.NoError(t, err)
	res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	_, err = http.Post(c.url("/generate"), "application/json", strings.NewReader(generation))
	require.Error(t, err)
	require.Equal(t, -9, c.wait())
	require.Contains(t, c.stderr(), "Scheduler watchdog timeout (self.watchdog_timeout=0.5, self.soft=False)")
	c.gone()
}

// A crash strikes with the n-th request.
func TestCrashAfterRequests(t *testing.T) {
	t.Parallel()
	c := start(t, "--sim-fault", "crash@3").ready()
	for range 2 {
		status, _ := c.post("/generate", generation)
		require.Equal(t, http.StatusOK, status)
	}
	_, err := http.Post(c.url("/generate"), "application/json", strings.NewReader(generation))
	require.Error(t, err)
	require.Equal(t, -9, c.wait())
	c.gone()
}

func TestConditions(t *testing.T) {
	t.Parallel()
	c := start(t, "--sim-fault", "error-rate:1/503").ready()
	listed := func() map[string]string {
		res, err := http.Get(c.url("/sim/fault"))
		require.NoError(t, err)
		defer res.Body.Close()
		var all []struct{ Name, Doc, Active string }
		require.NoError(t, json.NewDecoder(res.Body).Decode(&all))
		require.Len(t, all, len(faults))
		active := map[string]string{}
		for _, f := range all {
			require.NotEmpty(t, f.Doc)
			if f.Active != "" {
				active[f.Name] = f.Active
			}
		}
		return active
	}
	require.Equal(t, map[string]string{"error-rate": "1/503"}, listed(), "it is in place before the readiness line")
	status, body := c.post("/generate", generation)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.JSONEq(t, `{"object":"error","message":"The request queue is full.","type":"503","param":null,"code":503}`, body)
	status, _ = c.post("/sim/fault", `{"clear":"error-rate"}`)
	require.Equal(t, http.StatusOK, status)
	require.Empty(t, listed())
	status, _ = c.post("/generate", generation)
	require.Equal(t, http.StatusOK, status)

	status, _ = c.post("/sim/fault", `{"fault":"broken-stream:3"}`)
	require.Equal(t, http.StatusOK, status)
	require.Len(t, listed(), 1)
	res, err := http.Post(c.url("/generate"), "application/json", strings.NewReader(`{"text":"hello","stream":true,"sampling_params":{"max_new_tokens":5000,"ignore_eos":true}}`))
	require.NoError(t, err)
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, 3, strings.Count(string(b), "data: "))

	status, _ = c.post("/sim/fault", `{"fault":"refuse:300ms"}`)
	require.Equal(t, http.StatusOK, status)
	address := fmt.Sprintf("127.0.0.1:%d", c.port)
	dial := func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	require.Eventually(t, func() bool { return !dial() }, limit, 1e6)
	require.Eventually(t, dial, limit, 1e7)

	for body, want := range map[string]int{`{"fault":"nope"}`: 400, `{"fault":"oom-at-load"}`: 400, `{}`: 400, `{"clear":"hang"}`: 404, `{"fault":"slow-step"}`: 400, `no`: 400} {
		status, _ := c.post("/sim/fault", body)
		require.Equal(t, want, status, body)
	}
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
	http.DefaultClient.CloseIdleConnections()
	c.gone()
}

// The label voids what is known of the error for arguments without an effect, and from the moment at which a fault is set for good.
func TestLabel(t *testing.T) {
	t.Parallel()
	c := start(t, "--tp-size", "2", "--mem-fraction-static", "0.7", "--disable-cuda-graph", "--sim-fault", "error-rate:0/503").ready()
	const arguments = "arguments not simulated: disable_cuda_graph, mem_fraction_static 0.7, model llama (profile: meta-llama/Llama-3.1-8B-Instruct), tp_size 2"
	require.Contains(t, c.stderr(), "accepted but not simulated: --disable-cuda-graph --mem-fraction-static --model-path --tp-size\n")
	label := func() (header, profile, calibrated, known string) {
		resp, err := http.Get(c.url("/server_info"))
		require.NoError(t, err)
		defer resp.Body.Close()
		var info struct {
			Simulated struct {
				Profile, Calibrated string
				KnownError          string `json:"known_error"`
			}
		}
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&info))
		l := info.Simulated
		return resp.Header.Get(load.SimulatedByHeader), l.Profile, l.Calibrated, l.KnownError
	}
	tells := func(faults string) {
		header, profile, calibrated, known := label()
		require.Equal(t, "h100-llama-3.1-8b with "+arguments+" and "+faults, header)
		require.Equal(t, header, profile)
		require.Regexp(t, "^not calibrated with .*"+faults+"; the profile as it is: ", calibrated)
		require.Regexp(t, "^not measured with .*"+faults+"; the profile as it is: ", known)
	}
	tells("faults error-rate:0/503")
	for _, body := range []string{`{"fault":"slow-step:2@1h"}`, `{"fault":"slow-step:1.5"}`, `{"clear":"slow-step"}`, `{"fault":"slow-step:1.5"}`} {
		status, text := c.post("/sim/fault", body)
		require.Equal(t, http.StatusOK, status, text)
	}
	tells("faults error-rate:0/503, slow-step:2, slow-step:1.5")
	status, _ := c.post("/sim/fault", `{"fault":"error-rate:1/500"}`)
	require.Equal(t, http.StatusOK, status)
	resp, err := c.try("/generate", generation)
	require.NoError(t, err)
	resp.Body.Close()
	require.True(t, strings.HasSuffix(resp.Header.Get(load.SimulatedByHeader), "error-rate:1/500"), "also of an injected answer")
	http.DefaultClient.CloseIdleConnections()
	c.signal(syscall.SIGTERM)
	require.Equal(t, 0, c.wait())
	require.Contains(t, c.stderr(), "sglang-sim: fault slow-step:1.5 was set: from here on nothing is known of the error")
}

// request makes a request with headers, given as names and values, and returns the status. Host is one of them.
func (c *child) request(method, path, body string, header ...string) int {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url(path), strings.NewReader(body))
	require.NoError(c.t, err)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	require.NoError(c.t, err)
	defer res.Body.Close()
	require.Empty(c.t, res.Header.Get("Access-Control-Allow-Origin"))
	return res.StatusCode
}

// Faults are for who may use SGLang's admin routes, and for no web page.
func TestFaultsAreGuarded(t *testing.T) {
	t.Parallel()
	const fault, json = `{"fault":"slow-step:1ms"}`, "application/json"
	for _, c := range []struct {
		args  []string
		right string // the key
		wrong []string
	}{
		{nil, "", nil},
		{[]string{"--api-key", "user-key"}, "user-key", []string{"", "other"}},
		{[]string{"--admin-api-key", "admin-key"}, "admin-key", []string{"", "other"}},
		{[]string{"--api-key", "user-key", "--admin-api-key", "admin-key"}, "admin-key", []string{"", "user-key"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			t.Parallel()
			s := start(t, append([]string{"--sim-fault", "crash@2"}, c.args...)...).ready()
			require.NotContains(t, s.stderr(), " 401 ")
			port := fmt.Sprint(":", s.port)
			as := func(header ...string) []string { return append(header, "Authorization", "Bearer "+c.right) }
			for _, key := range c.wrong {
				require.Equal(t, http.StatusUnauthorized, s.request("POST", "/sim/fault", `{"fault":"killed"}`, "Content-Type", json, "Authorization", "Bearer "+key))
				require.Equal(t, http.StatusUnauthorized, s.request("GET", "/sim/fault", "", "Authorization", "Bearer "+key))
			}
			for _, kind := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonx", "text/plain; application/json"} {
				require.Equal(t, http.StatusUnsupportedMediaType, s.request("POST", "/sim/fault", fault, as("Content-Type", kind)...), kind)
			}
			for _, origin := range []string{"http://evil.example", "http://evil.example" + port, "null", "https://127.0.0.1" + port + ".evil.example", "http://localhost" + port} {
				require.Equal(t, http.StatusForbidden, s.request("POST", "/sim/fault", fault, as("Content-Type", json, "Origin", origin)...), origin)
			}
			require.Equal(t, http.StatusForbidden, s.request("POST", "/sim/fault", fault, as("Content-Type", json, "Sec-Fetch-Site", "same-site")...))
			require.Equal(t, http.StatusMethodNotAllowed, s.request("OPTIONS", "/sim/fault", "", "Origin", "http://evil.example", "Access-Control-Request-Method", "POST"))
			if c.right == "" { // a name that was made to lead here
				for _, host := range []string{"evil.example" + port, "evil.example", "localhost.evil.example" + port} {
					require.Equal(t, http.StatusForbidden, s.request("POST", "/sim/fault", fault, "Content-Type", json, "Host", host))
					require.Equal(t, http.StatusForbidden, s.request("POST", "/sim/fault", fault, "Content-Type", json, "Host", host, "Origin", "http://"+host))
					require.Equal(t, http.StatusForbidden, s.request("GET", "/sim/fault", "", "Host", host))
				}
			}
			for _, host := range []string{"localhost" + port, "LOCALHOST", "[::1]" + port, "127.0.0.1"} {
				require.Equal(t, http.StatusOK, s.request("POST", "/sim/fault", fault, as("Content-Type", json+"; charset=utf-8", "Host", host)...), host)
			}
			require.Equal(t, http.StatusOK, s.request("GET", "/sim/fault", "", as()...))

			// What SGLang refuses is no generation after which a fault strikes.
			for range 3 {
				require.Equal(t, http.StatusMethodNotAllowed, s.request("OPTIONS", "/generate", ""))
				require.Equal(t, http.StatusMethodNotAllowed, s.request("PUT", "/v1/completions", "", "Authorization", "Bearer user-key"))
				if slices.Contains(c.args, "--api-key") {
					require.Equal(t, http.StatusUnauthorized, s.request("POST", "/generate", generation, "Content-Type", json))
				}
			}
			require.Equal(t, http.StatusOK, s.request("POST", "/generate", generation, "Content-Type", json, "Authorization", "Bearer user-key"))
			s.signal(syscall.SIGTERM)
			require.Equal(t, 0, s.wait())
			s.gone()
		})
	}
}

func TestParseFault(t *testing.T) {
	for spec, want := range map[string]string{
		"nope":               `sglang-sim: no fault is called "nope": see --help`,
		"crash:1":            `sglang-sim: fault "crash:1": :1: want no value`,
		"oom-at-load@3":      `sglang-sim: fault "oom-at-load@3": it strikes during the start: want no @`,
		"crash@soon":         `sglang-sim: fault "crash@soon": @soon: want a duration such as 30s, or a number of requests ≥ 1`,
		"slow-step:-1":       `sglang-sim: fault "slow-step:-1": value "-1": want factor such as 2, or duration such as 5ms`,
		"error-rate:2/503":   `sglang-sim: fault "error-rate:2/503": value "2/503": want fraction and status such as 0.1/503`,
		"error-rate:0.5/200": `sglang-sim: fault "error-rate:0.5/200": value "0.5/200": want fraction and status such as 0.1/503`,
		"broken-stream":      `sglang-sim: fault "broken-stream": value "": want number of events`,
		"crash@3":            "", "crash@3s": "", "refuse": "", "refuse:2s@1m": "", "slow-step:1.5": "", "slow-step:2ms": "", "error-rate:0.25/500@10": "",
	} {
		_, err := parseFault(spec)
		if want == "" {
			require.NoError(t, err, spec)
		} else {
			require.EqualError(t, err, want)
		}
	}
}

// A factor beyond all measure does not make steps short.
func TestSlowStepsDoNotOverflow(t *testing.T) {
	m := &faultyModel{StepModel: sim.Linear{DecodeBase: 10, PrefillBase: 10}}
	for _, factor := range []float64{1e12, 1e300} {
		m.factor.Store(&factor)
		require.Equal(t, never, m.StepTime(sim.Shape{Decodes: 1}))
	}
	one := 1.0
	m.factor.Store(&one)
	m.more.Store(math.MaxInt64)
	require.Equal(t, never, m.StepTime(sim.Shape{Decodes: 1}))
}
