package server

import (
	"fmt"
	"strconv"
	"strings"
)

// The versions of SGLang that this package was tested with: the oldest and the newest.
const (
	OldestKnownVersion = "0.5.15"
	NewestKnownVersion = "0.5.23"
)

// A VersionError says that a server runs a version of SGLang that this package does not work with.
type VersionError struct{ Version string }

func (e *VersionError) Error() string {
	return fmt.Sprintf("SGLang %s is too old: want 0.3.0 or newer, best %s to %s", e.Version, OldestKnownVersion, NewestKnownVersion)
}

// parseVersion reads the first three numbers of a version such as "0.5.15.post1" or "0.5.16.dev3+gabc".
func parseVersion(version string) (v [3]int, known bool) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 4)
	if len(parts) < 3 {
		return v, false
	}
	for i := range v {
		digits := strings.TrimRight(parts[i], "abcdefghijklmnopqrstuvwxyz+0123456789")
		number := parts[i]
		if digits != "" {
			return v, false
		}
		if end := strings.IndexFunc(number, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			number = number[:end]
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

// olderThan reports whether version is older than major.minor.patch, if it can be read.
func olderThan(version string, major, minor, patch int) (older, known bool) {
	v, known := parseVersion(version)
	if !known {
		return false, false
	}
	for i, n := range [3]int{major, minor, patch} {
		if v[i] != n {
			return v[i] < n, true
		}
	}
	return false, true
}

// checkVersion refuses versions before 0.3.0 and returns a warning for one outside the known range, or "".
func checkVersion(version string) (warning string, err error) {
	tooOld, known := olderThan(version, 0, 3, 0)
	if tooOld {
		return "", &VersionError{version}
	}
	older, _ := olderThan(version, 0, 5, 15)
	within, _ := olderThan(version, 0, 5, 24)
	if known && !older && within {
		return "", nil
	}
	return fmt.Sprintf("SGLang %q is outside %s to %s, the versions that this package was tested with: it may behave differently",
		version, OldestKnownVersion, NewestKnownVersion), nil
}
