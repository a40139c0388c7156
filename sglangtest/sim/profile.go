package sim

import (
	"errors"
	"fmt"
	"time"
)

// A Profile is one model on one GPU: sizes and times, and what they come from. It is a value; change a copy freely.
type Profile struct {
	Name          string // such as "h100-llama-3.1-8b"
	ModelPath     string // the model's name, served unless the server's config names another
	GPU           string
	KVTokens      int // KV pool in tokens
	ContextLength int // tokens
	MaxRunning    int // limit of running requests if the server's config sets none
	ChunkedSize   int // chunked_prefill_size if the server's config sets none

	Model StepModel
	// LaunchPrefill is the CPU time of the scheduler for planning and launching a prefill step. The step does not
	// end before it, and the loop does nothing else meanwhile. (That of a decode step is short and hidden behind
	// the GPU.)
	LaunchPrefill time.Duration
	// Ingest and IngestToken are the time from a request's last byte to the scheduler: HTTP, JSON and
	// tokenisation, per request and per prompt token. Egress is the time from a result to the client's side.
	Ingest, IngestToken, Egress time.Duration

	Calibrated string // what it was calibrated on
	KnownError string // its measured error, or that none was measured
}

func (p Profile) launch(k StepKind) time.Duration {
	if k != DecodeStep {
		return p.LaunchPrefill
	}
	return 0
}

func (p Profile) ingest(tokens int) time.Duration {
	return p.Ingest + time.Duration(tokens)*p.IngestToken
}

func (p Profile) validate() error {
	var errs []error
	if p.Name == "" || p.ModelPath == "" || p.Calibrated == "" || p.KnownError == "" {
		errs = append(errs, errors.New("sim: profile needs Name, ModelPath, Calibrated and KnownError: a simulation says what it is"))
	}
	if p.Model == nil {
		errs = append(errs, errors.New("sim: profile has no Model"))
	}
	for _, d := range []time.Duration{p.LaunchPrefill, p.Ingest, p.IngestToken, p.Egress} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("sim: profile %q has a negative duration %v", p.Name, d))
		}
	}
	return errors.Join(errs...)
}

// EngineConfig returns the engine configuration of the profile, with SGLang's defaults for the rest.
func (p Profile) EngineConfig() EngineConfig {
	return EngineConfig{MaxTotalTokens: p.KVTokens, ContextLength: p.ContextLength, MaxRunningRequests: p.MaxRunning,
		ChunkedPrefillSize: p.ChunkedSize, MaxPrefillTokens: 16384, ScheduleConservativeness: 1}
}
