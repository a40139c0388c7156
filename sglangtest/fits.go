package sglangtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/server"
)

// checkFits reports requests that the server would refuse, and limits that cannot be set on it. What info does not tell is
// not checked.
func (c NodeConfig) checkFits(gen *load.RequestGenerator, plan load.Plan, info server.Info) error {
	for _, at := range slices.Sorted(maps.Keys(c.ParamUpdateSchedule)) {
		value, ok := c.ParamUpdateSchedule[at][server.ParamMaxRunningRequests]
		if most := info.MaxRunningRequests; ok && most > 0 && value > most {
			return fmt.Errorf("sglangtest: config: param_update_schedule[%q].%s: %d; the server was started with a limit of %d, beyond which it cannot go",
				fmt.Sprint(float64(at)), server.ParamMaxRunningRequests, value, most)
		}
	}
	if most := info.MaxInputLen; most > 0 && plan.LongestInput > most {
		return c.tooLong(gen, "of prompt than the server takes", most, func(r load.Request) int { return r.InputLen },
			"raise the server's context (server_args.context_length, up to the model's) or its KV pool (mem_fraction_static)")
	}
	if most := info.ContextLength; most > 0 && plan.LongestTotal > most {
		ways := []string{"give the server a longer context (server_args.context_length, up to the model's), or another model"}
		if room := most - plan.LongestInput; room > 0 {
			ways = slices.Insert(ways, 0, fmt.Sprintf("limit the outputs: sampling_params.max_new_tokens of at most %d replaces the lengths of the dataset", room))
		}
		return c.tooLong(gen, "of prompt and output than the server's context", most, func(r load.Request) int { return r.InputLen + r.OutputLen }, ways...)
	}
	return nil
}

// tooLong says which requests are longer than the server allows. It reads the workload once more, for what its plan does
// not hold.
func (c NodeConfig) tooLong(gen *load.RequestGenerator, than string, most int, length func(load.Request) int, ways ...string) error {
	var all, over, first, firstTokens, longest, tokens int
	for r, err := range gen.Requests() {
		if err != nil {
			return err
		}
		all++
		n := length(r)
		if n <= most {
			continue
		}
		if over++; over == 1 {
			first, firstTokens = r.ID, n
		}
		if n > tokens {
			longest, tokens = r.ID, n
		}
	}
	if c.DatasetName == "random" {
		ways = append(ways, "ask for shorter ones (random_input_len, random_output_len)")
	} else {
		ways = append(ways, "use a dataset with shorter requests")
	}
	if first > 0 {
		ways = append(ways, fmt.Sprintf("stop before the first of them: num_prompts of at most %d", first))
	}
	return fmt.Errorf("sglangtest: %d of %d requests have more tokens %s, %d: the first is request %d with %d, the longest request %d with %d; what to do: %s",
		over, all, than, most, first, firstTokens, longest, tokens, strings.Join(ways, "; or "))
}
