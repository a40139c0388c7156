package sglargs

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// OldestVersion is the oldest SGLang that the SDK works with.
const OldestVersion = "0.3.0"

// Version is a version of SGLang, such as 0.5.15.post1. The zero value is older than every version.
type Version struct {
	release  []int
	stage, n int // stage: dev, a, b, rc, none, post
}

// A version as Python writes them (PEP 440), without an epoch; what follows a "+" names the build only.
var versionForm = regexp.MustCompile(`^v?(\d+(?:\.\d+)*)(?:[-_.]?(dev|alpha|a|beta|b|rc|post)[-_.]?(\d*))?(?:\.dev\d+)?(?:\+.*)?$`)

var versionStages = map[string]int{"dev": -4, "a": -3, "alpha": -3, "b": -2, "beta": -2, "rc": -1, "": 0, "post": 1}

// ParseVersion reads a version such as "0.5.23", "0.5.15.post1", "0.5.18rc1" or "0.5.19.dev31+g1a2b3c". The part
// after "+" does not count.
func ParseVersion(s string) (Version, error) {
	m := versionForm.FindStringSubmatch(strings.ToLower(strings.TrimSpace(s)))
	if m == nil {
		return Version{}, fmt.Errorf("%q is not a version: want one such as 0.5.23 or 0.5.15.post1", s)
	}
	v := Version{stage: versionStages[m[2]]}
	for _, part := range strings.Split(m[1], ".") {
		number, err := strconv.Atoi(part)
		if err != nil {
			return Version{}, fmt.Errorf("version %q: %w", s, err)
		}
		v.release = append(v.release, number)
	}
	for len(v.release) > 1 && v.release[len(v.release)-1] == 0 { // 0.5 and 0.5.0 are the same
		v.release = v.release[:len(v.release)-1]
	}
	if m[3] != "" {
		n, err := strconv.Atoi(m[3])
		if err != nil {
			return Version{}, fmt.Errorf("version %q: %w", s, err)
		}
		v.n = n
	}
	return v, nil
}

// Compare returns -1, 0 or +1: v is older than w, the same, newer.
func (v Version) Compare(w Version) int {
	return cmp.Or(slices.Compare(v.release, w.release), cmp.Compare(v.stage, w.stage), cmp.Compare(v.n, w.n))
}

// Support says whether the SDK works with a version of SGLang: an error if it is older than OldestVersion or no version
// at all, a warning that names it if it is older or newer than all versions whose arguments are known.
func Support(version string) (warning string, err error) {
	v, err := ParseVersion(version)
	if err != nil {
		return "", err
	}
	if v.Compare(mustVersion(OldestVersion)) < 0 {
		return "", fmt.Errorf("SGLang %s is too old: want %s or newer", version, OldestVersion)
	}
	known := Versions()
	first, last := known[0], known[len(known)-1]
	switch {
	case v.Compare(mustVersion(first)) < 0:
		return fmt.Sprintf("SGLang %s is older than the known versions, %s to %s: it is treated as %s", version, first, last, first), nil
	case v.Compare(mustVersion(last)) > 0:
		return fmt.Sprintf("SGLang %s is newer than the known versions, %s to %s: it is treated as %s", version, first, last, last), nil
	}
	return "", nil
}

func mustVersion(s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		panic(err)
	}
	return v
}
