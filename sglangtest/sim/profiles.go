package sim

import (
	"cmp"
	"embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

//go:embed profiles/*.json
var profileFiles embed.FS

// Profiles returns the profiles that come with the package, by name. Those that were not calibrated say so in their
// Calibrated and KnownError.
func Profiles() []Profile {
	files, err := profileFiles.ReadDir("profiles")
	if err != nil {
		panic(err) // embedded
	}
	var all []Profile
	for _, f := range files {
		b, err := profileFiles.ReadFile("profiles/" + f.Name())
		if err != nil {
			panic(err) // embedded
		}
		var p Profile
		if err := json.Unmarshal(b, &p); err != nil {
			panic(fmt.Sprintf("sim: embedded %s: %v", f.Name(), err)) // the package's tests read all of them
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Profile) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// ProfileByName returns the profile of that name of those that come with the package.
func ProfileByName(name string) (Profile, error) {
	var names []string
	for _, p := range Profiles() {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, fmt.Errorf("sim: no profile is called %q: there are %s", name, strings.Join(names, ", "))
}

const calibratedProfile = "h100-llama-3.1-8b"

// H100Llama8B returns the profile of Llama-3.1-8B in bf16 on one H100 80GB SXM: what [Calibrate] yields on a
// calibration of SGLang 0.5.15.post1 (fa3 attention, CUDA graphs for decode up to 256 requests and for prefill up to
// 8192 tokens, Handover of 1 ms). Its Validation is what [Validate] finds on open-loop runs, to which nothing was fitted.
// The scheduler's rules are those of a later version, whose own step times were not measured.
func H100Llama8B() Profile {
	p, err := ProfileByName(calibratedProfile)
	if err != nil {
		panic(err) // embedded
	}
	return p
}
