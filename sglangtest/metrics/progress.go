package metrics

import (
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/sglangtest/harness/sglangtest/load"
)

// Progress is a snapshot of a run.
type Progress struct {
	// Phase says what the run waits for before its load begins, such as "server-0 starts: load weights: 3 of 8"; empty from then
	// on. Elapsed is then the time of that wait, and all else is 0.
	Phase string

	Elapsed time.Duration // since the run's start, in virtual time too; 0 before it
	// LastArrival is when the last request of the plan arrives; 0 if all arrive at once.
	LastArrival time.Duration
	Planned     int // requests of the plan
	Arrived     int
	Completed   int // successes
	Failed      int
	// InFlight is the number of requests that have arrived and not ended, whether they have been sent or not.
	InFlight int
	// OutputTokens counts those of the requests that have ended, failed ones included.
	OutputTokens int64
	// Rate is how many requests ended per second, well or not, and TTFT the mean of the successes among them, over the last
	// [RecentSpan] of the run. TTFT is NaN if there are none.
	Rate float64
	TTFT Millis
	// Problems says what has gone wrong in the parts of the run that go on in the background, in the order in which it was
	// noticed: what cannot be stored or sampled, a parameter that was not changed, a warning or the end of a server. It only
	// grows from one Progress of a run to the next.
	Problems []string
}

// RecentSpan is the time over which a Progress tells the rate and the TTFT.
const RecentSpan = 5 * time.Second

// Ended reports whether all requests of the plan have ended.
func (p Progress) Ended() bool { return p.Phase == "" && p.Arrived == p.Planned && p.InFlight == 0 }

// Progress returns a snapshot. It is cheap and may be called at any time; before Begin it is zero.
func (c *Collector) Progress() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == stateNew {
		return Progress{}
	}
	p := Progress{Planned: c.info.Plan.Requests, LastArrival: c.info.Plan.LastArrival, Arrived: c.arrived, Completed: c.completed, Failed: c.failed,
		InFlight: len(c.pending), OutputTokens: c.tokens, Elapsed: c.ended}
	if c.state == stateRunning {
		p.Elapsed = max(c.clock.Now(), 0)
	}
	p.Rate, p.TTFT = c.recent.at(p.Elapsed)
	p.Problems = slices.Clip(c.problems)
	return p
}

// A recent counts the requests that ended lately, by the second.
type recent struct{ slots [recentSeconds]endedIn }

type endedIn struct {
	second    int64
	ended, ok int
	ttft      time.Duration // sum of the ok ones
}

const recentSeconds = int64(RecentSpan/time.Second) + 1

func (r *recent) add(res *load.Result) {
	second := int64(res.Completion / time.Second)
	s := &r.slots[uint64(second)%uint64(recentSeconds)]
	if second < s.second { // too long ago
		return
	}
	if second > s.second {
		*s = endedIn{second: second}
	}
	s.ended++
	if res.OK() && res.FirstToken > 0 {
		s.ok++
		s.ttft += res.FirstToken - res.Arrival
	}
}

// at returns the rate and the mean TTFT of the whole seconds of RecentSpan before now, and of the present one.
func (r *recent) at(now time.Duration) (rate float64, ttft Millis) {
	last := int64(now / time.Second)
	ended, ok, sum := 0, 0, time.Duration(0)
	for _, s := range r.slots {
		if s.second > last-recentSeconds && s.second <= last {
			ended, ok, sum = ended+s.ended, ok+s.ok, sum+s.ttft
		}
	}
	span := min(now, now-time.Duration(last-recentSeconds+1)*time.Second)
	if span > 0 {
		rate = float64(ended) / span.Seconds()
	}
	if ok == 0 {
		return rate, Millis(math.NaN())
	}
	return rate, millis(sum / time.Duration(ok))
}

// plainEvery is the time between two lines of progress that are not on a terminal.
const plainEvery = 10 * time.Second

// TerminalProgress returns a function that shows progress on w: on a terminal as one line that rewrites itself and is no wider than
// it, elsewhere as a line every ten seconds and at each new phase. A problem gets a line of its own at once. Calls must come one after the other, as those of
// sglangtest.WithProgress do.
func TerminalProgress(w io.Writer) func(Progress) {
	width := func() int { return 0 }
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		width = func() int {
			columns, _, err := term.GetSize(int(f.Fd()))
			if err != nil || columns < 1 {
				columns = 80
			}
			return columns
		}
	}
	return terminalProgress(w, width, time.Now)
}

// terminalProgress is TerminalProgress on a terminal of so many columns; 0: on none.
func terminalProgress(w io.Writer, width func() int, now func() time.Time) func(Progress) {
	var mu sync.Mutex
	var begin, told time.Time // of the load, and of the last line that is not on a terminal
	var phase string
	problems := 0 // told
	return func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		at := now()
		if begin.IsZero() && p.Phase == "" {
			begin = at
		}
		line := p.Phase
		if line != "" {
			line = fmt.Sprintf("%s  %s", shortTime(p.Elapsed), line)
		} else {
			line = strings.Join(p.parts(at.Sub(begin)), "  ")
		}
		columns := width()
		for _, problem := range p.Problems[min(problems, len(p.Problems)):] {
			if columns > 0 {
				fmt.Fprint(w, "\r\x1b[K")
			}
			fmt.Fprintf(w, "%s  problem: %s\n", shortTime(p.Elapsed), problem)
		}
		problems = len(p.Problems)
		switch {
		case columns > 0:
			if runes := []rune(line); len(runes) >= columns { // the last column would wrap on some terminals
				line = string(runes[:columns-1])
			}
			fmt.Fprintf(w, "\r\x1b[K%s", line)
			if p.Ended() {
				fmt.Fprintln(w)
			}
		case p.Ended() || p.Phase != phase || at.Sub(told) >= plainEvery:
			told = at
			fmt.Fprintln(w, line)
		}
		phase = p.Phase
	}
}

// parts are the parts of a line, the most important first. took is the time since the load began, by the user's clock.
func (p Progress) parts(took time.Duration) []string {
	ended := p.Completed + p.Failed
	parts := []string{shortTime(p.Elapsed)}
	if p.Planned > 0 {
		parts = append(parts, fmt.Sprintf("%d %%", 100*ended/p.Planned))
	}
	switch share := p.share(); {
	case p.Ended():
	case p.LastArrival > 0 && share >= 1:
		parts = append(parts, "draining")
	case share > 0.01 && share < 1:
		parts = append(parts, shortTime(time.Duration(float64(took)*(1-share)/share))+" to go")
	}
	if p.Rate > 0 && !p.Ended() {
		parts = append(parts, fmt.Sprintf("%.3g/s", p.Rate))
		if p.TTFT.Valid() {
			parts = append(parts, fmt.Sprintf("TTFT %.3g ms", float64(p.TTFT)))
		}
	}
	parts = append(parts, fmt.Sprintf("%d in flight", p.InFlight))
	if p.Failed > 0 {
		parts = append(parts, fmt.Sprintf("%d failed", p.Failed))
	}
	return append(parts, fmt.Sprintf("%d of %d done", ended, p.Planned))
}

// share is how much of the load is over: of its time, or of its requests if they all arrive at once.
func (p Progress) share() float64 {
	switch {
	case p.LastArrival > 0:
		return min(float64(p.Elapsed)/float64(p.LastArrival), 1)
	case p.Planned > 0:
		return float64(p.Completed+p.Failed) / float64(p.Planned)
	}
	return 0
}

// shortTime writes a time as 12 s, 2:05 or 1:02:05.
func shortTime(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}
