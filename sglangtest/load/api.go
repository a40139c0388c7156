package load

import (
	"context"
	"iter"
	"time"
)

// An API names one of the HTTP APIs of an SGLang server.
type API string

// The APIs that [Sender] speaks.
const (
	Generate        API = "generate"         // POST /generate, SGLang's own
	Completions     API = "completions"      // POST /v1/completions
	ChatCompletions API = "chat_completions" // POST /v1/chat/completions
)

func (a API) path() string {
	switch a {
	case Generate:
		return "/generate"
	case Completions:
		return "/v1/completions"
	case ChatCompletions:
		return "/v1/chat/completions"
	}
	return ""
}

// A Source yields the requests of a workload. [RequestGenerator] is one.
type Source interface {
	// Plan reads the whole workload once and describes it. It holds no requests, but may hold the distinct prompts that a
	// dataset states (up to 256 MiB of them) while it counts their common beginnings. Any fault of the workload
	// (a malformed row, no rows, an impossible length) is its error, so that a run can fail before it starts.
	Plan() (Plan, error)
	// Requests yields the workload from its beginning, in order of Arrival. Each call starts anew and yields
	// the same requests. The sequence ends after the first error. A run takes requests from it ahead of their arrival.
	Requests() iter.Seq2[Request, error]
}

// A Plan describes a workload before it is run.
type Plan struct {
	Dataset  string `json:"dataset"`
	Arrivals string `json:"arrivals"` // the arrival process, such as "poisson 8/s"
	Seed     uint64 `json:"seed"`
	Requests int    `json:"requests"`
	// Passes is how often the dataset was begun. From the second on its rows come again ([WithRepeat]), and the prompts that it
	// states word for word. Rows is how many it has; 0 if there was only one pass, which may have left some out.
	Passes int `json:"passes"`
	Rows   int `json:"rows"`
	// LeftOut counts the rows of the dataset that are no requests, by reason, in the order in which the reasons came first; null if
	// there is none. It covers what was read of the first pass.
	LeftOut []LeftOut `json:"left_out"`
	// RequestedRate is the arrival process's own rate in requests/s; 0 if it has none: all at once ("inf"), the dataset's own
	// times, or a rate that varies.
	RequestedRate float64 `json:"requested_rate"`
	// MeanRate is (Requests − 1) / (last − first arrival), in requests/s; 0 if that is not defined, as for all at once.
	MeanRate float64 `json:"mean_rate"`
	// LastArrival is the arrival of the last request.
	LastArrival time.Duration `json:"last_arrival_ns"`
	// InputTokens and OutputTokens are totals of the lengths that are known beforehand.
	InputTokens  int64 `json:"input_tokens"`
	OutputTokens int64 `json:"output_tokens"`
	// LongestInput and LongestTotal (input + output) are the largest over all requests, in tokens.
	LongestInput int `json:"longest_input"`
	LongestTotal int `json:"longest_total"`
	// Messages is the number of requests whose prompts are chat messages, which only the chat API takes.
	Messages int `json:"messages"`
	// UnknownInputs is the number of requests whose input length only the server can know.
	UnknownInputs int `json:"unknown_inputs"`
	// Prompts says how much of the prompts a prefix cache can take from earlier ones of this workload; null if that is not
	// known, for lack of memory, because prompts hold answers, or because the source does not count it.
	Prompts *SharedPrompts `json:"prompts"`
}

// A LeftOut counts rows that were left out for one reason.
type LeftOut struct {
	Reason    string `json:"reason"`
	Rows      int    `json:"rows"`
	FirstLine int    `json:"first_line"` // of the file, counted from 1; 0 if the dataset has no lines
}

// A Doer carries out one request. [Sender] is one; a user's own client can be another.
type Doer interface {
	// Do sends req and returns when its answer has ended or failed; it always fills in res. On entry res
	// holds ID, Arrival, Due, InputLen, OutputLen, Conversation and Turn; Do sets everything else, at least Outcome,
	// Released, Send, Sent and Completion, in the order that Result demands. A breach is an error of the run. Do must
	// return soon after ctx is done. It is called from many goroutines at once.
	Do(ctx context.Context, clock Clock, req *Request, res *Result)
}

// A Preparer is a [Doer] that can do part of its work before the moment of release, such as encoding the body, so that this
// work is no lateness. [Sender] is one.
type Preparer interface {
	Doer
	// Prepare returns a Doer for this request alone. It is either dropped or used once, with an equal request; what was
	// found to be wrong with the request is then its result. Prepare must not keep req, and takes no time but that of
	// computing. It is called by one goroutine at a time, at most some thousand requests or 16 MiB of bodies ahead.
	Prepare(req *Request) Doer
}

// An Opener is a [Doer] that can open connections before a run, so that the requests that a run begins with do not all have to
// open theirs. [Sender] is one.
type Opener interface {
	Doer
	// CanOpen says why this machine cannot have n connections at once, and what to change; nil if nothing is known to be in
	// the way. It is asked before the run if that many requests are due at one moment, or if that many are to be opened.
	CanOpen(n int) error
	// Open opens n connections, for the first requests to use, and returns when they are open or have failed: then the
	// requests will. It is called just before the run's start.
	Open(ctx context.Context, n int)
}

// A Recorder receives what happens in a run. metrics.Collector is one.
type Recorder interface {
	// Begin is called once, after the warm-up. What takes time belongs here, as the run's clock starts after it. An error
	// ends the run.
	Begin(ctx context.Context, info Info) error
	// Start is called once, when Begin has returned nil, just before offset 0 of clock, which is that of all that follows.
	// It must return at once.
	Start(clock Clock)
	// Arrived is called when a request's time has come, before it waits for a place under a concurrency cap.
	// The calls come one after the other, in order of arrival. The recorder must not keep req.
	Arrived(req *Request)
	// Record is called exactly once for each request that arrived, when it has ended. It is called from many
	// goroutines at once. The recorder must not keep or modify res, nor keep its Chunks, whose memory is used
	// again: Chunks.Clone makes a copy to keep.
	Record(res *Result)
	// End is called once, after the last Record, whether the run succeeded or not, if Begin succeeded.
	// Its context is not that of the run and still works if the run was cancelled.
	End(ctx context.Context) error
}

// Info describes a run that is about to start.
type Info struct {
	Plan           Plan
	MaxConcurrency int // 0: no cap
	// Delays will say how late the client itself was woken. Nil: that is not measured, as in virtual time and with a waiter
	// of the caller's ([WithWaiter]). It may be read in and after Recorder.End.
	Delays *Delays
}
