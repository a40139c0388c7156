package results

import (
	"bufio"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// A column is one column of requests.csv.
type column struct {
	name  string
	value func(r *load.Result) string
}

// csvColumns are the columns of requests.csv but the last two, the number of chunks and by what the run was simulated.
var csvColumns = []column{
	{"id", func(r *load.Result) string { return strconv.Itoa(r.ID) }},
	{"conversation", func(r *load.Result) string { return r.Conversation }},
	{"turn", func(r *load.Result) string { return strconv.Itoa(r.Turn) }},
	{"arrival_ns", func(r *load.Result) string { return ns(r.Arrival) }},
	{"due_ns", func(r *load.Result) string { return ns(r.Due) }},
	{"released_ns", func(r *load.Result) string { return ns(r.Released) }},
	{"send_ns", func(r *load.Result) string { return ns(r.Send) }},
	{"first_event_ns", func(r *load.Result) string { return emptyIfZero(int64(r.FirstEvent)) }},
	{"first_token_ns", func(r *load.Result) string { return emptyIfZero(int64(r.FirstToken)) }},
	{"first_tokens", func(r *load.Result) string { return emptyIfZero(int64(r.FirstTokens)) }},
	{"last_token_ns", func(r *load.Result) string { return emptyIfZero(int64(r.LastToken)) }},
	{"completion_ns", func(r *load.Result) string { return ns(r.Completion) }},
	{"queue_time_ns", func(r *load.Result) string { return ns(r.QueueTime()) }},
	{"server_latency_ns", func(r *load.Result) string { return ns(r.ServerLatency()) }},
	{"total_latency_ns", func(r *load.Result) string { return ns(r.TotalLatency()) }},
	{"sent", func(r *load.Result) string { return strconv.FormatBool(r.Sent) }},
	{"connect_ns", func(r *load.Result) string { return cellIf(r.Sent || r.Connect != 0, ns(r.Connect)) }},
	{"reused", func(r *load.Result) string { return cellIf(r.Sent || r.Reused, strconv.FormatBool(r.Reused)) }},
	{"idle_ns", func(r *load.Result) string { return cellIf(r.Sent || r.Idle != 0, ns(r.Idle)) }},
	{"held_open", func(r *load.Result) string { return strconv.FormatBool(r.HeldOpen) }},
	{"overhead_ns", func(r *load.Result) string { return ns(r.Overhead) }},
	{"api", func(r *load.Result) string { return string(r.API) }},
	{"streamed", func(r *load.Result) string { return strconv.FormatBool(r.Streamed) }},
	{"outcome", func(r *load.Result) string { return string(r.Outcome) }},
	{"status", func(r *load.Result) string { return emptyIfZero(int64(r.Status)) }},
	{"message", func(r *load.Result) string { return r.Message }},
	{"input_len", func(r *load.Result) string { return strconv.Itoa(r.InputLen) }},
	{"output_len", func(r *load.Result) string { return strconv.Itoa(r.OutputLen) }},
	{"prompt_tokens", func(r *load.Result) string { return emptyIfZero(int64(r.PromptTokens)) }},
	{"output_tokens", func(r *load.Result) string { return strconv.Itoa(r.OutputTokens) }},
	{"cached_tokens", func(r *load.Result) string { return reported(r.CachedTokens) }},
	{"cached_device", func(r *load.Result) string { return cellIf(r.CachedTiers.Reported, strconv.Itoa(r.CachedTiers.Device)) }},
	{"cached_host", func(r *load.Result) string { return cellIf(r.CachedTiers.Reported, strconv.Itoa(r.CachedTiers.Host)) }},
	{"cached_storage", func(r *load.Result) string {
		return cellIf(r.CachedTiers.Reported, strconv.Itoa(r.CachedTiers.Storage))
	}},
	{"retractions", func(r *load.Result) string { return reported(r.Retractions) }},
	{"finish_reason", func(r *load.Result) string { return r.FinishReason }},
	{"worker", func(r *load.Result) string { return r.Worker }},
	{"routed_ns", func(r *load.Result) string { return cellIf(r.Route != nil, ns(r.Routed)) }},
	{"routed_by", func(r *load.Result) string { return routeOf(r).By }},
	{"route_reason", func(r *load.Result) string { return routeOf(r).Reason }},
	{"attempt", func(r *load.Result) string { return emptyIfZero(int64(routeOf(r).Attempt)) }},
}

func ns(d time.Duration) string { return strconv.FormatInt(int64(d), 10) }

// cellIf leaves a cell empty where a value is not known.
func cellIf(known bool, value string) string {
	if !known {
		return ""
	}
	return value
}

// emptyIfZero leaves a cell empty where 0 stands for "none": a reader would average it.
func emptyIfZero(v int64) string {
	if v == 0 {
		return ""
	}
	return strconv.FormatInt(v, 10)
}

// WriteCSV writes one row per result, in the order of [Run.Requests], as RFC 4180 has it (lines end in CRLF).
// The header names the unit of each column as the keys of requests.jsonl do. Rows hold what is one value per
// request, the three latencies and the number of chunks; texts and the chunks themselves are left out. A
// cell is empty where a value is not known, as where it is null in requests.jsonl. The last column, simulated_by,
// names the profiles of a simulated run and is empty otherwise: a CSV file gets apart from the folder that would say so.
func (r *Run) WriteCSV(w io.Writer) error {
	return writeCSV(w, r.Requests(), r.Meta.Simulated, r.ChunksStored)
}

func writeCSV(w io.Writer, results iter.Seq2[load.Result, error], simulated []metrics.Simulation, chunks bool) error {
	profiles := make([]string, len(simulated))
	for i, s := range simulated {
		profiles[i] = s.Profile
	}
	simulatedBy := strings.Join(profiles, "; ")

	out := bufio.NewWriterSize(w, 64<<10)
	var row []byte
	for _, c := range csvColumns {
		row = append(appendCell(row, c.name), ',')
	}
	row = append(row, "chunks,simulated_by\r\n"...)
	if _, err := out.Write(row); err != nil {
		return fmt.Errorf("results: writing CSV: %w", err)
	}
	for res, err := range results {
		if err != nil {
			return err
		}
		row = row[:0]
		for _, c := range csvColumns {
			row = append(appendCell(row, c.value(&res)), ',')
		}
		row = append(appendCell(row, cellIf(chunks, strconv.Itoa(res.Chunks.Len()))), ',')
		row = append(appendCell(row, simulatedBy), "\r\n"...)
		if _, err := out.Write(row); err != nil {
			return fmt.Errorf("results: writing CSV: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("results: writing CSV: %w", err)
	}
	return nil
}

// appendCell quotes where RFC 4180 demands it. The standard library's writer, told to end lines in CRLF,
// also changes the line ends inside cells.
func appendCell(b []byte, s string) []byte {
	if !strings.ContainsAny(s, "\",\r\n") {
		return append(b, s...)
	}
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' {
			b = append(b, '"')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

// reported formats a count; what was not reported is an empty cell.
func reported(n int) string {
	if n == load.NotReported {
		return ""
	}
	return strconv.Itoa(n)
}
