package gpu

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestReal asks the GPUs of this host in each way that it has, compares what they say, and logs the cost of samples.
// To run it on another machine, carry the binary that "go test -c" makes; it needs that machine's C library only.
func TestReal(t *testing.T) {
	ctx := t.Context()
	var ways []*Devices
	for _, opts := range [][]Option{nil, {WithoutNVML()}} {
		d, err := Open(ctx, opts...)
		if none := (*UnavailableError)(nil); errors.As(err, &none) {
			t.Skipf("needs an NVIDIA GPU: %v", err)
		}
		require.NoError(t, err)
		defer d.Close()
		ways = append(ways, d)
	}
	for _, d := range ways {
		gpus, err := d.GPUs(ctx)
		require.NoError(t, err)
		s, err := d.Sampler(ctx)
		require.NoError(t, err)
		for range 5 {
			start := time.Now()
			values, err := s.Sample(ctx)
			cost := time.Since(start)
			require.NoError(t, err)
			t.Logf("%s: %v in %v", d.Source(), values, cost)
		}
		for i, g := range gpus {
			require.Equal(t, i, g.Index)
			require.NotEmpty(t, g.UUID)
			require.Positive(t, g.MemoryTotal)
			require.Less(t, g.MemoryUsed, g.MemoryTotal)
			ps, err := d.Processes(ctx, i)
			require.NoError(t, err)
			t.Logf("%s: %+v, processes %+v", d.Source(), g, ps)
		}
	}
	a, err := ways[0].GPUs(ctx)
	require.NoError(t, err)
	b, err := ways[1].GPUs(ctx)
	require.NoError(t, err)
	require.Len(t, b, len(a))
	for i := range a {
		require.Equal(t, a[i].UUID, b[i].UUID)
		require.Equal(t, a[i].Name, b[i].Name)
		require.InDelta(t, a[i].MemoryTotal, b[i].MemoryTotal, 1<<20)
		require.InDelta(t, a[i].MemoryUsed, b[i].MemoryUsed, 64<<20, "a process may have taken some between the two")
	}
}
