//go:build unix

package process

import (
	"sync/atomic"
	"time"

	"github.com/sglangtest/harness/sglangtest/sim"
)

// batches logs the lines "Prefill batch" and "Decode batch", and the warnings of retractions (managers/scheduler_components/metrics_reporter.py; the same
// in all versions from 0.5.15.post1 to 0.5.23). Its fields but the atomic ones belong to whoever tells it, one at a time.
type batches struct {
	ranks    []rankBatches
	graphs   string // "cuda graph: True"
	interval int    // --decode-log-interval
	steps    atomic.Int64
	dead     atomic.Bool             // the scheduler has died: what it had planned is not heard of
	strike   func(kind sim.StepKind) // told of each step
}

// rankBatches are those of one data-parallel rank.
type rankBatches struct {
	log             logger
	prefill, decode time.Time // of the last lines
	decodes         int       // decode steps so far
	generated       int       // tokens since the last decode line
}

func (b *batches) Batch(s sim.Batch) {
	if b.dead.Load() {
		return
	}
	b.steps.Add(1)
	r := &b.ranks[s.Rank]
	usage := float64(s.State.UsedTokens) / float64(s.State.MaxTotalTokens)
	if s.Kind != sim.DecodeStep {
		r.log.logf(info, "Prefill batch, #new-seq: %d, #new-token: %d, #cached-token: %d, token usage: %.2f, #running-req: %d, #queue-req: %d, "+
			"#pending-token: %d, %s, input throughput (token/s): %.2f", s.Requests, s.NewTokens, s.CachedTokens, usage, s.Running,
			s.State.Waiting, s.PendingTokens, b.graphs, rate(s.NewTokens, r.prefill, s.At))
		r.prefill = s.At
	} else {
		r.decodes++
		r.generated += s.Decodes
		if r.decodes%b.interval == 0 {
			r.log.logf(info, "Decode batch, #running-req: %d, #token: %d, token usage: %.2f, %s, gen throughput (token/s): %.2f, #queue-req: %d",
				s.Requests, s.State.UsedTokens, usage, b.graphs, rate(r.generated, r.decode, s.At), s.State.Waiting)
			r.decode, r.generated = s.At, 0
		}
	}
	b.strike(s.Kind)
}

// Retraction logs the warning of scheduler.py, and that of schedule_batch.py (retract_decode) for a request that was given up. Both
// are the same in all versions.
func (b *batches) Retraction(r sim.Retraction) {
	if b.dead.Load() {
		return
	}
	log := &b.ranks[r.Rank].log
	if r.Aborted != "" {
		log.logf(warning, "retract_decode: aborted last request %s due to OOM", r.Aborted)
	}
	log.logf(warning, "KV cache pool is full. Retract requests. #retracted_reqs: %d, #new_tokens_gained: %d, #new_token_ratio: %.4f -> %.4f",
		r.Requests, r.Gained, r.OldRatio, r.NewRatio)
}

// Lost warns of a request that SGLang would forget without a word.
func (b *batches) Lost(l sim.Loss) {
	if !b.dead.Load() {
		b.ranks[l.Rank].log.logf(warning, "simulated: the scheduler lost request %s, which never gets an answer: it was preempted for one that was "+
			"then not admitted (a fault of SGLang before 0.5.23)", l.RID)
	}
}

func (b *batches) Result(sim.Result) {}

func rate(tokens int, from, to time.Time) float64 {
	if d := to.Sub(from).Seconds(); d > 0 {
		return float64(tokens) / d
	}
	return 0
}
