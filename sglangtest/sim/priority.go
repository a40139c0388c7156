package sim

import (
	"maps"
	"slices"
	"strconv"
)

// priorityLabel returns how the front process labels a request of that priority (tokenizer_manager.py, collect_metrics).
func (s *settings) priorityLabel(given lax) string {
	switch {
	case given.set:
		return strconv.FormatInt(int64(given.v), 10)
	case s.defaultPriority != nil:
		return strconv.Itoa(*s.defaultPriority)
	}
	return ""
}

// priorityText is how the scheduler labels a priority.
func priorityText(p int) string {
	switch p {
	case extremePriority:
		return "9223372036854775807" // sys.maxsize
	case -extremePriority:
		return "-9223372036854775808"
	}
	return strconv.Itoa(p)
}

// queueCount sets a gauge of requests and, with priorities, the gauges of all priorities that were met so far
// (metrics_collector.py, _log_gauge_queue_count).
func (m *meter) queueCount(name string, n int, by map[int]int) {
	m.set(name, float64(n))
	if m.priorities == nil {
		return
	}
	told := map[string]int{}
	for p, k := range by {
		told[boundedLabel(m.priorities, priorityText(p))] += k
	}
	for _, p := range slices.Sorted(maps.Keys(m.priorities)) {
		m.at(name, "priority", p).value = float64(told[p])
	}
}

// mostPriorities bounds those that are told apart, since a client can make up any number. (SGLang's are not bounded.)
const mostPriorities = 1000

// boundedLabel adds a priority to those that are told apart, and returns what it is called among them.
func boundedLabel(known map[string]bool, text string) string {
	if !known[text] && len(known) >= mostPriorities {
		text = "other"
	}
	known[text] = true
	return text
}

// byPriority counts requests.
func byPriority(requests []*Request) map[int]int {
	by := map[int]int{}
	for _, r := range requests {
		by[r.Priority]++
	}
	return by
}
