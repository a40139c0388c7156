package sglangtest

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/results"
)

// tinyDisk returns a folder on a file system of so many bytes.
func tinyDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a full disk needs a small file system, and mounting one needs root: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	return dir
}

// A disk that is full is told at once, and once at the end, and the folder says that the run failed.
func TestAFullDisk(t *testing.T) {
	cfg := short()
	cfg.NumPrompts, cfg.RequestRate, cfg.RandomOutputLen = 5000, 2500, 8
	cfg.OutputDir = filepath.Join(tinyDisk(t, "512k"), "run")
	var early metrics.Progress
	run, err := RunNode(context.Background(), cfg, WithProgress(func(p metrics.Progress) {
		if len(p.Problems) > 0 && early.Problems == nil {
			early = p
		}
	}))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 1, strings.Count(err.Error(), "no space left"), err)
	require.Contains(t, early.Problems[0], "no space left")
	require.False(t, early.Ended(), "told while the load goes on")
	require.True(t, slices.ContainsFunc(run.Collector.Events(), func(e metrics.Event) bool { return e.Kind == metrics.KindStoringFailed }))
	require.Equal(t, 5000, run.Summary.Requests.Arrived, "it goes on")

	stored, err := results.Open(cfg.OutputDir)
	require.NoError(t, err)
	require.Equal(t, results.StateFailed, stored.State)
	require.Equal(t, 1, strings.Count(stored.Reason, "no space left"), stored.Reason)
	require.False(t, stored.Ended.IsZero())
}
