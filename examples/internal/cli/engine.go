package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/mattn/go-shellwords"

	"github.com/sglangtest/harness/sglangtest"
	"github.com/sglangtest/harness/sglangtest/gpu"
	"github.com/sglangtest/harness/sglangtest/server"
)

// Engine is what the flags of an example say about its server.
type Engine struct {
	engine, command, model, args string
}

// EngineFlags defines the flags -engine, -command, -model and -server-args.
func EngineFlags(fs *flag.FlagSet) *Engine {
	e := &Engine{}
	fs.StringVar(&e.engine, "engine", "sim", "`ENGINE`: sim (simulated, in this process), local (a server process that is started here), or the base URL of a server that runs")
	fs.StringVar(&e.command, "command", "python -m sglang.launch_server", "with -engine local: the `command` that starts a server")
	fs.StringVar(&e.model, "model", "", "with -engine local: `path` of the model")
	fs.StringVar(&e.args, "server-args", "", "with -engine local: further `arguments`, as on SGLang's command line, quoted as for a shell")
	return e
}

// Configure completes cfg and returns the options of the run, and a function that releases what they hold. The GPUs of
// this host are sampled, if there are any.
func (e *Engine) Configure(ctx context.Context, cfg *sglangtest.NodeConfig) (opts []sglangtest.RunOption, release func(), err error) {
	release = func() {}
	if e.engine != "local" && (e.model != "" || e.args != "") {
		return nil, nil, errors.New("-model and -server-args need -engine local")
	}
	switch {
	case e.engine == "sim":
		return nil, release, nil
	case strings.HasPrefix(e.engine, "http"):
		return []sglangtest.RunOption{sglangtest.WithLauncher(server.Attach(e.engine))}, release, nil
	case e.engine != "local":
		return nil, nil, fmt.Errorf("-engine %s: want sim, local or a URL", e.engine)
	}
	command, err := shellwords.Parse(e.command)
	if err != nil {
		return nil, nil, fmt.Errorf("-command: %w", err)
	}
	args, err := shellwords.Parse(e.args)
	if err != nil {
		return nil, nil, fmt.Errorf("-server-args: %w", err)
	}
	if len(command) == 0 || e.model == "" {
		return nil, nil, errors.New("-engine local needs -model, and -command must not be empty")
	}
	further, err := server.ParseCommandLine("", append([]string{"--model-path", e.model}, args...))
	if err != nil {
		return nil, nil, fmt.Errorf("-server-args: %w", err)
	}
	cfg.ModelPath = e.model
	cfg.ServerArgs = further.Settings()
	delete(cfg.ServerArgs, "model_path")
	opts = append(opts, sglangtest.WithLauncher(server.LocalProcess(server.WithCommand(command[0], command[1:]...))))
	devices, err := gpu.Open(ctx)
	if none := (*gpu.UnavailableError)(nil); errors.As(err, &none) {
		fmt.Fprintln(os.Stderr, err)
		return opts, release, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return append(opts, sglangtest.WithGPUs(devices)), func() { devices.Close() }, nil
}
