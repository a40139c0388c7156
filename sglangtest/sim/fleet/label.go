package fleet

import (
	"fmt"
	"strings"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// Simulation describes the engines in the words of their profiles, for summaries and run folders. What a profile
// states holds for its own sizes at speed 1 only: engines with a Speed or a Config of their own are named as such, and
// their error as not measured. [Run] gives it to a recorder that takes it; see there.
func Simulation(engines []Engine) metrics.Simulation {
	var kinds []kind
	counts := map[kind]int{}
	said := map[string]sim.Profile{}
	for _, e := range engines {
		k := kind{e.Profile.Name, e.speed(), e.changes()}
		if counts[k] == 0 {
			kinds = append(kinds, k)
		}
		counts[k]++
		said[k.profile] = e.Profile
	}
	var names, calibrated, known []string
	for _, k := range kinds {
		name, prefix := k.String(), ""
		if len(kinds) > 1 {
			name = fmt.Sprintf("%d x %s", counts[k], k)
			prefix = k.String() + ": "
		}
		names = append(names, name)
		p := said[k.profile]
		calibrated = append(calibrated, prefix+k.qualify("calibrated", p.Calibrated))
		of := k.qualify("measured", p.KnownError)
		if p.EgressEvent > 0 || p.EgressStream > 0 {
			of += "; " + frontLeftOut
		}
		known = append(known, prefix+of)
	}
	var validation *metrics.Validation
	if len(kinds) == 1 && kinds[0].qualify("measured", "") == "" {
		if p := said[kinds[0].profile]; p.Validation != nil {
			v := *p.Validation
			v.Engines = len(engines)
			if p.EgressEvent > 0 || p.EgressStream > 0 {
				v.Caveat = frontLeftOut
			}
			validation = &v
		}
	}
	return metrics.Simulation{Profile: strings.Join(names, " + "), Calibrated: strings.Join(calibrated, "; "), KnownError: strings.Join(known, "; "),
		Validation: validation}
}

const frontLeftOut = "measured with the queue of the front process, which a fleet leaves out"

// A kind is what engines have in common that the same words describe.
type kind struct {
	profile string
	speed   float64
	changes string // of the profile's sizes
}

func (k kind) String() string {
	s := k.profile
	if k.speed != 1 {
		s += fmt.Sprintf(" x speed %v (not calibrated)", k.speed)
	}
	if k.changes != "" {
		s += " with " + k.changes
	}
	return s
}

// qualify limits what the profile says to what it holds for.
func (k kind) qualify(done, said string) string {
	var differs []string
	if k.speed != 1 {
		differs = append(differs, fmt.Sprintf("speed %v", k.speed))
	}
	if k.changes != "" {
		differs = append(differs, k.changes)
	}
	if differs == nil {
		return said
	}
	return fmt.Sprintf("not %s with %s; the profile as it is: %s", done, strings.Join(differs, ", "), said)
}

func (e *Engine) speed() float64 {
	if e.Speed == 0 {
		return 1
	}
	return e.Speed
}

// changes names the settings in which the engine differs from its profile; empty: in none.
func (e *Engine) changes() string {
	if e.Config == (sim.EngineConfig{}) {
		return ""
	}
	return e.Profile.Changes(e.Config)
}
