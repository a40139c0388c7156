package server

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
)

// A PortInUseError says that a server's port is taken. Choose another one, or 0 for a free one. It is in every error that
// has this cause, whenever the clash shows: before the launch, when another server answers, or, inside a [FailureError] with
// [CausePortInUse], when the server cannot open its socket after the load.
type PortInUseError struct {
	Host    string // the name of the host on which it is; empty: this one, or one that is not known
	Address string // empty if the server's log does not say which
	By      string // the server of the same manager that has it; empty if it is something else
	Err     error  // what showed it; nil if By is set
}

func (e *PortInUseError) Error() string {
	if e.By != "" {
		return fmt.Sprintf("server: %s%s is the port of %s: choose another port, or 0 for a free one", e.Address, on(e.Host), e.By)
	}
	return fmt.Sprintf("server: %s%s is in use or cannot be listened on: choose another port, or 0 for a free one: %v", cmp.Or(e.Address, "a port"), on(e.Host), e.Err)
}

func (e *PortInUseError) Unwrap() error { return e.Err }

// A GPUError says that a GPU cannot be given to a server.
type GPUError struct {
	Host   string // the name of the host that has it; empty: this one
	Index  int
	By     string // the server of the same manager that has it; empty if that is not the reason
	Reason string
}

func (e *GPUError) Error() string {
	if e.By != "" {
		return fmt.Sprintf("server: GPU %d%s is taken by %s: choose others", e.Index, on(e.Host), e.By)
	}
	return fmt.Sprintf("server: GPU %d%s %s", e.Index, on(e.Host), e.Reason)
}

// ErrKilled is why a server ended that [Server.Kill] killed.
var ErrKilled = errors.New("killed as the experiment asked")

// A NotReadyError says that a server did not become ready in time.
type NotReadyError struct {
	Waiting string // what was being waited for
	Phase   string // of the start-up that the log shows; empty if there is no log
	LogFile string // what the server writes; empty if there is no file
	Last    string // the last answer or failure
	Err     error  // why waiting ended
}

func (e *NotReadyError) Error() string {
	waiting := e.Waiting
	if e.Phase != "" {
		waiting += "; its log shows: " + e.Phase
	}
	if e.LogFile != "" {
		waiting += " (" + e.LogFile + ")"
	}
	return fmt.Sprintf("not ready: waited for %s; last: %s; ended by %v", waiting, e.Last, e.Err)
}

func (e *NotReadyError) Unwrap() error { return e.Err }

// An ExitedError says that a server ended while it was needed.
type ExitedError struct{ Err error } // Err says why it ended by itself; nil if it was stopped

func (e *ExitedError) Error() string {
	if e.Err == nil {
		return "the server was stopped"
	}
	return fmt.Sprintf("the server has ended: %v", e.Err)
}

func (e *ExitedError) Unwrap() error { return e.Err }

// A NotSGLangError says that what answers at the URL is not an SGLang server.
type NotSGLangError struct {
	URL    string // without a password
	Reason string
}

func (e *NotSGLangError) Error() string {
	return fmt.Sprintf("%s is not an SGLang server: %s", e.URL, e.Reason)
}

// A ParamError says that a parameter cannot be changed at run time, or not to that value.
type ParamError struct {
	Name   string
	Value  int
	Reason string
}

func (e *ParamError) Error() string {
	return fmt.Sprintf("server: cannot set %s to %d: %s", e.Name, e.Value, e.Reason)
}

// A StatusError is an answer of the control plane with a status other than 200.
type StatusError struct {
	Method, Path string
	Status       int
	Body         string // the beginning of it, or of the error message in it
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s %s: HTTP status %d", e.Method, e.Path, e.Status)
	if e.Body != "" {
		text += ": " + e.Body
	}
	if e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden {
		text += ": set the server's key with " + keyOption(e.Path)
	}
	return text
}

// A noAnswerError says that a call got no answer.
type noAnswerError struct {
	method, path string
	err          error
}

func (e *noAnswerError) Error() string { return fmt.Sprintf("%s %s: %v", e.method, e.path, e.err) }

func (e *noAnswerError) Unwrap() error { return e.err }
