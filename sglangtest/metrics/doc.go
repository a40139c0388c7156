// Package metrics collects the results of a run and says what they mean.
//
// A [Collector] is the load.Recorder of a run: it keeps what it is given compactly, samples engines on the
// run's clock, and passes everything on to a [Sink] that stores it. A [Summary] is computed from it: each
// latency in the strict definition of this package and in that of SGLang's own bench_serving, each labelled.
package metrics
