package metrics

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A Window sums up what happened in [From, To) of a run's time line.
type Window struct {
	From time.Duration `json:"from_ns"`
	To   time.Duration `json:"to_ns"`

	Arrivals    int `json:"arrivals"`
	Completions int `json:"completions"` // successes that ended in the window
	Failures    int `json:"failures"`    // failures that became known in the window, censored requests not among them
	// OutputTokensPerS counts tokens when they were read, those of failed requests too. Tokens of answers whose events have
	// no counts are spread evenly from the first to the last token.
	OutputTokensPerS float64 `json:"output_tokens_per_s"`
	// TTFTMedian is that of the requests that arrived in the window, failures as +infinity.
	TTFTMedian   Millis  `json:"ttft_median_ms"`
	InFlightMean float64 `json:"in_flight_mean"` // requests between Send and Completion
	// Running and Waiting are what engines reported: the sum over sources of each one's mean, and the largest single value.
	// Null if there was no sample that was not stale.
	Running *Gauge `json:"running"`
	Waiting *Gauge `json:"waiting"`
	// Params holds the parameters that were changed by the end of the window, as "source/name"; one that has not been
	// changed yet is not in it.
	Params map[string]any `json:"params,omitempty"`
}

// Windows cuts the run into windows of the given width, from its start to its last request's end, so that the effect of
// a change can be seen. The last window may be shorter. There are none if nothing arrived. It panics while the run is under way, or if
// width is not positive.
func (c *Collector) Windows(width time.Duration) []Window {
	if width <= 0 {
		panic(fmt.Sprintf("metrics: windows of width %v: must be positive", width))
	}
	rs := c.finished("Windows")
	ended := len(c.serverEnds()) > 0 // else nobody knows how what was cancelled would have ended
	end := c.lastArr
	for _, r := range rs {
		end = max(end, r.Completion)
	}
	if c.arrived == 0 {
		return nil
	}
	end = max(end, 1)
	ws := make([]Window, (end-1)/width+1)
	for i := range ws {
		ws[i].From, ws[i].To = time.Duration(i)*width, time.Duration(i+1)*width
	}
	ws[len(ws)-1].To = end
	// What happens at end itself belongs to the last window.
	at := func(t time.Duration) int { return min(len(ws)-1, max(0, int(t/width))) }

	tokens := make([]float64, len(ws))
	ttfts := make([][]float64, len(ws))
	failed := make([]int, len(ws))
	// overlap calls add with the length of the part of [from, to) that lies in each window.
	overlap := func(from, to time.Duration, add func(i int, part time.Duration)) {
		for i := at(from); i <= at(to); i++ {
			if part := min(to, ws[i].To) - max(from, ws[i].From); part > 0 {
				add(i, part)
			}
		}
	}
	for _, r := range rs {
		arr := at(r.Arrival)
		ws[arr].Arrivals++
		censored := r.Outcome == load.OutcomeCancelled && !ended
		switch {
		case r.OK():
			ws[at(r.Completion)].Completions++
		case !censored:
			ws[at(r.Completion)].Failures++
		}
		if r.OK() && r.FirstToken != 0 {
			ttfts[arr] = append(ttfts[arr], ms(r.FirstToken-r.Arrival))
		} else if !censored {
			failed[arr]++
		}
		if r.Sent {
			overlap(r.Send, r.Completion, func(i int, part time.Duration) { ws[i].InFlightMean += part.Seconds() })
		}
		windowTokens(r, at, overlap, tokens)
	}
	for _, t := range c.pending {
		ws[at(t)].Arrivals++
		failed[at(t)]++
	}
	for i := range ws {
		w := &ws[i]
		length := (w.To - w.From).Seconds()
		w.InFlightMean /= length
		w.OutputTokensPerS = tokens[i] / length
		slices.Sort(ttfts[i])
		w.TTFTMedian = Millis(quantile(ttfts[i], failed[i], 0.5))
	}
	c.windowSamples(ws, at)
	c.windowParams(ws)
	return ws
}

func windowTokens(r *load.Result, at func(time.Duration) int, overlap func(from, to time.Duration, add func(int, time.Duration)), tokens []float64) {
	counted := 0
	for ch := range r.Chunks.All() {
		if counted += ch.Tokens; counted > r.OutputTokens {
			break
		}
	}
	if counted == r.OutputTokens {
		for ch := range r.Chunks.All() {
			tokens[at(ch.At)] += float64(ch.Tokens)
		}
		return
	}
	if r.LastToken <= r.FirstToken {
		tokens[at(max(r.FirstToken, r.LastToken))] += float64(r.OutputTokens)
		return
	}
	overlap(r.FirstToken, r.LastToken, func(i int, part time.Duration) {
		tokens[i] += float64(r.OutputTokens) * float64(part) / float64(r.LastToken-r.FirstToken)
	})
}

func (c *Collector) windowSamples(ws []Window, at func(time.Duration) int) {
	samples := c.Samples()
	add := func(into **Gauge, sum gaugeSum) {
		g := sum.gauge()
		if g == nil {
			return
		}
		if *into == nil {
			*into = &Gauge{Max: g.Max}
		}
		(*into).Mean += g.Mean
		(*into).Max = max((*into).Max, g.Max)
	}
	for _, l := range c.samplers {
		running, waiting := make([]gaugeSum, len(ws)), make([]gaugeSum, len(ws))
		for _, s := range samples {
			if s.Source == l.name && s.At <= ws[len(ws)-1].To && !stale(s, l.interval.Seconds()) {
				running[at(s.At)].add(s.Values, NumRunning)
				waiting[at(s.At)].add(s.Values, NumWaiting)
			}
		}
		for i := range ws {
			add(&ws[i].Running, running[i])
			add(&ws[i].Waiting, waiting[i])
		}
	}
}

func (c *Collector) windowParams(ws []Window) {
	events := c.Events()
	var params map[string]any
	for i := range ws {
		for len(events) > 0 && events[0].At < ws[i].To {
			if e := events[0]; e.Kind == KindParamUpdate {
				params = maps.Clone(params)
				if params == nil {
					params = make(map[string]any)
				}
				params[fmt.Sprintf("%s/%v", e.Source, e.Data["name"])] = e.Data["value"]
			}
			events = events[1:]
		}
		ws[i].Params = params
	}
}

// WriteWindows writes windows as a table, one line each, and before it a line of the parameters that have changed. Requests and
// output tokens are counted in the window in which they ended or were read, but the TTFT, in ms, is that of the requests that
// arrived in the window, whenever their first token came. running and waiting are the engines' mean and maximum.
func WriteWindows(w io.Writer, ws []Window) error {
	var sb strings.Builder
	t := tabwriter.NewWriter(&sb, 0, 0, 1, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "from s\tto s\tarrived\tok\tfailed\ttok/s\tTTFT p50\tin flight\trunning\twaiting\t")
	// Milliseconds are exact enough, and most windows begin and end at whole seconds.
	seconds := func(d time.Duration) string {
		return strconv.FormatFloat(d.Round(time.Millisecond).Seconds(), 'f', -1, 64)
	}
	gauge := func(g *Gauge) string {
		if g == nil {
			return "-"
		}
		return fmt.Sprintf("%.1f/%.0f", g.Mean, g.Max)
	}
	changed := make([][]string, len(ws)) // the parameters that a window has otherwise than the one before it
	var before map[string]any
	for i, x := range ws {
		for _, k := range slices.Sorted(maps.Keys(x.Params)) {
			if v, had := before[k]; !had || fmt.Sprint(v) != fmt.Sprint(x.Params[k]) {
				changed[i] = append(changed[i], fmt.Sprintf("%s := %v", strings.TrimPrefix(k, "/"), x.Params[k]))
			}
		}
		before = x.Params
		ttft := cell(x.TTFTMedian)
		if x.TTFTMedian.Valid() {
			ttft = fmt.Sprintf("%.1f", float64(x.TTFTMedian))
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%.0f\t%s\t%.1f\t%s\t%s\t\n", seconds(x.From), seconds(x.To), x.Arrivals, x.Completions,
			x.Failures, x.OutputTokensPerS, ttft, x.InFlightMean, gauge(x.Running), gauge(x.Waiting))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	i := -2 // the heading comes before the first window
	for line := range strings.Lines(sb.String()) {
		if i++; i >= 0 && changed[i] != nil {
			if _, err := fmt.Fprintf(w, "  %s\n", strings.Join(changed[i], ", ")); err != nil {
				return err
			}
		}
		if _, err := io.WriteString(w, strings.TrimRight(line, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}
