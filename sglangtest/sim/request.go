package sim

import "github.com/sglangtest/harness/sglangtest/load"

// A Request is one request as the engine sees it. The caller owns the value, fills in the exported fields, hands
// a pointer to [Engine.Add], and must not change them or add it again. The engine keeps its own state in the
// unexported fields, so that it needs no table of requests and no memory per request.
type Request struct {
	// Prompt is the content of the prompt. The engine keeps it for a prefix cache; this engine has none, so it
	// may be empty.
	Prompt load.Prompt
	// InputLen is the prompt's length in tokens, at least 1.
	InputLen int
	// MaxNewTokens is the declared limit of output tokens, at least 0. Admission reserves memory by it. Add lowers
	// it to what the context and the pool can hold.
	MaxNewTokens int
	// StopAfter is the number of output tokens after which the model ends the answer by itself, which the
	// scheduler cannot foresee. 0: the answer goes on to MaxNewTokens.
	StopAfter int
	// IgnoreEOS is the sampling parameter of that name: the scheduler then reserves the whole MaxNewTokens.
	IgnoreEOS bool
	// Owner is for the caller, to find its own data from an [Output].
	Owner any

	phase       phase
	epoch       uint32 // counts retractions and the finish; a step row of an older epoch is void
	abort       *Finish
	flying      int // results that are planned but not yet processed and that bring a token
	computed    int // tokens whose KV is allocated
	produced    int // tokens whose result has been processed
	retractions int
}

type phase uint8

const (
	phaseNew phase = iota
	phaseWaiting
	phaseRunning // chosen by admission, until finished or retracted
	phaseFinished
)

// Produced returns the number of output tokens whose results have been processed.
func (r *Request) Produced() int { return r.produced }

// Retractions returns how often the request was taken back to the waiting queue.
func (r *Request) Retractions() int { return r.retractions }

// CachedTokens returns how many prompt tokens came from the prefix cache: always 0.
func (r *Request) CachedTokens() int { return 0 }

// A FinishKind is the type of a finish reason.
type FinishKind uint8

// The kinds of finish.
const (
	FinishLength FinishKind = iota + 1 // MaxNewTokens reached
	FinishStop                         // StopAfter reached
	FinishAbort                        // aborted by the caller or refused by the engine
)

// A Finish says how a request ended.
type Finish struct {
	Kind FinishKind
	// Message and Status belong to FinishAbort: SGLang's text, and the HTTP status it stands for, or 0 if none.
	Message string
	Status  int
	// Queued says that the request was aborted before any of its output was made.
	Queued bool
}

// The finishes are shared, so that ending a request allocates nothing.
var (
	finishedByLength = &Finish{Kind: FinishLength}
	finishedByStop   = &Finish{Kind: FinishStop}
	abortedQueued    = &Finish{Kind: FinishAbort, Message: "Abort in waiting queue", Queued: true}
	abortedRunning   = &Finish{Kind: FinishAbort, Message: "Aborted"}
	queueFull        = &Finish{Kind: FinishAbort, Message: "The request queue is full.", Status: 503, Queued: true}
	outOfMemory      = &Finish{Kind: FinishAbort, Status: 500,
		Message: "Out of memory even after retracting all other requests in the decode batch. Aborting the last request."}
)

// An Output is what one result brought one request.
type Output struct {
	Request *Request
	// Tokens is the number of tokens added: 1, or 0 if the request ended without one.
	Tokens int
	// Finish is nil while the request goes on. It must not be modified.
	Finish *Finish
}
