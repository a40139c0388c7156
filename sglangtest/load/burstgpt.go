package load

import (
	"io"
	"strconv"
)

// BurstGPT returns the dataset in a CSV file of the BurstGPT traces (HPMLL/BurstGPT), or in one of the same form. The first line
// names the columns, in any order; others than these three are ignored:
//
//	Timestamp        arrival in seconds, or what [WithTimeUnit] says, ≥ 0, not below the line before
//	Request tokens   length of the prompt, > 0
//	Response tokens  length of the answer, > 0; the published traces have rows with 0, calls that failed: see [SkipOddRows]
//
// The file is read as a stream; compressed ones (.gz, .zst, .bz2) as they are.
func BurstGPT(path string, opts ...FileOption) Dataset { return newFileDataset(path, &burstGPT, opts) }

var burstGPT = fileFormat{name: "BurstGPT trace", unit: Seconds, parse: parseBurstGPT}

var burstGPTColumns = []string{"Timestamp", "Request tokens", "Response tokens"}

func parseBurstGPT(f *fileDataset, r io.Reader, e *emitter) {
	e.table(r, "burstgpt", burstGPTColumns, func(line int, fields []string) bool {
		var fault rowFault
		row := Row{Timed: true, Line: line}
		if v, err := strconv.ParseFloat(fields[0], 64); err != nil {
			fault.add(oddValue, "Timestamp %q: want a number of seconds", fields[0])
		} else if row.Arrival, err = f.time("Timestamp", v); err != nil {
			fault.add(oddValue, "%w", err)
		}
		row.InputLen = fault.tokenCount(burstGPTColumns[1], fields[1], oddNoInput)
		row.OutputLen = fault.tokenCount(burstGPTColumns[2], fields[2], oddNoReply)
		if err := fault.err(); err != nil {
			return e.fault(line, fault.reason, err)
		}
		return e.row(row)
	})
}
