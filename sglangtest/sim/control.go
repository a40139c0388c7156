package sim

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A route is one path of the API. Its methods are as in SGLang's Allow header.
type route struct {
	methods string
	serve   func(*Server, http.ResponseWriter, *http.Request)
}

func (r route) allows(method string) bool {
	for m := range strings.SplitSeq(r.methods, ", ") {
		if m == method {
			return true
		}
	}
	return false
}

var routes = map[string]route{
	"/":                    {"GET", (*Server).root},
	"/health":              {"GET", (*Server).health},
	"/health_generate":     {"GET", (*Server).health},
	"/ping":                {"GET", (*Server).health},
	"/ready":               {"GET", (*Server).health},
	"/model_info":          {"GET", (*Server).modelInfo},
	"/get_model_info":      {"GET", (*Server).modelInfo},
	"/server_info":         {"GET", (*Server).serverInfo},
	"/get_server_info":     {"GET", (*Server).serverInfo},
	"/v1/models":           {"GET", (*Server).models},
	"/v1/loads":            {"GET", (*Server).loads},
	"/metrics":             {"GET", (*Server).metrics},
	"/flush_cache":         {"GET, POST", (*Server).flushCache},
	"/abort_request":       {"POST", (*Server).abortRequest},
	"/set_internal_state":  {"PUT, POST", (*Server).setInternalState},
	"/tokenize":            {"POST", (*Server).tokenize},
	"/v1/tokenize":         {"POST", (*Server).tokenize},
	"/generate":            {"PUT, POST", (*Server).generate},
	"/v1/completions":      {"POST", (*Server).completions},
	"/v1/chat/completions": {"POST", (*Server).chat},
}

func (s *Server) root(w http.ResponseWriter, _ *http.Request) {
	writeBody(w, http.StatusOK, "application/json", []byte(`"SGLang is running"`))
}

// health answers at once. (SGLang makes a generation for /health, which takes a second or more.)
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	status := http.StatusOK
	if s.status.Load() != statusUp {
		status = http.StatusServiceUnavailable
	}
	writeBody(w, status, "", nil)
}

func (s *Server) writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("sim: marshal: " + err.Error()) // only maps, strings and finite numbers are passed
	}
	writeBody(w, http.StatusOK, "application/json", b)
}

type object = map[string]any

func (s *Server) modelInfo(w http.ResponseWriter, _ *http.Request) {
	s.writeJSON(w, object{"model_path": s.cfg.ModelPath, "served_model_name": s.cfg.ServedModelName, "tokenizer_path": s.cfg.TokenizerPath,
		"is_generation": true, "preferred_sampling_params": nil, "weight_version": s.opts.weightVersion, "load_format": "dummy",
		"reasoning_parser": nil, "tool_call_parser": nil, "disaggregation_mode": "null", "has_image_understanding": false,
		"has_audio_understanding": false, "model_type": "llama", "architectures": []string{"LlamaForCausalLM"}})
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	s.writeJSON(w, object{"object": "list", "data": []object{{"id": s.cfg.ServedModelName, "object": "model", "created": time.Now().Unix(),
		"owned_by": "sglang", "root": s.cfg.ServedModelName, "parent": nil, "max_model_len": s.host.loop.Engine.Config().ContextLength}}})
}

// limitValue is the limit as JSON: SGLang keeps an integer an integer.
func limitValue(v float64) any {
	if v == float64(int(v)) {
		return int(v)
	}
	return v
}

// serverInfo is /server_info: the arguments that are simulated, the engine's state, and under "simulated" by what.
func (s *Server) serverInfo(w http.ResponseWriter, _ *http.Request) {
	s.host.mu.Lock()
	e := s.host.loop.Engine
	ec, state, late, rate, maxInput := e.Config(), e.State(), s.host.late.summary(), s.host.rate.perSecond, e.MaxInputLen()
	s.host.mu.Unlock()
	orNull := func(v int) any {
		if v == 0 {
			return nil
		}
		return v
	}
	args := func(limit any) object {
		return object{"model_path": s.cfg.ModelPath, "tokenizer_path": s.cfg.TokenizerPath, "served_model_name": s.cfg.ServedModelName,
			"host": s.cfg.Host, "port": s.cfg.Port, "load_format": "dummy", "context_length": ec.ContextLength,
			"max_running_requests": ec.MaxRunningRequests, "max_queued_requests": orNull(ec.MaxQueuedRequests),
			"max_total_tokens": orNull(s.cfg.MaxTotalTokens), "chunked_prefill_size": ec.ChunkedPrefillSize,
			"max_prefill_tokens": ec.MaxPrefillTokens, "schedule_policy": ec.SchedulePolicy, "schedule_conservativeness": ec.ScheduleConservativeness,
			"page_size": ec.PageSize, "disable_radix_cache": ec.DisableRadixCache, "disable_overlap_schedule": ec.DisableOverlap, "tp_size": 1, "dp_size": 1,
			"pp_size": 1, "pp_max_micro_batch_size": limit, "stream_interval": 1, "incremental_streaming_output": s.opts.incremental,
			"weight_version": s.opts.weightVersion, "enable_metrics": false, "quantization": nil, "enable_torch_compile": false}
	}
	internal := args(limitValue(state.Limit))
	internal["last_gen_throughput"] = rate
	internal["effective_max_running_requests_per_dp"] = ec.MaxRunningRequests
	internal["memory_usage"] = object{"token_capacity": ec.MaxTotalTokens}
	out := args(ec.MaxRunningRequests)
	if a, ok := s.addr.(*net.TCPAddr); ok {
		out["port"] = a.Port
	}
	out["status"], out["version"], out["frontend"], out["kv_events"] = "ready", Version, "python", nil
	out["max_total_num_tokens"], out["max_req_input_len"] = ec.MaxTotalTokens, maxInput
	out["internal_states"] = []object{internal}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	out["simulated"] = object{"profile": s.profile.Name, "calibrated": s.profile.Calibrated, "known_error": s.profile.KnownError,
		"gpu": s.profile.GPU, "prefix_cache": "simulated on token ids; a text or chat matches only an equal one, and no prompt matches an answer",
		"step_lateness_ms": object{"steps": late.Steps, "p50": ms(late.P50), "p99": ms(late.P99), "max": ms(late.Max)}}
	s.writeJSON(w, out)
}

func (s *Server) flushCache(w http.ResponseWriter, _ *http.Request) {
	s.host.mu.Lock()
	flushed := s.host.loop.Engine.FlushCache()
	s.host.mu.Unlock()
	if !flushed {
		writeBody(w, http.StatusBadRequest, "", []byte("Flush cache failed.\n"))
		return
	}
	writeBody(w, http.StatusOK, "", []byte("Cache flushed.\nPlease check backend logs for more details. "+
		"(When there are running or waiting requests, the operation will not be performed.)\n"))
}

func (s *Server) abortRequest(w http.ResponseWriter, r *http.Request) {
	var body struct {
		RID      string `json:"rid"`
		AbortAll bool   `json:"abort_all"`
	}
	if !readJSON(w, r, &body) {
		return
	}
	s.host.abortPrefix(body.RID, body.AbortAll)
	writeBody(w, http.StatusOK, "", nil)
}

// setInternalState follows managers/scheduler_components/internal_state.py of 0.5.23: numbers, and strings that are
// numbers, pass the schema; a key or value that is refused makes the reply [false] and changes nothing.
func (s *Server) setInternalState(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Args map[string]json.RawMessage `json:"server_args"`
	}
	if !readJSON(w, r, &body) {
		return
	}
	if body.Args == nil {
		badRequest(w, "[{'type': 'missing', 'loc': ('body', 'server_args'), 'msg': 'Field required'}]")
		return
	}
	values := map[string]float64{}
	for k, raw := range body.Args {
		v, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
		if err != nil {
			badRequest(w, fmt.Sprintf("[{'type': 'float_parsing', 'loc': ('body', 'server_args', '%s', 'float'), 'msg': 'Input should be a valid number'}]", k))
			return
		}
		values[k] = v
	}
	ok := true
	for k := range values {
		switch k {
		case "pp_max_micro_batch_size", "speculative_accept_threshold_single", "speculative_accept_threshold_acc":
		default:
			ok = false
		}
	}
	if v, has := values["pp_max_micro_batch_size"]; has && ok {
		s.host.mu.Lock()
		ok = s.host.loop.Engine.SetLimit(v)
		s.host.mu.Unlock()
	}
	s.writeJSON(w, []bool{ok})
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Prompt   string        `json:"prompt"`
		Messages []chatMessage `json:"messages"`
	}
	if !readJSON(w, r, &body) {
		return
	}
	n := TextTokens(body.Prompt)
	if body.Messages != nil {
		n = chatTokens(body.Messages)
	}
	b := append([]byte(`{"tokens":[`), appendIDs(nil, 0, n)...)
	b = fmt.Appendf(b, `],"count":%d,"max_model_len":%d}`, n, s.host.loop.Engine.Config().ContextLength)
	writeBody(w, http.StatusOK, "application/json", b)
}

// readJSON decodes the body, or answers 400 and reports false.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	_, ok := readTimed(w, r, v)
	return ok
}

// maxBody bounds a request's body: a million token ids and more.
const maxBody = 64 << 20

// readTimed is readJSON with the time at which the last byte had come.
func readTimed(w http.ResponseWriter, r *http.Request, v any) (received time.Time, ok bool) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	received = time.Now()
	if err != nil {
		return received, false // the client has gone
	}
	if err := json.Unmarshal(raw, v); err != nil {
		badRequest(w, "1 validation error:\n  {'type': 'json_invalid', 'loc': ('body',), 'msg': 'JSON decode error', 'ctx': {'error': '"+err.Error()+"'}}")
		return received, false
	}
	return received, true
}

// badRequest answers as SGLang does to a body that its schema refuses.
func badRequest(w http.ResponseWriter, message string) {
	b := appendString([]byte(`{"object":"error","message":`), message)
	writeBody(w, http.StatusBadRequest, "application/json", append(b, `,"type":"Bad Request","param":null,"code":400}`...))
}
