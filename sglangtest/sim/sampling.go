package sim

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// samplingFields are the sampling parameters of 0.5.23, in the order in which its error message lists them.
var samplingFields = strings.Fields(`max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty
	presence_penalty repetition_penalty min_new_tokens n json_schema regex ebnf structural_tag ignore_eos skip_special_tokens
	spaces_between_special_tokens no_stop_trim stream_interval logit_bias sampling_seed custom_params beam_width watermark choice`)

// parseSampling reads sampling_params. 0.5.23 checks names and exact types first; before it an unknown name or a value of
// a wrong type raises where nobody catches it.
func (s *Server) parseSampling(raw json.RawMessage, d *demand) error {
	d.n = 1
	fallback := 128
	d.maxNew = &fallback
	if isNull(raw) {
		return nil
	}
	strict := s.opts.release.patch >= 23
	wrongType := func(v json.RawMessage, want, name string) error {
		if strict {
			return schemaError(fmt.Sprintf("invalid type: %s, expected %s for `%s`", v, want, name))
		}
		return raised("TypeError: " + name)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return inputError("The simulation takes one sampling_params object for all prompts.")
	}
	numbers := map[string]*float64{}
	for k, v := range fields {
		if !slices.Contains(samplingFields, k) || s.opts.release.patch < 21 && k == "beam_width" || !strict && (k == "watermark" || k == "choice") {
			if !strict {
				return raised("TypeError: unexpected keyword argument " + k)
			}
			return schemaError(fmt.Sprintf("unknown field `%s`, expected one of `%s`", k, strings.Join(samplingFields, "`, `")))
		}
		v = trimJSON(v)
		null := isNull(v)
		switch k {
		case "max_new_tokens", "min_new_tokens", "n", "top_k", "stream_interval":
			if null {
				if k == "max_new_tokens" {
					d.maxNew = nil
				}
				continue
			}
			i, err := strconv.Atoi(string(v))
			if err != nil && !strict { // a float passes for an integer
				var f float64
				if err = json.Unmarshal(v, &f); err == nil && math.Abs(f) < 1e9 {
					i = int(f)
				}
			}
			if err != nil {
				return wrongType(v, "an integer", k)
			}
			f := float64(i)
			numbers[k] = &f
			switch k {
			case "max_new_tokens":
				d.maxNew = &i
			case "min_new_tokens":
				d.minNew = i
			case "n":
				d.n = i
			case "stream_interval":
				d.interval = max(1, i)
			}
		case "ignore_eos", "no_stop_trim":
			to := &d.ignoreEOS
			if k == "no_stop_trim" {
				to = &d.noTrim
			}
			if !null && json.Unmarshal(v, to) != nil {
				return wrongType(v, "a boolean", k)
			}
		case "temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty":
			if null {
				continue
			}
			var f float64
			if json.Unmarshal(v, &f) != nil {
				return wrongType(v, "a number", k)
			}
			numbers[k] = &f
		case "stop":
			if !parseStops(v, &d.stops) {
				return wrongType(v, "a string or a list of strings", k)
			}
		case "stop_token_ids":
			if !null && json.Unmarshal(v, &d.stopIDs) != nil {
				return wrongType(v, "a list of integers", k)
			}
		}
	}
	return checkRanges(numbers, func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) })
}

// parseStops reads a string or a list of strings.
func parseStops(raw json.RawMessage, to *[]string) bool {
	var one string
	switch {
	case isNull(raw):
	case json.Unmarshal(raw, &one) == nil:
		*to = []string{one}
	default:
		return json.Unmarshal(raw, to) == nil
	}
	return true
}
