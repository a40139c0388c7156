package fleet

import (
	"cmp"
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// The engine lets the more urgent of the waiting requests go first, and those without a priority last, even behind a negative one.
func TestPriorityReachesTheEngines(t *testing.T) {
	src := requests{ask(0, 0, 10, 20), ask(1, 1*ms, 10, 5), ask(2, 2*ms, 10, 5), ask(3, 3*ms, 10, 5), ask(4, 4*ms, 10, 5)}
	for id, p := range map[int]int{0: 9, 2: -5, 3: 0, 4: 7} { // the second has none
		src[id].Priority = load.Ptr(p)
	}
	ended := func(change func(*sim.EngineConfig)) (ids []int) {
		e := Equal(1, steady())
		e[0].Config = e[0].Profile.EngineConfig()
		e[0].Config.MaxRunningRequests, e[0].Config.DisablePriorityPreemption = 1, true
		change(&e[0].Config)
		rs := results(play(t, src, new(policy.RoundRobin), e))
		slices.SortFunc(rs, func(a, b load.Result) int { return cmp.Compare(a.Completion, b.Completion) })
		for _, r := range rs {
			ids = append(ids, r.ID)
		}
		return ids
	}
	require.Equal(t, []int{0, 1, 2, 3, 4}, ended(func(*sim.EngineConfig) {}))
	require.Equal(t, []int{0, 4, 3, 2, 1}, ended(func(c *sim.EngineConfig) { c.EnablePriorityScheduling = true }))
	require.Equal(t, []int{0, 2, 3, 4, 1}, ended(func(c *sim.EngineConfig) { c.EnablePriorityScheduling, c.LowPriorityValuesFirst = true, true }))
}

func TestWhatAFleetDoesNotSimulateIsRefused(t *testing.T) {
	for want, change := range map[string]func(*load.Request){
		`lora_path is "sql"`:           func(r *load.Request) { r.LoRA = "sql" },
		"routed_dp_rank is 1":          func(r *load.Request) { r.Rank = load.Ptr(1) },
		`extra members ["cache_salt"]`: func(r *load.Request) { r.Extra = map[string]json.RawMessage{"cache_salt": []byte(`"a"`)} },
	} {
		src := requests{ask(0, 0, 10, 5), ask(1, 1*ms, 10, 5)}
		change(&src[1])
		_, err := failing(t, src, new(policy.RoundRobin), Equal(1, steady()))
		require.ErrorContains(t, err, "fleet: workload: request 1: "+want)
	}
}
