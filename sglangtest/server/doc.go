// Package server owns the life of SGLang servers: start, readiness, run-time parameters, stop.
//
// A [ServerManager] brings servers up through a [Launcher]: a process of this host ([LocalProcess]), the
// simulated engine (package sim), a server that already runs ([Attach]), or one of your own that launches
// somewhere else; package launchertest shows such a one with all that it can offer. What comes back is a
// [Server], whose control plane is the same whatever launched it. When a server fails, a [FailureError] says
// why; docs/troubleshooting.md lists the causes.
package server
