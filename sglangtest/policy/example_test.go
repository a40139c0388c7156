package policy_test

import (
	"context"
	"fmt"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// leastPrefill sends a request to the worker that has the fewest prompt tokens yet to compute.
type leastPrefill struct{}

func (leastPrefill) Pick(_ context.Context, _ *load.Request, v policy.View) (policy.Decision, error) {
	best := -1
	for i := range v.Workers {
		if w := &v.Workers[i]; w.Healthy && (best < 0 || w.PrefillTokens < v.Workers[best].PrefillTokens) {
			best = i
		}
	}
	if best < 0 {
		return policy.Reject("no healthy worker"), nil
	}
	return policy.Dispatch(best), nil
}

// A policy of one's own needs one method.
func ExamplePolicy() {
	v := policy.View{Workers: []policy.Worker{{Healthy: true, PrefillTokens: 900}, {Healthy: true, PrefillTokens: 100}}}
	d, err := leastPrefill{}.Pick(context.Background(), &load.Request{InputLen: 50}, v)
	fmt.Println(d.Worker, err)
	// Output: 1 <nil>
}
