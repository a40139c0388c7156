package sim

import (
	"crypto/subtle"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A route is one path of the API.
type route struct {
	methods  string // as in SGLang's Allow header
	serve    func(*Server, http.ResponseWriter, *http.Request)
	admin    bool   // of the level ADMIN_OPTIONAL (utils/auth.py); the others are NORMAL
	since    int    // first version that has it, by its last number; 0: all
	until    int    // last version that has it; 0: it is still there
	function string // of http_server.py, and the lines where it begins in the recorded versions
	lines    [len(recordedPatches)]int
}

func (r route) allows(method string) bool {
	for m := range strings.SplitSeq(r.methods, ", ") {
		if m == method {
			return true
		}
	}
	return false
}

var routes map[string]route

func init() { // the handlers look routes up
	routes = map[string]route{
		"/":                    {methods: "GET, HEAD", serve: (*Server).root},
		"/health":              {methods: "GET", serve: (*Server).health},
		"/health_generate":     {methods: "GET", serve: (*Server).health},
		"/ping":                {methods: "GET", serve: (*Server).ping},
		"/ready":               {methods: "GET", serve: (*Server).ready, since: 21},
		"/model_info":          {methods: "GET", serve: (*Server).modelInfo},
		"/get_model_info":      {methods: "GET", serve: (*Server).modelInfo},
		"/server_info":         {methods: "GET", serve: (*Server).serverInfo},
		"/get_server_info":     {methods: "GET", serve: (*Server).serverInfo},
		"/weight_version":      {methods: "GET", serve: (*Server).weightVersion, until: 20},
		"/get_weight_version":  {methods: "GET", serve: (*Server).weightVersion, until: 20},
		"/v1/models":           {methods: "GET", serve: (*Server).models},
		"/v1/loads":            {methods: "GET", serve: (*Server).loads},
		"/get_load":            {methods: "GET", serve: (*Server).getLoad, until: 20},
		"/metrics":             {methods: "GET", serve: (*Server).metrics},
		"/flush_cache":         {methods: "GET, POST", serve: (*Server).flushCache, admin: true},
		"/freeze_gc":           {methods: "GET, POST", serve: says("Garbage collection frozen.\n"), admin: true},
		"/stop_profile":        {methods: "GET, POST", serve: says("Stop profiling. This will take some time.\n"), admin: true},
		"/close_session":       {methods: "GET, POST", serve: takes(""), function: "close_session", lines: [4]int{1479, 1587, 1642, 1701}},
		"/start_profile":       {methods: "GET, POST", serve: (*Server).startProfile, admin: true, function: "start_profile_async", lines: [4]int{1050, 1157, 1164, 1221}},
		"/configure_logging":   {methods: "GET, POST", serve: takes(""), admin: true, function: "configure_logging", lines: [4]int{1489, 1597, 1652, 1711}},
		"/abort_request":       {methods: "POST", serve: (*Server).abortRequest, admin: true, function: "abort_request", lines: [4]int{1499, 1607, 1662, 1721}},
		"/pause_generation":    {methods: "POST", serve: (*Server).pauseGeneration, admin: true, function: "pause_generation", lines: [4]int{1577, 1685, 1740, 1831}},
		"/continue_generation": {methods: "POST", serve: (*Server).continueGeneration, admin: true, function: "continue_generation", lines: [4]int{1590, 1698, 1753, 1844}},
		"/slow_down":           {methods: "GET, POST", serve: (*Server).slowDown, admin: true, function: "slow_down", lines: [4]int{1417, 1525, 1563, 1621}},
		"/set_internal_state":  {methods: "PUT, POST", serve: (*Server).setInternalState, admin: true, function: "set_internal_state", lines: [4]int{759, 858, 879, 897}},
		"/update_weight_version": {methods: "POST", serve: (*Server).updateWeightVersion, admin: true, function: "update_weight_version",
			lines: [4]int{1325, 1432, 1469, 1527}},
		"/update_weights_from_disk": {methods: "POST", serve: (*Server).updateWeights, admin: true, function: "update_weights_from_disk",
			lines: [4]int{1128, 1235, 1242, 1300}},
		"/tokenize":      {methods: "POST", serve: (*Server).tokenize, function: "openai_v1_tokenize", lines: [4]int{1648, 1756, 1811, 1906}},
		"/v1/tokenize":   {methods: "POST", serve: (*Server).tokenize, function: "openai_v1_tokenize", lines: [4]int{1648, 1756, 1811, 1906}},
		"/detokenize":    {methods: "POST", serve: (*Server).detokenize, function: "openai_v1_detokenize", lines: [4]int{1666, 1774, 1829, 1924}},
		"/v1/detokenize": {methods: "POST", serve: (*Server).detokenize, function: "openai_v1_detokenize", lines: [4]int{1666, 1774, 1829, 1924}},
		"/generate":      {methods: "PUT, POST", serve: (*Server).generate, function: "generate_request", lines: [4]int{785, 889, 910, 928}},
		"/v1/completions": {methods: "POST", serve: (*Server).completions, function: "openai_v1_completions",
			lines: [4]int{1606, 1714, 1769, 1860}},
		"/v1/chat/completions": {methods: "POST", serve: (*Server).chat, function: "openai_v1_chat_completions",
			lines: [4]int{1614, 1722, 1777, 1870}},
	}
}

// modelPath is the route of one model; the rest of the path is its name.
const modelPath = "/v1/models/"

// route finds the route of a path in the server's version.
func (s *Server) route(path string) (route, bool) {
	if strings.HasPrefix(path, modelPath) {
		return route{methods: "GET", serve: (*Server).model}, true
	}
	rt, ok := routes[path]
	patch := s.opts.release.patch
	return rt, ok && patch >= rt.since && (rt.until == 0 || patch <= rt.until)
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.refused {
		s.mu.Unlock()
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	s.handlers.Add(1)
	s.mu.Unlock()
	defer s.handlers.Done()
	if r.ContentLength != 0 { // also for a body that nobody reads: net/http reads it before it answers
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.bodyTimeout)) // without an effect behind a middleware that hides it
	}
	h := w.Header()
	h[serverHeader] = uvicorn
	h[load.SimulatedByHeader] = *s.label.Load()
	rt, ok := s.route(r.URL.Path)
	if !s.Authorized(r) {
		writeBody(w, http.StatusUnauthorized, "application/json", []byte(`{"error":"Unauthorized"}`))
		return
	}
	if s.opts.release.patch >= 18 {
		h[varyHeader] = varyOrigin
	}
	switch {
	case !ok:
		writeBody(w, http.StatusNotFound, "application/json", []byte(`{"detail":"Not Found"}`))
	case !rt.allows(r.Method):
		h["allow"] = []string{rt.methods}
		writeBody(w, http.StatusMethodNotAllowed, "application/json", []byte(`{"detail":"Method Not Allowed"}`))
	default:
		rt.serve(s, w, r)
	}
}

// The headers that are the same in all replies, as the map holds them.
const (
	serverHeader = "Server"
	varyHeader   = "Vary"
)

var uvicorn, varyOrigin = []string{"uvicorn"}, []string{"Origin"}

// Authorized reports whether a request has the key that its route wants, as SGLang decides it. It is for a middleware, which
// is asked before the server is. Paths that begin with /sim/, of which SGLang has none, are of the level of its admin routes.
func (s *Server) Authorized(r *http.Request) bool {
	rt, _ := s.route(r.URL.Path)
	rt.admin = rt.admin || strings.HasPrefix(r.URL.Path, "/sim/")
	return s.authorized(r, rt)
}

// authorized follows decide_request_auth (utils/auth.py).
func (s *Server) authorized(r *http.Request, rt route) bool {
	path := r.URL.Path
	if r.Method == http.MethodOptions || strings.HasPrefix(path, "/health") || strings.HasPrefix(path, "/metrics") ||
		s.opts.release.patch >= 21 && strings.HasPrefix(path, "/ready") {
		return true
	}
	want := s.opts.apiKey
	if rt.admin && s.opts.adminKey != "" {
		want = s.opts.adminKey
	}
	if want == "" {
		return true
	}
	scheme, key, found := strings.Cut(r.Header.Get("Authorization"), " ")
	return found && strings.EqualFold(scheme, "bearer") && subtle.ConstantTimeCompare([]byte(key), []byte(want)) == 1
}

// writeBody answers with a body, or with none if that is empty. The client may take writeTimeout for it.
func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	if contentType != "" {
		w.Header().Set("Content-Type", contentType)
	} else {
		w.Header()["Content-Type"] = nil
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout)) // without an effect behind a middleware that hides it
	w.WriteHeader(status)
	w.Write(body) // a failure means that the client has gone
}

// badRequest answers as SGLang does to a body that its schema refuses.
func badRequest(w http.ResponseWriter, message string) {
	b := appendString([]byte(`{"object":"error","message":`), message)
	writeBody(w, http.StatusBadRequest, "application/json", append(b, `,"type":"Bad Request","param":null,"code":400}`...))
}

// crashed answers as Starlette does when a handler raises.
func crashed(w http.ResponseWriter) {
	delete(w.Header(), varyHeader)
	writeBody(w, http.StatusInternalServerError, "text/plain; charset=utf-8", []byte("Internal Server Error"))
}

// Bounds of what a client can hold.
const (
	maxBody     = 64 << 20         // bytes of a request's body: several million token ids
	bodyTimeout = time.Minute      // to send it
	readTimeout = 30 * time.Second // to send the request's head
	// writeTimeout is how long a client may not take a piece of its answer before its connection breaks. SGLang would
	// wait for ever.
	writeTimeout = 2 * time.Minute
)

// readBody reads the body and tells when its last byte had come. It reports false if it has answered that
// there is too much of it.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) (body []byte, received time.Time, ok bool) {
	err := error(&http.MaxBytesError{})
	if r.ContentLength <= maxBody {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	}
	received = time.Now()
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		w.Header().Set("Connection", "close")
		writeBody(w, http.StatusRequestEntityTooLarge, "application/json", []byte(`{"detail":"Request body too large"}`))
		return nil, received, false
	} else if err != nil {
		panic(http.ErrAbortHandler) // the client has gone, or is too slow
	}
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	return body, received, true
}
