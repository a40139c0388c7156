package load

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// connecting is a server that counts its connections and the requests that it gets.
type connecting struct {
	*httptest.Server
	conns, requests atomic.Int64
}

func newConnecting(t *testing.T, start func(*httptest.Server)) *connecting {
	c := new(connecting)
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.requests.Add(1)
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, `data: {"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"}}}`+"\n\ndata: [DONE]\n\n")
	}))
	c.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			c.conns.Add(1)
		}
	}
	start(c.Server)
	t.Cleanup(c.Close)
	return c
}

func TestConnectionsAreOpenedBeforehand(t *testing.T) {
	for _, start := range []func(*httptest.Server){(*httptest.Server).Start, (*httptest.Server).StartTLS} {
		srv := newConnecting(t, start)
		s, err := NewSender(srv.URL)
		require.NoError(t, err)
		defer s.Close()
		if tr, ok := srv.Client().Transport.(*http.Transport); ok {
			s.owned.TLSClientConfig = tr.TLSClientConfig
		}
		const n = 100
		rec := newLedger(t)
		require.NoError(t, Run(t.Context(), plannedAt{make(arrivalsAt, n), 0}, s, rec))
		for _, r := range rec.results {
			require.Equal(t, OutcomeOK, r.Outcome, r.Message)
			require.True(t, r.Reused || r.Idle > 0, "it found an open connection")
		}
		require.EqualValues(t, n, srv.requests.Load(), "no request was sent for it")
		require.EqualValues(t, n, srv.conns.Load(), "those that were opened were used")
	}
}

func TestOpeningGivesUpWithItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // never answers a TLS handshake
	require.NoError(t, err)
	defer l.Close()
	s, err := NewSender("https://"+l.Addr().String(), WithMaxConnections(5))
	require.NoError(t, err)
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	s.Open(ctx, 1000)
	require.Error(t, ctx.Err())

	cancelled, stop := context.WithCancel(t.Context())
	stop()
	s.Open(cancelled, 3)
}

// opened is a Doer that notes what was opened.
type opened struct {
	serviceTime
	asked, n int
	cannot   error
}

func (o *opened) CanOpen(n int) error           { o.asked = n; return o.cannot }
func (o *opened) Open(_ context.Context, n int) { o.n = n }

// plannedAt is a workload whose plan says when its last request arrives.
type plannedAt struct {
	arrivalsAt
	last time.Duration
}

func (p plannedAt) Plan() (Plan, error) {
	return Plan{Requests: len(p.arrivalsAt), LastArrival: p.last}, nil
}

func TestHowManyConnectionsARunBeginsWith(t *testing.T) {
	burst := plannedAt{make(arrivalsAt, 1500), 0}
	for _, tc := range []struct {
		name string
		src  Source
		opts []RunOption
		want int
	}{
		{"open loop", plannedAt{arrivalsAt{0, ms, 2 * ms}, 2 * ms}, nil, 0},
		{"burst", burst, nil, 1500},
		{"closed loop", burst, []RunOption{WithMaxConcurrency(256)}, 256},
		{"one at a time", burst, []RunOption{WithMaxConcurrency(1)}, 0},
		{"a trace that begins with three", plannedAt{arrivalsAt{0, 0, 0, ms}, ms}, nil, 3},
		{"not wanted", burst, []RunOption{WithMaxConcurrency(256), WithOpenConnections(0)}, 0},
		{"wanted", plannedAt{arrivalsAt{0, ms}, ms}, []RunOption{WithOpenConnections(7)}, 7},
	} {
		o := &opened{}
		require.NoError(t, Run(t.Context(), tc.src, o, newLedger(t), tc.opts...), tc.name)
		require.Equal(t, tc.want, o.n, tc.name)
	}
	o := &opened{cannot: io.ErrShortBuffer}
	rec := newLedger(t)
	err := Run(t.Context(), burst, o, rec, WithMaxConcurrency(40))
	require.ErrorIs(t, err, io.ErrShortBuffer)
	require.ErrorContains(t, err, "40 requests are due at the same moment")
	require.Empty(t, rec.results)
	require.ErrorContains(t, Run(t.Context(), burst, o, rec, WithOpenConnections(-1)), "-1 open connections")
	// Those that are asked for are needed as much as those of a burst.
	single := plannedAt{arrivalsAt{0, ms}, ms}
	require.ErrorContains(t, Run(t.Context(), single, o, rec, WithOpenConnections(41)), "41 connections are to be opened beforehand: "+o.cannot.Error())
	require.Equal(t, 41, o.asked)
}

func TestConnectionsThatCannotBe(t *testing.T) {
	l := readLimits()
	if l.files == 0 || l.ports() == 0 {
		t.Skip("the system does not tell its limits")
	}
	many := l.files + l.ports()
	s, err := NewSender("http://127.0.0.1:1")
	require.NoError(t, err)
	require.ErrorContains(t, s.CanOpen(many), "connections are needed at once")
	require.NoError(t, s.CanOpen(2))
	few, err := NewSender("http://127.0.0.1:1", WithMaxConnections(2))
	require.NoError(t, err)
	require.NoError(t, few.CanOpen(many), "no more are opened")
	spread, err := NewRoutedSender()
	require.NoError(t, err)
	require.NoError(t, spread.CanOpen(many), "how many targets there are is not known")
}
