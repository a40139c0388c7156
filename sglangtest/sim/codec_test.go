package sim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestProfileRoundTrip(t *testing.T) {
	sampled, err := NewSampled([]SampledStep{{Decodes: 2, Context: 10, Time: 11}, {Extends: []Extend{{5, 1}}, Time: 21}}, 4, flat)
	require.NoError(t, err)
	base := H100Llama8B()
	linear := base.Model.(Linear)
	linear.PrefillKnee, linear.DecodeEager, linear.PrefillGraphs, linear.PrefillEager = 100, 2, []int{4, 8}, 3
	for name, m := range map[string]StepModel{
		"linear":    linear,
		"grid":      sampleGrid(flat),
		"replay":    Replay{Times: []float64{1, 2}, Else: flat},
		"sampled":   sampled,
		"lognormal": Noise{Model: linear, Sigma: 0.1, Seed: 1<<63 + 1},
		"empirical": Noise{Model: Noise{Model: flat, Sigma: 0.1}, Residuals: []float64{0.9, 1.1}, Seed: 2},
	} {
		p := base
		p.Model = m
		b, err := json.Marshal(p)
		require.NoError(t, err, name)
		var got Profile
		require.NoError(t, json.Unmarshal(b, &got), name)
		require.Equal(t, p, got, name)
	}
	for _, p := range Profiles() {
		b, err := json.Marshal(p)
		require.NoError(t, err)
		path := filepath.Join(t.TempDir(), "profile.json")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		got, err := LoadProfile(path)
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
	_, err = json.Marshal(Profile{Model: foreign{}})
	require.ErrorContains(t, err, "a step model of type sim.foreign has no JSON form")
}

type foreign struct{}

func (foreign) StepTime(Shape) time.Duration { return 0 }

func TestProfileFaultsTogether(t *testing.T) {
	load := func(text string) error {
		path := filepath.Join(t.TempDir(), "profile.json")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := LoadProfile(path)
		return err
	}
	err := load(`{"name": 5, "model_path": "m", "kv_tokens": 1.5, "max_running": 1, "max_running": 2, "chunked_prefill_size": null,
		"model": {"kind": "linear", "decode_base_ms": "6", "spline": 1}, "egress": 2, "calibrated": "x"}`)
	for _, want := range []string{
		"profile: name:", "profile: kv_tokens:", "profile: max_running is given 2 times", "profile: chunked_prefill_size is null",
		"profile: context_length is missing", "profile: known_error is missing", "profile: unknown fields egress",
		"linear model: decode_base_ms:", "linear model: prefill_base_ms is missing", "linear model: unknown fields spline",
	} {
		require.ErrorContains(t, err, want)
	}
	valid, merr := json.Marshal(H100Llama8B())
	require.NoError(t, merr)
	edit := func(old, new string) string { return strings.Replace(string(valid), old, new, 1) }
	for want, text := range map[string]string{
		`kind is "cubic"`:       edit(`"linear"`, `"cubic"`),
		"negative duration":     edit(`"egress_ms":`, `"egress_ms":-`),
		"KVTokens is 0":         edit(`"kv_tokens":410620`, `"kv_tokens":0`),
		"want a finite number":  edit(`"decode_base_ms":`, `"decode_base_ms":-`),
		"unexpected end":        string(valid[:100]),
		"want a JSON object":    `[]`,
		"no such file":          "",
		"noise: sigma is 3":     edit(`"model":{`, `"model":{"kind":"noise","sigma":3,"seed":1,"model":{"kind":"replay","ms":[],"else":{`) + "",
		"profile: unknown":      edit(`"name":`, `"nome":1,"name":`),
		"grid model: decode is": edit(`"kind":"linear"`, `"kind":"grid"`),
	} {
		switch want {
		case "no such file":
			_, err := LoadProfile(filepath.Join(t.TempDir(), "absent.json"))
			require.ErrorContains(t, err, want)
			continue
		case "noise: sigma is 3":
			p := H100Llama8B()
			p.Model = Noise{Model: p.Model, Sigma: 3}
			b, err := json.Marshal(p)
			require.NoError(t, err)
			text = string(b)
		}
		require.ErrorContains(t, load(text), want)
	}
}

func TestProfileByName(t *testing.T) {
	p, err := ProfileByName("h100-llama-3.1-8b")
	require.NoError(t, err)
	require.Equal(t, H100Llama8B(), p)
	_, err = ProfileByName("tpu")
	require.ErrorContains(t, err, "h100-llama-3.1-8b")
}

// A profile that was not calibrated says so wherever a summary shows it.
func TestUncalibratedProfilesSaySo(t *testing.T) {
	n := 0
	for _, p := range Profiles() {
		require.NoError(t, p.validate())
		if p.Name == "h100-llama-3.1-8b" {
			continue
		}
		n++
		require.True(t, strings.HasSuffix(p.Name, "-uncalibrated"), p.Name)
		require.Contains(t, p.Calibrated, "not calibrated, derived from")
		require.Contains(t, p.KnownError, "not measured")
	}
	require.GreaterOrEqual(t, n, 8)
}
