package gpu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/sglangtest/harness/sglangtest/metrics"
	"github.com/sglangtest/harness/sglangtest/server"
)

// onPath makes a shell script the only program on PATH, under the name nvidia-smi.
func onPath(t *testing.T, script string) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte("#!/bin/sh\n"+script), 0o755))
	t.Setenv("PATH", dir)
}

// fromTestdata is a script that answers like the nvidia-smi of testdata.
func fromTestdata(t *testing.T) string {
	dir, err := filepath.Abs("testdata")
	require.NoError(t, err)
	return `[ "$2" = --format=csv ] || exit 9
case $1 in
--query-gpu=` + smiQuery + `) file=gpus.csv ;;
--query-compute-apps=*) file=processes.csv ;;
*) exit 9 ;;
esac
while IFS= read -r line; do echo "$line"; done <'` + dir + `/'$file
`
}

var (
	first  = server.GPU{Index: 0, UUID: "GPU-11111111-aaaa-bbbb-cccc-000000000000", Name: "NVIDIA H100 80GB HBM3", MemoryTotal: 81559 << 20, MemoryUsed: 69634 << 20}
	second = server.GPU{Index: 1, UUID: "GPU-11111111-aaaa-bbbb-cccc-000000000001", Name: "NVIDIA H100 80GB HBM3", MemoryTotal: 81559 << 20, MemoryUsed: 4 << 20}
)

func TestSMI(t *testing.T) {
	onPath(t, fromTestdata(t))
	ctx := t.Context()
	d, err := Open(ctx, WithoutNVML())
	require.NoError(t, err)
	defer d.Close()
	require.Equal(t, "nvidia-smi, driver 580.159.04", d.Source())
	gpus, err := d.GPUs(ctx)
	require.NoError(t, err)
	require.Equal(t, []server.GPU{first, second}, gpus)

	ps, err := d.Processes(ctx, 0)
	require.NoError(t, err)
	require.Equal(t, []Process{{4000, "sglang::scheduler", 69000 << 20}, {4002, "python3", 630 << 20}, {4001, "", 0}}, ps)
	_, err = d.Processes(ctx, 7)
	require.EqualError(t, err, "gpu: no GPU 7 on this host: it has 0, 1")

	s, err := d.Sampler(ctx)
	require.NoError(t, err)
	require.Equal(t, "gpu", s.Name())
	values, err := s.Sample(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]float64{
		"gpu0_utilization_pct": 98, "gpu0_memory_utilization_pct": 81, "gpu0_memory_used_bytes": 69634 << 20, "gpu0_power_w": 227.44,
		"gpu0_temperature_c": 45, "gpu0_sm_clock_mhz": 1980, "gpu0_memory_clock_mhz": 2619,
		"gpu1_memory_used_bytes": 4 << 20, "gpu1_temperature_c": 31, "gpu1_sm_clock_mhz": 345, "gpu1_memory_clock_mhz": 2619,
	}, values, "what a GPU does not tell is left out, not zero")

	s, err = d.Sampler(ctx, 1)
	require.NoError(t, err)
	values, err = s.Sample(ctx)
	require.NoError(t, err)
	require.Len(t, values, 4)
	_, err = d.Sampler(ctx, 1, 2)
	require.EqualError(t, err, "gpu: no GPU 2 on this host: it has 0, 1")
}

// A GPU that fell off the bus must not hand its series to another one.
func TestSamplerOfLostGPU(t *testing.T) {
	f := &fakeSource{readings: []reading{{gpu: first}, {gpu: second}}}
	d := &Devices{source: f, turn: make(chan struct{}, 1)}
	s, err := d.Sampler(t.Context(), 1)
	require.NoError(t, err)
	f.readings = f.readings[:1]
	_, err = s.Sample(t.Context())
	require.EqualError(t, err, "gpu: GPU 1 is no longer "+second.UUID)
	moved := second
	moved.Index = 0
	f.readings = []reading{{gpu: moved}}
	_, err = s.Sample(t.Context())
	require.Error(t, err)
	f.err = errors.New("the driver hangs")
	_, err = s.Sample(t.Context())
	require.EqualError(t, err, "gpu: read: the driver hangs")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Sample(ended)
	require.ErrorIs(t, err, context.Canceled)
}

// A driver that hangs holds nobody up for longer than he is ready to wait.
func TestDriverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSource{readings: []reading{{gpu: first}}}
		d := &Devices{source: f, turn: make(chan struct{}, 1)}
		s, err := d.Sampler(t.Context())
		require.NoError(t, err)
		f.hangs = make(chan struct{})
		start := time.Now()
		_, err = s.Sample(t.Context())
		require.EqualError(t, err, "gpu: read: the driver does not answer: context deadline exceeded")
		require.Equal(t, sampleTimeout+lastWait, time.Since(start))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = d.GPUs(ctx)
		require.EqualError(t, err, "gpu: read: the driver has not answered the call before: context deadline exceeded")
		require.ErrorIs(t, d.Close(), context.DeadlineExceeded)
		require.Equal(t, sampleTimeout+lastWait+time.Second+lastWait, time.Since(start))
		close(f.hangs)
		_, err = s.Sample(t.Context())
		require.NoError(t, err, "it goes on")
	})
}

type fakeSource struct {
	readings []reading
	err      error
	hangs    chan struct{} // not nil: until it is closed
}

func (f *fakeSource) read(context.Context) ([]reading, error) {
	if f.hangs != nil {
		<-f.hangs
	}
	return f.readings, f.err
}

func (f *fakeSource) name() string                                         { return "fake" }
func (f *fakeSource) processes(context.Context, string) ([]Process, error) { return nil, nil }
func (f *fakeSource) close() error                                         { return nil }

func TestUnavailable(t *testing.T) {
	t.Run("no program", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		_, err := Open(t.Context(), WithoutNVML())
		var none *UnavailableError
		require.ErrorAs(t, err, &none)
		require.ErrorContains(t, err, `gpu: no GPU telemetry on this host: NVML: not wanted; nvidia-smi: exec: "nvidia-smi": executable file not found in $PATH`)
	})
	for name, c := range map[string]struct{ script, want string }{
		"no driver": {"echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\"; exit 9",
			"exit status 9: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."},
		"no GPU":           {"echo 'index, uuid'", "nvidia-smi names no GPU"},
		"nothing":          {"", "nvidia-smi: no table: unexpected EOF"},
		"fewer columns":    {"echo 'index, uuid'; echo '0, GPU-1'", `nvidia-smi: GPU 0: no column "memory.total [MiB]"`},
		"ragged":           {"echo 'index, uuid'; echo '0'", "wrong number of fields"},
		"GPU in bad state": {"echo 'index, uuid, memory.total [MiB], memory.used [MiB]'; echo '0, GPU-1, [GPU is lost], 1 MiB'", `memory.total: "[GPU is lost]": want a number of MiB`},
	} {
		t.Run(name, func(t *testing.T) {
			onPath(t, c.script)
			_, err := Open(t.Context(), WithoutNVML())
			require.ErrorAs(t, err, new(*UnavailableError))
			require.ErrorContains(t, err, c.want)
		})
	}
	t.Run("hangs", func(t *testing.T) {
		onPath(t, "while :; do :; done")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := Open(ctx, WithoutNVML())
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
	t.Run("unknown unit", func(t *testing.T) {
		row := smiRow{"memory.used [MiB]": "3 GiB"}
		_, err := row.bytes("memory.used")
		require.ErrorContains(t, err, `"3 GiB": want a number of MiB`)
	})
}

// What nvidia-smi wrote every half second while a real H100 served.
func TestRecordedSMI(t *testing.T) {
	for _, name := range []string{"nvidia_smi_calibration.csv", "nvidia_smi_traces.csv"} {
		data, err := os.ReadFile(refdata.Path(t, "sglang-h100/gpu/"+name))
		require.NoError(t, err)
		rows, err := parseSMI(strings.NewReader(string(data)))
		require.NoError(t, err)
		require.Len(t, rows, strings.Count(string(data), "\n")-1)
		peak := 0.0
		for _, row := range rows {
			values, err := row.values()
			require.NoError(t, err)
			require.Len(t, values, len(smiValues))
			used, err := row.bytes("memory.used")
			require.NoError(t, err)
			total, err := row.bytes("memory.total")
			require.NoError(t, err)
			require.EqualValues(t, 81559<<20, total)
			require.Less(t, used, total)
			require.EqualValues(t, 2619, values[metrics.GPUMemoryClock])
			peak = max(peak, values[metrics.GPUPower])
		}
		require.InDelta(t, 705, peak, 10, "the card's limit is 700 W")
	}
}
