package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/rand/v2"
	"time"
)

// MooncakeBlock is the number of tokens that one hash id of a Mooncake trace stands for, unless [WithBlockSize] says
// otherwise.
const MooncakeBlock = 512

// Mooncake returns the dataset in a file of the Mooncake traces (kvcache-ai/Mooncake, FAST25-release), one JSON
// object on each line:
//
//	{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2353, 2354]}
//
//	timestamp      arrival in ms, ≥ 0, not below the line before. The published traces have steps of about 3 s, so that
//	               replayed times are bursts
//	input_length   length of the prompt, tokens ≥ 1
//	output_length  length of the answer, tokens ≥ 1
//	hash_ids       one for each block of the prompt, the last of which may be shorter. Equal ids are equal tokens, so that
//	               prompts with the same first ids share a prefix
//
// All four are required, other keys are ignored, blank lines are skipped. The prompt of a row is made of one
// [Segment] for each block, whose stream follows from the hash id alone. The file is read as a stream.
func Mooncake(path string, opts ...MooncakeOption) Dataset {
	m := mooncake{path: path, block: MooncakeBlock}
	for _, opt := range opts {
		opt(&m)
	}
	return m
}

// A MooncakeOption changes how [Mooncake] reads a trace.
type MooncakeOption func(*mooncake)

// WithBlockSize sets the number of tokens that one hash id stands for, ≥ 1. Other tools write such traces with blocks
// of 16 or 64. Default: [MooncakeBlock].
func WithBlockSize(tokens int) MooncakeOption { return func(m *mooncake) { m.block = tokens } }

type mooncake struct {
	path  string
	block int
}

func (m mooncake) Name() string { return m.path }

func (m mooncake) Validate() error {
	if m.block < 1 || m.block > maxTokens {
		return fmt.Errorf("load: mooncake trace: blocks of %d tokens: want 1 to %d", m.block, maxTokens)
	}
	return nil
}

func (m mooncake) Rows(*rand.Rand) iter.Seq2[Row, error] { return fileRows(m.path, m.parse) }

// mooncakeLine is a line of a trace. The pointers tell what is missing.
type mooncakeLine struct {
	Timestamp    *float64 `json:"timestamp"`
	InputLength  *int     `json:"input_length"`
	OutputLength *int     `json:"output_length"`
	HashIDs      []uint64 `json:"hash_ids"`
}

func (m mooncake) parse(r io.Reader, path string, yield func(Row, error) bool) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	line := 1
	fail := func(err error) { yield(Row{}, fmt.Errorf("load: %s:%d: %w", path, line, err)) }
	for ; in.Scan(); line++ {
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 {
			continue
		}
		row, err := m.row(text)
		if err != nil {
			fail(err)
			return
		}
		row.Line = line
		if !yield(row, nil) {
			return
		}
	}
	if err := in.Err(); err != nil {
		fail(err)
	}
}

func (m mooncake) row(text []byte) (Row, error) {
	var l mooncakeLine
	if err := json.Unmarshal(text, &l); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return Row{}, fmt.Errorf("key %q: want %s, not a JSON %s", wrong.Field, wrong.Type, wrong.Value)
		}
		return Row{}, err
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	tokens := func(name string, v *int) int {
		if v == nil {
			fault("no %s", name)
			return 0
		}
		if *v < 1 || *v > maxTokens {
			fault("%s %d: want 1 to %d tokens", name, *v, maxTokens)
			return 0
		}
		return *v
	}
	row := Row{Timed: true}
	switch {
	case l.Timestamp == nil:
		fault("no timestamp")
	case !(*l.Timestamp >= 0 && *l.Timestamp < math.MaxInt64/1e6):
		fault("timestamp %v: want milliseconds ≥ 0", *l.Timestamp)
	default:
		row.Arrival = time.Duration(math.Round(*l.Timestamp * 1e6))
	}
	row.InputLen = tokens("input_length", l.InputLength)
	row.OutputLen = tokens("output_length", l.OutputLength)
	if row.InputLen > 0 {
		if blocks := (row.InputLen + m.block - 1) / m.block; len(l.HashIDs) != blocks {
			fault("%d hash_ids, but %d tokens are %d blocks of %d", len(l.HashIDs), row.InputLen, blocks, m.block)
		}
	}
	if err := oneLine(faults...); err != nil {
		return Row{}, err
	}
	row.Prompt.Segments = make([]Segment, len(l.HashIDs))
	for i, id := range l.HashIDs {
		row.Prompt.Segments[i] = Segment{Stream: mix(mooncakeStream + id), Length: min(m.block, row.InputLen-i*m.block)}
	}
	return row, nil
}

// mooncakeStream keeps the streams of hash ids apart from those of made-up prompts.
const mooncakeStream = 0x6d6f6f6e63616b65 // "mooncake"
