// Package load makes requests, releases them on an absolute schedule and records what became of each.
//
// A [RequestGenerator] turns a dataset, an arrival process and a seed into a reproducible stream of
// [Request] values. [Run] releases each of them at its intended time, whatever became of the ones before
// (open loop), and hands it to a [Doer], usually a [Sender], which speaks SGLang's HTTP APIs and fills in a
// [Result]. Results go to a [Recorder], usually a metrics.Collector.
//
// # One time line
//
// All times of a run are offsets from one moment, the run's start, on the monotonic clock ([Clock]).
// Three of them define what a request is charged for:
//
//	Arrival     the time at which the schedule wants the request to reach the server or router
//	Send        the request begins to be written to the server that will process it
//	Completion  the last byte of the answer has been read, or the failure is known
//
// so that, exactly and for failures too,
//
//	QueueTime     = Send − Arrival
//	ServerLatency = Completion − Send
//	TotalLatency  = Completion − Arrival = QueueTime + ServerLatency
//
// Latencies from arrival count from the intended time. A client that is late cannot hide the queueing that
// its lateness causes, and how late it was is recorded with each request ([Result.Lateness]).
package load
