package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

// versions are the SGLang versions with recordings. hasReady tells which have the route /ready.
var versions = []struct {
	name     string
	hasReady bool
	port     int // of the recorded server
}{
	{"0.5.15.post1", false, 38761},
	{"0.5.18", false, 38751},
	{"0.5.21", true, 38771},
	{"0.5.23", true, 38720},
}

// instance is an Instance that ends when it is told to.
type instance struct {
	exited chan struct{}
	once   sync.Once
	err    error // written before exited is closed
	stops  chan struct{}
}

func newInstance() *instance {
	return &instance{exited: make(chan struct{}), stops: make(chan struct{}, 100)}
}

func (i *instance) end(err error)           { i.once.Do(func() { i.err = err; close(i.exited) }) }
func (i *instance) URL() string             { return "http://instance" }
func (i *instance) Exited() <-chan struct{} { return i.exited }

func (i *instance) Err() error {
	select {
	case <-i.exited:
		return i.err
	default:
		return nil
	}
}

func (i *instance) Stop(context.Context) error {
	i.stops <- struct{}{}
	i.end(nil)
	return nil
}

// launcherFunc is a Launcher.
type launcherFunc func(context.Context, Spec) (Instance, error)

func (f launcherFunc) Launch(ctx context.Context, spec Spec) (Instance, error) { return f(ctx, spec) }

func launches(i Instance) Launcher {
	return launcherFunc(func(context.Context, Spec) (Instance, error) { return i, nil })
}

// playback is an http.RoundTripper that plays a server. An answer has a status and a body; a recording is one as well.
type playback struct {
	tb    testing.TB
	start time.Time

	mu      sync.Mutex
	answers map[string][]answer // "GET /path" → answers in order; the last one is repeated
	calls   []call
}

type answer struct {
	status int
	body   string
	file   string        // a recording, instead of status and body
	after  time.Duration // how long it takes
	err    error         // the connection broke
	during func()        // what happens before it is given
}

type call struct {
	what string // "GET /path"
	body string
	auth string
	at   time.Duration
}

func newPlayback(tb testing.TB) *playback {
	return &playback{tb: tb, start: time.Now(), answers: map[string][]answer{}}
}

func (w *playback) on(what string, answers ...answer) *playback {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[what] = answers
	return w
}

// record makes w play a recorded server of the given version.
func (w *playback) record(version string, hasReady bool) *playback {
	file := func(name string) answer {
		return answer{file: refdata.Path(w.tb, "sglang-cpu/"+version+"/"+name+".txt")}
	}
	if hasReady {
		w.on("GET /ready", file("health")) // same bytes: 200 and nothing else
	} else {
		w.on("GET /ready", file("not_found"))
	}
	return w.on("GET /health", file("health")).on("GET /model_info", file("model_info")).on("GET /v1/models", file("v1_models")).
		on("GET /server_info", file("server_info")).on("POST /generate", oneToken).on("GET /v1/loads", file("v1_loads"), file("v1_loads_busy"))
}

func (w *playback) RoundTrip(req *http.Request) (*http.Response, error) {
	what := req.Method + " " + req.URL.Path
	c := call{what: what, auth: req.Header.Get("Authorization"), at: time.Since(w.start)}
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req.Body.Close()
		c.body = string(body)
	}
	w.mu.Lock()
	w.calls = append(w.calls, c)
	a := answer{status: http.StatusNotFound, body: `{"detail":"Not Found"}`}
	if list := w.answers[what]; len(list) > 0 {
		a = list[0]
		if len(list) > 1 {
			w.answers[what] = list[1:]
		}
	}
	w.mu.Unlock()
	if a.after > 0 {
		select {
		case <-time.After(a.after):
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}
	if a.during != nil {
		a.during()
	}
	if a.err != nil {
		return nil, a.err
	}
	if a.file != "" {
		data, err := os.ReadFile(a.file)
		if err != nil {
			return nil, err
		}
		head, body, _ := bytes.Cut(data, []byte("\r\n\r\n"))
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(append(head, "\r\n\r\n"...))), req)
		if err != nil {
			return nil, err
		}
		resp.Body = io.NopCloser(bytes.NewReader(body)) // its length is not the recorded one where paths were replaced
		return resp, nil
	}
	return &http.Response{StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(a.body)), Request: req}, nil
}

// made returns the calls of one kind, such as "GET /ready", or all.
func (w *playback) made(what string) []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	var calls []call
	for _, c := range w.calls {
		if what == "" || c.what == what {
			calls = append(calls, c)
		}
	}
	return calls
}

func (w *playback) times(what string) []time.Duration {
	var at []time.Duration
	for _, c := range w.made(what) {
		at = append(at, c.at)
	}
	return at
}

// tiny makes w answer like a small ready server, without a recording.
func (w *playback) tiny() *playback {
	return w.on("GET /ready", answer{status: 200}).
		on("GET /model_info", answer{status: 200, body: `{"model_path":"m","is_generation":true}`}).
		on("GET /server_info", answer{status: 200, body: tinyInfo(64)}).
		on("GET /v1/models", answer{status: 200, body: `{"data":[{"id":"m","max_model_len":4096}]}`}).
		on("POST /set_internal_state", answer{status: 200, body: `[true]`}).
		on("POST /generate", oneToken)
}

// oneToken is what shows that a server generates.
var oneToken = answer{status: 200, body: `{"meta_info":{"completion_tokens":1}}`}

func tinyInfo(limits ...int) string {
	states := make([]string, len(limits))
	for i, l := range limits {
		states[i] = `{"pp_max_micro_batch_size":` + strconv.Itoa(l) + `,"effective_max_running_requests_per_dp":64}`
	}
	return `{"version":"0.5.23","internal_states":[` + strings.Join(states, ",") + `]}`
}

// events collects what a manager tells.
type events struct {
	mu   sync.Mutex
	list []string // "server-0 state ready"
}

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, ev.Server+" "+ev.Kind+" "+ev.Message)
}

func (e *events) all() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string(nil), e.list...)
}

func newManager(tb testing.TB, l Launcher, w *playback, opts ...Option) *ServerManager {
	m, err := NewServerManager(l, opts...)
	require.NoError(tb, err)
	if w != nil {
		m.transport = w
	}
	return m
}

// launch launches a server that the test stops at its end.
func launch(tb testing.TB, m *ServerManager, cfg Config) *Server {
	s, err := m.Launch(context.Background(), cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, s.Stop(context.Background())) })
	return s
}

var errBroken = errors.New("connection reset by peer")
