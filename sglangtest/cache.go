package sglangtest

import (
	"context"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// countTimeout bounds the wait for an engine to become idle after the load, so that its counts are final.
const countTimeout = 2 * time.Second

// prepareCache returns what the run does about the server's prefix cache: empty it before the load where that is wanted, tell
// the collector which state it had, and, where the answers do not tell what came from it, ask the engine.
func (c NodeConfig) prepareCache(node *server.Server, col *metrics.Collector) []load.RunOption {
	state := metrics.CacheUnknown
	switch {
	case c.KeepCache != nil && *c.KeepCache:
		state = metrics.CacheKept
	case c.KeepCache != nil || !node.Attached():
		state = metrics.CacheFlushed
	}
	var before int64
	var counted bool
	prepare := func(ctx context.Context) error {
		if state == metrics.CacheFlushed {
			ctx, cancel := context.WithTimeout(ctx, flushTimeout)
			defer cancel()
			if err := node.FlushCache(ctx); err != nil {
				return err
			}
		}
		if c.API != "" && c.API != load.Generate {
			ctx, cancel := context.WithTimeout(ctx, countTimeout)
			defer cancel()
			// An engine that does not tell, or that others keep busy, leaves the share of cached tokens unknown.
			before, counted, _ = node.Prefilled(ctx)
		}
		return nil
	}
	tell := func(ctx context.Context, clock load.Clock) error {
		col.Event(metrics.Event{At: clock.Now(), Kind: metrics.KindCacheState, Source: node.Name(), Data: map[string]any{"state": string(state)}})
		<-ctx.Done()
		if !counted || node.Err() != nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), countTimeout)
		defer cancel()
		if after, ok, err := node.Prefilled(ctx); err == nil && ok && after >= before {
			col.Event(metrics.Event{At: clock.Now(), Kind: metrics.KindPrefilled, Source: node.Name(), Data: map[string]any{"tokens": after - before}})
		}
		return nil
	}
	return []load.RunOption{load.WithAfterWarmup(prepare), load.WithBackground(tell)}
}
