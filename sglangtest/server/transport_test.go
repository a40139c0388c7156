package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/load"
)

// TestGateway attaches to a server behind a gateway that wants a password, has a path of its own, and a certificate of a
// private authority.
func TestGateway(t *testing.T) {
	w := newPlayback(t).record("0.5.23", true)
	const want = "me:pass@word"
	srv := httptest.NewTLSServer(http.StripPrefix("/team/model", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(want)) {
			http.Error(rw, "who are you?", http.StatusUnauthorized)
			return
		}
		if r.URL.Path == "/generate" {
			io.WriteString(rw, `{"text":"a","meta_info":{"completion_tokens":1,"finish_reason":{"type":"length"}}}`)
			return
		}
		resp, err := w.RoundTrip(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		rw.WriteHeader(resp.StatusCode)
		io.Copy(rw, resp.Body)
		resp.Body.Close()
	})))
	defer srv.Close()
	authorities := x509.NewCertPool()
	authorities.AddCert(srv.Certificate())
	tr := load.NewTransport()
	tr.TLSClientConfig = &tls.Config{RootCAs: authorities}
	base := strings.Replace(srv.URL, "https://", "https://me:pass%40word@", 1) + "/team/model"
	attach := func(opts ...Option) (*Server, error) {
		m, err := NewServerManager(Attach(base+"/"), append(opts, WithReadyTimeout(time.Minute))...)
		require.NoError(t, err)
		return m.Launch(context.Background(), Config{})
	}
	s, err := attach(WithTransport(tr))
	require.NoError(t, err)
	require.NotContains(t, s.Record().URL, "word")
	require.Equal(t, base, s.URL())
	sender, err := load.NewSender(s.URL(), load.WithTransport(tr), load.WithStreaming(false))
	require.NoError(t, err)
	var res load.Result
	sender.Do(t.Context(), load.NewClock(time.Now()), &load.Request{Prompt: load.Prompt{Text: "x"}}, &res)
	require.Equal(t, load.OutcomeOK, res.Outcome, res.Message)
	require.NoError(t, s.Stop(t.Context()))

	_, err = attach()
	require.ErrorContains(t, err, "WithTransport takes a transport that knows a private authority")
	require.NotContains(t, err.Error(), "word")
	_, err = attach(WithTransport(tr), WithAdminAPIKey("k"))
	require.ErrorContains(t, err, "leave one of them out")
	require.Nil(t, newClient(base, "", nil, nil).plain.Transport.(*http.Transport).Proxy, "no proxy of the environment")
	_, err = NewServerManager(Attach(base), WithTransport(nil))
	require.ErrorContains(t, err, "transport: it is nil")
}

func TestLongAnswer(t *testing.T) {
	w := newPlayback(t).tiny()
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	w.on("GET /v1/loads", answer{status: 200, body: `{"loads":[]}` + strings.Repeat(" ", maxAnswer)})
	_, err := s.Loads(t.Context())
	require.ErrorContains(t, err, "GET /v1/loads: the answer is longer than 16 MiB")
	w.on("POST /continue_generation", answer{status: 500, body: strings.Repeat("é", maxAnswer)})
	err = s.Continue(t.Context())
	require.ErrorContains(t, err, strings.Repeat("é", 250)+"… (")
	require.Less(t, len(err.Error()), 700)
	require.Equal(t, strings.ToValidUTF8(err.Error(), "?"), err.Error())
}

func TestAnswerWithByteOrderMark(t *testing.T) {
	w := newPlayback(t).tiny()
	s := launch(t, newManager(t, launches(newInstance()), w), Config{})
	w.on("GET /v1/loads", answer{status: 200, body: "\ufeff" + `{"loads":[]}`})
	_, err := s.Loads(t.Context())
	require.ErrorContains(t, err, "names no rank")
}
