package sim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/stretchr/testify/require"
)

func TestStops(t *testing.T) {
	_, c := start(t, quick(), server.Config{})
	for _, tc := range []struct{ sampling, text, finish string }{
		{`"stop":"lake"`, " bird tree ", `{"type":"stop","matched":"lake"}`},
		{`"stop":["zebra","ake ra"],"no_stop_trim":true`, " bird tree lake rain", `{"type":"stop","matched":"ake ra"}`},
		{`"stop_token_ids":[1002,5]`, " bird tree", `{"type":"stop","matched":1002}`},
		{`"stop_token_ids":[1002],"ignore_eos":true`, " bird tree lake rain salt moon", `{"type":"length","length":6}`},
		{`"stop":"lake","min_new_tokens":4`, " bird tree lake rain salt moon", `{"type":"length","length":6}`},
	} {
		_, body := c.post("/generate", `{"text":"x","sampling_params":{"max_new_tokens":6,`+tc.sampling+`}}`)
		require.Contains(t, body, `{"text":"`+tc.text+`",`)
		require.Contains(t, body, `"finish_reason":`+tc.finish)
	}
	_, body := c.post("/v1/completions", `{"model":"m","prompt":"x","stop":"lake"}`)
	require.Contains(t, body, `"text":" bird tree ","logprobs":null,"finish_reason":"stop","matched_stop":"lake"}`)
}

func TestStreamInterval(t *testing.T) {
	p := quick()
	p.Model = Linear{DecodeBase: 5, PrefillBase: 1}
	_, c := start(t, p, server.Config{StreamInterval: 4})
	tokens := func(body string) (n []int) {
		for _, e := range events(body) {
			var k int
			if i := strings.Index(e, `"completion_tokens":`); i >= 0 {
				fmt.Sscanf(e[i:], `"completion_tokens":%d`, &k)
				n = append(n, k)
			}
		}
		return n
	}
	for _, r := range []struct {
		sampling string
		want     []int
	}{{`"max_new_tokens":11`, []int{1, 5, 9, 11}}, {`"max_new_tokens":11,"stream_interval":10`, []int{1, 11}}} {
		_, body := c.post("/generate", `{"text":"x","stream":true,"sampling_params":{`+r.sampling+`}}`)
		require.Subset(t, r.want, tokens(body), "a busy machine joins events")
		require.Equal(t, 11, slices.Max(tokens(body)))
	}
}

func TestLogprobs(t *testing.T) {
	_, c := start(t, quick(), server.Config{IncrementalStreamingOutput: true})
	_, body := c.post("/generate", `{"input_ids":[7,8,9],"return_logprob":true,"logprob_start_len":1,"top_logprobs_num":1,"token_ids_logprob":[5],"sampling_params":{"max_new_tokens":2}}`)
	require.Contains(t, body, `"num_retractions":0,"input_token_logprobs":[[null,8,null],[-0.375,9,null]],"output_token_logprobs":[[-0.125,1000,null],[-0.25,1001,null]],`+
		`"output_token_logprobs_length":2,"input_top_logprobs":[null,[[-0.375,9,null]]],"output_top_logprobs":[[[-0.125,1000,null]],[[-0.25,1001,null]]],`+
		`"input_token_ids_logprobs":[null,[[-0.625,5,null]]],"output_token_ids_logprobs":[[[-0.375,5,null]],[[-0.5,5,null]]],"reasoning_tokens":0`)
	_, body = c.post("/v1/completions", `{"model":"m","prompt":"x","max_tokens":2,"logprobs":2}`)
	require.Contains(t, body, `"logprobs":{"text_offset":[-1,-1],"token_logprobs":[-0.125,-0.25],"tokens":[" bird"," tree"],"top_logprobs":[{" bird":-0.125," tree":-0.375},{" tree":-0.25," lake":-0.5}]},"finish_reason":"length"`)
	_, body = c.post("/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1,"logprobs":true,"top_logprobs":1}`)
	const token = `"token":" bird","bytes":[32,98,105,114,100],"logprob":-0.125`
	require.Contains(t, body, `"logprobs":{"content":[{`+token+`,"top_logprobs":[{`+token+`}]}]},"finish_reason":"length"`)
	_, body = c.post("/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1,"logprobs":true,"stream":true}`)
	require.Contains(t, body, `"content":" bird"},"logprobs":{"content":[{`+token+`,"top_logprobs":[]}]},"finish_reason":null`)
	_, body = c.post("/generate", `{"text":"x","stream":true,"return_logprob":true,"sampling_params":{"max_new_tokens":6}}`)
	n := 0
	for _, e := range events(body) {
		_, list, _ := strings.Cut(e, `"output_token_logprobs":[`)
		list, _, _ = strings.Cut(list, `],"output`)
		n += strings.Count(list, "null")
	}
	require.Equal(t, 6, n, "the lists are deltas, too")
}

func TestSeveralAnswers(t *testing.T) {
	_, c := start(t, quick(), server.Config{Args: server.Args{"enable_cache_report": true}})
	_, body := c.post("/v1/completions", `{"model":"m","prompt":[[1,2,3,4],[5,6]],"n":2,"max_tokens":3,"echo":true}`)
	require.Equal(t, 4, strings.Count(body, `"finish_reason":"length"`))
	require.Contains(t, body, `"usage":{"prompt_tokens":6,"total_tokens":18,"completion_tokens":12,"prompt_tokens_details":{"cached_tokens":4},`)
	_, body = c.post("/generate", `{"text":["a","b"],"rid":"r","stream":true,"sampling_params":{"max_new_tokens":3}}`)
	require.Contains(t, body, `"id":"r_1"`)
	require.Contains(t, body, `},"index":1}`)
	_, body = c.post("/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":2,"n":2,"stream":true}`)
	for i := range 2 {
		require.Equal(t, 1, strings.Count(body, fmt.Sprintf(`"choices":[{"index":%d,"delta":{"reasoning_content":null,"role":"assistant"`, i)))
	}
	_, body = c.post("/v1/completions", `{"model":"m","prompt":"say \"x\"","max_tokens":1,"echo":true,"stream":true}`)
	require.Contains(t, body, `"text":"say \"x\" bird"`)
	status, body := c.post("/generate", `{"text":"x","sampling_params":{"n":5000}}`)
	require.Equal(t, 400, status, body)
}

func TestFaultsOfBodies(t *testing.T) {
	_, c := start(t, quick(), server.Config{}, WithVersion("0.5.21"))
	for _, tc := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/generate", ``, 400, `{'type': 'missing', 'loc': ('body',), 'msg': 'Field required', 'input': None}`},
		{"/generate", `[1]`, 400, `'input': [1]}`},
		{"/generate", `{"text":"x"} y`, 400, `'loc': ('body', 13), 'msg': 'JSON decode error', 'input': {}, 'ctx': {'error': 'unexpected character'}`},
		{"/generate", `{"text":"x","stream":"maybe"}`, 400, `{'type': 'bool_parsing', 'loc': ('body', 'stream'), 'msg': 'Input should be a valid boolean, unable to interpret input', 'input': 'maybe'}`},
		{"/generate", `{"text":"x","sampling_params":{"max_new_tokens":"3"}}`, 500, `Internal Server Error`},
		{"/generate", `{"text":"x","sampling_params":{"max_new_tokens":3.0}}`, 200, `"completion_tokens":3`},
		{"/v1/completions", `{"prompt":"x","max_tokens":"3"}`, 200, `"model":"default"`},
		{"/v1/completions", `{"prompt":"x","max_tokens":2.5}`, 400, `int_from_float`},
		{"/v1/completions", `{"prompt":"x","max_tokens":0}`, 400, `'msg': 'Value error, max_tokens must be positive', 'input': 0`},
		{"/v1/completions", `{"prompt":""}`, 400, `Prompt cannot be empty`},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"x"}],"max_tokens":-1}`, 400, `max_new_tokens must be at least 0, got -1.`},
		{"/slow_down", `{"forward_sleep_time":-1}`, 200, `null`},
		{"/v1/completions", `{"prompt":{"it's":[true,null,1.5]}}`, 400, `'input': {\"it's\": [True, None, 1.5]}`},
		{"/v1/chat/completions", `{"messages":[]}`, 400, `Messages cannot be empty.`},
		{"/slow_down", `{"forward_sleep_time":"x"}`, 400, `float_parsing`},
		{"/pause_generation", `{"mode":"stop"}`, 400, `Input should be 'abort', 'retract' or 'in_place'`},
		{"/abort_request", `{"rid":5}`, 400, `string_type`},
		{"/update_weight_version", `{}`, 400, `'new_version'`},
		{"/update_weight_version", `{"new_version":"v2"}`, 200, `{"success":true,"message":"Weight version updated to v2","new_version":"v2"}`},
		{"/tokenize", `{}`, 400, `'prompt'`},
		{"/detokenize", `{"tokens":[1000,1001,5]}`, 200, `{"text":" bird tree t5"}`},
		{"/v1/models/nope", ``, 405, `Method Not Allowed`},
		{"/start_profile", ``, 200, "Start profiling.\n"},
		{"/stop_profile", ``, 200, "Stop profiling. This will take some time.\n"},
	} {
		status, body := c.post(tc.path, tc.body)
		require.Equal(t, tc.status, status, tc.path+tc.body+body)
		require.Contains(t, body, tc.want, tc.path+tc.body)
	}
	_, body := c.post("/generate", `{"text":"x","sampling_params":{"max_new_tokens":1}}`)
	require.Contains(t, body, `"weight_version":"v2"`)
	_, body = c.do("GET", "/v1/models/"+quick().ModelPath, "")
	require.Contains(t, body, `"max_model_len":131072}`)
}

// unstarted is a server whose engine does not run: what a request says is read and answered, if it can be at once.
func unstarted(f testing.TB, version string) *Server {
	s, err := NewServer(quick(), server.Config{}, WithVersion(version))
	require.NoError(f, err)
	require.NoError(f, s.host.begin())
	f.Cleanup(func() { s.abandon(); s.host.stop() })
	return s
}

func FuzzGenerate(f *testing.F) {
	s := []*Server{unstarted(f, "0.5.15.post1"), unstarted(f, "0.5.23")}
	for _, seed := range []string{`{"text":"x","rid":"a","stream":true,"sampling_params":{"max_new_tokens":3,"stop":["a"],"stop_token_ids":[1],"n":2}}`,
		`{"input_ids":[[1,2],[3]],"return_logprob":true,"logprob_start_len":0,"top_logprobs_num":[2],"token_ids_logprob":[4]}`, `{"text":["a","b"],"rid":["c","d"]}`, `{"text":`, `[]`, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, s := range s {
			fields := map[string]jsonRaw{}
			if s.decode(body, &fields) != nil {
				continue
			}
			var d demand
			if s.parseGenerate(fields, &d) != nil {
				continue
			}
			c, err := s.newCall(d, s.host.start)
			if err != nil {
				continue
			}
			requireJSON(t, native{s}.appendAnswer(nil, finished(c)))
		}
	})
}

func FuzzOpenAI(f *testing.F) {
	s := []*Server{unstarted(f, "0.5.15.post1"), unstarted(f, "0.5.23")}
	for _, seed := range []string{`{"model":"m","prompt":"x","max_tokens":3,"n":2,"stream":true,"stream_options":{"include_usage":true},"echo":true,"logprobs":2}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"logprobs":true,"top_logprobs":3}`, `{"prompt":[[1],[2]]}`, `{"prompt":5}`, `{}`, ` { } `} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, s := range s {
			for _, chat := range []bool{false, true} {
				fields := map[string]jsonRaw{}
				if s.decode(body, &fields) != nil {
					continue
				}
				d, o := demand{n: 1}, openAI{s: s, chat: chat}
				if s.parseOpenAI(body, fields, &d, &o) != nil {
					continue
				}
				c, err := s.newCall(d, s.host.start)
				if err != nil {
					continue
				}
				requireJSON(t, o.appendAnswer(nil, finished(c)))
			}
		}
	})
}

// FuzzControl sends a body to each route that takes one and answers at once.
func FuzzControl(f *testing.F) {
	s := unstarted(f, "0.5.23")
	paths := []string{"/set_internal_state", "/abort_request", "/pause_generation", "/continue_generation", "/update_weight_version",
		"/update_weights_from_disk", "/tokenize", "/detokenize", "/configure_logging", "/start_profile", "/flush_cache"}
	for _, seed := range []string{`{"server_args":{"pp_max_micro_batch_size":"4"}}`, `{"rid":"a","abort_all":"true"}`, `{"mode":"abort"}`, `{"new_version":"x"}`,
		`{"prompt":"x","messages":[{"content":"y"}]}`, `{"tokens":[1000,7]}`, "{\"a'\":\"\\u0000\n"} {
		f.Add([]byte(seed), "timeout=0")
	}
	f.Fuzz(func(t *testing.T, body []byte, query string) {
		for _, path := range paths {
			r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(string(body)))
			if !strings.Contains(query, "timeout") || len(query) < 12 { // it would wait for a large one if it could
				r.URL.RawQuery = query
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			require.Contains(t, []int{200, 400}, w.Code)
			if w.Header().Get("Content-Type") == "application/json" {
				requireJSON(t, w.Body.Bytes())
			}
		}
	})
}

type jsonRaw = json.RawMessage

// requireJSON demands what every JSON parser takes. Strings keep what bytes they came with, if these were no UTF-8.
func requireJSON(t *testing.T, b []byte) {
	t.Helper()
	require.True(t, json.Valid(b), "%q", b)
}

// finished is a call whose streams have come to an end, with few tokens.
func finished(c *call) *call {
	for _, st := range c.streams {
		st.got = progress{tokens: min(3, st.req.MaxNewTokens), cached: 1, finish: finishedByLength}
		if st.stop.after > 0 {
			st.got.finish = finishedByStop
		}
	}
	return c
}

// The places and nulls are those of a real 0.5.23, and the errors those of serving_completions.py of 0.5.15 and 0.5.18, which look for
// a field that is not there.
func TestEchoWithLogprobs(t *testing.T) {
	_, c := start(t, quick(), server.Config{})
	choice := func(body string) string {
		_, after, ok := strings.Cut(body, `"logprobs":`)
		require.True(t, ok, body)
		before, _, _ := strings.Cut(after, `,"finish_reason"`)
		return before
	}
	const prompt = `{"model":"m","prompt":[5,6,7],"echo":true,"max_tokens":2`
	_, body := c.post("/v1/completions", prompt+`,"logprobs":1}`)
	require.Contains(t, body, `"text":" t5 t6 t7 bird tree"`)
	require.JSONEq(t, `{"text_offset":[-1,-1,-1,-1,-1],"token_logprobs":[null,-0.25,-0.375,-0.125,-0.25],"tokens":[" t5"," t6"," t7"," bird"," tree"],
		"top_logprobs":[null,{" t6":-0.25},{" t7":-0.375},{" bird":-0.125},{" tree":-0.25}]}`, choice(body))
	_, body = c.post("/v1/completions", prompt+`,"logprobs":1,"stream":true}`)
	e := events(body)
	require.Contains(t, e[0], `"text":" t5 t6 t7 bird"`)
	require.Contains(t, choice(e[0]), `"token_logprobs":[null,-0.25,-0.375,-0.125]`)
	require.JSONEq(t, `{"text_offset":[-1],"token_logprobs":[-0.25],"tokens":[" tree"],"top_logprobs":[{" tree":-0.25}]}`, choice(e[1]))
	_, body = c.post("/v1/completions", prompt+`,"logprobs":0}`)
	require.JSONEq(t, `{"text_offset":[-1,-1],"token_logprobs":[-0.125,-0.25],"tokens":[" bird"," tree"],"top_logprobs":[]}`, choice(body))

	_, c = start(t, quick(), server.Config{}, WithVersion("0.5.18"))
	for _, stream := range []string{"", `,"stream":true`} {
		status, body := c.post("/v1/completions", prompt+`,"logprobs":0`+stream+`}`)
		require.Equal(t, 500, status)
		require.Equal(t, `{"object":"error","message":"Internal server error: 'input_top_logprobs'","type":"InternalServerError","param":null,"code":500}`, body)
	}
}
