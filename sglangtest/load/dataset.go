package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"strings"
	"time"
)

// A Dataset is a sequence of prompts, or of their lengths. [RequestGenerator] makes requests of it.
//
// Two more methods are optional. Validate() error reports faults of the dataset's own parameters and is called by
// [NewRequestGenerator]. Endless() bool reports that Rows never ends; the generator then insists on an end of its own.
type Dataset interface {
	// Name names the dataset in plans and errors: the path, if it is a file.
	Name() string
	// Rows yields the rows from the first one. All randomness must come from rng, so that equal seeds give
	// equal rows. The sequence ends after the first error, which says where the fault is. Each call starts anew;
	// calls may run at the same time. Rows must not hold more than a few rows in memory, and a row that has been
	// yielded must not be modified afterwards.
	Rows(rng *rand.Rand) iter.Seq2[Row, error]
}

// A Row is one request of a [Dataset], before it has an arrival and an ID.
type Row struct {
	// Prompt is the prompt. If it is zero, the generator makes a prompt of InputLen random tokens that shares no
	// prefix with any other.
	Prompt Prompt
	// InputLen is the prompt's length in tokens; 0 if it is unknown or can be counted from Prompt.
	InputLen int
	// OutputLen is the number of output tokens; 0 if the dataset does not say.
	OutputLen int
	// Arrival is when the request arrived in the recording, an offset from a moment that all rows share, if
	// Timed is true. Rows are in order of Arrival, which may be equal.
	Arrival time.Duration
	Timed   bool
	// Sampling overrides the generator's sampling parameters for this row, field by field. Nil overrides nothing.
	Sampling *SamplingParams
	// Conversation names the conversation that the row is a turn of; empty for a single request.
	Conversation string
	// Turn is the position in the conversation, counted from 0.
	Turn int
	// Priority, Tenant, Session, LoRA, Rank, Extra and Header are those of the [Request].
	Priority        *int
	Tenant, Session string
	LoRA            string
	Rank            *int
	Extra           map[string]json.RawMessage
	Header          map[string]string
	// Deadline is how long after its arrival the answer should have come; 0 for none.
	Deadline time.Duration
	// Line is the line of the file that the row came from, counted from 1, for error messages; 0 if there is none.
	Line int
	// LeftOut says why the row is no request, in words that are the same for all rows with the same reason. Such a row is not
	// sent, only counted in [Plan.LeftOut]; empty for a request.
	LeftOut string
}

// maxTokens bounds every length, so that sums of lengths cannot overflow.
const maxTokens = math.MaxInt32

// oneLine joins errors like errors.Join, on one line, so that all stand behind the position that goes before them.
func oneLine(faults ...error) error {
	var texts []string
	for _, err := range faults {
		if err != nil {
			texts = append(texts, err.Error())
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return errors.New(strings.Join(texts, "; "))
}

// offsetOf converts seconds to an offset from the run's start, rounded to a nanosecond.
func offsetOf(seconds float64) (time.Duration, error) {
	ns := math.Round(seconds * 1e9)
	if !(ns >= 0 && ns < math.MaxInt64) {
		return 0, fmt.Errorf("arrival at %g s: want 0 s to 292 years", seconds)
	}
	return time.Duration(ns), nil
}
