package load

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/wire"
)

// An Outcome says how a request ended. The zero value is not an outcome.
type Outcome string

// The outcomes. Every one but OutcomeOK is a failure.
const (
	// OutcomeOK: the answer came to its end, and its finish reason, such as "stop" or "length", is not one of a failure.
	OutcomeOK Outcome = "ok"
	// OutcomeHTTP: the server answered with a status other than 200; see Result.Status.
	OutcomeHTTP Outcome = "http_error"
	// OutcomeEngine: the answer's status was 200 but it held an error object, in the stream or as its body.
	// Or it ended in good order with the finish reason "error", "cancelled" or "timeout", which other engines than SGLang have.
	OutcomeEngine Outcome = "engine_error"
	// OutcomeAbort: the engine ended the request with finish reason "abort".
	OutcomeAbort Outcome = "abort"
	// OutcomeTimeout: the request's own deadline passed.
	OutcomeTimeout Outcome = "timeout"
	// OutcomeTruncated: the connection closed cleanly or not before the answer's end.
	OutcomeTruncated Outcome = "truncated"
	// OutcomeRefused: no connection could be made because nothing listened.
	OutcomeRefused Outcome = "refused"
	// OutcomeReset: the connection broke before any part of the answer arrived.
	OutcomeReset Outcome = "reset"
	// OutcomeCancelled: the run was cancelled while the request was under way. The request never ended.
	OutcomeCancelled Outcome = "cancelled"
	// OutcomeProtocol: what came back is not the answer of the API that was asked: not JSON, no event stream, no token count.
	OutcomeProtocol Outcome = "protocol_error"
	// OutcomeTransport: any other failure below HTTP: name resolution, TLS, no route, …
	OutcomeTransport Outcome = "transport_error"
	// OutcomeClient: the client's own machine ran out of something: local ports, file descriptors, memory. It says
	// nothing of the server; Result.Message says what to change.
	OutcomeClient Outcome = "client_error"
	// OutcomeRejected: the request was refused on the client's side, before it was sent, by admission control or by a policy.
	OutcomeRejected Outcome = "rejected"
)

// Outcomes lists every outcome, OutcomeOK first.
func Outcomes() []Outcome {
	return []Outcome{OutcomeOK, OutcomeHTTP, OutcomeEngine, OutcomeAbort, OutcomeTimeout, OutcomeTruncated, OutcomeRefused,
		OutcomeReset, OutcomeCancelled, OutcomeProtocol, OutcomeTransport, OutcomeClient, OutcomeRejected}
}

// NotReported stands for a count that the server did not give.
const NotReported = -1

// SimulatedByHeader is the response header in which a simulated server names its profile, so that no result of a
// simulation can be taken for a real one.
const SimulatedByHeader = "X-Simulated-By"

// A Result is what became of one request. All times are offsets from the run's start, and
// Arrival ≤ Due ≤ Released ≤ Send ≤ Completion.
type Result struct {
	ID           int
	Conversation string
	Turn         int

	// Arrival is the intended arrival of the schedule.
	Arrival time.Duration
	// Due is when nothing but the client itself stood between the request and its release: Arrival, or with a
	// concurrency cap the moment at which the request got its place.
	Due time.Duration
	// Released is when the client let go of the request: its body was ready and was handed to the transport.
	Released time.Duration
	// Send is when the request began to be written on its connection. If Sent is false it equals Completion.
	Send time.Duration
	// FirstToken is when the first output token had been read; 0 if none came. In an answer that was not streamed
	// every token arrives with the end: FirstToken and LastToken are Completion.
	FirstToken time.Duration
	// FirstTokens is how many output tokens had been read at FirstToken, by the server's own count; 0 if it did not say. More
	// than one come where the server or a proxy holds tokens back.
	FirstTokens int
	// FirstEvent is when the first event that speaks of the output had been read; 0 if none came, or the answer was not
	// streamed. Before FirstToken it brought neither text nor a count: it was the head of a chat, or tokens that the
	// client can't see.
	FirstEvent time.Duration
	// LastToken is when the last output token had been read; 0 if none came.
	LastToken time.Duration
	// Completion is when the last byte of the answer had been read, or the failure was known.
	Completion time.Duration

	// Sent is false if the request never left: ServerLatency is then 0 and the whole latency is QueueTime.
	Sent bool
	// Connect is the part of Send − Released spent on getting a connection; about 0 if one was reused.
	Connect time.Duration
	// Reused says that the connection had served a request before.
	Reused bool
	// Idle is how long that connection had lain idle, since the request before or since it was opened beforehand; 0 for one
	// that was opened for this request.
	Idle time.Duration
	// HeldOpen says that the server kept the connection open after the stream's [DONE], so that the client closed it.
	// Completion is the end of [DONE] then, but the request kept its place under a concurrency cap for 100 ms more.
	HeldOpen bool
	// Overhead is the time the client spent between reads of the answer on parsing and recording it. It
	// delays later reads only, never the stamp of the read before it.
	Overhead time.Duration

	API      API     // the API that was called
	Streamed bool    // the answer came as an event stream
	Outcome  Outcome // how the request ended
	Status   int     // HTTP status; 0 if no answer came
	Message  string  // the server's error message, or the transport's, up to 4 KiB of it; empty if Outcome is OutcomeOK

	// InputLen and OutputLen repeat what the request asked for.
	InputLen, OutputLen int
	// PromptTokens and OutputTokens are the server's own counts. OutputTokens of a failed request counts what
	// had arrived.
	PromptTokens, OutputTokens int
	// CachedTokens is the number of prompt tokens that the server took from its cache, or NotReported: the OpenAI
	// routes tell only with --enable-cache-report.
	CachedTokens int
	// CachedTiers says from which cache CachedTokens came. SGLang tells with CachedTokens on /generate; on the OpenAI routes to a
	// request with the extra member "return_cached_tokens_details": true.
	CachedTiers CachedTiers
	// Retractions is how often the engine took the request back to its queue (SGLang's num_retractions), or
	// NotReported: the OpenAI routes do not tell.
	Retractions int
	// FinishReason is the engine's: "stop", "length", "abort", …; empty if none came.
	FinishReason string
	// Worker names the server that processed the request, where that is known: the target's name, or if it has
	// none the weight version that the server answered with, unless that is SGLang's "default".
	Worker string
	// Routed is when a route of the harness placed the request, and Route by whom and why; nil: there was no route.
	Routed time.Duration
	Route  *RouteNote
	// SimulatedBy names the profile of the simulated engine that answered; empty for a real one. See [SimulatedByHeader].
	SimulatedBy string
	// Chunks lists the events that carried output. It is empty unless Streamed.
	Chunks Chunks
	// Text is the output text, if the sender was asked to keep it.
	Text string
}

// CachedTiers are counts of prompt tokens by the cache that they came from. The zero value says that the server did not tell,
// as SGLang does where nothing came from a cache.
type CachedTiers struct {
	Reported bool // the counts are the server's
	Device   int  // from the memory of the GPU
	Host     int  // from that of the host
	Storage  int  // from a storage behind it; 0 also where there is none
}

// QueueTime returns Send − Arrival: the time before the request left for the server.
func (r *Result) QueueTime() time.Duration { return r.Send - r.Arrival }

// ServerLatency returns Completion − Send.
func (r *Result) ServerLatency() time.Duration { return r.Completion - r.Send }

// TotalLatency returns Completion − Arrival, which is QueueTime + ServerLatency exactly.
func (r *Result) TotalLatency() time.Duration { return r.Completion - r.Arrival }

// Lateness returns Released − Due: how much later than it should the client released the request, by its own fault.
func (r *Result) Lateness() time.Duration { return r.Released - r.Due }

// OK reports whether the request succeeded.
func (r *Result) OK() bool { return r.Outcome == OutcomeOK }

// complete sets Completion, and Send for a request that never left.
func (r *Result) complete(at time.Duration) {
	r.Completion = at
	if !r.Sent {
		r.Send = at
	}
}

// maxMessage bounds Result.Message in bytes: servers send megabytes that repeat the request.
const maxMessage = 4 << 10

func (r *Result) fail(o Outcome, message string) {
	r.Outcome, r.Message = o, wire.Cut(message, maxMessage)
}

// counts takes over what an event says of the request as a whole.
func (r *Result) counts(c *wire.Chunk) {
	if c.PromptTokens >= 0 {
		r.PromptTokens = c.PromptTokens
	}
	if c.CachedTokens >= 0 {
		r.CachedTokens = c.CachedTokens
	}
	if c.CachedDevice >= 0 || c.CachedHost >= 0 || c.CachedStorage >= 0 {
		r.CachedTiers = CachedTiers{Reported: true, Device: max(c.CachedDevice, 0), Host: max(c.CachedHost, 0), Storage: max(c.CachedStorage, 0)}
	}
	if c.Retractions >= 0 {
		r.Retractions = c.Retractions
	}
	if r.Worker == "" && len(c.Worker) > 0 && string(c.Worker) != "default" {
		r.Worker = string(c.Worker)
	}
}

func (r *Result) finish(c *wire.Chunk) {
	if c.FinishReason == nil {
		return
	}
	switch string(c.FinishReason) { // no allocation for the usual ones
	case "length":
		r.FinishReason = "length"
	case "stop":
		r.FinishReason = "stop"
	default:
		r.FinishReason = string(c.FinishReason)
	}
	switch r.FinishReason {
	case "abort":
		r.fail(OutcomeAbort, wire.Unquote(c.AbortMessage))
	case "error", "cancelled", "canceled", "timeout":
		r.fail(OutcomeEngine, cmp.Or(wire.Unquote(c.AbortMessage), "the answer ended with finish reason "+r.FinishReason))
	}
}

// judge gives the outcome of an answer that came to its end, unless a failure has been noted.
func (r *Result) judge(counted bool) {
	switch {
	case r.Outcome != "":
	case !counted:
		r.fail(OutcomeProtocol, "the answer has no token count (completion_tokens)")
	case r.FinishReason == "":
		r.fail(OutcomeProtocol, "the answer has no finish reason")
	default:
		r.Outcome = OutcomeOK
	}
}

// MaxTokens bounds every count of tokens in a Result: no model has such a context. A larger count is damage or a mistake, and
// could be summed up to anything.
const MaxTokens = wire.MaxCount

// MaxTime bounds the moments in a Result: some thirty years. Sums of them are then still times.
const MaxTime = 1_000_000_000 * time.Second

// Check reports what contradicts itself in r or cannot be: moments out of order, counts that are none. It is asked wherever a
// result comes from outside: of a [Doer], by a collector, from a run folder. nil means that figures can be computed from r.
func (r *Result) Check() error {
	switch {
	case r.Arrival < 0 || r.Completion > MaxTime:
		return fmt.Errorf("its Arrival %v and Completion %v; want moments from 0 to %v", r.Arrival, r.Completion, MaxTime)
	case r.Due < r.Arrival || r.Released < r.Due || r.Send < r.Released || r.Completion < r.Send:
		return fmt.Errorf("want Arrival ≤ Due ≤ Released ≤ Send ≤ Completion, not %v, %v, %v, %v, %v", r.Arrival, r.Due, r.Released, r.Send, r.Completion)
	case (r.FirstToken == 0) != (r.LastToken == 0):
		return fmt.Errorf("FirstToken is %v and LastToken %v; want both or none", r.FirstToken, r.LastToken)
	case r.FirstToken != 0 && (r.FirstToken < r.Send || r.LastToken < r.FirstToken || r.Completion < r.LastToken):
		return fmt.Errorf("want Send ≤ FirstToken ≤ LastToken ≤ Completion, not %v, %v, %v, %v", r.Send, r.FirstToken, r.LastToken, r.Completion)
	case r.FirstEvent != 0 && (r.FirstEvent < r.Send || r.Completion < r.FirstEvent):
		return fmt.Errorf("want Send ≤ FirstEvent ≤ Completion, not %v, %v, %v", r.Send, r.FirstEvent, r.Completion)
	case r.Connect < 0 || r.Connect > MaxTime || r.Overhead < 0 || r.Overhead > MaxTime || r.Idle < 0 || r.Idle > MaxTime:
		return fmt.Errorf("its Connect %v, Overhead %v and Idle %v; want 0 to %v", r.Connect, r.Overhead, r.Idle, MaxTime)
	}
	for _, c := range []struct {
		name     string
		n, least int
	}{
		{"InputLen", r.InputLen, 0}, {"OutputLen", r.OutputLen, 0}, {"PromptTokens", r.PromptTokens, 0}, {"OutputTokens", r.OutputTokens, 0}, {"FirstTokens", r.FirstTokens, 0},
		{"CachedTokens", r.CachedTokens, NotReported}, {"Retractions", r.Retractions, NotReported},
		{"CachedTiers.Device", r.CachedTiers.Device, 0}, {"CachedTiers.Host", r.CachedTiers.Host, 0}, {"CachedTiers.Storage", r.CachedTiers.Storage, 0},
	} {
		if c.n < c.least || c.n > MaxTokens {
			return fmt.Errorf("%s is %d; want %d to %d", c.name, c.n, c.least, MaxTokens)
		}
	}
	if t := r.CachedTiers; !t.Reported && t != (CachedTiers{}) {
		return fmt.Errorf("CachedTiers is %+v, with counts that were not reported", t)
	}
	if r.FirstTokens > r.OutputTokens {
		return fmt.Errorf("FirstTokens is %d, more than OutputTokens, %d", r.FirstTokens, r.OutputTokens)
	}
	return r.Chunks.check(r.Send, r.Completion)
}

// Void returns what is left of r if its fault, a word of [Result.Check], makes the rest unusable: which request it is, as one
// that failed with OutcomeProtocol and never left. Its moments are those of r as far as they are in order; it ends at the
// given moment if that is later.
func (r *Result) Void(fault string, at time.Duration) Result {
	v := Result{ID: r.ID, Conversation: r.Conversation, Turn: r.Turn, API: r.API, CachedTokens: NotReported, Retractions: NotReported,
		InputLen: min(max(r.InputLen, 0), MaxTokens), OutputLen: min(max(r.OutputLen, 0), MaxTokens)}
	v.Arrival = min(max(r.Arrival, 0), MaxTime)
	v.Due = min(max(r.Due, v.Arrival), MaxTime)
	v.Released = min(max(v.Due, at), MaxTime)
	v.fail(OutcomeProtocol, fault)
	v.complete(v.Released)
	return v
}

// breach returns how a Doer broke its contract with a request that is due at the given moment, at the given moment now.
func (r *Result) breach(id int, arrival, due, now time.Duration) error {
	switch {
	case r.ID != id || r.Arrival != arrival:
		return errors.New("its ID or Arrival was changed")
	case r.Outcome == "":
		return errors.New("its Outcome is not set")
	case r.Due != due:
		return errors.New("its Due was changed")
	case !r.Sent && r.Send != r.Completion:
		return errors.New("its Sent is false, but Send is not Completion")
	case !r.Sent && (r.Connect != 0 || r.Reused || r.FirstToken != 0 || r.FirstEvent != 0 || r.Chunks.Len() > 0):
		return errors.New("its Sent is false, but there is a connection or an answer")
	case r.Completion > now:
		return fmt.Errorf("its Completion %v lies in the future: it is %v", r.Completion, now)
	}
	return r.Check()
}
