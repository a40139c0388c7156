package sim

import (
	"fmt"
	"slices"
)

// A release is a version of SGLang 0.5 whose scheduler and HTTP API are simulated.
type release struct {
	name  string // as given: "0.5.15.post1"
	patch int
	rules Rules
}

func releaseOf(version string) (release, error) {
	r := release{name: version}
	var err error
	if r.rules, err = RulesOf(version); err != nil {
		return r, err
	}
	_, err = fmt.Sscanf(version, "0.5.%d", &r.patch)
	return r, err
}

// recordedPatches are the versions of which real servers were recorded. A version between two of them answers like the
// older.
var recordedPatches = [...]int{15, 18, 21, 23}

// recorded is the place in recordedPatches of the version that r answers like.
func (r release) recorded() int {
	i, found := slices.BinarySearch(recordedPatches[:], r.patch)
	if found {
		return i
	}
	return i - 1
}

// sitePackages is where tracebacks say that SGLang is installed: its place in the official image.
const sitePackages = "/usr/local/lib/python3.12/dist-packages"

// WithVersion makes the server that of another version of SGLang: its scheduler's rules, its routes and what they
// answer. Known are 0.5.15 to 0.5.21 and 0.5.23; without this option it is [Version].
func WithVersion(version string) Option {
	return func(o *options) error {
		r, err := releaseOf(version)
		if err == nil {
			o.release = r
		}
		return err
	}
}
