package metrics

import (
	"context"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/load"
	"github.com/stretchr/testify/require"
)

func TestGPUsAreSummedUp(t *testing.T) {
	c, err := NewCollector()
	require.NoError(t, err)
	require.NoError(t, c.Begin(context.Background(), load.Info{}))
	c.Start(load.NewClock(time.Now()))
	at := func(ms int, busy, used, energy float64) Sample {
		return Sample{At: time.Duration(ms) * msec, Source: "gpu", Values: map[string]float64{
			GPUSeries(GPUUtilization, 3): busy, GPUSeries(GPUMemoryUsed, 3): used, GPUSeries(GPUEnergy, 3): energy, GPUSeries(GPUTemperature, 11): 40}}
	}
	c.AddSample(at(0, 10, 1<<30, 5000))
	c.AddSample(Sample{At: 50 * msec, Source: "gpu", Err: "driver"})
	c.AddSample(at(100, 100, 3<<30, 6500))
	r := answer(0, 0, 0, 10*msec, 0, 1)
	c.Arrived(&load.Request{})
	c.Record(&r)
	require.NoError(t, c.End(context.Background()))

	s := c.Summary()
	joules := 1500.0
	require.Equal(t, []GPUSummary{
		{Index: 3, Utilization: &Gauge{55, 100}, MemoryUsed: &Gauge{2 << 30, 3 << 30}, Energy: &joules},
		{Index: 11, Temperature: &Gauge{40, 40}},
	}, s.Samplers[0].GPUs)
	require.Contains(t, s.String(), "GPU 3: busy mean 55 % max 100 %, memory max 3.0 GiB, energy 1.5 kJ")
	require.Contains(t, s.String(), "GPU 11: at most 40 °C")
}
