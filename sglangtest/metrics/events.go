package metrics

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// The kinds of events that this module puts into time lines, in real and in virtual time alike. An event of a kind that is not
// among them is the caller's own. Each comment names the keys of Data.
const (
	// KindStartupPhase is a phase of a server's start, at a moment before the run's: "phase", "duration_ns".
	KindStartupPhase = "startup_phase"
	// KindServerWarning is something about a server that may spoil a measurement, such as a limit in force other than the one
	// asked for: "message".
	KindServerWarning = "server_warning"
	// KindServerFault is a fault that the experiment asked for: "message", one of killed, suspended, resumed, restarted, hung and
	// slowed; of a simulated server that was killed "requests", how many failed with it, and of a slowed one "factor".
	KindServerFault = "server_fault"
	// KindServerFaultNotMade is a planned fault whose time did not come before the run's end: "message", "planned_ns", "reason".
	KindServerFaultNotMade = "server_fault_not_made"
	// KindServerEnded is a server's end by itself: "error", which says why.
	KindServerEnded = "server_ended"

	// KindParamUpdate is a run-time parameter that was changed, at the moment at which the server had accepted it: "name",
	// "value" (what it is from then on), "asked_ns", "accepted_ns", "previous", "read_back", "mechanism".
	KindParamUpdate = "param_update"
	// KindParamUpdateFailed is a change that failed: "name", "value", "error", and "accepted_ns" if it was accepted before.
	KindParamUpdateFailed = "param_update_failed"
	// KindParamUpdateNotMade is a planned change whose time did not come before the run's end: "name", "value", "planned_ns",
	// "reason".
	KindParamUpdateNotMade = "param_update_not_made"
	// KindParamInForce is when running requests first obeyed a changed limit, after "not_before_ns" and at the event's moment at
	// the latest: "name", "value", "asked_ns", "accepted_ns", "not_before_ns".
	KindParamInForce = "param_in_force"
	// KindParamNotInForce is a changed limit of which that was not seen: "name", "value", "asked_ns", "accepted_ns", "reason".
	KindParamNotInForce = "param_not_in_force"

	// KindCacheState is what the prefix cache of a server held when the load began: "state", a [CacheState].
	KindCacheState = "prefix_cache"
	// KindPrefilled is how many tokens the engine computed in prefills since the run's start, by its own count, what other
	// clients sent meanwhile among them: "tokens".
	KindPrefilled = "prefilled"
	// KindRequestLost is a request that the scheduler of a simulated server has forgotten, as that of SGLang would: "request",
	// its ID.
	KindRequestLost = "request_lost"

	// KindStoringFailed is the moment from which on what is measured is not, or not all, stored: "error".
	KindStoringFailed = "storing_failed"
)

// ReasonRunEnded is the "reason" of what was planned for a time after the run's end.
const ReasonRunEnded = "the run had ended"

// An Event is something that was done or noticed in a run: a parameter change, a failure, the verdict of a check.
type Event struct {
	At     time.Duration  `json:"at_ns"`
	Kind   string         `json:"kind"`             // such as "param_update"
	Source string         `json:"source,omitempty"` // what it concerns, such as "server-0"
	Data   map[string]any `json:"data,omitempty"`   // particulars, by kind; times in it end in _ns
}

// Number returns a number of Data, whatever type it has: JSON that is read back has float64 where the run had int64. ok is false
// if there is none.
func (e Event) Number(key string) (v float64, ok bool) {
	n := reflect.ValueOf(e.Data[key])
	switch {
	case n.CanInt():
		return float64(n.Int()), true
	case n.CanUint():
		return float64(n.Uint()), true
	case n.CanFloat():
		return n.Float(), true
	}
	text, ok := e.Data[key].(json.Number)
	v, err := text.Float64()
	return v, ok && err == nil
}

// problem says what the event tells of a part of the run that has gone wrong unplanned; "" if it does not.
func (e Event) problem() string {
	switch e.Kind {
	case KindServerWarning:
		return fmt.Sprintf("%s: %v", e.Source, e.Data["message"])
	case KindServerEnded:
		why, _, _ := strings.Cut(fmt.Sprint(e.Data["error"]), "\n") // an excerpt of the log may follow
		return fmt.Sprintf("%s ended: %s", e.Source, why)
	case KindParamUpdateFailed:
		return fmt.Sprintf("%s: %v was not changed to %v: %v", e.Source, e.Data["name"], e.Data["value"], e.Data["error"])
	case KindStoringFailed:
		return fmt.Sprintf("not all that is measured is stored from here on: %v", e.Data["error"])
	}
	return ""
}
