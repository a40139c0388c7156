package sim

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// A LimitRun is a recording in which the running limit of a real server changed while requests ran and waited.
type LimitRun struct {
	Run   MeasuredRun // First and Last of its requests are not recorded
	Polls []LoadPoll
	Waves []Wave
}

// A LoadPoll is one reading of the server's load.
type LoadPoll struct {
	At               time.Duration
	Running, Waiting int
}

// A Wave is a number of requests, the next ones of the run, that had all ended at End.
type Wave struct {
	Requests int
	End      time.Duration
}

// ReadLimitRun reads the first part of dynamic_limit.jsonl, up to the end of its second wave: 64 requests, then 40 more
// under a lowered limit, all of 100 prompt and 400 output tokens. (The prompt's length is not in the file but in the
// server's log; the second part, a closed loop, is not recorded request by request.)
func ReadLimitRun(path string) (LimitRun, error) {
	var run LimitRun
	fail := func(err error) (LimitRun, error) { return run, fmt.Errorf("sim: read %s: %w", path, err) }
	f, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	run.Run.Name = "limit change"
	add := func(at time.Duration, n int) {
		for range n {
			run.Run.Requests = append(run.Run.Requests, MeasuredRequest{Sent: at, Prompt: 100, Output: 400})
		}
		run.Waves = append(run.Waves, Wave{Requests: n})
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		var d struct {
			T                float64
			Event            string
			Value            float64
			Running, Waiting int
		}
		if err := json.Unmarshal(s.Bytes(), &d); err != nil {
			return fail(err)
		}
		at := seconds(d.T)
		switch d.Event {
		case "":
			run.Polls = append(run.Polls, LoadPoll{at, d.Running, d.Waiting})
		case "A: 64 x 400 tokens":
			add(at, 64)
		case "A: 40 more x 400 tokens under the limit":
			add(at, 40)
		case "set":
			run.Run.Limits = append(run.Run.Limits, LimitChange{at, d.Value})
		case "A: first wave done":
			run.Waves[0].End = at
		case "A: second wave done":
			run.Waves[1].End = at
			return run, nil
		default:
			return fail(fmt.Errorf("unknown event %q", d.Event))
		}
	}
	return fail(errors.New("the second wave does not end"))
}

// A LimitReport compares a LimitRun with its simulation.
type LimitReport struct {
	Measured, Simulated []time.Duration // end of each wave
	Polls               int
	Agree               int // polls at which running and waiting counts are equal to within 150 ms
}

// pollSlack is how far a poll may be from the moment it shows: counts are published by steps and read 100 ms apart.
const pollSlack = 150 * time.Millisecond

// ValidateLimit replays a run with a changing limit.
func ValidateLimit(p Profile, run LimitRun) (LimitReport, error) {
	var report LimitReport
	if err := p.validate(); err != nil {
		return report, err
	}
	states := []LoadPoll{{}}
	all, err := simulateWatched(p, run.Run, func(at time.Duration, e *Engine) {
		s := e.State()
		if last := states[len(states)-1]; s.Running != last.Running || s.Waiting != last.Waiting {
			states = append(states, LoadPoll{at, s.Running, s.Waiting})
		}
	})
	if err != nil {
		return report, err
	}
	next := 0
	var end time.Duration
	for _, w := range run.Waves {
		end = 0
		for _, x := range all[next : next+w.Requests] {
			end = max(end, x.last)
		}
		next += w.Requests
		report.Measured, report.Simulated = append(report.Measured, w.End), append(report.Simulated, end)
	}
	states = append(states, LoadPoll{At: end})
	report.Polls = len(run.Polls)
	for _, poll := range run.Polls {
		for i, s := range states {
			until := poll.At + 2*pollSlack
			if i+1 < len(states) {
				until = states[i+1].At
			}
			if s.Running == poll.Running && s.Waiting == poll.Waiting && s.At <= poll.At+pollSlack && until >= poll.At-pollSlack {
				report.Agree++
				break
			}
		}
	}
	return report, nil
}

// String returns the report as text.
func (r LimitReport) String() string {
	return fmt.Sprintf("limit change: waves ended after %v, simulated %v; running and waiting counts agree at %d of %d polls",
		r.Measured, r.Simulated, r.Agree, r.Polls)
}
