//go:build nvml && cgo && linux

package gpu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// nvmlSource asks NVML. No function of the library may be called before Init has succeeded, nor one that the installed
// driver lacks: the dynamic linker would end the process.
type nvmlSource struct {
	lib    nvml.Interface
	driver string
	has    func(symbol string) bool
}

// nvmlNeeded are the functions without which NVML is of no use. Drivers since about 2016 have them.
var nvmlNeeded = []string{
	"nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUUID", "nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo",
	"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature", "nvmlDeviceGetClockInfo",
	"nvmlDeviceGetComputeRunningProcesses", "nvmlSystemGetDriverVersion",
}

func openNVML() (source, error) {
	lib := nvml.New()
	return startNVML(lib, lib.Extensions().LookupSymbol)
}

func startNVML(lib nvml.Interface, lookup func(symbol string) error) (source, error) {
	switch ret := lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return nil, errors.New("libnvidia-ml.so.1 not found: is an NVIDIA driver installed?")
	default:
		return nil, fmt.Errorf("init: %w", ret)
	}
	s := &nvmlSource{lib: lib, has: func(symbol string) bool { return lookup(symbol) == nil }}
	for _, symbol := range nvmlNeeded {
		if err := lookup(symbol); err != nil {
			return nil, errors.Join(fmt.Errorf("the installed driver's library is too old: %w", err), s.close())
		}
	}
	var ret nvml.Return
	if s.driver, ret = lib.SystemGetDriverVersion(); ret != nvml.SUCCESS {
		return nil, errors.Join(fmt.Errorf("driver version: %w", ret), s.close())
	}
	return s, nil
}

func (s *nvmlSource) name() string { return "NVML, driver " + s.driver }

func (s *nvmlSource) close() error {
	if ret := s.lib.Shutdown(); ret != nvml.SUCCESS {
		return fmt.Errorf("shut down: %w", ret)
	}
	return nil
}

func (s *nvmlSource) read(context.Context) ([]reading, error) {
	n, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count: %w", ret)
	}
	if n == 0 {
		return nil, errors.New("NVML names no GPU")
	}
	readings := make([]reading, n)
	for i := range readings {
		var err error
		if readings[i], err = s.device(i); err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
	}
	return readings, nil
}

// device reads one GPU. Values that it does not offer are left out; any other failure is an error.
func (s *nvmlSource) device(index int) (reading, error) {
	x := reading{gpu: server.GPU{Index: index}, values: map[string]float64{}}
	var faults []error
	// ok reports whether a value was read, and keeps what is not merely an unsupported one.
	ok := func(what string, ret nvml.Return) bool {
		switch ret {
		case nvml.SUCCESS:
			return true
		case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_NO_PERMISSION:
		default:
			faults = append(faults, fmt.Errorf("%s: %w", what, ret))
		}
		return false
	}
	must := func(what string, ret nvml.Return) {
		if ret != nvml.SUCCESS {
			faults = append(faults, fmt.Errorf("%s: %w", what, ret))
		}
	}
	d, ret := s.lib.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return x, fmt.Errorf("handle: %w", ret)
	}
	x.gpu.UUID, ret = d.GetUUID()
	must("UUID", ret)
	x.gpu.Name, ret = d.GetName()
	must("name", ret)
	// The first form counts what the driver keeps for itself as used (some 480 MiB of an H100), the second does not; nor
	// does nvidia-smi.
	if s.has("nvmlDeviceGetMemoryInfo_v2") {
		m, ret := d.GetMemoryInfo_v2()
		must("memory", ret)
		x.gpu.MemoryTotal, x.gpu.MemoryUsed = int64(m.Total), int64(m.Used)
	} else {
		m, ret := d.GetMemoryInfo()
		must("memory", ret)
		x.gpu.MemoryTotal, x.gpu.MemoryUsed = int64(m.Total), int64(m.Used)
	}
	if u, ret := d.GetUtilizationRates(); ok("utilisation", ret) {
		x.values[metrics.GPUUtilization], x.values[metrics.GPUMemoryUtilization] = float64(u.Gpu), float64(u.Memory)
	}
	if mw, ret := d.GetPowerUsage(); ok("power", ret) {
		x.values[metrics.GPUPower] = float64(mw) / 1e3
	}
	if s.has("nvmlDeviceGetTotalEnergyConsumption") {
		if mj, ret := d.GetTotalEnergyConsumption(); ok("energy", ret) {
			x.values[metrics.GPUEnergy] = float64(mj) / 1e3
		}
	}
	if c, ret := d.GetTemperature(nvml.TEMPERATURE_GPU); ok("temperature", ret) {
		x.values[metrics.GPUTemperature] = float64(c)
	}
	if mhz, ret := d.GetClockInfo(nvml.CLOCK_SM); ok("SM clock", ret) {
		x.values[metrics.GPUSMClock] = float64(mhz)
	}
	if mhz, ret := d.GetClockInfo(nvml.CLOCK_MEM); ok("memory clock", ret) {
		x.values[metrics.GPUMemoryClock] = float64(mhz)
	}
	return x, errors.Join(faults...)
}

// notTold is what NVML gives for the memory of a process that it cannot tell (NVML_VALUE_NOT_AVAILABLE).
const notTold = ^uint64(0)

func (s *nvmlSource) processes(_ context.Context, uuid string) ([]Process, error) {
	d, ret := s.lib.DeviceGetHandleByUUID(uuid)
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("handle: %w", ret)
	}
	infos, ret := d.GetComputeRunningProcesses()
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	ps := make([]Process, len(infos))
	for i, info := range infos {
		ps[i] = Process{PID: int(info.Pid), Name: program(int(info.Pid))}
		if info.UsedGpuMemory != notTold {
			ps[i].Memory = int64(info.UsedGpuMemory)
		}
	}
	return ps, nil
}

// program returns the path of a process's program, or "" if it cannot be told: it has ended, is another user's, or lives
// in another PID name space.
func program(pid int) string {
	path, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	if err != nil {
		return ""
	}
	return path
}
