package server

import (
	"fmt"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
)

// A VersionError says that a server runs a version of SGLang that this package does not work with.
type VersionError struct {
	Version string
	Err     error // says what is wanted
}

func (e *VersionError) Error() string { return e.Err.Error() }

func (e *VersionError) Unwrap() error { return e.Err }

// checkVersion refuses versions that are too old and returns a warning for one outside the known range, or "".
func checkVersion(version string) (warning string, err error) {
	if _, err := sglargs.ParseVersion(version); err != nil {
		return fmt.Sprintf("the server's version is not known: %v", err), nil
	}
	warning, err = sglargs.Support(version)
	if err != nil {
		return "", &VersionError{Version: version, Err: err}
	}
	return warning, nil
}

// olderThan reports whether version is older than another one, if it can be read.
func olderThan(version, other string) (older, known bool) {
	v, err := sglargs.ParseVersion(version)
	if err != nil {
		return false, false
	}
	o, err := sglargs.ParseVersion(other)
	return v.Compare(o) < 0, err == nil
}
