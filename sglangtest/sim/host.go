package sim

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/precise"
	"github.com/sglangtest/harness/sglangtest/load"
)

// A host runs the [Ranks] of a server in real time. One goroutine, run, drives them: at the time of each event it advances
// the loop and tells the streams of the batch what they got. It writes to no connection, so a slow client delays nobody: the
// stream's own handler turns what has come into bytes, and merges what came while it was busy, as SGLang does.
//
// Behind the ranks is one front process, before them one queue of arrivals, from which [host.route] chooses the rank of each.
//
// Arrivals are stamped Ingest after they came and results reach their streams Egress and more after the loop has them, so
// that lateness of the host's timer moves no step: the next one follows from the times of the loop.
type host struct {
	profile Profile
	start   time.Time
	waiter  waiter
	done    chan struct{} // run has returned

	mu       sync.Mutex
	loops    *Ranks
	ranks    []*rank // of these loops
	balancer balancer
	arrivals []*stream // stamped but not yet added, in order of arrives
	front    *Front
	going    []delivery // results on their way through the front process, in order of due
	passed   int        // of these have been delivered
	streams  map[string]*stream
	held     []*stream // came during a pause: the scheduler does not know them yet
	paused   bool
	changes  chan struct{} // if not nil: to be closed when a stream comes or ends
	last     time.Time     // when the last result had passed the front process
	stopped  bool
	fault    func(string) // notes a fault of the simulated server
	died     func(error)  // ends it with its scheduler

	observers    []Observer
	meter        *meter // of the front process and the first rank
	metrics      bool   // /metrics is answered
	loadInterval int    // decode steps between load snapshots

	late lateness
}

// A waiter lets run wait. Unless a test has given the host another, it is a [precise.Waiter].
type waiter interface {
	Wait(d time.Duration)
	Wake()
	Close() error
}

// egressGroup is how far apart results may leave the front process and still be delivered together: a timer for each
// would cost more than it tells.
const egressGroup = 500 * time.Microsecond

// A delivery is a result on its way to its stream.
type delivery struct {
	output Output
	due    time.Duration
}

// A stream is one generation as the host sees it.
type stream struct {
	req          Request
	rank         *rank // that has it; nil before it was chosen
	routed       *int  // routed_dp_rank; nil: any
	rid          string
	index        int         // within its call
	prompt       load.Prompt // as asked: the engine may have been given another
	promptTokens int
	streaming    bool
	priority     string        // as the front process labels it; empty: none was given
	interval     int           // stream_interval; 0: 1
	health       bool          // made by a health check
	arrives      time.Duration // at the scheduler, loop time
	entered      time.Duration // when its first step was planned, loop time; 0 before
	chunked      time.Duration // when a chunk that is not its prompt's last was known, loop time; 0 before
	prefilled    time.Duration // when the result of its prefill was known, loop time; 0 before
	received     time.Time
	notify       chan<- struct{} // of capacity 1, shared by the streams of a call
	stop         stopping
	lost         bool      // the front process has forgotten it
	refused      *Finish   // how the scheduler ends it on arrival; nil: it takes it
	sent         time.Time // first event handed out; used by the handler alone
	counted      progress  // what the front process was told last

	mu      sync.Mutex
	got     progress  // written with the host's mutex held, too; read by the handler
	pending time.Time // when the first result that the handler has not taken was due; zero if there is none
}

// progress is what a stream has got so far.
type progress struct {
	tokens      int
	retractions int
	cached      int           // prompt tokens from the prefix cache
	finish      *Finish       // nil while it goes on
	entered     time.Duration // when its first step was planned, loop time
	prefilled   time.Duration // when the result of its prefill was known, loop time
	first       time.Time     // first_token_time of the front process
	at          time.Time     // when the last result was due
}

func (s *stream) progress() progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

// take returns the progress and when the first result that was not taken before was due; zero if there is none.
func (s *stream) take() (p progress, due time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, due = s.got, s.pending
	s.pending = time.Time{}
	return p, due
}

// hasOutput reports whether the stream has a result that the handler has not taken.
func (s *stream) hasOutput() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.pending.IsZero()
}

// forcedInterval is after how many tokens the scheduler sends those of an answer that is not streamed
// (SGLANG_FORCE_STREAM_INTERVAL).
const forcedInterval = 50

// passes reports whether the scheduler sends the front process an output when s has p (output_streamer.py): in a stream
// the tokens 1, 1+interval, 1+2·interval and so on, otherwise every fiftieth, and always the last.
func (s *stream) passes(p progress) bool {
	switch {
	case p.finish != nil:
		return true
	case s.streaming:
		return s.interval <= 1 || (p.tokens-1)%s.interval == 0
	}
	return p.tokens%forcedInterval == 0
}

func newHost(p Profile, cfg EngineConfig, ranks int) (*host, error) {
	loops, err := NewRanks(ranks, cfg, p)
	if err != nil {
		return nil, err
	}
	h := &host{profile: p, done: make(chan struct{}), loops: loops, front: p.Front(), streams: map[string]*stream{}}
	for _, l := range loops.Loops {
		h.ranks = append(h.ranks, newRank(h, l))
	}
	return h, nil
}

// config returns the configuration of each rank.
func (h *host) config() EngineConfig { return h.loops.Loops[0].Engine.Config() }

// begin starts run.
func (h *host) begin() (err error) {
	if h.waiter == nil {
		if h.waiter, err = precise.New(); err != nil {
			return fmt.Errorf("sim: make a timer: %w", err)
		}
	}
	h.start = time.Now()
	for _, r := range h.ranks {
		r.asleep = true
	}
	go h.run()
	return nil
}

// submit hands streams to the engine, as having come at the time of their received. If one has a rid that is in use it
// takes none of them, and returns that and false. During a pause it holds them back.
func (h *host) submit(streams []*stream) (used string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.submitLocked(streams)
}

func (h *host) submitLocked(streams []*stream) (used string, ok bool) {
	for i, s := range streams {
		if h.streams[s.rid] != nil {
			for _, t := range streams[:i] {
				delete(h.streams, t.rid)
			}
			return s.rid, false
		}
		h.streams[s.rid] = s
	}
	h.changed()
	if h.paused {
		h.held = append(h.held, streams...)
		return "", true
	}
	for _, s := range streams {
		h.dispatch(s, s.received.Sub(h.start))
	}
	return "", true
}

// dispatch sends a stream to the scheduler, as having come at the given time.
func (h *host) dispatch(s *stream, came time.Duration) {
	s.req.Owner = s
	if s.refused != nil {
		s.rank = h.route(s, came)
		h.deliver(Output{Request: &s.req, Finish: s.refused}, time.Now())
		return
	}
	s.arrives = came + h.profile.ingest(s.promptTokens)
	i := len(h.arrivals)
	for i > 0 && h.arrivals[i-1].arrives > s.arrives {
		i--
	}
	h.arrivals = slices.Insert(h.arrivals, i, s)
	h.waiter.Wake()
}

// abort ends a stream's request, wherever it is. h.mu must be held.
func (h *host) abort(s *stream) {
	if i := slices.Index(h.arrivals, s); i >= 0 {
		h.arrivals = slices.Delete(h.arrivals, i, i+1)
		h.deliver(Output{Request: &s.req, Finish: abortedQueued}, time.Now())
		return
	}
	now, loop := time.Since(h.start), s.rank.loop
	loop.Abort(now, &s.req)
	if loop.paused { // it reads its messages all the same
		h.hold(now, loop.Engine.Outputs())
	}
	h.waiter.Wake()
}

// abortPrefix is /abort_request: the rid must be alive, and then every request whose rid begins with it ends. Those held
// back by a pause do not: the scheduler does not know them.
func (h *host) abortPrefix(rid string, all bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.streams[rid]; !all && (s == nil || s.lost) {
		return
	}
	h.meter.aborted()
	h.abortMatching(rid, all)
}

// abortMatching aborts all that the scheduler knows and whose rid begins like that. h.mu must be held.
func (h *host) abortMatching(rid string, all bool) {
	for id, s := range h.streams {
		if (all || strings.HasPrefix(id, rid)) && !slices.Contains(h.held, s) {
			h.abort(s)
		}
	}
}

// forget takes a stream that has ended from the table.
func (h *host) forget(s *stream) {
	delete(h.streams, s.rid)
	h.changed()
}

// changed tells those who wait that a stream has come or ended. h.mu must be held.
func (h *host) changed() {
	if h.changes != nil {
		close(h.changes)
		h.changes = nil
	}
}

// run drives the loop until stop.
func (h *host) run() {
	defer close(h.done)
	for {
		h.mu.Lock()
		if h.stopped {
			h.mu.Unlock()
			return
		}
		next := h.advance(time.Since(h.start))
		h.mu.Unlock()
		if next < 0 {
			h.waiter.Wait(-1)
		} else if d := next - time.Since(h.start); d > 0 {
			h.waiter.Wait(d)
		}
	}
}

// advance carries out everything up to now and returns the time of what comes next, or -1 for nothing.
func (h *host) advance(now time.Duration) time.Duration {
	next := h.advanceLoop(now)
	h.release(now)
	if h.passed < len(h.going) && (next < 0 || h.going[h.passed].due < next) {
		next = h.going[h.passed].due
	}
	return next
}

// advanceLoop is advance for arrivals and the loops.
func (h *host) advanceLoop(now time.Duration) time.Duration {
	for {
		k, at := h.loops.earliest()
		if len(h.arrivals) > 0 && (k < 0 || h.arrivals[0].arrives <= at) {
			s := h.arrivals[0]
			if s.arrives > now {
				return s.arrives
			}
			h.arrivals = slices.Delete(h.arrivals, 0, 1)
			if s.rank = h.route(s, s.arrives); s.rank.ignores(s) {
				h.forget(s)
				continue
			}
			s.rank.loop.Add(s.arrives, &s.req)
			continue
		}
		if k < 0 {
			return -1
		}
		if at > now {
			return at
		}
		outputs := h.ranks[k].advance(at)
		if len(outputs) > 0 {
			h.hold(at, outputs)
		}
	}
}

// hold gives results to the front process. Those that pass it within egressGroup of each other go on together.
func (h *host) hold(at time.Duration, outputs []Output) {
	first, each := h.front.Burst(at, len(outputs))
	group := len(outputs)
	if each > 0 {
		group = max(1, int(egressGroup/each))
	}
	for i, o := range outputs {
		if s := o.Request.Owner.(*stream); s.prefilled == 0 {
			s.prefilled = at
		}
		begin := i - i%group
		middle := time.Duration(begin+min(begin+group, len(outputs))-1) * each / 2
		h.going = append(h.going, delivery{o, first + middle})
	}
}

// release delivers what has passed the front process by now.
func (h *host) release(now time.Duration) {
	for h.passed < len(h.going) && h.going[h.passed].due <= now {
		d := &h.going[h.passed]
		h.passed++
		h.deliver(d.output, h.start.Add(d.due))
		*d = delivery{} // the stream must not be kept alive
	}
	if h.passed*2 >= len(h.going) { // a front process that is behind has many
		n := copy(h.going, h.going[h.passed:])
		clear(h.going[n:])
		h.going, h.passed = h.going[:n], 0
	}
}

// deliver tells a stream what it got, and its handler what the front process is sent of it.
func (h *host) deliver(o Output, due time.Time) {
	s := o.Request.Owner.(*stream)
	before := s.got // written only with h.mu held
	got := progress{tokens: before.tokens + o.Tokens, retractions: s.req.Retractions(), cached: s.req.CachedTokens(), finish: o.Finish,
		entered: s.entered, prefilled: s.prefilled, first: before.first, at: due}
	passes := s.passes(got)
	if passes && got.first.IsZero() {
		got.first = h.firstTime(s, due)
	}
	h.last = due
	s.mu.Lock()
	s.got = got
	if passes && s.pending.IsZero() {
		s.pending = due
	}
	s.mu.Unlock()
	h.tell(s, before, got, passes)
	if o.Finish != nil {
		h.forget(s)
	}
	if passes {
		s.wake()
	}
}

// wake gives the stream's handler notice.
func (s *stream) wake() {
	select {
	case s.notify <- struct{}{}:
	default: // the handler has not yet seen the last notice and will see this, too
	}
}

// firstTime is first_token_time of a stream whose first output has come: of an answer that is not streamed, 0.5.23 takes
// the end of its prefill (tokenizer_manager.py, _get_scheduler_first_token_time; without metrics nothing shows it).
func (h *host) firstTime(s *stream, due time.Time) time.Time {
	if h.meter.patch >= 23 && !s.streaming && s.prefilled > 0 {
		return h.start.Add(s.prefilled)
	}
	return due
}

// stop ends run and waits for it. What still runs is never delivered.
func (h *host) stop() {
	h.mu.Lock()
	h.stopped = true
	h.waiter.Wake()
	h.mu.Unlock()
	<-h.done
	h.waiter.Close()
}
