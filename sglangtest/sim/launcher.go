package sim

import (
	"context"
	"maps"

	"github.com/sglangtest/harness/sglangtest/server"
)

// Launcher returns a launcher whose servers are simulations in this process, each with an engine of the given
// profile. Launch fails for a configuration that cannot be simulated and for a port in use; the server that
// it returns is ready. No GPU is used, so Config.GPUs is ignored.
func Launcher(profile Profile, opts ...Option) server.Launcher { return launcher{profile, opts} }

type launcher struct {
	profile Profile
	opts    []Option
}

// Hosts names this host: a port that a config asks for is given once, and those that are free are found when
// a server listens.
func (l launcher) Hosts(context.Context, server.Config) ([]server.Host, error) {
	return []server.Host{server.LocalHost()}, nil
}

func (l launcher) Launch(ctx context.Context, spec server.Spec) (server.Instance, error) {
	cfg := spec.Config
	if spec.Name != "" { // answers name the server, as those of a process do
		cfg.Args = server.Args{"weight_version": spec.Name}
		maps.Copy(cfg.Args, spec.Config.Args)
	}
	s, err := NewServer(l.profile, cfg, l.opts...)
	if err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return instance{s}, nil
}

// instance is a started Server as a server.Instance.
type instance struct{ *Server }

var (
	_ server.Simulated = instance{}
	_ server.Reserver  = launcher{}
)

func (i instance) Stop(ctx context.Context) error {
	i.Close(ctx)
	return nil
}
