package server

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Cause says why a server failed.
type Cause string

// A FailureError is the diagnosis of a server that ended by itself. With [CausePortInUse] it wraps a [PortInUseError].
type FailureError struct {
	Cause   Cause
	Lines   []string // the lines of its log that show it; with [CauseUnknown] the last ones
	Advice  []string // what to change, the first thing first
	Exit    Exit
	LogFile string // where the rest of the log is; "" if there is none
	Ended   error  // what the server's launcher says of its end; nil if it does not know, or the server has not ended
	err     error  // nil, or what the cause is as an error of its own
}

func (e *FailureError) Unwrap() []error {
	return slices.DeleteFunc([]error{e.err, e.Ended}, func(err error) bool { return err == nil })
}

// how says how the server ended: what is known of its main process, and what else its launcher says.
func (e *FailureError) how() string {
	exit := e.Exit.String()
	switch {
	case e.Ended == nil || e.Ended.Error() == exit:
		return exit
	case e.Exit == notEnded:
		return e.Ended.Error()
	}
	return exit + ", " + e.Ended.Error()
}

func (e *FailureError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s)", e.Cause, e.how())
	for i, advice := range e.Advice {
		if i == 0 {
			b.WriteString("\nwhat to do: ")
		} else {
			b.WriteString("\n        or: ")
		}
		b.WriteString(advice)
	}
	if len(e.Lines) > 0 {
		b.WriteString("\nits log says:")
	}
	for _, line := range e.Lines {
		b.WriteString("\n\t" + line)
	}
	if e.LogFile != "" {
		b.WriteString("\nall of it: " + e.LogFile)
	}
	return b.String()
}

// shownLines is the number of lines that a diagnosis shows, shownLength the length of each.
const (
	shownLines  = 3
	lastLines   = 15 // with an unknown cause
	shownLength = 500
)

// Diagnose says why a server ended by itself, from what it wrote and how its process ended. The config, and what
// the log says of the values in force, decide what the advice says.
func Diagnose(log []string, exit Exit, cfg Config) *FailureError {
	s := newStartup(time.Time{})
	for _, line := range log {
		s.read(time.Time{}, line)
	}
	return diagnose(log, exit, cfg, s)
}

// diagnose is Diagnose with a start-up that may have begun before the lines that are still there.
func diagnose(log []string, exit Exit, cfg Config, s *startup) *FailureError {
	c := evidence{log: fromFatal(log), exit: exit, startup: s, settings: s.settings}
	c.settings.fill(cfg)
	for _, k := range causes {
		if lines, is := k.recognise(c); is {
			failure := &FailureError{Cause: k.Cause, Lines: lines, Advice: k.advice(c, lines), Exit: exit}
			if k.Cause == CausePortInUse {
				failure.err = clash(lines, cfg)
			}
			return failure
		}
	}
	var last []string
	for i := len(log) - 1; i >= 0 && len(last) < lastLines; i-- {
		if strings.TrimSpace(log[i]) != "" {
			last = append([]string{shorten(log[i])}, last...)
		}
	}
	return &FailureError{Cause: CauseUnknown, Lines: last, Advice: []string{"read the last lines, and the whole log"}, Exit: exit}
}

// clash is what the lines say of a port in use. It is the port of the config if uvicorn says so; the engine has others.
func clash(lines []string, cfg Config) *PortInUseError {
	last := lines[len(lines)-1]
	e := &PortInUseError{Err: errors.New(last)}
	if strings.Contains(last, bindFailed) {
		e.Address = cfg.address()
	}
	return e
}

// evidence is what a diagnosis is made from.
type evidence struct {
	log      []string
	exit     Exit
	startup  *startup
	settings settings
}

// fatal are texts of lines after which SGLang ends, whatever comes. What was written before the first of them is not the
// cause: a server that has served for hours has warned of much. But the lines of libraries directly before it belong to it.
var fatal = append([]string{exception, "watchdog timeout (", "crashed with exit code", "died during initialization"}, nativeEnd...)

// exception is in the line with which a scheduler, or another child, ends.
const exception = " hit an exception: "

// harmless are texts of lines that look like failures: SGLang passes over models whose packages are missing, and only
// tells of a step that is longer than --soft-watchdog-timeout.
var harmless = []string{"Ignore import error when loading", "self.soft=True"}

func isFatal(line string) bool { return containsAny(line, fatal) && !containsAny(line, harmless) }

func containsAny(line string, texts []string) bool {
	return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(line, text) })
}

// nativeBefore is how many lines before the first fatal one can belong to it.
const nativeBefore = 50

// fromFatal returns the log from the first line after which SGLang ends, or all of it. It begins with the lines before that one
// that libraries wrote of it, which have no time stamp of SGLang's.
func fromFatal(log []string) []string {
	i := slices.IndexFunc(log, isFatal)
	if i < 0 {
		return log
	}
	first := i
	for at := i - 1; at >= max(0, i-nativeBefore) && !stamp.MatchString(log[at]); at-- {
		if containsAny(log[at], nativeLines) || containsAny(log[at], ncclTexts) {
			first = at
		}
	}
	return log[first:]
}

// find returns the last lines that contain one of the texts, without repetitions.
func (e evidence) find(texts ...string) []string {
	var lines []string
	seen := map[string]bool{}
	for i := len(e.log) - 1; i >= 0 && len(lines) < shownLines; i-- {
		if !containsAny(e.log[i], texts) || containsAny(e.log[i], harmless) {
			continue
		}
		if line := shorten(e.log[i]); !seen[unstamped(line)] {
			seen[unstamped(line)] = true
			lines = append([]string{line}, lines...)
		}
	}
	return lines
}

var stamp = regexp.MustCompile(`^\[[^\]]*\] `)

func unstamped(line string) string { return stamp.ReplaceAllString(line, "") }

func shorten(line string) string {
	line = strings.TrimRight(line, " \r\n")
	if runes := []rune(line); len(runes) > shownLength {
		return string(runes[:shownLength]) + "…"
	}
	return line
}

// unbound reports whether the server never opened its socket, as far as it logs that.
func (e evidence) unbound() bool { return !e.startup.bound }

// loading reports whether the server had not begun to serve.
func (e evidence) loading() bool { return e.unbound() && e.startup.at < len(phaseBegins)-2 }

// raised reports whether an exception ended a child process.
func (e evidence) raised() bool { return len(e.find(exception)) > 0 }

// early reports whether the server failed before it loaded, or by an exception: elsewhere the same texts are warnings
// about optional parts.
func (e evidence) early() bool { return e.startup.at < 2 || e.raised() }

// killed reports whether SIGKILL from outside ended the main process: SGLang says so beforehand when it kills itself
// (utils/common.py, kill_process_tree).
func (e evidence) killed() ([]string, bool) {
	return nil, (e.exit.Signal == syscall.SIGKILL || e.exit.Code == 128+int(syscall.SIGKILL)) && len(e.find("include_parent=True")) == 0
}

// memory returns what to lower if memory runs out: the running limit, the memory fraction and the chunk size, in
// this order, with values.
func (e evidence) memory() []string {
	s := e.settings
	advice := []string{"lower max_running_requests: its default grows with the memory"}
	if s.maxRunning > 1 {
		advice[0] = fmt.Sprintf("lower max_running_requests from %.0f to %.0f", s.maxRunning, math.Floor(s.maxRunning/2))
	}
	if s.fraction > 0.1 {
		advice = append(advice, fmt.Sprintf("lower mem_fraction_static from %.3g to %.3g", s.fraction, math.Floor((s.fraction-0.05)*100+1e-9)/100))
	} else {
		advice = append(advice, "lower mem_fraction_static by 0.05")
	}
	switch {
	case s.chunk > 1024:
		advice = append(advice, fmt.Sprintf("lower chunked_prefill_size from %.0f to %.0f", s.chunk, math.Floor(s.chunk/2)))
	case s.chunk < 0:
		advice = append(advice, "set chunked_prefill_size to 4096: it is off, so a prompt is one step")
	case s.chunk == 0:
		advice = append(advice, "lower chunked_prefill_size, say to 2048")
	}
	return advice
}
