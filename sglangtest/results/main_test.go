package results

import (
	"errors"
	"iter"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/sglangtest/harness/sglangtest/load"
)

// childEnv, if set, makes the test binary the child of TestKilledWriter, with the folder as its value.
const childEnv = "RESULTS_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		writeUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

var errForTest = errors.New("engine exploded")

// begin creates a run and begins it.
func begin(tb testing.TB, dir string, opts ...Option) *Writer {
	tb.Helper()
	w, err := Create(dir, Meta{Label: "test", Config: map[string]any{"request_rate": 8}, Seed: 42}, opts...)
	require.NoError(tb, err)
	require.NoError(tb, w.Begin(load.Info{Plan: load.Plan{Dataset: "random", Requests: 3}, MaxConcurrency: 5}))
	w.Start(load.NewClock(time.Now()))
	return w
}

func collect[T any](tb testing.TB, seq iter.Seq2[T, error]) []T {
	tb.Helper()
	var all []T
	for v, err := range seq {
		require.NoError(tb, err)
		all = append(all, v)
	}
	return all
}
