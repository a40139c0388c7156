package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/sglangtest/harness/sglangtest/sim"
	"github.com/stretchr/testify/require"
)

// The profile that comes with the package states the errors that this command finds.
func TestShippedProfileStatesItsError(t *testing.T) {
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
	p, err := accuracy(io.Discard, data)
	require.NoError(t, err)
	require.Equal(t, sim.H100Llama8B(), p, "run this command with -write")
}
