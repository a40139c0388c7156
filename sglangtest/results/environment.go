package results

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/redact"
)

// harnessModule is the module whose version a run records.
const harnessModule = "github.com/sglangtest/harness"

// gitTimeout bounds the one call of git.
const gitTimeout = 2 * time.Second

// Environment says where and by what a run was made. What could not be had is empty.
type Environment struct {
	HarnessVersion string `json:"harness_version"` // of this module in the program; "(devel)" for a build from its own source tree
	GoVersion      string `json:"go_version"`
	OS             string `json:"os"`
	Arch           string `json:"arch"`
	CPUs           int    `json:"cpus"` // logical CPUs that the process could use when it started
	CPUModel       string `json:"cpu_model,omitempty"`
	GOMAXPROCS     int    `json:"gomaxprocs"`
	Hostname       string `json:"hostname"`
	// Git is the state of the repository that holds the working directory; nil if there is none, if git is
	// not installed or if it did not answer within 2 s. GitError then says which.
	Git         *Git     `json:"git"`
	GitError    string   `json:"git_error,omitempty"`
	Seed        uint64   `json:"seed"`
	CommandLine []string `json:"command_line"` // values of options whose name ends in key, token, password or secret are "(not stored)"; else as given
}

// Git is the state of a working tree.
type Git struct {
	Commit string `json:"commit"` // "(initial)" before the first commit
	Dirty  bool   `json:"dirty"`  // tracked files differ from the commit; untracked files don't count
}

func currentEnvironment(seed uint64) Environment {
	e := Environment{
		GoVersion:   runtime.Version(),
		OS:          runtime.GOOS,
		Arch:        runtime.GOARCH,
		CPUs:        runtime.NumCPU(),
		CPUModel:    cpuModel(),
		GOMAXPROCS:  runtime.GOMAXPROCS(0),
		Seed:        seed,
		CommandLine: redact.CommandLine(os.Args),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == harnessModule {
				e.HarnessVersion = m.Version
			}
		}
	}
	e.Hostname, _ = os.Hostname()
	git, err := gitState()
	if err != nil {
		e.GitError = err.Error()
	} else {
		e.Git = &git
	}
	return e
}

// cpuModel returns the first "model name" of /proc/cpuinfo, which x86 Linux has.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func gitState() (Git, error) {
	ctx, cancel := context.WithTimeout(context.Background(), gitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no")
	cmd.WaitDelay = 100 * time.Millisecond
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return Git{}, fmt.Errorf("git did not answer within %v", gitTimeout)
	}
	if err != nil {
		message, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return Git{}, fmt.Errorf("git status: %w: %s", err, message)
	}
	return parseGitStatus(string(out))
}

// parseGitStatus reads the output of "git status --porcelain=v2 --branch": header lines begin with "#",
// every other line is a change.
func parseGitStatus(out string) (Git, error) {
	var g Git
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if commit, ok := strings.CutPrefix(line, "# branch.oid "); ok {
			g.Commit = commit
		} else if line != "" && !strings.HasPrefix(line, "#") {
			g.Dirty = true
		}
	}
	if g.Commit == "" {
		return Git{}, fmt.Errorf("git status named no commit")
	}
	return g, nil
}
