package sim

import "time"

// A Front is the way of results to the clients: the server's front process, which takes one event (a chunk of one
// stream) after another, and then the fixed [Profile.Egress]. A step that brings n streams a token hands it a burst of n
// events, each of which takes EgressEvent + n·EgressStream. As long as a burst is worked off before the next comes, the
// last of n streams sees its token a burst later than the first; when it is not, all clients fall behind for good.
//
// A Front is not safe for concurrent use. Its zero value passes everything on at once.
type Front struct {
	event, stream, fixed time.Duration
	free                 time.Duration // when it has done all that it was given
}

// Front returns an idle front with the profile's egress times.
func (p Profile) Front() *Front {
	return &Front{event: p.EgressEvent, stream: p.EgressStream, fixed: p.Egress}
}

// WithoutEgressQueue returns the profile without the front process's limit: every result reaches its client Egress
// after the step, however many streams there are.
func (p Profile) WithoutEgressQueue() Profile {
	p.EgressEvent, p.EgressStream = 0, 0
	return p
}

// Burst hands over the n events of a result that is known at the given time, which must not be before that of the
// burst before. Event i, from 0, reaches its client at first + i·each.
func (f *Front) Burst(at time.Duration, n int) (first, each time.Duration) {
	each = f.event + time.Duration(n)*f.stream
	begin := max(at, f.free)
	f.free = begin + time.Duration(n)*each
	return begin + each + f.fixed, each
}

// Backlog returns how far the front process is behind at the given time.
func (f *Front) Backlog(now time.Duration) time.Duration { return max(0, f.free-now) }
