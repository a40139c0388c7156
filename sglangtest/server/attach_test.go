package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A server that was attached to has ended only if nobody is there: neither a hang nor an answer of another kind is an end.
func TestCheckAlive(t *testing.T) {
	attach := func(t *testing.T) (s *Server, host *httptest.Server, status *atomic.Int32) {
		status = new(atomic.Int32)
		mux := http.NewServeMux()
		mux.HandleFunc("/ready", func(http.ResponseWriter, *http.Request) {})
		for path, body := range map[string]string{"/model_info": `{"model_path":"m","is_generation":true}`, "/server_info": tinyInfo(64), "/v1/models": `{"data":[]}`, "/generate": oneToken.body} {
			mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
				if n := status.Load(); n < 0 {
					<-r.Context().Done()
				} else if n > 0 {
					w.WriteHeader(int(n))
				}
				w.Write([]byte(body))
			})
		}
		host = httptest.NewServer(mux)
		t.Cleanup(host.Close)
		s = launch(t, newManager(t, Attach(host.URL), nil), Config{})
		require.True(t, s.Attached())
		return s, host, status
	}
	alive := func(t *testing.T, s *Server) {
		require.NoError(t, s.CheckAlive(t.Context()))
		require.Equal(t, StateReady, s.State())
	}
	gone := func(t *testing.T, s *Server) {
		err := s.CheckAlive(t.Context())
		require.ErrorContains(t, err, "the server that was attached to is no longer there")
		require.Equal(t, StateFailed, s.State())
		require.Equal(t, err, s.Err())
		<-s.Exited()
		require.Equal(t, err, s.CheckAlive(t.Context()), "it stays so")
		require.NoError(t, s.Stop(t.Context()))
	}
	t.Run("killed", func(t *testing.T) {
		s, host, _ := attach(t)
		alive(t, s)
		host.CloseClientConnections()
		host.Close()
		gone(t, s)
	})
	t.Run("behind a gateway", func(t *testing.T) {
		s, _, status := attach(t)
		for _, n := range []int32{401, 404, 500} {
			status.Store(n)
			alive(t, s)
		}
		status.Store(502)
		gone(t, s)
	})
	t.Run("hanging", func(t *testing.T) {
		s, _, status := attach(t)
		status.Store(-1)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		require.NoError(t, s.CheckAlive(ctx))
		require.Equal(t, StateReady, s.State())
	})
	t.Run("stopped", func(t *testing.T) {
		s, host, _ := attach(t)
		require.NoError(t, s.Stop(t.Context()))
		host.Close()
		require.NoError(t, s.CheckAlive(t.Context()))
		require.Equal(t, StateStopped, s.State())
	})
}
