package load

import (
	"iter"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

// planOf plans ds with its own times, or with a rate if rate > 0, and ten output tokens where it says none.
func planOf(ds Dataset, rate float64, opts ...GeneratorOption) (Plan, []Request, error) {
	arrivals := TraceTimes(1)
	if rate > 0 {
		arrivals = Constant(rate)
	}
	g, err := NewRequestGenerator(ds, append([]GeneratorOption{WithArrivals(arrivals)}, opts...)...)
	if err != nil {
		return Plan{}, nil, err
	}
	plan, err := g.Plan()
	if err != nil {
		return plan, nil, err
	}
	var rs []Request
	for r, err := range g.Requests() {
		if err != nil {
			return plan, rs, err
		}
		rs = append(rs, r)
	}
	return plan, rs, nil
}

func prompts(rs []Request) []string {
	var texts []string
	for _, r := range rs {
		texts = append(texts, r.Prompt.Text)
	}
	return texts
}

func caseFile(t *testing.T, name string) string { return refdata.Path(t, "cases/"+name) }

// One odd row of a conversation file ends the set with its place, or is left out and counted, as the user says.
func TestOddConversations(t *testing.T) {
	read := func(name string, opts ...FileOption) (Plan, []string, error) {
		plan, rs, err := planOf(ShareGPT(caseFile(t, "10-sharegpt-odd-rows/"+name), opts...), 1, WithOutputLen(10))
		return plan, prompts(rs), err
	}
	plan, texts, err := read("odd.json")
	require.NoError(t, err, "conversations without a first pair are left out by the format's rule")
	require.Subset(t, texts, []string{"first good question", "second good question", "third good question"})
	require.Equal(t, []string{noFirstTurn}, []string{plan.LeftOut[0].Reason})

	_, texts, err = read("blocks.json")
	require.NoError(t, err, "a list of text parts is text")
	require.Equal(t, []string{"first good question", "second good question"}, texts)

	for name, c := range map[string]struct{ fault, reason string }{
		"null.json":  {":3: conversations[0]: value is null (SkipOddRows, config key odd_rows", oddMissing},
		"stray.json": {":3: conversations[0]: want a turn: an object", oddBroken},
	} {
		_, _, err := read(name)
		require.ErrorContains(t, err, c.fault)
		require.ErrorAs(t, err, new(*DatasetError))
		require.NotContains(t, err.Error(), "shareGPT", "no Go type")
		plan, texts, err := read(name, SkipOddRows())
		require.NoError(t, err)
		require.Len(t, texts, 2)
		require.Equal(t, []LeftOut{{Reason: c.reason, Rows: 1, FirstLine: 3}}, plan.LeftOut)
	}
}

func TestConversationsOnLines(t *testing.T) {
	path := caseFile(t, "11-sharegpt-jsonl/conv.jsonl")
	_, rs, err := planOf(ShareGPT(path), 1, WithOutputLen(10))
	require.NoError(t, err)
	require.Len(t, rs, 2)
	_, _, err = planOf(JSONLines(path), 1)
	require.ErrorContains(t, err, `conv.jsonl:1: unknown key "conversations"`)
	require.ErrorContains(t, err, `it looks like dataset "sharegpt"`)
}

func TestFractionsOfSeconds(t *testing.T) {
	_, rs, err := planOf(AzureTrace(caseFile(t, "12-azure-submilli/t.csv")), 0)
	require.NoError(t, err)
	var at []time.Duration
	for _, r := range rs {
		at = append(at, r.Arrival)
	}
	us := time.Microsecond
	require.Equal(t, []time.Duration{0, 1000 * us, 8123 * us, 10000 * us, 999000 * us, 999001500}, at, "a T between date and time, too")
	_, rs, err = planOf(AzureTrace(caseFile(t, "12-azure-submilli/seven.csv")), 0)
	require.NoError(t, err)
	require.Equal(t, 100*time.Nanosecond, rs[1].Arrival)
}

// Calls that failed stand in public traces with zero tokens.
func TestRowsOfFailedCalls(t *testing.T) {
	want := []LeftOut{{Reason: oddNoReply, Rows: 1, FirstLine: 3}}
	for name, of := range map[string]func(string, ...FileOption) Dataset{"azure-form.csv": AzureTrace, "burst.csv": BurstGPT, "mooncake.jsonl": Mooncake} {
		path := caseFile(t, "13-zero-token-rows/"+name)
		line := strings.Replace(path, ".jsonl", ".jsonl:2: output_length 0", 1)
		if line == path {
			line = path + ":3: "
		}
		_, _, err := planOf(of(path), 0)
		require.ErrorContains(t, err, line)
		require.ErrorContains(t, err, "SkipOddRows")
		plan, rs, err := planOf(of(path, SkipOddRows()), 0)
		require.NoError(t, err)
		require.Len(t, rs, 2)
		if name == "mooncake.jsonl" {
			want[0].FirstLine = 2
		} else {
			want[0].FirstLine = 3
		}
		require.Equal(t, want, plan.LeftOut)
	}
	plan, rs, err := planOf(BurstGPT(caseFile(t, "13-zero-token-rows/burst.csv"), SkipOddRows()), 0)
	require.NoError(t, err)
	require.Equal(t, []time.Duration{5 * time.Second, 118 * time.Second}, []time.Duration{rs[0].Arrival, rs[1].Arrival})
	require.Equal(t, []int{472, 18}, []int{rs[0].InputLen, rs[0].OutputLen})
	require.EqualValues(t, 472+417, plan.InputTokens)

	_, _, err = planOf(AzureTrace(caseFile(t, "13-zero-token-rows/burst.csv")), 0)
	require.ErrorContains(t, err, `it looks like dataset "burstgpt"`)
	require.NotContains(t, err.Error(), "meant to be it", "another column is no misspelling")
}

func TestOptionalFieldsOfATrace(t *testing.T) {
	_, rs, err := planOf(Mooncake(caseFile(t, "14-mooncake-optional/text.jsonl")), 0)
	require.NoError(t, err)
	require.Equal(t, []string{"first question", "second question"}, prompts(rs))
	require.Equal(t, 1500*time.Millisecond, rs[1].Arrival)

	times := caseFile(t, "14-mooncake-optional/no-times.jsonl")
	_, rs, err = planOf(Mooncake(times), 2)
	require.NoError(t, err)
	require.Equal(t, rs[0].Prompt.Segments[0], rs[1].Prompt.Segments[0], "the prefix stays shared")
	_, _, err = planOf(Mooncake(times), 0)
	require.ErrorContains(t, err, "no-times.jsonl:1: the dataset gives no time for it")

	_, rs, err = planOf(Mooncake(caseFile(t, "14-mooncake-optional/no-hashes.jsonl")), 0)
	require.NoError(t, err)
	require.Equal(t, 700, rs[0].InputLen)
	require.NotEqual(t, rs[0].Prompt.Segments[0].Stream, rs[1].Prompt.Segments[0].Stream)
}

// A trace in seconds is not replayed a thousand times as fast without a word.
func TestTimesInAnotherUnit(t *testing.T) {
	path := caseFile(t, "14-mooncake-optional/seconds.jsonl")
	_, _, err := planOf(Mooncake(path), 0)
	require.ErrorContains(t, err, "seconds.jsonl:2: timestamp 0.25: 250µs if it is in ms, the unit of this format, but 250ms if it is in s")
	_, rs, err := planOf(Mooncake(path, WithTimeUnit(Seconds)), 0)
	require.NoError(t, err)
	require.Equal(t, 30500*time.Millisecond, rs[2].Arrival)
	_, rs, err = planOf(Mooncake(path, WithTimeUnit(Milliseconds)), 0)
	require.NoError(t, err)
	require.Equal(t, 30500*time.Microsecond, rs[2].Arrival)

	lines := func(row string, at ...string) string {
		var b strings.Builder
		for _, at := range at {
			b.WriteString(strings.ReplaceAll(row, "AT", at) + "\n")
		}
		return datasetFile(t, "t.jsonl", b.String())
	}
	mooncake := `{"timestamp": AT, "input_length": 1, "output_length": 1}`
	jsonl := `{"arrival": AT, "input_len": 1, "output_len": 1}`
	_, _, err = planOf(Mooncake(lines(mooncake, "0", "1", "2", "3", "4", "5", "7")), 0)
	require.ErrorContains(t, err, "its 7 times span 7ms (857.1/s) if they are in ms, the unit of this format, but 7s (0.8571/s) if they are in s")
	_, _, err = planOf(JSONLines(lines(jsonl, "0", "1500", "3000", "4500", "9000")), 0)
	require.ErrorContains(t, err, "its 5 times span 2h30m0s (0.0004444/s) if they are in s, the unit of this format, but 9s (0.4444/s) if they are in ms")
	_, _, err = planOf(JSONLines(lines(jsonl, "1700000000", "1700000001")), 0)
	require.ErrorContains(t, err, "it looks like a time of the calendar")
	// At a rate the times do not matter; a user who said the unit is believed; bursts at one time have no rate.
	for _, ds := range []Dataset{JSONLines(lines(jsonl, "0", "1500", "3000", "4500", "9000"), WithTimeUnit(Seconds)), Mooncake(lines(mooncake, "0", "0", "0", "0", "0", "0", "3000"))} {
		_, _, err = planOf(ds, 0)
		require.NoError(t, err)
	}
	_, _, err = planOf(Mooncake(lines(mooncake, "0", "1", "2", "3", "4", "5", "7")), 3)
	require.NoError(t, err)
	_, _, err = planOf(Mooncake(lines(mooncake, "0", "1", "2", "3", "4", "5", "7")), 0, WithLimit(6))
	require.ErrorContains(t, err, "if they are in s")
}

// Compressed files are read; what is no text is named, in words that can be printed.
func TestCompressedAndForeignFiles(t *testing.T) {
	folder := "15-compressed-trace/"
	for name, of := range map[string]func(string, ...FileOption) Dataset{"m.jsonl.gz": Mooncake, "s.json.gz": ShareGPT, "t.csv.gz": AzureTrace} {
		_, rs, err := planOf(of(caseFile(t, folder+name)), 1, WithOutputLen(10))
		require.NoError(t, err, name)
		require.NotEmpty(t, rs)
	}
	_, _, err := planOf(AzureTrace(caseFile(t, folder+"utf16.csv")), 1)
	require.ErrorContains(t, err, "utf16.csv:1: no column TIMESTAMP among TIME;", "UTF-16 is read")
	for _, of := range []func(string, ...FileOption) Dataset{Mooncake, ShareGPT, AzureTrace, JSONLines, BurstGPT} {
		_, _, err := planOf(of(caseFile(t, folder+"t.parquet")), 1, WithOutputLen(10))
		require.ErrorContains(t, err, "t.parquet: it is a Parquet file")
		for _, name := range []string{"m.jsonl.gz", "s.json.gz", "t.csv.gz", "utf16.csv", "t.parquet"} {
			if _, _, err := planOf(of(caseFile(t, folder+name)), 1, WithOutputLen(10)); err != nil {
				for _, r := range err.Error() {
					require.True(t, r >= ' ', "%s: %q", name, err)
				}
			}
		}
	}
}

// A file of nothing but odd rows is a wrong file.
func TestNothingButOddRows(t *testing.T) {
	path := datasetFile(t, "r.jsonl", "{\"a\": 1}\n{\"b\": 2}\n")
	_, _, err := planOf(JSONLines(path, SkipOddRows()), 1)
	require.ErrorContains(t, err, `none of its 2 rows can be a request; the first: line 1: unknown key "a"`)
	require.ErrorContains(t, newFileDataset("x", &azure, []FileOption{WithTimeUnit(Seconds), WithBlockSize(16)}).(*fileDataset).Validate(),
		"load: Azure trace: time unit \"s\": its times need none\nload: Azure trace: blocks of 16 tokens: it has no hash ids")
	require.ErrorContains(t, newFileDataset("x", &mooncake, []FileOption{WithTimeUnit("min")}).(*fileDataset).Validate(), `time unit "min": want one of [s ms us ns]`)
}

// An error of a user's own dataset gets its name and row.
func TestOwnDatasetsErrorsAreLocated(t *testing.T) {
	_, _, err := planOf(brokenDataset{}, 1)
	require.EqualError(t, err, "load: mine: row 2: "+os.ErrDeadlineExceeded.Error())
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

type brokenDataset struct{}

func (brokenDataset) Name() string { return "mine" }

func (brokenDataset) Rows(*rand.Rand) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		if yield(Row{InputLen: 1, OutputLen: 1}, nil) {
			yield(Row{}, os.ErrDeadlineExceeded)
		}
	}
}
