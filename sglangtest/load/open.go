package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

const (
	openTimeout = 10 * time.Second // for all connections together: the requests will tell what is wrong
	openAtOnce  = 64               // dials under way, so that a listener's queue does not overflow
	spareFiles  = 16               // descriptors that a run needs besides its connections
)

// dialer is what a sender's own transport dials with.
var dialer net.Dialer

// An opening is one connection that is opened for nobody yet.
type opening struct {
	all     *openings
	abandon context.CancelFunc // ends the request that asks the transport for it
	done    func()             // the connection is there, or has failed
}

// openings are those of one call of Open.
type openings struct {
	start chan struct{} // closed when every opening has been asked for
	slots chan struct{}
	dials sync.WaitGroup

	mu   sync.Mutex
	over bool // no more dials count
}

// enter counts a dial that begins; false if it comes too late.
func (a *openings) enter() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over {
		a.dials.Add(1)
	}
	return !a.over
}

// A connection knows whether it has carried a request. net/http does not tell: it calls a connection reused that was dialed for
// one request and went to another, because the first had found an idle one meanwhile, as most do in a burst.
type connection struct {
	net.Conn
	used atomic.Bool
}

func followed(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return &connection{Conn: conn}, nil
}

// reused reports whether the connection that a request has got had carried another, and notes that it carries one. Of a
// connection that was not dialed here net/http's word is taken.
func reused(info httptrace.GotConnInfo) bool {
	conn := info.Conn
	if over, ok := conn.(*tls.Conn); ok {
		conn = over.NetConn()
	}
	if c, ok := conn.(*connection); ok {
		return c.used.Swap(true)
	}
	return info.Reused
}

type openingKey struct{}

// dial dials for the sender's own transport.
//
// net/http cannot be asked to open a connection. But if a request is given up while the transport dials for it, the dial goes
// on, and its connection joins the idle ones. So Open has each of its requests given up here, before it could be sent, and all
// of them before the first dial ends, or one would be sent on the connection of another.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	o, ok := ctx.Value(openingKey{}).(*opening)
	if !ok {
		return followed(dialer.DialContext(ctx, network, address))
	}
	if !o.all.enter() {
		return nil, context.Canceled
	}
	o.abandon()
	<-o.all.start
	o.all.slots <- struct{}{}
	conn, err := followed(dialer.DialContext(ctx, network, address))
	<-o.all.slots
	if trace := httptrace.ContextClientTrace(ctx); err != nil || trace == nil {
		o.done()
	}
	return conn, err
}

// CanOpen implements [Opener], with the limits on this process's descriptors and on local ports, where the system tells them.
func (s *Sender) CanOpen(n int) error {
	if s.owned == nil || s.own.Target.URL == "" {
		return nil
	}
	if s.maxConns > 0 {
		n = min(n, s.maxConns)
	}
	const less = "cap the requests in flight (WithMaxConcurrency, max_concurrency) or the connections (WithMaxConnections)"
	switch l := readLimits(); {
	case l.files > 0 && l.open+n+spareFiles > l.files:
		return fmt.Errorf("%d connections are needed at once, but this process may have %d files open, and has %d: raise that limit (ulimit -n %d), or %s",
			n, l.files, l.open, l.open+n+spareFiles, less)
	case l.ports() > 0 && n > l.ports():
		return fmt.Errorf("%d connections are needed at once, but this machine has %d local ports for them (%d to %d): widen net.ipv4.ip_local_port_range, or %s",
			n, l.ports(), l.firstPort, l.lastPort, less)
	}
	return nil
}

// Open implements [Opener]. It does nothing if the sender has a transport of the caller's ([WithTransport]) or sends where a route
// says, which alone knows how many go to each target.
func (s *Sender) Open(ctx context.Context, n int) {
	if s.owned == nil || s.own.Target.URL == "" {
		return
	}
	if s.maxConns > 0 {
		n = min(n, s.maxConns)
	}
	to, err := s.place(s.own.Target.URL)
	if err != nil {
		return // NewSender has reported it
	}
	s.owned.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	all := &openings{start: make(chan struct{}), slots: make(chan struct{}, openAtOnce)}
	var asked sync.WaitGroup
	for range n {
		o := &opening{all: all, done: sync.OnceFunc(all.dials.Done)}
		var rctx context.Context
		rctx, o.abandon = context.WithCancel(context.WithValue(ctx, openingKey{}, o))
		if to.url.Scheme == "https" {
			rctx = httptrace.WithClientTrace(rctx, &httptrace.ClientTrace{TLSHandshakeDone: func(tls.ConnectionState, error) { o.done() }})
		}
		req := (&http.Request{Method: http.MethodGet, URL: to.url, Host: to.url.Host, Header: http.Header{}}).WithContext(rctx)
		asked.Go(func() {
			defer o.abandon()
			if resp, err := s.owned.RoundTrip(req); err == nil { // it is given up before
				resp.Body.Close()
			}
		})
	}
	asked.Wait()
	all.mu.Lock()
	all.over = true
	all.mu.Unlock()
	close(all.start)
	defer context.AfterFunc(ctx, s.owned.CloseIdleConnections)() // which ends the dials that nobody waits for
	all.dials.Wait()
}
