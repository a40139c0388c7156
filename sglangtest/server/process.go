package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
)

// DefaultStopTimeout is how long a server has to end by itself after SIGTERM. SGLang looks at the flag every 5 s, waits
// without limit for requests in flight, and then gives its schedulers 15 s (tokenizer_manager.py, sigterm_watchdog).
const DefaultStopTimeout = 20 * time.Second

// markerVariable names the server in the environment of its processes, so that those which leave its process group
// are found.
const markerVariable = "SGLANGTEST_SERVER"

// A ProcessOption configures [LocalProcess].
type ProcessOption func(*process) error

// process is the launcher of local processes.
type process struct {
	command     []string
	environment map[string]string
	stopTimeout time.Duration
	fault       error
}

// LocalProcess returns a launcher whose servers are processes of this host, each in a process group of its own, with
// the arguments of the config appended to a command, by default "python -m sglang.launch_server". Nothing survives
// the program that launched them, however it ends: a small /bin/sh process beside each server waits for that, kills
// what is left and removes its files. Only what is proven to be the server's is ended or removed: a process that
// is in its group while the main process has its number, or has inherited its environment, its open log or its control
// group (one is made where cgroup v2 lets this program do so); a file in /dev/shm that came into being while the server
// lived and that its processes had open or mapped to write, and no others at all, when it was first seen, or whose name tells one of them.
//
// Config.GPUs becomes CUDA_VISIBLE_DEVICES, and TMPDIR a folder that goes with the server. API keys stand in the command
// line, which others on this host can see, and in SGLang's own log: only its owner can read the files, and [Log] hides
// them. A fault in the options is reported by Launch. Linux is needed to find processes that left their group; other
// Unix systems do without that.
func LocalProcess(opts ...ProcessOption) Launcher {
	p := &process{command: []string{"python", "-m", "sglang.launch_server"}, environment: map[string]string{}, stopTimeout: DefaultStopTimeout}
	faults := make([]error, 0, len(opts))
	for _, opt := range opts {
		faults = append(faults, opt(p))
	}
	p.fault = errors.Join(faults...)
	return p
}

// WithCommand sets the command, to which the arguments of the config are appended: an interpreter with
// "-m", "sglang.launch_server", or "sglang", "serve", or a wrapper script. The signals of a stop go to this process, so a
// script should end with exec. A container's command must keep the container in the foreground, share the host's
// network and end with its client; what runs under a daemon, as with docker, is out of reach if it must be killed.
func WithCommand(command string, args ...string) ProcessOption {
	return func(p *process) error {
		if command == "" {
			return errors.New("command: empty")
		}
		p.command = append([]string{command}, args...)
		return nil
	}
}

// WithEnvironment sets variables of the servers' environment, over those of this program: SGLANG_…, HF_TOKEN, a
// TMPDIR of the caller's own (which is then left alone).
func WithEnvironment(variables map[string]string) ProcessOption {
	return func(p *process) error {
		for name := range variables {
			if name == "" || strings.ContainsAny(name, "=\x00") {
				return fmt.Errorf("environment: %q is no name of a variable", name)
			}
		}
		maps.Copy(p.environment, variables)
		return nil
	}
}

// WithStopTimeout sets how long a server has to end by itself when it is stopped; then it is killed. Default:
// [DefaultStopTimeout]. The context of Stop can end this time early.
func WithStopTimeout(d time.Duration) ProcessOption {
	return func(p *process) error {
		if d <= 0 {
			return fmt.Errorf("stop time-out %v: want > 0", d)
		}
		p.stopTimeout = d
		return nil
	}
}

// check reports what a server with the config cannot be launched with from here.
func (p *process) check(cfg Config) error {
	var faults []error
	for _, name := range []string{"ssl_certfile", "ssl_keyfile"} {
		if cfg.Args[name] != nil {
			faults = append(faults, fmt.Errorf("args.%s: the servers of this package speak plain HTTP: leave it out", name))
		}
	}
	for _, name := range []string{"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"} {
		if _, set := p.environment[name]; set && len(cfg.GPUs) > 0 {
			faults = append(faults, fmt.Errorf("environment: %s contradicts the GPUs %v, of the config or chosen by the manager: set only one of them", name, cfg.GPUs))
		}
	}
	return errors.Join(faults...)
}

// Hosts makes the manager give each server a port and its GPUs.
func (p *process) Hosts(context.Context, Config) ([]Host, error) {
	here := LocalHost()
	here.Port, here.GPUs = true, true
	return []Host{here}, nil
}

// program returns the path of the server's program, which is looked for where the server itself would.
func (p *process) program() (string, error) {
	name, dirs := p.command[0], p.environment["PATH"]
	if dirs == "" || strings.ContainsRune(name, filepath.Separator) {
		return exec.LookPath(name)
	}
	for _, dir := range filepath.SplitList(dirs) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", &exec.Error{Name: name, Err: fmt.Errorf("not found in the PATH that WithEnvironment sets, %s", dirs)}
}

// environ returns the environment of a server.
func (p *process) environ(cfg Config, variable, temp string) []string {
	set := map[string]string{"TMPDIR": temp, "PYTHONUNBUFFERED": "1"}
	if len(cfg.GPUs) > 0 {
		ids := make([]string, len(cfg.GPUs))
		for i, id := range cfg.GPUs {
			ids[i] = fmt.Sprint(id)
		}
		set["CUDA_VISIBLE_DEVICES"] = strings.Join(ids, ",")
		set["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID" // the numbering of nvidia-smi and NVML
	}
	maps.Copy(set, p.environment)
	_, set[markerVariable], _ = strings.Cut(variable, "=")
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		_, replaced := set[name]
		return replaced
	})
	for _, name := range slices.Sorted(maps.Keys(set)) {
		env = append(env, name+"="+set[name])
	}
	return env
}

// A folder holds the files of one server: its TMPDIR, and its logs if they have no other place.
type folder struct {
	root, temp, logs string
	made             bool
}

// maxTempDir is the length of the longest TMPDIR in which a server's own one is made: SGLang makes Unix sockets there, whose
// paths have at most 107 bytes, and of which "/sglangtest-" with 26 random letters, "/tmp" and "/tmp" with 8 more letters take 54.
const maxTempDir = 53

// nameFolder gives one a name that nobody has, in the system's TMPDIR or, if its path is too long, in /tmp.
func nameFolder(logs string) folder {
	base, err := filepath.Abs(os.TempDir())
	if err != nil || len(base) > maxTempDir {
		base = "/tmp"
	}
	root := filepath.Join(base, "sglangtest-"+rand.Text())
	f := folder{root: root, temp: filepath.Join(root, "tmp"), logs: logs}
	if logs == "" {
		f.logs = root
	}
	return f
}

// make makes it.
func (f *folder) make(cfg Config) error {
	if err := os.Mkdir(f.root, 0o700); err != nil {
		return err
	}
	f.made = true
	if err := os.Mkdir(f.temp, 0o700); err != nil {
		return err
	}
	return linkCaches(os.TempDir(), f.temp, cfg)
}

// remove removes it if it was made, and not what somebody else has in its place.
func (f *folder) remove() error {
	if !f.made {
		return nil
	}
	return os.RemoveAll(f.root)
}

// checkPath refuses control characters in a path or a name that the user chose.
func checkPath(what, path string) error {
	if i := strings.IndexFunc(path, unicode.IsControl); i >= 0 {
		return fmt.Errorf("%s: %q has a control character at byte %d: choose one without", what, path, i)
	}
	return nil
}

// linkCaches keeps the caches that libraries have in the common TMPDIR: those of torch.compile, tiktoken and CuTe.
// Without them each start would compile and download anew.
func linkCaches(common, temp string, cfg Config) error {
	user := os.Getenv("USER")
	if user == "" && os.Getuid() == 0 {
		user = "root"
	}
	caches := []string{"data-gym-cache"}
	if user != "" {
		caches = append(caches, user)
		inductor := "torchinductor_" + user
		caches = append(caches, inductor)
		if cfg.EnableTorchCompile {
			if err := os.MkdirAll(filepath.Join(common, inductor), 0o700); err != nil {
				return err
			}
		}
	}
	for _, name := range caches {
		if _, err := os.Stat(filepath.Join(common, name)); err != nil {
			continue // there is no such cache
		}
		if err := os.Symlink(filepath.Join(common, name), filepath.Join(temp, name)); err != nil {
			return err
		}
	}
	return nil
}
