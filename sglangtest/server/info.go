package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/internal/wire"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// Info is what a server says of itself. A value that it does not tell is zero.
type Info struct {
	Version            string // SGLang's
	ModelPath          string
	ServedModelName    string // the name for the OpenAI routes
	ContextLength      int    // tokens of prompt and output together
	MaxInputLen        int    // longest prompt in tokens
	MaxTotalTokens     int    // KV pool in tokens, of each data-parallel rank
	MaxRunningRequests int    // limit at start-up, for each data-parallel rank; the largest that can be set
	DPSize             int    // data-parallel ranks

	// IncrementalStreaming: /generate streams increments (--incremental-streaming-output).
	IncrementalStreaming bool
	// Simulation says what simulates the engine, as it was then; nil for a real one.
	Simulation *metrics.Simulation
}

// serverInfo holds the wanted members of /server_info, the same in 0.5.15 to 0.5.23.
type serverInfo struct {
	Version              string `json:"version"`
	ServedModelName      string `json:"served_model_name"`
	MaxTotalTokens       int    `json:"max_total_num_tokens"`
	MaxReqInputLen       int    `json:"max_req_input_len"`
	DPSize               int    `json:"dp_size"`
	IncrementalStreaming bool   `json:"incremental_streaming_output"`
	InternalStates       []struct {
		Limit     int `json:"pp_max_micro_batch_size"`
		OldLimit  int `json:"max_micro_batch_size"` // its name before 0.5.4
		Effective int `json:"effective_max_running_requests_per_dp"`
	} `json:"internal_states"`
}

// limits returns the running-request limit in force of each data-parallel rank.
func (i serverInfo) limits() []int {
	limits := make([]int, len(i.InternalStates))
	for rank, state := range i.InternalStates {
		limits[rank] = cmp.Or(state.Limit, state.OldLimit)
	}
	return limits
}

// recognise checks that this is an SGLang server that generates text, and returns its model's path.
func (s *Server) recognise(ctx context.Context) (modelPath string, err error) {
	var model struct {
		ModelPath    *string `json:"model_path"`
		IsGeneration *bool   `json:"is_generation"`
		Weights      string  `json:"weight_version"`
	}
	err = s.client.call(ctx, http.MethodGet, "/model_info", nil, &model)
	var status *StatusError
	var none *noAnswerError
	switch {
	case errors.As(err, &status) && status.Status == http.StatusNotFound:
		return "", &NotSGLangError{URL: wire.WithoutPassword(s.URL()), Reason: err.Error() + " (nor has SGLang before about 0.5.6 this route)"}
	case errors.As(err, &status), errors.As(err, &none):
		return "", err
	case err != nil:
		return "", &NotSGLangError{URL: wire.WithoutPassword(s.URL()), Reason: err.Error()}
	case model.ModelPath == nil || model.IsGeneration == nil:
		return "", &NotSGLangError{URL: wire.WithoutPassword(s.URL()), Reason: "GET /model_info has no model_path and is_generation"}
	case !*model.IsGeneration:
		return "", fmt.Errorf("the model %s does not generate text", *model.ModelPath)
	}
	return *model.ModelPath, s.ownName(model.Weights)
}

// identify checks that this is an SGLang server and reads its facts.
func (s *Server) identify(ctx context.Context) error {
	modelPath, err := s.recognise(ctx)
	if err != nil {
		return err
	}
	var raw map[string]any
	var info serverInfo
	if err := s.readInfo(ctx, &info, &raw); err != nil {
		return err
	}
	var models struct {
		Data []struct {
			ID          string `json:"id"`
			MaxModelLen int    `json:"max_model_len"`
		} `json:"data"`
	}
	if err := s.client.call(ctx, http.MethodGet, "/v1/models", nil, &models); err != nil {
		return err
	}
	simulation := s.simulation(raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw = raw
	s.info = Info{
		Version: info.Version, ModelPath: modelPath, ServedModelName: info.ServedModelName, MaxInputLen: info.MaxReqInputLen,
		MaxTotalTokens: info.MaxTotalTokens, DPSize: info.DPSize, IncrementalStreaming: info.IncrementalStreaming, Simulation: simulation,
	}
	if len(info.InternalStates) > 0 { // one for each rank, also of those of --attn-dp-size, which dp_size does not count
		s.info.DPSize = len(info.InternalStates)
		s.info.MaxRunningRequests, s.limit = info.InternalStates[0].Effective, info.limits()[0]
	}
	if len(models.Data) > 0 {
		s.info.ContextLength = models.Data[0].MaxModelLen
		if s.info.ServedModelName == "" {
			s.info.ServedModelName = models.Data[0].ID
		}
	}
	return nil
}

func (s *Server) readInfo(ctx context.Context, into ...any) error {
	var data json.RawMessage
	if err := s.client.call(ctx, http.MethodGet, "/server_info", nil, &data); err != nil {
		return err
	}
	for _, v := range into {
		if err := json.Unmarshal(data, v); err != nil {
			return fmt.Errorf("GET /server_info: the answer is not what SGLang sends: %w", err)
		}
	}
	return nil
}

// checkConfig reports the settings of cfg that a server which already ran does not have. That the API keys are right has
// shown already, and secrets belong into no message.
func (s *Server) checkConfig(cfg Config) error {
	var faults []error
	if len(cfg.GPUs) > 0 {
		faults = append(faults, errors.New("gpus: the server already runs, so its GPUs cannot be chosen"))
	}
	wanted, has := s.settings(cfg)
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		switch want := wanted[key]; {
		case has[key] == nil:
			faults = append(faults, fmt.Errorf("%s: the running server does not tell this setting, so %v cannot be checked", key, want))
		case !reflect.DeepEqual(want, has[key]):
			faults = append(faults, fmt.Errorf("%s: the running server has %v, not %v", key, has[key], want))
		}
	}
	if cfg.MaxRunningRequests > 0 && s.limit > 0 && s.limit < s.info.MaxRunningRequests && s.raw["pp_size"] == 1.0 {
		faults = append(faults, fmt.Errorf("max_running_requests: the limit in force at the running server is only %d: "+
			"leave this setting out and use UpdateParam", s.limit))
	}
	if len(faults) > 0 {
		return fmt.Errorf("the server already runs and its settings differ from the config:\n%w", errors.Join(faults...))
	}
	return nil
}

// settings returns what cfg sets, without secrets, and what the server has in force of all settings, both as JSON carries them.
func (s *Server) settings(cfg Config) (wanted, has map[string]any) {
	wanted = cfg.Settings()
	for _, name := range sglargs.Secrets() {
		delete(wanted, name)
	}
	for key, v := range wanted {
		data, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(data, &v)
		}
		if err != nil { // Validate has found it
			panic(fmt.Sprintf("server: setting %s: %v", key, err))
		}
		wanted[key] = v
	}
	has = maps.Clone(s.raw)
	for key, inForce := range map[string]int{"max_running_requests": s.info.MaxRunningRequests, "context_length": s.info.ContextLength} {
		if has[key] == nil && inForce > 0 { // not set, so the engine chose it
			has[key] = float64(inForce)
		}
	}
	return wanted, has
}

// otherwise says which settings a server that was launched with cfg has in force otherwise than cfg says: the engine lowers what
// does not fit, and chooses again what does not go together. Settings that it does not tell, and the choice "auto", are passed
// over; so is what is not a number, a word or a truth value, whose form it may change.
func (s *Server) otherwise(cfg Config) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted, has := s.settings(cfg)
	perRank := cfg.MaxRunningRequests
	if s.raw["enable_dp_attention"] == true { // the ranks share the limit (pool_configurator.py, resolve_max_num_reqs)
		perRank /= max(1, s.info.DPSize)
	}
	page := 1
	if p, ok := s.raw["page_size"].(float64); ok && p > 1 {
		page = int(p)
	}
	// What /server_info repeats as it was asked for, and what it tells of it elsewhere.
	for key, v := range map[string]struct{ asked, inForce int }{
		"max_running_requests": {perRank, s.info.MaxRunningRequests},
		"max_total_tokens":     {cfg.MaxTotalTokens / page * page, s.info.MaxTotalTokens},
		"context_length":       {cfg.ContextLength, s.info.ContextLength},
	} {
		if v.asked > 0 && v.inForce > 0 {
			wanted[key], has[key] = float64(v.asked), float64(v.inForce)
		}
	}
	var texts []string
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		switch want := wanted[key].(type) {
		case float64, string, bool:
			if has[key] != nil && want != "auto" && want != has[key] {
				texts = append(texts, fmt.Sprintf("%s: %s was asked for, %s is in force", key, plain(want), plain(has[key])))
			}
		}
	}
	return texts
}

// plain writes a value of JSON as a config would have it.
func plain(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}
