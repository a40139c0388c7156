package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// randomConfig draws a small server with any mix of options.
func randomConfig(rng *rand.Rand) EngineConfig {
	pick := func(n int) bool { return rng.IntN(n) == 0 }
	page := []int{1, 1, 4, 16}[rng.IntN(4)]
	c := EngineConfig{Rules: Rules(rng.IntN(int(Rules0515) + 1)), MaxTotalTokens: 300 + rng.IntN(600), PageSize: page, ContextLength: 1 << 20,
		MaxRunningRequests: 1 + rng.IntN(12), ChunkedPrefillSize: []int{16, 64, 64, 128}[rng.IntN(4)], MaxPrefillTokens: 100 + rng.IntN(400),
		ScheduleConservativeness: []float64{0.3, 1, 1.5}[rng.IntN(3)], DisableRadixCache: pick(4), DisableOverlap: pick(3),
		Seed: rng.Uint64(), EvictionPolicy: []EvictionPolicy{EvictLRU, EvictLFU, EvictSLRU, EvictPriority}[rng.IntN(4)], QuietDecode: pick(2)}
	if pick(4) {
		c.ChunkedPrefillSize = -1
	}
	if pick(4) {
		c.MaxQueuedRequests = 1 + rng.IntN(8)
	}
	if pick(4) {
		c.PrefillMaxRequests = 1 + rng.IntN(3)
	}
	c.EnableMixedChunk = c.ChunkedPrefillSize > 0 && pick(4)
	if pick(4) {
		c.PrefillDecodeInterval, c.PrefillDecodeIntervalMinBS = 1+rng.IntN(5), rng.IntN(3)
	}
	policies := []Policy{FCFS, LOF, LPM, DFSWeight, Random}
	if c.Rules <= Rules0521 {
		policies = append(policies, HRRN)
		if !c.DisableRadixCache {
			policies = append(policies, ShortestPrefillFirst)
		}
	}
	c.SchedulePolicy = policies[rng.IntN(len(policies))]
	if (c.SchedulePolicy == FCFS || c.SchedulePolicy == LOF) && pick(2) {
		c.EnablePriorityScheduling, c.PreemptionThreshold, c.LowPriorityValuesFirst = true, rng.IntN(10), pick(2)
		c.DisablePriorityPreemption, c.RetractByPriority, c.KeepPreempted = pick(4), pick(3) && c.Rules != Rules0515, pick(3)
	}
	if pick(4) {
		c.MaxMicroBatch = 1 + rng.IntN(c.MaxRunningRequests)
	}
	return c
}

func randomRequest(rng *rand.Rand, i int) *Request {
	r := &Request{RID: fmt.Sprintf("%04d", i), MaxNewTokens: 1 + rng.IntN(60), IgnoreEOS: rng.IntN(2) == 0, Priority: rng.IntN(30)}
	if rng.IntN(3) == 0 {
		r.StopAfter = 1 + rng.IntN(40)
	}
	if rng.IntN(2) == 0 {
		r.OutputStream = uint64(100 + rng.IntN(5))
	}
	switch rng.IntN(8) {
	case 0:
		r.Prompt.Text, r.InputLen = fmt.Sprint(rng.IntN(3)), 70
	case 1:
		r.InputLen = 1 + rng.IntN(300)
	case 2:
		r.Prompt.TokenIDs = make([]int32, 1+rng.IntN(100))
		r.Prompt.TokenIDs[rng.IntN(len(r.Prompt.TokenIDs))] = 1
		r.InputLen = len(r.Prompt.TokenIDs)
	default:
		for range 1 + rng.IntN(3) {
			s := load.Segment{Stream: uint64(rng.IntN(3)), Length: 1 + rng.IntN(90)}
			r.Prompt.Segments = append(r.Prompt.Segments, s)
			r.InputLen += s.Length
		}
	}
	return r
}

// Whatever is done to an engine, no token of the pool is lost or held twice, every request gets its tokens and one
// end, and the same actions give the same schedule.
func TestRandomSchedulesConserveTokens(t *testing.T) {
	for _, loop := range []bool{false, true} {
		for seed := range uint64(150) {
			first := randomSchedule(t, seed, loop)
			if seed%20 == 0 {
				require.Equal(t, first, randomSchedule(t, seed, loop), "seed %d", seed)
			}
		}
	}
}

// A randomDriver does to an engine what its event loop would do.
type randomDriver interface {
	add(r *Request)
	abort(r *Request)
	limit(v float64)
	retractAll()
	// pass carries out the next event and returns the outputs; false if there is none.
	pass() ([]Output, bool)
}

// A planner drives an engine as SGLang's loop does, without a time line.
type planner struct {
	e        *Engine
	underWay *Step
	check    func(underWay *Step)
	note     func(s *Step)
}

func (d *planner) add(r *Request)   { d.e.Add(r) }
func (d *planner) abort(r *Request) { d.e.Abort(r) }
func (d *planner) limit(v float64)  { d.e.SetLimit(v) }

func (d *planner) complete() {
	if d.underWay != nil {
		d.e.Complete(d.underWay)
		d.underWay = nil
	}
}

func (d *planner) retractAll() {
	d.complete()
	d.e.RetractAll()
}

func (d *planner) pass() ([]Output, bool) {
	idle := d.underWay == nil
	s := d.e.Plan()
	d.note(s)
	d.check(d.underWay)
	if d.e.cfg.DisableOverlap {
		d.underWay = s
		d.complete()
	} else {
		previous := d.underWay
		d.underWay = s
		if previous != nil {
			d.e.Complete(previous)
		}
	}
	d.check(d.underWay)
	if s == nil && idle {
		d.e.Idle()
	}
	return d.e.Outputs(), s != nil || !idle || !d.e.Settled()
}

// A looper drives a loop.
type looper struct {
	l   *Loop
	now time.Duration
	out []Output
}

func (d *looper) add(r *Request)   { d.l.Add(d.now, r) }
func (d *looper) abort(r *Request) { d.l.Abort(d.now, r) }
func (d *looper) limit(v float64)  { d.l.SetLimit(d.now, v) }

func (d *looper) retractAll() {
	d.out = append(d.out, d.l.Pause(PauseRetract)...)
	d.l.Continue(d.now)
}

func (d *looper) pass() ([]Output, bool) {
	out := d.out
	d.out = nil
	at, busy := d.l.Next()
	if busy {
		d.now = at
		out = append(out, d.l.Advance()...)
	}
	return out, busy
}

func randomSchedule(t *testing.T, seed uint64, loop bool) (log []string) {
	rng := rand.New(rand.NewPCG(seed, 7))
	cfg := randomConfig(rng)
	e, err := NewEngine(cfg)
	require.NoError(t, err, "seed %d: %+v", seed, cfg)
	defer func() {
		if p := recover(); p != nil {
			panic(fmt.Sprintf("seed %d: %+v: %v", seed, cfg, p))
		}
	}()
	note := func(s *Step) {
		if s != nil {
			log = append(log, fmt.Sprint(s.Kind, len(s.Rows), ridsOf(s.Decode), s.Shape))
			if s.Kind == DecodeStep {
				require.Len(t, s.Decode, s.Shape.Decodes)
			}
		}
	}
	var d randomDriver
	if loop {
		l := NewLoop(e, constant())
		l.planned = func(s *Step) {
			if !cfg.DisableOverlap && e.Err() == nil {
				requireConserved(t, e, l.pending.step)
			}
			note(s)
		}
		d = &looper{l: l}
	} else {
		d = &planner{e: e, note: note, check: func(underWay *Step) {
			if e.Err() == nil {
				requireConserved(t, e, underWay)
			}
		}}
	}
	var all, lost []*Request
	tokens, ends := map[*Request]int{}, map[*Request]*Finish{}
	const rounds = 120
	for round, busy := 0, true; (round < rounds || busy) && e.Err() == nil; round++ {
		require.Less(t, round, 20000, "seed %d: %+v does not end: %+v", seed, cfg, e.State())
		if round < rounds {
			for rng.IntN(3) == 0 {
				r := randomRequest(rng, len(all))
				// SGLang never admits a prompt that fits the pool but leaves no page of it, and those behind it wait.
				c := e.Config()
				if r.InputLen <= e.MaxInputLen() && r.InputLen+c.PageSize >= c.MaxTotalTokens {
					continue
				}
				// The same holds without a cache for a request with ignore_eos that takes nearly all of the pool.
				if c.DisableRadixCache && r.IgnoreEOS && r.InputLen+r.MaxNewTokens+2*c.PageSize+2 >= c.MaxTotalTokens {
					r.IgnoreEOS = false
				}
				all = append(all, r)
				d.add(r)
			}
			switch k := rng.IntN(60); {
			case k == 0 && len(all) > 0:
				d.abort(all[rng.IntN(len(all))])
			case k == 1:
				d.limit(float64(1 + rng.IntN(cfg.MaxRunningRequests)))
			case k == 2:
				d.retractAll()
			case k == 3:
				for _, r := range all {
					d.abort(r)
				}
			}
		}
		var outputs []Output
		outputs, busy = d.pass()
		lost = append(lost, e.Lost()...)
		for _, o := range outputs {
			require.Nil(t, ends[o.Request], "seed %d: an output after the end", seed)
			tokens[o.Request] += o.Tokens
			if o.Finish != nil {
				ends[o.Request] = o.Finish
			}
		}
	}
	if e.Err() != nil { // as SGLang would
		require.Positive(t, cfg.ChunkedPrefillSize, "seed %d: %v", seed, e.Err())
		return append(log, e.Err().Error())
	}
	for _, r := range all {
		f := ends[r]
		if r.Lost() {
			require.True(t, cfg.Rules.old() && cfg.EnablePriorityScheduling && !cfg.DisablePriorityPreemption && !cfg.KeepPreempted, "seed %d", seed)
			require.Nil(t, f, "seed %d", seed)
			require.Contains(t, lost, r)
			continue
		}
		require.NotNil(t, f, "seed %d: %+v: %s has no end: %+v", seed, cfg, r.RID, e.State())
		require.Equal(t, r.Produced(), tokens[r], "seed %d: %s", seed, r.RID)
		switch f.Kind {
		case FinishLength:
			require.Equal(t, r.MaxNewTokens, r.Produced())
		case FinishStop:
			require.Equal(t, r.StopAfter, r.Produced())
		}
		log = append(log, fmt.Sprint(r.RID, *f, r.Produced(), r.CachedTokens(), r.Retractions()))
	}
	require.Zero(t, e.rows)
	require.Equal(t, e.initRatio, e.ratio, "seed %d: an idle engine's ratio", seed)
	require.True(t, e.FlushCache())
	require.Equal(t, e.cfg.MaxTotalTokens, e.free)
	return log
}
