package sim

import (
	"cmp"
	_ "embed"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A family is one metric of SGLang's /metrics page. The table has those of real servers of the four recorded
// versions, and from observability/metrics_collector.py those that no recording of a version has: of retractions and evictions.
// What changed its text has several entries.
type family struct {
	group        byte // metrics of one process and kind come together
	since, until int  // versions that have it, by their last number; until 0: it is still there
	kind         string
	labels       byte // 'S': those of the scheduler, 'T': those of the tokenizer manager, '-': none
	name, help   string
	bounds       []float64 // of a histogram, without +Inf
}

//go:embed families.tsv
var familyTable string

var families = sync.OnceValue(func() (all []family) {
	for line := range strings.Lines(familyTable) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		since, err1 := strconv.Atoi(f[1])
		until, err2 := strconv.Atoi(f[2])
		if err1 != nil || err2 != nil {
			panic("sim: families.tsv: " + line)
		}
		all = append(all, family{f[0][0], since, until, f[3], f[4][0], f[5], f[6], bucketBounds[f[5]]})
	}
	return all
})

// familiesOf returns a version's families in the order in which a server of it was recorded to write them. The order of
// groups is an accident of how the files of SGLang's processes were listed.
func familiesOf(patch int) (all []family) {
	groups := "GghHcpCU"
	switch {
	case patch < 18:
		groups = "HhGgCcp"
	case patch < 21:
		groups = "gCcUHGph"
	case patch < 23:
		groups = "CGgHUhcp"
	}
	for _, f := range families() {
		if patch >= f.since && (f.until == 0 || patch <= f.until) {
			all = append(all, f)
		}
	}
	slices.SortStableFunc(all, func(a, b family) int {
		return cmp.Compare(strings.IndexByte(groups, a.group), strings.IndexByte(groups, b.group))
	})
	return all
}

// The bucket bounds of the histograms; those of time to first token, inter-token and total latency, prompt and generation
// tokens are the defaults of SGLang's flags.
var (
	latencyBounds = []float64{0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400}
	tokenTimes    = []float64{0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8}
	tokenCounts   = []float64{100, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000, 12500, 15000, 17500, 20000, 22500,
		25000, 27500, 30000, 35000, 40000, 60000, 80000, 100000, 200000, 300000, 400000, 600000, 800000, 1e6, 1.1e6}

	bucketBounds = map[string][]float64{
		"time_to_first_token_seconds":           latencyBounds,
		"e2e_request_latency_seconds":           append(slices.Clone(latencyBounds), 600, 1200, 1800, 2400),
		"inter_token_latency_seconds":           tokenTimes,
		"request_time_per_output_token_seconds": tokenTimes,
		"prompt_tokens_histogram":               tokenCounts,
		"uncached_prompt_tokens_histogram":      tokenCounts,
		"generation_tokens_histogram":           tokenCounts,
		"get_loads_duration_seconds":            {0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1},
		"queue_time_seconds": {0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 300, 400, 500,
			600, 700, 800, 900, 1000, 1200, 1400, 1600, 1800, 2000, 2500, 3000},
		"eviction_duration_seconds":          {0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1},
		"per_stage_req_latency_seconds":      exponential(0.001, 1.62, 30),
		"dp_attention_token_imbalance_ratio": {1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10, 15, 20, 30, 45, 60},
		"dp_attention_sync_wait_seconds":     {0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1},
	}
	routingKeyBounds = []string{"0", "1", "2", "3", "5", "7", "10", "20", "50", "100", "200", "+Inf"}
)

// exponential is SGLang's exponential_buckets (observability/utils.py). The powers are rounded once, as those of the C
// library are, and not as math.Pow does: the bounds are labels.
func exponential(start, width float64, n int) []float64 {
	b := make([]float64, n)
	power, factor := new(big.Float).SetPrec(4096).SetInt64(1), big.NewFloat(width)
	for i := range b {
		p, _ := power.Float64()
		b[i] = start * p
		power.Mul(power, factor)
	}
	return b
}

// A series is one set of labels of a family.
type series struct {
	extra  []string // names and values of labels besides those of the family
	value  float64  // of a histogram: the sum
	counts []uint64 // of a histogram: observations by bucket, the last above all bounds
}

// observe adds n observations of v to a histogram.
func (s *series) observe(bounds []float64, v float64, n int) {
	i, _ := slices.BinarySearch(bounds, v)
	s.counts[i] += uint64(n)
	s.value += v * float64(n)
}

// appendFamily appends a family in the text format, as prometheus_client writes those of several processes.
func appendFamily(b []byte, f family, base []string, all []series) []byte {
	if len(all) == 0 {
		return b
	}
	full := "sglang:" + f.name
	b = append(b, "# HELP "+full+" "+f.help+"\n# TYPE "+full+" "+f.kind+"\n"...)
	for i := range all {
		s := &all[i]
		if f.kind != "histogram" {
			b = appendSample(b, full, labelText(base, s.extra), s.value)
			continue
		}
		labels := labelText(base, s.extra)
		b = appendSample(b, full+"_sum", labels, s.value)
		before, after, _ := strings.Cut(labelText(base, append(slices.Clone(s.extra), "le", "\x00")), "\x00")
		sum := uint64(0)
		for k, n := range s.counts {
			sum += n
			bound := "+Inf"
			if k < len(f.bounds) {
				bound = goFloat(f.bounds[k])
			}
			b = appendSample(b, full+"_bucket", before+bound+after, float64(sum))
		}
		b = appendSample(b, full+"_count", labels, float64(sum))
	}
	return b
}

func appendSample(b []byte, name, labels string, v float64) []byte {
	b = append(append(append(b, name...), labels...), ' ')
	return append(append(b, goFloat(v)...), '\n')
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// labelText returns the labels in braces, ordered by name. Those of extra replace those of base.
func labelText(base, extra []string) string {
	if len(base)+len(extra) == 0 {
		return ""
	}
	var pairs []string
	for n, list := range [][]string{base, extra} {
		for i := 0; i < len(list); i += 2 {
			if n == 0 && hasLabel(extra, list[i]) {
				continue
			}
			pairs = append(pairs, list[i]+`="`+labelEscapes.Replace(list[i+1])+`"`)
		}
	}
	slices.Sort(pairs)
	return "{" + strings.Join(pairs, ",") + "}"
}

func hasLabel(labels []string, name string) bool {
	for i := 0; i < len(labels); i += 2 {
		if labels[i] == name {
			return true
		}
	}
	return false
}

// goFloat writes a number as prometheus_client does: as Python, but with an exponent from a million on.
func goFloat(v float64) string {
	switch {
	case math.IsNaN(v):
		return "NaN"
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	}
	s := pyFloat(v)
	if dot := strings.IndexByte(s, '.'); v > 0 && dot > 6 {
		return strings.TrimRight(s[:1]+"."+s[1:dot]+s[dot+1:], "0.") + "e+0" + strconv.Itoa(dot-1)
	}
	return s
}

// pyFloat writes a finite number as Python's repr does.
func pyFloat(v float64) string {
	if a := math.Abs(v); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(v, 'e', -1, 64)
	}
	return showFloat(v)
}
