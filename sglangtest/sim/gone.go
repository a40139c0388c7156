package sim

import (
	"errors"
	"net/http"
	"slices"
	"time"
)

// SGLang does not see at once that a client has gone, and what it does then differs by version (managers/tokenizer_manager.py):
//
//   - An event stream that has begun is cancelled at once. From 0.5.21 on that aborts its requests
//     (_release_req_states_on_failure). 0.5.15 leaves it to a task that starts abortDelay later (create_abort_task). In 0.5.18
//     that task finds the requests forgotten (_discard_pending_req_states), so the scheduler goes on with them to their end.
//   - An answer that is not streamed, and from the OpenAI API a stream without its first output (serving_completions.py,
//     _handle_streaming_request), is waited for in spans of stateWait; at the end of each SGLang looks for the client, and
//     aborts if it has gone (_stream_one_response, "type 1").
//   - Before 0.5.21, neither the task nor the cleanup knows the requests of a stream with n > 1, whose ids are made later. (Those
//     of 0.5.15 that get no output for stateWait are aborted in the real server, and run on here.)
const (
	abortDelay = 2 * time.Second // create_abort_task
	stateWait  = 4 * time.Second // SGLANG_REQUEST_STATE_WAIT_TIMEOUT
)

// errGone says that the client has gone.
var errGone = errors.New("sim: the client has gone")

// wait runs streams to their end or, if first is set, until one has an output. It returns errGone when the front process has
// seen that the client has gone.
func (s *Server) wait(r *http.Request, c *call, streams []*stream, first bool) error {
	gone := r.Context().Done()
	var look <-chan time.Time
	for {
		if first && slices.ContainsFunc(streams, (*stream).hasOutput) {
			streams[0].wake() // for whoever takes it
			return nil
		}
		if !first && !slices.ContainsFunc(streams, (*stream).goesOn) {
			return nil
		}
		select {
		case <-c.notify:
		case <-gone:
			if c.stream && !c.kickStart {
				s.depart(c, streams)
				return errGone
			}
			gone = nil
		case <-look:
			s.host.leave(streams)
			if s.opts.release.patch < 21 && c.perPrompt == 1 {
				s.host.lose(streams)
			}
			return errGone
		case <-s.base.Done():
			panic(http.ErrAbortHandler) // the connection breaks, as when a server is killed
		}
		if gone == nil && look == nil {
			if d, ok := s.host.untilLook(streams); ok {
				look = time.After(d)
			}
		}
	}
}

func (s *stream) goesOn() bool { return s.progress().finish == nil }

// untilLook returns how long it is until the front process looks for the client of streams. It reports false while they are
// held back: nobody looks then.
func (h *host) untilLook(streams []*stream) (d time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var begin time.Duration
	for _, s := range streams {
		if slices.Contains(h.held, s) {
			return 0, false
		}
		begin = max(begin, s.arrives)
	}
	return stateWait - max(0, time.Since(h.start)-begin)%stateWait, true
}

// depart ends the streams of an event stream that has ended, or whose client has gone.
func (s *Server) depart(c *call, streams []*stream) {
	if s.base.Err() != nil || !slices.ContainsFunc(streams, (*stream).goesOn) {
		return // they end with the server, or have ended
	}
	s.host.withdraw(streams)
	switch patch := s.opts.release.patch; {
	case patch >= 21:
		s.host.leave(streams)
	case c.perPrompt > 1:
	case patch >= 18:
		s.host.lose(streams)
	default:
		s.handlers.Go(func() {
			delay := time.NewTimer(abortDelay)
			defer delay.Stop()
			for slices.ContainsFunc(streams, (*stream).goesOn) {
				select {
				case <-c.notify:
				case <-delay.C:
					s.host.leave(streams)
					return
				case <-s.base.Done():
					return
				}
			}
		})
	}
}

// leave aborts streams whose client has gone.
func (h *host) leave(streams []*stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return
	}
	h.withdrawLocked(streams)
	for _, s := range streams {
		if h.streams[s.rid] == s {
			h.meter.aborted()
			h.abort(s)
		}
	}
}

// withdraw forgets those of streams that are held back: whoever would have sent them to the scheduler has ended.
func (h *host) withdraw(streams []*stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.withdrawLocked(streams)
}

func (h *host) withdrawLocked(streams []*stream) {
	for _, s := range streams {
		if i := slices.Index(h.held, s); i >= 0 {
			h.held = slices.Delete(h.held, i, i+1)
			h.forget(s)
		}
	}
}

// lose makes the front process forget streams. The scheduler goes on with them, but nobody hears of their outputs.
func (h *host) lose(streams []*stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range streams {
		s.lost = true
	}
	h.changed()
}
