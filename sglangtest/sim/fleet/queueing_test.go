package fleet

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// perToken is a step model in which each prompt token takes a microsecond and nothing else takes any time.
type perToken struct{}

func (perToken) StepTime(s sim.Shape) time.Duration {
	n := 0
	for _, x := range s.Extends {
		n += x.New
	}
	return time.Duration(n) * time.Microsecond
}

// prompts is a dataset of answers of one token, with prompts whose lengths length draws.
type prompts struct {
	name   string
	length func(*rand.Rand) int
}

func (p prompts) Name() string  { return p.name }
func (p prompts) Endless() bool { return true }
func (p prompts) Rows(rng *rand.Rand) iter.Seq2[load.Row, error] {
	return func(yield func(load.Row, error) bool) {
		for yield(load.Row{InputLen: p.length(rng), OutputLen: 1}, nil) {
		}
	}
}

// TestQueueingTruth compares the mean wait of a fleet of one engine with one slot with the closed forms of queueing
// theory. A request with one output token is a single step; with one slot the loop plans the next one when that
// step has ended, so that the overlap of planning and computing, which a longer answer would show, plays no part.
// The interval is that of batch means: batches long enough to be nearly independent, and Student's t.
func TestQueueingTruth(t *testing.T) {
	const (
		mean     = 20_000 // tokens, which are microseconds
		batch    = 10_000 // requests
		batches  = 20
		quantile = 2.861 // of Student's t, 19 degrees of freedom, 99 % two-sided
	)
	p := sim.Profile{Name: "one slot", ModelPath: "test", Model: perToken{}, KVTokens: 4_000_000, ContextLength: 2_000_000, MaxRunning: 1, ChunkedSize: -1,
		Calibrated: "on nothing", KnownError: "not measured"}
	cfg := p.EngineConfig()
	cfg.MaxPrefillTokens = 2_000_000
	for _, service := range []struct {
		prompts
		factor float64 // of the wait of M/M/1: (1 + C²)/2 by Pollaczek and Khinchine
	}{
		{prompts{"M/D/1", func(*rand.Rand) int { return mean }}, 0.5},
		{prompts{"M/M/1", func(rng *rand.Rand) int { return 1 + int(rng.ExpFloat64()*mean) }}, 1},
	} {
		for _, rho := range []float64{0.5, 0.8} {
			t.Run(fmt.Sprintf("%s at %v", service.name, rho), func(t *testing.T) {
				gen, err := load.NewRequestGenerator(service.prompts, load.WithArrivals(load.Poisson(rho/mean*1e6)), load.WithLimit(batch*(batches+1)), load.WithSeed(5))
				require.NoError(t, err)
				col, err := metrics.NewCollector()
				require.NoError(t, err)
				_, err = Run(t.Context(), gen, new(policy.RoundRobin), []Engine{{Profile: p, Config: cfg}}, col)
				require.NoError(t, err)
				var means []float64 // of the wait, in mean service times
				sum := 0.0
				for r := range col.Results() {
					require.Equal(t, load.OutcomeOK, r.Outcome)
					sum += float64(r.TotalLatency()-time.Duration(r.PromptTokens)*time.Microsecond) / float64(mean*time.Microsecond)
					if (r.ID+1)%batch == 0 {
						means, sum = append(means, sum/batch), 0
					}
				}
				m, half := interval(means[1:], quantile) // the first batch begins empty
				want := service.factor * rho / (1 - rho)
				t.Logf("mean wait %.4f ± %.4f service times; theory %.4f", m, half, want)
				require.InDelta(t, want, m, half)
				require.Less(t, half, 0.1*want, "the interval is too wide to tell anything")
			})
		}
	}
}

// interval returns the mean of the batch means and half the width of its interval.
func interval(means []float64, quantile float64) (m, half float64) {
	for _, x := range means {
		m += x / float64(len(means))
	}
	v := 0.0
	for _, x := range means {
		v += (x - m) * (x - m) / float64(len(means)-1)
	}
	return m, quantile * math.Sqrt(v/float64(len(means)))
}
