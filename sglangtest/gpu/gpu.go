package gpu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/sglangtest/harness/sglangtest/server"
)

// Devices are the NVIDIA GPUs of this host. It is safe for concurrent use; readings are made one at a time.
type Devices struct {
	mu     sync.Mutex
	source source
}

// A source is one way to ask for the state of GPUs.
type source interface {
	name() string
	// read returns the state of all GPUs, in order of index.
	read(ctx context.Context) ([]reading, error)
	// processes returns the processes that compute on the GPU with the given UUID.
	processes(ctx context.Context, uuid string) ([]Process, error)
	close() error
}

// A reading is the state of one GPU. Its values are named as in [Devices.Sampler]; one that the GPU does not tell is
// not there.
type reading struct {
	gpu    server.GPU
	values map[string]float64
}

// A Process holds memory of a GPU.
type Process struct {
	PID    int    // as the driver knows it: in a container, not that of this PID name space
	Name   string // path of its program; empty if it cannot be told
	Memory int64  // bytes; 0 if not told, as in most containers
}

// An UnavailableError says that this host offers no GPU telemetry.
type UnavailableError struct {
	NVML      error // why the library cannot be used
	NvidiaSMI error // why the program cannot be used
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("gpu: no GPU telemetry on this host: NVML: %v; nvidia-smi: %v", e.NVML, e.NvidiaSMI)
}

func (e *UnavailableError) Unwrap() []error { return []error{e.NVML, e.NvidiaSMI} }

type options struct {
	nvml func() (source, error)
	smi  string // program
}

// An Option configures [Open].
type Option func(*options) error

// WithoutNVML makes Open use nvidia-smi also where NVML could be used.
func WithoutNVML() Option {
	return func(o *options) error {
		o.nvml = func() (source, error) { return nil, errors.New("not wanted") }
		return nil
	}
}

// Open finds a way to ask for the GPUs and makes sure that it answers. If there is none, the error is an
// [UnavailableError]. The caller closes the devices.
func Open(ctx context.Context, opts ...Option) (*Devices, error) {
	o := options{nvml: openNVML, smi: "nvidia-smi"}
	faults := make([]error, 0, len(opts))
	for _, opt := range opts {
		faults = append(faults, opt(&o))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("gpu: open: %w", err)
	}
	try := func(s source, err error) (*Devices, error) {
		if err != nil {
			return nil, err
		}
		if _, err := s.read(ctx); err != nil {
			return nil, errors.Join(err, s.close())
		}
		return &Devices{source: s}, nil
	}
	d, nvml := try(o.nvml())
	if nvml == nil {
		return d, nil
	}
	d, smi := try(findSMI(o.smi))
	if smi == nil {
		return d, nil
	}
	return nil, &UnavailableError{NVML: nvml, NvidiaSMI: smi}
}

// Source says how the GPUs are asked, such as "NVML, driver 580.159.04".
func (d *Devices) Source() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.source.name()
}

// GPUs returns the GPUs of this host in order of index, which is the order of their PCI addresses: CUDA numbers them
// likewise if CUDA_DEVICE_ORDER is PCI_BUS_ID. CUDA_VISIBLE_DEVICES has no influence. With NVML the call cannot
// be interrupted.
func (d *Devices) GPUs(ctx context.Context) ([]server.GPU, error) {
	readings, err := d.read(ctx)
	if err != nil {
		return nil, err
	}
	gpus := make([]server.GPU, len(readings))
	for i, r := range readings {
		gpus[i] = r.gpu
	}
	return gpus, nil
}

// Processes returns the processes that compute on the GPU with the given index, the one with most memory first:
// who holds the memory.
func (d *Devices) Processes(ctx context.Context, index int) ([]Process, error) {
	gpus, err := d.GPUs(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(gpus, func(g server.GPU) bool { return g.Index == index })
	if i < 0 {
		return nil, unknownGPU(index, gpus)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	ps, err := d.source.processes(ctx, gpus[i].UUID)
	if err != nil {
		return nil, fmt.Errorf("gpu: processes of GPU %d: %w", index, err)
	}
	slices.SortStableFunc(ps, func(a, b Process) int {
		switch {
		case a.Memory > b.Memory:
			return -1
		case a.Memory < b.Memory:
			return 1
		}
		return a.PID - b.PID
	})
	return ps, nil
}

// Close gives NVML back. The devices must not be used afterwards.
func (d *Devices) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.source.close(); err != nil {
		return fmt.Errorf("gpu: close: %w", err)
	}
	return nil
}

func (d *Devices) read(ctx context.Context) ([]reading, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil { // NVML would not look at it
		return nil, fmt.Errorf("gpu: read: %w", err)
	}
	readings, err := d.source.read(ctx)
	if err != nil {
		return nil, fmt.Errorf("gpu: read: %w", err)
	}
	return readings, nil
}

func unknownGPU(index int, gpus []server.GPU) error {
	has := make([]string, len(gpus))
	for i, g := range gpus {
		has[i] = fmt.Sprint(g.Index)
	}
	return fmt.Errorf("gpu: no GPU %d on this host: it has %s", index, strings.Join(has, ", "))
}
