package harness

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/sglangtest/harness"

// layers says which packages of this module a package may import directly, apart from sglangtest/internal/….
// Imports point one way, so that each package can be used alone.
var layers = map[string][]string{
	"sglangtest/load":        {},
	"sglangtest/metrics":     {"sglangtest/load"},
	"sglangtest/server":      {"sglangtest/metrics"},
	"sglangtest/gpu":         {"sglangtest/metrics", "sglangtest/server"}, // it is the GPU inventory of a server manager
	"sglangtest/sim":         {"sglangtest/load", "sglangtest/metrics", "sglangtest/server"},
	"sglangtest/results":     {"sglangtest/load", "sglangtest/metrics"},
	"sglangtest/policy":      {"sglangtest/load"},
	"sglangtest/batching":    {"sglangtest/load", "sglangtest/policy"},
	"sglangtest/dispatch":    {"sglangtest/load", "sglangtest/policy", "sglangtest/batching"},
	"sglangtest/sim/fleet":   {"sglangtest/load", "sglangtest/metrics", "sglangtest/policy", "sglangtest/dispatch", "sglangtest/sim"},
	"sglangtest/sim/process": {"sglangtest/load", "sglangtest/server", "sglangtest/sim"},
	"sglangtest": {"sglangtest/load", "sglangtest/metrics", "sglangtest/server", "sglangtest/gpu", "sglangtest/sim", "sglangtest/results",
		"sglangtest/policy", "sglangtest/sim/fleet"},

	"sglangtest/server/launchertest": {}, // tests only
}

// heavy says which packages may import a module, and why no others may.
var heavy = []struct {
	prefix  string
	allowed []string
	why     string
}{
	{"testing", nil, "a user's program must not link the test framework"},
	{"github.com/stretchr/testify", nil, "it is for tests only"},
	{"go.uber.org/goleak", nil, "it is for tests only"},
	{"github.com/hashicorp/go-retryablehttp", []string{"sglangtest/server"}, "a retry on the measured path would resend generations and hide failures"},
	{"golang.org/x/text", []string{"sglangtest/internal/bpe"}, "only a tokenizer needs Unicode's normal forms"},
	{"github.com/klauspost/compress", []string{"sglangtest/internal/textfile"}, "only datasets come compressed with zstd"},
	{"github.com/mattn/go-shellwords", []string{"examples/internal/cli", "bench/gpu"}, "only command lines given as one text have words"},
	{"go.yaml.in/yaml", []string{"sglangtest/internal/sglargs"}, "only SGLang's own configuration files are YAML"},
	{"gonum.org/v1/gonum", []string{"sglangtest/metrics"}, "who only sends requests needs no statistics"},
	{"github.com/NVIDIA/go-nvml", []string{"sglangtest/gpu"}, "it needs cgo"},
	{"github.com/prometheus", []string{"sglangtest/metrics/prom"}, "it is a large dependency"},
	{"github.com/parquet-go", []string{"sglangtest/results/parquet"}, "it is a large dependency"},
	{"gonum.org/v1/plot", []string{"sglangtest/results/report"}, "it is a large dependency"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...").Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg, ok := strings.CutPrefix(fields[0], module+"/")
		if !ok {
			continue // the root package
		}
		allowed, inLayers := layers[pkg]
		if strings.HasPrefix(pkg, "sglangtest") && !strings.HasPrefix(pkg, "sglangtest/internal/") && !inLayers {
			t.Errorf("%s is in no layer: say in layers what it may import", pkg)
		}
		for _, imp := range fields[1:] {
			for _, h := range heavy {
				if (imp == h.prefix || strings.HasPrefix(imp, h.prefix+"/")) && !slices.Contains(h.allowed, pkg) {
					t.Errorf("%s imports %s: %s", pkg, imp, h.why)
				}
			}
			own, ok := strings.CutPrefix(imp, module+"/")
			if !ok || strings.HasPrefix(own, "sglangtest/internal/") {
				continue
			}
			if strings.HasPrefix(pkg, "sglangtest/internal/") {
				t.Errorf("%s imports %s: internal packages are below all others", pkg, own)
			}
			if inLayers && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s: imports point one way, and this one is not among %v", pkg, own, allowed)
			}
		}
	}
}
