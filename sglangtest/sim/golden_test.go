package sim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/stretchr/testify/require"
)

var recordedVersions = []string{"0.5.15.post1", "0.5.23"}

// goldens returns the recordings of all versions in a folder.
func goldens(t testing.TB, folder string) []string {
	var files []string
	for _, v := range recordedVersions {
		found, err := filepath.Glob(filepath.Join(folder, v, "*.json*"))
		require.NoError(t, err)
		files = append(files, found...)
	}
	require.NotEmpty(t, files)
	return files
}

// testGoldens replays all recordings of a folder, through the engine alone and through a loop.
func testGoldens(t *testing.T, folder string) {
	for _, file := range goldens(t, folder) {
		t.Run(filepath.Base(filepath.Dir(file))+"/"+filepath.Base(file), func(t *testing.T) {
			g, err := ReadRecording(file)
			require.NoError(t, err)
			require.NoError(t, g.Replay(func(p *replay) {
				p.each = func(e *Engine, underWay *Step) { requireConserved(t, e, underWay) }
			}))
			require.NoError(t, g.Replay(ReplayLoop), "through the loop")
		})
	}
}

// Every decision is that of the recorded scheduler.
func TestSmallGoldenSchedules(t *testing.T) { testGoldens(t, "testdata/schedules") }

// Random scenarios of bench/schedule/generate.py, weighted to small pools with long answers, preemption, pages, no cache and
// decodes that ride in prefills.
func TestRandomSmallGoldenSchedules(t *testing.T) { testGoldens(t, "testdata/schedules-random") }

func TestGoldenSchedules(t *testing.T) {
	testGoldens(t, filepath.Dir(filepath.Dir(refdata.Path(t, "sglang-schedules/0.5.23/single.json"))))
}

func TestRandomGoldenSchedules(t *testing.T) {
	testGoldens(t, filepath.Dir(filepath.Dir(refdata.Path(t, "sglang-schedules-random/0.5.23/fcfs_50000.json"))))
}

// Named segments give the same schedules as token ids, except where two requests gave the same answer: the ids are
// equal then, and the names are not.
func TestGoldenSchedulesBySegments(t *testing.T) {
	same := []string{"evict_lru.json", "identical_prompts.json", "page16_prefix.json"}
	for _, file := range goldens(t, filepath.Dir(filepath.Dir(refdata.Path(t, "sglang-schedules/0.5.23/single.json")))) {
		if slices.Contains(same, filepath.Base(file)) {
			continue
		}
		g, err := ReadRecording(file)
		require.NoError(t, err)
		require.NoError(t, g.Replay(ReplaySegments), file)
	}
}

// Outputs of decode steps can be left out without any change of the schedule.
func TestQuietDecodeKeepsTheSchedule(t *testing.T) {
	for _, file := range goldens(t, "testdata/schedules") {
		g, err := ReadRecording(file)
		require.NoError(t, err)
		require.NoError(t, g.Replay(func(p *replay) { p.quiet = true }), file)
	}
}

// A replay finds a difference and says where it is.
func TestReplayReportsTheFirstDifference(t *testing.T) {
	g, err := ReadRecording("testdata/schedules/0.5.23/stop_token.json")
	require.NoError(t, err)
	g.Trace[3].Avail--
	err = g.Replay()
	var d *Difference
	require.True(t, errors.As(err, &d), "%v", err)
	require.Equal(t, "avail", d.Field)
	require.Contains(t, d.Row, fmt.Sprintf("iteration %d ", g.Trace[3].I))
	g.Flags = append(g.Flags, "--enable-lora")
	require.ErrorContains(t, g.Replay(), "--enable-lora is not simulated")
	_, err = ReadRecording("testdata/none.json")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// requireConserved checks that every token of the pool is free, cached or held by a request, and the engine's own
// counts.
func requireConserved(t testing.TB, e *Engine, underWay *Step) {
	held, lockstep, context := 0, 0, 0
	seen := map[*Request]bool{}
	count := func(r *Request) {
		if r == nil || seen[r] || r.phase != phaseRunning {
			return
		}
		seen[r] = true
		held += e.ceil(e.computedOf(r)) - r.protected
		if r.lockstep {
			lockstep++
			context += e.computedOf(r)
		}
	}
	for _, r := range e.running {
		count(r)
	}
	for _, s := range []*Step{e.last, underWay} {
		if s == nil {
			continue
		}
		for i := range s.Rows {
			if s.Rows[i].live() {
				count(s.Rows[i].Request)
			}
		}
		for _, r := range s.Decode {
			count(r)
		}
	}
	count(e.chunked)
	st := e.State()
	require.Equal(t, st.MaxTotalTokens, st.FreeTokens+st.CachedTokens+st.ProtectedTokens+held)
	require.GreaterOrEqual(t, st.FreeTokens, 0)
	require.Equal(t, e.count, lockstep)
	require.Equal(t, e.context, context)
	if e.tree != nil {
		requireTree(t, e.tree)
	}
}
