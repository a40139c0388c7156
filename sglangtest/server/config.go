package server

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
)

// Config holds the arguments of one SGLang server. Zero values mean SGLang's own default.
// The JSON names are SGLang's argument names.
type Config struct {
	ModelPath                string  `json:"model_path,omitempty"`
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

// Validate reports all values that are out of range, each with its JSON key.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, key string, value any, want string) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s: %v; want %s", key, value, want))
		}
	}
	check(c.Port >= 0 && c.Port <= 65535, "port", c.Port, "1 to 65535, or 0 for a free one")
	check(c.MaxRunningRequests >= 0, "max_running_requests", c.MaxRunningRequests, "≥ 1")
	check(c.MaxTotalTokens >= 0, "max_total_tokens", c.MaxTotalTokens, "≥ 1")
	check(c.MaxQueuedRequests >= 0, "max_queued_requests", c.MaxQueuedRequests, "≥ 1")
	check(c.ContextLength >= 0, "context_length", c.ContextLength, "≥ 1")
	check(c.MemFractionStatic >= 0 && c.MemFractionStatic < 1, "mem_fraction_static", c.MemFractionStatic, "between 0 and 1")
	check(c.ChunkedPrefillSize >= -1, "chunked_prefill_size", c.ChunkedPrefillSize, "≥ 1, or -1 for no chunking")
	check(c.MaxPrefillTokens >= 0, "max_prefill_tokens", c.MaxPrefillTokens, "≥ 1")
	check(c.ScheduleConservativeness >= 0 && !math.IsInf(c.ScheduleConservativeness, 0), "schedule_conservativeness", c.ScheduleConservativeness, "> 0")
	for i, g := range c.GPUs {
		check(g >= 0, fmt.Sprintf("gpus[%d]", i), g, "≥ 0")
	}
	return errors.Join(faults...)
}

// address returns the address to listen on.
func (c Config) address() string {
	host := c.Host
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(c.Port))
}
