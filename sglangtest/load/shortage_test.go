package load

import (
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhatTheClientRunsOutOfIsNotTheServersFailure(t *testing.T) {
	failing := func(call string, errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 30000}, Err: os.NewSyscallError(call, errno)}
	}
	for _, tc := range []struct {
		err  error
		want Outcome
		says string
	}{
		{failing("connect", syscall.EADDRNOTAVAIL), OutcomeClient, "no local port is left"},
		{failing("connect", syscall.EAGAIN), OutcomeClient, "no local port is left"},
		{failing("socket", syscall.EMFILE), OutcomeClient, "raise its limit (ulimit -n)"},
		{failing("socket", syscall.ENFILE), OutcomeClient, "fs.file-max"},
		{failing("socket", syscall.ENOBUFS), OutcomeClient, "memory"},
		{failing("connect", syscall.ENOMEM), OutcomeClient, "memory"},
		{failing("connect", syscall.EPERM), OutcomeClient, "firewall"},
		{&net.DNSError{Err: "dial udp: socket: too many open files", Name: "server"}, OutcomeClient, "file descriptor"},
		{&net.DNSError{Err: "no such host", Name: "server", IsNotFound: true}, OutcomeTransport, "no such host"},
		{failing("connect", syscall.EHOSTUNREACH), OutcomeTransport, "no route to host"},
		{failing("connect", syscall.ECONNREFUSED), OutcomeRefused, "connection refused"},
		{errors.New("tls: bad certificate"), OutcomeTransport, "tls"},
	} {
		rt := roundTripper(func(*http.Request) (*http.Response, error) { return nil, tc.err })
		res := do(t, rt, Request{Prompt: Prompt{Text: "x"}, OutputLen: 1})
		require.Equal(t, tc.want, res.Outcome, tc.err)
		require.Contains(t, res.Message, tc.says)
		require.Contains(t, res.Message, tc.err.Error(), "the system's own words")
	}
}
