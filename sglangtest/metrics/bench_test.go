package metrics

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// A request of 128 streamed tokens: the time to record it, and the bytes that stay (kept-B/op).
func BenchmarkCollectorRecord(b *testing.B) {
	r := answer(0, 0, msec, 150*msec, 17_300*time.Microsecond, 128)
	c, err := NewCollector()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Begin(context.Background(), load.Info{}); err != nil {
		b.Fatal(err)
	}
	c.Start(load.NewClock(time.Now()))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.ReportAllocs()
	req := load.Request{}
	for b.Loop() {
		r.ID++
		req.ID = r.ID
		c.Arrived(&req)
		c.Record(&r)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/float64(b.N), "kept-B/op")
	if err := c.End(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// The summary of 20,000 requests of 16 tokens.
func BenchmarkSummary(b *testing.B) {
	var rs []load.Result
	for i := range 20_000 {
		rs = append(rs, answer(i, time.Duration(i)*msec, msec, time.Duration(100+i*7919%100)*msec, time.Duration(5000+i*104729%9000)*time.Microsecond, 16))
	}
	c := collect(b, load.Plan{Requests: len(rs)}, rs, nil)
	b.ReportAllocs()
	for b.Loop() {
		c.Summary()
	}
}
