package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// wireResult is a result as it stands in requests.jsonl. Members that are never null are pointers, so that their absence is
// noticed.
type wireResult struct {
	ID             *int              `json:"id"`
	Conversation   string            `json:"conversation"`
	Turn           int               `json:"turn"`
	Arrival        *time.Duration    `json:"arrival_ns"`
	Due            *time.Duration    `json:"due_ns"`
	Released       *time.Duration    `json:"released_ns"`
	Send           *time.Duration    `json:"send_ns"`
	FirstEvent     time.Duration     `json:"first_event_ns"`
	FirstToken     time.Duration     `json:"first_token_ns"`
	FirstTokens    int               `json:"first_tokens"`
	LastToken      time.Duration     `json:"last_token_ns"`
	Completion     *time.Duration    `json:"completion_ns"`
	Sent           *bool             `json:"sent"`
	Connect        time.Duration     `json:"connect_ns"`
	Reused         bool              `json:"reused"`
	Idle           time.Duration     `json:"idle_ns"`
	HeldOpen       bool              `json:"held_open"`
	Overhead       time.Duration     `json:"overhead_ns"`
	API            string            `json:"api"`
	Streamed       bool              `json:"streamed"`
	Outcome        string            `json:"outcome"`
	Status         int               `json:"status"`
	Message        string            `json:"message"`
	InputLen       *int              `json:"input_len"`
	OutputLen      *int              `json:"output_len"`
	PromptTokens   int               `json:"prompt_tokens"`
	OutputTokens   *int              `json:"output_tokens"`
	CachedTokens   *int              `json:"cached_tokens"`
	CachedDevice   *int              `json:"cached_device"`
	CachedHost     int               `json:"cached_host"`
	CachedStorage  int               `json:"cached_storage"`
	Retractions    *int              `json:"retractions"`
	FinishReason   string            `json:"finish_reason"`
	Worker         string            `json:"worker"`
	Routed         time.Duration     `json:"routed_ns"`
	RoutedBy       string            `json:"routed_by"`
	RouteReason    string            `json:"route_reason"`
	Attempt        *int              `json:"attempt"`
	SimulatedBy    string            `json:"simulated_by"`
	ChunkGaps      ints              `json:"chunk_gap_ns"`
	ChunkTokens    ints              `json:"chunk_tokens"`
	ChunkTextBytes ints              `json:"chunk_text_bytes"`
	Text           string            `json:"text"`
	NotUTF8        map[string][]byte `json:"not_utf8"`
}

func decodeResult(line []byte) (load.Result, error) {
	var w wireResult
	if err := json.Unmarshal(line, &w); err != nil {
		return load.Result{}, err
	}
	if w.ID == nil || w.Arrival == nil || w.Due == nil || w.Released == nil || w.Send == nil || w.Completion == nil ||
		w.Sent == nil || w.InputLen == nil || w.OutputLen == nil || w.OutputTokens == nil {
		return load.Result{}, errors.New("not a result: one of id, arrival_ns, due_ns, released_ns, send_ns, completion_ns, " +
			"sent, input_len, output_len and output_tokens is missing")
	}
	r := load.Result{
		ID:           *w.ID,
		Conversation: w.Conversation,
		Turn:         w.Turn,
		Arrival:      *w.Arrival,
		Due:          *w.Due,
		Released:     *w.Released,
		Send:         *w.Send,
		FirstEvent:   w.FirstEvent,
		FirstToken:   w.FirstToken,
		FirstTokens:  w.FirstTokens,
		LastToken:    w.LastToken,
		Completion:   *w.Completion,
		Sent:         *w.Sent,
		Connect:      w.Connect,
		Reused:       w.Reused,
		Idle:         w.Idle,
		HeldOpen:     w.HeldOpen,
		Overhead:     w.Overhead,
		API:          load.API(w.API),
		Streamed:     w.Streamed,
		Outcome:      load.Outcome(w.Outcome),
		Status:       w.Status,
		Message:      w.Message,
		InputLen:     *w.InputLen,
		OutputLen:    *w.OutputLen,
		PromptTokens: w.PromptTokens,
		OutputTokens: *w.OutputTokens,
		CachedTokens: reportedOr(w.CachedTokens),
		Retractions:  reportedOr(w.Retractions),
		FinishReason: w.FinishReason,
		Worker:       w.Worker,
		SimulatedBy:  w.SimulatedBy,
		Text:         w.Text,
	}
	if w.CachedDevice != nil {
		r.CachedTiers = load.CachedTiers{Reported: true, Device: *w.CachedDevice, Host: w.CachedHost, Storage: w.CachedStorage}
	}
	if w.Attempt != nil {
		r.Routed, r.Route = w.Routed, &load.RouteNote{By: w.RoutedBy, Reason: w.RouteReason, Attempt: *w.Attempt}
	}
	for key, raw := range w.NotUTF8 {
		i := slices.IndexFunc(textFields, func(f textField) bool { return f.key == key })
		if i < 0 {
			return load.Result{}, fmt.Errorf("not_utf8 has the key %q, which is no text of a result", key)
		}
		textFields[i].set(&r, string(raw))
	}
	var err error
	if r.Chunks, err = w.chunks(); err != nil {
		return load.Result{}, err
	}
	if err := r.Check(); err != nil {
		return load.Result{}, fmt.Errorf("the result contradicts itself: %w", err)
	}
	return r, nil
}

// reportedOr returns a count, or load.NotReported for null.
func reportedOr(n *int) int {
	if n == nil {
		return load.NotReported
	}
	return *n
}

func (w *wireResult) chunks() (load.Chunks, error) {
	var chunks load.Chunks
	n := len(w.ChunkGaps)
	if len(w.ChunkTokens) != n || len(w.ChunkTextBytes) != n {
		return chunks, fmt.Errorf("chunk_gap_ns, chunk_tokens and chunk_text_bytes have %d, %d and %d elements; want as many of each",
			n, len(w.ChunkTokens), len(w.ChunkTextBytes))
	}
	at := *w.Send
	for i, gap := range w.ChunkGaps {
		at += time.Duration(gap)
		chunks.Append(load.Chunk{At: at, Tokens: int(w.ChunkTokens[i]), TextBytes: int(w.ChunkTextBytes[i])}) // checked with the result
	}
	return chunks, nil
}

// ints is an array of integers. Reading its elements here takes a fraction of the time that
// encoding/json takes, and they are nearly all of a line.
type ints []int64

func (v *ints) UnmarshalJSON(data []byte) error {
	text := string(data)
	if text == "null" {
		return nil
	}
	if len(text) < 2 || text[0] != '[' {
		return fmt.Errorf("want an array of integers, not %.20s", text)
	}
	*v = make(ints, 0, 1+strings.Count(text, ","))
	text = strings.TrimSpace(text[1 : len(text)-1])
	for more := text != ""; more; {
		var element string
		element, text, more = strings.Cut(text, ",")
		n, err := strconv.ParseInt(strings.TrimSpace(element), 10, 64)
		if err != nil {
			return err
		}
		*v = append(*v, n)
	}
	return nil
}

// decodeID reads no more of a result than its id.
func decodeID(line []byte) (int, error) {
	var w struct {
		ID *int `json:"id"`
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return 0, err
	}
	if w.ID == nil {
		return 0, errors.New("not a result: id is missing")
	}
	return *w.ID, nil
}

func decodeArrival(line []byte) (Arrival, error) {
	var w struct {
		ID      *int           `json:"id"`
		Arrival *time.Duration `json:"arrival_ns"`

		Priority *int          `json:"priority"`
		Deadline time.Duration `json:"deadline_ns"`
		Tenant   string        `json:"tenant"`
		Session  string        `json:"session"`
		LoRA     string        `json:"lora"`
		Rank     *int          `json:"rank"`
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return Arrival{}, err
	}
	if w.ID == nil || w.Arrival == nil {
		return Arrival{}, errors.New("not an arrival: id or arrival_ns is missing")
	}
	return Arrival{ID: *w.ID, Arrival: *w.Arrival, Priority: w.Priority, Deadline: w.Deadline,
		Tenant: w.Tenant, Session: w.Session, LoRA: w.LoRA, Rank: w.Rank}, nil
}

func decodeSample(line []byte) (metrics.Sample, error) {
	var w wireSample
	if err := json.Unmarshal(line, &w); err != nil {
		return metrics.Sample{}, err
	}
	if w.At == nil {
		return metrics.Sample{}, errors.New("not a sample: at_ns is missing")
	}
	s := metrics.Sample{At: *w.At, Cost: w.Cost, Source: w.Source, Err: orEmpty(w.Err)}
	if w.Values != nil {
		s.Values = make(map[string]float64, len(w.Values))
		for name, v := range w.Values {
			s.Values[name] = float64(v)
		}
	}
	return s, nil
}

func decodeEvent(line []byte) (metrics.Event, error) {
	var w wireEvent
	if err := json.Unmarshal(line, &w); err != nil {
		return metrics.Event{}, err
	}
	if w.At == nil {
		return metrics.Event{}, errors.New("not an event: at_ns is missing")
	}
	return metrics.Event{At: *w.At, Kind: w.Kind, Source: orEmpty(w.Source), Data: w.Data}, nil
}
