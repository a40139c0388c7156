package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// Changes names the settings in which the configuration of an engine differs from the profile's, for which alone holds what
// the profile says of its calibration and error; empty: in none.
func (p Profile) Changes(cfg EngineConfig) string {
	own, profile := effective(cfg), effective(p.EngineConfig())
	profile.MaxTotalTokens -= profile.MaxTotalTokens % own.PageSize // whole pages
	var differs []string
	for _, s := range []struct {
		name         string
		own, profile *int
	}{
		{"max_total_tokens", &own.MaxTotalTokens, &profile.MaxTotalTokens},
		{"context_length", &own.ContextLength, &profile.ContextLength},
		{"max_running_requests", &own.MaxRunningRequests, &profile.MaxRunningRequests},
		{"chunked_prefill_size", &own.ChunkedPrefillSize, &profile.ChunkedPrefillSize},
		{"max_prefill_tokens", &own.MaxPrefillTokens, &profile.MaxPrefillTokens},
		{"page_size", &own.PageSize, &profile.PageSize},
	} {
		if *s.own != *s.profile {
			differs = append(differs, fmt.Sprintf("%s %d (profile: %d)", s.name, *s.own, *s.profile))
		}
		*s.own = *s.profile
	}
	own.QuietDecode, own.Seed, own.Rules = profile.QuietDecode, profile.Seed, profile.Rules // no matter of step times
	if own != profile {
		differs = append(differs, "other scheduler settings")
	}
	return strings.Join(differs, ", ")
}

// effective returns what an engine makes of a configuration, or the configuration if it is at fault.
func effective(c EngineConfig) EngineConfig {
	e, err := NewEngine(c)
	if err != nil {
		return c
	}
	return e.Config()
}

// Simulation describes the server in the words of its profile, for summaries and run folders. If the server's
// configuration differs from the profile's, it has several data-parallel ranks, shows arguments that it does not simulate
// (see [WithServerArgs]) or a fault was injected, it says so, and that its error was not measured.
func (s *Server) Simulation() metrics.Simulation {
	p := s.profile
	var with []string
	if n := len(s.host.ranks); n > 1 {
		with = append(with, fmt.Sprintf("dp_size %d (profile: 1; a separate GPU like the profile's for each rank)", n))
	}
	if changes := p.Changes(s.EngineConfig()); changes != "" {
		with = append(with, changes)
	}
	with = append(with, s.unknownEffects()...)
	if with == nil {
		return metrics.Simulation{Profile: p.Name, Calibrated: p.Calibrated, KnownError: p.KnownError, Validation: p.Validation}
	}
	what := strings.Join(with, " and ")
	qualify := func(done, said string) string {
		return fmt.Sprintf("not %s with %s; the profile as it is: %s", done, what, said)
	}
	return metrics.Simulation{Profile: p.Name + " with " + what, Calibrated: qualify("calibrated", p.Calibrated), KnownError: qualify("measured", p.KnownError)}
}

// NoteFault says that a fault is injected which the profile knows nothing of. From then on, also when the fault has ended,
// [Server.Simulation], /server_info and the header of answers name it. A fault may be noted again.
func (s *Server) NoteFault(fault string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if faults := *s.faults.Load(); !slices.Contains(faults, fault) {
		faults = append(slices.Clone(faults), fault)
		s.faults.Store(&faults)
		s.relabel()
	}
}

// unknownEffects names what the profile knows nothing of: arguments that are not simulated, and faults.
func (s *Server) unknownEffects() (with []string) {
	if s.lacks != nil {
		with = append(with, lacksText(s.lacks))
	}
	if faults := *s.faults.Load(); faults != nil {
		with = append(with, "faults "+strings.Join(faults, ", "))
	}
	return with
}

func (s *Server) relabel() {
	label := s.profile.Name
	if with := s.unknownEffects(); with != nil {
		label += " with " + strings.Join(with, " and ")
	}
	s.label.Store(&[]string{label})
}

// SimulatedBy returns the value of [load.SimulatedByHeader] in answers: the profile's name, the arguments that are not
// simulated and the faults that were injected.
func (s *Server) SimulatedBy() string { return (*s.label.Load())[0] }
