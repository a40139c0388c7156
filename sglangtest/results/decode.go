package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
)

// wireResult is a result as it stands in requests.jsonl. Members that every line has are pointers, so that
// their absence is noticed. Strings that were not valid UTF-8 come in base64, which fills []byte.
type wireResult struct {
	ID                 *int           `json:"id"`
	Conversation       string         `json:"conversation"`
	ConversationBase64 []byte         `json:"conversation_base64"`
	Turn               int            `json:"turn"`
	Arrival            *time.Duration `json:"arrival_ns"`
	Due                *time.Duration `json:"due_ns"`
	Released           *time.Duration `json:"released_ns"`
	Send               *time.Duration `json:"send_ns"`
	FirstEvent         time.Duration  `json:"first_event_ns"`
	FirstToken         time.Duration  `json:"first_token_ns"`
	LastToken          time.Duration  `json:"last_token_ns"`
	Completion         *time.Duration `json:"completion_ns"`
	Sent               *bool          `json:"sent"`
	Connect            time.Duration  `json:"connect_ns"`
	Reused             bool           `json:"reused"`
	Idle               time.Duration  `json:"idle_ns"`
	HeldOpen           bool           `json:"held_open"`
	Streamed           bool           `json:"streamed"`
	Overhead           time.Duration  `json:"overhead_ns"`
	API                string         `json:"api"`
	APIBase64          []byte         `json:"api_base64"`
	Outcome            *string        `json:"outcome"`
	OutcomeBase64      []byte         `json:"outcome_base64"`
	Status             int            `json:"status"`
	Message            string         `json:"message"`
	MessageBase64      []byte         `json:"message_base64"`
	InputLen           *int           `json:"input_len"`
	OutputLen          *int           `json:"output_len"`
	PromptTokens       int            `json:"prompt_tokens"`
	OutputTokens       int            `json:"output_tokens"`
	CachedTokens       int            `json:"cached_tokens"`
	Retractions        int            `json:"retractions"`
	FinishReason       string         `json:"finish_reason"`
	FinishReasonBase64 []byte         `json:"finish_reason_base64"`
	Worker             string         `json:"worker"`
	WorkerBase64       []byte         `json:"worker_base64"`
	SimulatedBy        string         `json:"simulated_by"`
	SimulatedByBase64  []byte         `json:"simulated_by_base64"`
	ChunkGaps          ints           `json:"chunk_gap_ns"`
	ChunkTokens        ints           `json:"chunk_tokens"`
	ChunkTextBytes     ints           `json:"chunk_text_bytes"`
	Text               string         `json:"text"`
	TextBase64         []byte         `json:"text_base64"`
}

func decodeResult(line []byte) (load.Result, error) {
	var w wireResult
	if err := json.Unmarshal(line, &w); err != nil {
		return load.Result{}, err
	}
	if w.Outcome == nil && w.OutcomeBase64 != nil {
		w.Outcome = new(string)
	}
	if w.ID == nil || w.Arrival == nil || w.Due == nil || w.Released == nil || w.Send == nil || w.Completion == nil ||
		w.Sent == nil || w.Outcome == nil || w.InputLen == nil || w.OutputLen == nil {
		return load.Result{}, errors.New("not a result: one of id, arrival_ns, due_ns, released_ns, send_ns, completion_ns, " +
			"sent, outcome, input_len and output_len is missing")
	}
	r := load.Result{
		ID:           *w.ID,
		Conversation: text(w.Conversation, w.ConversationBase64),
		Turn:         w.Turn,
		Arrival:      *w.Arrival,
		Due:          *w.Due,
		Released:     *w.Released,
		Send:         *w.Send,
		FirstEvent:   w.FirstEvent,
		FirstToken:   w.FirstToken,
		LastToken:    w.LastToken,
		Completion:   *w.Completion,
		Sent:         *w.Sent,
		Connect:      w.Connect,
		Reused:       w.Reused,
		Idle:         w.Idle,
		HeldOpen:     w.HeldOpen,
		Streamed:     w.Streamed,
		Overhead:     w.Overhead,
		API:          load.API(text(w.API, w.APIBase64)),
		Outcome:      load.Outcome(text(*w.Outcome, w.OutcomeBase64)),
		Status:       w.Status,
		Message:      text(w.Message, w.MessageBase64),
		InputLen:     *w.InputLen,
		OutputLen:    *w.OutputLen,
		PromptTokens: w.PromptTokens,
		OutputTokens: w.OutputTokens,
		CachedTokens: w.CachedTokens,
		Retractions:  w.Retractions,
		FinishReason: text(w.FinishReason, w.FinishReasonBase64),
		Worker:       text(w.Worker, w.WorkerBase64),
		SimulatedBy:  text(w.SimulatedBy, w.SimulatedByBase64),
		Text:         text(w.Text, w.TextBase64),
	}
	var err error
	r.Chunks, err = w.chunks()
	return r, err
}

func text(s string, raw []byte) string {
	if raw != nil {
		return string(raw)
	}
	return s
}

func (w *wireResult) chunks() (load.Chunks, error) {
	var chunks load.Chunks
	n := len(w.ChunkGaps)
	if (w.ChunkTokens != nil && len(w.ChunkTokens) != n) || (w.ChunkTextBytes != nil && len(w.ChunkTextBytes) != n) {
		return chunks, fmt.Errorf("chunk_gap_ns, chunk_tokens and chunk_text_bytes have %d, %d and %d elements",
			n, len(w.ChunkTokens), len(w.ChunkTextBytes))
	}
	at, last := *w.Send, time.Duration(0)
	for i, gap := range w.ChunkGaps {
		at += time.Duration(gap)
		c := load.Chunk{At: at, Tokens: 1}
		if w.ChunkTokens != nil {
			c.Tokens = int(w.ChunkTokens[i])
		}
		if w.ChunkTextBytes != nil {
			c.TextBytes = int(w.ChunkTextBytes[i])
		}
		if c.At < last || c.Tokens < 0 || c.TextBytes < 0 {
			return chunks, fmt.Errorf("chunk %d lies before the one before it or has a negative count", i)
		}
		chunks.Append(c)
		last = at
	}
	return chunks, nil
}

// ints is an array of integers. Reading its elements here takes a fraction of the time that
// encoding/json takes, and they are nearly all of a line.
type ints []int64

func (v *ints) UnmarshalJSON(data []byte) error {
	text := string(data)
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
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return Arrival{}, err
	}
	if w.ID == nil || w.Arrival == nil {
		return Arrival{}, errors.New("not an arrival: id or arrival_ns is missing")
	}
	return Arrival{ID: *w.ID, Arrival: *w.Arrival}, nil
}

func decodeSample(line []byte) (metrics.Sample, error) {
	var w struct {
		At *time.Duration `json:"at_ns"` // shadows the sample's, to notice its absence
		wireSample
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return metrics.Sample{}, err
	}
	if w.At == nil {
		return metrics.Sample{}, errors.New("not a sample: at_ns is missing")
	}
	s := w.Sample
	s.At = *w.At
	if w.Values != nil {
		s.Values = make(map[string]float64, len(w.Values))
		for name, v := range w.Values {
			s.Values[name] = float64(v)
		}
	}
	return s, nil
}

func decodeEvent(line []byte) (metrics.Event, error) {
	var w struct {
		At *time.Duration `json:"at_ns"` // shadows the event's, to notice its absence
		metrics.Event
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return metrics.Event{}, err
	}
	if w.At == nil {
		return metrics.Event{}, errors.New("not an event: at_ns is missing")
	}
	e := w.Event
	e.At = *w.At
	return e, nil
}
