package sim

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

func (s *Server) writeJSON(w http.ResponseWriter, v any) {
	writeBody(w, http.StatusOK, "application/json", mustJSON(v))
}

// mustJSON encodes what is known to have a form in JSON.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("sim: marshal: " + err.Error()) // only maps, strings and finite numbers are passed
	}
	return b
}

type object = map[string]any

// A pair is one key of an ordered object, with its value in JSON.
type pair struct {
	key   string
	value json.RawMessage
}

// An ordered is a JSON object that keeps the order of its keys.
type ordered []pair

func (o *ordered) UnmarshalJSON(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var p pair
		p.key = key.(string)
		if err := dec.Decode(&p.value); err != nil {
			return err
		}
		*o = append(*o, p)
	}
	return nil
}

func (o ordered) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, p := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, p.key), ':')
		b = append(b, p.value...)
	}
	return append(b, '}'), nil
}

// set gives a key another value, in its place or at the end.
func (o *ordered) set(key string, v any) {
	raw := mustJSON(v)
	for i := range *o {
		if (*o)[i].key == key {
			(*o)[i].value = raw
			return
		}
	}
	*o = append(*o, pair{key, raw})
}

// serverInfos are /server_info of real servers of the recorded versions with a small model on a CPU: all arguments with
// their defaults, and where the reply differs between them and the scheduler's copy.
//
//go:embed serverinfo
var serverInfos embed.FS

// An infoTemplate is one of them.
type infoTemplate struct {
	Args    ordered  `json:"args"`          // as the HTTP process has them
	Absent  []string `json:"state_absent"`  // arguments that the scheduler's copy lacks
	Changes ordered  `json:"state_changes"` // and those that differ there
	State   ordered  `json:"state"`         // what the scheduler adds
	Tail    ordered  `json:"tail"`          // what the HTTP process adds
}

var infoTemplates [len(recordedPatches)]func() infoTemplate

func init() {
	for i, patch := range recordedPatches {
		infoTemplates[i] = sync.OnceValue(func() (t infoTemplate) {
			raw, err := serverInfos.ReadFile(fmt.Sprintf("serverinfo/0.5.%d.json", patch))
			if err == nil {
				err = json.Unmarshal(raw, &t)
			}
			if err != nil {
				panic("sim: server info: " + err.Error()) // part of the program
			}
			return t
		})
	}
}

// unknownArgs reports the arguments of WithServerArgs that the version does not have.
func (o options) unknownArgs() error {
	args := infoTemplates[o.release.recorded()]().Args
	for _, name := range slices.Sorted(maps.Keys(o.serverArgs)) {
		if !slices.ContainsFunc(args, func(p pair) bool { return p.key == name }) {
			return fmt.Errorf("sim: %q is not an argument of SGLang %s: use a name that its /server_info has", name, o.release.name)
		}
	}
	return nil
}

// args are the server's arguments as the HTTP process tells them.
func (s *Server) args(t infoTemplate, ec EngineConfig) ordered {
	args := slices.Clone(t.Args)
	s.resolved(&args, ec)
	orNull := func(v int) any {
		if v == 0 {
			return nil
		}
		return v
	}
	port := s.cfg.Port
	if a, ok := s.addr.(*net.TCPAddr); ok {
		port = a.Port
	}
	for key, v := range s.opts.given {
		if f, isFloat := v.(float64); isFloat {
			v = floatValue(f)
		}
		if !strings.HasSuffix(key, "api_key") {
			args.set(key, v)
		}
	}
	for key, v := range (object{"model_path": s.cfg.ModelPath, "tokenizer_path": s.cfg.TokenizerPath, "served_model_name": s.cfg.ServedModelName,
		"host": s.cfg.Host, "port": port, "context_length": orNull(s.cfg.ContextLength), "device": "cuda", "dtype": "auto",
		"attention_backend": "fa3", "max_running_requests": orNull(s.cfg.MaxRunningRequests), "max_total_tokens": orNull(s.cfg.MaxTotalTokens),
		"chunked_prefill_size": ec.ChunkedPrefillSize, "page_size": ec.PageSize, "weight_version": *s.weights.Load(),
		"enable_metrics": s.opts.metrics, "dp_size": len(s.host.ranks), "load_balance_method": s.opts.balance}) {
		args.set(key, v)
	}
	if s.opts.release.patch >= 21 {
		args.set("launch_command", fmt.Sprintf("--model-path %s --host %s --port %d", s.cfg.ModelPath, s.cfg.Host, port))
	}
	for key, v := range s.opts.serverArgs {
		args.set(key, v)
	}
	return args
}

// serverInfo is /server_info: the arguments, the engine's state, and under "simulated" by what.
func (s *Server) serverInfo(w http.ResponseWriter, _ *http.Request) {
	s.host.mu.Lock()
	ec, maxInput := s.host.config(), s.host.loops.Loops[0].Engine.MaxInputLen()
	var limits, rates []float64
	for _, r := range s.host.ranks {
		limits, rates = append(limits, r.loop.Engine.limit), append(rates, r.meter.lastThroughput())
	}
	s.host.mu.Unlock()
	late := s.StepLateness()
	t := infoTemplates[s.opts.release.recorded()]()
	out := s.args(t, ec)

	state := slices.DeleteFunc(slices.Clone(out), func(p pair) bool { return slices.Contains(t.Absent, p.key) })
	for _, p := range slices.Concat(t.Changes, t.State) {
		state.set(p.key, p.value)
	}
	state.set("effective_max_running_requests_per_dp", ec.MaxRunningRequests)
	for i := range state {
		if state[i].key == "world_size" {
			state[i].value = mustJSON(len(limits))
		}
	}
	s.memory(&state, ec)

	states := make([]ordered, len(limits))
	for k := range states {
		states[k] = slices.Clone(state)
		states[k].set("pp_max_micro_batch_size", limitValue(limits[k]))
		states[k].set("last_gen_throughput", floatValue(rates[k]))
	}

	tail := slices.Clone(t.Tail)
	tail.set("max_total_num_tokens", ec.MaxTotalTokens)
	tail.set("max_req_input_len", maxInput)
	tail.set("internal_states", states)
	tail.set("version", s.opts.release.name)
	out = append(out, tail...)
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	label := s.Simulation()
	out.set("simulated", object{"profile": label.Profile, "calibrated": label.Calibrated, "known_error": label.KnownError, "validation": label.Validation,
		"gpu": s.profile.GPU, "memory_of": memoryOf, "prefix_cache": s.prefixCache(),
		"step_lateness_ms": object{"pieces": late.Pieces, "p50": ms(late.P50), "p99": ms(late.P99), "max": ms(late.Max)}})
	s.writeJSON(w, out)
}

// limitValue is the limit as JSON: SGLang keeps an integer an integer.
func limitValue(v float64) any {
	if v == float64(int(v)) {
		return int(v)
	}
	return v
}

// floatValue is a number as JSON that Python would write as a float.
func floatValue(v float64) json.RawMessage { return json.RawMessage(showFloat(v)) }

// loadFormat is that of the recordings unless WithServerArgs says another: no weights are loaded.
func (s *Server) loadFormat() any {
	if format := s.opts.serverArgs["load_format"]; format != nil {
		return format
	}
	return "dummy"
}

func (s *Server) modelInfo(w http.ResponseWriter, _ *http.Request) {
	patch := s.opts.release.patch
	out := ordered{}
	add := func(since int, key string, v any) {
		if patch >= since {
			out = append(out, pair{key, mustJSON(v)})
		}
	}
	add(0, "model_path", s.cfg.ModelPath)
	add(18, "served_model_name", s.cfg.ServedModelName)
	add(0, "tokenizer_path", s.cfg.TokenizerPath)
	add(0, "is_generation", true)
	add(0, "preferred_sampling_params", nil)
	add(0, "weight_version", *s.weights.Load())
	add(18, "load_format", s.loadFormat())
	add(18, "reasoning_parser", nil)
	add(18, "tool_call_parser", nil)
	add(21, "disaggregation_mode", "null")
	add(0, "has_image_understanding", false)
	add(0, "has_audio_understanding", false)
	add(0, "model_type", "llama")
	add(0, "architectures", []string{"LlamaForCausalLM"})
	add(18, "embedding", json.RawMessage(fmt.Sprintf(noEmbedding, s.EngineConfig().ChunkedPrefillSize, mustJSON(graphSizes(s.EngineConfig().ChunkedPrefillSize)))))
	s.writeJSON(w, out)
}

// card is a model as /v1/models tells it.
func (s *Server) card() ordered {
	var o ordered
	for _, p := range []struct {
		key string
		v   any
	}{{"id", s.cfg.ServedModelName}, {"object", "model"}, {"created", time.Now().Unix()}, {"owned_by", "sglang"},
		{"root", s.cfg.ServedModelName}, {"parent", nil}, {"max_model_len", s.EngineConfig().ContextLength}} {
		o = append(o, pair{p.key, mustJSON(p.v)})
	}
	return o
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	s.writeJSON(w, ordered{{"object", mustJSON("list")}, {"data", mustJSON([]ordered{s.card()})}})
}

func (s *Server) model(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path[len(modelPath):]
	if name == s.cfg.ServedModelName {
		s.writeJSON(w, s.card())
		return
	}
	b := appendString([]byte(`{"error":{"message":`), "The model '"+name+"' does not exist")
	writeBody(w, http.StatusNotFound, "application/json", append(b, `,"type":"invalid_request_error","param":"model","code":"model_not_found"}}`...))
}

// noEmbedding is what /model_info says about embeddings of a model that makes none.
const noEmbedding = `{"family":"none","task":"none","execution":"none","attention":"none","pooling":"model_defined","normalize":false,` +
	`"postprocessor":"none","tokenizer_special_tokens":"model_default","supports_dimensions":false,` +
	`"supports_token_embeddings":false,"supports_multimodal":false,"requires_embedding_flag":false,` +
	`"auto_enable_embedding":false,"bcg_eligibility":"disabled","safe_disable_kv_cache":false,` +
	`"safe_disable_radix_cache":false,"safe_disable_chunked_prefill":false,"enabled":false,"matryoshka_dimensions":[],` +
	`"bcg":{"prefill_backend":"disabled","enabled":false,"capture_token_budget":%d,"capture_batch_sizes":%s},` +
	`"cache":{"kv_cache_disabled":false,"radix_cache_disabled":false,"chunked_prefill_disabled":false}}`

// graphSizes are the sizes of prefill graphs that SGLang would capture up to a number of tokens.
func graphSizes(most int) []int {
	var sizes []int
	for n, step := 4, 4; n <= most; n += step {
		sizes = append(sizes, n)
		switch n {
		case 32:
			step = 16
		case 256:
			step = 32
		case 512:
			step = 64
		case 1024:
			step = 256
		case 4096:
			step = 512
		}
	}
	return sizes
}
