// Package harness is an SDK for experiments on SGLang serving, written as ordinary Go programs and as Go tests.
// This package holds nothing; it is the tour of the module.
//
// # One call
//
// An experiment on one server is a config and a call:
//
//	run, err := sglangtest.RunNode(ctx, sglangtest.NodeConfig{
//		DatasetName: "azure-conversation", RequestRate: 8, Duration: 20,
//	})
//
// Without further options the server is a simulated SGLang engine in the same process, behind real HTTP; no GPU
// and no Python are needed. sglangtest.WithLauncher(server.Attach(url)) measures a real one instead.
//
// # The parts
//
// RunNode is a short function made of these packages, and each can be used alone:
//
//	sglangtest/load     requests from datasets, arrival processes, the sender, the open-loop runner
//	sglangtest/metrics  the collector of a run, the summary with its definitions, objectives
//	sglangtest/results  run folders: a journal while the run goes on, reading back, export
//	sglangtest/server   the life of servers, run-time parameters, load samples
//	sglangtest/sim      the simulated engine: scheduler, step times, HTTP server
//
// A load.Sender works against any URL, a metrics.Collector takes results of any client, and sim.NewServer gives
// an SGLang-shaped server to test other clients with.
//
// # What is measured
//
// Every request has three moments on one monotonic time line: its arrival, when the schedule wants it to reach the
// server; its send, when it begins to be written to the server; its completion. Latencies count from the arrival,
// so neither queueing nor a late client can hide; how late the client was is reported with every run. Failures
// count in every percentile. The definitions of SGLang's own bench_serving are computed beside ours and labelled.
package harness
