package load

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// A Sender sends requests to an SGLang server, or to anything that answers like one, and measures the answers.
// It never retries. It is safe for concurrent use; create it with [NewSender] and release it with Close.
//
// Output tokens are counted by the server's own completion_tokens, never by events: an event may carry any
// number of tokens. On the OpenAI routes the sender therefore asks for usage on each event.
type Sender struct {
	api                 API
	model               string
	stream              bool
	incremental         bool
	keepText            bool
	timeout             time.Duration
	tokenLow, tokenHigh int32
	header              http.Header
	own                 Placement // where requests go without a route
	rt                  http.RoundTripper
	owned               *http.Transport // rt, if the sender made it
	maxConns            int
	idle                time.Duration // 0: not set
	attempts            sync.Pool
	bodies              sync.Pool
	places              sync.Map // base URL → *place
	sampling            atomic.Pointer[encodedSampling]
}

// A SenderOption configures a [Sender].
type SenderOption func(*Sender) error

// WithAPI selects the API to call. Default: [Generate].
func WithAPI(api API) SenderOption {
	return func(s *Sender) error {
		if api.path() == "" {
			return fmt.Errorf("unknown API %q: want %s, %s or %s", api, Generate, Completions, ChatCompletions)
		}
		s.api = api
		return nil
	}
}

// WithModel sets the model name that the OpenAI routes send. Default: "default", which a server with one model accepts.
func WithModel(name string) SenderOption {
	return func(s *Sender) error { s.model = name; return nil }
}

// WithStreaming says whether answers are streamed. Default: true. Without streaming there is no time to first
// token and no inter-token latency.
func WithStreaming(on bool) SenderOption {
	return func(s *Sender) error { s.stream = on; return nil }
}

// WithIncrementalStreaming says that the server runs with --incremental-streaming-output: its /generate sends
// in each event the text that came since the last one, not the text from the beginning.
func WithIncrementalStreaming() SenderOption {
	return func(s *Sender) error { s.incremental = true; return nil }
}

// WithTexts makes results carry the output text. Default: texts are not kept.
func WithTexts() SenderOption {
	return func(s *Sender) error { s.keepText = true; return nil }
}

// WithTimeout sets the deadline of each request, counted from its release. Default: none.
func WithTimeout(d time.Duration) SenderOption {
	return func(s *Sender) error {
		if d <= 0 {
			return fmt.Errorf("timeout %v: want > 0", d)
		}
		s.timeout = d
		return nil
	}
}

// WithTokenRange sets the half-open range of the token ids that stand for a prompt's segments.
// Default: [[DefaultTokenLow], [DefaultTokenHigh]).
func WithTokenRange(low, high int32) SenderOption {
	return func(s *Sender) error {
		if low < 0 || high <= low {
			return fmt.Errorf("token range [%d, %d): want 0 ≤ low < high", low, high)
		}
		s.tokenLow, s.tokenHigh = low, high
		return nil
	}
}

// WithHeader adds a header to every request.
func WithHeader(key, value string) SenderOption {
	return func(s *Sender) error { s.header.Add(key, value); return nil }
}

// WithAPIKey sends "Authorization: Bearer key".
func WithAPIKey(key string) SenderOption { return WithHeader("Authorization", "Bearer "+key) }

// WithMaxConnections limits the connections to each target. A request that finds none free waits; the wait
// shows as Result.Connect. Default: no limit, so that the number of connections follows the load.
func WithMaxConnections(n int) SenderOption {
	return func(s *Sender) error {
		if n <= 0 {
			return fmt.Errorf("max connections %d: want > 0", n)
		}
		s.maxConns = n
		return nil
	}
}

// DefaultIdleTimeout is how long a sender keeps a connection that nothing uses. SGLang closes such connections after 5 s
// (SGLANG_TIMEOUT_KEEP_ALIVE); closing them first avoids sending a request into a connection that is about to go.
const DefaultIdleTimeout = 4 * time.Second

// WithIdleTimeout sets how long a connection that nothing uses is kept. It should be shorter than the server's or proxy's
// own time: a request that meets a connection as the other side closes it fails with OutcomeReset, by the client's choice and
// not the server's fault. Default: [DefaultIdleTimeout].
func WithIdleTimeout(d time.Duration) SenderOption {
	return func(s *Sender) error {
		if d <= 0 {
			return fmt.Errorf("idle timeout %v: want > 0", d)
		}
		s.idle = d
		return nil
	}
}

// NewTransport returns a new transport with the settings of the one that a sender makes for itself, for callers who want to
// change it before they pass it to [WithTransport], such as its TLSClientConfig for a private certificate authority. It
// speaks HTTP/1, takes no proxy from the environment, and belongs to the caller, who closes its idle connections.
func NewTransport() *http.Transport {
	http1 := new(http.Protocols)
	http1.SetHTTP1(true)
	return &http.Transport{
		MaxIdleConnsPerHost: 1 << 20, // as many as the load has needed
		IdleConnTimeout:     DefaultIdleTimeout,
		DisableCompression:  true,
		Protocols:           http1, // on HTTP/2 a request waits for its stream after Send
		ReadBufferSize:      16 << 10,
	}
}

// WithTransport makes the sender use rt instead of a transport of its own; see [NewTransport]. Result.Send then is exact only
// if rt reports to net/http/httptrace; otherwise it is the time of the hand-over. It excludes WithMaxConnections and
// WithIdleTimeout, which are settings of the sender's own.
func WithTransport(rt http.RoundTripper) SenderOption {
	return func(s *Sender) error {
		if rt == nil {
			return errors.New("WithTransport(nil)")
		}
		s.rt = rt
		return nil
	}
}

// NewSender returns a sender to the server at baseURL. All faults of the options are reported together.
func NewSender(baseURL string, opts ...SenderOption) (*Sender, error) {
	return newSender(baseURL, false, opts)
}

// NewRoutedSender returns a sender that sends each request where a route says; see [WithRoute].
func NewRoutedSender(opts ...SenderOption) (*Sender, error) { return newSender("", true, opts) }

func newSender(baseURL string, routed bool, opts []SenderOption) (*Sender, error) {
	s := &Sender{
		api: Generate, model: "default", stream: true, tokenLow: DefaultTokenLow, tokenHigh: DefaultTokenHigh,
		header: http.Header{"Content-Type": {"application/json"}},
		own:    Placement{Target: Target{URL: baseURL}},
	}
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(s))
	}
	if !routed {
		_, err := s.place(baseURL)
		faults = append(faults, err)
	}
	if s.rt != nil && s.maxConns > 0 {
		faults = append(faults, errors.New("WithTransport and WithMaxConnections exclude each other: set MaxConnsPerHost of the transport"))
	}
	if s.rt != nil && s.idle > 0 {
		faults = append(faults, errors.New("WithTransport and WithIdleTimeout exclude each other: set IdleConnTimeout of the transport"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("load: sender: %w", err)
	}
	if s.rt == nil {
		s.owned = NewTransport()
		s.owned.MaxConnsPerHost, s.owned.IdleConnTimeout = s.maxConns, cmp.Or(s.idle, DefaultIdleTimeout)
		s.owned.DialContext = dial
		s.rt = s.owned
	}
	s.attempts.New = func() any { return newAttempt() }
	s.bodies.New = func() any { return &body{s: s} }
	return s, nil
}

// Close closes idle connections. Requests under way are not touched.
func (s *Sender) Close() {
	if s.owned != nil {
		s.owned.CloseIdleConnections()
	}
}

// A place is where the requests to a base URL go.
type place struct {
	url    *url.URL // of the API
	header http.Header
}

func (s *Sender) place(base string) (*place, error) {
	if p, ok := s.places.Load(base); ok {
		return p.(*place), nil
	}
	u, authorization, err := wire.BaseURL(base)
	if err != nil {
		return nil, err
	}
	p := &place{url: u, header: s.header}
	if authorization != "" {
		if s.header.Get("Authorization") != "" {
			return nil, fmt.Errorf("%s has a user and password, and an API key is set: both would be the Authorization header; leave one of them out",
				wire.WithoutPassword(base))
		}
		p.header = s.header.Clone()
		p.header.Set("Authorization", authorization)
	}
	u.Path += s.api.path()
	if u.RawPath != "" {
		u.RawPath += s.api.path()
	}
	s.places.Store(base, p)
	return p, nil
}

// An attempt is the state of one request under way; it is reused.
type attempt struct {
	events wire.Events
	chunk  wire.Chunk
	// trace is never written again: a dial that went on in the background after its request had found another connection
	// still reads it.
	trace httptrace.ClientTrace

	clock   Clock
	gotConn time.Duration
	reused  bool
	idle    time.Duration
	sent    bool
	wrote   atomic.Bool // the transport is done with the body; it may still be writing when the round trip has failed
}

func newAttempt() *attempt {
	a := new(attempt)
	a.trace = httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			a.gotConn, a.reused, a.idle, a.sent = a.clock.Now(), reused(info), info.IdleTime, true
		},
		WroteRequest: func(httptrace.WroteRequestInfo) { a.wrote.Store(true) },
	}
	return a
}

// A body is a request that is ready to be sent; it is reused.
type body struct {
	s      *Sender
	data   []byte
	reader bytes.Reader // of data
	err    error        // why it cannot be sent
}

// Prepare implements [Preparer]: it encodes the body.
func (s *Sender) Prepare(req *Request) Doer {
	b := s.bodies.Get().(*body)
	var fields []byte
	if fields, b.err = s.samplingOf(req); b.err == nil {
		b.data, b.err = s.appendBody(b.data[:0], req, fields)
	}
	return b
}

// Do implements [Doer].
func (s *Sender) Do(ctx context.Context, clock Clock, req *Request, res *Result) {
	s.Prepare(req).Do(ctx, clock, req, res)
}

// DoTo implements [TargetDoer].
func (s *Sender) DoTo(ctx context.Context, clock Clock, p *Placement, req *Request, res *Result) {
	s.Prepare(req).(TargetDoer).DoTo(ctx, clock, p, req, res)
}

// CheckTarget implements [TargetDoer].
func (s *Sender) CheckTarget(t Target) error {
	if s.own.Target.URL != "" {
		return fmt.Errorf("the sender sends to %s, not where a route says: make it with NewRoutedSender", wire.WithoutPassword(s.own.Target.URL))
	}
	_, err := s.place(t.URL)
	return err
}

// CheckTarget implements [TargetDoer].
func (b *body) CheckTarget(t Target) error { return b.s.CheckTarget(t) }

// Do sends the body. It must not be used afterwards.
func (b *body) Do(ctx context.Context, clock Clock, req *Request, res *Result) {
	b.DoTo(ctx, clock, &b.s.own, req, res)
}

// DoTo sends the body. It must not be used afterwards.
func (b *body) DoTo(ctx context.Context, clock Clock, p *Placement, req *Request, res *Result) {
	s := b.s
	res.API, res.CachedTokens, res.Retractions = s.api, NotReported, NotReported
	to, err := s.place(p.Target.URL)
	var header http.Header
	if err = cmp.Or(b.err, err); err == nil {
		header, err = to.headerOf(req)
	}
	if err != nil {
		s.bodies.Put(b)
		res.Released = clock.Now()
		res.fail(OutcomeRejected, err.Error())
		res.complete(res.Released)
		return
	}
	a := s.attempts.Get().(*attempt)
	res.Worker = p.Target.Name
	b.reader.Reset(b.data)
	a.wrote.Store(false)
	a.clock, a.sent = clock, false
	trace := &a.trace
	if httptrace.ContextClientTrace(ctx) != nil { // WithClientTrace writes the caller's hooks into it
		own := a.trace
		trace = &own
	}

	rctx := ctx
	if s.timeout > 0 {
		var cancel context.CancelFunc
		rctx, cancel = context.WithTimeout(ctx, s.timeout)
		defer cancel()
	}
	hreq := (&http.Request{
		Method: http.MethodPost, URL: to.url, Host: to.url.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		// A reader that net/http knows: it then writes head and body in one piece.
		Body: io.NopCloser(&b.reader), ContentLength: int64(len(b.data)),
	}).WithContext(httptrace.WithClientTrace(rctx, trace))
	res.Released = clock.Now()
	resp, err := s.rt.RoundTrip(hreq)
	at := clock.Now()
	if a.sent {
		res.Sent, res.Send, res.Connect, res.Reused, res.Idle = true, a.gotConn, a.gotConn-res.Released, a.reused, a.idle
	} else if err == nil { // a transport that does not report to httptrace
		res.Sent, res.Send = true, res.Released
	}
	if err != nil {
		s.failed(ctx, rctx, res, roundTripOutcome(res, err), err)
		res.complete(at)
	} else {
		s.read(ctx, rctx, clock, a, resp, p, res)
		resp.Body.Close()
	}
	if a.wrote.Load() {
		s.attempts.Put(a)
		s.bodies.Put(b)
	}
}

// samplingOf returns the request's sampling parameters as its body has them.
func (s *Sender) samplingOf(req *Request) (fields []byte, err error) {
	// Requests of one workload usually share their parameters, so the latest encoding serves nearly all.
	enc := s.sampling.Load()
	if enc == nil || enc.params != req.Sampling {
		enc = &encodedSampling{params: req.Sampling}
		if enc.fields, err = samplingFields(s.api, req.Sampling); err != nil {
			return nil, err
		}
		s.sampling.Store(enc)
	}
	return enc.fields, nil
}

// encodedSampling holds what samplingFields makes of params.
type encodedSampling struct {
	params *SamplingParams
	fields []byte
}

// failed classifies a failure below HTTP. What ended the request's context takes precedence, then what the client's own
// machine is to blame for.
func (s *Sender) failed(ctx, rctx context.Context, res *Result, o Outcome, err error) {
	if ctx.Err() != nil {
		res.fail(OutcomeCancelled, context.Cause(ctx).Error())
	} else if rctx.Err() != nil {
		res.fail(OutcomeTimeout, fmt.Sprintf("no end within %v", s.timeout))
	} else if fault := clientFault(err); fault != "" {
		res.fail(OutcomeClient, fault)
	} else {
		res.fail(o, err.Error())
	}
}

func roundTripOutcome(res *Result, err error) Outcome {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return OutcomeRefused
	case res.Sent && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "server closed idle connection")):
		return OutcomeReset
	}
	return OutcomeTransport
}
