package metrics

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

// The golden cases hold event streams and what the real bench_serving of sglang 0.5.23 made of them.

type goldenHead struct {
	Backend      string             `json:"backend"`
	DurationS    float64            `json:"duration_s"`
	AcceptLength float64            `json:"accept_length"`
	SLOs         map[string]float64 `json:"goodput_slos_ms"`
}

type goldenRequest struct {
	I         int     `json:"i"`
	SendS     float64 `json:"send_s"`
	PromptLen int     `json:"prompt_len"`
	OutputLen int     `json:"requested_output_len"`
	Events    []struct {
		TS   float64 `json:"t_s"`
		Data string  `json:"data"`
		Cut  bool    `json:"cut"`
	} `json:"events"`
	Status  int     `json:"status"`
	Body    string  `json:"body"`
	EndS    float64 `json:"end_s"`
	Refused bool    `json:"refused"`
}

type goldenExpected struct {
	Metrics map[string]float64 `json:"metrics"`
	Raises  string             `json:"raises"`
	Goodput *struct {
		RequestGoodput float64            `json:"request_goodput"`
		Attainment     float64            `json:"slo_attainment"`
		ByMetric       map[string]float64 `json:"slo_attainment_by_metric"`
	} `json:"goodput"`
	Requests []struct {
		Success bool `json:"success"`
	} `json:"requests"`
}

type goldenPayload struct {
	Text *string `json:"text"`
	Meta struct {
		Completion int `json:"completion_tokens"`
		Prompt     int `json:"prompt_tokens"`
	} `json:"meta_info"`
	Choices []struct {
		Text  string `json:"text"`
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
		Message struct {
			Content string `json:"content"`
		} `json:"message"`
	} `json:"choices"`
	Usage *struct {
		Completion int `json:"completion_tokens"`
		Prompt     int `json:"prompt_tokens"`
	} `json:"usage"`
	Error json.RawMessage `json:"error"`
}

func offset(s float64) time.Duration { return time.Duration(math.Round(s * 1e9)) }

// result converts a recorded stream.
func (g *goldenRequest) result(t *testing.T, api load.API) load.Result {
	start := offset(g.SendS)
	r := load.Result{ID: g.I, Arrival: start, Due: start, Released: start, Send: start, Sent: true, API: api,
		Outcome: load.OutcomeOK, InputLen: g.PromptLen, OutputLen: g.OutputLen}
	if len(g.Events) == 0 {
		r.Completion = offset(g.EndS)
		switch {
		case g.Refused:
			r.Outcome, r.Sent, r.Send = load.OutcomeRefused, false, r.Completion
		case g.Status != 0 && g.Status != 200:
			r.Outcome, r.Status, r.Message = load.OutcomeHTTP, g.Status, g.Body
		default:
			var p goldenPayload
			require.NoError(t, json.Unmarshal([]byte(g.Body), &p))
			r.OutputTokens, r.PromptTokens = p.Usage.Completion, p.Usage.Prompt
			r.Text = p.Choices[0].Message.Content
			r.FirstToken, r.LastToken = r.Completion, r.Completion
		}
		return r
	}
	r.Streamed = true
	for _, e := range g.Events {
		at := offset(e.TS)
		r.Completion = at
		if e.Cut {
			r.Outcome = load.OutcomeTruncated
			break
		}
		if e.Data == "[DONE]" {
			continue
		}
		var p goldenPayload
		require.NoError(t, json.Unmarshal([]byte(e.Data), &p))
		if p.Error != nil {
			r.Outcome, r.Message = load.OutcomeEngine, string(p.Error)
			continue
		}
		ch := load.Chunk{At: at}
		text := ""
		if p.Text != nil {
			ch.Tokens = p.Meta.Completion - r.OutputTokens
			r.OutputTokens, r.PromptTokens = p.Meta.Completion, p.Meta.Prompt
			text = strings.TrimPrefix(*p.Text, r.Text)
		}
		for _, c := range p.Choices {
			text += c.Text + c.Delta.Content
		}
		if p.Usage != nil {
			r.OutputTokens, r.PromptTokens = p.Usage.Completion, p.Usage.Prompt
		}
		ch.TextBytes = len(text)
		r.Text += text
		if ch.Tokens > 0 || ch.TextBytes > 0 {
			r.Chunks.Append(ch)
			if r.FirstToken == 0 {
				r.FirstToken = at
			}
			r.LastToken = at
		}
	}
	return r
}

func readGolden(t *testing.T, name string) (goldenHead, []load.Result, goldenExpected) {
	t.Helper()
	path := filepath.Join("testdata", "bench_serving", name)
	if _, err := os.Stat(path + ".jsonl"); err != nil {
		path = strings.TrimSuffix(refdata.Path(t, "bench_serving/"+name+".jsonl"), ".jsonl")
	}
	raw, err := os.ReadFile(path + ".jsonl")
	require.NoError(t, err)
	sc := bufio.NewScanner(bytes.NewReader(raw))
	sc.Buffer(nil, 1<<20)
	var head goldenHead
	require.True(t, sc.Scan())
	require.NoError(t, json.Unmarshal(sc.Bytes(), &head))
	api := map[string]load.API{"sglang": load.Generate, "sglang-oai": load.Completions, "sglang-oai-chat": load.ChatCompletions}[head.Backend]
	require.NotEmpty(t, api)
	var rs []load.Result
	for sc.Scan() {
		var g goldenRequest
		require.NoError(t, json.Unmarshal(sc.Bytes(), &g))
		rs = append(rs, g.result(t, api))
	}
	require.NoError(t, sc.Err())
	var want goldenExpected
	raw, err = os.ReadFile(path + ".expected.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &want))
	require.Len(t, rs, len(want.Requests))
	return head, rs, want
}

func words(s string) int { return len(strings.Fields(s)) }

func goldenOptions(head goldenHead) []Option {
	opts := []Option{WithBenchServingDuration(offset(head.DurationS)), WithRetokenizer(words, head.AcceptLength)}
	if head.SLOs != nil {
		limit := func(name string) time.Duration { return offset(head.SLOs[name] / 1e3) }
		opts = append(opts, WithGoodput(SLO{TTFT: limit("ttft"), TPOT: limit("tpot"), E2E: limit("e2el")}))
	}
	return opts
}

var goldenCases = []string{"01-generate-plain", "02-generate-merged", "03-completions-failures", "04-generate-single-token",
	"05-generate-no-text", "06-chat-usage", "07-chat-no-usage-early-eos", "08-completions-retokenized", "09-completions-merged-raw",
	"10-completions-usage-chunk", "11-all-failed", "13-chat-no-stream"}

func TestBenchServingGolden(t *testing.T) {
	for _, name := range goldenCases {
		t.Run(name, func(t *testing.T) {
			head, rs, want := readGolden(t, name)
			for i, w := range want.Requests {
				if name == "10-completions-usage-chunk" && !w.Success {
					// The Python client fails on a usage-only event; see TestBenchServingUsageOnlyEvent.
					rs[i].Outcome = load.OutcomeProtocol
				}
				require.Equal(t, w.Success, rs[i].OK(), "request %d", i)
			}
			got := collect(t, load.Plan{Requests: len(rs)}, rs, nil, goldenOptions(head)...).Summary().BenchServing
			require.Equal(t, head.Backend, got.Backend)
			if want.Raises != "" {
				require.True(t, got.NoSuccess)
				require.False(t, got.E2E.Mean.Valid())
				require.Zero(t, got.Goodput.Share)
				return
			}
			require.False(t, got.NoSuccess)
			require.Zero(t, got.UnsplitChunks)
			have := map[string]float64{
				"completed": float64(got.Completed), "total_input": float64(got.TotalInput), "total_input_text": float64(got.TotalInput),
				"total_input_vision": 0, "total_output": float64(got.TotalOutput),
				"total_output_retokenized": float64(*got.TotalOutputRetokenized),
				"request_throughput":       got.RequestThroughput, "input_throughput": got.InputThroughput,
				"output_throughput": got.OutputThroughput, "output_throughput_retokenized": *got.OutputThroughputRetokenized,
				"total_throughput": got.TotalThroughput, "total_throughput_retokenized": *got.TotalThroughputRetokenized,
				"concurrency": got.Concurrency, "max_output_tokens_per_s": got.MaxOutputTokensPerS,
				"max_concurrent_requests": float64(got.MaxConcurrentRequests), "max_itl_ms": float64(got.ITL.Max),
			}
			for key, l := range map[string]BenchLatency{"ttft": got.TTFT, "tpot": got.TPOT, "itl": got.ITL, "e2e_latency": got.E2E} {
				for stat, v := range map[string]Millis{"mean": l.Mean, "median": l.Median, "std": l.Std, "p90": l.P90, "p95": l.P95, "p99": l.P99} {
					have[stat+"_"+key+"_ms"] = float64(v)
				}
			}
			for key, w := range want.Metrics {
				h, ok := have[key]
				require.True(t, ok, "%s is not compared", key)
				// The absolute part is for standard deviations of equal values, which are rounding noise.
				require.InDelta(t, w, h, 1e-9*math.Abs(w)+1e-12, key)
				delete(have, key)
			}
			require.Empty(t, have, "not in the recording")
			require.Equal(t, want.Goodput == nil, got.Goodput == nil)
			if want.Goodput != nil {
				require.InEpsilon(t, 1+want.Goodput.RequestGoodput, 1+got.Goodput.PerSecond, 1e-9)
				require.InEpsilon(t, 1+want.Goodput.Attainment, 1+got.Goodput.Share, 1e-9)
				require.Equal(t, want.Goodput.ByMetric, got.Goodput.ByLimit)
			}
		})
	}
}

// The one place where the compatible summary deliberately counts otherwise: a usage-only event on /v1/completions,
// which every SGLang server sends if asked for usage, is no failure.
func TestBenchServingUsageOnlyEvent(t *testing.T) {
	head, rs, want := readGolden(t, "10-completions-usage-chunk")
	got := collect(t, load.Plan{}, rs, nil, goldenOptions(head)...).Summary().BenchServing
	require.Equal(t, 6, got.Completed)
	require.EqualValues(t, 3, want.Metrics["completed"])
	require.Equal(t, 36, got.TotalOutput)
}

// What the strict definitions make of the same streams.
func TestStrictOnGoldenStreams(t *testing.T) {
	t.Run("failures count as missed", func(t *testing.T) {
		_, rs, want := readGolden(t, "03-completions-failures")
		s := collect(t, load.Plan{Requests: len(rs)}, rs, nil).Summary()
		require.Equal(t, len(rs), s.Requests.Arrived)
		require.EqualValues(t, want.Metrics["completed"], s.Requests.OK)
		require.Equal(t, s.Requests.OK, s.TTFT.Count)
		require.Equal(t, len(rs)-s.Requests.OK, s.TTFT.Failed)
		require.False(t, s.TTFT.Median.Valid(), "8 of 15 failed, so the median request did")
		require.InDelta(t, 30, float64(s.TTFT.Mean), 1e-9)
		require.Equal(t, s.Requests.OK, s.Streams.Uncounted, "the OpenAI route gave no counts")
		require.Zero(t, s.ITL.Count)
	})
	t.Run("all failed", func(t *testing.T) {
		_, rs, _ := readGolden(t, "11-all-failed")
		s := collect(t, load.Plan{Requests: len(rs)}, rs, nil).Summary()
		require.Zero(t, s.Requests.OK)
		require.Equal(t, []OutcomeCount{{Outcome: load.OutcomeHTTP, Count: 4, Message: "status 503: queue full"}}, s.Requests.Outcomes)
		_, err := json.Marshal(s)
		require.NoError(t, err)
	})
	t.Run("no text is no first token", func(t *testing.T) {
		_, rs, _ := readGolden(t, "05-generate-no-text")
		s := collect(t, load.Plan{Requests: len(rs)}, rs, nil).Summary()
		require.Equal(t, 5, s.Streams.NoTokens)
		require.Equal(t, 5, s.TTFT.Failed)
		require.Equal(t, 5, s.BenchServing.NoText)
	})
	t.Run("not streamed", func(t *testing.T) {
		_, rs, _ := readGolden(t, "13-chat-no-stream")
		s := collect(t, load.Plan{Requests: len(rs)}, rs, nil).Summary()
		require.Equal(t, len(rs), s.Streams.NotStreamed)
		require.Zero(t, s.TPOT.Count)
		require.InDelta(t, 200, float64(s.TTFT.Median), 1e-6)
	})
}
