package server

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A Batch is what a scheduler logs of a batch: of each prefill, and of one decode step in --decode-log-interval (40). The
// line is written when the batch's result has been processed, which with overlap is after the next batch was
// planned: its counts of tokens and waiting requests are those of that moment.
type Batch struct {
	Prefill bool      // else decode
	Rank    string    // such as "DP1 TP0"; empty for a single scheduler
	Logged  time.Time // by the server's clock, taken to be in the local time zone; zero if the line has none
	Exact   bool      // Logged has milliseconds (SGLANG_LOG_MS=1), else whole seconds
	Forward int       // number of the forward step; 0 if not told (SGLANG_LOG_FORWARD_ITERS)
	// Values holds the numbers of the line by their keys, made into words: "#running-req" is running_req, "gen throughput
	// (token/s)" is gen_throughput, and "cuda graph: True" is 1. Which there are depends on version and model: hybrid
	// models have full_token_usage and swa_token_usage for token_usage.
	Values map[string]float64
}

var batchLine = regexp.MustCompile(`^(?:\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d{3})?((?: [A-Z]+\d+)*)\] )?(Prefill|Decode) batch(?: \[(\d+)\])?(?:, (.*))?$`)

// ParseBatch reads a line of a server's log. It is false for a line that does not tell of a batch.
// The format is that of managers/scheduler_components/metrics_reporter.py, 0.5.15 to 0.5.23; keys may come in any order.
func ParseBatch(line string) (Batch, bool) {
	if !strings.Contains(line, " batch") { // most lines
		return Batch{}, false
	}
	m := batchLine.FindStringSubmatch(strings.TrimRight(line, "\r\n "))
	if m == nil {
		return Batch{}, false
	}
	b := Batch{Prefill: m[4] == "Prefill", Rank: strings.TrimSpace(m[3]), Exact: m[2] != "", Values: map[string]float64{}}
	if at, err := time.ParseInLocation("2006-01-02 15:04:05", m[1]+m[2], time.Local); err == nil {
		b.Logged = at
	}
	b.Forward, _ = strconv.Atoi(m[5]) // digits, or nothing
	for part := range strings.SplitSeq(m[6], ", ") {
		key, text, ok := strings.Cut(part, ": ")
		if !ok {
			continue
		}
		switch v, err := strconv.ParseFloat(text, 64); {
		case err == nil:
			b.Values[words(key)] = v
		case text == "True":
			b.Values[words(key)] = 1
		case text == "False":
			b.Values[words(key)] = 0
		}
	}
	return b, len(b.Values) > 0
}

// words makes a name of a key: without its unit, its letters and digits joined by underscores.
func words(key string) string {
	if i := strings.Index(key, " ("); i >= 0 {
		key = key[:i]
	}
	parts := strings.FieldsFunc(strings.ToLower(key), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	return strings.Join(parts, "_")
}

// Sample makes a sample of the batch, which cost the server nothing, for the server of the given name: "server-0/log" is its source, with the rank after
// it if there is one, and its values are named like "decode_running_req". read is when the line was read, at is the same
// moment as offset from the run's start. Where the line has milliseconds, the sample tells its age.
func (b Batch) Sample(server string, read time.Time, at time.Duration) metrics.Sample {
	s := metrics.Sample{At: at, Source: server + "/log", Values: make(map[string]float64, len(b.Values)+1)}
	if b.Rank != "" {
		s.Source += "/" + strings.ReplaceAll(b.Rank, " ", "-")
	}
	kind := "decode_"
	if b.Prefill {
		kind = "prefill_"
	}
	for name, v := range b.Values {
		s.Values[kind+name] = v
	}
	if b.Exact {
		s.Values[metrics.SnapshotAge] = max(0, float64(read.Sub(b.Logged))/1e6)
	}
	return s
}

// FollowBatches hands emit a sample for each batch that the server tells of in its log, until ctx is done or the log ends. offset
// gives a moment on the run's clock; lines from before the run are passed over. Lines that were missed because emit was slow are a
// failed sample. As a background task of a run:
//
//	load.WithBackground(func(ctx context.Context, clock load.Clock) error {
//		return node.FollowBatches(ctx, clock.Offset, collector.AddSample)
//	})
func (s *Server) FollowBatches(ctx context.Context, offset func(time.Time) time.Duration, emit func(metrics.Sample)) error {
	log := s.Log()
	if log == nil {
		return s.wrap("follow batches", errors.New("its log cannot be read: it is not a process that was launched from here"))
	}
	next := -1 // number of the line that comes next
	for line := range log.Follow(ctx) {
		missed := line.N - next
		if next < 0 {
			missed = 0
		}
		next = line.N + 1
		at := offset(line.Time)
		if at < 0 {
			continue
		}
		if missed > 0 {
			emit(metrics.Sample{At: at, Source: s.name + "/log", Err: fmt.Sprintf("%d lines of the log were missed", missed)})
		}
		if b, ok := ParseBatch(line.Text); ok {
			emit(b.Sample(s.name, line.Time, at))
		}
	}
	return nil
}
