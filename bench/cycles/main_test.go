//go:build linux

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	if status, other := asOther(); other {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// A short form of what this command does.
func TestNothingIsLeft(t *testing.T) {
	var out strings.Builder
	left, err := run(t.Context(), &out, len(endings)*len(versions), 5, 1)
	t.Log(out.String())
	require.NoError(t, err)
	require.Zero(t, left)
}
