package load

import (
	"encoding/json"
	"fmt"
	"io"
)

// MooncakeBlock is the number of tokens that one hash id of a Mooncake trace stands for, unless [WithBlockSize] says
// otherwise.
const MooncakeBlock = 512

// Mooncake returns the dataset in a file of the Mooncake traces (kvcache-ai/Mooncake, FAST25-release), one JSON
// object on each line:
//
//	{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 2353, 2354]}
//
//	timestamp      arrival in ms, or what [WithTimeUnit] says, ≥ 0, not below the line before. The published traces have steps
//	               of about 3 s, so that replayed times are bursts. Only [TraceTimes] needs it
//	input_length   length of the prompt, tokens ≥ 1
//	output_length  length of the answer, tokens ≥ 1. It may be missing where [WithOutputLen] gives it
//	hash_ids       one for each block of the prompt, the last of which may be shorter. Equal ids are equal tokens, so that
//	               prompts with the same first ids share a prefix. Without them a prompt is made up that shares nothing
//	text_input     the prompt as text, in place of hash_ids; input_length may then be missing
//
// Other keys are ignored, blank lines are skipped. The prompt of a row is made of one [Segment] for each block, whose stream
// follows from the hash id alone. The file is read as a stream; compressed ones (.gz, .zst, .bz2) as they are.
func Mooncake(path string, opts ...FileOption) Dataset {
	return newFileDataset(path, &mooncake, opts)
}

var mooncake = fileFormat{name: "Mooncake trace", unit: Milliseconds, blocks: true, parse: parseMooncake}

// mooncakeLine is a line of a trace. The pointers tell what is missing.
type mooncakeLine struct {
	Timestamp    *float64 `json:"timestamp"`
	InputLength  *int     `json:"input_length"`
	OutputLength *int     `json:"output_length"`
	HashIDs      []uint64 `json:"hash_ids"`
	Text         *string  `json:"text_input"`
}

func parseMooncake(f *fileDataset, r io.Reader, e *emitter) {
	e.lines(r, func(line int, text []byte) bool {
		row, fault := f.mooncakeRow(text)
		if err := fault.err(); err != nil {
			return e.fault(line, fault.reason, fmt.Errorf("%w%s", err, meant("mooncake", objectKeys(text))))
		}
		row.Line = line
		return e.row(row)
	})
}

func (f *fileDataset) mooncakeRow(text []byte) (row Row, fault rowFault) {
	var l mooncakeLine
	if err := json.Unmarshal(text, &l); err != nil {
		fault.add(oddBroken, "%w", jsonFault(err))
		return row, fault
	}
	if l.Timestamp != nil {
		at, err := f.time("timestamp", *l.Timestamp)
		if err != nil {
			fault.add(oddValue, "%w", err)
		}
		row.Arrival, row.Timed = at, true
	}
	row.OutputLen = fault.tokens("output_length", l.OutputLength, true, oddNoReply)
	row.InputLen = fault.tokens("input_length", l.InputLength, l.Text != nil, oddNoInput)
	switch block := f.block(); {
	case l.Text != nil && l.HashIDs != nil:
		fault.add(oddValue, "both text_input and hash_ids: want one of them")
	case l.Text != nil && *l.Text == "":
		fault.add(oddNoInput, "text_input is empty")
	case l.Text != nil:
		row.Prompt.Text = *l.Text
	case l.HashIDs != nil && row.InputLen > 0:
		if blocks := (row.InputLen + block - 1) / block; len(l.HashIDs) != blocks {
			fault.add(oddValue, "%d hash_ids, but %d tokens are %d blocks of %d%s", len(l.HashIDs), row.InputLen, blocks, block, otherBlock(row.InputLen, len(l.HashIDs)))
			break
		}
		row.Prompt.Segments = make([]Segment, len(l.HashIDs))
		for i, id := range l.HashIDs {
			row.Prompt.Segments[i] = Segment{Stream: mix(mooncakeStream + id), Length: min(block, row.InputLen-i*block)}
		}
	}
	return row, fault
}

func (f *fileDataset) block() int {
	if f.opts.block > 0 {
		return f.opts.block
	}
	return MooncakeBlock
}

// otherBlock names a usual size of blocks of which n tokens are that many.
func otherBlock(n, blocks int) string {
	for size := 1; size <= 4096; size *= 2 {
		if (n+size-1)/size == blocks {
			return fmt.Sprintf("; blocks of %d would fit: WithBlockSize (config key block_size)", size)
		}
	}
	return ""
}

// mooncakeStream keeps the streams of hash ids apart from those of made-up prompts.
const mooncakeStream = 0x6d6f6f6e63616b65 // "mooncake"
