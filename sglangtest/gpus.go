package sglangtest

import (
	"context"
	"errors"
	"reflect"

	"github.com/sglangtest/harness/sglangtest/gpu"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// GPUs are the devices that a run's server uses: [gpu.Devices] are NVIDIA's of this host; those of other
// makers, or of another host, implement the same. It is safe for concurrent use.
type GPUs interface {
	// GPUs lists the devices as they are, with the memory in use: before the launch, and at the end until it
	// is free again. A source that has a method Host() string too ([server.HostInventory]) is of that host,
	// and else of this one.
	server.GPUInventory
	// Sampler returns a sampler of the devices with the given indices, or of all without any. Its values are
	// named by metrics.GPUSeries, of metrics.GPUPower and its neighbours; what a device does not tell is left
	// out.
	Sampler(ctx context.Context, indices ...int) (metrics.Sampler, error)
}

var _ GPUs = (*gpu.Devices)(nil)

// WithGPUs makes the run sample the GPUs of its server, or all if the config names none, and the server
// manager check them before it launches: a GPU that is in use is refused at once, and so are GPUs of another
// host than the server's, where the launcher tells which that is ([server.Reserver]). It also makes the run
// wait for their memory at the end, which else may be in use for some seconds more. The caller closes what is
// to be closed after the run.
func WithGPUs(g GPUs) RunOption {
	return func(o *runOptions) error {
		if v := reflect.ValueOf(g); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
			return errors.New("GPUs are nil: see gpu.Open")
		}
		o.gpus = g
		return nil
	}
}
