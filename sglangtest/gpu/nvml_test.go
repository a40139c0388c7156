//go:build nvml && cgo && linux

package gpu

import (
	"errors"
	"os"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/server"
)

// card is a GPU of the fake library that tells everything.
func card(uuid string) *mock.Device {
	return &mock.Device{
		GetUUIDFunc:                   func() (string, nvml.Return) { return uuid, nvml.SUCCESS },
		GetNameFunc:                   func() (string, nvml.Return) { return "NVIDIA H100 80GB HBM3", nvml.SUCCESS },
		GetMemoryInfoFunc:             func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: 100, Used: 30}, nvml.SUCCESS },
		GetMemoryInfo_v2Func:          func() (nvml.Memory_v2, nvml.Return) { return nvml.Memory_v2{Total: 100, Used: 20}, nvml.SUCCESS },
		GetUtilizationRatesFunc:       func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 98, Memory: 81}, nvml.SUCCESS },
		GetPowerUsageFunc:             func() (uint32, nvml.Return) { return 124820, nvml.SUCCESS },
		GetTotalEnergyConsumptionFunc: func() (uint64, nvml.Return) { return 33408291, nvml.SUCCESS },
		GetTemperatureFunc:            func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 41, nvml.SUCCESS },
		GetClockInfoFunc: func(c nvml.ClockType) (uint32, nvml.Return) {
			return map[nvml.ClockType]uint32{nvml.CLOCK_SM: 1980, nvml.CLOCK_MEM: 2619}[c], nvml.SUCCESS
		},
		GetComputeRunningProcessesFunc: func() ([]nvml.ProcessInfo, nvml.Return) {
			return []nvml.ProcessInfo{{Pid: 1 << 30, UsedGpuMemory: notTold}, {Pid: uint32(os.Getpid()), UsedGpuMemory: 7}}, nvml.SUCCESS
		},
	}
}

// library is a fake NVML.
func library(cards ...*mock.Device) *mock.Interface {
	return &mock.Interface{
		InitFunc:                   func() nvml.Return { return nvml.SUCCESS },
		ShutdownFunc:               func() nvml.Return { return nvml.SUCCESS },
		SystemGetDriverVersionFunc: func() (string, nvml.Return) { return "580.159.04", nvml.SUCCESS },
		DeviceGetCountFunc:         func() (int, nvml.Return) { return len(cards), nvml.SUCCESS },
		DeviceGetHandleByIndexFunc: func(i int) (nvml.Device, nvml.Return) { return cards[i], nvml.SUCCESS },
		DeviceGetHandleByUUIDFunc: func(uuid string) (nvml.Device, nvml.Return) {
			for _, c := range cards {
				if u, _ := c.GetUUID(); u == uuid {
					return c, nvml.SUCCESS
				}
			}
			return nil, nvml.ERROR_NOT_FOUND
		},
	}
}

func all(string) error { return nil }

// without is the look-up of a library that lacks some functions.
func without(missing ...string) func(string) error {
	return func(symbol string) error {
		for _, m := range missing {
			if m == symbol {
				return errors.New("undefined symbol: " + symbol)
			}
		}
		return nil
	}
}

func withNVML(lib nvml.Interface, lookup func(string) error) Option {
	return func(o *options) error {
		o.nvml = func() (source, error) { return startNVML(lib, lookup) }
		return nil
	}
}

func TestNVML(t *testing.T) {
	ctx := t.Context()
	quiet := card("GPU-b") // such as one with MIG on
	quiet.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED }
	quiet.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 0, nvml.ERROR_NO_PERMISSION }
	lib := library(card("GPU-a"), quiet)
	d, err := Open(ctx, withNVML(lib, all))
	require.NoError(t, err)
	require.Equal(t, "NVML, driver 580.159.04", d.Source())
	gpus, err := d.GPUs(ctx)
	require.NoError(t, err)
	require.Equal(t, []server.GPU{{Index: 0, UUID: "GPU-a", Name: "NVIDIA H100 80GB HBM3", MemoryTotal: 100, MemoryUsed: 20},
		{Index: 1, UUID: "GPU-b", Name: "NVIDIA H100 80GB HBM3", MemoryTotal: 100, MemoryUsed: 20}}, gpus)
	s, err := d.Sampler(ctx)
	require.NoError(t, err)
	values, err := s.Sample(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]float64{
		"gpu0_utilization_pct": 98, "gpu0_memory_utilization_pct": 81, "gpu0_memory_used_bytes": 20, "gpu0_power_w": 124.82, "gpu0_energy_j": 33408.291,
		"gpu0_temperature_c": 41, "gpu0_sm_clock_mhz": 1980, "gpu0_memory_clock_mhz": 2619,
		"gpu1_memory_used_bytes": 20, "gpu1_energy_j": 33408.291, "gpu1_temperature_c": 41, "gpu1_sm_clock_mhz": 1980, "gpu1_memory_clock_mhz": 2619,
	}, values)
	ps, err := d.Processes(ctx, 1)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	require.Equal(t, []Process{{os.Getpid(), self, 7}, {1 << 30, "", 0}}, ps)

	quiet.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, nvml.ERROR_GPU_IS_LOST }
	_, err = s.Sample(ctx)
	require.ErrorContains(t, err, "gpu: read: GPU 1: temperature: ")
	require.ErrorIs(t, err, nvml.ERROR_GPU_IS_LOST)
	require.NoError(t, d.Close())
	require.Len(t, lib.ShutdownCalls(), 1)
}

func TestNVMLOfOldDriver(t *testing.T) {
	d, err := Open(t.Context(), withNVML(library(card("GPU-a")), without("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTotalEnergyConsumption")))
	require.NoError(t, err)
	defer d.Close()
	gpus, err := d.GPUs(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 30, gpus[0].MemoryUsed)
	s, err := d.Sampler(t.Context())
	require.NoError(t, err)
	values, err := s.Sample(t.Context())
	require.NoError(t, err)
	require.NotContains(t, values, "gpu0_energy_j")
}

// Where NVML fails, nvidia-smi is asked, and where both do, the error has both reasons. NVML is always shut down after
// Init, and never called without.
func TestNVMLFails(t *testing.T) {
	broken := library(card("GPU-a"))
	broken.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }
	mismatch := library(card("GPU-a"))
	mismatch.InitFunc = func() nvml.Return { return nvml.ERROR_LIB_RM_VERSION_MISMATCH }
	lost := library(card("GPU-a"))
	lost.DeviceGetHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_GPU_IS_LOST }
	for name, c := range map[string]struct {
		lib       *mock.Interface
		lookup    func(string) error
		want      string
		shutdowns int
	}{
		"no library": {broken, all, "libnvidia-ml.so.1 not found", 0},
		"mismatch":   {mismatch, all, "init: ", 0},
		"old":        {library(card("GPU-a")), without("nvmlDeviceGetUUID"), "too old: undefined symbol: nvmlDeviceGetUUID", 1},
		"no GPU":     {library(), all, "NVML names no GPU", 1},
		"GPU lost":   {lost, all, "GPU 0: handle: ", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", t.TempDir())
			_, err := Open(t.Context(), withNVML(c.lib, c.lookup))
			require.ErrorAs(t, err, new(*UnavailableError))
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "; nvidia-smi: exec: ")
			require.Len(t, c.lib.ShutdownCalls(), c.shutdowns)
			onPath(t, fromTestdata(t))
			d, err := Open(t.Context(), withNVML(c.lib, c.lookup))
			require.NoError(t, err)
			require.Equal(t, "nvidia-smi, driver 580.159.04", d.Source())
			require.NoError(t, d.Close())
		})
	}
}
