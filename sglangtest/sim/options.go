package sim

import (
	"errors"
	"net"
	"net/http"
)

// An Option changes how a simulated server presents itself.
type Option func(*options) error

type options struct {
	weightVersion string
	incremental   bool
	starting      bool
	listener      net.Listener // nil: listen on the configured host and port
	observers     []Observer
	middleware    []func(http.Handler) http.Handler
}

// WithWeightVersion sets the name that answers carry as their weight version (SGLang's --weight-version).
// Without it, [NewServer] answers "default" and [Launcher] the server's name.
func WithWeightVersion(name string) Option {
	return func(o *options) error {
		if name == "" {
			return errors.New("sim: weight version is empty: want a name")
		}
		o.weightVersion = name
		return nil
	}
}

// WithIncrementalStreaming makes streamed text and ids of /generate deltas instead of the whole so far (SGLang's
// --incremental-streaming-output).
func WithIncrementalStreaming() Option {
	return func(o *options) error { o.incremental = true; return nil }
}

// WithStarting makes [Server.Start] leave the server in the state that SGLang is in from the moment its socket is open
// until its warm-up is over: it answers requests, but is not healthy. [Server.Up] ends it.
func WithStarting() Option {
	return func(o *options) error { o.starting = true; return nil }
}

// WithMiddleware wraps the server's handler, for an access log or for faults. Of several the last is the outermost.
// The ResponseWriter that it hands on must be an [http.Flusher].
func WithMiddleware(wrap func(http.Handler) http.Handler) Option {
	return func(o *options) error { o.middleware = append(o.middleware, wrap); return nil }
}
