package policy

import "time"

// A View is what a policy may know at one moment. The host owns it; it is valid during the call and must not be
// modified.
type View struct {
	Now     time.Duration // an offset from the run's start
	Workers []Worker      // in an order that does not change during a run
}

// A Worker is what is known of one worker.
type Worker struct {
	Name string
	// Healthy is the host's knowledge, which may be late: a worker that has just died is healthy until a health
	// check finds out.
	Healthy bool

	// Static facts; 0 if not known.
	MaxRunning int     // limit of running requests at start-up
	KVTokens   int     // KV pool in tokens
	Speed      float64 // relative to the other workers, such as 1 and 0.5

	// Local counts: what the host itself has sent to the worker. They are exact, but know nothing of what others sent.
	InFlight      int // requests dispatched and not ended
	PromptTokens  int // prompt tokens of these
	PrefillTokens int // prompt tokens of those whose first token has not come

	// The load as the worker itself said when it was asked last. It is zero if Polled is false: never, or not yet.
	Polled    bool
	PolledAt  time.Duration // when the worker was asked, on the clock of View.Now
	Running   int           // requests in its running batch
	Waiting   int           // requests in its queue
	KVUsed    int           // KV tokens in use
	SincePoll int           // requests that this host has dispatched to it since then
}

// Age returns how old worker i's polled load is; false if there is none.
func (v View) Age(i int) (time.Duration, bool) {
	w := &v.Workers[i]
	return v.Now - w.PolledAt, w.Polled
}

// A Signal names a way to tell how many requests a worker has outstanding. The zero value is not a signal.
type Signal uint8

// The signals.
const (
	// Local is the host's own count of requests in flight. It is never late, and blind to the load of others.
	Local Signal = iota + 1
	// Polled is running plus waiting requests by the worker's last sample, as old as that is; 0 before the first.
	Polled
	// PolledPlusOwn is Polled plus the requests that this host has dispatched since the sample.
	PolledPlusOwn
)

// Outstanding returns the number of requests that w has outstanding by signal s, 0 for a value that is not a signal.
func (w *Worker) Outstanding(s Signal) int {
	switch s {
	case Local:
		return w.InFlight
	case Polled:
		return w.Running + w.Waiting
	case PolledPlusOwn:
		return w.Running + w.Waiting + w.SincePoll
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
