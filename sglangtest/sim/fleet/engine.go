package fleet

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// An Engine describes one simulated GPU of a fleet.
type Engine struct {
	Name    string // names the worker in results; default: "server-" and its index
	Profile sim.Profile
	// Config holds the scheduler's sizes. The zero value stands for Profile.EngineConfig().
	Config sim.EngineConfig
	// Speed divides the profile's step times: 0.5 is an engine that takes twice as long. 0 stands for 1.
	Speed float64
	// Limit is how many requests the dispatcher lets be in flight on it; more wait before it. 0: any number.
	Limit int
}

// Equal returns n engines of one profile.
func Equal(n int, p sim.Profile) []Engine {
	engines := make([]Engine, n)
	for i := range engines {
		engines[i].Profile = p
	}
	return engines
}

// normalise checks engines and returns them with the defaults filled in.
func normalise(engines []Engine) ([]Engine, error) {
	if len(engines) == 0 {
		return nil, errors.New("no engines: want at least one")
	}
	var faults []error
	engines = slices.Clone(engines)
	names, profiles := map[string]int{}, map[string]int{}
	for i := range engines {
		e := &engines[i]
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Errorf("engine %d: %s", i, fmt.Sprintf(format, args...)))
		}
		if e.Name == "" {
			e.Name = fmt.Sprintf("server-%d", i)
		}
		if first, twice := names[e.Name]; twice {
			fault("name %q is that of engine %d: want names that differ", e.Name, first)
		}
		names[e.Name] = i
		if e.Limit < 0 {
			fault("limit %d: want ≥ 0", e.Limit)
		}
		e.Speed = e.speed()
		if !(e.Speed > 0) || math.IsInf(e.Speed, 0) {
			fault("speed %v: want a finite number above 0", e.Speed)
		}
		p := e.Profile
		if p.Model == nil || p.Name == "" || p.ModelPath == "" || p.Calibrated == "" || p.KnownError == "" {
			fault("profile %q needs a Name, ModelPath, Model, Calibrated and KnownError: a simulation says what it is", p.Name)
		}
		if min(p.LaunchPrefill, p.Ingest, p.IngestToken, p.Egress, p.EgressEvent, p.EgressStream) < 0 {
			fault("profile %q has a negative duration", p.Name)
		}
		if first, ok := profiles[p.Name]; !ok {
			profiles[p.Name] = i
		} else if !same(p, engines[first].Profile) {
			fault("profile %q is another than that of engine %d, of the same name: want names that tell them apart", p.Name, first)
		}
		if e.Config == (sim.EngineConfig{}) {
			e.Config = p.EngineConfig()
		}
		if _, err := sim.NewEngine(e.Config); err != nil {
			faults = append(faults, fmt.Errorf("engine %d: %w", i, err))
		}
	}
	return engines, errors.Join(faults...)
}

// same reports whether two profiles are equal. Models that hold functions are never deeply equal, not even to themselves;
// they are the same if they print the same, that is, hold the same code.
func same(a, b sim.Profile) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	equal := fmt.Sprintf("%#v", a.Model) == fmt.Sprintf("%#v", b.Model)
	a.Model, b.Model = nil, nil
	return equal && a == b
}

// pace is the step model of one engine, slowed down or not. Only a scheduled action changes the factor, between
// steps.
type pace struct {
	model  sim.StepModel
	factor float64 // of the model's times
}

func (p *pace) StepTime(s sim.Shape) time.Duration {
	d := p.model.StepTime(s)
	if p.factor == 1 {
		return d
	}
	return time.Duration(math.Round(min(float64(d)*p.factor, float64(horizon))))
}

// horizon is where virtual time ends: a century, so that sums of times stay in range. What an engine would do later it
// never does.
const horizon = 100 * 365 * 24 * time.Hour

// A worker is an engine in a run. Its next event is the earliest of three: a request reaches the scheduler, the loop
// advances, something reaches the client.
type worker struct {
	Engine
	index  int
	pace   pace
	loop   *sim.Loop
	up     bool
	hung   time.Duration  // when its scheduler began to hang; never: it does not
	short  int            // answers that its sizes cut short
	limit  int            // in force
	change *limitChange   // of the limit, as long as it does not show; nil: none
	steps  uint64         // of loops before a restart
	coming fifo[arrival]  // on the way to the scheduler, in order of time
	going  fifo[delivery] // on the way to the client, in order of time
	log    stepLog        // of the loop

	tokenTimes bool
	chunks     bool    // the policy is told of each token
	flights    flights // dispatched to it, in that order
	known      int     // starts that the router has noticed
	starts     int
}

// An arrival is a request on its way to the scheduler.
type arrival struct {
	at     time.Duration
	flight *flight
}

// A delivery is a first token or an end on its way to the client.
type delivery struct {
	at     time.Duration
	flight *flight
	// An end has a finish, or the message of an error that came in its place; a first token has neither.
	finish  *sim.Finish
	refusal string
	tokens  int // that came, if the policy is told of each
}

func newWorker(index int, e Engine, tokenTimes, chunks bool) (*worker, error) {
	w := &worker{Engine: e, index: index, tokenTimes: tokenTimes, chunks: chunks}
	return w, w.start()
}

// start brings up an idle engine with the limit and the speed of its configuration.
func (w *worker) start() error {
	cfg := w.Config
	cfg.QuietDecode = !w.chunks
	e, err := sim.NewEngine(cfg)
	if err != nil {
		return err
	}
	if w.loop != nil {
		w.steps += w.loop.Steps()
	}
	p := w.Profile
	w.pace = pace{p.Model, 1 / w.Speed}
	p.Model = &w.pace
	w.loop = sim.NewLoop(e, p)
	w.log = newStepLog(w.tokenTimes)
	w.starts++
	w.up, w.hung, w.limit = true, never, e.Config().MaxRunningRequests
	return nil
}

// slot is the worker's place in the dispatcher.
func (w *worker) slot() int { return w.index + 1 }

// facts are what the router knows of the worker without asking it for its load.
func (w *worker) facts() policy.Facts {
	return policy.Facts{MaxRunning: w.limit, KVTokens: w.loop.Engine.Config().MaxTotalTokens, Speed: w.Speed,
		Ingest: w.Profile.Ingest, IngestToken: w.Profile.IngestToken}
}

// never is the time of an event that does not come.
const never = time.Duration(math.MaxInt64)

// next returns the time of the worker's next event.
func (w *worker) next() time.Duration {
	at := never
	if w.hung == never {
		if w.up {
			if t, busy := w.loop.Next(); busy && t < horizon {
				at = t
			}
		}
		if a := w.coming.front(); a != nil {
			at = min(at, a.at)
		}
	}
	if d := w.going.front(); d != nil {
		at = min(at, d.at)
	}
	return at
}

// expect puts a request on its way to the scheduler. A long prompt takes longer, so that a later one may overtake it.
func (w *worker) expect(a arrival) {
	w.coming.push(a)
	q := w.coming.all()
	for i := len(q) - 1; i > 0 && q[i].at < q[i-1].at; i-- {
		q[i], q[i-1] = q[i-1], q[i]
	}
}
