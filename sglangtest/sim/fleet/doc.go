// Package fleet runs simulated SGLang engines in virtual time: hours of traffic on hundreds of GPUs in seconds.
//
// [Run] takes the place of servers, sender and load.Run. The workload, the policy that routes it, the recorder and
// the scheduled actions are the same as with real servers. Nothing runs at the same time as anything else and
// nothing reads a clock: one goroutine carries out the events of all engines in order of time, so equal
// inputs give equal results, on any machine and any number of cores.
//
// Token times are not stamped one by one. An engine logs when its steps ended; an answer is a range of that log, and
// becomes a chunk list when it is recorded.
//
// The times of a [load.Result] from here mean:
//
//	Arrival     the request's intended arrival, at the router
//	Due         the same, or with a concurrency cap when a place was free, or when the policy ended a hold
//	Released    the same as Due
//	Send        the same: routing takes no time. The way to the scheduler (Profile.Ingest and IngestToken) is part of
//	            the server's latency, as it is for a client that measures a real server
//	FirstToken, LastToken, Completion
//	            when the step that brought them had ended, plus Profile.Egress
//
// The queue of a server's front process is left out (Profile.EgressEvent and EgressStream, see sim.Front; the real-time
// server has it): every token reaches its client Egress after its step, as with Profile.WithoutEgressQueue. With it,
// the last of n streams has its tokens n·(EgressEvent + n·EgressStream) later than here, 12 ms for 190 streams of one
// engine with the H100 profile; and where that is longer than a step, above some 190 streams with short contexts,
// clients fall behind ever further. [Simulation] says so with the known error.
//
// Connections are not simulated: Connect is 0 and Reused is true.
package fleet
