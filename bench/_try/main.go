package main

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"os"
	"runtime/pprof"
	"sync"
	"syscall"
	"time"
	"sort"

	"github.com/sglangtest/harness/sglangtest/load"
)

type src struct {
	n, in, out int
	rate    float64
}

func (s src) Plan() (load.Plan, error) { return load.Plan{Requests: s.n}, nil }
func (s src) Requests() iter.Seq2[load.Request, error] {
	return func(y func(load.Request, error) bool) {
		for i := range s.n {
			r := load.Request{ID: i, Prompt: load.Prompt{Segments: []load.Segment{{Stream: uint64(i) * 77, Length: s.in}}}, InputLen: s.in, OutputLen: s.out}
			if s.rate > 0 {
				r.Arrival = time.Duration(float64(i) / s.rate * 1e9)
			}
			if !y(r, nil) {
				return
			}
		}
	}
}

type rec struct {
	mu     sync.Mutex
	n, bad, ev int
	late   []time.Duration
	last   load.Result
	ov time.Duration
}

func (r *rec) Begin(context.Context, load.Info) error { return nil }
func (r *rec) Arrived(*load.Request)                  {}
func (r *rec) End(context.Context) error              { return nil }
func (r *rec) Record(x *load.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	r.ev += x.Chunks.Len()
	if !x.OK() {
		r.bad++
	}
	r.ov += x.Overhead
	r.late = append(r.late, x.Lateness())
	r.last = *x
}

func main() {
	u := flag.String("url", "", "")
	n := flag.Int("n", 20000, "")
	c := flag.Int("c", 64, "")
	in := flag.Int("in", 32, "")
	out := flag.Int("out", 16, "")
	rate := flag.Float64("rate", 0, "")
	api := flag.String("api", "generate", "")
	prof := flag.String("prof", "", "")
	flag.Parse()
	s, err := load.NewSender(*u, load.WithAPI(load.API(*api)))
	if err != nil {
		panic(err)
	}
	if *prof != "" {
		f, _ := os.Create(*prof)
		pprof.StartCPUProfile(f)
		defer pprof.StopCPUProfile()
	}
	r := &rec{}
	var opts []load.RunOption
	if *rate == 0 {
		opts = append(opts, load.WithMaxConcurrency(*c))
	}
	t := time.Now()
	err = load.Run(context.Background(), src{*n, *in, *out, *rate}, s, r, opts...)
	d := time.Since(t).Seconds()
	var ru syscall.Rusage
	syscall.Getrusage(0, &ru)
	cpu := float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
	sort.Slice(r.late, func(i, j int) bool { return r.late[i] < r.late[j] })
	fmt.Println(err, "bad", r.bad, "req/s", float64(r.n)/d, "ev/s", float64(r.ev)/d, "cpu us/req", cpu/float64(r.n)*1e6, "maxrss MB", ru.Maxrss/1024, "late p50", r.late[len(r.late)/2], "p99", r.late[len(r.late)*99/100], "ov", r.ov/time.Duration(r.n))
	if r.bad > 0 {
		fmt.Printf("%+v\n", r.last)
	}
}
