package load

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// table reads a CSV file whose first line names its columns, and calls row with the wanted ones of each further line until it
// returns false. dataset is the format's name in a config.
func (e *emitter) table(r io.Reader, dataset string, wanted []string, row func(line int, fields []string) bool) {
	in := csv.NewReader(r)
	in.ReuseRecord = true
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
		e.fail(1, fmt.Errorf("empty file: want the columns %s", strings.Join(wanted, ", ")))
		return
	} else if err != nil {
		e.fail(max(line, 1), err)
		return
	}
	for i, h := range header {
		header[i] = strings.TrimSpace(h)
	}
	column := make([]int, len(wanted))
	other := meant(dataset, header)
	var faults []error
	for i, name := range wanted {
		if column[i] = slices.Index(header, name); column[i] < 0 {
			faults = append(faults, missingColumn(name, header, other == ""))
		}
	}
	if len(faults) > 0 {
		e.fail(line, fmt.Errorf("%w%s", oneLine(faults...), other))
		return
	}
	picked := make([]string, len(wanted))
	for {
		fields, at, err := read()
		switch {
		case err == io.EOF:
			return
		case errors.Is(err, csv.ErrFieldCount):
			line = at
			if !e.fault(at, oddBroken, fmt.Errorf("%d columns, but the header has %d", len(fields), in.FieldsPerRecord)) {
				return
			}
			continue
		case err != nil:
			e.fail(max(at, line+1), err)
			return
		}
		line = at
		for i, c := range column {
			picked[i] = strings.TrimSpace(fields[c])
		}
		if !row(line, picked) {
			return
		}
	}
}

// missingColumn says that a column is missing, and with hint which one may be meant.
func missingColumn(name string, header []string, hint bool) error {
	shown := make([]string, len(header))
	for i, h := range header {
		shown[i] = strings.Trim(strconv.Quote(h), `"`) // printable, whatever it is
	}
	err := fmt.Errorf("no column %s among %s", name, strings.Join(shown, ", "))
	if near := nearColumn(name, header); hint && near != "" {
		err = fmt.Errorf("%w: is %q meant to be it?", err, near)
	}
	return err
}

// tokenCount reads a number of tokens of a column.
func (f *rowFault) tokenCount(column, text, none string) int {
	if text == "" {
		f.add(oddMissing, "%s is empty: want a whole number of tokens", column)
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		f.add(oddValue, "%s %q: want a whole number of tokens from 1 to %d", column, text, maxTokens)
		return 0
	}
	return f.tokens(column, &n, false, none)
}
