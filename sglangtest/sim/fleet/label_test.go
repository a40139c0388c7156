package fleet

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

func TestSimulationQualifiesWhatTheProfileDoesNotCover(t *testing.T) {
	p := steady()
	s := Simulation(Equal(3, p))
	require.Equal(t, []string{"steady", "on nothing", "not measured"}, []string{s.Profile, s.Calibrated, s.KnownError})

	engines := Equal(4, p)
	engines[0].Config = p.EngineConfig()
	engines[0].Config.QuietDecode = true
	require.Equal(t, s, Simulation(engines), "the profile's own configuration, written out")
	e, err := sim.NewEngine(p.EngineConfig())
	require.NoError(t, err)
	engines[0].Config = e.Config()
	require.Equal(t, s, Simulation(engines), "the same with the defaults filled in")

	engines[1].Speed = 0.5
	engines[2].Config = p.EngineConfig()
	engines[2].Config.MaxRunningRequests, engines[2].Config.MaxTotalTokens = 8, 5000
	engines[3].Config = p.EngineConfig()
	engines[3].Config.DisableOverlap = true
	s = Simulation(engines)
	require.Equal(t, "1 x steady + 1 x steady x speed 0.5 (not calibrated) + "+
		"1 x steady with max_total_tokens 5000 (profile: 100000), max_running_requests 8 (profile: 64) + 1 x steady with other scheduler settings", s.Profile)
	require.Contains(t, s.KnownError, "steady: not measured; steady x speed 0.5 (not calibrated): not measured with speed 0.5; the profile as it is: not measured; ")
	require.Contains(t, s.KnownError, ": not measured with max_total_tokens 5000 (profile: 100000), max_running_requests 8 (profile: 64); the profile as it is: ")
	require.Contains(t, s.KnownError, ": not measured with other scheduler settings; the profile as it is: ")
	require.Contains(t, s.Calibrated, "not calibrated with speed 0.5; the profile as it is: on nothing")

	require.Equal(t, "steady x speed 2 (not calibrated)", Simulation([]Engine{{Profile: p, Speed: 2}}).Profile)
}

func TestSimulationSaysThatTheFrontProcessIsLeftOut(t *testing.T) {
	p := sim.H100Llama8B()
	require.Equal(t, p.KnownError+"; measured with the queue of the front process, which a fleet leaves out", Simulation(Equal(2, p)).KnownError)
	require.Equal(t, p.Calibrated, Simulation(Equal(2, p)).Calibrated)
	v := Simulation(Equal(2, p)).Validation
	require.Equal(t, p.Validation.Runs, v.Runs)
	require.Equal(t, 2, v.Engines, "that share the load")
	require.Equal(t, "measured with the queue of the front process, which a fleet leaves out", v.Caveat)
	require.Empty(t, p.Validation.Caveat, "the profile itself stays as it is")
	fast := Equal(2, p)
	fast[1].Speed = 2
	require.Nil(t, Simulation(fast).Validation, "it holds for the profile as it is")
}

type modelFunc func(sim.Shape) time.Duration

func (f modelFunc) StepTime(s sim.Shape) time.Duration { return f(s) }

func TestProfilesSayWhatTheyAre(t *testing.T) {
	run := func(engines ...Engine) error {
		_, err := Run(context.Background(), requests{}, new(policy.RoundRobin), engines, nil)
		return err
	}
	for name, change := range map[string]func(*sim.Profile){
		"ModelPath":  func(p *sim.Profile) { p.ModelPath = "" },
		"Calibrated": func(p *sim.Profile) { p.Calibrated = "" },
		"KnownError": func(p *sim.Profile) { p.KnownError = "" },
		"negative":   func(p *sim.Profile) { p.EgressEvent = -1 },
	} {
		p := steady()
		change(&p)
		require.ErrorContains(t, run(Engine{Profile: p}), name)
	}
	other := steady()
	other.Model = sim.Linear{DecodeBase: 11, PrefillBase: 10}
	require.ErrorContains(t, run(Engine{Profile: steady()}, Engine{Profile: other}), "of the same name")
	other = steady()
	other.KnownError = "none"
	require.ErrorContains(t, run(Engine{Profile: steady()}, Engine{Profile: other}), "of the same name")

	other.Model = modelFunc(func(sim.Shape) time.Duration { return ms })
	play(t, requests{}, new(policy.RoundRobin), Equal(2, other))
	third := other
	third.Model = modelFunc(func(sim.Shape) time.Duration { return 2 * ms })
	require.ErrorContains(t, run(Engine{Profile: third}, Engine{Profile: other}), "of the same name")
}
