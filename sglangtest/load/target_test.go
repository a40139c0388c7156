package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBaseURL(t *testing.T) {
	for base, want := range map[string]string{
		"http://h/team/model":                "http://h/team/model/generate",
		"http://h/team/model/":               "http://h/team/model/generate",
		"http://h:1//":                       "http://h:1/generate",
		"http://h/v1":                        `/v1 belongs to the route and is added to the base URL: leave it out and use "http://h"`,
		"http://h/team/v1/":                  `use "http://h/team"`,
		"http://h/team/v1/chat/completions":  `use "http://h/team"`,
		"http://h/generate":                  `use "http://h"`,
		"http://me:secret@h/v1":              `use "http://me:xxxxx@h"`,
		"http://h/?key=1":                    "neither a query nor a fragment",
		"http://h#a":                         "neither a query nor a fragment",
		"http://me:secret@h:port/":           `"http://xxxxx@h:port/": want a base URL`,
		"ftp://me:secret@h":                  `"ftp://me:xxxxx@h": want a base URL`,
		"h:30000":                            "want a base URL",
		"http://[::1]:30000/a%2Fb/":          "http://[::1]:30000/a%2Fb/generate",
		"http://h/serve/v1-models":           "http://h/serve/v1-models/generate",
		"https://me:secret@h/x":              "https://h/x/generate",
		"http://h/v1/completions?stream=yes": "neither a query",
	} {
		var got string
		s, err := NewSender(base, WithTransport(roundTripper(func(r *http.Request) (*http.Response, error) {
			got = r.URL.String()
			return nil, io.EOF
		})))
		if !strings.HasPrefix(want, "http") {
			require.ErrorContains(t, err, want)
			require.NotContains(t, err.Error(), "secret")
			continue
		}
		require.NoError(t, err, base)
		s.Do(t.Context(), NewClock(time.Now()), &Request{Prompt: Prompt{Text: "x"}}, new(Result))
		require.Equal(t, want, got)
	}
}

func TestUserAndPasswordOfAURL(t *testing.T) {
	var got []string
	rt := roundTripper(func(r *http.Request) (*http.Response, error) {
		got = append(got, r.Header.Get("Authorization"))
		require.Nil(t, r.URL.User)
		return nil, io.EOF
	})
	s, err := NewSender("http://me:pass%40word@h", WithTransport(rt), WithHeader("X-A", "b"))
	require.NoError(t, err)
	s.Do(t.Context(), NewClock(time.Now()), &Request{Prompt: Prompt{Text: "x"}}, new(Result))
	require.Equal(t, []string{"Basic " + base64.StdEncoding.EncodeToString([]byte("me:pass@word"))}, got)

	_, err = NewSender("http://me:secret@h", WithTransport(rt), WithAPIKey("k"))
	require.ErrorContains(t, err, "leave one of them out")
	require.NotContains(t, err.Error(), "secret")
	s, err = NewRoutedSender(WithTransport(rt), WithAPIKey("k"))
	require.NoError(t, err)
	target := Target{URL: "http://me:secret@h"}
	require.ErrorContains(t, s.CheckTarget(target), "leave one of them out")
	var res Result
	s.DoTo(t.Context(), NewClock(time.Now()), &Placement{Target: target}, &Request{Prompt: Prompt{Text: "x"}}, &res)
	require.Equal(t, OutcomeRejected, res.Outcome)
	require.NotContains(t, res.Message, "secret")
}

// tlsServer is an https server that a private authority vouches for, and a transport that knows that authority.
func tlsServer(t *testing.T, h http.HandlerFunc) (*httptest.Server, *http.Transport) {
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	authorities := x509.NewCertPool()
	authorities.AddCert(srv.Certificate())
	tr := NewTransport()
	tr.TLSClientConfig = &tls.Config{RootCAs: authorities}
	t.Cleanup(tr.CloseIdleConnections)
	return srv, tr
}

const oneToken = `{"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"}}}`

func TestPrivateAuthority(t *testing.T) {
	srv, tr := tlsServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, oneToken) })
	ask := func(opts ...SenderOption) (res Result) {
		s, err := NewSender(srv.URL, append(opts, WithStreaming(false))...)
		require.NoError(t, err)
		defer s.Close()
		s.Do(t.Context(), NewClock(time.Now()), &Request{Prompt: Prompt{Text: "x"}}, &res)
		return res
	}
	srv.Config.ErrorLog = nil
	res := ask()
	require.Equal(t, OutcomeTransport, res.Outcome)
	require.Contains(t, res.Message, "certificate")
	res = ask(WithTransport(tr))
	require.Equal(t, OutcomeOK, res.Outcome, res.Message)
	require.Positive(t, res.Connect)
}

// TestDialThatOutlivesItsRequest makes dials over TLS go on while their requests have been served on another connection
// and what they used is used again. The race detector decides.
func TestDialThatOutlivesItsRequest(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	srv, tr := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "hold") {
			held <- struct{}{}
			<-release
		}
		io.WriteString(w, oneToken)
	})
	var dials atomic.Int32
	slow, dialling := make(chan struct{}), make(chan struct{}, 100)
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dials.Add(1) > 1 {
			dialling <- struct{}{}
			<-slow
		}
		return new(net.Dialer).DialContext(context.WithoutCancel(ctx), network, addr)
	}
	s, err := NewSender(srv.URL, WithTransport(tr), WithStreaming(false))
	require.NoError(t, err)
	ask := func(text string) {
		var res Result
		s.Do(t.Context(), NewClock(time.Now()), &Request{Prompt: Prompt{Text: text}}, &res)
		if res.Outcome != OutcomeOK {
			t.Error(res.Outcome, res.Message)
		}
	}
	for range 8 { // each leaves a dial behind
		first, second := make(chan struct{}), make(chan struct{})
		go func() { defer close(first); ask("hold") }()
		<-held
		go func() { defer close(second); ask("x") }()
		<-dialling
		release <- struct{}{}
		<-first
		<-second
	}
	close(slow)
	for range 50 {
		ask("x")
	}
}

func TestIdleTimeout(t *testing.T) {
	for _, c := range []struct {
		opts []SenderOption
		want time.Duration
	}{{nil, DefaultIdleTimeout}, {[]SenderOption{WithIdleTimeout(500 * ms), WithMaxConnections(3)}, 500 * ms}} {
		s, err := NewSender("http://h", c.opts...)
		require.NoError(t, err)
		require.Equal(t, c.want, s.owned.IdleConnTimeout)
		require.Nil(t, s.owned.Proxy, "a proxy of the environment is not what is measured")
	}
	_, err := NewSender("http://h", WithIdleTimeout(0))
	require.ErrorContains(t, err, "idle timeout 0s: want > 0")
	_, err = NewSender("http://h", WithIdleTimeout(time.Second), WithTransport(NewTransport()))
	require.ErrorContains(t, err, "set IdleConnTimeout of the transport")
}
