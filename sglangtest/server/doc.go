// Package server owns the life of SGLang servers: start, readiness, run-time parameters, stop.
//
// A [ServerManager] brings servers up through a [Launcher]: the simulated engine (package sim), a server
// that already runs ([Attach]), later a local process. What comes back is a [Server], whose control plane
// is the same whatever launched it.
package server
