package sim

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// mostEndpoints bounds the pairs of path and method that are told apart, since a client can make up any number. (SGLang's
// are not bounded.)
const mostEndpoints = 1000

// endpoint returns the labels of a request: the path of its route, and its method. The meter must be locked.
func (m *meter) endpoint(path, method string) []string {
	if strings.HasPrefix(path, modelPath) {
		path = modelPath + "{model:path}"
	}
	labels := []string{"endpoint", path, "method", method}
	all := m.series["http_requests_total"]
	if len(all) < mostEndpoints || slices.ContainsFunc(all, func(s *series) bool { return slices.Equal(s.extra, labels) }) {
		return labels
	}
	if rt, ok := routes[path]; !ok || !rt.allows(method) {
		return []string{"endpoint", "other", "method", "other"}
	}
	return labels
}

// countHTTP wraps a handler to count its requests (observability/http_request_metrics.py).
func (m *meter) countHTTP(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		labels := m.endpoint(r.URL.Path, r.Method)
		m.add("http_requests_total", 1, labels...)
		m.add("http_requests_active", 1, labels...)
		m.mu.Unlock()
		sw := &statusWriter{ResponseWriter: w, counted: func(status int) {
			m.mu.Lock()
			m.add("http_responses_total", 1, append(slices.Clone(labels), "status_code", strconv.Itoa(status))...)
			m.mu.Unlock()
		}}
		defer func() {
			m.mu.Lock()
			m.add("http_requests_active", -1, labels...)
			m.mu.Unlock()
		}()
		next.ServeHTTP(sw, r)
	})
}

// A statusWriter tells of the status when it is written.
type statusWriter struct {
	http.ResponseWriter
	counted func(status int)
}

func (w *statusWriter) WriteHeader(status int) {
	if w.counted != nil {
		w.counted(status)
		w.counted = nil
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Flush()                      { w.ResponseWriter.(http.Flusher).Flush() }
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
