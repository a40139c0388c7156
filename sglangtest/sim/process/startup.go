//go:build unix

package process

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/sim"
)

// sitePackages is where tracebacks say that SGLang is installed: its place in the official image.
const sitePackages = "/usr/local/lib/python3.12/dist-packages"

// A phase is a part of the start. The share is its part of the start of SGLang 0.5.15.post1 with warm caches on one
// H100 (the warm-up is that of the start with cold caches).
type phase struct {
	name  string
	share float64
}

var (
	resolve    = phase{"resolve", 3.6}
	spawn      = phase{"spawn", 30.5}
	loading    = phase{"load", 3.3}
	allocate   = phase{"allocate", 7.0}
	prefills   = phase{"prefill graphs", 9.6}
	decodes    = phase{"decode graphs", 3.8}
	warmUp     = phase{"warm-up", 9.3}
	phaseTotal = 67.1
)

func (c *command) took(p phase) time.Duration {
	return time.Duration(float64(c.startup) * p.share / phaseTotal)
}

// Sizes of memory in the log are those of the recorded start on an H100 with 8 billion parameters in 16 bits, whatever the
// profile; the log says so.
const (
	availBefore, weightGB = 78.50, 15.02
	bytesPerToken         = 131072
)

// graphSizes are the batch sizes of decode graphs and the token numbers of prefill graphs, as recorded on the H100.
func graphSizes(decode bool) []int {
	var out []int
	add := func(from, to, step int) {
		for n := from; n <= to; n += step {
			out = append(out, n)
		}
	}
	if decode {
		out = []int{1, 2, 4}
		add(8, 8, 1)
		add(12, 12, 1)
		add(16, 256, 8)
		return out
	}
	add(4, 32, 4)
	add(48, 256, 16)
	add(288, 512, 32)
	add(576, 1024, 64)
	add(1280, 4096, 256)
	add(4608, 8192, 512)
	return out
}

// bar is one state of a tqdm progress bar of ten characters, or in SGLang's own form (utils/common.py, BAR_FORMAT).
func bar(label string, n, total int, elapsed time.Duration, own bool) string {
	const parts = "▏▎▍▌▋▊▉█"
	eighths := 80 * n / total
	blocks := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		blocks += string([]rune(parts)[rest-1])
	}
	blocks += strings.Repeat(" ", (80-eighths)/8)
	clock := func(d time.Duration) string { return fmt.Sprintf("%02d:%02d", int(d.Minutes()), int(d.Seconds())%60) }
	left, speed := "?", "?it/s"
	if n > 0 && elapsed > 0 {
		left, speed = clock(elapsed*time.Duration(total-n)/time.Duration(n)), fmt.Sprintf("%.2fit/s", float64(n)/elapsed.Seconds())
	}
	middle := "|" + blocks + "|"
	if own {
		middle = " Completed |"
	}
	if label != "" {
		label += ": "
	}
	return fmt.Sprintf("\r%s%3.0f%%%s %d/%d [%s<%s, %s]", label, 100*float64(n)/float64(total), middle, n, total, clock(elapsed), left, speed)
}

// serverArgs is the line "server_args=": all fields with their values, as the version writes it.
func (c *command) serverArgs(ec sim.EngineConfig) string {
	resolved := map[string]any{"tokenizer_path": c.config.TokenizerPath, "served_model_name": c.config.ServedModelName,
		"chunked_prefill_size": ec.ChunkedPrefillSize, "device": c.device()}
	seen := map[string]bool{"help": true, "config": true}
	var parts []string
	for _, a := range c.table.Args() {
		if seen[a.Field] || a.Field == "" {
			continue
		}
		seen[a.Field] = true
		v := c.args.Value(a.Field)
		if r, ok := resolved[a.Field]; ok {
			v = r
		}
		if c.release < v21 {
			parts = append(parts, a.Field+"="+repr(v))
		} else {
			parts = append(parts, repr(a.Field)+": "+repr(v))
		}
	}
	if text := strings.Join(parts, ", "); c.release < v21 {
		return "server_args=ServerArgs(" + text + ")"
	} else {
		return "server_args={" + text + "}"
	}
}

func (c *command) device() string {
	if d := c.str("device"); d != "" {
		return d
	}
	return "cuda"
}

// graphsOf reports whether graphs are captured for "decode" or "prefill".
func (c *command) graphsOf(kind string) bool {
	return c.device() == "cuda" && !c.set("disable_cuda_graph") && c.str("cuda_graph_backend_"+kind) != "disabled"
}

// repr is Python's repr of a value of the command line.
func repr(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(v) + "'"
	case float64:
		s := strconv.FormatFloat(v, 'g', -1, 64)
		if !strings.ContainsAny(s, ".en") {
			s += ".0"
		}
		return s
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = repr(x)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case []string:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = repr(x)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case map[string]any:
		parts := make([]string, 0, len(v))
		for k, x := range v {
			parts = append(parts, repr(k)+": "+repr(x))
		}
		sort.Strings(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return fmt.Sprint(v)
}
