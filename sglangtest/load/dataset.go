package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"os"
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
	// Line is the line of the file that the row came from, counted from 1, for error messages; 0 if there is none.
	Line int
}

// maxTokens bounds every length, so that sums of lengths cannot overflow.
const maxTokens = math.MaxInt32

// fileRows yields the rows that parse reads from a file. Parse gets the file's path for its error messages.
func fileRows(path string, parse func(r io.Reader, path string, yield func(Row, error) bool)) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(Row{}, fmt.Errorf("load: dataset: %w", err))
			return
		}
		defer f.Close() // opened for reading: closing it loses nothing
		parse(skipBOM(f), path, yield)
	}
}

// skipBOM drops the UTF-8 byte order mark that spreadsheet programs put at the start of a file.
func skipBOM(r io.Reader) io.Reader {
	var head [3]byte
	n, err := io.ReadFull(r, head[:])
	rest := io.MultiReader(bytes.NewReader(head[:n]), r)
	if err == nil && head == [3]byte{0xef, 0xbb, 0xbf} {
		return r
	}
	return rest
}

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
