package sim

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A Difference is where a replay departs from its recording.
type Difference struct {
	Row       string // the recorded row, or what was compared
	Field     string
	Got, Want string
}

func (d *Difference) Error() string {
	return fmt.Sprintf("%s: %s is %s, recorded %s", d.Row, d.Field, d.Got, d.Want)
}

// A ReplayOption changes how a recording is replayed.
type ReplayOption func(*replay)

// ReplaySegments gives the engine named segments instead of token ids.
func ReplaySegments(p *replay) { p.segments = true }

// ReplayLoop replays through a [Loop], which calls the engine as it does in a simulation, instead of calling it as SGLang's
// loop would.
func ReplayLoop(p *replay) { p.loop = true }

// Replay feeds the recorded actions to an engine and compares every decision with the recorded one. It returns a
// [*Difference], the first one, or another error if the recording needs something that is not simulated, or nil.
func (g *Recording) Replay(opts ...ReplayOption) error {
	cfg, err := g.Config()
	if err != nil {
		return err
	}
	p := &replay{g: g, byID: map[string]*Request{}, results: map[string]*recordedResult{}, finishes: map[string]*Finish{}}
	for _, opt := range opts {
		opt(p)
	}
	cfg.QuietDecode = p.quiet
	if p.e, err = NewEngine(cfg); err != nil {
		return err
	}
	p.e.arrange = p.arrange
	for i := range g.Results {
		p.results[g.Results[i].RID] = &g.Results[i]
	}
	p.unfold()
	if p.loop {
		p.runLoop()
	} else {
		p.runEngine()
	}
	if p.err == nil && p.at < len(p.rows) {
		p.err = &Difference{Row: fmt.Sprintf("after row %d", p.at), Field: "the schedule", Got: "at its end", Want: nameOf(p.rows[p.at])}
	}
	if p.err != nil {
		return p.err
	}
	return p.compareResults()
}

// A replay follows the iterations of the recorded scheduler's event loop. Each is recorded in a row after it has planned;
// what finishes then, until the next iteration plans, belongs to the same row.
type replay struct {
	g        *Recording
	e        *Engine
	segments bool
	quiet    bool
	loop     bool
	each     func(e *Engine, underWay *Step) // after each planning and each result

	groups   []recordedGroup // that have not been handed over
	batch    int             // batches planned
	ran      bool            // the last iteration planned one
	idle     int             // iterations in a row that began idle
	received int             // messages in the present one
	pause    func(mode string)

	byID     map[string]*Request
	results  map[string]*recordedResult
	finishes map[string]*Finish
	order    []string
	finished []string     // in the present iteration
	row      *recordedRow // of the present iteration; nil: the recorder writes none yet
	rows     []recordedRow
	at       int
	err      error
}

// A recordedGroup holds the actions that the recorder hands over together.
type recordedGroup struct {
	actions  []recordedAction
	at, idle int
	pause    bool
}

// unfold writes out the rows and groups the actions as record_schedule.py does.
func (p *replay) unfold() {
	for _, r := range p.g.Trace {
		for j := range max(r.N, 1) {
			x := r
			x.I += j
			if r.B != nil {
				b := *r.B + j
				x.B = &b
			}
			x.Avail += j * r.DAvail
			x.Ratio += float64(j) * r.DRatio
			p.rows = append(p.rows, x)
		}
	}
	for _, a := range p.g.Actions {
		n := len(p.groups) - 1
		if n < 0 || a.Idle > 0 || p.groups[n].at != a.At || p.groups[n].pause {
			p.groups = append(p.groups, recordedGroup{at: a.At, idle: a.Idle})
			n++
		}
		g := &p.groups[n]
		g.actions = append(g.actions, a)
		g.pause = g.pause || a.Do == "pause"
	}
}

// runEngine is SGLang's event loop (scheduler.py, event_loop_overlap and event_loop_normal).
func (p *replay) runEngine() {
	var pending *Step
	p.pause = func(mode string) {
		if mode == "retract" {
			if pending != nil {
				p.e.Complete(pending)
				pending = nil
			}
			p.e.RetractAll()
		}
	}
	check := func() {
		if p.each != nil {
			p.each(p.e, pending)
		}
	}
	for p.receive() {
		s := p.e.Plan()
		p.planned(s)
		check()
		done, waited := s, false
		if p.g.Limits.Overlap {
			waited = pending != nil
			done, pending = pending, s
		}
		if done != nil {
			p.e.Complete(done)
			check()
		}
		if s == nil && !waited {
			p.e.Idle()
		}
	}
}

// runLoop drives a loop, waking it when it sleeps while SGLang's spins.
func (p *replay) runLoop() {
	l := NewLoop(p.e, Profile{Model: Linear{DecodeBase: 1, PrefillBase: 1}})
	more := true
	p.pause = func(mode string) {
		m := PauseInPlace
		if mode == "retract" {
			m = PauseRetract
		}
		p.drain(l.Pause(m), true)
		l.Continue(l.at)
	}
	l.receive = func() { more = more && p.receive() }
	l.planned = func(s *Step) {
		if more {
			p.planned(s)
		}
	}
	for more {
		l.Wake(l.at)
		p.drain(l.Advance(), true)
	}
}

// receive begins an iteration: it hands over the messages that are due, and closes the row of the iteration before. It
// reports false when the replay is over.
func (p *replay) receive() bool {
	p.drain(p.e.Outputs(), true)
	idle := !p.ran && p.e.fullyIdle()
	if p.idle++; !idle {
		p.idle = 0
	}
	p.received = 0
	paused, released := false, false
	for len(p.groups) > 0 && p.err == nil {
		g := p.groups[0]
		if p.idle < g.idle || g.at > p.batch && !(paused || idle && !released) {
			break
		}
		p.groups = p.groups[1:]
		for _, a := range g.actions {
			if p.err = p.do(a); p.err != nil {
				break
			}
			p.received++
			paused = a.Do == "pause" || paused && a.Do != "continue"
		}
		released = !g.pause // after a pause the next group is handed over in an iteration that does nothing else
	}
	p.drain(p.e.Outputs(), true)
	p.close()
	stuck := !p.ran && p.e.Settled() && p.received == 0
	return p.err == nil && !(stuck && (len(p.groups) == 0 || !p.e.fullyIdle()))
}

// planned opens the row of an iteration.
func (p *replay) planned(s *Step) {
	p.drain(p.e.Outputs(), false)
	if row := p.describe(s); s != nil || p.received > 0 || len(row.Queue) > 0 || len(row.Running) > 0 {
		p.row = &row
	}
	p.ran = s != nil
	if s != nil {
		p.batch++
	}
}

// close compares the row of the iteration that ends, if the recorder writes one.
func (p *replay) close() {
	if p.row == nil && len(p.finished) > 0 {
		p.row = &recordedRow{Kind: "result"}
	}
	if p.row != nil && p.err == nil {
		p.row.Finished = p.finished
		p.err = p.compare(*p.row)
	}
	p.row, p.finished = nil, nil
}

// drain notes the ends among outputs; result says that they may come from results, and not from planning.
func (p *replay) drain(outputs []Output, result bool) {
	for _, o := range outputs {
		if o.Finish == nil {
			continue
		}
		id := o.Request.RID
		p.finishes[id] = o.Finish
		if result && (!o.Finish.Queued || o.Finish.Status == 400) {
			p.order = append(p.order, id)
			p.finished = append(p.finished, id)
		}
	}
}

// arrange orders the victims of a preemption as the recorded scheduler's set did.
func (p *replay) arrange(victims []*Request) {
	if p.at < len(p.rows) {
		order := p.rows[p.at].Preempted
		slices.SortStableFunc(victims, func(a, b *Request) int {
			return cmp.Compare(slices.Index(order, a.RID), slices.Index(order, b.RID))
		})
	}
}

func (p *replay) do(a recordedAction) error {
	switch a.Do {
	case "submit":
		r, err := p.request(a)
		if err != nil {
			return err
		}
		p.byID[a.RID] = r
		p.e.Add(r)
	case "abort":
		p.e.Abort(p.byID[a.RID])
	case "set_limit":
		if !p.e.SetLimit(a.Value) {
			return fmt.Errorf("sim: recording %s: limit %v is out of range", p.g.Name, a.Value)
		}
	case "pause":
		p.pause(a.Mode)
	case "continue":
	default:
		return fmt.Errorf("sim: recording %s: action %q is not simulated", p.g.Name, a.Do)
	}
	return nil
}

func (p *replay) request(a recordedAction) (*Request, error) {
	r := &Request{RID: a.RID, MaxNewTokens: a.MaxNew, IgnoreEOS: a.IgnoreEOS == nil || *a.IgnoreEOS, Priority: a.Priority}
	res := p.results[a.RID]
	if res != nil && res.Finish != nil && res.Finish.Type == "stop" {
		r.StopAfter = *res.Completion
	}
	const outputs = 1 << 32 // streams of answers, by index of the result
	stream := func(id string) uint64 {
		return uint64(outputs + slices.IndexFunc(p.g.Results, func(x recordedResult) bool { return x.RID == id }))
	}
	if p.segments {
		r.OutputStream = stream(a.RID)
	} else if res != nil {
		r.OutputIDs = res.OutputIDs
	}
	for _, s := range a.Segments {
		r.InputLen += s.Len
		switch {
		case p.segments && s.OutputOf != "":
			r.Prompt.Segments = append(r.Prompt.Segments, load.Segment{Stream: stream(s.OutputOf), Length: s.Len})
		case p.segments:
			r.Prompt.Segments = append(r.Prompt.Segments, load.Segment{Stream: uint64(s.Seed % 1990), Length: s.Len})
		case s.OutputOf != "":
			of := p.results[s.OutputOf]
			if of == nil || len(of.OutputIDs) < s.Len {
				return nil, fmt.Errorf("sim: recording %s: request %s needs %d output ids of %q", p.g.Name, a.RID, s.Len, s.OutputOf)
			}
			r.Prompt.TokenIDs = append(r.Prompt.TokenIDs, of.OutputIDs[:s.Len]...)
		default:
			for i := range s.Len {
				r.Prompt.TokenIDs = append(r.Prompt.TokenIDs, int32(10+(s.Seed*7919+i*104729)%1990))
			}
		}
	}
	return r, nil
}

func ridsOf(rs []*Request) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.RID)
	}
	return out
}

// describe describes what was planned as the recorder does.
func (p *replay) describe(s *Step) recordedRow {
	e := p.e
	st := e.State()
	x := recordedRow{Kind: "none", Running: ridsOf(e.Running()), Queue: ridsOf(e.Waiting()), Full: st.BatchIsFull, Ratio: st.NewTokenRatio,
		Avail: st.FreeTokens, Evictable: st.CachedTokens, Retracted: ridsOf(e.Retracted()), Preempted: ridsOf(e.Preempted())}
	if c := e.Chunked(); c != nil {
		x.Chunked = &c.RID
	}
	if s == nil {
		return x
	}
	b := p.batch
	x.B = &b
	switch s.Kind {
	case DecodeStep:
		x.Kind, x.Running = "decode", nil
		for _, r := range s.Decode {
			x.Reqs = append(x.Reqs, json.RawMessage(strconv.Quote(r.RID)))
		}
	case MixedStep:
		x.Kind, x.Decode = "mixed", ridsOf(s.Decode)
	case PrefillStep:
		x.Kind = "prefill"
	}
	for _, r := range s.Rows {
		x.Reqs = append(x.Reqs, json.RawMessage(fmt.Sprintf("[%q,%d,%d]", r.Request.RID, r.Prefix, r.Extend)))
	}
	return x
}

func (p *replay) compare(got recordedRow) error {
	if p.at == len(p.rows) {
		return &Difference{Row: "after the last row", Field: "the schedule", Got: nameOf(got), Want: "at its end"}
	}
	want := p.rows[p.at]
	p.at++
	number := func(b *int) string {
		if b == nil {
			return "none"
		}
		return strconv.Itoa(*b)
	}
	text := func(s *string) string {
		if s == nil {
			return "none"
		}
		return *s
	}
	list := func(l []string) string { return "[" + strings.Join(l, " ") + "]" }
	raw := func(l []json.RawMessage) string {
		var out []string
		for _, r := range l {
			out = append(out, strings.ReplaceAll(string(r), " ", ""))
		}
		return list(out)
	}
	for _, f := range []struct{ name, got, want string }{
		{"kind", got.Kind, want.Kind},
		{"batch", number(got.B), number(want.B)},
		{"reqs", raw(got.Reqs), raw(want.Reqs)},
		{"decode", list(got.Decode), list(want.Decode)},
		{"running", list(got.Running), list(want.Running)},
		{"queue", list(got.Queue), list(want.Queue)},
		{"chunked", text(got.Chunked), text(want.Chunked)},
		{"full", strconv.FormatBool(got.Full), strconv.FormatBool(want.Full)},
		{"retracted", list(got.Retracted), list(want.Retracted)},
		{"preempted", list(got.Preempted), list(want.Preempted)},
		{"avail", strconv.Itoa(got.Avail), strconv.Itoa(want.Avail)},
		{"evictable", strconv.Itoa(got.Evictable), strconv.Itoa(want.Evictable)},
		{"finished", list(got.Finished), list(want.Finished)},
	} {
		if f.got != f.want {
			return &Difference{nameOf(want), f.name, f.got, f.want}
		}
	}
	if math.Abs(got.Ratio-want.Ratio) > 1e-6 {
		return &Difference{nameOf(want), "ratio", fmt.Sprint(got.Ratio), fmt.Sprint(want.Ratio)}
	}
	return nil
}

func nameOf(r recordedRow) string {
	b := ""
	if r.B != nil {
		b = fmt.Sprintf(" batch %d", *r.B)
	}
	return fmt.Sprintf("iteration %d%s (%s)", r.I, b, r.Kind)
}

func (p *replay) compareResults() error {
	if !slices.Equal(p.order, p.g.FinishOrder) {
		return &Difference{"at the end", "finish_order", fmt.Sprint(p.order), fmt.Sprint(p.g.FinishOrder)}
	}
	for _, want := range p.g.Results {
		r, f := p.byID[want.RID], p.finishes[want.RID]
		differs := func(field string, got, want any) error {
			return &Difference{"result of " + r.RID, field, fmt.Sprint(got), fmt.Sprint(want)}
		}
		if r.Lost() && want.Status == 0 { // the recorder's client gave up
			continue
		}
		if f == nil {
			return differs("the request", "unfinished", "finished")
		}
		for _, n := range []struct {
			name string
			got  int
			want *int
		}{{"completion_tokens", r.Produced(), want.Completion}, {"num_retractions", r.Retractions(), want.Retracted},
			{"cached_tokens", r.CachedTokens(), want.Cached}} {
			if n.want != nil && n.got != *n.want {
				return differs(n.name, n.got, *n.want)
			}
		}
		if want.Status != 200 {
			if f.Status != want.Status {
				return differs("status", f.Status, want.Status)
			}
			continue
		}
		if kind := map[string]FinishKind{"length": FinishLength, "stop": FinishStop, "abort": FinishAbort}[want.Finish.Type]; f.Kind != kind {
			return differs("finish_reason", f.Kind, want.Finish.Type)
		}
	}
	st := p.e.State()
	if st.FreeTokens+st.CachedTokens != st.MaxTotalTokens {
		return &Difference{"at the end", "free and cached tokens", strconv.Itoa(st.FreeTokens + st.CachedTokens), strconv.Itoa(st.MaxTotalTokens)}
	}
	return nil
}
