package sim

import "fmt"

// Rules name the version of SGLang whose scheduler an [Engine] follows. There are two sets, old (0.5.15 to 0.5.21) and
// new (0.5.23), which differ in when a finish frees its place, whether it costs a wasted decode step, what requests with
// ignore_eos reserve, when batch_is_full is cleared, the rows that count against the limit, mixed batches, retraction, which
// nodes of the cache get a hit, and what becomes of a request that was preempted in vain. Within the old set differ: the eviction and a stop token on the
// last allowed token (0.5.15), and, from 0.5.21 on, the page that a request with ignore_eos sets aside without a prefix
// cache, and the node of its own that an answer has in it. The zero value is the newest.
type Rules uint8

// The versions whose rules are known, newest first.
const (
	Rules0523 Rules = iota
	Rules0521
	Rules0518 // 0.5.18 to 0.5.20
	Rules0515 // 0.5.15 to 0.5.17
)

// old reports whether the rules are those before 0.5.23. The code asks it wherever the two sets differ.
func (r Rules) old() bool { return r != Rules0523 }

// RulesOf returns the rules of an SGLang version such as "0.5.15.post1". Versions other than 0.5.15 to 0.5.21 and
// 0.5.23 are an error: their scheduler has not been compared.
func RulesOf(version string) (Rules, error) {
	var patch int
	if n, _ := fmt.Sscanf(version, "0.5.%d", &patch); n == 1 {
		switch {
		case patch == 23:
			return Rules0523, nil
		case patch == 21:
			return Rules0521, nil
		case patch >= 18 && patch <= 20:
			return Rules0518, nil
		case patch >= 15 && patch <= 17:
			return Rules0515, nil
		}
	}
	return 0, fmt.Errorf("sim: the scheduler of SGLang %q is not known: want 0.5.15 to 0.5.21, or 0.5.23", version)
}
