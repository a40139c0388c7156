package load

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

func mooncakeRows(t *testing.T, text string, opts ...FileOption) ([]Row, error) {
	path := filepath.Join(t.TempDir(), "trace.jsonl")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	var rows []Row
	for row, err := range Mooncake(path, opts...).Rows(rand.New(rand.NewPCG(1, 1))) {
		if err != nil {
			return rows, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func TestMooncakeRows(t *testing.T) {
	rows, err := mooncakeRows(t, `{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 0, "input_length": 600, "output_length": 6, "hash_ids": [0, 2], "type": "text"}

{"timestamp": 3002, "input_length": 512, "output_length": 7, "hash_ids": [3]}
`)
	require.NoError(t, err)
	require.Len(t, rows, 3)
	a, b, c := rows[0], rows[1], rows[2]
	require.Equal(t, []int{512, 488}, []int{a.Prompt.Segments[0].Length, a.Prompt.Segments[1].Length})
	require.Equal(t, a.Prompt.Segments[0], b.Prompt.Segments[0], "equal ids are equal tokens")
	require.NotEqual(t, a.Prompt.Segments[1].Stream, b.Prompt.Segments[1].Stream)
	require.Equal(t, []int{600, 6, 2}, []int{b.InputLen, b.OutputLen, b.Line})
	require.Equal(t, []time.Duration{0, 0, 3002 * time.Millisecond}, []time.Duration{a.Arrival, b.Arrival, c.Arrival})
	require.True(t, c.Timed)
	require.Equal(t, 4, c.Line)
	require.NoError(t, c.Prompt.Validate())
}

func TestMooncakeBlockSize(t *testing.T) {
	rows, err := mooncakeRows(t, `{"timestamp": 1, "input_length": 33, "output_length": 1, "hash_ids": [0, 1, 2]}`, WithBlockSize(16))
	require.NoError(t, err)
	require.Equal(t, 33, rows[0].Prompt.Tokens())
	require.ErrorContains(t, Mooncake("x", WithBlockSize(0)).(*fileDataset).Validate(), "want 1 to")
}

func TestMooncakeFaultsNameTheLine(t *testing.T) {
	const good = `{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}` + "\n"
	for _, c := range []struct{ name, line, want string }{
		{"no JSON", `{`, "unexpected end"},
		{"keys missing", `{}`, "no input_length"},
		{"too few ids", `{"timestamp": 0, "input_length": 1025, "output_length": 5, "hash_ids": [0, 1]}`, "2 hash_ids, but 1025 tokens are 3 blocks of 512"},
		{"empty answer", `{"timestamp": 0, "input_length": 1, "output_length": 0, "hash_ids": [0]}`, "output_length 0: want 1 to"},
		{"negative time", `{"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": [0]}`, "timestamp -1: want ms ≥ 0"},
		{"text for a number", `{"timestamp": 0, "input_length": "1", "output_length": 1, "hash_ids": [0]}`, `key "input_length": want a whole number, not a JSON string`},
		{"negative id", `{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [-1]}`, "hash_ids"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rows, err := mooncakeRows(t, good+c.line)
			require.Len(t, rows, 1)
			require.ErrorContains(t, err, "trace.jsonl:2: ")
			require.ErrorContains(t, err, c.want)
		})
	}
}

// The figures are those that the trace's publishers and independent counts state.
func TestMooncakeConversation(t *testing.T) {
	ds := Mooncake(refdata.Path(t, "mooncake_conversation.jsonl"))
	gen, err := NewRequestGenerator(ds, WithArrivals(TraceTimes(1)))
	require.NoError(t, err)
	plan, err := gen.Plan()
	require.NoError(t, err)
	require.Equal(t, 12031, plan.Requests)
	require.Equal(t, 3536999*time.Millisecond, plan.LastArrival)
	require.InDelta(t, 12035, float64(plan.InputTokens)/12031, 1)
	require.InDelta(t, 343, float64(plan.OutputTokens)/12031, 1)

	times := map[time.Duration]bool{}
	type key struct {
		stream uint64
		length int
	}
	seen := map[key]bool{}
	hit, all := 0, 0
	for r, err := range gen.Requests() {
		require.NoError(t, err)
		times[r.Arrival] = true
		prefix := true
		for _, s := range r.Prompt.Segments {
			all++
			if prefix = prefix && seen[key{s.Stream, s.Length}]; prefix {
				hit++
			}
			seen[key{s.Stream, s.Length}] = true
		}
	}
	require.Len(t, times, 1180)
	require.InDelta(t, 0.366, float64(hit)/float64(all), 0.005, "share of blocks that a perfect cache would have")
}
