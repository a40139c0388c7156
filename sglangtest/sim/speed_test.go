package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// poisson returns arrival times.
func poisson(n int, rate float64) []time.Duration {
	rng := rand.New(rand.NewPCG(3, 4))
	at, arrivals := 0.0, make([]time.Duration, n)
	for i := range arrivals {
		at += rng.ExpFloat64() / rate
		arrivals[i] = time.Duration(at * 1e9)
	}
	return arrivals
}

// speed drives a workload through a loop and reports requests per second of computing time.
func speed(b *testing.B, cfg EngineConfig, p Profile, rate float64, reqs func() []Request) {
	n, steps := 0, uint64(0)
	cached, input := 0, 0
	for b.Loop() {
		b.StopTimer()
		e, err := NewEngine(cfg)
		require.NoError(b, err)
		list := reqs()
		arrivals := poisson(len(list), rate)
		l := NewLoop(e, p)
		b.StartTimer()
		drive(l, arrivals, list)
		n += len(list)
		steps += l.Steps()
		for i := range list {
			cached += list[i].CachedTokens()
			input += list[i].InputLen
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
	b.ReportMetric(float64(steps)/b.Elapsed().Seconds(), "steps/s")
	b.ReportMetric(float64(cached)/float64(input), "hits")
}

// BenchmarkFixed is 512 prompt and 512 output tokens without anything shared, at a third and at all of an H100's rate.
func BenchmarkFixed(b *testing.B) {
	p := H100Llama8B()
	fixed := func() []Request {
		reqs := make([]Request, 5000)
		for i := range reqs {
			reqs[i] = Request{Prompt: load.Prompt{Segments: []load.Segment{{Stream: uint64(i + 1), Length: 512}}}, InputLen: 512,
				MaxNewTokens: 512, IgnoreEOS: true}
		}
		return reqs
	}
	for _, rate := range []float64{8, 25} {
		for _, c := range []struct {
			name         string
			radix, quiet bool
		}{{"no-radix", false, false}, {"radix", true, false}, {"no-radix-quiet", false, true}, {"radix-quiet", true, true}} {
			b.Run(fmt.Sprintf("%grps/%s", rate, c.name), func(b *testing.B) {
				cfg := p.EngineConfig()
				cfg.DisableRadixCache, cfg.QuietDecode = !c.radix, c.quiet
				speed(b, cfg, p, rate, fixed)
			})
		}
	}
}

// BenchmarkBlocks is the shape of the Mooncake traces: prompts of 2 to 60 blocks of 512 tokens, of which a leading part
// is shared with others of its group.
func BenchmarkBlocks(b *testing.B) {
	p := H100Llama8B()
	p.ContextLength = 131072
	blocks := func() []Request {
		rng := rand.New(rand.NewPCG(5, 6))
		reqs := make([]Request, 3000)
		fresh := uint64(1 << 20)
		for i := range reqs {
			n := 2 + int(rng.ExpFloat64()*20)%59
			shared := rng.IntN(n)
			group := uint64(rng.IntN(40)) * 1000
			r := &reqs[i]
			for k := range n {
				s := load.Segment{Stream: group + uint64(k), Length: 512}
				if k >= shared {
					fresh++
					s.Stream = fresh
				}
				r.Prompt.Segments = append(r.Prompt.Segments, s)
			}
			r.InputLen, r.MaxNewTokens, r.IgnoreEOS = n*512, 1+rng.IntN(600), true
		}
		return reqs
	}
	for _, quiet := range []bool{false, true} {
		b.Run(fmt.Sprintf("quiet=%v", quiet), func(b *testing.B) {
			cfg := p.EngineConfig()
			cfg.QuietDecode = quiet
			speed(b, cfg, p, 3, blocks)
		})
	}
}
