package sglargs

import (
	"fmt"
	"strings"
)

// Usage returns the usage text that SGLang prints before an error, without the error: argparse's, for a terminal of
// 80 columns. It ends with a line break.
func (t *Table) Usage() string {
	const prefix, width = "usage: " + Prog, 78
	indent := strings.Repeat(" ", len(prefix)+1)
	var b strings.Builder
	b.WriteString(prefix)
	column := len(prefix)
	for i, a := range t.args {
		if a.Hidden {
			continue
		}
		part := a.usage()
		if i > 0 && column+1+len(part) > width {
			b.WriteString("\n" + indent)
			column = len(indent)
		} else {
			b.WriteString(" ")
			column++
		}
		b.WriteString(part)
		column += len(part)
	}
	b.WriteString("\n")
	return b.String()
}

func (a *Arg) usage() string {
	part := a.Flag()
	switch {
	case a.Action == BooleanOptional:
		part = strings.Join(a.Flags, " | ")
	case !a.takesNone():
		value := strings.ToUpper(a.Field)
		if a.Choices != nil {
			choices := make([]string, len(a.Choices))
			for i, c := range a.Choices {
				choices[i] = pyStr(c)
			}
			value = "{" + strings.Join(choices, ",") + "}"
		}
		part += " " + fmt.Sprintf(map[string]string{"": "%[1]s", "?": "[%[1]s]", "*": "[%[1]s ...]", "+": "%[1]s [%[1]s ...]"}[a.NArgs], value)
	}
	if a.Required {
		return part
	}
	return "[" + part + "]"
}
