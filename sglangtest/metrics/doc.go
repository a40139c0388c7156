// Package metrics collects the results of a run and says what they mean.
//
// A [Collector] is the load.Recorder of a run: it keeps what it is given compactly, samples engines on the
// run's clock, and passes everything on to a [Sink] that stores it. A [Summary] is computed from it: each
// latency in the strict definition of this package and in that of SGLang's own bench_serving, each labelled.
//
// # Strict
//
// Latencies count from the intended arrival, so that neither a late client nor a concurrency cap hides a wait.
// A request that failed has no latency but stays in the percentiles, as +infinity: a server that refuses half
// of its load has no median. ITL is per token, by the server's own count, and not per event of the stream;
// where the server does not count, there is no ITL rather than a guess. Every summary says how late the client
// itself was and gives a verdict on it ([Client]), and one on the run as a whole ([Verdict]).
//
// Requests that were under way when a run was stopped are censored: they count neither as ended nor as failed. That favours
// short requests; a note gives lower bounds of the percentiles that would be larger.
//
// # Compatible
//
// [BenchServing] follows sglang/benchmark/serving.py of SGLang 0.5.23, to compare with numbers that others have
// published. It leaves failures out and counts from the release of a request.
//
// # Reading on
//
// [Summary.Check] compares with limits, [Collector.Windows] shows the effect of a change in the middle of a run (mind which of
// its columns count by arrival, see [WriteWindows]), and [Summary.WriteTable] and [BenchServing.WriteTable] print.
package metrics
