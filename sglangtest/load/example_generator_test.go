package load_test

import (
	"fmt"
	"iter"
	"log"
	"math"
	"math/rand/v2"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

func ExampleNewRequestGenerator() {
	gen, err := load.NewRequestGenerator(load.AzureConversation(),
		load.WithArrivals(load.Constant(2)), load.WithSeed(7), load.WithLimit(3))
	if err != nil {
		log.Fatal(err)
	}
	for r, err := range gen.Requests() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("request %d at %v: %d tokens in, %d out\n", r.ID, r.Arrival, r.InputLen, r.OutputLen)
	}
	// Output:
	// request 0 at 0s: 374 tokens in, 44 out
	// request 1 at 500ms: 396 tokens in, 109 out
	// request 2 at 1s: 879 tokens in, 55 out
}

// A plan describes the workload before it is run, and finds its faults.
func ExampleRequestGenerator_Plan() {
	gen, err := load.NewRequestGenerator(load.AzureConversation(), load.WithArrivals(load.TraceTimes(1)))
	if err != nil {
		log.Fatal(err)
	}
	plan, err := gen.Plan()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d requests over %v, %.1f/s, longest %d tokens\n", plan.Requests, plan.LastArrival.Round(time.Second), plan.MeanRate, plan.LongestTotal)

	gen, err = load.NewRequestGenerator(load.AzureConversation(), load.WithArrivals(load.Poisson(8)), load.WithLimit(5000))
	if err != nil {
		log.Fatal(err)
	}
	_, err = gen.Plan()
	fmt.Println(err)
	// Output:
	// 2000 requests over 7m4s, 4.7/s, longest 7979 tokens
	// load: dataset azure-conversation has 2000 rows, fewer than the 5000 of WithLimit: lower the limit (num_prompts), or let it repeat (WithRepeat, or a duration)
}

func ExampleRandom() {
	gen, err := load.NewRequestGenerator(load.Random(1024, 128, 1),
		load.WithArrivals(load.Poisson(50)), load.WithDuration(10*time.Second),
		load.WithSampling(load.SamplingParams{Temperature: load.Ptr(0.0), IgnoreEOS: load.Ptr(true)}))
	if err != nil {
		log.Fatal(err)
	}
	plan, err := gen.Plan()
	fmt.Println(plan.Dataset, plan.Arrivals, plan.InputTokens == int64(plan.Requests)*1024, err)
	// Output: random (input 1024, output 128, range ratio 1) poisson 50/s true <nil>
}

// classes is a dataset of a user's own: a mix of two kinds of request.
type classes struct{ long float64 }

func (c classes) Name() string  { return fmt.Sprintf("classes, %g long", c.long) }
func (c classes) Endless() bool { return true }

func (c classes) Rows(rng *rand.Rand) iter.Seq2[load.Row, error] {
	return func(yield func(load.Row, error) bool) {
		for {
			row := load.Row{InputLen: 200, OutputLen: 50}
			if rng.Float64() < c.long {
				row = load.Row{InputLen: 8000, OutputLen: 400}
			}
			if !yield(row, nil) {
				return
			}
		}
	}
}

func ExampleDataset() {
	gen, err := load.NewRequestGenerator(classes{long: 0.1}, load.WithArrivals(load.AllAtOnce()), load.WithLimit(1000))
	if err != nil {
		log.Fatal(err)
	}
	plan, err := gen.Plan()
	fmt.Println(plan.Dataset, plan.Requests, plan.LongestInput, err)
	// Output: classes, 0.1 long 1000 8000 <nil>
}

// ramp is an arrival process of a user's own: the rate grows linearly from 0.
type ramp struct{ perSecond float64 }

func (r ramp) String() string { return fmt.Sprintf("ramp %g/s each second", r.perSecond) }
func (r ramp) Rate() float64  { return 0 }

func (r ramp) Times(*rand.Rand) func(int, *load.Row) (time.Duration, error) {
	return func(i int, _ *load.Row) (time.Duration, error) {
		return time.Duration(math.Sqrt(2*float64(i)/r.perSecond) * float64(time.Second)), nil
	}
}

func ExampleArrivals() {
	gen, err := load.NewRequestGenerator(load.AzureConversation(), load.WithArrivals(ramp{perSecond: 2}), load.WithLimit(5))
	if err != nil {
		log.Fatal(err)
	}
	for r, err := range gen.Requests() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.Arrival.Round(time.Millisecond))
	}
	// Output:
	// 0s
	// 1s
	// 1.414s
	// 1.732s
	// 2s
}
