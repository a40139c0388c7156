package load

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"strings"
	"time"
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
	return func(yield func(Row, error) bool) {
		(&fileDataset{path: e.Name(), format: &azure}).read(bytes.NewReader(azureConversation), yield)
	}
}

// AzureTrace returns the dataset in a CSV file of Azure's LLM inference traces of 2023 or 2024, or in one of the same
// form. The first line names the columns, in any order; others than these three are ignored:
//
//	TIMESTAMP        2023-11-16 18:15:46.6805900 or 2024-05-10T00:00:00.009930+00:00; fraction and zone may be missing, UTC is assumed
//	ContextTokens    length of the prompt, > 0
//	GeneratedTokens  length of the answer, > 0
//
// The first row arrives at 0, the others accordingly. The file is read as a stream; compressed ones (.gz, .zst, .bz2) as they are.
func AzureTrace(path string, opts ...FileOption) Dataset { return newFileDataset(path, &azure, opts) }

var azure = fileFormat{name: "Azure trace", parse: parseAzure}

var azureColumns = []string{"TIMESTAMP", "ContextTokens", "GeneratedTokens"}

func parseAzure(_ *fileDataset, r io.Reader, e *emitter) {
	var start time.Time
	e.table(r, "azure", azureColumns, func(line int, fields []string) bool {
		var fault rowFault
		stamp, err := azureTime(fields[0])
		if err != nil {
			fault.add(oddValue, "%w", err)
		}
		row := Row{Timed: true, Line: line}
		row.InputLen = fault.tokenCount(azureColumns[1], fields[1], oddNoInput)
		row.OutputLen = fault.tokenCount(azureColumns[2], fields[2], oddNoReply)
		if err == nil && start.IsZero() { // the trace begins here, whether the row is left out or not
			start = stamp
		}
		if err := fault.err(); err != nil {
			return e.fault(line, fault.reason, err)
		}
		row.Arrival = stamp.Sub(start)
		return e.row(row)
	})
}

func azureTime(text string) (time.Time, error) {
	// A fraction need not stand in the layout to be read.
	layout := "2006-01-02 15:04:05"
	if len(text) > len(layout) && strings.ContainsAny(text[len(layout):], "+-Z") {
		layout += "Z07:00"
	}
	t, err := time.Parse(layout, strings.Replace(text, "T", " ", 1))
	if err != nil {
		return t, fmt.Errorf("TIMESTAMP %q: want a time such as 2023-11-16 18:15:46.6805900, with or without a zone such as +00:00", text)
	}
	return t, nil
}
