package sim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

// tiny is the server of the recordings without a GPU.
func tiny(t testing.TB, version string) (*tokensOf, client) {
	p := quick()
	p.ModelPath, p.KVTokens, p.ContextLength, p.MaxRunning = "tiny-llama", 30000, 4096, 64
	p.Model = Linear{DecodeBase: 8, PrefillBase: 2}
	r, err := releaseOf(version)
	require.NoError(t, err)
	if p.ChunkedSize = 4096; r.patch < 21 {
		p.ChunkedSize = 2048
	}
	w := newTokensOf()
	_, c := start(t, p, server.Config{MaxTotalTokens: 20000, MaxRunningRequests: 64, EnableMetrics: true}, WithVersion(version), WithObserver(w),
		WithServerArgs(map[string]any{"device": "cpu", "dtype": "float32", "attention_backend": "torch_native"}))
	return w, c
}

// elsewhere are recordings of what another test compares.
var elsewhere = map[string]string{
	"metrics": "metrics", "v1_loads": "load snapshot", "v1_loads_busy": "load snapshot", "v1_loads_core": "load snapshot",
	"v1_loads_prometheus": "load snapshot", "get_load": "load snapshot",
	"sigterm_health": "a draining server, below", "sigterm_inflight": "a draining server, below",
}

// counts are free in answers that were cut off at a moment of the recording.
var counts = map[string]string{"completion_tokens": "a moment", "end": "a moment", "total_tokens": "a moment", "output_token_logprobs_length": "a moment",
	"num_retractions": "a moment"}

func TestAnswersAreThoseOfRecordedVersions(t *testing.T) {
	for _, version := range []string{"0.5.15.post1", "0.5.18", "0.5.21", "0.5.23"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			dir := refdata.Path(t, "sglang-cpu/"+version)
			files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
			require.NoError(t, err)
			require.Greater(t, len(files), 50)
			w, c := tiny(t, version)
			seen := map[string]bool{}
			for _, file := range files {
				name := strings.TrimSuffix(filepath.Base(file), ".txt")
				if elsewhere[name] != "" || seen[name] {
					continue
				}
				t.Run(name, func(t *testing.T) {
					raw, err := os.ReadFile(file)
					require.NoError(t, err)
					want := readAnswer(t, raw)
					c := c
					c.t = t
					var free map[string]string
					got := again(t, c, want, func() (got answer) {
						got, free = replayCPU(t, w, c, name, want)
						return got
					})
					check(t, want, got, free, false)
				})
			}
		})
	}
}

// meta are the counts of a recorded answer of /generate that its request and history decide.
type meta struct {
	Meta struct {
		Prompt     int `json:"prompt_tokens"`
		Cached     int `json:"cached_tokens"`
		Completion int `json:"completion_tokens"`
	} `json:"meta_info"`
}

var promptIDs atomic.Int32

// like returns a prompt of as many tokens as a recorded answer had, of which as many are in the cache.
func like(c client, m meta) string {
	ids := make([]int32, m.Meta.Prompt)
	for i := range ids {
		ids[i] = 100000 + promptIDs.Add(1)
	}
	if k := m.Meta.Cached; k > 0 {
		c.ask(c.t.Context(), "POST", "/generate", fmt.Sprintf(`{"input_ids":%s,"sampling_params":{"max_new_tokens":1}}`, mustJSON(append(slices.Clone(ids[:k]), 7))))
	}
	return string(mustJSON(ids))
}

// replayCPU sends the request of a recording of sglang-cpu.
func replayCPU(t *testing.T, w *tokensOf, c client, name string, want answer) (answer, map[string]string) {
	ctx := t.Context()
	ask := func(method, path, body string) (answer, map[string]string) {
		return c.ask(ctx, method, path, body), nil
	}
	post := func(path, body string) (answer, map[string]string) { return ask("POST", path, body) }
	busy := func(f func()) {
		hold, cancel := context.WithCancel(ctx)
		defer cancel()
		resp := c.open(hold, "POST", "/generate", `{"input_ids":[3,2,1],"stream":true,"sampling_params":{"max_new_tokens":4000,"ignore_eos":true}}`)
		defer resp.Body.Close()
		line(t, bufio.NewReader(resp.Body))
		f()
	}
	const hi = `"messages":[{"role":"user","content":"sixteen bytes ok"}]`
	state := func(args string) (answer, map[string]string) {
		return post("/set_internal_state", `{"server_args":{`+args+`}}`)
	}
	switch name {
	case "health", "health_generate", "ping", "model_info", "get_model_info", "weight_version":
		return ask("GET", "/"+name, "")
	case "root":
		return ask("GET", "/", "")
	case "not_found":
		return ask("GET", "/nope", "")
	case "v1_models":
		return ask("GET", "/v1/models", "")
	case "server_info", "get_server_info":
		return ask("GET", "/"+name, "")
	case "server_info_after_set":
		state(`"pp_max_micro_batch_size":4`)
		got, free := ask("GET", "/server_info", "")
		state(`"pp_max_micro_batch_size":64`)
		return got, free
	case "set_internal_state_4":
		return state(`"pp_max_micro_batch_size":4`)
	case "set_internal_state_64":
		return state(`"pp_max_micro_batch_size":64`)
	case "set_internal_state_string":
		return state(`"pp_max_micro_batch_size":"64"`)
	case "set_internal_state_text":
		return state(`"pp_max_micro_batch_size":"four"`)
	case "set_internal_state_null":
		return state(`"pp_max_micro_batch_size":null`)
	case "set_internal_state_out_of_range":
		return state(`"pp_max_micro_batch_size":100000`)
	case "set_internal_state_unsupported_key":
		return state(`"max_running_requests":4`)
	case "abort_request_unknown":
		return post("/abort_request", `{"rid":"nobody"}`)
	case "abort_request", "abort_request_all":
		return post("/abort_request", `{"abort_all":true}`)
	case "flush_cache":
		return post("/flush_cache", "")
	case "flush_cache_busy":
		var got answer
		busy(func() { got, _ = post("/flush_cache", "") })
		c.post("/abort_request", `{"abort_all":true}`)
		return got, nil
	case "pause_in_place":
		got, free := post("/pause_generation", `{"mode":"in_place"}`)
		c.post("/continue_generation", `{}`)
		return got, free
	case "continue":
		return post("/continue_generation", `{}`)
	case "slow_down":
		got, free := post("/slow_down", `{"forward_sleep_time":0.05}`)
		c.post("/slow_down", `{"forward_sleep_time":null}`)
		return got, free
	case "slow_down_off":
		return post("/slow_down", `{"forward_sleep_time":null}`)
	case "tokenize":
		return post("/tokenize", `{"prompt":"a text of 20 bytes ."}`)
	case "error_no_input":
		return post("/generate", `{"sampling_params":{}}`)
	case "error_temperature":
		return post("/generate", `{"text":"hi","sampling_params":{"temperature":-1}}`)
	case "error_temperature_stream":
		return post("/generate", `{"text":"hi","stream":true,"sampling_params":{"temperature":-1}}`)
	case "error_too_long":
		return post("/generate", `{"text":"hi","sampling_params":{"max_new_tokens":5000}}`)
	case "error_unknown_sampling_key":
		return post("/generate", `{"text":"hi","sampling_params":{"nope":1}}`)
	case "error_json":
		return post("/generate", `{"text":`)
	case "error_chat_content_type":
		return c.ask(ctx, "POST", "/v1/chat/completions", `{"model":"m",`+hi+`}`, "Content-Type", "text/plain"), nil
	case "error_chat_too_long_stream":
		return post("/v1/chat/completions", `{"model":"tiny-llama",`+hi+`,"max_tokens":5000,"stream":true}`)
	case "chat":
		return post("/v1/chat/completions", `{"model":"tiny-llama",`+hi+`,"max_tokens":5}`)
	case "chat_stream":
		return post("/v1/chat/completions", `{"model":"tiny-llama",`+hi+`,"max_tokens":5,"stream":true,"stream_options":{"include_usage":true}}`)
	case "chat_stream_continuous_usage":
		return post("/v1/chat/completions", `{"model":"tiny-llama",`+hi+`,"max_tokens":5,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`)
	case "completions":
		return post("/v1/completions", `{"model":"tiny-llama","prompt":[1,2,3,4,5],"max_tokens":4}`)
	case "completions_stream":
		return post("/v1/completions", `{"model":"tiny-llama","prompt":[1,2,3,4,5],"max_tokens":4,"stream":true,"stream_options":{"include_usage":true}}`)
	}

	// What is left are answers of /generate. Their prompts are made so that the counts must agree.
	streaming := strings.Contains(name, "stream")
	var all []meta
	switch {
	case streaming:
		byIndex := map[int]meta{}
		for _, e := range events(want.body) {
			var m struct {
				meta
				Index int `json:"index"`
			}
			if json.Unmarshal([]byte(e), &m) == nil {
				byIndex[m.Index] = m.meta
			}
		}
		for i := range len(byIndex) {
			all = append(all, byIndex[i])
		}
	case want.body[0] == '[':
		require.NoError(t, json.Unmarshal([]byte(want.body), &all))
	default:
		all = make([]meta, 1)
		require.NoError(t, json.Unmarshal([]byte(want.body), &all[0]))
	}
	prompts := make([]string, len(all))
	for i, m := range all {
		prompts[i] = like(c, m)
	}
	ids := prompts[0]
	if len(all) > 1 {
		ids = "[" + strings.Join(prompts, ",") + "]"
	}
	body := func(sampling, rest string) string {
		return fmt.Sprintf(`{"input_ids":%s,"stream":%t,"sampling_params":{"max_new_tokens":%d%s}%s}`, ids, streaming, all[0].Meta.Completion, sampling, rest)
	}
	switch name {
	case "generate", "generate_stream", "generate_batch_ids", "generate_stream_batch", "generate_slowed":
		return post("/generate", body("", ""))
	case "generate_stream_interval":
		return post("/generate", body(`,"stream_interval":5`, ""))
	case "error_unknown_key":
		return post("/generate", body("", `,"nope":1`))
	case "generate_logprob":
		return post("/generate", body("", `,"return_logprob":true,"top_logprobs_num":2,"return_text_in_logprobs":true`))
	case "generate_stop":
		got, _ := post("/generate", strings.Replace(body(`,"stop":"ird"`, ""), `"max_new_tokens":1,`, `"max_new_tokens":20,`, 1))
		return got, map[string]string{"matched": "a part of the model's output"}
	case "abort_target", "abort_target_stream":
		done := make(chan answer, 1)
		name := fmt.Sprint(name, promptIDs.Load()) // another at each try
		go func() {
			done <- c.ask(ctx, "POST", "/generate", fmt.Sprintf(`{"input_ids":%s,"rid":"%s","stream":%t,"sampling_params":{"max_new_tokens":4000,"ignore_eos":true,"stream_interval":4000}}`, ids, name, streaming))
		}()
		w.wait(name, 4)
		c.post("/abort_request", `{"rid":"`+name+`"}`)
		return <-done, counts
	}
	require.Fail(t, "no request is known for this recording")
	return answer{}, nil
}

// tokensOf lets a test wait for tokens of a request.
type tokensOf struct {
	mu      sync.Mutex
	changed sync.Cond
	n       map[string]int
}

func newTokensOf() *tokensOf {
	w := &tokensOf{n: map[string]int{}}
	w.changed.L = &w.mu
	return w
}

func (w *tokensOf) Batch(Batch) {}

func (w *tokensOf) Retraction(Retraction) {}

func (w *tokensOf) Lost(Loss) {}

func (w *tokensOf) Result(r Result) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n[r.RID] = r.Tokens
	w.changed.Broadcast()
}

// more returns when the request has had that many tokens more.
func (w *tokensOf) more(rid string, n int) {
	w.mu.Lock()
	n += w.n[rid]
	w.mu.Unlock()
	w.wait(rid, n)
}

// wait returns when the request has had that many tokens.
func (w *tokensOf) wait(rid string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.n[rid] < n {
		w.changed.Wait()
	}
}

// h100 is the server of the recordings on an H100.
func h100(t testing.TB) (*Server, *tokensOf, client) {
	p := quick()
	p.ModelPath, p.KVTokens, p.ContextLength, p.MaxRunning = "/tmp/site/model/llama31-8b-dummy", 410620, 131072, 256
	p.Model = Linear{DecodeBase: 3, PrefillBase: 2}
	w := newTokensOf()
	s, c := start(t, p, server.Config{EnableMetrics: true}, WithVersion("0.5.15.post1"), WithObserver(w))
	return s, w, c
}

// unlike are recordings of the H100 that are compared with these keys left out, or not at all.
var unlike = map[string]map[string]string{
	"chat":        {"prompt_tokens": "the chat template of Llama 3", "total_tokens": "the same"},
	"server_info": nil, "server_info_after": nil, "get_server_info": nil, // the arguments of another server; the CPU's are compared
	"model_info":             {"preferred_sampling_params": anything},
	"update_weights_missing": {"message": "SGLang prints an address"},
	"detokenize":             nil,                                                            // needs the vocabulary
	"generate":               {"cached_tokens": anything, "cached_tokens_details": anything}, // the tokenizer's first token, which all texts share
	"generate_batch":         {"cached_tokens": anything, "cached_tokens_details": anything}, // the same
	"generate_stop_string":   {"matched": "the model's output", "completion_tokens": "the model's output"},
}

// The requests of the H100's recordings are there. Those that need others under way come last.
func TestAnswersAreThoseOfRecordedH100(t *testing.T) {
	dir := refdata.Path(t, "sglang-h100/fixtures")
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	require.NoError(t, err)
	var index []struct{ Name, Method, Path string }
	require.NoError(t, json.Unmarshal(raw, &index))
	s, w, c := h100(t)
	recorded := func(name string) (want answer, body string) {
		raw, err := os.ReadFile(filepath.Join(dir, name+".http"))
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
		require.NoError(t, err)
		b, _ := io.ReadAll(resp.Body) // one of them breaks off
		raw, err = os.ReadFile(filepath.Join(dir, name+".request"))
		require.NoError(t, err)
		_, request, _ := strings.Cut(string(raw), "\r\n\r\n")
		return answer{resp.Proto + " " + resp.Status, resp.Header, string(b)}, request
	}
	compared := func(t *testing.T, name string, got answer) {
		want, _ := recorded(name)
		free := map[string]string{}
		maps.Copy(free, unlike[name])
		if strings.HasPrefix(name, "chat") {
			maps.Copy(free, unlike["chat"])
		}
		if strings.Contains(name, "victim") {
			maps.Copy(free, counts)
		}
		check(t, want, got, free, true)
	}
	for _, e := range index {
		_, skip := unlike[e.Name]
		if skip = skip && unlike[e.Name] == nil; skip || elsewhere[e.Name] != "" || strings.Contains(e.Name, "loads") || strings.Contains(e.Name, "metrics") ||
			strings.Contains(e.Name, "pause") || strings.Contains(e.Name, "continue_") && !strings.Contains(e.Name, "usage") || strings.Contains(e.Name, "victim") || e.Name == "flush_cache_busy" {
			continue
		}
		t.Run(e.Name, func(t *testing.T) {
			c := c
			c.t = t
			want, body := recorded(e.Name)
			if strings.Contains(e.Name, "too_long") { // its ids are cut
				key := map[bool]string{true: "prompt", false: "input_ids"}[strings.Contains(e.Name, "completions")]
				body = fmt.Sprintf(`{"%s":%s,"model":"m","stream":%t}`, key, mustJSON(make([]int, 131100)), strings.Contains(e.Name, "stream"))
			}
			var header []string
			if strings.Contains(e.Name, "no_content_type") {
				header = []string{"Content-Type", "text/plain"}
			}
			compared(t, e.Name, again(t, c, want, func() answer { return c.ask(t.Context(), e.Method, e.Path, body, header...) }))
		})
	}

	began := map[string]chan struct{}{} // by name: the answer has begun
	send := func(name string) <-chan answer {
		done := make(chan answer, 1)
		c := c
		c.began = make(chan struct{})
		began[name] = c.began
		_, body := recorded(name)
		for _, e := range index {
			if e.Name == name {
				go func() { done <- c.ask(t.Context(), e.Method, e.Path, body) }()
			}
		}
		return done
	}
	rid := func(name string) string {
		_, body := recorded(name)
		var m struct{ RID string }
		require.NoError(t, json.Unmarshal([]byte(body), &m))
		return m.RID
	}
	// taken returns when the request has had some tokens, and a stream its first event.
	taken := func(name string) {
		w.wait(rid(name), 3)
		if _, body := recorded(name); strings.Contains(body, `"stream": true`) {
			<-began[name]
		}
	}
	t.Run("abort", func(t *testing.T) {
		victims := []string{"abort_victim", "abort_victim_stream", "abort_victim_completions", "abort_victim_chat_stream"}
		var done []<-chan answer
		for _, name := range victims {
			done = append(done, send(name))
			taken(name)
		}
		for _, name := range []string{"flush_cache_busy", "abort_request", "abort_request_unknown", "abort_all"} {
			compared(t, name, <-send(name))
		}
		for i, name := range victims {
			compared(t, name, <-done[i])
		}
	})
	for _, mode := range []string{"in_place", "retract", "abort"} {
		t.Run("pause "+mode, func(t *testing.T) {
			name := "pause_" + mode
			c.post("/slow_down", `{"forward_sleep_time":0.02}`)
			victim := send(name + "_victim")
			taken(name + "_victim")
			compared(t, name, <-send(name))
			c.post("/slow_down", `{"forward_sleep_time":null}`)
			compared(t, name+"_flush", <-send(name+"_flush"))
			held := send(name + "_new_request")
			require.NoError(t, s.waitInFlight(t.Context(), func(n int) bool { return n >= map[bool]int{true: 1, false: 2}[mode == "abort"] }))
			compared(t, "continue_"+mode, <-send("continue_"+mode))
			compared(t, name+"_victim", <-victim)
			compared(t, name+"_new_request", <-held)
		})
	}
}

func TestAnswersAreThoseOfRecordedDraining(t *testing.T) {
	w := newTokensOf()
	s, c := start(t, quick(), server.Config{EnableMetrics: true}, WithObserver(w))
	recorded := func(name string) answer {
		raw, err := os.ReadFile(refdata.Path(t, "sglang-cpu/0.5.23/"+name+".txt"))
		require.NoError(t, err)
		return readAnswer(t, raw)
	}
	want := recorded("sigterm_inflight")
	var m meta
	require.NoError(t, json.Unmarshal([]byte(want.body), &m))
	done := make(chan answer, 1)
	ids := like(c, m)
	go func() {
		done <- c.ask(t.Context(), "POST", "/generate", fmt.Sprintf(`{"input_ids":%s,"rid":"r","sampling_params":{"max_new_tokens":%d,"ignore_eos":true}}`, ids, m.Meta.Completion))
	}()
	w.wait("r", 2)
	s.Drain()
	check(t, recorded("sigterm_health"), c.ask(t.Context(), "GET", "/health", ""), nil, false)
	check(t, want, <-done, nil, false)
}
