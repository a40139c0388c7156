package sglargs_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

func TestVersionOrder(t *testing.T) {
	ordered := []string{"0.2.15", "0.3.0", "0.3.0.post1", "0.4.6", "0.4.10", "0.5", "0.5.1.dev3", "0.5.1a1", "0.5.1b2", "0.5.1rc1", "0.5.1rc2",
		"v0.5.1", "0.5.15", "0.5.15.post1", "0.5.15.post2+cu129", "1.0"}
	for i, a := range ordered {
		for j, b := range ordered {
			v, err := sglargs.ParseVersion(a)
			require.NoError(t, err)
			w, err := sglargs.ParseVersion(b)
			require.NoError(t, err)
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			require.Equal(t, want, v.Compare(w), "%s, %s", a, b)
		}
	}
	v, _ := sglargs.ParseVersion("0.5.0")
	w, _ := sglargs.ParseVersion("0.5")
	require.Zero(t, v.Compare(w))
	for _, s := range []string{"", "main", "0.5.x", "unknown", "0..5", "99999999999999999999.1"} {
		_, err := sglargs.ParseVersion(s)
		require.Error(t, err, s)
	}
}

func TestSupport(t *testing.T) {
	for version, want := range map[string]string{
		"0.5.15.post1": "", "0.5.18": "", "0.5.20": "", "0.5.23": "",
		"0.3.0":   "SGLang 0.3.0 is older than the known versions, 0.5.15.post1 to 0.5.23: it is treated as 0.5.15.post1",
		"0.5.24":  "SGLang 0.5.24 is newer than the known versions, 0.5.15.post1 to 0.5.23: it is treated as 0.5.23",
		"0.5.999": "SGLang 0.5.999 is newer than the known versions, 0.5.15.post1 to 0.5.23: it is treated as 0.5.23",
	} {
		warning, err := sglargs.Support(version)
		require.NoError(t, err)
		require.Equal(t, want, warning)
	}
	_, err := sglargs.Support("0.2.15")
	require.EqualError(t, err, "SGLang 0.2.15 is too old: want 0.3.0 or newer")
	_, err = sglargs.Support("latest")
	require.ErrorContains(t, err, "not a version")
}

func TestTableOfVersion(t *testing.T) {
	for version, want := range map[string]string{
		"0.3.0": "0.5.15.post1", "0.5.15": "0.5.15.post1", "0.5.16": "0.5.15.post1", "0.5.18": "0.5.18", "0.5.20": "0.5.18",
		"0.5.21rc1": "0.5.18", "0.5.21": "0.5.21", "0.5.22.post1": "0.5.21", "0.5.23": "0.5.23", "0.6.0": "0.5.23",
	} {
		require.Equal(t, want, table(t, version).Version(), version)
	}
	_, err := sglargs.For("0.2.0")
	require.Error(t, err)
}

func TestServeArgs(t *testing.T) {
	require.Equal(t, []string{"--model-path", "m", "--port", "1"}, table(t, "0.5.18").ServeArgs([]string{"m", "--port", "1"}))
	require.Equal(t, []string{"--port", "1"}, table(t, "0.5.18").ServeArgs([]string{"--port", "1"}))
	require.Equal(t, []string{"m"}, table(t, "0.5.15.post1").ServeArgs([]string{"m"}))
	require.Empty(t, table(t, "0.5.23").ServeArgs(nil))
}

func TestWarnings(t *testing.T) {
	parsed, err := table(t, "0.5.18").Parse([]string{"--model", "m", "--cuda-graph-max-bs", "8", "--collect-tokens-histogram"})
	require.NoError(t, err)
	require.Equal(t, []string{
		"'--cuda-graph-max-bs' is deprecated and will be removed in a future release. Use '--cuda-graph-max-bs-decode' instead.",
		"The command line argument '--collect-tokens-histogram' is deprecated and will be removed in future versions.",
	}, parsed.Warnings)
	require.Equal(t, map[string]any{"model_path": "m", "cuda_graph_max_bs_decode": 8}, parsed.Given)
}
