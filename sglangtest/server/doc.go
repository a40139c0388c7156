// Package server owns the life of SGLang servers: start, readiness, run-time parameters, stop.
//
// A [ServerManager] brings servers up through a [Launcher]: a process of this host ([LocalProcess]), the simulated
// engine (package sim), or a server that already runs ([Attach]). What comes back is a [Server], whose control plane
// is the same whatever launched it. When a server fails, a [FailureError] says why; docs/troubleshooting.md lists the
// causes.
package server
