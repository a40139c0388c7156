package metrics

import (
	"fmt"
	"strings"
	"time"
)

// A ParamChange is what an [Event] of [KindParamUpdate] says.
type ParamChange struct {
	At     time.Duration `json:"at_ns"`  // offset from the run's start
	Source string        `json:"source"` // whose parameter it is, such as "server-0"
	Name   string        `json:"name"`
	Value  any           `json:"value"` // from At on; a number that was read back from JSON is a float64
}

func (b *builder) paramChanges() {
	for _, e := range b.events {
		if e.Kind == KindParamUpdate && e.At > b.c.firstArr && e.At < b.end {
			b.sum.ParamChanges = append(b.sum.ParamChanges, ParamChange{e.At, e.Source, fmt.Sprint(e.Data["name"]), e.Data["value"]})
		}
	}
}

// changesText lists the first changes, and names a parameter where it is another one than before.
func changesText(changes []ParamChange) string {
	const most = 8
	var parts []string
	named := ""
	for _, p := range changes[:min(most, len(changes))] {
		text := fmt.Sprintf(":= %v at %.3f s", p.Value, p.At.Seconds())
		if name := strings.TrimSpace(p.Source + " " + p.Name); name != named {
			text, named = name+" "+text, name
		}
		parts = append(parts, text)
	}
	if n := len(changes) - most; n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(parts, ", ")
}
