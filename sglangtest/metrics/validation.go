package metrics

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// A Validation is what is known of a simulation's error: the runs of real servers that were replayed in it,
// to none of which it was fitted, what their workloads were like, and how far the replays were off. There is
// no one error of a simulation: it is small under a moderate load and large where a queue multiplies it. So a
// summary states the error of the measured runs that its own run is like, or that there is none; see
// [Validation.Bound]. It is not to be changed once it is in use.
type Validation struct {
	Capacity Capacity       `json:"capacity"`
	Runs     []ValidatedRun `json:"runs"`
	// Engines is the number of equal engines that share a run's load; 0: as many as samplers of simulated
	// engines, at least 1.
	Engines int `json:"engines,omitempty"`
	// Caveat is what the simulation at hand lacks of the one that was validated; empty: nothing.
	Caveat string `json:"caveat,omitempty"`
}

// Capacity is what a token costs an engine that works at its limit, in milliseconds of the engine's time. It
// says what a workload's load is against what the engine can do, not how long a request takes.
type Capacity struct {
	PrefillTokenMS  float64 `json:"prefill_token_ms"`  // a computed prompt token, in a full chunk
	DecodeTokenMS   float64 `json:"decode_token_ms"`   // an output token, in the largest batch, without its context
	DecodeContextMS float64 `json:"decode_context_ms"` // each token of its context
}

// A Workload is what a run asks of an engine, as far as a simulation's error depends on it.
type Workload struct {
	Requests int `json:"requests"` // that succeeded
	// Load is the engine's work for the requests, by [Capacity], over the time in which they arrived: 1 is
	// all that it can do. Above, requests queue up for as long as others arrive. [AllAtOnce] at most.
	Load float64 `json:"load"`
	// Peak is the load of that fifth of the time in which it was highest: arrivals that are not steady.
	Peak    float64 `json:"peak"`
	Prefill float64 `json:"prefill"` // share of the work that is prefill, 0 to 1
	Cached  float64 `json:"cached"`  // share of the prompt tokens that were in the prefix cache, 0 to 1
	Prompt  float64 `json:"prompt"`  // tokens, the mean of the requests
	Output  float64 `json:"output"`  // tokens, the mean of the requests
	// Held says that requests waited for others to end, as in a closed loop, so that the engine's speed sets
	// the load.
	Held bool `json:"held,omitempty"`
}

// AllAtOnce is the [Workload]'s Load from which on next to all requests wait for the first ones to end.
const AllAtOnce = 10

// A ValidatedRun is a measured run that was replayed.
type ValidatedRun struct {
	// Name is that of the run. The engines of one run have entries of their own under the same name: they saw
	// the same conditions, so that together they are one piece of evidence.
	Name     string   `json:"name"`
	Workload Workload `json:"workload"`
	// The errors are simulated/measured − 1 of p50, p90 and p99.
	TTFT [3]float64 `json:"ttft"`
	TPOT [3]float64 `json:"tpot"`
	E2E  [3]float64 `json:"e2e"`
}

// An ErrorBound is how far the figures of a simulated run may be off, to either side, as a share of what a
// real server would show: |simulated/measured − 1|, of p50, p90 and p99. +Inf: there is no telling.
type ErrorBound struct {
	TTFT, TPOT, E2E [3]float64
	// Like names the measured runs that the bound comes from, each once.
	Like []string
	// Uncovered says why there is no bound: in what the run differs from all that were measured. Empty: there
	// is one.
	Uncovered string

	worst [3]string // for each metric the largest error of its p99 among these runs, in words
}

// How like a run must be to a measured one for its error to be expected, and how much is added to that.
// bench/accuracy tells how often such bounds hold for runs that were left out.
const (
	// likeFactor is the ratio that the spare capacities may have: times in a queue, and with them the errors
	// of times, grow as 1/(1 − load). leastSpare is the spare capacity below which the load is too uncertain
	// itself to tell loads apart.
	likeFactor, leastSpare = 1.4, 0.1
	// likeShare is how far the shares of prefill and of cached tokens may be apart, likeLength the ratio of
	// mean lengths.
	likeShare, likeLength = 0.15, 2
	// peakParts is into how many parts the time is divided for the highest load.
	peakParts = 5
	// fewest is how many requests a run must have for its p99 to be more than one of them.
	fewest = 100
	// margin is by how much a bound exceeds the largest error that was seen: the next run may be worse than a
	// few others.
	margin = 1.25
	// standsOut is how many times the error of one run must exceed those of all the others for it to come
	// from what happens now and then, so that a few runs do not bound it.
	standsOut = 3
)

// LeastError is what the errors of a measured run count as at the least, for TTFT, TPOT and total latency:
// single prefills and decode steps scatter that much around any calibration.
var LeastError = [3]float64{0.08, 0.04, 0.04}

// Bound returns how far the figures of a run with such a workload may be off, by the measured runs that it is
// like: those whose spare capacity, 1 − load (at least 0.1; of loads of 1 and more, the load), and whose
// ratio of peak to mean load are 1.4 times its own or 1/1.4 at the most, whose shares of prefill and of
// cached tokens are within 0.15 and whose mean lengths within a factor of 2.
//
// The bound is 1.25 times the largest error of these runs, one for p50 and p90, one for p99. The error of a
// run that had more capacity to spare is taken as larger by that ratio, and none as less than [LeastError].
// If there is only one such run, nothing tells how errors vary from run to run, and its largest error stands
// for all three. There is no telling where one run's error is more than 3 times that of each other, or the
// bound would be 100 % or more.
func (v *Validation) Bound(w Workload) ErrorBound {
	if w.Requests < fewest {
		return ErrorBound{Uncovered: fmt.Sprintf("%d requests are too few to compare quantiles, want %d", w.Requests, fewest)}
	}
	var b ErrorBound
	var like []ValidatedRun
	var nearest ValidatedRun
	var differs []string
	for _, r := range v.Runs {
		d := w.differences(r.Workload)
		if len(d) == 0 {
			like = append(like, r)
			if !slices.Contains(b.Like, r.Name) {
				b.Like = append(b.Like, r.Name)
			}
			continue
		}
		if differs == nil || len(d) < len(differs) ||
			len(d) == len(differs) && math.Abs(w.Load-r.Workload.Load) < math.Abs(w.Load-nearest.Workload.Load) {
			nearest, differs = r, d
		}
	}
	if len(like) == 0 {
		b.Uncovered = "there is none"
		if differs != nil {
			b.Uncovered = fmt.Sprintf("it differs from %s, the most similar, in %s", nearest.Name, strings.Join(differs, ", "))
		}
		return b
	}
	for m := range 3 {
		body, tail := make([]float64, len(b.Like)), make([]float64, len(b.Like)) // the largest errors of each run
		var most float64
		for i := range like {
			e, k := like[i].Errors()[m], slices.Index(b.Like, like[i].Name)
			grown := max(1, strain(w.Load)/strain(like[i].Workload.Load))
			body[k] = max(body[k], grown*math.Abs(e[0]), grown*math.Abs(e[1]), LeastError[m])
			tail[k] = max(tail[k], body[k], grown*math.Abs(e[2]))
			if math.Abs(e[2]) >= math.Abs(most) {
				most, b.worst[m] = e[2], fmt.Sprintf("%+.0f %% in %s", 100*e[2], like[i].Name)
			}
		}
		if len(b.Like) == 1 {
			body = tail
		}
		p50, p99 := boundOf(body), boundOf(tail)
		*[]*[3]float64{&b.TTFT, &b.TPOT, &b.E2E}[m] = [3]float64{p50, p50, p99}
	}
	return b
}

// Errors returns TTFT, TPOT and E2E.
func (r *ValidatedRun) Errors() [3][3]float64 { return [3][3]float64{r.TTFT, r.TPOT, r.E2E} }

// boundOf returns the bound that the largest errors of some runs give.
func boundOf(errors []float64) float64 {
	sorted := slices.Sorted(slices.Values(errors))
	n := len(sorted)
	worst := sorted[n-1]
	if n > 1 && worst > standsOut*sorted[n-2] || margin*worst >= 1 {
		return math.Inf(1)
	}
	return margin * worst
}

// differences names in what a measured workload is unlike w; none: in nothing.
func (w Workload) differences(measured Workload) (d []string) {
	add := func(format string, args ...any) { d = append(d, fmt.Sprintf(format, args...)) }
	if w.Held != measured.Held {
		how := map[bool]string{true: "arrivals that wait for requests in flight", false: "arrivals that wait for nothing"}
		add("%s (there: %s)", how[w.Held], how[measured.Held])
	} else if !w.Held && (w.Load >= 1 != (measured.Load >= 1) || apart(strain(w.Load), strain(measured.Load), likeFactor)) {
		add("load %s (there %s)", loadText(w.Load), loadText(measured.Load))
	} else if !w.Held && apart(w.Peak/w.Load, measured.Peak/measured.Load, likeFactor) {
		add("a load that rises to %.1f times its mean (there %.1f)", w.Peak/w.Load, measured.Peak/measured.Load)
	}
	if math.Abs(w.Prefill-measured.Prefill) > likeShare {
		add("prefill %.0f %% of the work (there %.0f %%)", 100*w.Prefill, 100*measured.Prefill)
	}
	if math.Abs(w.Cached-measured.Cached) > likeShare {
		add("%.0f %% of the prompt tokens cached (there %.0f %%)", 100*w.Cached, 100*measured.Cached)
	}
	if apart(w.Prompt, measured.Prompt, likeLength) {
		add("prompts of %.0f tokens in the mean (there %.0f)", w.Prompt, measured.Prompt)
	}
	if apart(w.Output, measured.Output, likeLength) {
		add("outputs of %.0f tokens in the mean (there %.0f)", w.Output, measured.Output)
	}
	return d
}

// strain is how much a load multiplies times and their errors: 1/(1 − load), and once requests queue up
// without end, the load.
func strain(load float64) float64 {
	if load < 1 {
		return 1 / max(1-load, leastSpare)
	}
	return load
}

// apart reports whether two numbers, 0 or more, differ by more than the factor.
func apart(a, b, factor float64) bool { return max(a, b) > factor*min(a, b) }

func loadText(load float64) string {
	if load >= AllAtOnce {
		return "all at once"
	}
	return fmt.Sprintf("%.2f", load)
}

// A Demand is what one request asks of an engine.
type Demand struct {
	At                     time.Duration // of its arrival
	Prompt, Cached, Output int           // tokens; Cached of the prompt's were in the prefix cache
}

// Workload returns what requests are like that a number of equal engines share.
func (c Capacity) Workload(requests []Demand, engines int) Workload {
	w := Workload{Requests: len(requests), Load: AllAtOnce, Peak: AllAtOnce}
	if len(requests) == 0 {
		return w
	}
	first, last := requests[0].At, requests[0].At
	var prompt, cached, output, prefill, work float64
	cost := func(d Demand) (prefill, decode float64) {
		context := float64(d.Prompt) + float64(d.Output)/2 // in the mean of its output tokens
		return float64(d.Prompt-d.Cached) * c.PrefillTokenMS, float64(d.Output) * (c.DecodeTokenMS + context*c.DecodeContextMS)
	}
	for _, d := range requests {
		first, last = min(first, d.At), max(last, d.At)
		prompt, cached, output = prompt+float64(d.Prompt), cached+float64(d.Cached), output+float64(d.Output)
		p, dec := cost(d)
		prefill, work = prefill+p, work+p+dec
	}
	n := float64(len(requests))
	w.Prompt, w.Output = prompt/n, output/n
	if prompt > 0 {
		w.Cached = cached / prompt
	}
	if work <= 0 {
		return w
	}
	w.Prefill = prefill / work
	span := float64(last-first) / 1e6 * float64(max(engines, 1))
	if span <= 0 {
		return w
	}
	w.Load = min(AllAtOnce, work*(n-1)/n/span) // n arrivals are n - 1 intervals
	var parts [peakParts]float64
	for _, d := range requests {
		p, dec := cost(d)
		parts[min(int(float64(d.At-first)/float64(last-first)*peakParts), peakParts-1)] += p + dec
	}
	w.Peak = min(AllAtOnce, slices.Max(parts[:])*peakParts/span)
	return w
}

// errorKinds are the latencies of an ErrorBound, in the order of its fields.
var errorKinds = [3]string{"TTFT", "TPOT", "E2E"}

// Brief words the bound of p50 and p90 in a few words.
func (b ErrorBound) Brief() string {
	if b.Uncovered != "" {
		return "error not known for such a run"
	}
	var parts []string
	for m, of := range [3][3]float64{b.TTFT, b.TPOT, b.E2E} {
		if math.IsInf(of[0], 1) {
			parts = append(parts, errorKinds[m]+" no bound")
		} else {
			parts = append(parts, fmt.Sprintf("%s ±%.0f %%", errorKinds[m], math.Ceil(100*of[0]-1e-9)))
		}
	}
	return "error " + strings.Join(parts, ", ")
}

// Statement words the bound for a summary.
func (b ErrorBound) Statement() string {
	if b.Uncovered != "" {
		return "not covered by any measured run: " + b.Uncovered
	}
	var parts []string
	for m, name := range errorKinds {
		of := [3][3]float64{b.TTFT, b.TPOT, b.E2E}[m]
		text := func(v float64) string {
			if math.IsInf(v, 1) {
				return fmt.Sprintf("no bound: %s", b.worst[m])
			}
			return fmt.Sprintf("±%.0f %%", math.Ceil(100*v-1e-9))
		}
		s := name + " " + text(of[0])
		if of[2] != of[0] {
			s += " (p99 " + text(of[2]) + ")"
		}
		parts = append(parts, s)
	}
	from := fmt.Sprintf("%d measured runs like this one", len(b.Like))
	if len(b.Like) == 1 {
		from = "the only measured run like this one"
	}
	return fmt.Sprintf("%s, by %s (%s)", strings.Join(parts, ", "), from, strings.Join(b.Like, ", "))
}

// workloadKinds are the workloads whose absence among the measured runs [Validation.String] names.
var workloadKinds = []struct {
	name string
	is   func(Workload) bool
}{
	{"load near or above capacity", func(w Workload) bool { return w.Load > 0.85 }},
	{"closed loops", func(w Workload) bool { return w.Held }},
	{"mostly prefill (above 80 % of the work)", func(w Workload) bool { return w.Prefill > 0.8 }},
	{"mostly decode (above 80 %)", func(w Workload) bool { return w.Prefill < 0.2 }},
	{"prompts partly in the prefix cache (20 to 70 % of the tokens)", func(w Workload) bool { return w.Cached > 0.2 && w.Cached < 0.7 }},
	{"prompts mostly in the prefix cache", func(w Workload) bool { return w.Cached >= 0.7 }},
}

// String says what was measured and what was not, in one line.
func (v *Validation) String() string {
	if len(v.Runs) == 0 {
		return "no run was measured"
	}
	lo, hi := v.Runs[0].Workload, v.Runs[0].Workload
	var names, cached, missing []string
	for _, r := range v.Runs {
		w := r.Workload
		lo.Load, hi.Load = min(lo.Load, w.Load), max(hi.Load, w.Load)
		lo.Prefill, hi.Prefill = min(lo.Prefill, w.Prefill), max(hi.Prefill, w.Prefill)
		lo.Prompt, hi.Prompt = min(lo.Prompt, w.Prompt), max(hi.Prompt, w.Prompt)
		lo.Output, hi.Output = min(lo.Output, w.Output), max(hi.Output, w.Output)
		if !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
			if w.Cached > 0.01 {
				cached = append(cached, fmt.Sprintf("%.0f %% in %s", 100*w.Cached, r.Name))
			}
		}
	}
	for _, k := range workloadKinds {
		if !slices.ContainsFunc(v.Runs, func(r ValidatedRun) bool { return k.is(r.Workload) }) {
			missing = append(missing, k.name)
		}
	}
	s := fmt.Sprintf("by kind of workload, from %d measured runs (%s) with load %s to %s of capacity, prefill %.0f to %.0f %% of the work, mean lengths of %.0f to %.0f and %.0f to %.0f tokens, cached prompt tokens: %s",
		len(names), strings.Join(names, ", "), loadText(lo.Load), loadText(hi.Load), 100*lo.Prefill, 100*hi.Prefill, lo.Prompt, hi.Prompt, lo.Output, hi.Output,
		cmp.Or(strings.Join(cached, ", "), "none"))
	if missing != nil {
		s += "; not measured: " + strings.Join(missing, ", ")
	}
	return s
}
