package sim

import (
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
	for i := range g.Results {
		p.results[g.Results[i].RID] = &g.Results[i]
	}
	if err := p.run(); err != nil {
		return err
	}
	return p.compareResults()
}

type replay struct {
	g        *Recording
	e        *Engine
	segments bool
	quiet    bool
	each     func(e *Engine, underWay *Step) // after each planning and each result

	next, batch int
	pending     *Step // planned and, with overlap, not completed
	byID        map[string]*Request
	results     map[string]*recordedResult
	finishes    map[string]*Finish
	order       []string
	finished    []string // since the last planning
	rows        []recordedRow
	at          int
}

// run is SGLang's event loop (scheduler.py, event_loop_overlap and event_loop_normal).
func (p *replay) run() error {
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
	for {
		idle := !p.e.Busy() && p.pending == nil
		if idle && p.next == len(p.g.Actions) && p.e.Chunked() == nil {
			break
		}
		if err := p.receive(idle); err != nil {
			return err
		}
		s := p.e.Plan()
		p.check()
		row, shown := p.row(s)
		done := s
		if p.g.Limits.Overlap {
			done, p.pending = p.pending, s
		}
		if s != nil {
			p.batch++
		}
		p.finished = nil
		if done != nil {
			p.e.Complete(done)
			p.check()
		}
		p.drain()
		row.Finished = p.finished
		if !shown {
			if len(p.finished) == 0 {
				continue
			}
			row = recordedRow{I: row.I, Kind: "result", Finished: p.finished}
		}
		if err := p.compare(row); err != nil {
			return err
		}
	}
	if p.at < len(p.rows) {
		return &Difference{Row: fmt.Sprintf("after row %d", p.at), Field: "the schedule", Got: "at its end", Want: describe(p.rows[p.at])}
	}
	return nil
}

func (p *replay) check() {
	if p.each != nil {
		p.each(p.e, p.pending)
	}
}

func (p *replay) drain() {
	for _, o := range p.e.Outputs() {
		if o.Finish == nil {
			continue
		}
		id := o.Request.RID
		p.finishes[id] = o.Finish
		if !o.Finish.Queued || o.Finish.Status == 400 {
			p.order = append(p.order, id)
			p.finished = append(p.finished, id)
		}
	}
}

// receive hands over the actions that are due before the next batch, or the next group of them if all is idle.
func (p *replay) receive(idle bool) error {
	at, dry := p.batch, idle
	for ; p.next < len(p.g.Actions); p.next++ {
		a := p.g.Actions[p.next]
		if a.At > at {
			if !dry {
				break
			}
			at = a.At
			if a.Idle > 0 {
				p.e.Idle()
			}
		}
		dry = false
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
			if a.Mode == "retract" {
				if p.pending != nil {
					p.e.Complete(p.pending)
					p.pending = nil
				}
				p.e.RetractAll()
			}
		case "continue":
		default:
			return fmt.Errorf("sim: recording %s: action %q is not simulated", p.g.Name, a.Do)
		}
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

// row describes what was planned as the recorder does, and reports whether the recorder writes such a row.
func (p *replay) row(s *Step) (recordedRow, bool) {
	e := p.e
	st := e.State()
	x := recordedRow{Kind: "none", Running: ridsOf(e.Running()), Queue: ridsOf(e.Waiting()), Full: st.BatchIsFull, Ratio: st.NewTokenRatio,
		Avail: st.FreeTokens, Evictable: st.CachedTokens, Retracted: ridsOf(e.Retracted()), Preempted: ridsOf(e.Preempted())}
	if p.at < len(p.rows) {
		x.I = p.rows[p.at].I
	}
	if c := e.Chunked(); c != nil {
		x.Chunked = &c.RID
	}
	if s == nil {
		return x, len(x.Queue) > 0 || len(x.Running) > 0 || p.at < len(p.rows) && p.rows[p.at].Kind == "none"
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
	return x, true
}

func (p *replay) compare(got recordedRow) error {
	if p.at == len(p.rows) {
		return &Difference{Row: "after the last row", Field: "the schedule", Got: describe(got), Want: "at its end"}
	}
	want := p.rows[p.at]
	p.at++
	slices.Sort(got.Preempted) // SGLang takes them from a set
	slices.Sort(want.Preempted)
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
			return &Difference{describe(want), f.name, f.got, f.want}
		}
	}
	if math.Abs(got.Ratio-want.Ratio) > 1e-6 {
		return &Difference{describe(want), "ratio", fmt.Sprint(got.Ratio), fmt.Sprint(want.Ratio)}
	}
	return nil
}

func describe(r recordedRow) string {
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
