package metrics

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A Simulation says that the engine was a simulation, and how far it can be trusted.
type Simulation struct {
	Profile    string `json:"profile"`    // the step-time profile's name
	Calibrated string `json:"calibrated"` // what it was calibrated on
	// KnownError is its measured error, or that none was measured. With a Validation it is worded anew in each [Summary], for a
	// workload like that of the run.
	KnownError string      `json:"known_error"`
	Brief      string      `json:"brief,omitempty"`      // KnownError of a summary in a few words
	Validation *Validation `json:"validation,omitempty"` // nil: none that holds for this engine
	// Workload is what the run of a summary was like, for which KnownError is stated; nil elsewhere.
	Workload *Workload `json:"workload,omitempty"`
}

// Equal reports whether two say the same.
func (s Simulation) Equal(o Simulation) bool { return reflect.DeepEqual(s, o) }

// A labelled is a sampler that tells by what its source is simulated at the time of the call; nil if it is real.
type labelled interface {
	Simulation(ctx context.Context) (*Simulation, error)
}

// AddSimulation declares that the engine is simulated, like [WithSimulation], to the sink as well if it has a method
// of this name. It must come before Begin. A collector that was told another simulation returns an error.
func (c *Collector) AddSimulation(s Simulation) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateNew {
		return errors.New("metrics: a simulation must be declared before the run begins")
	}
	if c.simulation != nil && !c.simulation.Equal(s) {
		return fmt.Errorf("metrics: the run is said to be simulated by both %q and %q", c.simulation.Profile, s.Profile)
	}
	if err := WithSimulation(s)(c); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if sink, ok := c.sink.(interface{ AddSimulation(Simulation) error }); ok {
		return sink.AddSimulation(s)
	}
	return nil
}

// label declares the simulations that the samplers tell of.
func (c *Collector) label(ctx context.Context) error {
	for _, l := range c.samplers {
		s, ok := l.sampler.(labelled)
		if !ok {
			continue
		}
		label, err := s.Simulation(ctx)
		if err != nil {
			return fmt.Errorf("metrics: begin: by what %s is simulated: %w", l.name, err)
		}
		if label == nil {
			continue
		}
		if err := c.AddSimulation(*label); err != nil {
			return err
		}
		l.label = label
	}
	return nil
}

// relabel asks the simulated sources again when the run has ended: a fault that was injected meanwhile makes the label of
// the start a lie. The later label is then that of the whole run, and so is one that says that there was no answer; of
// several sources with different ones, all.
func (c *Collector) relabel(ctx context.Context) error {
	var later []Simulation
	var notes []string
	for _, l := range c.samplers {
		if l.label == nil {
			continue
		}
		label, err := l.sampler.(labelled).Simulation(ctx)
		if err == nil && label == nil {
			err = errors.New("it says that it is real")
		}
		var note string
		switch {
		case err != nil:
			unknown := func(done, said string) string {
				return fmt.Sprintf("not %s, as far as is known at the end of the run (%v); at its start: %s", done, err, said)
			}
			label = &Simulation{Profile: l.label.Profile, Calibrated: unknown("calibrated", l.label.Calibrated), KnownError: unknown("measured", l.label.KnownError)}
			note = fmt.Sprintf("what simulated %s at the end of the run is not known (%v): what is said of profile %s may not hold for the whole run",
				l.name, err, l.label.Profile)
		case label.Equal(*l.label):
			continue
		default:
			note = fmt.Sprintf("what simulates %s changed during the run, at whose start it was profile %s: the whole run carries the label of its end",
				l.name, l.label.Profile)
		}
		notes = append(notes, note)
		if !slices.ContainsFunc(later, label.Equal) {
			later = append(later, *label)
		}
	}
	if len(later) == 0 {
		return nil
	}
	if len(later) == 1 {
		return c.replaceSimulation(later[0], notes)
	}
	all := func(said func(Simulation) string) string {
		texts := make([]string, len(later))
		for i, s := range later {
			texts[i] = said(s)
		}
		return strings.Join(slices.Compact(texts), "; and ")
	}
	return c.replaceSimulation(Simulation{
		Profile:    all(func(s Simulation) string { return s.Profile }),
		Calibrated: all(func(s Simulation) string { return s.Calibrated }),
		KnownError: all(func(s Simulation) string { return s.KnownError }),
	}, notes)
}

// bound words the known error of the simulation for a workload like the run's.
func (b *builder) bound() {
	s := b.sum
	if s.Simulation == nil || s.Simulation.Validation == nil {
		return
	}
	stated := *s.Simulation
	s.Simulation = &stated
	v := stated.Validation
	engines := v.Engines
	if engines == 0 {
		for _, l := range b.c.samplers {
			if l.label != nil {
				engines++
			}
		}
	}
	// Where the answers do not tell what came from the prefix cache, the engines' own count does, as a share.
	share, untold := 0.0, false
	if n := s.Throughput.CachedByEngine; n != nil && s.Throughput.InputTokens > 0 {
		share = float64(*n) / float64(s.Throughput.InputTokens)
	}
	demands := make([]Demand, 0, s.Requests.OK)
	for _, r := range b.rs {
		if r.OK() {
			d := Demand{At: r.Arrival, Prompt: r.PromptTokens, Cached: r.CachedTokens, Output: r.OutputTokens}
			if d.Prompt <= 0 {
				d.Prompt = r.InputLen
			}
			if d.Cached == load.NotReported {
				d.Cached = int(share * float64(d.Prompt))
				untold = untold || s.Throughput.CachedByEngine == nil
			}
			demands = append(demands, d)
		}
	}
	w := v.Capacity.Workload(demands, engines)
	w.Held = s.MaxConcurrency > 0 && s.InFlight.Peak >= s.MaxConcurrency
	stated.Workload = &w
	bound := v.Bound(w)
	switch {
	case s.Requests.Failed*100 > s.Requests.Arrived: // what they cost the engine is not in the workload
		bound = ErrorBound{Uncovered: fmt.Sprintf("%d of %d requests failed", s.Requests.Failed, s.Requests.Arrived)}
	case untold:
		bound = ErrorBound{Uncovered: "how many prompt tokens came from the prefix cache is not told (--enable-cache-report, or --enable-metrics)"}
	case len(s.ParamChanges) > 0:
		bound = ErrorBound{Uncovered: "run-time parameters were changed while it ran"}
	}
	stated.KnownError, stated.Brief = bound.Statement(), bound.Brief()
	if v.Caveat != "" && bound.Uncovered == "" {
		stated.KnownError += "; " + v.Caveat
	}
}

func (c *Collector) replaceSimulation(s Simulation, notes []string) error {
	c.mu.Lock()
	if c.state == stateEnded { // End did not wait for the answers
		c.mu.Unlock()
		return nil
	}
	old := *c.simulation // declared by label
	err := WithSimulation(s)(c)
	if err == nil {
		c.relabelled = notes
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("metrics: end: %w", err)
	}
	if sink, ok := c.sink.(interface {
		ReplaceSimulation(old, by Simulation) error
	}); ok {
		return sink.ReplaceSimulation(old, s)
	}
	return nil
}
