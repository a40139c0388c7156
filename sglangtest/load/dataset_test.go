package load

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
)

// datasetRows reads rows up to the first error, at most n, without those that are left out.
func datasetRows(ds Dataset, n int) (rows []Row, err error) {
	for row, err := range ds.Rows(rand.New(rand.NewPCG(1, 2))) {
		if err != nil {
			return rows, err
		}
		if row.LeftOut != "" {
			continue
		}
		if rows = append(rows, row); len(rows) == n {
			break
		}
	}
	return rows, nil
}

func datasetFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestAzureForms(t *testing.T) {
	header := "TIMESTAMP,ContextTokens,GeneratedTokens\n"
	want := func(line1 int, at ...time.Duration) (rows []Row) {
		for i, a := range at {
			rows = append(rows, Row{InputLen: 10 + i, OutputLen: 20 + i, Arrival: a, Timed: true, Line: line1 + i})
		}
		return rows
	}
	for name, c := range map[string]struct {
		text string
		want []Row
	}{
		"2023: CRLF, seven fraction digits, no zone": {
			"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,10,20\r\n2023-11-16 18:15:50.9951690,11,21",
			want(2, 0, 4314579000),
		},
		"2024: zone, fraction sometimes missing": {
			header + "2024-05-10 00:00:00.009930+00:00,10,20\n2024-05-10 00:00:01+00:00,11,21\n2024-05-10 00:00:01.5+00:00,12,22\n",
			want(2, 0, 990070*time.Microsecond, 1490070*time.Microsecond),
		},
		"another zone is the same moment": {
			header + "2024-05-10 00:00:00+00:00,10,20\n2024-05-10 02:00:00+02:00,11,21\n2024-05-10 00:00:00Z,12,22\n2024-05-10 00:00:00,13,23\n",
			want(2, 0, 0, 0, 0),
		},
		"columns by name, others ignored, byte order mark, blank line": {
			"\ufeffGeneratedTokens,NumImages,TIMESTAMP,ContextTokens\n\n20,0,2024-10-15 00:00:00,10\n",
			want(3, 0),
		},
		"over midnight": {
			header + "2023-12-31 23:59:59.9,10,20\n2024-01-01 00:00:00.1,11,21\n",
			want(2, 0, 200*time.Millisecond),
		},
	} {
		t.Run(name, func(t *testing.T) {
			rows, err := datasetRows(AzureTrace(datasetFile(t, "trace.csv", c.text)), -1)
			require.NoError(t, err)
			require.Equal(t, c.want, rows)
		})
	}
}

func TestAzureFaults(t *testing.T) {
	header := "TIMESTAMP,ContextTokens,GeneratedTokens\n"
	good := "2023-11-16 18:15:46,10,20\n"
	for text, want := range map[string]string{
		"":                                       ":1: empty file: want the columns TIMESTAMP, ContextTokens, GeneratedTokens",
		good:                                     ":1: no column TIMESTAMP among 2023-11-16 18:15:46, 10, 20; no column ContextTokens among",
		"TIMESTAMP,ContextToken,GeneratedTokens": `:1: no column ContextTokens among TIMESTAMP, ContextToken, GeneratedTokens: is "ContextToken" meant to be it?`,
		header + good + "2023-11-16 18:15:47,10\n":         ":3: 2 columns, but the header has 3",
		header + good + "\n\n2023-11-16 18:15:47,0,1\n":    `:5: ContextTokens 0: want 1 to 2147483647 tokens`,
		header + good + "2023-11-16 18:15:47,1,-1\n":       `:3: GeneratedTokens -1: want`,
		header + good + "yesterday,1.5,1e3\n":              `:3: TIMESTAMP "yesterday": want a time such as 2023-11-16 18:15:46.6805900, with or without a zone such as +00:00; ContextTokens "1.5": want a whole number of tokens from 1 to 2147483647; GeneratedTokens "1e3"`,
		header + good + "2023-11-16 18:15:47,9999999999,1": `:3: ContextTokens 9999999999: want`,
		header + good + "2023-11-31 18:15:47,1,1":          `:3: TIMESTAMP "2023-11-31 18:15:47"`,
		header + good + `2023-11-16 18:15:47,1"2,1`:        `:3: bare "`,
	} {
		path := datasetFile(t, "trace.csv", text)
		_, err := datasetRows(AzureTrace(path), -1)
		require.Error(t, err, text)
		require.Contains(t, err.Error(), "load: "+path+want)
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestDatasetFileMissing(t *testing.T) {
	for _, ds := range []Dataset{AzureTrace("no/such.csv"), ShareGPT("no/such.json"), JSONLines("no/such.jsonl")} {
		_, err := datasetRows(ds, -1)
		require.ErrorContains(t, err, "load: dataset: open "+ds.Name()+": ")
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	_, err := datasetRows(AzureTrace(t.TempDir()), -1)
	require.ErrorContains(t, err, "is a directory")
}

func TestAzureConversationIsTheRecordingsStart(t *testing.T) {
	path := refdata.Path(t, "azure_llm_2023_conv.csv")
	recording, err := os.ReadFile(path)
	require.NoError(t, err)
	lines := bytes.SplitAfter(recording, []byte("\n"))
	require.Equal(t, string(bytes.Join(lines[:2001], nil)), string(azureConversation))

	all, err := datasetRows(AzureTrace(path), -1)
	require.NoError(t, err)
	require.Equal(t, 19366, len(all)) // the count that is published of the trace
	embedded, err := datasetRows(AzureConversation(), -1)
	require.NoError(t, err)
	require.Equal(t, all[:2000], embedded)
}

func TestAzureConversation(t *testing.T) {
	rows, err := datasetRows(AzureConversation(), -1)
	require.NoError(t, err)
	require.Equal(t, 2000, len(rows))
	require.Equal(t, Row{InputLen: 374, OutputLen: 44, Timed: true, Line: 2}, rows[0])
	require.Equal(t, Row{InputLen: 424, OutputLen: 96, Arrival: 424259457 * time.Microsecond, Timed: true, Line: 2001}, rows[1999])
}

func TestShareGPTForms(t *testing.T) {
	text := `[
	  {"id": "a", "conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "reply"}]},
	  {"conversation": [{"role": "user", "content": "two"}, {"role": "assistant", "content": "reply"}, {"role": "user", "content": "more"}], "tools": [1]},
	  {"conversations": [{"from": "system", "value": "rules"}, {"from": "human", "value": "three"}, {"from": "gpt", "value": "reply"}]},
	  {"conversations": ["{\"from\": \"human\", \"value\": \"four\"}", "{\"from\": \"gpt\", \"value\": \"reply\"}"]},
	  {"conversations": [{"from": "human", "value": "left out: no reply"}]},
	  {"conversations": [{"from": "gpt", "value": "left out"}, {"from": "gpt", "value": "nobody asks"}]},
	  {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "left out: empty prompt"}]},
	  {"conversations": [{"from": "human", "value": "left out: empty reply"}, {"from": "gpt", "value": ""}]},
	  {"conversations": []},
	  {"conversations": [{"from": "human", "value": " späte Zeile\n"}, {"from": "gpt", "value": "reply"}]}
	]`
	rows, err := datasetRows(ShareGPT(datasetFile(t, "s.json", text)), -1)
	require.NoError(t, err)
	var want []Row
	for line, prompt := range map[int]string{2: "one", 3: "two", 4: "three", 5: "four", 11: " späte Zeile\n"} {
		want = append(want, Row{Prompt: Prompt{Text: prompt}, Line: line})
	}
	slices.SortFunc(want, func(a, b Row) int { return a.Line - b.Line })
	require.Equal(t, want, rows)
}

func TestShareGPTFaults(t *testing.T) {
	ok := `{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}`
	for text, want := range map[string]string{
		``:                                `: empty file: want a JSON array of conversations, or one conversation on each line`,
		`true`:                            `:1: want a JSON array of conversations, or one conversation on each line`,
		`{}`:                              `:1: neither "conversations" nor "conversation" is there`,
		`[` + ok + ",\n" + `{"id": "b"}]`: `:2: neither "conversations" nor "conversation" is there`,
		`[` + ok + ",\n" + `{"conversations": [{"from": "human"}]}]`:        `:2: conversations[0]: want from and value, or role and content`,
		`[` + ok + ",\n" + `{"conversations": ["hello"]}]`:                  `:2: conversations[0]: want a turn: an object with from and value`,
		`[` + ok + ",\n" + `{"conversations": [3]}]`:                        `:2: conversations[0]: want a turn: an object`,
		`[` + ok + ",\n" + `{"conversations": [{"from":1,"value":""}]}]`:    `:2: conversations[0]: from: want a string`,
		`[` + ok + ",\n" + `{"conversation": [{"role":"a","value":null}]}]`: `:2: conversation[0]: value is null`,
		`[` + ok + ",\n" + `{"conversations": "x"}]`:                        `:2: key "conversations": want a list, not a JSON string`,
		`[` + ok + ",\n" + ok[:40]:                                          `:1: the file ends before the array does`,
		`[` + ok + "\n":                                                     `:1: the file ends before the array does`,
		`[` + ok + ` ` + ok + `]`:                                           `:1: not JSON: expected comma after array element`,
		`[` + ok + "]\n {}":                                                 `:2: something follows the array`,
		`[{"conversations": [{"from": "human", "value": "x"}]}]`:            `: none of its 1 rows can be a request; the first: line 1: no human turn that another turn follows, both with text`,
	} {
		path := datasetFile(t, "s.json", text)
		_, err := datasetRows(ShareGPT(path), -1)
		require.Error(t, err, text)
		require.Contains(t, err.Error(), "load: "+path+want)
	}
}

// The counts are those of a few lines of Python that apply the documented rule to the same files.
func TestShareGPTRecordings(t *testing.T) {
	for name, want := range map[string]struct {
		rows  int
		first string
	}{
		"sharegpt_glaive_toolcall_en.json": {300, "Hi, I have some ingredients and I want to cook something. Can you help me find a recipe?"},
		"sharegpt_dummy_conversation.json": {500, "Who are you?"},
	} {
		rows, err := datasetRows(ShareGPT(refdata.Path(t, name)), -1)
		require.NoError(t, err)
		require.Equal(t, want.rows, len(rows))
		require.Equal(t, want.first, rows[0].Prompt.Text)
	}
}

func TestJSONLinesForms(t *testing.T) {
	text := `{"input_len": 512, "output_len": 64, "arrival": 1.25, "sampling_params": {"temperature": 0.7}, "conversation": "c1", "turn": 0}
{"prompt": "hello", "input_len": 3}` + "\r\n" + `
  {"input_ids": [1, 2, 0], "arrival": 1.25}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}], "turn": 2, "conversation": "c1"}
{"segments": [{"stream": 18446744073709551615, "offset": 0, "length": 512}, {"stream": 8, "length": 1}], "sampling_params": null}`
	rows, err := datasetRows(JSONLines(datasetFile(t, "r.jsonl", text)), -1)
	require.NoError(t, err)
	require.Equal(t, []Row{
		{InputLen: 512, OutputLen: 64, Arrival: 1250 * time.Millisecond, Timed: true, Sampling: &SamplingParams{Temperature: Ptr(0.7)}, Conversation: "c1", Line: 1},
		{Prompt: Prompt{Text: "hello"}, InputLen: 3, Line: 2},
		{Prompt: Prompt{TokenIDs: []int32{1, 2, 0}}, Arrival: 1250 * time.Millisecond, Timed: true, Line: 4},
		{Prompt: Prompt{Messages: []Message{{Role: "user", Content: "hi"}, {Role: "assistant"}}}, Conversation: "c1", Turn: 2, Line: 5},
		{Prompt: Prompt{Segments: []Segment{{Stream: 1<<64 - 1, Length: 512}, {Stream: 8, Length: 1}}}, Line: 6},
	}, rows)
}

func TestJSONLinesFaults(t *testing.T) {
	for text, want := range map[string]string{
		`{"input_length": 3, "ouput_len": 1}`:                   `unknown key "input_length": did you mean "input_len"?; unknown key "ouput_len": did you mean "output_len"?`,
		`{"Prompt": "x"}`:                                       `unknown key "Prompt": did you mean "prompt"?`,
		`{"prompt": "x", "sampling_params": {"temprature": 1}}`: `sampling parameters: unknown key "temprature": did you mean "temperature"?`,
		`{"messages": [{"role": "user", "contents": "x"}]}`:     `messages[0]: unknown key "contents": did you mean "content"?`,
		`{"segments": [{"stream": 1, "len": 2}]}`:               `segments[0]: unknown key "len": did you mean "length"?`,
		`{"messages": [{"content": "x"}]}`:                      `messages[0]: want a role such as "user"`,
		`{"messages": [3]}`:                                     `messages[0]: want a JSON object, not a JSON number`,
		`{"segments": [{"stream": 1, "length": 0}]}`:            `segments[0]: want offset 0 to 2147483647 and length 1 to 2147483647`,
		`{}`:                                 `no prompt: want one of prompt, input_ids, messages, segments and input_len`,
		`{"prompt": "", "input_len": 4}`:     `prompt is empty`,
		`{"input_ids": []}`:                  `input_ids is empty`,
		`{"messages": []}`:                   `messages is empty`,
		`{"segments": []}`:                   `segments is empty`,
		`{"prompt": "x", "input_ids": [1]}`:  `more than one of prompt, input_ids, messages and segments: want one`,
		`{"input_ids": [1, -2]}`:             `input_ids[1] is -2: want ≥ 0`,
		`{"input_len": 0, "output_len": -1}`: `input_len 0: want 1 to 2147483647 tokens; output_len -1: want 1 to 2147483647 tokens`,
		`{"input_len": 1.5}`:                 `key "input_len": want a whole number, not a JSON number 1.5`,
		`{"input_len": 1, "arrival": -0.5}`:  `arrival -0.5: want s ≥ 0`,
		`{"input_len": 1, "arrival": 1e300}`: `arrival 1e+300: want s ≥ 0`,
		`{"input_len": 1, "arrival": "now"}`: `key "arrival": want a number, not a JSON string`,
		`{"input_len": 1, "turn": -1}`:       `turn -1: want ≥ 0`,
		`{"input_len": 1, "turn": 1}`:        `turn 1 of no conversation: want the conversation's name`,
		`[1]`:                                `want a JSON object, not a JSON array`,
		`null`:                               `want a JSON object, not null`,
		`{"input_len": 1} {"input_len": 2}`:  `not JSON: invalid character '{' after top-level value`,
		`{"input_len": 1`:                    `not JSON: unexpected end of JSON input`,
	} {
		path := datasetFile(t, "r.jsonl", "{\"input_len\": 1}\n\n"+text+"\n")
		rows, err := datasetRows(JSONLines(path), -1)
		require.Equal(t, 1, len(rows))
		require.Error(t, err, text)
		require.Contains(t, err.Error(), fmt.Sprintf("load: %s:3: %s", path, want))
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestRandomRangeRule(t *testing.T) {
	for _, c := range []struct {
		length      int
		ratio       float64
		least, most int
	}{
		{100, 0.5, 50, 100}, {100, 0.999, 99, 100}, {100, 1, 100, 100}, {100, 0, 1, 100}, {3, 0.1, 1, 3}, {1, 0, 1, 1}, {7, 0.3, 2, 7},
	} {
		seen := map[int]int{}
		rows, err := datasetRows(Random(c.length, 2*c.length, c.ratio), 5000)
		require.NoError(t, err)
		for _, r := range rows {
			seen[r.InputLen]++
			require.GreaterOrEqual(t, r.OutputLen, max(int(2*float64(c.length)*c.ratio), 1))
			require.LessOrEqual(t, r.OutputLen, 2*c.length)
			require.Equal(t, Row{InputLen: r.InputLen, OutputLen: r.OutputLen}, r)
		}
		for n := c.least; n <= c.most; n++ {
			require.NotZero(t, seen[n], "length %d of %+v never came", n, c)
		}
		require.Equal(t, c.most-c.least+1, len(seen), "%+v", c)
	}
}

func TestRandomInputsAndOutputsAreIndependent(t *testing.T) {
	a, err := datasetRows(Random(1000, 500, 0), 1000)
	require.NoError(t, err)
	b, err := datasetRows(Random(10, 500, 0), 1000)
	require.NoError(t, err)
	var x, y, xy, xx, yy float64
	for i := range a {
		require.Equal(t, a[i].OutputLen, b[i].OutputLen)
		u, v := float64(a[i].InputLen)-500.5, float64(a[i].OutputLen)-250.5
		x, y, xy, xx, yy = x+u, y+v, xy+u*v, xx+u*u, yy+v*v
	}
	// Four standard errors of a correlation of 0, and of a mean of 1000 uniform draws.
	require.InDelta(t, 0, xy*xy/(xx*yy), 16.0/1000)
	require.InDelta(t, 0, x/1000, 4*1000/3.4641/31.6)
	require.InDelta(t, 0, y/1000, 4*500/3.4641/31.6)
}

func TestRandomFaults(t *testing.T) {
	_, err := NewRequestGenerator(Random(0, -1, 1.5), WithArrivals(AllAtOnce()), WithLimit(1))
	require.EqualError(t, err, "load: random dataset: input length 0: want 1 to 2147483647 tokens\n"+
		"load: random dataset: output length -1: want 1 to 2147483647 tokens\n"+
		"load: random dataset: range ratio 1.5: want 0 to 1")
	_, err = datasetRows(Random(0, 1, 1), -1)
	require.Error(t, err)
}

// fuzzParser checks what must hold for any input: no panic, at most one error and nothing after it, rows that
// are within the documented ranges, and the same again when read a second time.
func fuzzParser(f *testing.F, format *fileFormat, opts ...FileOption) {
	f.Fuzz(func(t *testing.T, data []byte) {
		read := func() (rows []Row, fault error) {
			ds := newFileDataset("f", format, opts).(*fileDataset)
			ds.read(bytes.NewReader(data), func(r Row, err error) bool {
				require.NoError(t, fault, "a row after an error")
				if fault = err; err == nil && r.LeftOut == "" {
					rows = append(rows, r)
				}
				return true
			})
			return rows, fault
		}
		rows, err := read()
		for _, r := range rows {
			require.True(t, r.InputLen >= 0 && r.InputLen <= maxTokens && r.OutputLen >= 0 && r.OutputLen <= maxTokens)
			require.True(t, !r.Prompt.IsZero() || r.InputLen > 0)
			if !r.Prompt.IsZero() {
				require.NoError(t, r.Prompt.Validate())
			}
		}
		if err != nil {
			require.True(t, strings.HasPrefix(err.Error(), "load: f"))
		}
		again, err2 := read()
		require.Equal(t, rows, again)
		require.Equal(t, err == nil, err2 == nil)
	})
}

func FuzzAzure(f *testing.F) {
	f.Add([]byte("TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"))
	f.Add([]byte("\ufeffGeneratedTokens,TIMESTAMP,ContextTokens,x\n1,2024-05-10 00:00:00+00:00,2,\"q\n\"\n1,2"))
	fuzzParser(f, &azure)
}

func FuzzShareGPT(f *testing.F) {
	f.Add([]byte(`[{"conversations": [{"from": "human", "value": "x"}, "{\"role\": \"gpt\", \"content\": \"y\"}"]}, {"conversation": []}]`))
	fuzzParser(f, &shareGPT)
}

func FuzzJSONLines(f *testing.F) {
	f.Add([]byte(`{"input_len": 512, "output_len": 64, "arrival": 1.25, "sampling_params": {"temperature": 0.7, "stop": "x"}, "conversation": "c1", "turn": 0}`))
	f.Add([]byte("{\"prompt\": \"a\"}\n\n{\"segments\": [{\"stream\": 1, \"offset\": 2, \"length\": 3}]}\n{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n{\"input_ids\": [1]}"))
	fuzzParser(f, &jsonLines)
}

func FuzzMooncake(f *testing.F) {
	f.Add([]byte(`{"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]}`))
	f.Add([]byte("{\"timestamp\": 0.5, \"text_input\": \"a\"}\n{\"input_length\": 0}\n{"))
	fuzzParser(f, &mooncake, SkipOddRows(), WithTimeUnit(Milliseconds))
}

func FuzzBurstGPT(f *testing.F) {
	f.Add([]byte("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45,x,1,0,1,y\n"))
	fuzzParser(f, &burstGPT, SkipOddRows())
}
