package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
)

type launchAllOptions struct {
	parallel int // 0: all
	keep     bool
}

// A LaunchAllOption changes how [ServerManager.LaunchAll] launches.
type LaunchAllOption func(*launchAllOptions) error

// WithParallel launches at most n servers at a time, n ≥ 1. Default: all at once.
func WithParallel(n int) LaunchAllOption {
	return func(o *launchAllOptions) error {
		if n < 1 {
			return fmt.Errorf("%d servers at a time: want at least 1, or leave WithParallel out for all at once", n)
		}
		o.parallel = n
		return nil
	}
}

// WithOthersKept keeps the servers that are ready, and goes on with those that are still to be launched, when one fails.
// Default: they are stopped.
func WithOthersKept() LaunchAllOption {
	return func(o *launchAllOptions) error { o.keep = true; return nil }
}

// LaunchAll launches a server for each config, all at once unless [WithParallel] is given. Configs, ports and GPUs are
// checked for all of them before the first one is launched; if any is refused, none is launched. If a launch fails, the
// others are stopped. With [WithOthersKept] the others are launched and stay in both cases. What it returns is in the order of
// the configs, nil where a server failed; the error joins what went wrong.
func (m *ServerManager) LaunchAll(ctx context.Context, cfgs []Config, opts ...LaunchAllOption) ([]*Server, error) {
	var o launchAllOptions
	var faults []error
	for _, opt := range opts {
		faults = append(faults, opt(&o))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("server: launch: %w", err)
	}
	errs := make([]error, len(cfgs))
	reservations := make([]*reservation, len(cfgs))
	for i, cfg := range cfgs {
		if err := cfg.Validate(); err != nil {
			errs[i] = fmt.Errorf("server: config %d:\n%w", i, err)
		} else {
			reservations[i], errs[i] = m.reserve(ctx, cfg)
		}
	}
	if err := errors.Join(errs...); err != nil && !o.keep {
		for _, r := range reservations {
			if r != nil {
				r.release()
			}
		}
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	servers := make([]*Server, len(cfgs))
	places := make(chan struct{}, max(1, cmp.Or(o.parallel, len(cfgs))))
	var wg sync.WaitGroup
	for i, r := range reservations {
		if r == nil {
			continue
		}
		places <- struct{}{} // in the order of the configs
		wg.Go(func() {
			defer func() { <-places }()
			if ctx.Err() != nil {
				r.release()
				errs[i] = fmt.Errorf("server: launch %s: %w", r.name, context.Cause(ctx))
				return
			}
			if servers[i], errs[i] = m.launch(ctx, r); errs[i] != nil && !o.keep {
				cancel(errOtherFailed)
			}
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err != nil && !o.keep {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopUnready)
		defer cancel()
		err = errors.Join(err, stopServers(stopCtx, servers))
		servers = nil
	}
	return servers, err
}

var errOtherFailed = errors.New("another server of the same LaunchAll failed")
