package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// profileFields lists the fields of a profile's JSON form with where they go.
func profileFields(p *Profile) []field {
	return []field{
		{"name", &p.Name, true}, {"model_path", &p.ModelPath, true}, {"gpu", &p.GPU, false},
		{"kv_tokens", &p.KVTokens, true}, {"context_length", &p.ContextLength, true}, {"max_running", &p.MaxRunning, true},
		{"chunked_prefill_size", &p.ChunkedSize, true}, {"model", modelJSON{&p.Model}, true},
		{"launch_prefill_ms", (*msJSON)(&p.LaunchPrefill), false}, {"ingest_ms", (*msJSON)(&p.Ingest), false},
		{"ingest_token_ms", (*msJSON)(&p.IngestToken), false}, {"egress_ms", (*msJSON)(&p.Egress), false},
		{"egress_event_ms", (*msJSON)(&p.EgressEvent), false}, {"egress_stream_ms", (*msJSON)(&p.EgressStream), false},
		{"calibrated", &p.Calibrated, true}, {"known_error", &p.KnownError, true},
		{"validation", &p.Validation, false},
	}
}

// MarshalJSON writes the profile as an object of name, model_path, gpu, kv_tokens, context_length, max_running,
// chunked_prefill_size, the delays in milliseconds (launch_prefill_ms, ingest_ms, ingest_token_ms, egress_ms,
// egress_event_ms, egress_stream_ms), calibrated, known_error, validation (left out if there is none), and model: an object whose "kind" is "linear", "grid",
// "replay", "sampled" or "noise". It fails for a step model of another package.
func (p Profile) MarshalJSON() ([]byte, error) { return encodeFields(profileFields(&p)) }

// UnmarshalJSON reads what [Profile.MarshalJSON] writes. Unknown, missing and wrong fields and values out of range are
// errors, all of which are reported together.
func (p *Profile) UnmarshalJSON(b []byte) error {
	var read Profile
	if err := decodeFields("profile", b, profileFields(&read)); err != nil {
		return err
	}
	if err := read.validate(); err != nil {
		return err
	}
	*p = read
	return nil
}

// LoadProfile reads a profile from a JSON file.
func LoadProfile(path string) (Profile, error) {
	var p Profile
	b, err := os.ReadFile(path)
	if err != nil {
		return p, fmt.Errorf("sim: read profile: %w", err)
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return Profile{}, fmt.Errorf("sim: profile %s: %w", path, err)
	}
	return p, nil
}

// modelJSON gives a StepModel its JSON form, an object with its kind.
type modelJSON struct{ to *StepModel }

// modelFields returns the kind of a model and its fields, which are read back into the value that m points to.
func modelFields(m any) (kind string, f []field) {
	switch m := m.(type) {
	case *Grid:
		return "grid", []field{{"decode", &m.Decode, true}, {"prefill", &m.Prefill, true}}
	case *Replay:
		return "replay", []field{{"ms", &m.Times, true}, {"else", modelJSON{&m.Else}, true}}
	case *Sampled:
		return "sampled", []field{{"steps", &m.steps, true}, {"seed", &m.seed, true}, {"else", modelJSON{&m.other}, true}}
	case *Noise:
		return "noise", []field{{"model", modelJSON{&m.Model}, true}, {"sigma", &m.Sigma, false}, {"residuals", &m.Residuals, false}, {"seed", &m.Seed, true}}
	case *Linear:
		return "linear", []field{
			{"decode_base_ms", &m.DecodeBase, true}, {"decode_request_ms", &m.DecodeRequest, true}, {"decode_context_ms", &m.DecodeContext, true},
			{"prefill_base_ms", &m.PrefillBase, true}, {"prefill_token_ms", &m.PrefillToken, true}, {"prefill_pair_ms", &m.PrefillPair, true},
			{"prefill_context_ms", &m.PrefillContext, true}, {"prefill_knee_tokens", &m.PrefillKnee, false},
			{"decode_graphs", &m.DecodeGraphs, false}, {"decode_eager_ms", &m.DecodeEager, false},
			{"prefill_graphs", &m.PrefillGraphs, false}, {"prefill_eager_ms", &m.PrefillEager, false}}
	}
	return "", nil
}

func (m modelJSON) MarshalJSON() ([]byte, error) {
	var p any
	switch v := (*m.to).(type) {
	case Linear:
		p = &v
	case Grid:
		p = &v
	case Replay:
		p = &v
	case Sampled:
		p = &v
	case Noise:
		p = &v
	default:
		return nil, fmt.Errorf("sim: a step model of type %T has no JSON form", v)
	}
	kind, f := modelFields(p)
	return encodeFields(append([]field{{"kind", &kind, true}}, f...))
}

func (m modelJSON) UnmarshalJSON(b []byte) error {
	var tag struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(b, &tag); err != nil {
		return fmt.Errorf("sim: step model: %w", err)
	}
	read := func(p any) error {
		_, f := modelFields(p)
		return decodeFields(tag.Kind+" model", b, append([]field{{"kind", &tag.Kind, true}}, f...))
	}
	var err error
	switch tag.Kind {
	case "linear":
		var v Linear
		err = read(&v)
		*m.to = v
	case "grid":
		var v Grid
		err = read(&v)
		*m.to = v
	case "replay":
		var v Replay
		err = read(&v)
		*m.to = v
	case "noise":
		var v Noise
		err = read(&v)
		*m.to = v
	case "sampled":
		var v Sampled
		if err = read(&v); err == nil {
			v, err = NewSampled(v.steps, v.seed, v.other)
		}
		*m.to = v
	default:
		return fmt.Errorf(`sim: the step model's kind is %q: want "linear", "grid", "replay", "sampled" or "noise"`, tag.Kind)
	}
	return err
}

// msJSON is a duration as milliseconds.
type msJSON time.Duration

func (d msJSON) MarshalJSON() ([]byte, error) { return json.Marshal(inMilliseconds(time.Duration(d))) }

func (d *msJSON) UnmarshalJSON(b []byte) error {
	var v float64
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*d = msJSON(milliseconds(v))
	return nil
}

// A field is one field of a JSON object. Its order in a list is its order in the text.
type field struct {
	name     string
	to       any // a pointer
	required bool
}

// encodeFields writes an object. Fields that are not required are left out if empty.
func encodeFields(fields []field) ([]byte, error) {
	out := []byte{'{'}
	for _, f := range fields {
		v, err := json.Marshal(f.to)
		if err != nil {
			return nil, err
		}
		if s := string(v); !f.required && (s == "0" || s == `""` || s == "null" || s == "[]") {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), f.name...), '"', ':')
		out = append(out, v...)
	}
	return append(out, '}'), nil
}

// decodeFields reads an object and reports all that is unknown, missing, given twice or of a wrong type.
func decodeFields(what string, b []byte, fields []field) error {
	given, err := members(b)
	if err != nil {
		return fmt.Errorf("sim: %s: %w", what, err)
	}
	var errs []error
	for _, f := range fields {
		values := given[f.name]
		delete(given, f.name)
		if f.required && len(values) == 0 {
			errs = append(errs, fmt.Errorf("sim: %s: %s is missing", what, f.name))
		}
		if len(values) > 1 {
			errs = append(errs, fmt.Errorf("sim: %s: %s is given %d times", what, f.name, len(values)))
		}
		for _, v := range values {
			if string(v) == "null" {
				errs = append(errs, fmt.Errorf("sim: %s: %s is null", what, f.name))
				continue
			}
			d := json.NewDecoder(bytes.NewReader(v))
			d.DisallowUnknownFields()
			to := f.to
			if m, ok := to.(modelJSON); ok {
				to = &m
			}
			if err := d.Decode(to); err != nil {
				if _, nested := f.to.(modelJSON); nested {
					errs = append(errs, err)
				} else {
					errs = append(errs, fmt.Errorf("sim: %s: %s: %w", what, f.name, err))
				}
			}
		}
	}
	if unknown := slices.Sorted(maps.Keys(given)); len(unknown) > 0 {
		names := make([]string, len(fields))
		for i, f := range fields {
			names[i] = f.name
		}
		errs = append(errs, fmt.Errorf("sim: %s: unknown fields %s: want some of %s", what, strings.Join(unknown, ", "), strings.Join(names, ", ")))
	}
	return errors.Join(errs...)
}

// members splits an object into its members and keeps those that a name is given twice for.
func members(b []byte) (map[string][]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(fmt.Errorf("want a JSON object"), err)
	}
	out := map[string][]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		name := t.(string)
		out[name] = append(out[name], v)
	}
	_, err := d.Token()
	return out, err
}
