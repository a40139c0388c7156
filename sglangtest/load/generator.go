package load

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"
)

// DefaultSeed is the seed of a [RequestGenerator] without [WithSeed].
const DefaultSeed uint64 = 0

// A RequestGenerator makes a reproducible workload: requests whose lengths or prompts come from a dataset and whose
// arrivals come from an arrival process. It is a [Source]. Equal datasets, options and seeds give equal requests, byte
// for byte; only Poisson arrivals may differ by nanoseconds between processor architectures, which round logarithms differently.
//
// Dataset, arrivals and generated prompts draw from random streams of their own, so that changing one leaves the
// others as they are. Requests are made as they are asked for; none are kept.
// It is immutable after [NewRequestGenerator] and safe for concurrent use.
type RequestGenerator struct {
	dataset   Dataset
	arrivals  Arrivals
	seed      uint64
	limit     int           // requests; 0: none
	duration  time.Duration // 0: none
	repeat    bool
	outputLen int             // tokens, replaces the dataset's; 0: the dataset's
	sampling  *SamplingParams // under the rows' own; nil if none are set; MaxNewTokens has moved to outputLen
	plan      func() (Plan, error)
}

// A GeneratorOption changes a [RequestGenerator] that is being made. If one is given twice, the last holds.
type GeneratorOption func(*RequestGenerator) error

// WithArrivals sets the arrival process. It has no default, because no process is a harmless guess: a workload that
// arrives all at once and one that arrives as recorded are different experiments.
func WithArrivals(a Arrivals) GeneratorOption {
	return func(g *RequestGenerator) error {
		if a == nil {
			return errors.New("load: WithArrivals(nil): want an arrival process")
		}
		g.arrivals = a
		return validate(a)
	}
}

// WithSeed sets the seed of all randomness. Default: [DefaultSeed].
func WithSeed(seed uint64) GeneratorOption {
	return func(g *RequestGenerator) error { g.seed = seed; return nil }
}

// WithLimit ends the workload after n requests, n ≥ 1. A dataset that ends before that is an error, unless
// [WithRepeat] is given. Default: no limit.
func WithLimit(n int) GeneratorOption {
	return func(g *RequestGenerator) error {
		g.limit = n
		if n < 1 {
			return fmt.Errorf("load: WithLimit(%d): want ≥ 1 requests", n)
		}
		return nil
	}
}

// WithDuration ends the workload before the first request that would arrive at d or later, d > 0. With [WithLimit]
// too, what comes first ends it. A dataset that ends before that is an error, unless [WithRepeat] is given, because the
// load would stop earlier than asked for. Default: no such end.
func WithDuration(d time.Duration) GeneratorOption {
	return func(g *RequestGenerator) error {
		g.duration = d
		if d <= 0 {
			return fmt.Errorf("load: WithDuration(%v): want > 0", d)
		}
		return nil
	}
}

// WithRepeat starts the dataset over whenever it ends, so that [WithLimit] or [WithDuration] must end the workload.
// The dataset's random stream goes on, and so do its recorded times: the first row comes one mean gap after the last.
// Prompts that are made up differ each time. Prompts that the dataset states are sent again as they are, and
// a server's prefix cache may know them. From the second pass on, "#2", "#3", … is added to the names of conversations.
func WithRepeat() GeneratorOption {
	return func(g *RequestGenerator) error { g.repeat = true; return nil }
}

// WithOutputLen asks for n output tokens, n ≥ 1, in every request, whatever the dataset says. Datasets that give no
// output lengths need it. Default: the dataset's lengths.
func WithOutputLen(n int) GeneratorOption {
	return func(g *RequestGenerator) error {
		g.outputLen = n
		if n < 1 || n > maxTokens {
			return fmt.Errorf("load: WithOutputLen(%d): want 1 to %d tokens", n, maxTokens)
		}
		return nil
	}
}

// WithSampling sets sampling parameters for every request. A row's own override them, field by field. MaxNewTokens
// is the same as [WithOutputLen]. Default: none.
func WithSampling(p SamplingParams) GeneratorOption {
	return func(g *RequestGenerator) error {
		g.sampling = &p
		return p.Validate()
	}
}

// NewRequestGenerator returns a generator of requests from ds. All faults of the options are reported at once. The
// dataset is not read yet; see [RequestGenerator.Plan].
func NewRequestGenerator(ds Dataset, opts ...GeneratorOption) (*RequestGenerator, error) {
	g := &RequestGenerator{dataset: ds, seed: DefaultSeed}
	var faults []error
	if ds == nil {
		faults = append(faults, errors.New("load: request generator: no dataset"))
	} else if err := validate(ds); err != nil {
		faults = append(faults, err)
	}
	for _, opt := range opts {
		if err := opt(g); err != nil {
			faults = append(faults, err)
		}
	}
	if g.arrivals == nil {
		faults = append(faults, errors.New("load: request generator: no arrival process: use WithArrivals with AllAtOnce, Constant, Poisson or TraceTimes"))
	}
	if len(faults) == 0 {
		faults = append(faults, g.checkEnd(), g.settleOutputLen())
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	g.plan = sync.OnceValues(g.makePlan)
	return g, nil
}

func validate(v any) error {
	if v, ok := v.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	return nil
}

// checkEnd reports an error unless something ends the workload.
func (g *RequestGenerator) checkEnd() error {
	if g.limit > 0 {
		return nil
	}
	if g.duration > 0 && math.IsInf(g.arrivals.Rate(), 1) {
		return fmt.Errorf("load: request generator: WithDuration ends nothing if all requests arrive at once: use WithLimit, or arrivals with a rate")
	}
	e, ok := g.dataset.(interface{ Endless() bool })
	if endless := g.repeat || ok && e.Endless(); endless && g.duration == 0 {
		return fmt.Errorf("load: request generator: nothing ends the workload, because dataset %s does not end: use WithLimit or WithDuration", g.dataset.Name())
	}
	return nil
}

// settleOutputLen moves the sampling parameters' output length to where there is only one.
func (g *RequestGenerator) settleOutputLen() error {
	if g.sampling == nil {
		return nil
	}
	p := *g.sampling
	if n := p.MaxNewTokens; n != nil {
		if g.outputLen != 0 && g.outputLen != *n {
			return fmt.Errorf("load: request generator: WithOutputLen(%d) and WithSampling with max_new_tokens %d contradict each other: use one of them", g.outputLen, *n)
		}
		if err := WithOutputLen(*n)(g); err != nil {
			return err
		}
		p.MaxNewTokens = nil
	}
	g.sampling = orNil(&p)
	return nil
}

// orNil returns nil instead of parameters that set nothing.
func orNil(p *SamplingParams) *SamplingParams {
	if reflect.ValueOf(p).Elem().IsZero() {
		return nil
	}
	return p
}

// Labels of the random streams: the second half of the generator's state.
const (
	datasetStream  = 0x6461746173657400 // "dataset"
	arrivalsStream = 0x6172726976616c00 // "arrival"
)

// Requests yields the workload from its beginning, in order of arrival; see [Source]. IDs count from 0. Errors
// name the file and line, or the dataset and row, at fault.
func (g *RequestGenerator) Requests() iter.Seq2[Request, error] {
	return g.requests(func(int) {}, func(*Row) {})
}

// requests is Requests. It calls began at the first request of each pass over the dataset, and leftOut for each row of the first
// pass that is no request.
func (g *RequestGenerator) requests(began func(pass int), leftOut func(*Row)) iter.Seq2[Request, error] {
	return func(yield func(Request, error) bool) {
		rng := rand.New(rand.NewPCG(g.seed, datasetStream))
		next := g.arrivals.Times(rand.New(rand.NewPCG(g.seed, arrivalsStream)))
		fail := func(err error) { yield(Request{}, err) }
		var id int
		var last time.Duration // arrival of the request before
		var clock traceClock
		var row Row
		rows := 0
		failRow := func(err error) { fail(fmt.Errorf("load: %s: %w", g.where(rows, &row), err)) }
		for pass := 1; ; pass++ {
			rows = 0
			for from, err := range g.dataset.Rows(rng) {
				if err != nil {
					fail(g.located(rows+1, err))
					return
				}
				if from.LeftOut != "" {
					if pass == 1 {
						leftOut(&from)
					}
					continue
				}
				row = from // one variable for all rows: its address goes to the arrival process
				rows++
				if err := clock.adjust(&row, pass); err != nil {
					failRow(err)
					return
				}
				if pass > 1 && row.Conversation != "" {
					row.Conversation = fmt.Sprintf("%s#%d", row.Conversation, pass)
				}
				at, err := next(id, &row)
				if err == nil && at < last {
					err = fmt.Errorf("%v arrives at %v, before the request above it, which arrives at %v", g.arrivals, at, last)
				}
				if err != nil {
					failRow(err)
					return
				}
				if g.duration > 0 && at >= g.duration {
					if id == 0 {
						failRow(fmt.Errorf("the first request arrives at %v: no request before the end of WithDuration(%v)", at, g.duration))
					}
					return
				}
				r, err := g.request(id, at, &row)
				if err != nil {
					failRow(err)
					return
				}
				if rows == 1 {
					began(pass)
				}
				if !yield(r, nil) {
					return
				}
				id, last = id+1, at
				if id == g.limit {
					return
				}
			}
			if err := g.passEnd(rows, id, last, &clock); err != nil {
				fail(err)
				return
			}
			if !g.repeat {
				return
			}
		}
	}
}

// passEnd reports an error if the dataset must not end here.
func (g *RequestGenerator) passEnd(rows, requests int, last time.Duration, clock *traceClock) error {
	name := g.dataset.Name()
	switch {
	case rows == 0:
		return fmt.Errorf("load: dataset %s is empty: want at least one row", name)
	case !g.repeat && g.limit > 0:
		return fmt.Errorf("load: dataset %s has %d rows, fewer than the %d of WithLimit: lower the limit (num_prompts), or let it repeat (WithRepeat, or a duration)", name, rows, g.limit)
	case !g.repeat && g.duration > 0:
		return fmt.Errorf("load: dataset %s ends after %d rows, the last of which arrives at %v, before the end of WithDuration(%v): shorten the duration or use WithRepeat", name, rows, last, g.duration)
	case g.repeat && g.arrivals.Rate() == 0 && clock.rows > 0 && !clock.repeatable():
		return fmt.Errorf("load: dataset %s cannot be repeated at its own times: its %d rows span no time, so there is no mean gap", name, requests)
	}
	return nil
}

// traceClock checks that recorded times are in order, and makes them go on when the dataset is repeated.
type traceClock struct {
	pass               int
	rows               int // timed rows of the pass
	first, last, shift time.Duration
}

func (c *traceClock) repeatable() bool { return c.rows > 1 && c.last > c.first }

func (c *traceClock) adjust(row *Row, pass int) error {
	if !row.Timed {
		return nil
	}
	at := row.Arrival
	if pass > 1 {
		if pass != c.pass {
			if c.rows > 1 {
				c.shift += c.last - c.first + (c.last-c.first)/time.Duration(c.rows-1)
			}
			c.rows = 0
		}
		if row.Arrival += c.shift; row.Arrival < at {
			return fmt.Errorf("time %v of pass %d is more than 292 years after the start", at, pass)
		}
	}
	c.pass = pass
	switch {
	case c.rows > 0 && at < c.last:
		return fmt.Errorf("its time %v is before that of the row above it, %v: want rows in order of time", at, c.last)
	case at < 0:
		return fmt.Errorf("its time %v is before the start", at)
	case c.rows == 0:
		c.first = at
	}
	c.last = at
	c.rows++
	return nil
}

// located gives an error of the dataset the place that it does not name itself.
func (g *RequestGenerator) located(n int, err error) error {
	var own *DatasetError
	var path *fs.PathError
	if errors.As(err, &own) || errors.As(err, &path) {
		return err
	}
	return &DatasetError{Dataset: g.dataset.Name(), Err: fmt.Errorf("row %d: %w", n, err)}
}

// where names a row for an error: file and line if it has one.
func (g *RequestGenerator) where(n int, row *Row) string {
	if row.Line > 0 {
		return fmt.Sprintf("%s:%d", g.dataset.Name(), row.Line)
	}
	return fmt.Sprintf("dataset %s: row %d", g.dataset.Name(), n)
}

// request makes the request of a row.
func (g *RequestGenerator) request(id int, at time.Duration, row *Row) (Request, error) {
	r := Request{ID: id, Arrival: at, Prompt: row.Prompt, InputLen: row.InputLen, Conversation: row.Conversation, Turn: row.Turn,
		Priority: row.Priority, Tenant: row.Tenant, Session: row.Session, LoRA: row.LoRA, Rank: row.Rank, Extra: row.Extra, Header: row.Header}
	if err := r.CheckCarried(); err != nil {
		return r, err
	}
	if row.Deadline != 0 {
		if r.Deadline = at + row.Deadline; row.Deadline < 0 || r.Deadline < at {
			return r, fmt.Errorf("deadline %v after the arrival at %v: want > 0, and less than 292 years in all", row.Deadline, at)
		}
	}
	if row.Prompt.IsZero() {
		if r.InputLen < 1 || r.InputLen > maxTokens {
			return r, fmt.Errorf("neither a prompt nor an input length from 1 to %d, but %d", maxTokens, r.InputLen)
		}
		r.Prompt = Prompt{Segments: []Segment{{Stream: promptStream(g.seed, id), Length: r.InputLen}}}
	} else {
		if err := row.Prompt.Validate(); err != nil {
			return r, err
		}
		if n := row.Prompt.Tokens(); n > 0 {
			if r.InputLen != 0 && r.InputLen != n {
				return r, fmt.Errorf("input length %d, but the prompt has %d tokens", r.InputLen, n)
			}
			r.InputLen = n
		}
		if r.InputLen < 0 || r.InputLen > maxTokens {
			return r, fmt.Errorf("input length %d: want at most %d", r.InputLen, maxTokens)
		}
	}
	if row.Turn < 0 {
		return r, fmt.Errorf("turn %d: want ≥ 0", row.Turn)
	}

	var err error
	if r.OutputLen, err = g.output(row); err != nil {
		return r, err
	}
	r.Sampling, err = g.samplingOf(row, r.OutputLen)
	return r, err
}

func (g *RequestGenerator) output(row *Row) (int, error) {
	n := g.outputLen
	if n == 0 {
		n = row.OutputLen
	}
	if g.outputLen == 0 && row.Sampling != nil && row.Sampling.MaxNewTokens != nil {
		if max := *row.Sampling.MaxNewTokens; n == 0 || n == max {
			n = max
		} else {
			return 0, fmt.Errorf("output length %d and max_new_tokens %d contradict each other", n, max)
		}
		if n == 0 {
			return 0, errors.New("max_new_tokens 0: want ≥ 1, because a request without output cannot be measured")
		}
	}
	if n == 0 {
		return 0, errors.New("the dataset gives no output length: use WithOutputLen, or set max_new_tokens in the sampling parameters")
	}
	if n < 0 || n > maxTokens {
		return 0, fmt.Errorf("output length %d: want 1 to %d", n, maxTokens)
	}
	return n, nil
}

// samplingOf returns the parameters of a request, without MaxNewTokens, which the output length says; nil if none are set.
func (g *RequestGenerator) samplingOf(row *Row, outputLen int) (*SamplingParams, error) {
	p := g.sampling
	if row.Sampling != nil {
		merged := p.Merge(row.Sampling)
		merged.MaxNewTokens = nil
		if err := oneLine(merged.faults()...); err != nil {
			return nil, err
		}
		p = orNil(merged)
	}
	if p != nil && p.MinNewTokens != nil && *p.MinNewTokens > outputLen {
		return nil, fmt.Errorf("min_new_tokens %d is more than the output length %d", *p.MinNewTokens, outputLen)
	}
	return p, nil
}

// Plan reads the workload once, the first time it is called, and describes it; see [Source].
func (g *RequestGenerator) Plan() (Plan, error) { return g.plan() }

func (g *RequestGenerator) makePlan() (Plan, error) {
	p := Plan{Dataset: g.dataset.Name(), Arrivals: g.arrivals.String(), Seed: g.seed}
	var first time.Duration
	var prompts promptCount
	began := func(pass int) {
		if p.Passes = pass; pass == 2 {
			p.Rows = p.Requests
		}
	}
	leftOut := func(row *Row) {
		i := slices.IndexFunc(p.LeftOut, func(l LeftOut) bool { return l.Reason == row.LeftOut })
		if i < 0 {
			i = len(p.LeftOut)
			p.LeftOut = append(p.LeftOut, LeftOut{Reason: row.LeftOut, FirstLine: row.Line})
		}
		p.LeftOut[i].Rows++
	}
	for r, err := range g.requests(began, leftOut) {
		if err != nil {
			return Plan{}, err
		}
		if p.Requests == 0 {
			first = r.Arrival
		}
		p.Requests++
		p.LastArrival = r.Arrival
		p.InputTokens += int64(r.InputLen)
		p.OutputTokens += int64(r.OutputLen)
		p.LongestInput = max(p.LongestInput, r.InputLen)
		p.LongestTotal = max(p.LongestTotal, r.InputLen+r.OutputLen)
		if r.InputLen == 0 {
			p.UnknownInputs++
		}
		if len(r.Prompt.Messages) > 0 {
			p.Messages++
		}
		segs := r.Prompt.Segments
		prompts.add(&r.Prompt, len(segs) == 1 && segs[0] == Segment{Stream: promptStream(g.seed, r.ID), Length: r.InputLen})
	}
	if speed, replayed := g.arrivals.(traceTimes); replayed && p.Passes == 1 {
		times, ok := g.dataset.(interface {
			plausible(n int, first, last time.Duration) error
		})
		recorded := func(at time.Duration) time.Duration { return time.Duration(float64(at) * float64(speed)) }
		if ok {
			if err := times.plausible(p.Requests, recorded(first), recorded(p.LastArrival)); err != nil {
				return Plan{}, err
			}
		}
	}
	if rate := g.arrivals.Rate(); !math.IsInf(rate, 1) {
		p.RequestedRate = rate
	}
	if p.LastArrival > first {
		p.MeanRate = float64(p.Requests-1) / (p.LastArrival - first).Seconds()
	}
	if !prompts.full {
		p.Prompts = &prompts.sum
	}
	return p, nil
}

// WarmupRequest returns the i-th request, i ≥ 0, for warming a server up before a run: 64 random tokens in, 8 out,
// arrival 0. Its ID is −1−i, and its prompt is in no workload of the same seed, so that the run finds nothing of it
// in the server's prefix cache.
func WarmupRequest(seed uint64, i int) Request {
	const input, output = 64, 8
	id := -1 - i
	return Request{ID: id, Prompt: Prompt{Segments: []Segment{{Stream: promptStream(seed, id), Length: input}}}, InputLen: input, OutputLen: output}
}

// promptStream returns the token stream of a request's made-up prompt. For one seed, different IDs have different streams.
func promptStream(seed uint64, id int) uint64 { return mix(mix(seed) + uint64(id)) }

// mix is the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), a bijection.
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}
