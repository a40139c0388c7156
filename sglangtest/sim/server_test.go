package sim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

// quick is a profile with short steps, so that tests need not wait.
func quick() Profile {
	p := H100Llama8B()
	p.Name, p.Calibrated, p.KnownError = "quick", "nothing", "not measured"
	p.Model = Linear{DecodeBase: 1, PrefillBase: 1}
	p.LaunchPrefill, p.Ingest, p.IngestToken, p.Egress = 0, 0, 0, 0
	return p
}

type client struct {
	t     testing.TB
	url   string
	http  *http.Client
	began chan struct{} // unless nil: closed at an answer's first byte
}

func start(t testing.TB, p Profile, cfg server.Config, opts ...Option) (*Server, client) {
	s, err := NewServer(p, cfg, opts...)
	require.NoError(t, err)
	require.NoError(t, s.Start(t.Context()))
	tr := &http.Transport{}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Close(ctx)
		tr.CloseIdleConnections()
	})
	return s, client{t: t, url: s.URL(), http: &http.Client{Transport: tr}}
}

func (c client) open(ctx context.Context, method, path, body string) *http.Response {
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	require.NoError(c.t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	require.NoError(c.t, err)
	return resp
}

func (c client) do(method, path, body string) (int, string) {
	resp := c.open(c.t.Context(), method, path, body)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	return resp.StatusCode, string(b)
}

func (c client) post(path, body string) (int, string) { return c.do("POST", path, body) }

// events returns the data of the events of a stream.
func events(body string) []string {
	var out []string
	for e := range strings.SplitSeq(body, "\n\n") {
		if data, ok := strings.CutPrefix(e, "data: "); ok {
			out = append(out, data)
		}
	}
	return out
}

// recorded returns the status and body of a recording of 0.5.23.
func recorded(t *testing.T, name string) (int, string) {
	b, err := os.ReadFile(refdata.Path(t, "sglang-cpu/0.5.23/"+name+".txt"))
	require.NoError(t, err)
	head, body, _ := strings.Cut(string(b), "\r\n\r\n")
	var status int
	fmt.Sscanf(head, "HTTP/1.1 %d", &status)
	return status, body
}

// shape lists the keys of a JSON object in order, with the types of their values.
func shape(t *testing.T, raw string) []string {
	var out []string
	dec := json.NewDecoder(strings.NewReader(raw))
	var walk func(path string)
	walk = func(path string) {
		tok, err := dec.Token()
		require.NoError(t, err, raw)
		switch v := tok.(type) {
		case json.Delim:
			if v == '{' {
				for dec.More() {
					k, err := dec.Token()
					require.NoError(t, err)
					walk(path + "." + k.(string))
				}
			} else {
				for i := 0; dec.More(); i++ {
					if p := path + "[]"; i == 0 || strings.HasPrefix(path, ".choices") {
						walk(p)
					} else {
						var skip any
						require.NoError(t, dec.Decode(&skip))
					}
				}
			}
			_, err := dec.Token()
			require.NoError(t, err)
		default:
			out = append(out, fmt.Sprintf("%s %T", path, tok))
		}
	}
	walk("")
	return out
}

func info(t testing.TB, c client) map[string]any {
	status, body := c.do("GET", "/server_info", "")
	require.Equal(t, 200, status)
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &m))
	return m
}

func TestInformation(t *testing.T) {
	_, c := start(t, quick(), server.Config{MaxTotalTokens: 20000, ContextLength: 4096, MaxRunningRequests: 64, Args: server.Args{"weight_version": "w1"}})
	m := info(t, c)
	require.Equal(t, "0.5.23", m["version"])
	require.EqualValues(t, 20000, m["max_total_num_tokens"])
	require.EqualValues(t, 4090, m["max_req_input_len"])
	require.Equal(t, false, m["incremental_streaming_output"])
	require.Equal(t, "quick with max_total_tokens 20000 (profile: 410620), context_length 4096 (profile: 131072), max_running_requests 64 (profile: 256)",
		m["simulated"].(map[string]any)["profile"])
	require.EqualValues(t, 64, m["internal_states"].([]any)[0].(map[string]any)["effective_max_running_requests_per_dp"])
	_, models := recorded(t, "v1_models")
	_, got := c.do("GET", "/v1/models", "")
	sorted := func(s []string) []string { sort.Strings(s); return s }
	require.Equal(t, sorted(shape(t, models)), sorted(shape(t, got)))
	for _, path := range []string{"/health", "/ping", "/ready", "/health_generate"} {
		status, body := c.do("GET", path, "")
		require.Equal(t, 200, status)
		require.Empty(t, body)
	}
	status, body := c.post("/tokenize", `{"prompt":"twelve bytes"}`)
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"tokens":[1000,1001,1002],"count":3,"max_model_len":4096}`, body)
	_, body = c.post("/generate", `{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":2}}`)
	require.Contains(t, body, `"weight_version":"w1"`)
	require.Contains(t, body, `"prompt_tokens":3`)
	require.Contains(t, body, `"text":" bird tree"`)
	require.Contains(t, body, `"output_ids":[1000,1001]`)
}

func TestStreamIsCumulativeOrIncremental(t *testing.T) {
	for _, incremental := range []bool{false, true} {
		_, c := start(t, quick(), server.Config{IncrementalStreamingOutput: incremental})
		_, body := c.post("/generate", `{"text":"x","stream":true,"sampling_params":{"max_new_tokens":20,"ignore_eos":true}}`)
		text, tokens := "", 0
		for _, e := range events(body) {
			if e == "[DONE]" {
				break
			}
			var m struct {
				Text string
				Meta struct {
					Tokens int `json:"completion_tokens"`
				} `json:"meta_info"`
			}
			require.NoError(t, json.Unmarshal([]byte(e), &m))
			if incremental {
				text += m.Text
			} else {
				text = m.Text
			}
			tokens = m.Meta.Tokens
			require.Len(t, text, tokens*wordBytes)
		}
		require.Equal(t, 20, tokens)
	}
}

// slow is a profile whose answers do not end by themselves within a test.
func slow() Profile {
	p := quick()
	p.Model = Linear{DecodeBase: 5, PrefillBase: 1}
	return p
}

// line reads the next event of a stream.
func line(t *testing.T, r *bufio.Reader) string {
	for {
		l, err := r.ReadString('\n')
		require.NoError(t, err)
		if data, ok := strings.CutPrefix(l, "data: "); ok {
			return strings.TrimSuffix(data, "\n")
		}
	}
}

func TestAbortQueuedAndRunning(t *testing.T) {
	_, c := start(t, slow(), server.Config{MaxRunningRequests: 1, MaxQueuedRequests: 1})
	running := c.open(t.Context(), "POST", "/generate", `{"text":"x","rid":"a-1","stream":true,"sampling_params":{"max_new_tokens":100000}}`)
	defer running.Body.Close()
	r := bufio.NewReader(running.Body)
	line(t, r)
	queued := c.open(t.Context(), "POST", "/generate", `{"text":"x","rid":"b-1","stream":true,"sampling_params":{"max_new_tokens":10}}`)
	defer queued.Body.Close()
	line(t, r) // a step has passed: b-1 has reached the queue
	line(t, r)
	status, body := c.post("/flush_cache", "")
	require.Equal(t, 400, status)
	require.Equal(t, "Flush cache failed.\n", body)
	status, body = c.post("/generate", `{"text":"x","sampling_params":{"max_new_tokens":10}}`)
	require.Equal(t, 503, status)
	require.JSONEq(t, `{"object":"error","message":"The request queue is full.","type":"503","param":null,"code":503}`, body)
	_, body = c.post("/v1/completions", `{"model":"m","prompt":"x","stream":true}`)
	require.Equal(t, []string{`{"error":{"object":"error","message":"The request queue is full.","type":"SERVICE_UNAVAILABLE","param":null,"code":503}}`, "[DONE]"}, events(body))

	status, _ = c.post("/abort_request", `{"rid":"b-1"}`)
	require.Equal(t, 200, status)
	require.Contains(t, line(t, bufio.NewReader(queued.Body)), `"finish_reason":{"type":"abort","message":"Abort in waiting queue"},"weight_version":"default","e2e_latency":`)

	c.post("/abort_request", `{"abort_all":true}`)
	for {
		if e := line(t, r); !strings.Contains(e, `"finish_reason":null`) {
			require.Contains(t, e, `"finish_reason":{"type":"abort","message":"Aborted","status_code":null,"err_type":null},"prompt_tokens":1`)
			break
		}
	}
	require.Equal(t, "[DONE]", line(t, r))
}

func TestClientThatLeavesIsAborted(t *testing.T) {
	s, c := start(t, slow(), server.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	resp := c.open(ctx, "POST", "/generate", `{"text":"x","stream":true,"sampling_params":{"max_new_tokens":100000}}`)
	line(t, bufio.NewReader(resp.Body))
	cancel()
	resp.Body.Close()
	s.handlers.Wait() // the handler has seen it
	for {
		s.host.mu.Lock()
		busy := s.host.loops.Loops[0].Engine.Busy()
		s.host.mu.Unlock()
		if !busy {
			return
		}
		s.host.waiter.Wake()
	}
}

func TestCloseLetsRequestsFinishOrBreaksThem(t *testing.T) {
	s, c := start(t, slow(), server.Config{})
	resp := c.open(t.Context(), "POST", "/generate", `{"text":"x","stream":true,"sampling_params":{"max_new_tokens":20}}`)
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	line(t, r)
	s.Close(t.Context())
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.HasSuffix(b, []byte("data: [DONE]\n\n")))

	s, c = start(t, slow(), server.Config{})
	resp = c.open(t.Context(), "POST", "/generate", `{"text":"x","stream":true,"sampling_params":{"max_new_tokens":100000}}`)
	defer resp.Body.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Close(ctx)
	_, err = io.ReadAll(resp.Body)
	require.Error(t, err)
}

func TestLauncher(t *testing.T) {
	l := Launcher(quick())
	_, err := l.Launch(t.Context(), server.Spec{Name: "server-0", Config: server.Config{Quantization: "fp8", EnableTorchCompile: true,
		MemFractionStatic: 0.8, MaxRunningRequests: -1, ChunkedPrefillSize: -2}})
	for _, field := range []string{"quantization", "enable_torch_compile", "mem_fraction_static", "max_running_requests", "chunked_prefill_size"} {
		require.ErrorContains(t, err, field)
	}
	in, err := l.Launch(t.Context(), server.Spec{Name: "server-0", Config: server.Config{GPUs: []int{0}}})
	require.NoError(t, err)
	_, port, _ := strings.Cut(strings.TrimPrefix(in.URL(), "http://"), ":")
	var n int
	fmt.Sscan(port, &n)
	_, err = l.Launch(t.Context(), server.Spec{Name: "server-1", Config: server.Config{Port: n}})
	require.ErrorContains(t, err, "address already in use")
	require.Equal(t, "quick", in.(server.Simulated).Simulation().Profile)
	c := client{t: t, url: in.URL(), http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	_, body := c.post("/v1/completions", `{"model":"m","prompt":"x"}`)
	require.Contains(t, body, `"metadata":{"weight_version":"server-0"`)
	require.NoError(t, in.Stop(t.Context()))
	require.NoError(t, in.Stop(t.Context()))
	<-in.Exited()
	require.NoError(t, in.Err())
	in, err = l.Launch(t.Context(), server.Spec{Name: "server-1", Config: server.Config{Port: n}})
	require.NoError(t, err, "the port is free again")
	require.NoError(t, in.Stop(t.Context()))
}

// BenchmarkStreams has 256 clients read one token of each every 20 ms, as fast as the host lets them.
func BenchmarkStreams(b *testing.B) {
	p := quick()
	p.Model = Linear{DecodeBase: 20, PrefillBase: 1}
	s, c := start(b, p, server.Config{})
	c.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 256
	done := make(chan int)
	begin := time.Now()
	for range 256 {
		go func() {
			n := 0
			resp, err := c.http.Post(c.url+"/generate", "application/json", strings.NewReader(`{"text":"x","stream":true,"sampling_params":{"max_new_tokens":200}}`))
			if err == nil {
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				n = bytes.Count(b, []byte("data: {"))
			}
			done <- n
		}()
	}
	n := 0
	for range 256 {
		n += <-done
	}
	late := s.StepLateness()
	b.ReportMetric(float64(n)/time.Since(begin).Seconds(), "events/s")
	b.ReportMetric(float64(n)/(256*200), "events/token")
	b.ReportMetric(float64(late.P50.Microseconds()), "late-p50-us")
	b.ReportMetric(float64(late.P99.Microseconds()), "late-p99-us")
}

func TestSlowClientDelaysNobody(t *testing.T) {
	p := quick()
	p.Model = Linear{DecodeBase: 0.02, PrefillBase: 0.02}
	_, c := start(t, p, server.Config{})
	// The whole cumulative stream is 50 MB, more than the sockets hold; nobody reads it.
	stuck := c.open(t.Context(), "POST", "/generate", `{"text":"x","stream":true,"rid":"stuck","sampling_params":{"max_new_tokens":4000,"ignore_eos":true}}`)
	defer stuck.Body.Close()
	for range 3 {
		_, body := c.post("/generate", `{"text":"x","sampling_params":{"max_new_tokens":2000,"ignore_eos":true}}`)
		require.Contains(t, body, `"completion_tokens":2000`)
	}
}

// A control call that does not say that it is JSON changes nothing: SGLang's FastAPI takes its body as bytes, and no web page
// can say so to another server without asking first.
func TestBodiesAreJSONOnly(t *testing.T) {
	for _, version := range []string{"0.5.15.post1", "0.5.23"} {
		s, c := start(t, quick(), server.Config{}, WithVersion(version))
		for path, body := range map[string]string{
			"/set_internal_state": `{"server_args":{"pp_max_micro_batch_size":7}}`, "/pause_generation": `{"mode":"in_place"}`, "/slow_down": `{"forward_sleep_time":5}`,
			"/update_weight_version": `{"new_version":"evil"}`, "/start_profile": `{}`, "/generate": `{"text":"x","sampling_params":{"max_new_tokens":1}}`,
			"/tokenize": `{"prompt":"x"}`, "/abort_request": `{"abort_all":true}`, "/configure_logging": `{}`,
		} {
			for kind, ok := range map[string]bool{
				"text/plain": false, "application/x-www-form-urlencoded": false, "multipart/form-data; boundary=x": false, "": version == "0.5.15.post1",
				"application/json": true, "Application/JSON; charset=utf-8": true, "application/vnd.api+json": true,
			} {
				if ok && path != "/generate" {
					continue // the state shall stay
				}
				req, err := http.NewRequest("POST", c.url+path, strings.NewReader(body))
				require.NoError(t, err)
				req.Header.Set("Content-Type", kind)
				resp, err := c.http.Do(req)
				require.NoError(t, err)
				b, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				resp.Body.Close()
				if ok {
					require.Equal(t, 200, resp.StatusCode, "%s %q: %s", path, kind, b)
					continue
				}
				require.Equal(t, 400, resp.StatusCode, "%s %q", path, kind)
				require.Contains(t, string(b), "Input should be a valid dictionary or object to extract fields from")
			}
		}
		require.NotEqual(t, 7, s.EngineConfig().MaxRunningRequests)
		require.False(t, s.host.isPaused())
	}
}
