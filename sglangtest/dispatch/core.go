package dispatch

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/policy"
)

// A Ticket is one request in a dispatcher, from its arrival to its end. The driver makes it, sets the
// exported fields and hands a pointer to [Core.Arrive]; the core keeps its own state in it and so needs no
// table.
type Ticket struct {
	// Request is what the policy sees. The driver sets its Request member, and PromptTokens if it knows
	// better than load.Prompt.CountTokens; the core sets the rest.
	Request policy.Request
	// Owner is for the driver, to find its own data from an [Action].
	Owner any

	state   ticketState
	seen    bool // its first token has come
	arrived time.Duration
	event   uint64 // the input that brought it
	seq     uint64 // order of arrival
	sentAt  time.Duration
	worker  int
	prefill int
	unseen  int // place in the worker's list, or -1
	reached time.Duration
	one     entry
	self    [1]*Ticket
	in      *entry // that it waits in, if it is not with the strategy
}

type ticketState uint8

const (
	stateNew ticketState = iota
	stateWaiting
	stateSent
	stateRetry // its attempt has failed, and another one may follow
	stateEnded
)

// An entry is what the policy decides about as a whole: one request, or a batch.
type entry struct {
	tickets []*Ticket
	seq     uint64
	batch   int         // its number, from 1; 0 without a strategy
	event   uint64      // the input that brought it to the policy
	wake    policy.Wake // what it is held for
	class   *class      // nil unless it is held for an event
	at      int         // place in class
	timed   int         // place in Core.timed, or -1
}

// A class holds what waits for the same events.
type class struct {
	on     policy.Events
	worker int
	entryHeap
}

// An Action is what a driver has to do for a request.
type Action struct {
	Ticket *Ticket
	// Verdict is policy.VerdictDispatch or policy.VerdictReject. A request for which there is no action
	// waits.
	Verdict policy.Verdict
	// Worker is the slot to send it to, and Prefill that of its prefill worker, if they are apart.
	Worker, Prefill int
	// Batch numbers the batches of a strategy from 1: actions with equal numbers follow each other and belong
	// together. 0 without a strategy.
	Batch int
	// Held says that the request had to wait in the dispatcher, and Due until when: the moment of the event
	// that freed it.
	Held bool
	Due  time.Duration
	// Status, RetryAfter and Reason are those of the policy's decision; the status of a rejection is set.
	Status     int
	RetryAfter time.Duration
	Reason     string
	// Note is for the result of a request that is dispatched.
	Note *load.RouteNote
}

// Err returns what a rejection is for the request's client.
func (a *Action) Err() *load.RejectedError {
	return &load.RejectedError{Status: a.Status, RetryAfter: a.RetryAfter, Reason: a.Reason}
}

// Core is the state machine; see the package comment. Times are offsets from the run's start and should not
// go back: an earlier one counts as the latest. It is not safe for concurrent use. The zero value is not
// usable.
type Core struct {
	cfg   config
	pol   policy.Policy
	needs policy.Needs

	// pol, as far as it is one
	less       policy.Orderer
	batches    policy.BatchPicker
	dispatched policy.DispatchObserver
	firstToken policy.FirstTokenObserver
	chunk      policy.ChunkObserver
	done       policy.DoneObserver
	sampled    policy.SampleObserver
	fleet      policy.FleetObserver

	view    policy.View
	workers []worker
	open    int // workers that are open, and those that are only full
	full    int

	actions []Action
	head    int // of actions
	event   uint64
	due     time.Duration // the moment of the event
	seq     uint64
	batch   int

	classes []*class
	timed   entryHeap // held until a time
	aside   []*entry  // held in the present round
	held    int       // entries

	by    string          // the policy's name
	plain *load.RouteNote // of a first attempt without a reason
	notes map[noteKey]*load.RouteNote

	pushed    map[int]*Ticket // with the strategy, by ID
	strategic policy.Wake     // the strategy's
	err       error
}

type noteKey struct {
	reason  string
	attempt int
}

// maxNotes bounds the notes that are kept; a policy may make up a new reason for each request.
const maxNotes = 1024

// note returns a note that is shared by all requests of which the same is to be said.
func (c *Core) note(reason string, attempt int) *load.RouteNote {
	if reason == "" && attempt == 1 {
		return c.plain
	}
	k := noteKey{reason, attempt}
	n := c.notes[k]
	if n == nil {
		n = &load.RouteNote{By: c.by, Reason: reason, Attempt: attempt}
		if len(c.notes) < maxNotes {
			c.notes[k] = n
		}
	}
	return n
}

// worker is what the core knows of a worker beside the view.
type worker struct {
	unseen []*Ticket
	fit    fit
	fresh  uint64 // the event that changed it
}

type fit uint8

const (
	fitNot fit = iota
	fitOpen
	fitFull
)

// New returns a dispatcher without workers. A policy that needs what the driver does not give (see
// [Provides]) is an error, and so is one with an order of its own beside a strategy.
func New(p policy.Policy, opts ...Option) (*Core, error) {
	c := &Core{pol: p}
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(&c.cfg))
	}
	if p == nil {
		faults = append(faults, errors.New("no policy: want one, such as new(policy.RoundRobin)"))
	} else {
		faults = append(faults, c.take(p))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	c.by = strings.TrimPrefix(fmt.Sprintf("%T", p), "*")
	c.plain, c.notes = &load.RouteNote{By: c.by, Attempt: 1}, make(map[noteKey]*load.RouteNote)
	if c.cfg.strategy != nil {
		c.pushed = make(map[int]*Ticket)
	}
	c.timed = entryHeap{at: func(e *entry) *int { return &e.timed }, before: func(a, b *entry) bool { return a.wake.At < b.wake.At }}
	return c, nil
}

// take finds out what the policy can and needs.
func (c *Core) take(p policy.Policy) error {
	c.less, _ = p.(policy.Orderer)
	c.batches, _ = p.(policy.BatchPicker)
	c.dispatched, _ = p.(policy.DispatchObserver)
	c.firstToken, _ = p.(policy.FirstTokenObserver)
	c.done, _ = p.(policy.DoneObserver)
	c.sampled, _ = p.(policy.SampleObserver)
	c.fleet, _ = p.(policy.FleetObserver)
	c.needs = policy.NeedsOf(p)
	if c.needs.Chunks {
		c.chunk, _ = p.(policy.ChunkObserver)
	}
	var faults []error
	if c.needs.Samples && !c.cfg.provides.Samples {
		faults = append(faults, errors.New("the policy reads load samples, but there are none: have the workers polled (fleet.WithPolling), or have it read local counts"))
	}
	if c.needs.Chunks && !c.cfg.provides.Chunks {
		faults = append(faults, errors.New("the policy wants to be told of each chunk, which this host does not see"))
	}
	if c.needs.Predictions && c.cfg.predict == nil {
		faults = append(faults, errors.New("the policy needs predicted output lengths: add dispatch.WithPredictor"))
	}
	if c.needs.Chunks && c.chunk == nil {
		faults = append(faults, errors.New("the policy needs chunks, but has no method Chunk to be told of them"))
	}
	if c.less != nil && c.cfg.strategy != nil {
		faults = append(faults, errors.New("the policy orders the queue (Less), and so does the batching strategy: leave one out"))
	}
	return errors.Join(faults...)
}

// Needs returns what the policy needs.
func (c *Core) Needs() policy.Needs { return c.needs }

// View returns what the policy sees. It must not be modified, and changes with each input.
func (c *Core) View() *policy.View { return &c.view }

// Err returns why the dispatcher cannot go on: the policy or the strategy is at fault. It then decides
// nothing more, and the requests that wait have to be cancelled; what is under way may still end.
func (c *Core) Err() error { return c.err }

// Next returns the next thing to do, in the order in which it was decided; false if there is nothing. Call it
// after each input until there is nothing more. What is done may be another input.
func (c *Core) Next() (Action, bool) {
	if c.head == len(c.actions) {
		c.actions, c.head = c.actions[:0], 0
		return Action{}, false
	}
	a := c.actions[c.head]
	c.actions[c.head] = Action{}
	c.head++
	return a, true
}

// Wake returns the time at which [Core.Tick] should be called; false if at none.
func (c *Core) Wake() (time.Duration, bool) {
	at, ok := time.Duration(0), false
	if len(c.timed.items) > 0 {
		at, ok = c.timed.items[0].wake.At, true
	}
	if s := c.strategic.At; s > 0 && (!ok || s < at) {
		at, ok = s, true
	}
	return at, ok && c.err == nil
}

// begin is the beginning of each input.
func (c *Core) begin(now time.Duration) {
	c.view.Now = max(c.view.Now, now)
	c.due = c.view.Now
	c.event++
}

// Arrive hands over a request that is due: a new ticket, or one of which [Core.End] said that it is to be
// tried again.
func (c *Core) Arrive(now time.Duration, t *Ticket) {
	c.begin(now)
	switch t.state {
	case stateNew:
		c.introduce(t)
	case stateRetry:
	default:
		panic("dispatch: Arrive of a request that is in the dispatcher already")
	}
	t.arrived, t.event, t.state, t.seen = c.view.Now, c.event, stateWaiting, false
	t.self[0] = t
	if c.err != nil {
		c.view.Waiting++
		return
	}
	if c.cfg.strategy == nil {
		c.view.Waiting++
		t.one = entry{tickets: t.self[:], seq: t.seq, event: c.event, at: -1, timed: -1}
		t.in = &t.one
		c.offer(policy.Arrival, nil, &t.one)
		if q := c.cfg.limits.Queue; q != 0 && t.state == stateWaiting && c.err == nil && c.view.Waiting > max(0, q) {
			c.unhold(&t.one)
			c.refuse(t, 0)
		}
		return
	}
	if q := c.cfg.limits.Queue; q != 0 && c.view.Waiting >= max(0, q) {
		c.view.Waiting++
		c.refuse(t, 0)
		return
	}
	c.view.Waiting++
	c.pushed[t.Request.ID] = t
	c.cfg.strategy.Push(&t.Request)
	c.offer(policy.Arrival, nil, nil)
	c.form()
}

// introduce fills in what the policy sees of a new request.
func (c *Core) introduce(t *Ticket) {
	r := &t.Request
	c.seq++
	t.seq, t.unseen = c.seq, -1
	r.Attempt = 1
	if r.PromptTokens == 0 {
		if r.PromptTokens = r.Prompt.CountTokens(); r.Prompt.Tokens() == 0 && r.InputLen > 0 {
			r.PromptTokens = r.InputLen // of a text, as the dataset states it
		}
	}
	if c.needs.Keys && r.Key == nil {
		r.Key = load.NewKey(&r.Prompt, r.PromptTokens)
	}
	if c.needs.Text {
		if r.Text = r.Prompt.Text; len(r.Prompt.Messages) > 0 {
			parts := make([]string, len(r.Prompt.Messages))
			for i := range parts {
				parts[i] = r.Prompt.Messages[i].Content
			}
			r.Text = strings.Join(parts, " ")
		}
	}
	if c.needs.Predictions {
		r.Predicted = c.cfg.predict(r.Request)
	}
}

// refuse turns a request away because too many wait.
func (c *Core) refuse(t *Ticket, batch int) {
	c.reject(t, batch, policy.Decision{Status: 429, RetryAfter: c.cfg.limits.RetryAfter, Reason: "too many requests wait"})
}

// FirstToken says that the first token of a request's answer has come. It may be left out for an answer
// without tokens.
func (c *Core) FirstToken(now time.Duration, t *Ticket) {
	c.begin(now)
	c.first(t)
}

func (c *Core) first(t *Ticket) {
	if t.state != stateSent || t.seen {
		return
	}
	w := c.prefiller(t)
	c.view.Workers[w-1].PrefillTokens -= t.Request.PromptTokens
	if c.firstToken != nil {
		c.firstToken.FirstToken(&t.Request, c.feedback(t))
	}
	t.seen = true
}

// Chunk says that n output tokens of a request have come, n ≥ 1. The first call stands for [Core.FirstToken]
// too. It need not be called unless the policy needs chunks.
func (c *Core) Chunk(now time.Duration, t *Ticket, n int) {
	c.begin(now)
	c.first(t)
	if c.chunk != nil && t.state == stateSent {
		c.chunk.Chunk(&t.Request, c.feedback(t), n)
	}
}

// prefiller returns the slot of the worker that computes the prompt.
func (c *Core) prefiller(t *Ticket) int {
	if t.prefill != 0 {
		return t.prefill
	}
	return t.worker
}

func (c *Core) feedback(t *Ticket) policy.Feedback {
	f := policy.Feedback{Now: c.view.Now, Worker: t.worker, Prefill: t.prefill, Attempt: t.Request.Attempt}
	if t.prefill != 0 {
		if f.Stage = policy.StagePrefill; t.seen {
			f.Stage = policy.StageDecode
		}
	}
	return f
}

// End says that a dispatched request has ended, well or not; also that it was refused, aborted or cancelled.
// If it returns true, another attempt may follow: hand the ticket to [Core.Arrive] again, or to [Core.Cancel]
// if its client has gone.
func (c *Core) End(now time.Duration, t *Ticket, res *load.Result) (again bool) {
	if t.state != stateSent {
		panic("dispatch: End of a request that is not under way")
	}
	c.begin(now)
	slots := [2]int{t.worker, t.prefill}
	for _, slot := range slots {
		if slot == 0 {
			continue
		}
		w := &c.view.Workers[slot-1]
		w.InFlight--
		w.PromptTokens -= t.Request.PromptTokens
		c.refit(slot)
	}
	if !t.seen {
		c.view.Workers[c.prefiller(t)-1].PrefillTokens -= t.Request.PromptTokens
	}
	c.see(t)
	c.view.InFlight--
	if c.done != nil {
		c.done.Done(&t.Request, c.feedback(t), res)
	}
	t.state = stateEnded
	if c.cfg.again != nil && !res.OK() && t.Request.Attempt < c.cfg.attempts && c.cfg.again(res) {
		t.Request.Tried = append(t.Request.Tried, t.worker)
		t.Request.Attempt++
		t.state, again = stateRetry, true
	}
	c.offer(policy.Freed, slots[:], nil)
	c.consult(policy.Freed, slots[:])
	return again
}

// Cancel takes back a request that waits, or that is between two attempts: its client has gone. There is no
// action and no Done for it. Cancelling one that has ended does nothing; one that is under way has to end.
func (c *Core) Cancel(now time.Duration, t *Ticket) {
	c.begin(now)
	switch t.state {
	case stateSent:
		panic("dispatch: Cancel of a request that is under way: use End")
	case stateWaiting:
		c.view.Waiting--
		switch e := t.in; {
		case e != nil && len(e.tickets) > 1:
			e.tickets = slices.DeleteFunc(e.tickets, func(x *Ticket) bool { return x == t })
		case e != nil:
			c.unhold(e)
		case c.cfg.strategy != nil:
			delete(c.pushed, t.Request.ID)
			if !c.cfg.strategy.Remove(t.Request.ID) && c.err == nil {
				c.err = fmt.Errorf("dispatch: strategy: request %d: Remove does not find it, nor did Next return it", t.Request.ID)
			}
		}
	}
	t.state, t.in = stateEnded, nil
}

// Waits reports whether the request has come and was neither dispatched nor rejected.
func (t *Ticket) Waits() bool { return t.state == stateWaiting }

// Tick says that the time of [Core.Wake] has come.
func (c *Core) Tick(now time.Duration) {
	c.begin(now)
	now = c.view.Now
	for c.err == nil && len(c.timed.items) > 0 && c.timed.items[0].wake.At <= now {
		e := c.timed.items[0]
		c.unhold(e)
		c.aside = append(c.aside, e)
	}
	due := c.aside
	c.aside = nil
	slices.SortFunc(due, func(a, b *entry) int {
		if c.before(a, b) {
			return -1
		}
		return 1
	})
	for i, e := range due {
		c.due = e.wake.At
		if c.err != nil || c.ask(e) {
			c.hold(e)
		}
		due[i] = nil
	}
	if c.aside == nil {
		c.aside = due[:0]
	}
	if at := c.strategic.At; at > 0 && at <= now {
		c.due = at
		c.form()
	}
}

func (c *Core) action(t *Ticket, batch int) *Action {
	c.actions = append(c.actions, Action{Ticket: t, Batch: batch})
	a := &c.actions[len(c.actions)-1]
	if t.event != c.event {
		a.Held, a.Due = true, max(c.due, t.arrived)
	}
	c.view.Waiting--
	t.in = nil
	return a
}

func (c *Core) reject(t *Ticket, batch int, d policy.Decision) {
	t.state = stateEnded
	a := c.action(t, batch)
	a.Verdict, a.Status, a.RetryAfter, a.Reason = policy.VerdictReject, d.Status, d.RetryAfter, d.Reason
	if a.Status == 0 {
		a.Status = 503
	}
}

func (c *Core) dispatch(t *Ticket, e *entry, d *policy.Decision) {
	a := c.action(t, e.batch)
	a.Verdict, a.Worker, a.Prefill, a.Reason = policy.VerdictDispatch, d.Worker, d.Prefill, d.Reason
	a.Note = c.note(d.Reason, t.Request.Attempt)
	t.state, t.worker, t.prefill, t.sentAt = stateSent, d.Worker, d.Prefill, c.view.Now
	for _, slot := range [2]int{d.Worker, d.Prefill} {
		if slot == 0 {
			continue
		}
		w := &c.view.Workers[slot-1]
		w.InFlight++
		w.PromptTokens += t.Request.PromptTokens
		c.refit(slot)
	}
	slot := c.prefiller(t)
	w := &c.view.Workers[slot-1]
	w.PrefillTokens += t.Request.PromptTokens
	t.reached = c.view.Now + w.Ingest + time.Duration(t.Request.PromptTokens)*w.IngestToken
	list := &c.workers[slot-1].unseen
	t.unseen = len(*list)
	*list = append(*list, t)
	w.Unseen++
	c.view.InFlight++
	if c.dispatched != nil {
		c.dispatched.Dispatched(&t.Request, c.feedback(t))
	}
}

// see takes a request out of those that its worker's last sample could not know.
func (c *Core) see(t *Ticket) {
	if t.unseen < 0 {
		return
	}
	slot := c.prefiller(t)
	list := &c.workers[slot-1].unseen
	last := len(*list) - 1
	x := (*list)[last]
	(*list)[t.unseen], x.unseen = x, t.unseen
	(*list)[last] = nil
	*list = (*list)[:last]
	t.unseen = -1
	c.view.Workers[slot-1].Unseen--
}
