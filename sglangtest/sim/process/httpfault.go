//go:build unix

package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// A faultyModel is the step model of the profile with the faults of steps.
type faultyModel struct {
	sim.StepModel
	hang   atomic.Bool
	factor atomic.Pointer[float64] // nil: 1
	more   atomic.Int64            // nanoseconds
}

// never is a step that does not end: a century, so that sums of it stay in range.
const never = 100 * 365 * 24 * time.Hour

// StepTime returns the duration of a step.
func (m *faultyModel) StepTime(s sim.Shape) time.Duration {
	if m.hang.Load() {
		return never
	}
	d := m.StepModel.StepTime(s)
	if f := m.factor.Load(); f != nil {
		d = time.Duration(min(float64(d)**f, float64(never)))
	}
	return min(d+min(time.Duration(m.more.Load()), never), never)
}

// httpFaults is what happens to requests before the simulated server sees them, and what is logged of them.
type httpFaults struct {
	p        *mainProc
	requests atomic.Int64 // generations asked for
	open     atomic.Int64 // requests being answered
	frozen   atomic.Bool  // nothing is answered any more

	mu      sync.Mutex
	counted []planned // faults that wait for a request
	active  []planned // faults that have struck and go on
	rng     *rand.Rand
}

func (h *httpFaults) start(p *mainProc) {
	h.p, h.rng = p, rand.New(rand.NewPCG(p.seed, 0))
}

// has returns a fault that goes on.
func (h *httpFaults) has(name string) (planned, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.active {
		if f.name == name {
			return f, true
		}
	}
	return planned{}, false
}

// set starts a fault that goes on, in place of an earlier one of that name; clear ends it.
func (h *httpFaults) set(f planned) {
	h.clear(f.name)
	h.mu.Lock()
	h.active = append(h.active, f)
	h.mu.Unlock()
}

func (h *httpFaults) clear(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := h.active[:0]
	for _, f := range h.active {
		if f.name != name {
			kept = append(kept, f)
		}
	}
	h.active = kept
}

func (h *httpFaults) draw() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rng.Float64()
}

// generations are the routes whose requests count.
var generations = map[string]bool{"/generate": true, "/v1/completions": true, "/v1/chat/completions": true}

// wrap is a middleware of the simulated server.
func (h *httpFaults) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sim/fault" {
			if status, err := h.guard(r); err != nil {
				http.Error(w, err.Error(), status)
				return
			}
			h.admin(w, r)
			return
		}
		h.open.Add(1)
		defer h.open.Add(-1)
		if h.frozen.Load() {
			<-r.Context().Done()
			return
		}
		l := &responseLog{ResponseWriter: w, p: h.p, r: r}
		if generations[r.URL.Path] && (r.Method == http.MethodPost || r.Method == http.MethodPut && r.URL.Path == "/generate") && h.p.sim.Authorized(r) {
			n := h.requests.Add(1)
			h.p.handling.Store(true)
			h.p.due(n)
			if f, ok := h.has("error-rate"); ok {
				fraction, status, _ := f.rate() // checked when it was planned
				if h.draw() < fraction {
					h.refuse(l, status)
					return
				}
			}
			if f, ok := h.has("broken-stream"); ok {
				l.events, _ = strconv.Atoi(f.Value) // checked when it was planned
			}
		} else if strings.HasPrefix(r.URL.Path, "/health") {
			h.p.handling.Store(true) // it generates
		}
		next.ServeHTTP(l, r)
	})
}

// refuse answers as SGLang does to a request that its scheduler aborts with a status.
func (h *httpFaults) refuse(w http.ResponseWriter, status int) {
	message := http.StatusText(status)
	if status == http.StatusServiceUnavailable {
		message = "The request queue is full."
	}
	w.Header().Set("Server", "uvicorn")
	w.Header().Set(load.SimulatedByHeader, h.p.sim.SimulatedBy())
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"object":"error","message":%q,"type":"%d","param":null,"code":%[2]d}`, message, status)
}

// A responseLog writes uvicorn's access log when the answer begins, and breaks streams.
type responseLog struct {
	http.ResponseWriter
	p      *mainProc
	r      *http.Request
	begun  bool
	events int // of the stream before it breaks; 0: it does not
	sent   int
}

func (l *responseLog) WriteHeader(status int) {
	if !l.begun {
		l.begun = true
		l.p.access.uvicorn(info, `%s - "%s %s HTTP/%d.%d" %d %s`, l.r.RemoteAddr, l.r.Method, l.r.URL.RequestURI(), l.r.ProtoMajor, l.r.ProtoMinor, status, http.StatusText(status))
	}
	l.ResponseWriter.WriteHeader(status)
}

func (l *responseLog) Write(b []byte) (int, error) {
	if !l.begun {
		l.WriteHeader(http.StatusOK)
	}
	if l.events > 0 && strings.HasPrefix(l.Header().Get("Content-Type"), "text/event-stream") {
		if l.sent += bytes.Count(b, []byte("data: ")); l.sent >= l.events {
			for over := l.sent - l.events; over > 0; over-- { // the events that came too many in this write
				b = b[:bytes.LastIndex(b, []byte("data: "))]
			}
			_, _ = l.ResponseWriter.Write(b) // the connection breaks anyway
			l.Flush()
			panic(http.ErrAbortHandler)
		}
	}
	return l.ResponseWriter.Write(b)
}

// Flush sends what was written.
func (l *responseLog) Flush() { l.ResponseWriter.(http.Flusher).Flush() }

// Unwrap is for [http.ResponseController].
func (l *responseLog) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// guard says why a request to /sim/fault is refused. Who may ask is who may use SGLang's admin routes, but for web pages: a
// browser sends a page's requests to servers of its own host, where a key often is thought needless.
func (h *httpFaults) guard(r *http.Request) (status int, err error) {
	if !h.p.sim.Authorized(r) {
		return http.StatusUnauthorized, errors.New("want the server's admin key, or its API key if it has no other, as Authorization: Bearer")
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return http.StatusForbidden, fmt.Errorf("no web page of another origin: %w", err)
	}
	// A page whose name was made to lead here is of this origin to its browser, but the name gives it away.
	keyed := h.p.config.APIKey != "" || h.p.config.AdminAPIKey != ""
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	browser := r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != ""
	if !keyed && (browser || local == nil || local.IP.IsLoopback()) && !h.ownName(r.Host) {
		return http.StatusForbidden, fmt.Errorf("no server is called %q here: use its address or localhost, or give it an API key", r.Host)
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); r.Method == http.MethodPost && (err != nil || kind != "application/json") {
		return http.StatusUnsupportedMediaType, errors.New("want Content-Type: application/json")
	}
	return 0, nil
}

// ownName reports whether a Host header names this server in a way that no other can have chosen.
func (h *httpFaults) ownName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	return net.ParseIP(host) != nil || host == "localhost" || strings.HasSuffix(host, ".localhost") || host != "" && host == strings.ToLower(h.p.config.Host)
}

// admin is /sim/fault: GET lists the faults, POST {"fault": "NAME[:VALUE][@AFTER]"} asks for one, and
// {"clear": "NAME"} ends one that goes on.
func (h *httpFaults) admin(w http.ResponseWriter, r *http.Request) {
	type listed struct {
		Name  string `json:"name"`
		Doc   string `json:"doc"`
		Exit  string `json:"exit,omitempty"`
		Value string `json:"value,omitempty"`
		// Active is the value of a fault that goes on, or "on".
		Active string `json:"active,omitempty"`
	}
	var body struct{ Fault, Clear string }
	fail := func(status int, err error) { http.Error(w, err.Error(), status) }
	switch r.Method {
	case http.MethodGet:
		var all []listed
		for _, f := range faults {
			l := listed{Name: f.name, Doc: f.doc, Exit: f.exit, Value: f.value}
			if a, ok := h.has(f.name); ok {
				if l.Active = a.Value; l.Active == "" {
					l.Active = "on"
				}
			}
			all = append(all, l)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(all) // a failure means that the client has gone
	case http.MethodPost:
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Minute))
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<16))
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		if err == nil {
			err = json.Unmarshal(raw, &body)
		}
		if err == nil && (body.Fault == "") == (body.Clear == "") {
			err = errors.New(`want {"fault": "NAME[:VALUE][@AFTER]"} or {"clear": "NAME"}`)
		}
		if err != nil {
			fail(http.StatusBadRequest, err)
			return
		}
		if body.Clear != "" {
			if _, ok := h.has(body.Clear); !ok {
				fail(http.StatusNotFound, fmt.Errorf("no fault %q goes on", body.Clear))
				return
			}
			h.p.clear(body.Clear)
			return
		}
		f, err := parseFault(body.Fault)
		if err == nil && f.when != running {
			err = fmt.Errorf("%s strikes during the start: give it to --sim-fault", f.name)
		}
		if err != nil {
			fail(http.StatusBadRequest, err)
			return
		}
		if f.After == 0 && f.Requests == 0 {
			f.done = make(chan struct{})
		}
		h.p.sim.NoteFault(f.String()) // before anything can come of it
		h.p.log.logf(warning, "sglang-sim: fault %s was set: from here on nothing is known of the error", f)
		h.p.plan(f)
		if f.done != nil {
			select {
			case <-f.done:
			case <-r.Context().Done():
			}
		}
	default:
		w.Header().Set("Allow", "GET, POST")
		fail(http.StatusMethodNotAllowed, errors.New("want GET or POST"))
	}
}
