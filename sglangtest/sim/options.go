package sim

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
)

// An Option changes how a simulated server presents itself.
type Option func(*options) error

type options struct {
	release        release
	weightVersion  string
	incremental    bool
	streamInterval int
	metrics        bool
	cacheReport    bool
	apiKey         string
	adminKey       string
	serverArgs     map[string]any
	starting       bool
	listener       net.Listener // nil: listen on the configured host and port
	observers      []Observer
	middleware     []func(http.Handler) http.Handler

	decodeLogInterval int
	loadInterval      int
	tokenizer         *tokenizer
}

func defaultOptions() options {
	r, err := releaseOf(Version)
	if err != nil {
		panic(err) // a constant
	}
	return options{release: r, weightVersion: "default", streamInterval: 1}
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

// WithListener makes [Server.Start] serve on ln instead of listening on the host and port of its configuration. The server
// closes it. Its Accept may wait while connections are refused, which is how a host simulates that.
func WithListener(ln net.Listener) Option {
	return func(o *options) error { o.listener = ln; return nil }
}

// WithStreamInterval makes streams send an event for every n-th token only, n ≥ 1, unless the request sets its own
// stream_interval (SGLang's --stream-interval; 1 without it).
func WithStreamInterval(n int) Option {
	return func(o *options) error {
		if n < 1 {
			return fmt.Errorf("sim: stream interval is %d: want at least 1", n)
		}
		o.streamInterval = n
		return nil
	}
}

// WithMetrics does what SGLang's --enable-metrics does: it adds time stamps to the meta_info of answers, and makes the
// server answer /metrics, which is not found without it. The page has the names, labels and buckets of the server's
// version. It has not the CPU times of SGLang's processes, which are not simulated, and says 0 for memory in GB and
// start-up times, which a profile does not know.
func WithMetrics() Option {
	return func(o *options) error { o.metrics = true; return nil }
}

// WithCacheReport tells the tokens from the prefix cache in the usage of OpenAI answers (SGLang's --enable-cache-report).
func WithCacheReport() Option {
	return func(o *options) error { o.cacheReport = true; return nil }
}

// WithAPIKey demands a key as SGLang's --api-key does: see [WithAdminAPIKey].
func WithAPIKey(key string) Option {
	return func(o *options) error {
		if key == "" {
			return errors.New("sim: API key is empty")
		}
		o.apiKey = key
		return nil
	}
}

// WithAdminAPIKey demands a key for the routes that control the server, as SGLang's --admin-api-key does. Without it
// they want the API key, if there is one. Health, readiness and metrics are always open.
func WithAdminAPIKey(key string) Option {
	return func(o *options) error {
		if key == "" {
			return errors.New("sim: admin API key is empty")
		}
		o.adminKey = key
		return nil
	}
}

// WithServerArgs sets arguments as /server_info reports them, by their names there, beyond those that the server's
// config and other options set. They change nothing else. An argument that the version does not have is an error.
func WithServerArgs(args map[string]any) Option {
	return func(o *options) error {
		if o.serverArgs == nil {
			o.serverArgs = map[string]any{}
		}
		maps.Copy(o.serverArgs, args)
		return nil
	}
}
