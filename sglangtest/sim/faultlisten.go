package sim

import "net"

// WithListener makes [Server.Start] serve on ln instead of listening on the host and port of its configuration. The server
// closes it. Its Accept may wait while connections are refused, which is how a host simulates that.
func WithListener(ln net.Listener) Option {
	return func(o *options) error { o.listener = ln; return nil }
}
