package server

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The names and the advice go by Linux's numbers on every system that the package is built for: here the kernel's own tell.
func TestSignalsAreLinuxs(t *testing.T) {
	for s, name := range linuxSignals {
		require.Equal(t, s.String(), name)
		require.Equal(t, s, linuxSignal(s))
	}
	for s, means := range map[syscall.Signal]string{syscall.SIGBUS: "SIGBUS", syscall.SIGSEGV: "SIGSEGV", syscall.SIGABRT: "SIGABRT", syscall.SIGILL: "SIGILL",
		syscall.SIGFPE: "SIGFPE", syscall.SIGTRAP: "SIGTRAP", syscall.SIGSYS: "SIGSYS"} {
		require.Contains(t, signalMeans[s].name, means)
	}
	require.Len(t, signalMeans, 7)
}
