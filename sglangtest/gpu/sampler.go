package gpu

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// sampleTimeout bounds a reading by nvidia-smi, so that a driver that hangs shows as failed samples.
const sampleTimeout = 5 * time.Second

// Sampler returns a sampler named "gpu" of the GPUs with the given indices, or of all. Its values are the GPU metrics
// of package metrics, as metrics.GPUSeries names them; one that a GPU does not tell is left out. All GPUs are read in one
// sample, which fails as a whole: also if an index has come to mean another GPU than it did when Sampler was called.
// The use that the driver reports is itself a mean over a time that depends on the GPU, up to a second (NVML's manual,
// nvmlUtilization_t), and the power one over a second on most (nvmlDeviceGetPowerUsage).
func (d *Devices) Sampler(ctx context.Context, indices ...int) (metrics.Sampler, error) {
	gpus, err := d.GPUs(ctx)
	if err != nil {
		return nil, err
	}
	if len(indices) == 0 {
		return &sampler{d, gpus}, nil
	}
	wanted := make([]server.GPU, 0, len(indices))
	for _, index := range indices {
		i := slices.IndexFunc(gpus, func(g server.GPU) bool { return g.Index == index })
		if i < 0 {
			return nil, unknownGPU(index, gpus)
		}
		wanted = append(wanted, gpus[i])
	}
	return &sampler{d, wanted}, nil
}

type sampler struct {
	devices *Devices
	gpus    []server.GPU
}

func (s *sampler) Name() string { return "gpu" }

func (s *sampler) Sample(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, sampleTimeout)
	defer cancel()
	readings, err := s.devices.read(ctx)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for _, g := range s.gpus {
		i := slices.IndexFunc(readings, func(r reading) bool { return r.gpu.Index == g.Index && r.gpu.UUID == g.UUID })
		if i < 0 {
			return nil, fmt.Errorf("gpu: GPU %d is no longer %s", g.Index, g.UUID)
		}
		values[metrics.GPUSeries(metrics.GPUMemoryUsed, g.Index)] = float64(readings[i].gpu.MemoryUsed)
		for name, v := range readings[i].values {
			values[metrics.GPUSeries(name, g.Index)] = v
		}
	}
	return values, nil
}
