package load

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"iter"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// genRows is a dataset of given rows, as a user would write one.
type genRows []Row

func (genRows) Name() string { return "rows" }
func (g genRows) Rows(*rand.Rand) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for _, r := range g {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// genFunc is a dataset that is a function.
type genFunc func(yield func(Row, error) bool)

func (genFunc) Name() string                            { return "func" }
func (g genFunc) Rows(*rand.Rand) iter.Seq2[Row, error] { return iter.Seq2[Row, error](g) }

// genBackwards is an arrival process that breaks its contract.
type genBackwards struct{}

func (genBackwards) String() string { return "backwards" }
func (genBackwards) Rate() float64  { return 1 }
func (genBackwards) Times(*rand.Rand) func(int, *Row) (time.Duration, error) {
	return func(i int, _ *Row) (time.Duration, error) { return time.Duration(-i), nil }
}

// genTimed returns rows that arrive at the given seconds.
func genTimed(seconds ...float64) genRows {
	var rows genRows
	for _, s := range seconds {
		rows = append(rows, Row{InputLen: 10, OutputLen: 5, Arrival: time.Duration(s * 1e9), Timed: true})
	}
	return rows
}

func genNew(t testing.TB, ds Dataset, opts ...GeneratorOption) *RequestGenerator {
	t.Helper()
	g, err := NewRequestGenerator(ds, opts...)
	require.NoError(t, err)
	return g
}

func genAll(t testing.TB, g *RequestGenerator) (requests []Request) {
	t.Helper()
	for r, err := range g.Requests() {
		require.NoError(t, err)
		requests = append(requests, r)
	}
	return requests
}

func genArrivals(requests []Request) (at []time.Duration) {
	for _, r := range requests {
		at = append(at, r.Arrival)
	}
	return at
}

func genSeconds(seconds ...float64) (at []time.Duration) {
	for _, s := range seconds {
		at = append(at, time.Duration(math.Round(s*1e9)))
	}
	return at
}

// The hashes pin the workload of a seed: it must be the same in every run and in every version. Those of a Poisson
// process are of an amd64 machine.
func TestGeneratorIsTheSameByteForByte(t *testing.T) {
	for name, c := range map[string]struct {
		g    *RequestGenerator
		want string
	}{
		"azure, poisson": {genNew(t, AzureConversation(), WithArrivals(Poisson(8)), WithSeed(7), WithLimit(1000)), "a9483daa6e2c87f0"},
		"random, constant, sampling": {genNew(t, Random(1024, 128, 0.5), WithArrivals(Constant(3)), WithSeed(1<<63+1), WithLimit(1000),
			WithSampling(SamplingParams{Temperature: Ptr(0.0), IgnoreEOS: Ptr(true)})), "2f939a3664416cdb"},
		"azure, twice as fast": {genNew(t, AzureConversation(), WithArrivals(TraceTimes(2)), WithLimit(1000)), "6d6a86079f4259c7"},
	} {
		t.Run(name, func(t *testing.T) {
			if runtime.GOARCH != "amd64" && strings.Contains(name, "poisson") {
				t.Skip("Poisson arrivals may differ by nanoseconds from those of amd64")
			}
			for range 2 { // each call of Requests starts anew
				h := sha256.New()
				require.NoError(t, json.NewEncoder(h).Encode(genAll(t, c.g)))
				require.Equal(t, c.want, hex.EncodeToString(h.Sum(nil)[:8]))
			}
		})
	}
}

func TestGeneratorStreamsAreIndependent(t *testing.T) {
	base := genAll(t, genNew(t, Random(1000, 100, 0), WithArrivals(Poisson(8)), WithSeed(1), WithLimit(500)))
	lengths := genAll(t, genNew(t, Random(10, 100, 0), WithArrivals(Poisson(8)), WithSeed(1), WithLimit(500)))
	arrivals := genAll(t, genNew(t, Random(1000, 100, 0), WithArrivals(Constant(1)), WithSeed(1), WithLimit(500)))
	seed := genAll(t, genNew(t, Random(1000, 100, 0), WithArrivals(Poisson(8)), WithSeed(2), WithLimit(500)))

	require.Equal(t, genArrivals(base), genArrivals(lengths), "other lengths must leave arrivals alone")
	for i := range base {
		require.Equal(t, base[i].OutputLen, lengths[i].OutputLen, "another input range must leave outputs alone")
		require.Equal(t, base[i].Prompt.Segments[0].Stream, lengths[i].Prompt.Segments[0].Stream)
		require.Equal(t, base[i].Prompt, arrivals[i].Prompt, "other arrivals must leave prompts alone")
		require.Equal(t, base[i].OutputLen, arrivals[i].OutputLen)
		require.NotEqual(t, base[i].Prompt.Segments[0].Stream, seed[i].Prompt.Segments[0].Stream)
		require.NotEqual(t, base[i].Arrival, seed[i].Arrival)
	}
}

func TestGeneratorPromptsShareNoPrefix(t *testing.T) {
	const vocabulary = 128_000
	starts := map[[2]int32]bool{}
	streams := map[uint64]bool{}
	see := func(r Request) {
		require.NoError(t, r.Prompt.Validate())
		require.Equal(t, r.InputLen, r.Prompt.Tokens())
		s := r.Prompt.Segments[0].Stream
		require.False(t, streams[s])
		streams[s] = true
		starts[[2]int32{TokenID(s, 0, 0, vocabulary), TokenID(s, 1, 0, vocabulary)}] = true
	}
	for _, r := range genAll(t, genNew(t, Random(8, 8, 1), WithArrivals(AllAtOnce()), WithLimit(10_000))) {
		see(r)
	}
	for i := range 100 {
		w := WarmupRequest(DefaultSeed, i)
		see(w)
		require.Equal(t, Request{ID: -1 - i, Prompt: w.Prompt, InputLen: 64, OutputLen: 8}, w)
	}
	require.Equal(t, 10_100, len(starts), "different first two tokens")
}

func TestGeneratorPlan(t *testing.T) {
	p, err := genNew(t, AzureConversation(), WithArrivals(TraceTimes(2)), WithSeed(9)).Plan()
	require.NoError(t, err)
	require.InEpsilon(t, 2*1999/424.259457, p.MeanRate, 1e-9)
	p.MeanRate = 0
	// The totals are those of a few lines of Python over the file's columns.
	require.Equal(t, Plan{Dataset: "azure-conversation", Arrivals: "trace times at speed 2", Seed: 9, Requests: 2000, LastArrival: 212129728500,
		Passes: 1, InputTokens: 2209565, OutputTokens: 529807, LongestInput: 7930, LongestTotal: 7979, Prompts: &SharedPrompts{Tokens: 2209565}}, p)

	p, err = genNew(t, genRows{{Prompt: Prompt{Text: "a"}}, {InputLen: 7, OutputLen: 3}}, WithArrivals(AllAtOnce()), WithOutputLen(4)).Plan()
	require.NoError(t, err)
	require.Equal(t, Plan{Dataset: "rows", Arrivals: "all at once", Requests: 2, Passes: 1, InputTokens: 7, OutputTokens: 8, LongestInput: 7, LongestTotal: 11,
		UnknownInputs: 1, Prompts: &SharedPrompts{Tokens: 7, Bytes: 1}}, p)

	p, err = genNew(t, genTimed(1), WithArrivals(Poisson(2.5))).Plan()
	require.NoError(t, err)
	require.Equal(t, 2.5, p.RequestedRate)
	require.Zero(t, p.MeanRate, "one request")
}

func TestGeneratorPlanReadsOnce(t *testing.T) {
	reads := 0
	g := genNew(t, genFunc(func(yield func(Row, error) bool) { reads++; yield(Row{InputLen: 1, OutputLen: 1}, nil) }), WithArrivals(AllAtOnce()))
	for range 3 {
		_, err := g.Plan()
		require.NoError(t, err)
	}
	require.Equal(t, 1, reads)
}

func TestGeneratorEnds(t *testing.T) {
	trace := genTimed(0, 1, 1, 3) // mean gap 1
	for name, c := range map[string]struct {
		ds   Dataset
		opts []GeneratorOption
		want []time.Duration
	}{
		"whole dataset":              {trace, nil, genSeconds(0, 1, 1, 3)},
		"limit":                      {trace, []GeneratorOption{WithLimit(2)}, genSeconds(0, 1)},
		"limit is the dataset":       {trace, []GeneratorOption{WithLimit(4)}, genSeconds(0, 1, 1, 3)},
		"duration is exclusive":      {trace, []GeneratorOption{WithDuration(3 * time.Second)}, genSeconds(0, 1, 1)},
		"duration before limit":      {trace, []GeneratorOption{WithDuration(time.Second), WithLimit(3)}, genSeconds(0)},
		"limit before duration":      {trace, []GeneratorOption{WithDuration(time.Hour), WithLimit(1)}, genSeconds(0)},
		"repeat to limit":            {trace, []GeneratorOption{WithRepeat(), WithLimit(10)}, genSeconds(0, 1, 1, 3, 4, 5, 5, 7, 8, 9)},
		"repeat to duration":         {trace, []GeneratorOption{WithRepeat(), WithDuration(5 * time.Second)}, genSeconds(0, 1, 1, 3, 4)},
		"repeat a trace not from 0":  {genTimed(2, 4), []GeneratorOption{WithRepeat(), WithLimit(5)}, genSeconds(2, 4, 6, 8, 10)},
		"repeat, twice as fast":      {trace, []GeneratorOption{WithArrivals(TraceTimes(2)), WithRepeat(), WithLimit(6)}, genSeconds(0, .5, .5, 1.5, 2, 2.5)},
		"repeat with a rate":         {genTimed(1, 1), []GeneratorOption{WithArrivals(Constant(1)), WithRepeat(), WithDuration(4 * time.Second)}, genSeconds(0, 1, 2, 3)},
		"repeat one row with a rate": {genTimed(5), []GeneratorOption{WithArrivals(Constant(2)), WithRepeat(), WithLimit(3)}, genSeconds(0, .5, 1)},
		"endless with a rate":        {Random(5, 5, 1), []GeneratorOption{WithArrivals(Constant(2)), WithDuration(2 * time.Second)}, genSeconds(0, .5, 1, 1.5)},
		"at once, limit, duration":   {Random(5, 5, 1), []GeneratorOption{WithArrivals(AllAtOnce()), WithLimit(2), WithDuration(time.Second)}, genSeconds(0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			g := genNew(t, c.ds, append([]GeneratorOption{WithArrivals(TraceTimes(1))}, c.opts...)...)
			requests := genAll(t, g)
			require.Equal(t, c.want, genArrivals(requests))
			for i, r := range requests {
				require.Equal(t, i, r.ID)
			}
			p, err := g.Plan()
			require.NoError(t, err)
			require.Equal(t, len(c.want), p.Requests)
		})
	}
}

func TestGeneratorRepeatRenamesConversations(t *testing.T) {
	rows := genRows{{InputLen: 3, OutputLen: 1, Conversation: "c", Turn: 1}, {InputLen: 3, OutputLen: 1}}
	got := genAll(t, genNew(t, rows, WithArrivals(AllAtOnce()), WithRepeat(), WithLimit(5)))
	var names []string
	for _, r := range got {
		names = append(names, r.Conversation)
	}
	require.Equal(t, []string{"c", "", "c#2", "", "c#3"}, names)
	require.Equal(t, 1, got[4].Turn)
	require.NotEqual(t, got[0].Prompt, got[2].Prompt, "a made-up prompt must differ each time")
}

func TestGeneratorOutputAndSampling(t *testing.T) {
	base := SamplingParams{Temperature: Ptr(0.5), MinNewTokens: Ptr(2)}
	rows := genRows{
		{InputLen: 1, OutputLen: 5},
		{InputLen: 1, OutputLen: 5, Sampling: &SamplingParams{Temperature: Ptr(0.0), MaxNewTokens: Ptr(5)}},
		{InputLen: 1, Sampling: &SamplingParams{MaxNewTokens: Ptr(6)}},
	}
	got := genAll(t, genNew(t, rows, WithArrivals(AllAtOnce())))
	require.Equal(t, []int{5, 5, 6}, []int{got[0].OutputLen, got[1].OutputLen, got[2].OutputLen})
	require.Equal(t, []*SamplingParams{nil, {Temperature: Ptr(0.0)}, nil}, []*SamplingParams{got[0].Sampling, got[1].Sampling, got[2].Sampling})

	got = genAll(t, genNew(t, rows, WithArrivals(AllAtOnce()), WithSampling(base)))
	require.Equal(t, &base, got[0].Sampling)
	require.Equal(t, &SamplingParams{Temperature: Ptr(0.0), MinNewTokens: Ptr(2)}, got[1].Sampling)

	withMax := base
	withMax.MaxNewTokens = Ptr(9)
	for _, opts := range [][]GeneratorOption{
		{WithSampling(withMax)}, {WithOutputLen(9), WithSampling(base)}, {WithSampling(withMax), WithOutputLen(9)}, {WithOutputLen(8), WithOutputLen(9), WithSampling(base)},
	} {
		got = genAll(t, genNew(t, rows, append(opts, WithArrivals(AllAtOnce()))...))
		for _, r := range got {
			require.Equal(t, 9, r.OutputLen)
			require.Nil(t, r.Sampling.MaxNewTokens)
		}
		require.Equal(t, base, *got[0].Sampling)
	}
	require.Equal(t, 9, *withMax.MaxNewTokens)
}

func TestGeneratorOptionFaultsAreReportedTogether(t *testing.T) {
	_, err := NewRequestGenerator(nil, WithLimit(0), WithDuration(-time.Second), WithOutputLen(0), WithArrivals(Poisson(0)), WithSampling(SamplingParams{TopP: Ptr(2.0), N: Ptr(0)}))
	require.EqualError(t, err, "load: request generator: no dataset\n"+
		"load: WithLimit(0): want ≥ 1 requests\n"+
		"load: WithDuration(-1s): want > 0\n"+
		"load: WithOutputLen(0): want 1 to 2147483647 tokens\n"+
		"load: poisson arrivals: rate 0: want > 0 requests/s\n"+
		"load: sampling parameter top_p = 2: want in (0, 1]\n"+
		"load: sampling parameter n = 0: want ≥ 1")

	for want, opts := range map[string][]GeneratorOption{
		"load: request generator: no arrival process: use WithArrivals with AllAtOnce, Constant, Poisson or TraceTimes":                                             {},
		"load: request generator: WithDuration ends nothing if all requests arrive at once: use WithLimit, or arrivals with a rate":                                 {WithArrivals(AllAtOnce()), WithDuration(1)},
		"load: request generator: nothing ends the workload, because dataset random (input 1, output 1, range ratio 1) does not end: use WithLimit or WithDuration": {WithArrivals(Poisson(1))},
		"load: request generator: WithOutputLen(3) and WithSampling with max_new_tokens 4 contradict each other: use one of them":                                   {WithArrivals(Poisson(1)), WithLimit(1), WithOutputLen(3), WithSampling(SamplingParams{MaxNewTokens: Ptr(4)})},
		"load: WithOutputLen(0): want 1 to 2147483647 tokens":                                                                                                       {WithArrivals(Poisson(1)), WithLimit(1), WithSampling(SamplingParams{MaxNewTokens: Ptr(0)})},
	} {
		_, err := NewRequestGenerator(Random(1, 1, 1), opts...)
		require.EqualError(t, err, want)
	}
	_, err = NewRequestGenerator(genTimed(0), WithArrivals(AllAtOnce()), WithRepeat())
	require.ErrorContains(t, err, "nothing ends the workload")
}

func TestGeneratorWorkloadFaults(t *testing.T) {
	trace := "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,10,20\n"
	azure := func(lines string) Dataset { return AzureTrace(datasetFile(t, "t.csv", trace+lines)) }
	jsonl := func(lines string) Dataset { return JSONLines(datasetFile(t, "r.jsonl", lines)) }
	own := errors.New("rows: broken")
	// A wanted text that begins with ":" follows "load: " and the dataset's name, which is the file's path.
	for name, c := range map[string]struct {
		ds   Dataset
		opts []GeneratorOption
		want string
	}{
		"unsorted trace":            {azure("2023-11-16 18:15:48,1,1\n2023-11-16 18:15:47.5,1,1\n"), nil, ":4: its time 1.5s is before that of the row above it, 2s: want rows in order of time"},
		"unsorted, with a rate":     {azure("2023-11-16 18:15:45,1,1\n"), []GeneratorOption{WithArrivals(Poisson(1))}, ":3: its time -1s is before that of the row above it, 0s: want rows in order of time"},
		"unsorted lines":            {jsonl("{\"input_len\": 1, \"output_len\": 1, \"arrival\": 2}\n\n{\"input_len\": 1, \"output_len\": 1, \"arrival\": 1}\n"), nil, ":3: its time 1s is before"},
		"malformed row":             {azure("x\n"), nil, ":3: 1 columns, but the header has 3"},
		"no rows":                   {AzureTrace(datasetFile(t, "t.csv", trace[:40])), nil, "load: dataset NAME is empty: want at least one row"},
		"empty file":                {jsonl("\n"), nil, "load: dataset NAME is empty: want at least one row"},
		"empty array":               {ShareGPT(datasetFile(t, "s.json", "[]")), nil, "load: dataset NAME is empty: want at least one row"},
		"no times":                  {jsonl(`{"input_len": 1, "output_len": 1}`), nil, ":1: the dataset gives no time for it, so trace times cannot be replayed: use a rate, such as Poisson or Constant"},
		"no times, endless":         {Random(1, 1, 1), []GeneratorOption{WithDuration(1)}, "load: dataset NAME: row 1: the dataset gives no time for it"},
		"no output length":          {jsonl(`{"input_len": 1, "arrival": 0}`), nil, ":1: the dataset gives no output length: use WithOutputLen, or set max_new_tokens in the sampling parameters"},
		"two output lengths":        {jsonl(`{"input_len": 1, "output_len": 3, "arrival": 0, "sampling_params": {"max_new_tokens": 4}}`), nil, ":1: output length 3 and max_new_tokens 4 contradict each other"},
		"no output":                 {jsonl(`{"input_len": 1, "arrival": 0, "sampling_params": {"max_new_tokens": 0}}`), nil, ":1: max_new_tokens 0: want ≥ 1"},
		"min above output":          {azure("2023-11-16 18:15:48,1,1\n"), []GeneratorOption{WithSampling(SamplingParams{MinNewTokens: Ptr(2)})}, ":3: min_new_tokens 2 is more than the output length 1"},
		"row's sampling":            {jsonl(`{"input_len": 1, "output_len": 1, "arrival": 0, "sampling_params": {"top_p": 2, "n": 0}}`), nil, ":1: sampling parameter top_p = 2: want in (0, 1]; sampling parameter n = 0: want ≥ 1"},
		"length of a prompt":        {jsonl(`{"input_ids": [1, 2], "input_len": 3, "output_len": 1, "arrival": 0}`), nil, ":1: input length 3, but the prompt has 2 tokens"},
		"limit above dataset":       {genTimed(0, 1), []GeneratorOption{WithLimit(3)}, "load: dataset rows has 2 rows, fewer than the 3 of WithLimit: lower the limit (num_prompts), or let it repeat (WithRepeat, or a duration)"},
		"duration above dataset":    {genTimed(0, 1), []GeneratorOption{WithDuration(time.Minute)}, "load: dataset rows ends after 2 rows, the last of which arrives at 1s, before the end of WithDuration(1m0s): shorten the duration or use WithRepeat"},
		"nothing before the end":    {genTimed(2, 3), []GeneratorOption{WithDuration(time.Second)}, "load: dataset rows: row 1: the first request arrives at 2s: no request before the end of WithDuration(1s)"},
		"repeat without a gap":      {genTimed(1, 1), []GeneratorOption{WithRepeat(), WithDuration(time.Second * 2)}, "load: dataset rows cannot be repeated at its own times: its 2 rows span no time, so there is no mean gap"},
		"repeat to the clock's end": {genTimed(0, 9e9), []GeneratorOption{WithRepeat(), WithLimit(4)}, "load: dataset rows: row 1: time 0s of pass 2 is more than 292 years after the start"},
		"negative time":             {genTimed(-1), nil, "load: dataset rows: row 1: its time -1s is before the start"},
		"user's rows":               {genRows{{OutputLen: 1, Timed: true}}, nil, "load: dataset rows: row 1: neither a prompt nor an input length from 1 to 2147483647, but 0"},
		"user's output":             {genRows{{InputLen: 1, OutputLen: -1, Timed: true}}, nil, "load: dataset rows: row 1: output length -1: want 1 to 2147483647"},
		"user's prompt":             {genRows{{Prompt: Prompt{Text: "a", TokenIDs: []int32{1}}, OutputLen: 1, Timed: true}}, nil, "load: dataset rows: row 1: prompt has more than one of segments"},
		"user's turn":               {genRows{{InputLen: 1, OutputLen: 1, Timed: true, Turn: -1}}, nil, "load: dataset rows: row 1: turn -1: want ≥ 0"},
		"user's error":              {genFunc(func(yield func(Row, error) bool) { yield(Row{}, own) }), nil, "rows: broken"},
		"user's arrivals":           {genTimed(0, 1), []GeneratorOption{WithArrivals(genBackwards{})}, "load: dataset rows: row 2: backwards arrives at -1ns, before the request above it, which arrives at 0s"},
	} {
		t.Run(name, func(t *testing.T) {
			want := strings.Replace(c.want, "NAME", c.ds.Name(), 1)
			if want[0] == ':' {
				want = "load: " + c.ds.Name() + want
			}
			g := genNew(t, c.ds, append([]GeneratorOption{WithArrivals(TraceTimes(1))}, c.opts...)...)
			_, err := g.Plan()
			require.Error(t, err)
			require.Contains(t, err.Error(), want)

			var last error
			for _, err := range g.Requests() {
				require.NoError(t, last, "the sequence must end after an error")
				last = err
			}
			require.EqualError(t, last, err.Error(), "Requests and Plan must agree")
		})
	}
}

func TestGeneratorNeedsConstantMemory(t *testing.T) {
	g := genNew(t, Random(1024, 128, 0.5), WithArrivals(Poisson(100)), WithLimit(1_000_000))
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var early, late uint64
	n := 0
	for _, err := range g.Requests() {
		if err != nil {
			t.Fatal(err)
		}
		switch n++; n {
		case 10_000:
			early = live()
		case 1_000_000:
			late = live()
		}
	}
	require.Equal(t, 1_000_000, n)
	require.Less(t, late, early+256<<10, "a quarter of a byte per request is the most that may stay")
}

func BenchmarkGenerator(b *testing.B) {
	line := `{"input_len": 512, "output_len": 64, "arrival": 1.25, "sampling_params": {"temperature": 0.7}, "conversation": "c1", "turn": 0}` + "\n"
	for _, c := range []struct {
		name string
		ds   Dataset
		opts []GeneratorOption
	}{
		{"random/poisson", Random(1024, 128, 0.5), []GeneratorOption{WithArrivals(Poisson(100))}},
		{"azure/trace", AzureConversation(), []GeneratorOption{WithArrivals(TraceTimes(1)), WithRepeat()}},
		{"jsonl/constant", JSONLines(datasetFile(b, "r.jsonl", strings.Repeat(line, 1000))), []GeneratorOption{WithArrivals(Constant(100)), WithRepeat()}},
	} {
		b.Run(c.name, func(b *testing.B) {
			g := genNew(b, c.ds, append(c.opts, WithLimit(b.N))...)
			b.ReportAllocs()
			b.ResetTimer()
			for _, err := range g.Requests() {
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
