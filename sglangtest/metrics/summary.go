package metrics

import (
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
)

// SchemaVersion is the version of [Summary]'s JSON form. It changes when a field changes its meaning.
const SchemaVersion = 2

// A Summary says what a run showed. Its latencies are the strict ones of this package, from the intended
// arrival and with failures counted; BenchServing holds the definitions of SGLang's own benchmark beside them.
// It is plain data: what json.Marshal writes, json.Unmarshal reads back.
type Summary struct {
	SchemaVersion int  `json:"schema_version"`
	Began         bool `json:"began"` // false: the run failed before it began, so that nothing was measured and all below is empty
	// Verdict says what the figures are worth, and VerdictReasons why; none for [VerdictOK].
	Verdict        Verdict     `json:"verdict"`
	VerdictReasons []string    `json:"verdict_reasons"`
	Simulation     *Simulation `json:"simulation"` // as it was at the run's end; null: no simulation was declared
	Engines        []Engine    `json:"engines"`    // what was measured, simulated or not; null: not declared
	Started        time.Time   `json:"started"`    // wall clock of offset 0
	Plan           load.Plan   `json:"plan"`
	MaxConcurrency int         `json:"max_concurrency"` // 0: no cap
	Cache          CacheState  `json:"cache"`           // what the prefix cache held before the load; empty: not said
	// ParamChanges are the run-time parameters that were changed between the first arrival and the last completion, in order
	// of time: every figure of the whole run mixes what came before with what came after. See [Collector.Windows].
	ParamChanges []ParamChange `json:"param_changes"`

	Requests   Requests   `json:"requests"`
	Durations  Durations  `json:"durations"`
	Rates      Rates      `json:"rates"`
	Throughput Throughput `json:"throughput"` // of the whole run, its drain included
	// Steady is what was served in the part of the run without its beginning and its drain; null if there is none, and
	// NoSteadyState says why.
	Steady        *SteadyState `json:"steady_state"`
	NoSteadyState string       `json:"no_steady_state,omitempty"`
	InFlight      InFlight     `json:"in_flight"`

	// TTFT is FirstToken − Arrival. A success without any output token has none and counts as failed.
	TTFT Distribution `json:"ttft"`
	// ServerTTFT is FirstToken − Send, likewise.
	ServerTTFT Distribution `json:"server_ttft"`
	// ITL is the time between tokens, over the tokens of all successful requests. The first event with tokens
	// starts the clock; each later one that adds k > 0 tokens after a gap g since the one before contributes k
	// values of g/k. Events that add no token do not move the stamp. Events that one read returned together have the
	// same stamp, so that tokens which the server or the network held back show as one long gap and zeros; see
	// Streams.CoalescedTokens. It is over tokens, so failures have no place in it.
	ITL Distribution `json:"itl"`
	// TPOT is (LastToken − FirstToken) / (the tokens that were read after FirstToken) of each success that has such tokens. The
	// first event can bring several; BenchServing counts those as if they had come one after the other.
	TPOT Distribution `json:"tpot"`
	// TotalLatency is Completion − Arrival: the end-to-end latency that a user sees.
	TotalLatency Distribution `json:"total_latency"`
	// ServerLatency is Completion − Send.
	ServerLatency Distribution `json:"server_latency"`
	// QueueTime is Send − Arrival of every request that was sent, failed later or not: the wait at the client, "client queue"
	// in the table. What SGLang calls queue_time, the wait in its scheduler, is part of ServerTTFT. One that never left
	// counts as failed.
	QueueTime Distribution `json:"queue_time"`

	Streams      Streams          `json:"streams"`
	Goodput      *Goodput         `json:"goodput"` // null: no limits were given
	Client       Client           `json:"client"`
	Samplers     []SamplerSummary `json:"samplers"`
	BenchServing BenchServing     `json:"bench_serving"`
	// Notes name what a reader has to know to read the numbers right.
	Notes []string `json:"notes"`
}

// Requests counts the requests of a run: Arrived = OK + Failed + Censored.
type Requests struct {
	Planned int `json:"planned"` // by the workload's plan
	Arrived int `json:"arrived"`
	OK      int `json:"ok"`
	Failed  int `json:"failed"` // every other outcome, and those that never got one, but for Censored
	// ResetReused is how many of the requests with outcome "reset" met a connection that had served requests before. The other
	// side may have closed it as idle at that moment: see load.WithIdleTimeout.
	ResetReused int `json:"reset_on_reused_connection"`
	// Censored requests were under way when the run was stopped: how they would have ended is not known. They are in no latency
	// and no share; where that bears on a percentile, a note says by how much at least. What was under way when a server ended by
	// itself has failed instead.
	Censored int `json:"censored"`
	// Outcomes adds up to Arrived: outcomes that occurred, in the order of load.Outcomes, unknown ones and NoRecord last.
	Outcomes []OutcomeCount `json:"outcomes"`
	// Unfinished counts the requests that arrived and never came to an end: cancelled, or without any record.
	Unfinished    int   `json:"unfinished"`
	UnfinishedIDs []int `json:"unfinished_ids"` // the first 20, ascending
}

// NoRecord stands in [Requests.Outcomes] for requests that arrived and of which nothing was recorded.
const NoRecord load.Outcome = "no_record"

// An OutcomeCount is the number of requests that ended in one way.
type OutcomeCount struct {
	Outcome load.Outcome `json:"outcome"`
	Count   int          `json:"count"`
	Message string       `json:"message,omitempty"` // of the first such request by ID, with its HTTP status; cut after 300 characters
}

// Durations are the lengths of a run by several definitions, in seconds.
type Durations struct {
	Measured float64 `json:"measured_s"` // first arrival to last completion (success or failure); the divisor of Throughput
	Arrivals float64 `json:"arrivals_s"` // first to last arrival
	Drain    float64 `json:"drain_s"`    // last arrival to last completion: no load was added in this time
}

// Rates are arrival rates in requests/s. A rate that a run cannot define (one request; all at once) is null.
type Rates struct {
	Requested *float64 `json:"requested_per_s"` // the arrival process's; null if it has none: all at once ("inf"), a trace, one that varies
	Scheduled *float64 `json:"scheduled_per_s"` // (n − 1) / (last − first) of the intended arrivals
	Achieved  *float64 `json:"achieved_per_s"`  // the same of Send, over the requests that were sent
}

// Throughput is per second of Durations.Measured and of successful requests, unless a name says otherwise.
type Throughput struct {
	Requests         float64 `json:"requests_per_s"`
	InputTokensPerS  float64 `json:"input_tokens_per_s"` // by the server's count where it gave one
	OutputTokensPerS float64 `json:"output_tokens_per_s"`
	InputTokens      int64   `json:"input_tokens"`
	OutputTokens     int64   `json:"output_tokens"`
	CachedTokens     *int64  `json:"cached_tokens"` // of InputTokens, by the server's count; null if it reported none
	// CachedByEngine is InputTokens less what the engines prefilled in the run by their own count ([KindPrefilled]), for answers
	// that do not tell; at least so many came from caches. Null if the engines were not asked or do not count.
	CachedByEngine     *int64 `json:"cached_tokens_by_engine"`
	FailedOutputTokens int64  `json:"failed_output_tokens"`
	Retractions        *int   `json:"retractions"` // of all requests; null if the server reported none
}

// InFlight counts requests between Send and Completion, failed ones included, exactly: at an instant at which
// one ends and another is sent, the end comes first.
type InFlight struct {
	Peak int     `json:"peak"`
	Mean float64 `json:"mean"` // over Durations.Measured
}

// Streams says for how many successful requests the token latencies could be observed.
type Streams struct {
	NotStreamed int `json:"not_streamed"` // the whole answer came at once: TTFT is the total latency; no TPOT, no ITL
	OneRead     int `json:"one_read"`     // streamed, but all of several tokens came in one read, the first: no TPOT
	NoTokens    int `json:"no_tokens"`    // no output token: counted as failed in TTFT
	// Uncounted answers have no ITL: the token counts of their events do not add up to the answer's (the server did not
	// say how many tokens each event added), or no events were kept.
	Uncounted int `json:"uncounted"`
	// FirstSeveral answers had more than one token at FirstToken, FirstTokens of them all together. Of FirstUnknown answers it is
	// not known how many they had there: their TPOT takes one.
	FirstSeveral int `json:"first_several"`
	FirstTokens  int `json:"first_several_tokens"`
	FirstUnknown int `json:"first_unknown"`
	// AtOnce answers of several tokens were streamed, but came together, in one read or within a hundredth of the time to
	// the first token, mostly several events to a read: TTFT is the time to the whole answer.
	AtOnce int `json:"at_once"`
	// EarlyEvents answers had events of their output, with neither text nor a token count, more than a tenth of the server
	// TTFT before the first token that could be counted. Early is the median of that time in ms; null if there were none.
	EarlyEvents int     `json:"early_events"`
	Early       *Millis `json:"early_events_p50_ms"`
	// HeldOpen answers kept their connections open after the stream's [DONE]: see load.Result.
	HeldOpen int `json:"held_open"`
	// CoalescedTokens is how many of the ITL values are 0 because their event came in the same read as the one before.
	CoalescedTokens int `json:"coalesced_tokens"`
}

// An SLO is a set of limits that a good request meets; 0 is no limit.
type SLO struct {
	TTFT time.Duration `json:"ttft_ns,omitempty"`
	TPOT time.Duration `json:"tpot_ns,omitempty"` // met by a request of one token; missed by one whose TPOT was not observed
	E2E  time.Duration `json:"e2e_ns,omitempty"`
}

// A Goodput counts the requests that succeeded and met every limit of SLO.
type Goodput struct {
	SLO       SLO     `json:"slo"`
	Good      int     `json:"good"`
	PerSecond float64 `json:"good_per_s"` // over Durations.Measured, the drain included
	// SteadyPerSecond counts the good requests that ended in the steady window, per second of it; null if there is none. The
	// compatible summary has no such window.
	SteadyPerSecond *float64           `json:"steady_good_per_s"`
	Share           float64            `json:"share"`    // of all requests that arrived and are not censored; failures count against it
	ByLimit         map[string]float64 `json:"by_limit"` // the same for each limit alone: ttft, tpot, e2el
}
