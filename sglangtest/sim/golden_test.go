package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/stretchr/testify/require"
)

// golden is one recording of the real scheduler of SGLang 0.5.23: what it was given and what it decided.
type golden struct {
	Flags  []string `json:"flags"`
	Tokens int      `json:"kv_tokens"`
	Limits struct {
		MaxRunning       int     `json:"max_running_requests"`
		Chunk            int     `json:"chunked_prefill_size"`
		MaxPrefill       int     `json:"max_prefill_tokens"`
		Conservativeness float64 `json:"schedule_conservativeness"`
		DisableRadix     bool    `json:"disable_radix_cache"`
		Overlap          bool    `json:"overlap"`
	} `json:"limits"`
	Actions []struct {
		At       int    `json:"at"`
		Do       string `json:"do"`
		RID      string `json:"rid"`
		Segments []struct {
			Len int `json:"len"`
		} `json:"segments"`
		MaxNew    int     `json:"max_new_tokens"`
		IgnoreEOS *bool   `json:"ignore_eos"`
		Value     float64 `json:"value"`
		Idle      int     `json:"idle"`
	} `json:"actions"`
	Trace []struct {
		B         *int              `json:"b"`
		Kind      string            `json:"kind"`
		Reqs      []json.RawMessage `json:"reqs"`
		Running   []string          `json:"running"`
		Queue     []string          `json:"queue"`
		Chunked   *string           `json:"chunked"`
		Full      bool              `json:"full"`
		Ratio     float64           `json:"ratio"`
		Avail     int               `json:"avail"`
		Evictable int               `json:"evictable"`
		Retracted []string          `json:"retracted"`
		N         int               `json:"n"`
		DAvail    int               `json:"d_avail"`
		DRatio    float64           `json:"d_ratio"`
	} `json:"trace"`
	Results []struct {
		RID        string `json:"rid"`
		Status     int    `json:"status"`
		Completion *int   `json:"completion_tokens"`
		Retracted  *int   `json:"num_retractions"`
		Finish     *struct {
			Type string `json:"type"`
		} `json:"finish_reason"`
	} `json:"results"`
	FinishOrder []string `json:"finish_order"`
}

// The scenarios without prefix hits, other policies, pages, mixed chunks and pauses.
var goldenNames = strings.Fields(`abort_chunked abort_queued_and_running cap_16_refill cap_same_length chunk_pool_pressure
	chunk_shared chunk_while_decoding chunked_one_long clip_4096 clip_4096_ignore_eos conservativeness_03_pool
	conservativeness_15_pool full_flag_object idle_reset larger_than_pool limit_during_chunk limit_latch limit_one
	limit_raise_not_full max_prefill_tokens nochunk_budget nooverlap_cap_16_refill nooverlap_chunk_while_decoding
	nooverlap_limit_latch nooverlap_pool_admission_ignore_eos nooverlap_stop_token noradix_chunk_shared
	noradix_ignore_eos noradix_ratio noradix_retract one_token_outputs pool_admission_ignore_eos
	pool_admission_ratio prefill_before_decode queue_limit retract_ignore_eos several_one_prefill single
	stop_token waits_for_room conservativeness_03_retract retract_many`)

func TestGoldenSchedules(t *testing.T) {
	for _, name := range goldenNames {
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile("testdata/schedules/" + name + ".json")
			if errors.Is(err, fs.ErrNotExist) {
				raw, err = os.ReadFile(refdata.Path(t, "sglang-schedules/0.5.23/"+name+".json"))
			}
			require.NoError(t, err)
			var g golden
			require.NoError(t, json.Unmarshal(raw, &g))
			replayGolden(t, &g)
		})
	}
}

// replayGolden feeds the recorded actions to an engine and compares every decision.
func replayGolden(t *testing.T, g *golden) {
	cfg := EngineConfig{MaxTotalTokens: g.Tokens, ContextLength: 4096, MaxRunningRequests: g.Limits.MaxRunning, ChunkedPrefillSize: g.Limits.Chunk,
		MaxPrefillTokens: g.Limits.MaxPrefill, ScheduleConservativeness: g.Limits.Conservativeness, DisableRadixCache: g.Limits.DisableRadix}
	if i := slices.Index(g.Flags, "--max-queued-requests"); i >= 0 {
		fmt.Sscan(g.Flags[i+1], &cfg.MaxQueuedRequests)
	}
	if slices.Contains(g.Flags, "--json-model-override-args") {
		cfg.ContextLength = 16384
	}
	e, err := NewEngine(cfg)
	require.NoError(t, err)

	stopAfter := map[string]int{}
	for _, r := range g.Results {
		if r.Finish != nil && r.Finish.Type == "stop" {
			stopAfter[r.RID] = *r.Completion
		}
	}
	byID := map[string]*Request{}
	id := func(r *Request) string { return r.Owner.(string) }
	ids := func(rs []*Request) []string {
		out := []string{}
		for _, r := range rs {
			out = append(out, id(r))
		}
		return out
	}
	finishes := map[string]*Finish{}
	order := []string{}
	drain := func() {
		for _, o := range e.Outputs() {
			if o.Finish != nil {
				finishes[id(o.Request)] = o.Finish
				if !o.Finish.Queued || o.Finish.Status == 400 {
					order = append(order, id(o.Request))
				}
			}
		}
	}
	next := 0
	receive := func(batch int, dry bool) {
		for next < len(g.Actions) && (g.Actions[next].At <= batch || dry) {
			if dry {
				batch, dry = g.Actions[next].At, false
				if g.Actions[next].Idle > 0 {
					e.Idle()
				}
			}
			a := g.Actions[next]
			next++
			switch a.Do {
			case "submit":
				r := &Request{MaxNewTokens: a.MaxNew, IgnoreEOS: a.IgnoreEOS == nil || *a.IgnoreEOS, StopAfter: stopAfter[a.RID], Owner: a.RID}
				for _, s := range a.Segments {
					r.InputLen += s.Len
				}
				byID[a.RID] = r
				e.Add(r)
			case "abort":
				e.Abort(byID[a.RID])
			case "set_limit":
				require.True(t, e.SetLimit(a.Value))
			default:
				t.Fatalf("action %q is not supported", a.Do)
			}
		}
	}
	var pending *Step
	batch := 0
	type row struct {
		b                     int
		kind                  string
		reqs                  []string
		queue                 []string
		chunked               string
		full                  bool
		ratio                 float64
		free                  int
		running               []string
		retracted, unfiltered bool
	}
	var want []row
	for _, r := range g.Trace {
		if r.Kind == "result" {
			continue
		}
		for j := range max(r.N, 1) {
			w := row{b: -1, kind: r.Kind, queue: append([]string{}, r.Queue...), full: r.Full, reqs: []string{}, running: r.Running,
				ratio: r.Ratio + float64(j)*r.DRatio, free: r.Avail + r.Evictable + j*r.DAvail}
			if r.B != nil {
				w.b = *r.B + j
			}
			if r.Chunked != nil {
				w.chunked = *r.Chunked
			}
			for _, q := range r.Reqs {
				w.reqs = append(w.reqs, strings.ReplaceAll(string(q), " ", ""))
			}
			want = append(want, w)
		}
	}
	for i := 0; i < len(want); {
		receive(batch, !e.Busy() && pending == nil)
		s := e.Plan()
		if s == nil && pending == nil && !e.Busy() {
			if next == len(g.Actions) {
				t.Fatalf("engine is idle, want row %+v", want[i])
			}
			drain()
			continue
		}
		if s == nil && !(e.waiting.len() > 0 || len(e.running) > 0 || e.chunked != nil) && want[i].kind != "none" { // only a result is left: not recorded as a row
			e.Complete(pending)
			pending = nil
			drain()
			continue
		}
		w := want[i]
		got := row{b: -1, kind: "none", reqs: []string{}, queue: ids(e.waiting.all()), full: e.full, ratio: e.ratio, free: e.free, running: w.running}
		if e.chunked != nil {
			got.chunked = id(e.chunked)
		}
		if s != nil {
			got.b = batch
			batch++
			got.kind = "decode"
			for _, r := range s.Rows {
				if s.Kind == PrefillStep {
					got.reqs = append(got.reqs, fmt.Sprintf("[%q,%d,%d]", id(r.Request), r.Prefix, r.Extend))
				} else {
					got.reqs = append(got.reqs, fmt.Sprintf("%q", id(r.Request)))
				}
			}
			if s.Kind == PrefillStep {
				got.kind = "prefill"
				got.running = ids(e.running)
			}
		}
		require.InDelta(t, w.ratio, got.ratio, 1e-6, "row %d: %+v", i, w)
		got.ratio = w.ratio
		require.Equal(t, w, got, "row %d", i)
		i++
		if g.Limits.Overlap {
			pending, s = s, pending
		}
		if s != nil {
			e.Complete(s)
		}
		drain()
	}
	for pending != nil {
		s := e.Plan()
		require.Nil(t, s, "a step after the last recorded one")
		e.Complete(pending)
		pending = nil
		drain()
	}
	require.Equal(t, g.FinishOrder, order)
	for _, r := range g.Results {
		q := byID[r.RID]
		if r.Completion != nil {
			require.Equal(t, *r.Completion, q.Produced(), r.RID)
		}
		if r.Retracted != nil {
			require.Equal(t, *r.Retracted, q.Retractions(), r.RID)
		}
		f := finishes[r.RID]
		require.NotNil(t, f, r.RID)
		if r.Status != 200 {
			require.Equal(t, r.Status, f.Status, r.RID)
		} else {
			require.Equal(t, map[string]FinishKind{"length": FinishLength, "stop": FinishStop, "abort": FinishAbort}[r.Finish.Type], f.Kind, r.RID)
		}
	}
	require.False(t, e.Busy())
	require.Equal(t, g.Tokens, e.free)
}
