package server

import (
	"strconv"
)

// commandLine returns the arguments of SGLang's launcher for cfg.
func commandLine(cfg Config, name string) []string {
	var args []string
	text := func(flag, value string) {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	number := func(flag string, value int) {
		if value != 0 {
			args = append(args, flag, strconv.Itoa(value))
		}
	}
	fraction := func(flag string, value float64) {
		if value != 0 {
			args = append(args, flag, strconv.FormatFloat(value, 'g', -1, 64))
		}
	}
	text("--model-path", cfg.ModelPath)
	text("--tokenizer-path", cfg.TokenizerPath)
	text("--served-model-name", cfg.ServedModelName)
	text("--host", cfg.Host)
	number("--port", cfg.Port)
	number("--max-running-requests", cfg.MaxRunningRequests)
	number("--max-total-tokens", cfg.MaxTotalTokens)
	number("--max-queued-requests", cfg.MaxQueuedRequests)
	number("--context-length", cfg.ContextLength)
	fraction("--mem-fraction-static", cfg.MemFractionStatic)
	number("--chunked-prefill-size", cfg.ChunkedPrefillSize)
	number("--max-prefill-tokens", cfg.MaxPrefillTokens)
	fraction("--schedule-conservativeness", cfg.ScheduleConservativeness)
	if cfg.EnableTorchCompile {
		args = append(args, "--enable-torch-compile")
	}
	text("--quantization", cfg.Quantization)
	return append(args, "--weight-version", name)
}
