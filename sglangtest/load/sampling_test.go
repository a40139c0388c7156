package load

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// fullSampling sets every field; alternative differs from it in each.
const (
	fullSampling = `{"max_new_tokens":8,"min_new_tokens":1,"stop":["a","b"],"stop_token_ids":[1,2],"stop_regex":["x+"],` +
		`"temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.1,"frequency_penalty":-2,"presence_penalty":2,"repetition_penalty":1.5,"n":1,` +
		`"json_schema":"{}","ignore_eos":false,"skip_special_tokens":true,"spaces_between_special_tokens":false,"no_stop_trim":true,` +
		`"stream_interval":4,"logit_bias":{"17":-1.5},"sampling_seed":9007199254740993,"custom_params":{"big":9007199254740993},"beam_width":2,"watermark":{}}`
	otherSampling = `{"max_new_tokens":9,"min_new_tokens":2,"stop":[],"stop_token_ids":[],"stop_regex":[],` +
		`"temperature":1,"top_p":0.25,"top_k":3,"min_p":0.2,"frequency_penalty":1,"presence_penalty":-1,"repetition_penalty":0.5,"n":2,` +
		`"regex":"y","ignore_eos":true,"skip_special_tokens":false,"spaces_between_special_tokens":true,"no_stop_trim":false,` +
		`"stream_interval":5,"logit_bias":{},"sampling_seed":-1,"custom_params":{"a":1},"beam_width":3,"watermark":{"b":2}}`
)

func samplingFromJSON(t *testing.T, text string) *SamplingParams {
	t.Helper()
	var p SamplingParams
	require.NoError(t, json.Unmarshal([]byte(text), &p))
	return &p
}

func TestSamplingJSONRoundTrip(t *testing.T) {
	for _, text := range []string{`{}`, fullSampling, otherSampling} {
		p := samplingFromJSON(t, text)
		require.NoError(t, p.Validate())
		out, err := json.Marshal(p)
		require.NoError(t, err)
		require.Equal(t, text, string(out))
	}
	p := samplingFromJSON(t, `{"stop":"one","stop_regex":null,"custom_params":null,"max_new_tokens":null,"watermark":null,"json_schema":null}`)
	require.Equal(t, &SamplingParams{Stop: Strings{"one"}}, p)
}

func TestSamplingUnmarshalKeepsAbsentFields(t *testing.T) {
	p := SamplingParams{TopK: Ptr(3), TopP: Ptr(0.5)}
	require.NoError(t, json.Unmarshal([]byte(`{"top_k":4}`), &p))
	require.Equal(t, SamplingParams{TopK: Ptr(4), TopP: Ptr(0.5)}, p)

	require.Error(t, json.Unmarshal([]byte(`{"top_k":5,"top_p":"high"}`), &p))
	require.Equal(t, SamplingParams{TopK: Ptr(4), TopP: Ptr(0.5)}, p, "a failed decode must change nothing")
}

func TestSamplingUnmarshalFaults(t *testing.T) {
	for text, want := range map[string]string{
		`{"temprature":1,"max_tokens":3}`: `sampling parameters: unknown key "max_tokens": did you mean "max_new_tokens"?; unknown key "temprature": did you mean "temperature"?`,
		`{"Temperature":1}`:               `sampling parameters: unknown key "Temperature": did you mean "temperature"?`,
		`{"xyzzy":1}`:                     `sampling parameters: unknown key "xyzzy": valid are max_new_tokens, `,
		`{"max_new_tokens":1.5}`:          `sampling parameters: key "max_new_tokens": want a whole number, not a JSON number 1.5`,
		`{"temperature":"hot"}`:           `sampling parameters: key "temperature": want a number, not a JSON string`,
		`{"stop":3}`:                      `sampling parameters: want a string or a list of strings`,
		`[1]`:                             `sampling parameters: want a JSON object, not a JSON array`,
	} {
		var p SamplingParams
		err := json.Unmarshal([]byte(text), &p)
		require.Error(t, err, text)
		require.Contains(t, err.Error(), want)
	}
}

func TestSamplingMergeOverridesEveryField(t *testing.T) {
	base, over := samplingFromJSON(t, fullSampling), samplingFromJSON(t, otherSampling)
	baseBefore, overBefore := *base, *over

	require.Equal(t, over, base.Merge(over))
	require.Equal(t, base, base.Merge(&SamplingParams{}))
	require.Equal(t, base, base.Merge(nil))
	require.Equal(t, over, (*SamplingParams)(nil).Merge(over))
	require.Equal(t, &SamplingParams{}, (*SamplingParams)(nil).Merge(nil))
	require.Equal(t, baseBefore, *base)
	require.Equal(t, overBefore, *over)

	// One field at a time: it alone is replaced (with it the other constraints, which exclude each other).
	for i := range reflect.TypeFor[SamplingParams]().NumField() {
		field := reflect.TypeFor[SamplingParams]().Field(i)
		var one, want SamplingParams
		value := reflect.ValueOf(over).Elem().Field(i)
		if value.IsZero() {
			value = reflect.ValueOf("constraint")
		}
		reflect.ValueOf(&one).Elem().Field(i).Set(value)
		want = *base
		if field.Type.Kind() == reflect.String {
			want.JSONSchema, want.Regex, want.EBNF, want.StructuralTag = "", "", "", ""
		}
		reflect.ValueOf(&want).Elem().Field(i).Set(value)
		require.Equal(t, &want, base.Merge(&one), field.Name)
	}
}

func TestSamplingValidateReportsAllFaults(t *testing.T) {
	p := SamplingParams{
		MaxNewTokens: Ptr(-1), MinNewTokens: Ptr(-2), StopTokenIDs: []int32{3, -4}, Temperature: Ptr(math.Inf(1)), TopP: Ptr(0.0), TopK: Ptr(0),
		MinP: Ptr(1.1), FrequencyPenalty: Ptr(-2.1), PresencePenalty: Ptr(2.1), RepetitionPenalty: Ptr(0.0), N: Ptr(0), Regex: "a", EBNF: "b",
		StreamInterval: Ptr(0), LogitBias: map[int32]float64{-1: 0, 5: math.NaN()}, BeamWidth: Ptr(0),
		CustomParams: json.RawMessage(`[1]`), Watermark: json.RawMessage(``),
	}
	require.Equal(t, strings.Join([]string{
		"load: sampling parameter max_new_tokens = -1: want ≥ 0",
		"load: sampling parameter min_new_tokens = -2: want ≥ 0",
		"load: sampling parameter stop_token_ids = -4: want ids ≥ 0",
		"load: sampling parameter temperature = +Inf: want ≥ 0 and finite",
		"load: sampling parameter top_p = 0: want in (0, 1]",
		"load: sampling parameter top_k = 0: want ≥ 1, or -1 for all",
		"load: sampling parameter min_p = 1.1: want in [0, 1]",
		"load: sampling parameter frequency_penalty = -2.1: want in [-2, 2]",
		"load: sampling parameter presence_penalty = 2.1: want in [-2, 2]",
		"load: sampling parameter repetition_penalty = 0: want in (0, 2]",
		"load: sampling parameter n = 0: want ≥ 1",
		"load: sampling parameters set 2 of json_schema, regex, ebnf and structural_tag: want at most one",
		"load: sampling parameter stream_interval = 0: want ≥ 1",
		"load: sampling parameter logit_bias = {-1: 0}: want token ids ≥ 0 and finite values",
		"load: sampling parameter logit_bias = {5: NaN}: want token ids ≥ 0 and finite values",
		"load: sampling parameter beam_width = 0: want ≥ 1",
		"load: sampling parameter custom_params = [1]: want a JSON object",
		"load: sampling parameter watermark = : want a JSON object",
	}, "\n"), p.Validate().Error())

	p = SamplingParams{MaxNewTokens: Ptr(4), MinNewTokens: Ptr(5), TopP: Ptr(math.NaN())}
	require.ErrorContains(t, p.Validate(), "min_new_tokens = 5: want at most max_new_tokens, which is 4")
	require.ErrorContains(t, p.Validate(), "top_p = NaN")
	require.NoError(t, (&SamplingParams{}).Validate())
}
