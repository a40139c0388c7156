package policy

import (
	"iter"
	"time"
)

// A View is what a policy may know at one moment. The host owns it; it is valid during the call and must not
// be modified.
type View struct {
	Now time.Duration // an offset from the run's start
	// Workers holds every worker that there ever was: the one in slot n is Workers[n-1]. Slots are never used
	// again.
	Workers []Worker
	// Waiting counts the requests that have come and were not dispatched, the one that is asked about
	// included, and InFlight those that were dispatched and have not ended.
	Waiting, InFlight int
}

// Open returns the workers that can be given a request, in order of their slots: they are up and have room.
func (v *View) Open() iter.Seq[*Worker] {
	return func(yield func(*Worker) bool) {
		for i := range v.Workers {
			if w := &v.Workers[i]; w.Open() && !yield(w) {
				return
			}
		}
	}
}

// Worker returns the worker in a slot, which must exist.
func (v *View) Worker(slot int) *Worker { return &v.Workers[slot-1] }

// A State says whether a worker can be given requests.
type State uint8

// The states. The zero value is that of a worker that serves.
const (
	Up       State = iota
	Down           // its last health check failed, or what else the host knows; it may come back
	Draining       // it ends what it has and gets nothing new
	Gone           // it has left for good
)

// String returns the state's name: up, down, draining or gone.
func (s State) String() string {
	switch s {
	case Up:
		return "up"
	case Down:
		return "down"
	case Draining:
		return "draining"
	case Gone:
		return "gone"
	}
	return "no state"
}

// A Role says which stages of a request a worker carries out.
type Role uint8

// The roles. The zero value is that of a worker that does everything.
const (
	RoleWhole Role = iota
	RolePrefill
	RoleDecode
)

// A Worker is what is known of one worker.
type Worker struct {
	Slot int // counted from 1
	// State is the host's knowledge, which may be late: a worker that has just died is up until a health
	// check finds out.
	State State
	Role  Role

	// Local counts: what the host itself has dispatched to the worker. They are exact, but know nothing of
	// what others sent.
	InFlight      int // requests dispatched and not ended
	PromptTokens  int // prompt tokens of these
	PrefillTokens int // prompt tokens of those whose first token has not come
	// Unseen counts those requests in flight that the worker's last sample could not know yet: they were
	// dispatched after it, or were still on their way to the scheduler. Without samples these are all.
	Unseen int

	// Limit is how many requests the host lets be in flight on it; 0: no limit.
	Limit int
	// Epoch changes with each restart or cache flush that the host knows of: what was learnt of an older
	// epoch's cache is void.
	Epoch int
	Name  string
	Facts
	Load Load
}

// Facts are what a worker says, or its configuration, of itself. They follow changes at run time, as far as
// the host knows of them. 0 stands for not known.
type Facts struct {
	MaxRunning int     // limit of running requests
	KVTokens   int     // KV pool in tokens
	Speed      float64 // relative to the other workers, such as 1 and 0.5
	// Ingest and IngestToken are how long a request takes from its dispatch to the worker's scheduler, and
	// for each token of its prompt beside that. A load sample knows nothing of requests that are on this way.
	Ingest, IngestToken time.Duration
}

// Load is a worker's load by its own word. The zero value stands for no sample: never, or not yet.
type Load struct {
	Sampled bool
	At      time.Duration // when the worker was asked, on the clock of View.Now
	Running int           // requests in its running batch
	Waiting int           // requests in its queue
	KVUsed  int           // KV tokens in use
}

// Open reports whether the worker is up and has room under its limit.
func (w *Worker) Open() bool { return w.State == Up && (w.Limit == 0 || w.InFlight < w.Limit) }

// Age returns how old the worker's load sample is; false if there is none.
func (w *Worker) Age(v *View) (time.Duration, bool) { return v.Now - w.Load.At, w.Load.Sampled }

// A Signal names a way to tell how many requests a worker has outstanding. The zero value is not a signal.
type Signal uint8

// The signals.
const (
	// Local is the host's own count of requests in flight. It is never late, and blind to the load of others.
	Local Signal = iota + 1
	// Polled is running plus waiting requests by the worker's last sample, as old as that is; 0 before the
	// first.
	Polled
	// PolledPlusOwn is Polled plus the requests of this host that the sample could not know, see
	// Worker.Unseen.
	PolledPlusOwn
)

// Outstanding returns the number of requests that w has outstanding by signal s, 0 for a value that is not a
// signal.
func (w *Worker) Outstanding(s Signal) int {
	switch s {
	case Local:
		return w.InFlight
	case Polled:
		return w.Load.Running + w.Load.Waiting
	case PolledPlusOwn:
		return w.Load.Running + w.Load.Waiting + w.Unseen
	}
	return 0
}

// String returns the signal's name: local, polled or polled_plus_own.
func (s Signal) String() string {
	switch s {
	case Local:
		return "local"
	case Polled:
		return "polled"
	case PolledPlusOwn:
		return "polled_plus_own"
	}
	return "no signal"
}
