package server

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A Series is one value of a Prometheus page.
type Series struct {
	Name   string            // such as "sglang:num_running_reqs"; of a histogram with _bucket, _sum or _count at its end
	Labels map[string]string // nil if there is none
	Value  float64
}

// parseMetrics reads all series of a page in Prometheus's text format 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats). Comments, types and time stamps are passed over.
func parseMetrics(page []byte) ([]Series, error) {
	var all []Series
	n := 0
	for line := range bytes.Lines(page) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		s, err := parseSeries(string(line))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, errors.New("the page has no series")
	}
	return all, nil
}

func parseSeries(line string) (Series, error) {
	end := strings.IndexAny(line, "{ \t")
	if end <= 0 {
		return Series{}, fmt.Errorf("%q: want a name, labels and a value", line)
	}
	s := Series{Name: line[:end]}
	rest := line[end:]
	if rest[0] == '{' {
		var err error
		if s.Labels, rest, err = parseLabels(rest[1:]); err != nil {
			return Series{}, fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	fields := strings.Fields(rest)
	if len(fields) != 1 && len(fields) != 2 { // the second is a time stamp
		return Series{}, fmt.Errorf("%s: %q: want a value", s.Name, rest)
	}
	var err error
	s.Value, err = strconv.ParseFloat(fields[0], 64) // takes +Inf and NaN too
	return s, err
}

// parseLabels reads the labels after "{" and returns what follows their "}".
func parseLabels(text string) (labels map[string]string, rest string, err error) {
	labels = map[string]string{}
	for {
		text = strings.TrimLeft(text, " \t,")
		if rest, ok := strings.CutPrefix(text, "}"); ok {
			return labels, rest, nil
		}
		name, after, ok := strings.Cut(text, `="`)
		if !ok {
			return nil, "", fmt.Errorf("labels end at %q", text)
		}
		var value strings.Builder
		i := 0
		for ; i < len(after) && after[i] != '"'; i++ {
			if after[i] != '\\' || i+1 == len(after) {
				value.WriteByte(after[i])
				continue
			}
			i++
			if after[i] == 'n' {
				value.WriteByte('\n')
			} else { // \\ and \"
				value.WriteByte(after[i])
			}
		}
		if i == len(after) {
			return nil, "", fmt.Errorf("label %s does not end", name)
		}
		labels[strings.TrimSpace(name)] = value.String()
		text = after[i+1:]
	}
}

// seriesPrefix begins the names of SGLang's series; collectors and gateways that rename them write underscorePrefix.
const (
	seriesPrefix     = "sglang:"
	underscorePrefix = "sglang_"
)

// scanMetrics reads the wanted series of a page and nothing else, under SGLang's own names whether the page has these or
// sglang_ in front, but then not both. A line that it does not want costs the search for its end. It may change the page.
func scanMetrics(page []byte) (map[string]float64, error) {
	values := make(map[string]float64, len(wantedSeries))
	counts := make(map[string]float64) // of means
	all, prefix := page, []byte(seriesPrefix)
	if !bytes.HasPrefix(page, prefix) && !bytes.Contains(page, []byte("\n"+seriesPrefix)) {
		prefix = []byte(underscorePrefix)
	}
	for len(page) > 0 {
		line := page
		if end := bytes.IndexByte(page, '\n'); end >= 0 {
			line, page = page[:end], page[end+1:]
		} else {
			page = nil
		}
		if !bytes.HasPrefix(line, prefix) {
			continue
		}
		end := bytes.IndexAny(line, "{ ")
		if end < 0 {
			continue
		}
		line[len(seriesPrefix)-1] = ':'
		how := wantedSeries[string(line[:end])]
		if how == 0 {
			continue
		}
		labels, rest := line[end:end], line[end:]
		if closing := bytes.LastIndexByte(line, '}'); closing >= 0 { // neither value nor time stamp has one
			labels, rest = line[end:closing], line[closing+1:]
		}
		if how == sumCount && ofOnePriority(labels) {
			continue
		}
		rest = bytes.TrimSpace(rest)
		if space := bytes.IndexByte(rest, ' '); space >= 0 {
			rest = rest[:space]
		}
		v, err := strconv.ParseFloat(string(rest), 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		name := string(line[:end])
		values[name] += v
		if how == mean {
			counts[name]++
		}
	}
	for name, n := range counts {
		values[name] /= n
	}
	maps.DeleteFunc(values, func(_ string, v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) }) // not told; JSON has no word for it
	if len(values) == 0 {
		return nil, noneWanted(all)
	}
	return values, nil
}

// namesShown is how many of a page's names an error shows.
const namesShown = 5

// noneWanted says which names were wanted and which the page has instead.
func noneWanted(page []byte) error {
	var names []string
	for line := range bytes.Lines(page) {
		line = bytes.TrimSpace(line)
		if end := bytes.IndexAny(line, "{ "); end > 0 && line[0] != '#' && !slices.Contains(names, string(line[:end])) {
			if names = append(names, string(line[:end])); len(names) == namesShown {
				break
			}
		}
	}
	found := "it has no series at all"
	if len(names) > 0 {
		found = "its first are " + strings.Join(names, ", ")
	}
	return fmt.Errorf("the page has none of the wanted series, such as sglang:num_running_reqs, sglang:token_usage and sglang:num_used_tokens (or with sglang_ in front); %s", found)
}

// ofOnePriority reports whether the series is that of one priority and not the total, whose label is empty.
func ofOnePriority(labels []byte) bool {
	const label = `priority="`
	i := bytes.Index(labels, []byte(label))
	return i > 0 && (labels[i-1] == '{' || labels[i-1] == ',') && i+len(label) < len(labels) && labels[i+len(label)] != '"'
}
