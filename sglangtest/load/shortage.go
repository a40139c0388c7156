package load

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// A shortage is something that this machine or this process ran out of, as the error of a system call tells it.
type shortage struct {
	errnos []syscall.Errno
	what   string
	remedy func(limits) string
}

// shortages lists what a client can run out of on the way to a server, by connect(2), socket(2), send(2) and recv(2).
var shortages = []shortage{
	{[]syscall.Errno{syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN}, "no local port is left for another connection", func(l limits) string {
		ports := ""
		if n := l.ports(); n > 0 {
			ports = fmt.Sprintf(", which is %d to %d, %d ports", l.firstPort, l.lastPort, n)
		}
		return "widen net.ipv4.ip_local_port_range" + ports + "; or open fewer connections: cap the requests in flight (WithMaxConcurrency, max_concurrency) or the connections (WithMaxConnections)"
	}},
	{[]syscall.Errno{syscall.EMFILE}, "this process has no file descriptor left", func(l limits) string {
		limit := ""
		if l.files > 0 {
			limit = fmt.Sprintf(", which is %d", l.files)
		}
		return "raise its limit (ulimit -n)" + limit + "; or open fewer connections: cap the requests in flight (WithMaxConcurrency, max_concurrency) or the connections (WithMaxConnections)"
	}},
	{[]syscall.Errno{syscall.ENFILE}, "this machine has no file descriptor left", func(limits) string {
		return "raise fs.file-max, or end what holds them"
	}},
	{[]syscall.Errno{syscall.ENOBUFS, syscall.ENOMEM}, "this machine has no memory left for another connection or its data", func(limits) string {
		return "look at the memory limit of the client's container and at net.ipv4.tcp_mem, or keep fewer requests in flight (WithMaxConcurrency, max_concurrency)"
	}},
	{[]syscall.Errno{syscall.EPERM}, "this machine refused to let the connection out", func(limits) string {
		return "look at its own firewall and at whether its table of connections is full (net.netfilter.nf_conntrack_max)"
	}},
}

// clientFault says in what way err is the doing of the client's own machine, and what to change, or returns "".
func clientFault(err error) string {
	for _, s := range shortages {
		for _, errno := range s.errnos {
			// The resolver's errors carry the text alone.
			var dns *net.DNSError
			if !errors.Is(err, errno) && !(errors.As(err, &dns) && strings.Contains(dns.Err, errno.Error())) {
				continue
			}
			if errno == syscall.EADDRNOTAVAIL && wrongFamily(err) {
				return fmt.Sprintf("this machine has no IPv6 address to connect from: use the server's IPv4 address (%v)", err)
			}
			return fmt.Sprintf("%s: %s (%v)", s.what, s.remedy(readLimits()), err)
		}
	}
	return ""
}

// wrongFamily reports whether err is that of a connection to an IPv6 address from a machine that has none.
func wrongFamily(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) {
		return false
	}
	to, ok := op.Addr.(*net.TCPAddr)
	if !ok || to.IP.To4() != nil {
		return false
	}
	own, err := net.InterfaceAddrs()
	for _, a := range own {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() == nil {
			return false
		}
	}
	return err == nil
}

// limits are those of this process and machine on the connections that it can have; 0 where they are not known.
type limits struct {
	files               int // descriptors that this process may have open
	open                int // descriptors that it has open
	firstPort, lastPort int // local ports that the kernel gives to connections
}

// ports returns the number of local ports, which is the most connections that one address can have to one port of
// another; 0 if it is not known.
func (l limits) ports() int {
	if l.lastPort == 0 {
		return 0
	}
	return l.lastPort - l.firstPort + 1
}
