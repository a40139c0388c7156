package load

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A connection that was dialed for a request which found another one meanwhile has carried none, whatever net/http says.
func TestReusedIsOfConnectionsThatCarriedARequest(t *testing.T) {
	arrived, answer := make(chan string), make(chan struct{})
	serve := func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.RemoteAddr
		<-answer
		fmt.Fprint(w, `{"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"stop"}}}`)
	}
	for name, start := range map[string]func(http.Handler) *httptest.Server{"http": httptest.NewServer, "https": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			srv := start(http.HandlerFunc(serve))
			defer srv.Close()
			dialing, gate := make(chan struct{}, 10), make(chan struct{})
			s, err := NewSender(srv.URL, WithStreaming(false))
			require.NoError(t, err)
			defer s.Close()
			var dials atomic.Int32
			s.owned.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				if dials.Add(1) > 1 {
					dialing <- struct{}{}
					<-gate
				}
				return dial(ctx, network, address)
			}
			if name == "https" {
				s.owned.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig
			}
			var wg sync.WaitGroup
			var res [3]Result
			ask := func(i int) {
				wg.Go(func() {
					s.Do(t.Context(), NewClock(time.Now()), &Request{ID: i, Prompt: Prompt{Text: "x"}, OutputLen: 1}, &res[i])
				})
			}
			ask(0)
			one := <-arrived
			ask(1)
			<-dialing
			answer <- struct{}{} // the first, whose connection the second gets before its own is there
			require.Equal(t, one, <-arrived)
			close(gate)
			ask(2)
			require.NotEqual(t, one, <-arrived)
			answer <- struct{}{}
			answer <- struct{}{}
			wg.Wait()
			for i, want := range []bool{false, true, false} {
				require.Equal(t, OutcomeOK, res[i].Outcome, res[i].Message)
				require.Equal(t, want, res[i].Reused, i)
				require.NoError(t, res[i].Check())
			}
		})
	}
}
