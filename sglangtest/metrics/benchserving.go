package metrics

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"gonum.org/v1/gonum/stat"
)

// BenchServing holds the metrics of SGLang's own benchmark by its definitions (SGLang 0.5.23,
// sglang/benchmark/serving.py calculate_metrics and goodput.py), to compare with numbers that were made with it.
// They differ from the strict ones of [Summary]:
//
//   - latencies count from Released, after any wait for a place under a concurrency cap;
//   - requests that failed are left out;
//   - ITL on /generate is the gap divided by the tokens that an event added, from the first event with text on; on the
//     OpenAI routes it is the gap between events with text, however many tokens they carry;
//   - TPOT is (E2E − TTFT) / (output length − 1), as if the first event had brought one token;
//   - a success without text has TTFT 0 and the requested output length;
//   - both peaks are taken over whole seconds from the first start, and count too much.
//
// Two differences from the Python client are deliberate: a usage-only event on /v1/completions makes that client fail the
// request, while here it succeeds; and output lengths on the OpenAI routes are the server's count where it gave one, at
// whatever event, otherwise the requested length. On /generate texts are taken to be cumulative, as they are by default.
type BenchServing struct {
	Definition string `json:"definition"`
	// NoSuccess: no request succeeded. The Python code raises an IndexError then; here all latencies are null.
	NoSuccess bool `json:"no_success"`
	// Sampled counts the requests that did not ask for temperature 0, as bench_serving does in all of its own (load.BenchServingSampling):
	// they are another load. A server that has to sample is slower: TPOT by 2.4 to 2.9 % at 8 requests/s and by 15 % with 256 in
	// flight, on an H200 with an 8B model.
	Sampled        int      `json:"sampled_requests"`
	Backend        string   `json:"backend"`             // bench_serving's name; "mixed" if several APIs were called
	RequestRate    *float64 `json:"request_rate_per_s"`  // null: inf, or Trace
	Trace          bool     `json:"trace"`               // arrivals have times but no rate of their own
	MaxConcurrency int      `json:"max_concurrency"`     // 0: not set
	Duration       float64  `json:"duration_s"`          // first release to last completion, unless set
	Completed      int      `json:"completed"`           // successes
	TotalInput     int      `json:"total_input_tokens"`  // the data set's lengths; the server's where that is unknown
	TotalOutput    int      `json:"total_output_tokens"` // see above
	// TotalOutputRetokenized is null without a retokenizer.
	TotalOutputRetokenized *int `json:"total_output_tokens_retokenized"`

	RequestThroughput           float64  `json:"request_throughput_per_s"`
	InputThroughput             float64  `json:"input_throughput_tokens_per_s"`
	OutputThroughput            float64  `json:"output_throughput_tokens_per_s"`
	OutputThroughputRetokenized *float64 `json:"output_throughput_retokenized_tokens_per_s"`
	TotalThroughput             float64  `json:"total_throughput_tokens_per_s"`
	TotalThroughputRetokenized  *float64 `json:"total_throughput_retokenized_tokens_per_s"`
	Concurrency                 float64  `json:"concurrency"` // Σ latency / Duration
	MaxOutputTokensPerS         float64  `json:"max_output_tokens_per_s"`
	MaxConcurrentRequests       int      `json:"max_concurrent_requests"`
	AcceptLength                float64  `json:"accept_length"` // 0: not known

	E2E  BenchLatency `json:"e2e_latency"`
	TTFT BenchLatency `json:"ttft"`
	TPOT BenchLatency `json:"tpot"`
	ITL  BenchLatency `json:"itl"`

	NoText        int      `json:"no_text"`        // successes without text, whose TTFT counts as 0
	UnsplitChunks int      `json:"unsplit_chunks"` // gaps left out of the retokenised ITL: no token in the chunk, or text not kept
	Goodput       *Goodput `json:"goodput"`        // null: no limits were given
}

// A BenchLatency holds the statistics that bench_serving prints: all zero if there are no values, as there.
type BenchLatency struct {
	Mean   Millis `json:"mean_ms"`
	Median Millis `json:"median_ms"`
	Std    Millis `json:"std_population_ms"`
	P90    Millis `json:"p90_ms"`
	P95    Millis `json:"p95_ms"`
	P99    Millis `json:"p99_ms"`
	Max    Millis `json:"max_ms"`
}

// newBenchLatency sorts values, which are seconds.
func newBenchLatency(values []float64) BenchLatency {
	if len(values) == 0 {
		return BenchLatency{}
	}
	slices.Sort(values)
	mean, std := stat.PopMeanStdDev(values, nil)
	at := func(q float64) Millis { return Millis(quantile(values, 0, q) * 1000) }
	return BenchLatency{Mean: Millis(mean * 1000), Std: Millis(std * 1000), Median: at(0.5), P90: at(0.9), P95: at(0.95),
		P99: at(0.99), Max: Millis(values[len(values)-1] * 1000)}
}

// seconds is a time as Python's perf_counter gives it. Sums and differences are then rounded as there, which decides
// into which second a token falls.
func seconds(d time.Duration) float64 { return float64(d) / 1e9 }

// A benchOutput is what bench_serving's client would have made of a success.
type benchOutput struct {
	start, ttft, latency float64 // s
	outputLen            int
	textChunks           []string // of the events behind itl; nil if texts were not kept
	itl                  []float64
}

// read fills o from r. It reuses o's slices.
func (o *benchOutput) read(r *load.Result) {
	o.start = seconds(r.Released)
	o.latency = seconds(r.Completion) - o.start
	o.ttft, o.outputLen = 0, r.OutputLen
	o.itl, o.textChunks = o.itl[:0], o.textChunks[:0]
	if r.Chunks.Len() == 0 {
		if r.FirstToken != 0 {
			o.ttft = seconds(r.FirstToken) - o.start
		}
		if r.OutputTokens > 0 {
			o.outputLen = r.OutputTokens
		}
		return
	}
	if r.API != load.Generate {
		o.readOpenAI(r)
		return
	}
	var last float64
	tokens, lastTokens, text := 0, 0, false
	for ch := range r.Chunks.All() {
		if tokens += ch.Tokens; tokens > load.MaxTokens {
			break // no such answer
		}
		text = text || ch.TextBytes > 0
		if !text {
			continue
		}
		o.outputLen = tokens
		at := seconds(ch.At)
		if o.ttft == 0 {
			o.ttft = at - o.start
		} else if n := tokens - lastTokens; n == 0 {
			continue
		} else {
			o.itl = appendN(o.itl, (at-last)/float64(n), n)
		}
		last, lastTokens = at, tokens
	}
}

func (o *benchOutput) readOpenAI(r *load.Result) {
	if r.OutputTokens > 0 {
		o.outputLen = r.OutputTokens
	}
	var last float64
	offset := 0
	for ch := range r.Chunks.All() {
		if ch.TextBytes == 0 {
			continue
		}
		at := seconds(ch.At)
		if o.ttft == 0 {
			o.ttft = at - o.start
		} else {
			o.itl = append(o.itl, at-last)
			if ch.TextBytes <= len(r.Text)-offset {
				o.textChunks = append(o.textChunks, r.Text[offset:offset+ch.TextBytes])
			}
		}
		offset += min(ch.TextBytes, len(r.Text)-offset+1) // beyond the end is enough
		last = at
	}
	if offset != len(r.Text) {
		o.textChunks = o.textChunks[:0] // the lengths are those of escaped text, or no text was kept
	}
}

var benchBackends = map[load.API]string{load.Generate: "sglang", load.Completions: "sglang-oai", load.ChatCompletions: "sglang-oai-chat"}

func (b *builder) benchServing() BenchServing {
	m := BenchServing{
		Definition:     "as sglang.bench_serving 0.5.23: from release, failures left out, population std",
		RequestRate:    b.sum.Rates.Requested,
		Sampled:        b.c.sampled,
		Trace:          b.sum.Rates.Requested == nil && b.sum.Plan.MeanRate > 0,
		MaxConcurrency: b.sum.MaxConcurrency,
		AcceptLength:   b.c.acceptLength,
		NoSuccess:      b.c.completed == 0,
	}
	var first, last time.Duration = math.MaxInt64, 0
	firstStart, lastEnd := math.Inf(1), 0.0 // of successes
	for _, r := range b.rs {
		first, last = min(first, r.Released), max(last, r.Completion)
		name := benchBackends[r.API]
		if m.Backend == "" {
			m.Backend = name
		} else if name != m.Backend && name != "" {
			m.Backend = "mixed"
		}
		if r.OK() {
			start := seconds(r.Released)
			firstStart = min(firstStart, start)
			lastEnd = max(lastEnd, start+(seconds(r.Completion)-start))
		}
	}
	m.Duration = b.c.benchDuration.Seconds()
	if m.Duration == 0 && len(b.rs) > 0 {
		m.Duration = (last - first).Seconds()
	}
	if m.NoSuccess {
		nan := Millis(math.NaN())
		m.E2E = BenchLatency{nan, nan, nan, nan, nan, nan, nan}
		m.TTFT, m.TPOT, m.ITL = m.E2E, m.E2E, m.E2E
		b.benchGoodput(&m)
		return m
	}

	// Buckets of one second, from the first start. They are sparse: a run can have few requests in a long time.
	buckets := int(math.Ceil(lastEnd-firstStart)) + 1
	tokens, changes := make(map[int]int), make(map[int]int) // of changes in the number of requests
	var ttfts, tpots, latencies []float64
	retokenized, total := 0, 0.0
	itls := b.buf[:0]
	var o benchOutput
	for _, r := range b.rs {
		if !r.OK() {
			continue
		}
		o.read(r)
		m.Completed++
		m.TotalOutput += o.outputLen
		if r.InputLen > 0 {
			m.TotalInput += r.InputLen
		} else {
			m.TotalInput += r.PromptTokens
		}
		if o.ttft == 0 {
			m.NoText++
		}
		if b.c.retokenize != nil {
			retokenized += b.c.retokenize(r.Text)
		}
		ttfts = append(ttfts, o.ttft)
		latencies = append(latencies, o.latency)
		total += o.latency
		if o.outputLen > 1 {
			tpots = append(tpots, (o.latency-o.ttft)/float64(o.outputLen-1))
		}
		if b.c.acceptLength > 0 && r.API != load.Generate {
			itls = b.retokenizedITL(itls, &o, &m)
		} else {
			itls = append(itls, o.itl...)
		}

		at := o.start + o.ttft
		second, n := int(at-firstStart), 1
		for _, gap := range o.itl {
			at += gap
			if s := int(at - firstStart); s != second && s < buckets {
				tokens[second] += n
				second, n = s, 0
			} else if s >= buckets {
				continue
			}
			n++
		}
		tokens[second] += n
		changes[int(o.start-firstStart)]++
		changes[min(int(o.start+o.latency-firstStart), buckets-1)+1]--
	}
	b.buf = itls
	m.TTFT, m.TPOT, m.ITL, m.E2E = newBenchLatency(ttfts), newBenchLatency(tpots), newBenchLatency(itls), newBenchLatency(latencies)
	for _, n := range tokens {
		m.MaxOutputTokensPerS = max(m.MaxOutputTokensPerS, float64(n))
	}
	requests := 0
	for _, s := range slices.Sorted(maps.Keys(changes)) {
		requests += changes[s]
		m.MaxConcurrentRequests = max(m.MaxConcurrentRequests, requests)
	}
	m.RequestThroughput = perSecond(float64(m.Completed), m.Duration)
	m.InputThroughput = perSecond(float64(m.TotalInput), m.Duration)
	m.OutputThroughput = perSecond(float64(m.TotalOutput), m.Duration)
	m.TotalThroughput = perSecond(float64(m.TotalInput+m.TotalOutput), m.Duration)
	m.Concurrency = perSecond(total, m.Duration)
	if b.c.retokenize != nil {
		out := perSecond(float64(retokenized), m.Duration)
		all := perSecond(float64(m.TotalInput+retokenized), m.Duration)
		m.TotalOutputRetokenized, m.OutputThroughputRetokenized, m.TotalThroughputRetokenized = &retokenized, &out, &all
	}
	b.benchGoodput(&m)
	return m
}

// retokenizedITL splits each gap over the tokens of the chunk's text. Python would divide by zero for a chunk whose text
// makes no token; such a gap is left out and counted.
func (b *builder) retokenizedITL(itls []float64, o *benchOutput, m *BenchServing) []float64 {
	if len(o.textChunks) != len(o.itl) {
		m.UnsplitChunks += len(o.itl)
		return itls
	}
	for i, gap := range o.itl {
		n := b.c.retokenize(o.textChunks[i])
		if n == 0 {
			m.UnsplitChunks++
			continue
		}
		itls = appendN(itls, gap/float64(n), n)
	}
	return itls
}

func (b *builder) benchGoodput(m *BenchServing) {
	if b.c.slo == nil {
		return
	}
	m.Goodput = countGoodput(*b.c.slo, len(b.rs), m.Duration, func(yield func(ttft, tpot, e2e float64)) {
		var o benchOutput
		for _, r := range b.rs {
			if !r.OK() {
				continue
			}
			o.read(r)
			tpot := 0.0
			if o.outputLen > 1 {
				tpot = (o.latency - o.ttft) / float64(o.outputLen-1)
			}
			yield(o.ttft*1000, tpot*1000, o.latency*1000)
		}
	})
}
