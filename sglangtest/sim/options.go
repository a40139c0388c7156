package sim

import (
	"maps"
	"net"
	"net/http"
)

// An Option changes how a simulated server presents itself.
type Option func(*options) error

type options struct {
	release    release
	serverArgs map[string]any
	starting   bool
	listener   net.Listener // nil: listen on the configured host and port
	observers  []Observer
	middleware []func(http.Handler) http.Handler
	tokenizer  *tokenizer
	settings
}

func defaultOptions() options {
	r, err := releaseOf(Version)
	if err != nil {
		panic(err) // a constant
	}
	return options{release: r, settings: settings{weightVersion: "default", streamInterval: 1, decodeLogInterval: defaultDecodeLogInterval,
		loadInterval: defaultLoadInterval, ranks: 1, balance: roundRobin}}
}

// WithStarting makes [Server.Start] leave the server in the state that SGLang is in from the moment its socket is open
// until its warm-up is over: it answers requests, but is not healthy. [Server.Up] ends it.
func WithStarting() Option {
	return func(o *options) error { o.starting = true; return nil }
}

// WithMiddleware wraps the server's handler, for an access log or for faults. Of several the last is the outermost. Nothing
// has checked a request's key yet: see [Server.Authorized].
// The ResponseWriter that it hands on must be an [http.Flusher].
func WithMiddleware(wrap func(http.Handler) http.Handler) Option {
	return func(o *options) error { o.middleware = append(o.middleware, wrap); return nil }
}

// WithListener makes [Server.Start] serve on ln instead of listening on the host and port of its configuration. The server
// closes it. Its Accept may wait while connections are refused, which is how a host simulates that.
func WithListener(ln net.Listener) Option {
	return func(o *options) error { o.listener = ln; return nil }
}

// WithServerArgs sets arguments as /server_info reports them, by their names there, beyond those of the server's config.
// They change nothing but the label: it names those that could change times, capacity or schedule in SGLang as not simulated,
// and voids the known error; see [Server.Unsimulated]. A model_path among them is also what /model_info tells, and the served
// name without another. An argument that the version does not have is an error.
func WithServerArgs(args map[string]any) Option {
	return func(o *options) error {
		if o.serverArgs == nil {
			o.serverArgs = map[string]any{}
		}
		maps.Copy(o.serverArgs, args)
		return nil
	}
}
