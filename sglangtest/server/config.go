package server

// Config holds the arguments of one SGLang server. Zero values mean SGLang's own default.
// The JSON names are SGLang's argument names.
type Config struct {
	ModelPath                string  `json:"model_path"`
	TokenizerPath            string  `json:"tokenizer_path,omitempty"`
	ServedModelName          string  `json:"served_model_name,omitempty"`
	Host                     string  `json:"host,omitempty"`                      // empty: 127.0.0.1
	Port                     int     `json:"port,omitempty"`                      // 0: a free port is chosen
	MaxRunningRequests       int     `json:"max_running_requests,omitempty"`      // 0: set by the engine
	MaxTotalTokens           int     `json:"max_total_tokens,omitempty"`          // KV pool in tokens; 0: set by memory
	MaxQueuedRequests        int     `json:"max_queued_requests,omitempty"`       // 0: no limit
	ContextLength            int     `json:"context_length,omitempty"`            // tokens; 0: the model's
	MemFractionStatic        float64 `json:"mem_fraction_static,omitempty"`       // (0, 1); 0: set by the engine
	ChunkedPrefillSize       int     `json:"chunked_prefill_size,omitempty"`      // tokens; 0: set by the engine; -1: no chunking
	MaxPrefillTokens         int     `json:"max_prefill_tokens,omitempty"`        // tokens; 0: 16384
	ScheduleConservativeness float64 `json:"schedule_conservativeness,omitempty"` // > 0; 0: 1.0
	EnableTorchCompile       bool    `json:"enable_torch_compile,omitempty"`
	Quantization             string  `json:"quantization,omitempty"`
	GPUs                     []int   `json:"gpus,omitempty"` // CUDA device ids
}
