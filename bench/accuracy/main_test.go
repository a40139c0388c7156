package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sglangtest/harness/sglangtest/sim"
	"github.com/stretchr/testify/require"
)

func recordings(t *testing.T) string {
	data := os.Getenv("SGLANGTEST_DATA")
	if data == "" {
		data = filepath.Join("..", "..", "..", "shared", "data")
	}
	if _, err := os.Stat(filepath.Join(data, "sglang-h100")); err != nil {
		if os.Getenv("SGLANGTEST_REQUIRE_DATA") != "" {
			t.Fatal(err)
		}
		t.Skipf("the recordings are not on this machine: %v", err)
	}
	return data
}

// The profile that comes with the package states the errors that this command finds.
func TestShippedProfileStatesItsError(t *testing.T) {
	p, err := accuracy(io.Discard, recordings(t))
	require.NoError(t, err)
	require.Equal(t, sim.H100Llama8B(), p, "run this command with -write")
}

// What is stated for a run that was left out covers 90 % of its figures and is no wider than 1.5 times the
// errors seen (see verdict.width), and of a run that no other is like it says so.
func TestBoundsHoldForRunsLeftOut(t *testing.T) {
	data := recordings(t)
	for name, want := range map[string]struct {
		bounded   []string
		uncovered []string
	}{
		"H100": {[]string{"bench_serving", "conv_random", "p050"}, []string{"p080", "prefix_rr"}},
		"H200": {[]string{"3b code", "3b p050", "3b sat", "code", "conv_rr", "kill_rr", "p050", "prefix", "prefix_ca", "prefix_rr", "sat"}, []string{"wide_rr"}},
	} {
		i := slices.IndexFunc(gpus(), func(g gpu) bool { return g.name == name })
		p, err := gpus()[i].validated(io.Discard, data)
		require.NoError(t, err)
		v := leaveOneOut(p.Validation)
		t.Logf("%s\n%v", name, v)

		var bounded, uncovered []string
		for _, h := range v {
			if h.bound.Uncovered == "" {
				bounded = append(bounded, h.run.Name)
			} else {
				uncovered = append(uncovered, h.run.Name)
			}
		}
		slices.Sort(bounded)
		slices.Sort(uncovered)
		require.Equal(t, want.bounded, slices.Compact(bounded), name)
		require.Equal(t, want.uncovered, slices.Compact(uncovered), name)

		within, all := v.covered()
		require.GreaterOrEqual(t, float64(within), 0.9*float64(all), name)
		require.Greater(t, all, 30, "%s: bounds of so few figures say nothing", name)
		for m, w := range v.width() {
			require.LessOrEqual(t, w, 1.5, "%s, metric %d", name, m)
		}
	}
}
