package sim

import "github.com/sglangtest/harness/sglangtest/load"

// A Request is one request as the engine sees it. The caller owns the value, fills in the exported fields, hands
// a pointer to [Engine.Add], and must not change them or add it again. The engine keeps its own state in the
// unexported fields, so that it needs no table of requests.
type Request struct {
	// RID is the request's id. It only breaks ties of the policy hrrn and may be empty.
	RID string
	// Prompt is the content of the prompt, by which the prefix cache finds what it shares with others. Segments and
	// token ids must add up to InputLen. What texts and chats share is counted in blocks, see load.Key. A zero
	// Prompt shares nothing.
	Prompt load.Prompt
	// InputLen is the prompt's length in tokens, at least 1.
	InputLen int
	// MaxNewTokens is the declared limit of output tokens, at least 0. Admission reserves memory by it. Add lowers
	// it to what the context and the pool can hold.
	MaxNewTokens int
	// StopAfter is the number of output tokens after which the model ends the answer by itself, which the
	// scheduler cannot foresee. 0: the answer goes on to MaxNewTokens.
	StopAfter int
	// IgnoreEOS is the sampling parameter of that name: SGLang 0.5.23 then reserves the whole MaxNewTokens.
	IgnoreEOS bool
	// Priority counts if the engine has EnablePriorityScheduling, and for the eviction policy "priority".
	Priority int
	// OutputIDs are the tokens of the answer, and OutputStream names a stream of which they are the beginning; at
	// most one may be given. They are what a later prompt has to repeat to find the answer in the prefix cache. If
	// there are neither, or fewer ids than tokens, the rest of the answer equals nothing else.
	OutputIDs    []int32
	OutputStream uint64
	// Owner is for the caller, to find its own data from an [Output].
	Owner any

	phase phase
	epoch uint32 // counts retractions and the finish; what was planned in an older epoch is void
	abort *Finish

	// The tokens: see lockstep.go for requests that decode.
	computed int   // tokens whose KV is allocated
	produced int   // tokens whose result has been processed
	lockstep bool  // decodes with the others: computed and produced are those at step base
	leaving  bool  // left out of the running batch because its last token is under way
	flying   bool  // a prefill that brings a token is under way
	ending   bool  // scratch of Engine.Complete
	told     int   // produced at the last output
	base     int64 // decode step after which it joined
	ends     int64 // decode step that brings its last token
	place    int64 // orders the running batch

	// The prefix cache.
	key       load.Runs
	keySpace  [2]load.TokenRun
	match     *node // last_node: of the last match
	prefix    int   // prefix_len: tokens of the last match, or computed before the present chunk
	matched   int   // num_matched_prefix_tokens, of the last ordering of the queue
	filled    int   // tokens at the last match; 0 if there was none
	locked    *node
	protected int  // cache_protected_len: computed tokens that the tree owns
	inserted  int  // cache_inserted_len
	late      bool // put last by the in-batch rule
	admitted  bool
	cached    int

	queued      int // its tokens in the waiting queue's sum
	unique      uint64
	entry       uint64 // order of entry into the queue
	seen        int64  // processed tokens at entry, for hrrn
	retractions int
	headed      uint64 // Engine.stuck when it last stood first
}

type phase uint8

const (
	phaseNew phase = iota
	phaseWaiting
	phaseRunning // chosen by admission, until finished or retracted
	phaseFinished
	phaseLost
)

// Produced returns the number of output tokens whose results had been processed when the request last changed
// batches; it is exact once the request has ended. While it decodes, see [Engine.Produced].
func (r *Request) Produced() int { return r.produced }

// Lost reports whether the scheduler has forgotten the request, so that it never ends; see [EngineConfig.KeepPreempted].
func (r *Request) Lost() bool { return r.phase == phaseLost }

// Retractions returns how often the request was taken back to the waiting queue.
func (r *Request) Retractions() int { return r.retractions }

// CachedTokens returns how many prompt tokens came from the prefix cache when the request was first admitted
// (meta_info.cached_tokens).
func (r *Request) CachedTokens() int { return r.cached }

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
	outranked        = &Finish{Kind: FinishAbort, Message: "The request is aborted by a higher priority request.", Status: 503, Queued: true}
	priorityDisabled = &Finish{Kind: FinishAbort, Message: "Using priority is disabled for this server. Please send a new request without a priority.", Status: 503, Queued: true}
	outOfMemory      = &Finish{Kind: FinishAbort, Status: 500,
		Message: "Out of memory even after retracting all other requests in the decode batch. Aborting the last request."}
)

// An Output is what results brought one request.
type Output struct {
	Request *Request
	// Tokens is the number of tokens added: 1, or 0 if the request ended without one. With
	// EngineConfig.QuietDecode it is the number since the last output of the request.
	Tokens int
	// Decode is the number of the decode step that made the last of these tokens; the others come from the steps
	// before it, one each (see [Engine.DecodeSteps]). 0: the token comes from a prefill.
	Decode int64
	// Finish is nil while the request goes on. It must not be modified.
	Finish *Finish
}
