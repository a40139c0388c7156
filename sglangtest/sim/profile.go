package sim

import (
	"errors"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A Profile is one model on one GPU: sizes and times, and what they come from. It is a value; change a copy freely.
// Its JSON form is described at [Profile.MarshalJSON].
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
	// EgressEvent and EgressStream are the time that the front process spends on one streamed event, alone and per
	// stream of the same step; see [Front]. Both 0: it is never behind.
	EgressEvent, EgressStream time.Duration

	Calibrated string // what it was calibrated on, or "not calibrated, derived from ..."
	KnownError string // its measured error, or that none was measured
	// Validation is what KnownError is made of, for the summary of each run to state the error of its own workload; nil: not
	// validated. See [Validated].
	Validation *metrics.Validation
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
	errs = append(errs, validModel(p.Model))
	for _, n := range []struct {
		name string
		v    int
	}{{"KVTokens", p.KVTokens}, {"ContextLength", p.ContextLength}, {"MaxRunning", p.MaxRunning}} {
		if n.v < 1 {
			errs = append(errs, fmt.Errorf("sim: profile %q: %s is %d: want at least 1", p.Name, n.name, n.v))
		}
	}
	for _, d := range []time.Duration{p.LaunchPrefill, p.Ingest, p.IngestToken, p.Egress, p.EgressEvent, p.EgressStream} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("sim: profile %q has a negative duration %v", p.Name, d))
		}
	}
	return errors.Join(errs...)
}

// validModel checks a model and, if it wraps another, that one, too. Models of other packages are taken as they are.
func validModel(m StepModel) error {
	var errs []error
	if m == nil {
		return errors.New("sim: profile has no Model")
	}
	if v, ok := m.(interface{ validate() error }); ok {
		errs = append(errs, v.validate())
	}
	switch m := m.(type) {
	case Noise:
		if m.Model != nil {
			errs = append(errs, validModel(m.Model))
		}
	case Replay:
		if m.Else != nil {
			errs = append(errs, validModel(m.Else))
		}
	case Sampled:
		if m.other != nil {
			errs = append(errs, validModel(m.other))
		}
	}
	return errors.Join(errs...)
}

// EngineConfig returns the engine configuration of the profile, with SGLang's defaults for the rest.
func (p Profile) EngineConfig() EngineConfig {
	return EngineConfig{MaxTotalTokens: p.KVTokens, ContextLength: p.ContextLength, MaxRunningRequests: p.MaxRunning,
		ChunkedPrefillSize: p.ChunkedSize, MaxPrefillTokens: 16384, ScheduleConservativeness: 1,
		PreemptionThreshold: DefaultPreemptionThreshold}
}
