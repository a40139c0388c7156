package sim

import (
	"fmt"
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
// configuration differs from the profile's, or it has several data-parallel ranks, it says so, and that its error was not measured.
func (s *Server) Simulation() metrics.Simulation {
	p := s.profile
	changes := p.Changes(s.EngineConfig())
	if n := len(s.host.ranks); n > 1 {
		ranks := fmt.Sprintf("dp_size %d (profile: 1; a separate GPU like the profile's for each rank)", n)
		if changes != "" {
			ranks += ", " + changes
		}
		changes = ranks
	}
	if changes == "" {
		return metrics.Simulation{Profile: p.Name, Calibrated: p.Calibrated, KnownError: p.KnownError}
	}
	qualify := func(done, said string) string {
		return fmt.Sprintf("not %s with %s; the profile as it is: %s", done, changes, said)
	}
	return metrics.Simulation{Profile: p.Name + " with " + changes, Calibrated: qualify("calibrated", p.Calibrated), KnownError: qualify("measured", p.KnownError)}
}
