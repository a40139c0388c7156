package policy_test

import (
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// leastPrefill sends a request to the worker that has the fewest prompt tokens yet to compute.
type leastPrefill struct{}

func (leastPrefill) Pick(_ *policy.Request, v *policy.View) (policy.Decision, error) {
	best, least := 0, 0
	for w := range v.Open() {
		if best == 0 || w.PrefillTokens < least {
			best, least = w.Slot, w.PrefillTokens
		}
	}
	return policy.Dispatch(best), nil
}

// A policy of one's own needs one method.
func ExamplePolicy() {
	v := &policy.View{Workers: []policy.Worker{{Slot: 1, PrefillTokens: 900}, {Slot: 2, PrefillTokens: 100}}}
	d, err := leastPrefill{}.Pick(&policy.Request{PromptTokens: 50}, v)
	fmt.Println(d.Worker, err)
	// Output: 2 <nil>
}

// fastest expects a request to take a worker's mean latency so far, and 50 ms for each request that is before
// it.
type fastest struct{ mean map[int]time.Duration } // by slot

func (p *fastest) Pick(_ *policy.Request, v *policy.View) (policy.Decision, error) {
	best, least := 0, time.Duration(0)
	for w := range v.Open() {
		if d := p.mean[w.Slot] + time.Duration(w.InFlight)*50*time.Millisecond; best == 0 || d < least {
			best, least = w.Slot, d
		}
	}
	return policy.Dispatch(best), nil
}

// Done learns: the mean forgets, a tenth with each answer.
func (p *fastest) Done(_ *policy.Request, f policy.Feedback, res *load.Result) {
	if res.OK() {
		p.mean[f.Worker] += (res.ServerLatency() - p.mean[f.Worker]) / 10
	}
}

// A policy that learns from the answers has a method more.
func ExampleDoneObserver() {
	p := &fastest{mean: map[int]time.Duration{1: 2 * time.Second, 2: time.Second}}
	v := &policy.View{Workers: []policy.Worker{{Slot: 1}, {Slot: 2, InFlight: 3}}}
	d, _ := p.Pick(&policy.Request{}, v)
	fmt.Println("first:", d.Worker)
	for range 10 { // the second worker becomes slow
		p.Done(&policy.Request{}, policy.Feedback{Worker: 2}, &load.Result{Outcome: load.OutcomeOK, Completion: 9 * time.Second})
	}
	d, _ = p.Pick(&policy.Request{}, v)
	fmt.Println("then:", d.Worker)
	// Output:
	// first: 2
	// then: 1
}

// pairs lets requests leave in pairs: the first of two waits for the second.
type pairs struct{ second bool }

func (p *pairs) Pick(_ *policy.Request, v *policy.View) (policy.Decision, error) {
	if !p.second && v.Waiting < 2 {
		return policy.Hold(policy.Wake{On: policy.Arrival, At: v.Now + 100*time.Millisecond}), nil
	}
	p.second = !p.second
	return policy.Dispatch(1), nil
}

// A policy can hold a request, and names what it waits for.
func ExampleHold() {
	p := new(pairs)
	for waiting := range 2 {
		d, _ := p.Pick(&policy.Request{}, &policy.View{Waiting: 1 + waiting, Workers: []policy.Worker{{Slot: 1}}})
		fmt.Println(d.Verdict)
	}
	// Output:
	// hold
	// dispatch
}
