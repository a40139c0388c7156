package sim

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
)

// A Recording is what the scheduler of a real SGLang server was given and what it decided, step for step, in the
// format of record_schedule.py.
type Recording struct {
	Name    string   `json:"name"`
	Version string   `json:"sglang_version"`
	Flags   []string `json:"flags"`
	Tokens  int      `json:"kv_tokens"`
	Page    int      `json:"page_size"`
	Limits  struct {
		MaxRunning       int     `json:"max_running_requests"`
		MaxInput         int     `json:"max_req_input_len"`
		Chunk            int     `json:"chunked_prefill_size"`
		MaxPrefill       int     `json:"max_prefill_tokens"`
		Conservativeness float64 `json:"schedule_conservativeness"`
		Policy           Policy  `json:"schedule_policy"`
		DisableRadix     bool    `json:"disable_radix_cache"`
		Overlap          bool    `json:"overlap"`
	} `json:"limits"`
	Actions     []recordedAction `json:"actions"`
	Trace       []recordedRow    `json:"trace"`
	Results     []recordedResult `json:"results"`
	FinishOrder []string         `json:"finish_order"`
}

type recordedAction struct {
	At       int    `json:"at"`
	Do       string `json:"do"`
	RID      string `json:"rid"`
	Segments []struct {
		Seed     int    `json:"seed"`
		Len      int    `json:"len"`
		OutputOf string `json:"output_of"`
	} `json:"segments"`
	MaxNew    int     `json:"max_new_tokens"`
	IgnoreEOS *bool   `json:"ignore_eos"`
	Priority  int     `json:"priority"`
	Value     float64 `json:"value"`
	Mode      string  `json:"mode"`
	Idle      int     `json:"idle"`
}

type recordedResult struct {
	RID        string  `json:"rid"`
	Status     int     `json:"status"`
	Completion *int    `json:"completion_tokens"`
	Cached     *int    `json:"cached_tokens"`
	Retracted  *int    `json:"num_retractions"`
	OutputIDs  []int32 `json:"output_ids"`
	Finish     *struct {
		Type string `json:"type"`
	} `json:"finish_reason"`
}

type recordedRow struct {
	I         int               `json:"i"`
	B         *int              `json:"b"`
	Kind      string            `json:"kind"`
	Reqs      []json.RawMessage `json:"reqs"`
	Decode    []string          `json:"decode"`
	Running   []string          `json:"running"`
	Queue     []string          `json:"queue"`
	Chunked   *string           `json:"chunked"`
	Full      bool              `json:"full"`
	Ratio     float64           `json:"ratio"`
	Avail     int               `json:"avail"`
	Evictable int               `json:"evictable"`
	Retracted []string          `json:"retracted"`
	Preempted []string          `json:"preempted"`
	Finished  []string          `json:"finished"`
	N         int               `json:"n"`
	DAvail    int               `json:"d_avail"`
	DRatio    float64           `json:"d_ratio"`
}

// ReadRecording reads one recording. A file whose name ends in .gz is compressed.
func ReadRecording(path string) (*Recording, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("sim: read recording: %w", err)
	}
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err == nil {
			raw, err = io.ReadAll(z)
		}
		if err != nil {
			return nil, fmt.Errorf("sim: read recording %s: %w", path, err)
		}
	}
	g := &Recording{}
	if err := json.Unmarshal(raw, g); err != nil {
		return nil, fmt.Errorf("sim: read recording %s: %w", path, err)
	}
	return g, nil
}

// Config returns the configuration that the recording was made with.
func (g *Recording) Config() (EngineConfig, error) {
	rules, err := RulesOf(g.Version)
	if err != nil {
		return EngineConfig{}, err
	}
	c := EngineConfig{Rules: rules, MaxTotalTokens: g.Tokens, PageSize: g.Page, ContextLength: math.MaxInt32, MaxRunningRequests: g.Limits.MaxRunning,
		ChunkedPrefillSize: g.Limits.Chunk, MaxPrefillTokens: g.Limits.MaxPrefill, ScheduleConservativeness: g.Limits.Conservativeness,
		SchedulePolicy: g.Limits.Policy, DisableRadixCache: g.Limits.DisableRadix, DisableOverlap: !g.Limits.Overlap,
		PreemptionThreshold: DefaultPreemptionThreshold}
	if g.Limits.MaxInput > 0 { // max_req_input_len is the smaller of context and pool, less 6
		c.ContextLength = g.Limits.MaxInput + 6
	}
	for i := 0; i < len(g.Flags); i++ {
		value := func() string {
			i++
			if i == len(g.Flags) {
				return ""
			}
			return g.Flags[i]
		}
		number := func(to *int) {
			v, bad := strconv.Atoi(value())
			if bad != nil {
				err = fmt.Errorf("sim: recording %s: flag %s: %w", g.Name, g.Flags[i-1], bad)
			}
			*to = v
		}
		switch f := g.Flags[i]; f {
		case "--max-queued-requests":
			number(&c.MaxQueuedRequests)
		case "--prefill-max-requests":
			number(&c.PrefillMaxRequests)
		case "--prefill-decode-interval":
			number(&c.PrefillDecodeInterval)
		case "--prefill-decode-interval-min-bs":
			number(&c.PrefillDecodeIntervalMinBS)
		case "--priority-scheduling-preemption-threshold":
			number(&c.PreemptionThreshold)
		case "--radix-eviction-policy":
			c.EvictionPolicy = EvictionPolicy(value())
		case "--retraction-policy":
			c.RetractByPriority = value() == "priority"
		case "--enable-mixed-chunk":
			c.EnableMixedChunk = true
		case "--enable-priority-scheduling":
			c.EnablePriorityScheduling = true
		case "--disable-priority-preemption":
			c.DisablePriorityPreemption = true
		case "--schedule-low-priority-values-first":
			c.LowPriorityValuesFirst = true
		case "--disable-overlap-schedule", "--disable-radix-cache":
		case "--max-total-tokens", "--chunked-prefill-size", "--max-running-requests", "--max-prefill-tokens", "--page-size",
			"--schedule-policy", "--schedule-conservativeness", "--json-model-override-args", "--context-length":
			value() // taken from limits
		default:
			err = fmt.Errorf("sim: recording %s: flag %s is not simulated", g.Name, f)
		}
		if err != nil {
			return c, err
		}
	}
	return c, nil
}
