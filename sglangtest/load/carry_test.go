package load

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// generated returns the requests of a file of JSON lines.
func generated(t *testing.T, lines string) ([]Request, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "w.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(lines), 0o600))
	g, err := NewRequestGenerator(JSONLines(path), WithArrivals(Constant(10)))
	require.NoError(t, err)
	var reqs []Request
	for r, err := range g.Requests() {
		if err != nil {
			return reqs, err
		}
		reqs = append(reqs, r)
	}
	return reqs, nil
}

// What a line says beside its prompt stands in the request that leaves, on every API, as SGLang names it.
func TestCarriedReachesTheWire(t *testing.T) {
	reqs, err := generated(t, `{"prompt":"p","output_len":1}
{"prompt":"p","output_len":1,"priority":0,"deadline":1.5,"tenant":"t","session":"s","lora_path":"sql","routed_dp_rank":0,"extra":{"rid":"r","cache_salt":"a"},"header":{"x-smg-routing-key":"k","traceparent":"00-1"}}`)
	require.NoError(t, err)
	require.Equal(t, reqs[1].Arrival+1500*time.Millisecond, reqs[1].Deadline)
	require.Equal(t, []string{"t", "s", "sql"}, []string{reqs[1].Tenant, reqs[1].Session, reqs[1].LoRA})

	for _, api := range []API{Generate, Completions, ChatCompletions} {
		var body map[string]any
		var header http.Header
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			raw, _ := io.ReadAll(r.Body)
			body, header = nil, r.Header
			if json.Unmarshal(raw, &body) != nil {
				t.Errorf("not JSON: %s", raw)
			}
		}))
		s, err := NewSender(srv.URL, WithAPI(api), WithHeader("X-Run", "1"))
		require.NoError(t, err)
		names := []string{"priority", "lora_path", "routed_dp_rank", "rid", "cache_salt"}
		s.Do(t.Context(), NewClock(time.Now()), &reqs[0], new(Result))
		for _, name := range names {
			require.NotContains(t, body, name, api)
		}
		s.Do(t.Context(), NewClock(time.Now()), &reqs[1], new(Result))
		for i, want := range []any{0.0, "sql", 0.0, "r", "a"} {
			require.Equal(t, want, body[names[i]], "%s: %s", api, names[i])
		}
		require.Equal(t, []string{"k", "00-1", "1", "application/json"},
			[]string{header.Get("X-SMG-Routing-Key"), header.Get("traceparent"), header.Get("X-Run"), header.Get("Content-Type")})
		s.Do(t.Context(), NewClock(time.Now()), &reqs[0], new(Result))
		require.Empty(t, header.Get("X-SMG-Routing-Key"), "a header of another request")

		var res Result
		s.Do(t.Context(), NewClock(time.Now()), &Request{Prompt: Prompt{Text: "p"}, OutputLen: 1, Header: map[string]string{"x-run": "2"}}, &res)
		require.Equal(t, OutcomeRejected, res.Outcome)
		require.Contains(t, res.Message, `"x-run"`)
		s.Close()
		srv.Close()
	}
}

func TestToolsAndContentPartsOfAChat(t *testing.T) {
	const messages = `[{"role":"user","content":[{"type":"text","text":"what?"},{"type":"image_url","image_url":{"url":"http://h/a.png"}}]},` +
		`{"role":"assistant","content":"","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},` +
		`{"role":"tool","content":"4","tool_call_id":"c"}]`
	const tools = `[{"type":"function","function":{"name":"f","parameters":{}}}]`
	reqs, err := generated(t, `{"messages":`+messages+`,"output_len":1,"extra":{"tools":`+tools+`}}`)
	require.NoError(t, err)
	require.Equal(t, "what?", reqs[0].Prompt.Messages[0].Content)

	var body map[string]json.RawMessage
	rt := roundTripper(func(r *http.Request) (*http.Response, error) {
		body = nil
		require.NoError(t, json.NewDecoder(r.Body).Decode(&body))
		return nil, io.EOF
	})
	s, err := NewSender("http://h", WithAPI(ChatCompletions), WithTransport(rt))
	require.NoError(t, err)
	s.Do(t.Context(), NewClock(time.Now()), &reqs[0], new(Result))
	require.JSONEq(t, messages, string(body["messages"]))
	require.JSONEq(t, tools, string(body["tools"]))

	// A message reads what it writes.
	raw, err := json.Marshal(reqs[0].Prompt)
	require.NoError(t, err)
	var back Prompt
	require.NoError(t, json.Unmarshal(raw, &back))
	require.Equal(t, reqs[0].Prompt, back)

	// Prompts that differ in what is no text share nothing from there on.
	other := Prompt{Messages: append([]Message(nil), back.Messages...)}
	other.Messages[0].Parts = json.RawMessage(`[{"type":"text","text":"what?"},{"type":"image_url","image_url":{"url":"http://h/b.png"}}]`)
	require.Zero(t, NewKey(&back, 0).Common(NewKey(&other, 0)))

	for _, api := range []API{Generate, Completions} {
		s, err := NewSender("http://h", WithAPI(api), WithTransport(rt))
		require.NoError(t, err)
		var res Result
		s.Do(t.Context(), NewClock(time.Now()), &Request{Prompt: Prompt{Text: "p"}, OutputLen: 1, Extra: reqs[0].Extra}, &res)
		require.Equal(t, OutcomeRejected, res.Outcome)
		require.Contains(t, res.Message, `extra member "tools": `+api.path()+" ignores it")
	}
}

func TestCarriedIsRefusedWhereItStands(t *testing.T) {
	for member, want := range map[string]string{
		`"extra":{"stream":false}`:                         `extra member "stream" would overwrite`,
		`"extra":{"input_ids":[1]}`:                        `extra member "input_ids" would overwrite`,
		`"extra":{"max_completion_tokens":1}`:              `extra member "max_completion_tokens" would overwrite`,
		`"extra":{"temperature":0}`:                        "belongs to the sampling parameters",
		`"extra":{"seed":0}`:                               "as sampling_seed",
		`"extra":{"data_parallel_rank":0}`:                 "use routed_dp_rank",
		`"extra":{"priority":1,"lora_path":"a"}`:           `extra member "priority"`,
		`"header":{"content-TYPE":"text/plain"}`:           `header "content-TYPE" is not the request's to set`,
		`"header":{"Host":"h"}`:                            `header "Host"`,
		`"header":{"x-data-parallel-rank":"1"}`:            "use routed_dp_rank",
		`"header":{"a b":"1"}`:                             "is no name of a header",
		`"header":{"":"1"}`:                                "is no name of a header",
		`"header":{"a":"1\n2"}`:                            "control characters",
		`"header":{"x-a":"1","X-A":"2"}`:                   "are one",
		`"header":{"x-a":1}`:                               "header",
		`"routed_dp_rank":-1`:                              "routed_dp_rank -1: want ≥ 0",
		`"priority":1.5`:                                   "priority",
		`"deadline":0`:                                     "deadline 0: want > 0",
		`"deadline":-1`:                                    "deadline -1",
		`"lora":"a"`:                                       `unknown key "lora"`,
		`"messages":[{"role":"user","content":[{"t":1}]}]`: "content[0]: want a type",
		`"messages":[{"role":"user","content":[]}]`:        "the list of parts is empty",
		`"messages":[{"role":"user","content":3}]`:         "want a text or a list of parts",
	} {
		prompt := `"prompt":"p",`
		if member[1] == 'm' {
			prompt = ""
		}
		_, err := generated(t, `{"prompt":"p","output_len":1}`+"\n{"+prompt+`"output_len":1,`+member+"}")
		require.ErrorContains(t, err, want, member)
		require.ErrorContains(t, err, "w.jsonl:2", member)
	}
}

func TestBodiesCostNothingForWhatTheyDoNotCarry(t *testing.T) {
	s, err := NewSender("http://h")
	require.NoError(t, err)
	req := Request{Prompt: Prompt{Text: "p"}, OutputLen: 1}
	fields, err := s.samplingOf(&req)
	require.NoError(t, err)
	b := make([]byte, 0, 1024)
	require.Zero(t, testing.AllocsPerRun(100, func() { b, _ = s.appendBody(b[:0], &req, fields) }))
	p, err := s.place("http://h")
	require.NoError(t, err)
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = p.headerOf(&req) }))
}

// The shapes are those of SGLang 0.5.23: managers/scheduler_components/output_streamer.py and entrypoints/openai/protocol.py (SglExt).
func TestCachedTokensByTier(t *testing.T) {
	const usage = `"usage":{"prompt_tokens":9,"completion_tokens":1}`
	const details = `{"device":5,"host":2,"storage":1,"storage_backend":"HiCacheFile"}`
	three := CachedTiers{Reported: true, Device: 5, Host: 2, Storage: 1}
	for _, c := range []struct {
		api    API
		answer string
		want   CachedTiers
	}{
		{Generate, `{"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"},"cached_tokens":8,"cached_tokens_details":` + details + `}}`, three},
		{Generate, `{"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"},"cached_tokens":5,"cached_tokens_details":{"device":5,"host":0}}}`, CachedTiers{Reported: true, Device: 5}},
		{Generate, `{"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"},"cached_tokens":0,"cached_tokens_details":null}}`, CachedTiers{}},
		{Completions, `{"choices":[{"text":"a","finish_reason":"length"}],` + usage + `,"sglext":{"cached_tokens_details":` + details + `}}`, three},
		{ChatCompletions, `{"choices":[{"message":{"content":"a"},"finish_reason":"length"}],` + usage + `,"sglext":{"routed_experts":"x","cached_tokens_details":` + details + `}}`, three},
		{ChatCompletions, `{"choices":[{"message":{"content":"a"},"finish_reason":"length"}],` + usage + `,"sglext":null}`, CachedTiers{}},
	} {
		for _, stream := range []bool{false, true} {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if !stream {
					io.WriteString(w, c.answer)
					return
				}
				w.Header().Set("Content-Type", "text/event-stream")
				io.WriteString(w, "data: "+c.answer+"\n\ndata: [DONE]\n\n")
			}))
			s, err := NewSender(srv.URL, WithAPI(c.api), WithStreaming(stream))
			require.NoError(t, err)
			var res Result
			s.Do(t.Context(), NewClock(time.Now()), &Request{Prompt: Prompt{Text: "p"}, OutputLen: 1}, &res)
			require.Equal(t, OutcomeOK, res.Outcome, res.Message)
			require.Equal(t, c.want, res.CachedTiers, c.answer)
			s.Close()
			srv.Close()
		}
	}
}
