package gpu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sglangtest/harness/sglangtest/server"
)

// Devices are the NVIDIA GPUs of this host. It is safe for concurrent use; readings are made one at a time.
type Devices struct {
	source source
	name   string
	turn   chan struct{} // has an element while the source is asked
}

// openTimeout bounds each way that Open tries: seconds are normal where the driver is not kept loaded.
const openTimeout = 15 * time.Second

// lastWait is how long a call waits for the source after its context was done: nvidia-smi is killed then.
const lastWait = 2 * time.Second

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
	try := func(open func() (source, error)) (*Devices, error) {
		ctx, cancel := context.WithTimeout(ctx, openTimeout)
		defer cancel()
		d := &Devices{turn: make(chan struct{}, 1)}
		_, err := ask(ctx, d, func() (readings []reading, err error) {
			if d.source, err = open(); err != nil {
				return nil, err
			}
			if readings, err = d.source.read(ctx); err != nil {
				return nil, errors.Join(err, d.source.close())
			}
			d.name = d.source.name()
			return readings, nil
		})
		return d, err
	}
	d, nvml := try(o.nvml)
	if nvml == nil {
		return d, nil
	}
	d, smi := try(func() (source, error) { return findSMI(o.smi) })
	if smi == nil {
		return d, nil
	}
	return nil, &UnavailableError{NVML: nvml, NvidiaSMI: smi}
}

// Source says how the GPUs are asked, such as "NVML, driver 580.159.04".
func (d *Devices) Source() string { return d.name }

// GPUs returns the GPUs of this host in order of index, which is the order of their PCI addresses: CUDA numbers them
// likewise if CUDA_DEVICE_ORDER is PCI_BUS_ID. CUDA_VISIBLE_DEVICES has no influence. A driver that hangs holds the call
// up until ctx is done, and each one after it.
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
	ps, err := ask(ctx, d, func() ([]Process, error) { return d.source.processes(ctx, gpus[i].UUID) })
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
	ctx, cancel := context.WithTimeout(context.Background(), lastWait)
	defer cancel()
	_, err := ask(ctx, d, func() (struct{}, error) { return struct{}{}, d.source.close() })
	if err != nil {
		return fmt.Errorf("gpu: close: %w", err)
	}
	return nil
}

func (d *Devices) read(ctx context.Context) ([]reading, error) {
	readings, err := ask(ctx, d, func() ([]reading, error) { return d.source.read(ctx) })
	if err != nil {
		return nil, fmt.Errorf("gpu: read: %w", err)
	}
	return readings, nil
}

// ask calls f, which asks the source of d, when no other call does. It gives up soon after ctx is done, since neither a
// call of NVML nor a program that the kernel holds can be interrupted: f then goes on, and nobody else gets a turn.
func ask[T any](ctx context.Context, d *Devices, f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	if ctx.Err() != nil { // NVML would not look at it
		return none, context.Cause(ctx)
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("the driver has not answered the call before: %w", context.Cause(ctx))
	}
	got := make(chan answer, 1)
	go func() {
		v, err := f()
		<-d.turn
		got <- answer{v, err}
	}()
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-got:
		return a.value, a.err
	case <-time.After(lastWait):
		return none, fmt.Errorf("the driver does not answer: %w", context.Cause(ctx))
	}
}

func unknownGPU(index int, gpus []server.GPU) error {
	has := make([]string, len(gpus))
	for i, g := range gpus {
		has[i] = fmt.Sprint(g.Index)
	}
	return fmt.Errorf("gpu: no GPU %d on this host: it has %s", index, strings.Join(has, ", "))
}
