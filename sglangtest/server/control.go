package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// ParamMaxRunningRequests names the limit on the running batch, the one parameter of general interest that a
// stock SGLang server can change while it runs.
const ParamMaxRunningRequests = "max_running_requests"

// limitKey is the name of that limit on the wire, from 0.5.4 on.
const limitKey = "pp_max_micro_batch_size"

// flushInterval is the time between two tries to flush the cache of a busy server.
const flushInterval = 100 * time.Millisecond

// A ParamUpdate says how a parameter was changed.
type ParamUpdate struct {
	Name      string
	Value     int
	Previous  int    // what the server said last; 0 if not known
	ReadBack  int    // what the server says after the change; if its data-parallel ranks differ, one that is not Value
	Mechanism string // such as "set_internal_state pp_max_micro_batch_size"
	Asked     time.Time
	// Accepted is when the server had confirmed the change. The scheduler makes it between two iterations, so from
	// then on at the latest it holds for every admission. A lowered limit does not end running requests: their
	// number comes down as they finish. A raised one is used at the next admission, which after a full batch
	// is the next finish.
	Accepted time.Time
	Verified time.Time // when ReadBack had been read
}

// UpdateParam changes a parameter of the running server and reads it back. The one name is
// [ParamMaxRunningRequests], with values from 1 to Info.MaxRunningRequests, for each data-parallel rank (and, with
// pipeline parallelism, each micro-batch). What cannot be done, or turns out not to have been, is a [ParamError].
func (s *Server) UpdateParam(ctx context.Context, name string, value int) (ParamUpdate, error) {
	u := ParamUpdate{Name: name, Value: value}
	if name != ParamMaxRunningRequests {
		return u, &ParamError{name, value, "a stock server cannot change it while it runs; it can change " + ParamMaxRunningRequests}
	}
	s.mu.Lock()
	most := s.info.MaxRunningRequests
	u.Previous = s.limit
	s.mu.Unlock()
	if value < 1 {
		return u, &ParamError{name, value, "want at least 1"}
	}
	if most > 0 && value > most {
		return u, &ParamError{name, value, fmt.Sprintf("the limit at start-up is %d and cannot be exceeded; start the server with a larger max_running_requests", most)}
	}
	s.setLimit(0) // not known until it has been read back
	u.Asked = time.Now()
	done, err := s.setInternalState(ctx, limitKey, value)
	if err != nil {
		return u, fmt.Errorf("server: %s: set %s: %w", s.name, name, err)
	}
	if !done {
		s.setLimit(u.Previous)
		return u, &ParamError{name, value, "the server refused it (its log says why)"}
	}
	u.Accepted = time.Now()
	u.Mechanism = "set_internal_state " + limitKey
	var info serverInfo
	if err := s.readInfo(ctx, &info); err != nil {
		return u, fmt.Errorf("server: %s: read back %s: %w", s.name, name, err)
	}
	u.Verified = time.Now()
	for _, u.ReadBack = range info.limits() {
		if u.ReadBack != value {
			break
		}
	}
	s.setLimit(u.ReadBack)
	if u.ReadBack != value {
		return u, &ParamError{name, value, fmt.Sprintf("the server confirmed it but then says %d", u.ReadBack)}
	}
	return u, nil
}

func (s *Server) setLimit(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
}

// setInternalState reports whether every data-parallel rank took the value. SGLang answers 200 with a list of
// booleans also when it refuses.
func (s *Server) setInternalState(ctx context.Context, key string, value int) (bool, error) {
	var taken []bool
	err := s.client.call(ctx, http.MethodPost, "/set_internal_state", map[string]any{"server_args": map[string]int{key: value}}, &taken)
	return err == nil && len(taken) > 0 && !slices.Contains(taken, false), err
}

// FlushCache empties the radix cache. A server with requests under way refuses that, so FlushCache tries again
// until it is idle or ctx is done.
func (s *Server) FlushCache(ctx context.Context) error {
	tick := time.NewTicker(flushInterval)
	defer tick.Stop()
	var busy error // the last refusal
	for {
		err := s.client.call(ctx, http.MethodPost, "/flush_cache", nil, nil)
		var status *StatusError
		if errors.As(err, &status) && status.Status == http.StatusBadRequest {
			busy = err
		} else if err == nil || busy == nil || ctx.Err() == nil {
			return s.wrap("flush cache", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s.wrap("flush cache", fmt.Errorf("the server did not become idle: %w: %w", busy, context.Cause(ctx)))
		}
	}
}

// Abort ends the request with the given id, and every other whose id begins with it: SGLang matches prefixes. An id
// that is not alive is not an error.
func (s *Server) Abort(ctx context.Context, rid string) error {
	if rid == "" {
		return errors.New("server: abort: empty request id; AbortAll ends all requests")
	}
	return s.wrap("abort", s.client.once(ctx, http.MethodPost, "/abort_request", map[string]any{"rid": rid}, nil))
}

// AbortAll ends all requests of the server.
func (s *Server) AbortAll(ctx context.Context) error {
	return s.wrap("abort all", s.client.once(ctx, http.MethodPost, "/abort_request", map[string]any{"rid": "", "abort_all": true}, nil))
}

func (s *Server) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("server: %s: %s: %w", s.name, what, err)
}
