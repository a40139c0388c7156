package load

import (
	"bytes"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/nearest"
)

// data/README.md names the source and the licence.
//
//go:embed data/azure_llm_2023_conv_2000.csv
var azureConversation []byte

// AzureConversation returns the workload that is embedded in this package, so that an experiment needs no file: the
// first 2,000 requests of the conversation trace of Azure's LLM inference service, recorded on 2023-11-16 over
// about 7 minutes (4.7 requests/s, in bursts). It gives lengths and times, no text. Source: Azure Public Dataset, Microsoft,
// "AzureLLMInferenceTrace_conv", CC BY 4.0; see data/README.md in this package.
func AzureConversation() Dataset { return embeddedTrace{} }

type embeddedTrace struct{}

func (embeddedTrace) Name() string { return "azure-conversation" }

func (e embeddedTrace) Rows(*rand.Rand) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) { parseAzure(bytes.NewReader(azureConversation), e.Name(), yield) }
}

// AzureTrace returns the dataset in a CSV file of Azure's LLM inference traces of 2023 or 2024, or in one of the same
// form. The first line names the columns, in any order; others than these three are ignored:
//
//	TIMESTAMP        2023-11-16 18:15:46.6805900 or 2024-05-10 00:00:00.009930+00:00; fraction and zone may be missing, UTC is assumed
//	ContextTokens    length of the prompt, > 0
//	GeneratedTokens  length of the answer, > 0
//
// The first row arrives at 0, the others accordingly. The file is read as a stream.
func AzureTrace(path string) Dataset { return azureTrace{path} }

type azureTrace struct{ path string }

func (a azureTrace) Name() string { return a.path }

func (a azureTrace) Rows(*rand.Rand) iter.Seq2[Row, error] { return fileRows(a.path, parseAzure) }

var azureColumns = []string{"TIMESTAMP", "ContextTokens", "GeneratedTokens"}

func parseAzure(r io.Reader, path string, yield func(Row, error) bool) {
	in := csv.NewReader(r)
	in.ReuseRecord = true
	fail := func(line int, err error) { yield(Row{}, fmt.Errorf("load: %s:%d: %w", path, line, err)) }
	read := func() (fields []string, line int, err error) {
		fields, err = in.Read()
		var malformed *csv.ParseError
		if errors.As(err, &malformed) {
			return fields, malformed.Line, malformed.Err // fields are there if only their number is wrong
		}
		if err != nil {
			return nil, 0, err
		}
		line, _ = in.FieldPos(0)
		return fields, line, nil
	}

	header, line, err := read()
	if err == io.EOF {
		fail(1, fmt.Errorf("empty file: want the columns %s", strings.Join(azureColumns, ", ")))
		return
	} else if err != nil {
		fail(max(line, 1), err)
		return
	}
	var column [3]int
	var faults []error
	for i, name := range azureColumns {
		if column[i] = slices.Index(header, name); column[i] < 0 {
			faults = append(faults, missingColumn(name, header))
		}
	}
	if len(faults) > 0 {
		fail(line, oneLine(faults...))
		return
	}

	var start time.Time
	for n := 0; ; n++ {
		fields, at, err := read()
		switch {
		case err == io.EOF:
			return
		case errors.Is(err, csv.ErrFieldCount):
			fail(at, fmt.Errorf("%d columns, but the header has %d", len(fields), in.FieldsPerRecord))
			return
		case err != nil:
			fail(max(at, line+1), err)
			return
		}
		line = at
		stamp, err1 := azureTime(fields[column[0]])
		input, err2 := tokenCount(azureColumns[1], fields[column[1]])
		output, err3 := tokenCount(azureColumns[2], fields[column[2]])
		if err := oneLine(err1, err2, err3); err != nil {
			fail(line, err)
			return
		}
		if n == 0 {
			start = stamp
		}
		if !yield(Row{InputLen: input, OutputLen: output, Arrival: stamp.Sub(start), Timed: true, Line: line}, nil) {
			return
		}
	}
}

func missingColumn(name string, header []string) error {
	err := fmt.Errorf("no column %s among %s", name, strings.Join(header, ", "))
	if near := nearest.Name(name, header); near != "" {
		err = fmt.Errorf("%w: is %q meant to be it?", err, near)
	}
	return err
}

func azureTime(text string) (time.Time, error) {
	// A fraction need not stand in the layout to be read.
	layout := "2006-01-02 15:04:05"
	if len(text) > len(layout) && strings.ContainsAny(text[len(layout):], "+-Z") {
		layout += "Z07:00"
	}
	t, err := time.Parse(layout, text)
	if err != nil {
		return t, fmt.Errorf("TIMESTAMP %q: want a time such as 2023-11-16 18:15:46.6805900, with or without a zone such as +00:00", text)
	}
	return t, nil
}

func tokenCount(column, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxTokens {
		return 0, fmt.Errorf("%s %q: want a whole number of tokens from 1 to %d", column, text, maxTokens)
	}
	return n, nil
}
