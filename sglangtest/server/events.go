package server

import (
	"sync"
	"time"
)

// An Event tells of a change in a server's life or of something noticed about it.
type Event struct {
	Time    time.Time
	Server  string
	Kind    string // one of the Kind constants
	Message string
	Phase   *Phase // with [KindPhase]
}

// String tells the event in a line, such as "server-0 phase: load weights: 12.3s".
func (e Event) String() string { return e.Server + " " + e.Kind + ": " + e.Message }

// The kinds of events in a server's life. A run's time line has kinds of its own (package metrics), for real and simulated servers
// alike: there a warning is metrics.KindServerWarning and a fault metrics.KindServerFault.
const (
	KindState   = "state"   // Message is the new [State]
	KindPhase   = "phase"   // a phase of the start-up has ended, or gone on: Phase.Done has grown
	KindFailure = "failure" // why the server failed, with the lines of its log that show it
	KindFault   = "fault"   // a failure that the experiment asked for: killed, suspended, resumed, restarted
	KindExit    = "exit"    // how the server's process ended
	KindRetry   = "retry"   // a control call is made again
	KindWarning = "warning" // something that may spoil a measurement, such as a version that this package does not know
)

// A stream hands events to functions, one at a time, in the order in which they were put. A function may look at
// servers, but must not wait for one: whoever waits for a server waits for the delivery of its events.
type stream struct {
	deliver []func(Event) // set before the first event

	mu      sync.Mutex
	cond    sync.Cond
	queue   []Event
	put     int // events put so far
	done    int // events delivered so far
	running bool
}

func newStream(deliver ...func(Event)) *stream {
	q := &stream{deliver: deliver}
	q.cond.L = &q.mu
	return q
}

// add puts e at the end. It does not deliver, so the caller may hold the lock that orders the events.
func (q *stream) add(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queue = append(q.queue, e)
	q.put++
}

// flush returns when everything that was put before has been delivered, by this goroutine or by another.
func (q *stream) flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	until := q.put
	for q.done < until {
		if q.running {
			q.cond.Wait()
			continue
		}
		q.running = true
		for len(q.queue) > 0 {
			e := q.queue[0]
			q.queue = q.queue[1:]
			q.mu.Unlock()
			for _, f := range q.deliver {
				f(e)
			}
			q.mu.Lock()
			q.done++
			q.cond.Broadcast()
		}
		q.running = false
	}
}

// emit puts e and returns when it has been delivered.
func (q *stream) emit(e Event) {
	q.add(e)
	q.flush()
}
