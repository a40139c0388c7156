//go:build unix

package process

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/sglargs"
	"github.com/sglangtest/harness/sglangtest/server"
	"github.com/sglangtest/harness/sglangtest/sim"
)

// A command is what the command line and the environment ask for.
type command struct {
	version string // SGLang's
	release int    // place in releases of the newest one that is not newer than version
	module  bool   // called as python -m sglang.launch_server

	profile sim.Profile
	startup time.Duration
	waits   float64
	files   bool
	shm     string
	id      string // begins SGLang's instance id
	seed    uint64
	faults  []planned

	table  *sglargs.Table
	args   *sglargs.Parsed
	config server.Config
	model  string // --model-path

	unhonoured []string // flags that were given and have no effect at all
}

// releases are the versions whose behaviour was recorded. A version between two of them behaves like the older.
var releases = [...]string{"0.5.15.post1", "0.5.18", "0.5.21", "0.5.23"}

const (
	v18 = 1 + iota
	v21
	v23
)

// An argument is one of SGLang's that has an effect here.
type argument struct {
	field string
	note  string // on its effect
}

// own are the arguments that have an effect on the process, and not or not only on the simulated server in it.
var own = []argument{
	{"model_path", "only the profile's model is simulated: a path that does not exist fails as in SGLang, any other name is an alias"},
	{"tokenizer_path", "without it, the model path: a folder with a tokenizer.json makes token counts exact"},
	{"served_model_name", ""}, {"host", ""}, {"port", ""},
	{"log_level", ""}, {"log_level_http", "of uvicorn's lines and its access log"},
	{"watchdog_timeout", ""}, {"skip_server_warmup", ""},
	{"mem_fraction_static", "shown in failures; the KV pool is the profile's or max_total_tokens"},
	{"load_format", "without dummy, progress bars are shown"},
	{"device", "other than cuda: no CUDA graphs in the log"},
	{"dtype", "in the log"},
	{"disable_cuda_graph", "in the log"}, {"cuda_graph_backend_decode", "in the log"}, {"cuda_graph_backend_prefill", "in the log"},
	{"tp_size", "so many scheduler processes; step times stay the profile's, and the label says so"},
}

func isOwn(field string) bool {
	return slices.ContainsFunc(own, func(a argument) bool { return a.field == field })
}

// honoured are all arguments that have an effect. All others are accepted, checked, shown in /server_info, and reported once in
// the log, and so are values that the simulation does not have.
func honoured() []argument {
	all := slices.Clone(own)
	for _, a := range sim.Arguments() {
		if !isOwn(a.Name) {
			all = append(all, argument{a.Name, a.Note})
		}
	}
	return all
}

// help is what --help prints. SGLang's own help has some 500 arguments.
func help(w io.Writer) {
	fmt.Fprint(w, `usage: sglang-sim [serve [MODEL]] [SGLang's arguments] [--sim-...]
       sglang-sim -m sglang.launch_server [SGLang's arguments] [--sim-...]
       sglang-sim version

A simulated SGLang server as a process. It takes the arguments of SGLang; these have an effect:

`)
	for _, h := range honoured() {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  --%-42s %s", strings.ReplaceAll(h.field, "_", "-"), h.note), " "))
	}
	fmt.Fprint(w, "\nIts own arguments; each can be given in the environment, too, as SGLANG_SIM_NAME:\n\n")
	fs := new(command).flags()
	fs.SetOutput(w)
	fs.VisitAll(func(f *flag.Flag) {
		name, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%-42s %s\n", f.Name+" "+strings.TrimSpace(name), usage)
	})
	fmt.Fprint(w, "\nFaults, for --sim-fault NAME[:VALUE][@AFTER] (AFTER: a duration from readiness such as 30s, or a number of requests), how\nthe main process ends, and what they do:\n\n")
	for _, f := range faults {
		name := f.name
		if f.value != "" {
			name += ":VALUE"
		}
		fmt.Fprintf(w, "  %-20s %-9s %s", name, f.exit, f.doc)
		if f.value != "" {
			fmt.Fprintf(w, "; value: %s", f.value)
		}
		fmt.Fprintln(w)
	}
}

// flags are the arguments that are not SGLang's.
func (c *command) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("sglang-sim", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	c.profile = sim.H100Llama8B()
	fs.Func("sim-profile", "`NAME` or .json file of the model and GPU to simulate; default "+c.profile.Name, func(s string) (err error) {
		if strings.HasSuffix(s, ".json") {
			c.profile, err = sim.LoadProfile(s)
		} else {
			c.profile, err = sim.ProfileByName(s)
		}
		return err
	})
	fs.StringVar(&c.version, "sim-version", sim.Version, "`VERSION` of SGLang to be; default "+sim.Version)
	fs.DurationVar(&c.startup, "sim-startup", 0, "`DURATION` of the start, split over its phases as recorded on an H100; default 0")
	fs.Float64Var(&c.waits, "sim-waits", 1, "`FACTOR` by which SGLang's own waiting times are scaled, such as the 5 s between looks at the requests in flight; default 1")
	fs.BoolVar(&c.files, "sim-files", true, "make files in /dev/shm and the temporary folder, and leave them, as SGLang does: `true` or false")
	fs.StringVar(&c.shm, "sim-shm", "/dev/shm", "`FOLDER` of shared memory; default /dev/shm")
	fs.Func("sim-instance", "`PREFIX` of SGLang's instance id, up to 8 of its 12 hexadecimal digits; it is in the name of the file in shared memory", func(s string) error {
		if len(s) > 8 || strings.Trim(s, "0123456789abcdef") != "" {
			return errors.New("want up to 8 hexadecimal digits")
		}
		c.id = s
		return nil
	})
	fs.Uint64Var(&c.seed, "sim-seed", 1, "`SEED` of random faults; default 1")
	fs.Func("sim-fault", "`FAULT` to have; may be repeated, in the environment separated by commas", func(s string) error {
		for spec := range strings.SplitSeq(s, ",") {
			p, err := parseFault(spec)
			if err != nil {
				return err
			}
			c.faults = append(c.faults, p)
		}
		return nil
	})
	return fs
}

// parse reads a command line. It answers for itself what ends there: the status is then ≥ 0.
func parse(argv []string, stdout, stderr io.Writer) (c *command, status int) {
	c = &command{}
	fs := c.flags()
	argv, own := split(argv)
	wrong := c.take(fs, own)
	// They are told in argparse's form, so that who reads SGLang's errors reads these, too.
	fail := func() (*command, int) {
		fmt.Fprintln(stderr, "usage: sglang-sim [-h] [serve [MODEL]] [SGLang's arguments] [--sim-...]")
		for _, w := range wrong {
			fmt.Fprintln(stderr, "sglang-sim: error:", w)
		}
		return nil, 2
	}
	if wrong != nil {
		return fail()
	}
	var err error
	for i, v := range releases {
		if sglargsVersion(v).Compare(sglargsVersion(c.version)) <= 0 {
			c.release = i
		}
	}
	for i := 0; i+1 < len(argv); i++ { // the interpreter's own flags, and the module
		if argv[i] == "-m" && strings.HasPrefix(argv[i+1], "sglang.") {
			c.module = true
			argv = argv[i+2:]
			break
		}
	}
	switch {
	case len(argv) > 0 && argv[0] == "version":
		fmt.Fprintf(stdout, "sglang version: %s\ngit revision: simulat\n", c.version)
		return nil, 0
	case len(argv) > 0 && argv[0] == "serve":
		argv = c.table.ServeArgs(argv[1:])
	}
	if c.module {
		fmt.Fprintf(stderr, "%s/sglang/launch_server.py:%d: UserWarning: 'python -m sglang.launch_server' is still supported, but 'sglang serve' is the recommended entrypoint.\n"+
			"  Example: sglang serve --model-path <model> [options]\n  warnings.warn(\n", sitePackages, [...]int{55, 57, 71, 71}[c.release])
	}
	c.args, err = c.table.Parse(argv)
	var refused *sglargs.Error
	switch {
	case errors.Is(err, sglargs.ErrHelp):
		help(stdout)
		return nil, 0
	case errors.As(err, &refused):
		if refused.Exception == "" {
			fmt.Fprint(stderr, c.table.Usage())
		} else {
			fmt.Fprintln(stderr, "Traceback (most recent call last):")
		}
		fmt.Fprintln(stderr, refused)
		return nil, refused.ExitStatus()
	case err != nil:
		wrong = append(wrong, err.Error())
		return fail()
	}
	c.configure()
	return c, -1
}

// take sets the arguments that are not SGLang's, from the environment and the command line, and returns what is wrong with them.
func (c *command) take(fs *flag.FlagSet, own []string) (wrong []string) {
	bad := func(arg, format string, args ...any) {
		wrong = append(wrong, "argument "+arg+": "+fmt.Sprintf(format, args...))
	}
	set := func(name, v, arg string) {
		if err := fs.Set(name, v); err != nil {
			bad(arg, "invalid value %q: %s", v, strings.TrimPrefix(err.Error(), "sglang-sim: "))
		}
	}
	fs.VisitAll(func(f *flag.Flag) {
		key := "SGLANG_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := os.LookupEnv(key); ok && v != "" {
			set(f.Name, v, fmt.Sprintf("--%s (%s in the environment)", f.Name, key))
		}
	})
	for _, env := range os.Environ() {
		name, _, _ := strings.Cut(env, "=")
		if own, ok := strings.CutPrefix(name, "SGLANG_SIM_"); ok && fs.Lookup("sim-"+strings.ToLower(strings.ReplaceAll(own, "_", "-"))) == nil {
			wrong = append(wrong, "unrecognized arguments: "+name+" in the environment: want the name of an argument --sim-")
		}
	}
	for _, a := range own {
		arg, v, valued := strings.Cut(a, "=")
		switch name := strings.TrimPrefix(arg, "--"); {
		case fs.Lookup(name) == nil:
			wrong = append(wrong, "unrecognized arguments: "+arg)
		case !valued:
			bad(arg, "expected one argument")
		default:
			set(name, v, arg)
		}
	}
	if !(c.waits > 0 && c.waits <= 1000) {
		bad("--sim-waits", "want a number above 0 and at most 1000, not %v", c.waits)
	}
	if c.startup < 0 {
		bad("--sim-startup", "want a duration that is not negative, not %v", c.startup)
	}
	var err error
	if c.table, err = sglargs.For(c.version); err != nil {
		bad("--sim-version", "%v", err)
	}
	return wrong
}

// split takes the arguments that begin with --sim- out of the command line; each has a value.
func split(argv []string) (sglang, own []string) {
	for i := 0; i < len(argv); i++ {
		a := argv[i]
		if !strings.HasPrefix(a, "--sim-") {
			sglang = append(sglang, a)
			continue
		}
		if !strings.Contains(a, "=") && i+1 < len(argv) {
			i++
			a += "=" + argv[i]
		}
		own = append(own, a)
	}
	return sglang, own
}

func sglargsVersion(s string) sglargs.Version {
	v, err := sglargs.ParseVersion(s)
	if err != nil {
		return sglargs.Version{} // refused by sglargs.For
	}
	return v
}

// configure makes the server's configuration of the arguments.
func (c *command) configure() {
	c.model = c.str("model_path")
	c.config = server.Config{TokenizerPath: c.str("tokenizer_path"), ServedModelName: c.str("served_model_name"), Host: c.str("host"), Port: c.num("port")}
	if c.config.TokenizerPath == "" {
		c.config.TokenizerPath = c.model
	}
	if c.config.ServedModelName == "" {
		c.config.ServedModelName = c.model
	}
	simulated := map[string]sim.Argument{}
	for _, a := range sim.Arguments() {
		simulated[a.Name] = a
	}
	seen := map[string]bool{}
	for _, a := range c.table.Args() {
		v, given := c.args.Given[a.Field]
		if !given || v == nil || seen[a.Field] || isOwn(a.Field) {
			continue
		}
		seen[a.Field] = true
		// With --enable-dp-attention the ranks are not engines of their own.
		apart := a.Field != "dp_size" || !c.set("enable_dp_attention")
		if s, ok := simulated[a.Field]; ok && s.Simulates(v) && apart {
			// A 0 that stands for "not set" in a config, and for something else in SGLang, is refused here.
			if config, err := c.config.With(server.Args{a.Field: v}); err == nil {
				c.config = config
				continue
			}
		}
		c.unhonoured = append(c.unhonoured, a.Flag())
	}
}

// reported are the arguments that /server_info shows as given beside those of the server's configuration.
func (c *command) reported() map[string]any {
	out := map[string]any{"load_format": c.str("load_format")}
	config := c.config.Settings()
	for field, v := range c.args.Given {
		if _, has := config[field]; !has {
			out[field] = v
		}
	}
	return out
}

// ineffective are the flags that were given and are not simulated: those without any effect, and those of which the server's
// label says so.
func (c *command) ineffective(labelled []string) []string {
	flags := slices.Clone(c.unhonoured)
	for _, field := range labelled {
		if a, ok := c.table.Lookup(field); ok && !slices.Contains(flags, a.Flag()) {
			flags = append(flags, a.Flag())
		}
	}
	return flags
}

func (c *command) str(field string) string              { s, _ := c.args.Value(field).(string); return s }
func (c *command) num(field string) int                 { n, _ := c.args.Value(field).(int); return n }
func (c *command) set(field string) bool                { b, _ := c.args.Value(field).(bool); return b }
func (c *command) scaled(d time.Duration) time.Duration { return time.Duration(float64(d) * c.waits) }

func (c *command) float(field string) float64 {
	switch v := c.args.Value(field).(type) {
	case float64:
		return v
	case int:
		return float64(v)
	}
	return 0
}

// asks returns the first planned fault of that moment.
func (c *command) asks(m moment) *planned {
	for i := range c.faults {
		if c.faults[i].when == m {
			return &c.faults[i]
		}
	}
	return nil
}
