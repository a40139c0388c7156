package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// flushInterval is the time between two tries to flush the cache of a busy server.
const flushInterval = 100 * time.Millisecond

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

// A PauseMode says what becomes of the requests under way when a server pauses.
type PauseMode string

// The modes of pausing. In each of them new requests are held back until [Server.Continue].
const (
	PauseAbort   PauseMode = "abort"    // they are aborted; the pause returns when none is left
	PauseRetract PauseMode = "retract"  // they lose their KV entries and are computed again afterwards
	PauseInPlace PauseMode = "in_place" // they stand still and keep their KV entries
)

// Pause stops all generation until [Server.Continue]. A paused server is not ready (/ready is 503), and new requests wait
// in its HTTP process, where its load does not count them.
func (s *Server) Pause(ctx context.Context, mode PauseMode) error {
	modes := []PauseMode{PauseAbort, PauseRetract, PauseInPlace}
	if !slices.Contains(modes, mode) {
		return fmt.Errorf("server: pause: mode %q; want one of %q", mode, modes)
	}
	return s.wrap("pause", s.client.slowly(ctx, http.MethodPost, "/pause_generation", map[string]any{"mode": mode}, nil))
}

// Continue ends a pause. It does nothing to a server that is not paused.
func (s *Server) Continue(ctx context.Context) error {
	return s.wrap("continue", s.client.call(ctx, http.MethodPost, "/continue_generation", map[string]any{}, nil))
}

// SlowDown makes the scheduler sleep for d before each forward step, to emulate a slower GPU; 0 ends that. SGLang means
// it for tests.
func (s *Server) SlowDown(ctx context.Context, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("server: slow down: %v: want ≥ 0; 0 for full speed", d)
	}
	var sleep any // null ends it
	if d > 0 {
		sleep = d.Seconds()
	}
	return s.wrap("slow down", s.client.call(ctx, http.MethodPost, "/slow_down", map[string]any{"forward_sleep_time": sleep}, nil))
}

// A Profile says what the profiler of the engine (torch's) records. Zero values mean SGLang's own default.
type Profile struct {
	OutputDir  string   `json:"output_dir,omitempty"` // on the server's host; empty: $SGLANG_TORCH_PROFILER_DIR, or /tmp
	Steps      int      `json:"num_steps,omitempty"`  // forward steps after which it stops by itself; 0: at StopProfile
	Activities []string `json:"activities,omitempty"` // of "CPU", "GPU", "MEM", "RPD"
	WithStack  bool     `json:"with_stack,omitempty"` // source lines, which cost time
}

// StartProfile starts the profiler in all schedulers. Latencies measured meanwhile are not those of the server.
func (s *Server) StartProfile(ctx context.Context, p Profile) error {
	if p.Steps < 0 {
		return fmt.Errorf("server: start profile: %d steps: want ≥ 0", p.Steps)
	}
	return s.wrap("start profile", s.client.slowly(ctx, http.MethodPost, "/start_profile", p, nil))
}

// StopProfile stops the profiler and returns when the traces have been written, which can take minutes.
func (s *Server) StopProfile(ctx context.Context) error {
	return s.wrap("stop profile", s.client.slowly(ctx, http.MethodPost, "/stop_profile", nil, nil))
}

// SetLogLevel sets the level of the server's log: debug, info, warning, error or critical. Above info the server no
// longer writes of its batches.
func (s *Server) SetLogLevel(ctx context.Context, level string) error {
	levels := []string{"debug", "info", "warning", "error", "critical"}
	if !slices.Contains(levels, level) { // SGLang would answer 500
		return fmt.Errorf("server: set log level: %q; want one of %s", level, strings.Join(levels, ", "))
	}
	return s.wrap("set log level", s.client.call(ctx, http.MethodPost, "/configure_logging", map[string]any{"log_level": level}, nil))
}

// A LoRA is an adapter of the model.
type LoRA struct {
	Name   string `json:"lora_name"` // by which requests ask for it
	Path   string `json:"lora_path"` // on the server's host, or at the model hub
	Pinned bool   `json:"pinned"`    // never evicted from the GPU
}

// LoadLoRA loads an adapter. The server must have been started with --enable-lora and has room for adapters as its
// arguments say (--max-loras-per-batch, --max-lora-rank, --lora-target-modules).
func (s *Server) LoadLoRA(ctx context.Context, adapter LoRA) error {
	if adapter.Name == "" || adapter.Path == "" {
		return errors.New("server: load LoRA: want a name and a path")
	}
	return s.updateLoRA(ctx, "load LoRA "+adapter.Name, "/load_lora_adapter", adapter)
}

// UnloadLoRA unloads an adapter by its name, once the requests that use it have ended.
func (s *Server) UnloadLoRA(ctx context.Context, name string) error {
	if name == "" {
		return errors.New("server: unload LoRA: want a name")
	}
	return s.updateLoRA(ctx, "unload LoRA "+name, "/unload_lora_adapter", map[string]any{"lora_name": name})
}

func (s *Server) updateLoRA(ctx context.Context, what, path string, body any) error {
	var verdict struct {
		Success bool   `json:"success"`
		Message string `json:"error_message"`
	}
	err := s.client.slowly(ctx, http.MethodPost, path, body, &verdict)
	if err == nil && !verdict.Success {
		err = fmt.Errorf("the server refused it: %s", verdict.Message)
	}
	return s.wrap(what, err)
}

func (s *Server) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("server: %s: %s: %w", s.name, what, err)
}
