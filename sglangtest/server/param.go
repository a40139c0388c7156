package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// ParamMaxRunningRequests names the limit on the running batch, the one parameter of general interest that a
// stock SGLang server can change while it runs.
const ParamMaxRunningRequests = "max_running_requests"

// limitKey is the name of that limit on the wire, from 0.5.4 on; oldLimitKey is the one before.
const (
	limitKey    = "pp_max_micro_batch_size"
	oldLimitKey = "max_micro_batch_size"
)

// A ParamUpdate says how a parameter was changed.
type ParamUpdate struct {
	Server    string // whose it is
	Name      string
	Value     int
	Previous  int    // what the server said last; 0 if not known
	ReadBack  int    // what the server says after the change; if its data-parallel ranks differ, one that is not Value
	Mechanism string // such as "set_internal_state pp_max_micro_batch_size", "POST /update_name" or "restart"
	Asked     time.Time
	// Accepted is when the server had confirmed the change; after a restart, when it was ready again. The scheduler
	// makes a change of the limit between two iterations, so from then on at the latest it holds for every admission. A
	// lowered limit does not end running requests: their number comes down as they finish. A raised one is used at the
	// next admission, which after a full batch is the next finish (SGLang's batch_is_full). [Server.WaitInForce] tells
	// when that was.
	Accepted time.Time
	Verified time.Time // when ReadBack had been read; zero: the server does not tell this parameter
	// Running is the number of running requests of each data-parallel rank just before the limit was changed; nil if that
	// could not be read.
	Running []int
	// InForce and NotBefore are set by [Server.WaitInForce]: the number of running requests first obeyed the limit
	// after NotBefore and at InForce at the latest.
	InForce, NotBefore time.Time
}

// Event returns what [Server.UpdateParam] returned, u and err, as an event of a run's time line, for Collector.Event. The
// offset of a moment is load.Clock.Offset. Its kind is metrics.KindParamUpdate, at the moment of Accepted, or with an error
// metrics.KindParamUpdateFailed, at the present moment.
func (u ParamUpdate) Event(offset func(time.Time) time.Duration, err error) metrics.Event {
	data := map[string]any{"name": u.Name, "value": u.Value}
	if !u.Accepted.IsZero() { // else it was not made; with an error, it may not have been read back
		data["accepted_ns"] = int64(offset(u.Accepted))
	}
	if err != nil {
		data["error"] = err.Error()
		return metrics.Event{At: offset(time.Now()), Kind: metrics.KindParamUpdateFailed, Source: u.Server, Data: data}
	}
	data["asked_ns"] = int64(offset(u.Asked))
	data["previous"], data["read_back"], data["mechanism"] = u.Previous, u.ReadBack, u.Mechanism
	return metrics.Event{At: offset(u.Accepted), Kind: metrics.KindParamUpdate, Source: u.Server, Data: data}
}

// InForceEvent returns what [Server.WaitInForce] returned, u and err, as another event: metrics.KindParamInForce, at the
// moment of InForce, or with an error metrics.KindParamNotInForce, at the present moment.
func (u ParamUpdate) InForceEvent(offset func(time.Time) time.Duration, err error) metrics.Event {
	data := map[string]any{"name": u.Name, "value": u.Value, "asked_ns": int64(offset(u.Asked)), "accepted_ns": int64(offset(u.Accepted))}
	if err != nil {
		data["reason"] = err.Error()
		return metrics.Event{At: offset(time.Now()), Kind: metrics.KindParamNotInForce, Source: u.Server, Data: data}
	}
	data["not_before_ns"] = int64(offset(u.NotBefore))
	return metrics.Event{At: offset(u.InForce), Kind: metrics.KindParamInForce, Source: u.Server, Data: data}
}

// A NotChangeableError says that no way to change a parameter of this server at run time exists.
type NotChangeableError struct {
	Name  string
	Value int      // that was asked for
	Why   string   // what is known of the parameter
	Tried []string // the mechanisms, each with what became of it
	// AtStart: it is an argument of the server, so that a restart changes it ([WithRestart]).
	AtStart bool
}

func (e *NotChangeableError) Error() string {
	text := fmt.Sprintf("server: cannot set %s to %d while the server runs: %s; tried: %s", e.Name, e.Value, e.Why, strings.Join(e.Tried, ", "))
	if e.AtStart {
		text += "; a restart with the new value would do: see WithRestart"
	}
	return text
}

type updateOptions struct{ restart bool }

// An UpdateOption configures one call of [Server.UpdateParam].
type UpdateOption func(*updateOptions)

// WithRestart allows UpdateParam to start the server again with the new value, on the same port, if nothing less
// changes the parameter. Requests under way fail, and what the server had cached is lost.
func WithRestart() UpdateOption { return func(o *updateOptions) { o.restart = true } }

// UpdateParam changes a parameter of the running server and reads it back. It takes the first mechanism that works:
//
//   - [ParamMaxRunningRequests], from 1 to Info.MaxRunningRequests, by the control endpoint of every stock server. It is
//     the limit of each data-parallel rank (and, with pipeline parallelism, each micro-batch).
//   - Any other parameter by POST /update_NAME with the body {"NAME": value}, where the server has such a route; a
//     stock one has none.
//   - Only with [WithRestart]: a restart.
//
// A value that the server cannot take or turns out not to have taken is a [ParamError], a parameter that it cannot
// change a [NotChangeableError]. If the answer is lost, the change may have been made. The run knows nothing of the change:
// [ParamUpdate.Event] puts it into its time line.
func (s *Server) UpdateParam(ctx context.Context, name string, value int, opts ...UpdateOption) (ParamUpdate, error) {
	var o updateOptions
	for _, opt := range opts {
		opt(&o)
	}
	u := ParamUpdate{Server: s.name, Name: name, Value: value}
	change := s.updateByRoute
	if name == ParamMaxRunningRequests {
		change = s.updateLimit
	}
	restartHelps, err := change(ctx, &u)
	if restartHelps && o.restart {
		return u, s.updateByRestart(ctx, &u)
	}
	return u, err
}

// updateLimit changes the limit on the running batch, and reports whether a restart could do what it could not.
func (s *Server) updateLimit(ctx context.Context, u *ParamUpdate) (restartHelps bool, err error) {
	s.mu.Lock()
	most := s.info.MaxRunningRequests / s.microBatches()
	u.Previous = s.limit
	tellsNewKey := s.tells(limitKey)
	s.mu.Unlock()
	if u.Value < 1 {
		return false, &ParamError{u.Name, u.Value, "want at least 1"}
	}
	if most > 0 && u.Value > most {
		return true, &ParamError{u.Name, u.Value, fmt.Sprintf("the limit at start-up is %d and cannot be exceeded; start the server with a larger max_running_requests", most)}
	}
	if loads, err := s.look(ctx); err == nil { // WaitInForce manages without
		for _, l := range loads {
			u.Running = append(u.Running, l.NumRunning)
		}
	}
	if u.Previous == 0 { // the answer to the change before was lost
		var info serverInfo
		if err := s.readInfo(ctx, &info); err != nil {
			return false, fmt.Errorf("server: %s: read %s: %w", s.name, u.Name, err)
		}
		u.Previous = other(info.limits(), 0)
	}
	s.setLimit(0) // not known until it has been read back
	u.Asked = time.Now()
	key := limitKey
	done, err := s.setInternalState(ctx, key, u.Value)
	if err == nil && !done && !tellsNewKey {
		key = oldLimitKey
		done, err = s.setInternalState(ctx, key, u.Value)
	}
	if err != nil {
		return false, fmt.Errorf("server: %s: set %s: %w", s.name, u.Name, err)
	}
	if !done {
		s.setLimit(u.Previous)
		return false, &ParamError{u.Name, u.Value, "the server refused it (its log says why)"}
	}
	u.Accepted = time.Now()
	u.Mechanism = "set_internal_state " + key
	var info serverInfo
	if err := s.readInfo(ctx, &info); err != nil {
		return false, fmt.Errorf("server: %s: read back %s: %w", s.name, u.Name, err)
	}
	u.Verified = time.Now()
	u.ReadBack = other(info.limits(), u.Value)
	s.setLimit(u.ReadBack)
	return false, u.compare()
}

// other returns an element of told that is not value, or value if there is none; 0 if told is empty.
func other(told []int, value int) int {
	if len(told) == 0 {
		return 0
	}
	if i := slices.IndexFunc(told, func(v int) bool { return v != value }); i >= 0 {
		return told[i]
	}
	return value
}

func (u *ParamUpdate) compare() error {
	if u.ReadBack != u.Value {
		return &ParamError{u.Name, u.Value, fmt.Sprintf("the server confirmed it but then says %d", u.ReadBack)}
	}
	return nil
}

func (s *Server) setLimit(limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
}

// tells reports whether the schedulers named key among their arguments when the server became ready. s.mu is held.
func (s *Server) tells(key string) bool {
	states, _ := s.raw["internal_states"].([]any)
	return slices.ContainsFunc(states, func(state any) bool {
		args, _ := state.(map[string]any)
		return args[key] != nil
	})
}

// microBatches is the number of micro-batches that share the running limit, the pipeline's stages. s.mu is held.
func (s *Server) microBatches() int {
	if pp, ok := s.raw["pp_size"].(float64); ok && pp > 1 {
		return int(pp)
	}
	return 1
}

// setInternalState reports whether every data-parallel rank took the value. SGLang answers 200 with a list of
// booleans also when it refuses.
func (s *Server) setInternalState(ctx context.Context, key string, value int) (bool, error) {
	var taken []bool
	err := s.client.call(ctx, http.MethodPost, "/set_internal_state", map[string]any{"server_args": map[string]int{key: value}}, &taken)
	return err == nil && len(taken) > 0 && !slices.Contains(taken, false), err
}

var paramName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// readAtStart are the parameters that experiments vary and that SGLang up to 0.5.23 reads when it starts, and then
// never again.
var readAtStart = []string{
	"schedule_policy", "schedule_conservativeness", "chunked_prefill_size", "max_prefill_tokens", "prefill_max_requests", "max_queued_requests",
	"max_total_tokens", "mem_fraction_static", "page_size", "context_length", "stream_interval", "decode_log_interval", "watchdog_timeout",
	"cuda_graph_max_bs_decode", "cuda_graph_max_bs", "num_continuous_decode_steps", "tp_size", "dp_size", "pp_size", "max_running_requests",
}

func whyNot(name string) string {
	switch {
	case name == "stream_interval":
		return "SGLang reads it at start only (a request can choose its own: sampling parameter stream_interval)"
	case slices.Contains(readAtStart, name):
		return "SGLang reads it at start only"
	case strings.HasPrefix(name, "weight"):
		return "weights have endpoints of their own, which take no number"
	}
	return "it is not a parameter that SGLang is known to change while it runs"
}

// updateByRoute changes a parameter on a server that has a route for it.
func (s *Server) updateByRoute(ctx context.Context, u *ParamUpdate) (restartHelps bool, err error) {
	if !paramName.MatchString(u.Name) {
		return false, &ParamError{u.Name, u.Value, "this is not the name of a parameter, such as max_running_requests"}
	}
	path := "/update_" + u.Name
	no := &NotChangeableError{Name: u.Name, Value: u.Value, Why: whyNot(u.Name), AtStart: slices.Contains(readAtStart, u.Name),
		Tried: []string{"set_internal_state (it takes " + ParamMaxRunningRequests + " only)"}}
	if strings.HasPrefix(u.Name, "weight") {
		return false, no
	}
	u.Asked = time.Now()
	var answer []byte
	err = s.client.call(ctx, http.MethodPost, path, map[string]int{u.Name: u.Value}, &answer)
	var status *StatusError
	if errors.As(err, &status) && (status.Status == http.StatusNotFound || status.Status == http.StatusMethodNotAllowed) {
		no.Tried = append(no.Tried, fmt.Sprintf("POST %s (the server has no such route)", path))
		return true, no
	}
	if err != nil {
		return false, fmt.Errorf("server: %s: set %s: %w", s.name, u.Name, err)
	}
	var verdict struct {
		Success *bool  `json:"success"`
		Message string `json:"message"`
	}
	if json.Unmarshal(answer, &verdict) == nil && verdict.Success != nil && !*verdict.Success {
		return false, &ParamError{u.Name, u.Value, fmt.Sprintf("the server refused it: %s", verdict.Message)}
	}
	u.Accepted = time.Now()
	u.Mechanism = "POST " + path
	return false, s.readBack(ctx, u)
}

// readBack fills in what the schedulers say of a parameter other than the limit.
func (s *Server) readBack(ctx context.Context, u *ParamUpdate) error {
	var info struct {
		InternalStates []map[string]any `json:"internal_states"`
	}
	if err := s.readInfo(ctx, &info); err != nil {
		return fmt.Errorf("server: %s: read back %s: %w", s.name, u.Name, err)
	}
	var told []int
	for _, state := range info.InternalStates {
		if v, ok := state[u.Name].(float64); ok {
			told = append(told, int(v))
		}
	}
	if len(told) == 0 {
		return nil
	}
	u.Verified, u.ReadBack = time.Now(), other(told, u.Value)
	return u.compare()
}

func (s *Server) updateByRestart(ctx context.Context, u *ParamUpdate) error {
	u.Asked = time.Now()
	if err := s.Restart(ctx, func(cfg *Config) error { return cfg.set(u.Name, u.Value) }); err != nil {
		return err
	}
	u.Accepted, u.Mechanism, u.Running = time.Now(), "restart", nil
	if u.Name != ParamMaxRunningRequests {
		return s.readBack(ctx, u)
	}
	u.Verified, u.ReadBack = time.Now(), s.Info().MaxRunningRequests
	return u.compare()
}
