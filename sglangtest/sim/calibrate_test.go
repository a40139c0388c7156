package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sglangtest/harness/sglangtest/internal/refdata"
	"github.com/stretchr/testify/require"
)

func h100Measurements(t testing.TB) Measurements {
	m, err := ReadMeasurements(refdata.Path(t, "sglang-h100/calibration"))
	require.NoError(t, err)
	m.Base, m.Handover = H100Llama8B(), ms
	return m
}

func TestShippedProfileIsWhatCalibrateYields(t *testing.T) {
	p, report, err := Calibrate(h100Measurements(t))
	require.NoError(t, err)
	require.Equal(t, H100Llama8B(), p)
	t.Logf("\n%v", report)
}

// The uncalibrated profiles state how far their source is off where it can be checked: its row for this model and GPU.
func TestUncalibratedProfilesStateTheirSourcesError(t *testing.T) {
	m := h100Measurements(t)
	table := Linear{DecodeBase: 6.45, DecodeRequest: 0.0078, DecodeContext: 4.19e-5, PrefillBase: 0.89, PrefillToken: 0.0209, PrefillPair: 4.87e-7, PrefillKnee: 300}
	var decode, prefill errorsOf
	for _, d := range m.Decode {
		decode.add(inMilliseconds(table.StepTime(Shape{Decodes: d.Batch, Context: d.KVTokens})), d.Step)
	}
	for _, c := range cells(m.Prefill) {
		if c.fresh >= 512 && c.fresh <= 8192 {
			prefill.add(inMilliseconds(table.StepTime(Shape{Extends: []Extend{{c.fresh, c.cached}}})), c.server)
		}
	}
	d, dmax := decode.values()
	p, pmax := prefill.values()
	want := fmt.Sprintf("by %.1f %% (at most %.1f %%) for decode steps and by %.1f %% (at most %.1f %%) for prefills of 512 to 8192 new tokens", 100*d, 100*dmax, 100*p, 100*pmax)
	for _, q := range Profiles() {
		if q.Name != "h100-llama-3.1-8b" {
			require.Contains(t, q.KnownError, want)
		}
	}
}

// synthetic returns noisy measurements of a server with the times of p, some of them far off.
func synthetic(p Profile, handover float64, noise float64, outliers bool) Measurements {
	r := rand.New(rand.NewPCG(1, 2))
	k := 0
	scatter := func(v float64) float64 {
		k++
		if outliers && k%17 == 0 {
			return v * 1.6
		}
		return v * math.Exp(noise*r.NormFloat64())
	}
	m := Measurements{Base: p, Handover: milliseconds(handover)}
	for _, b := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256} {
		for _, c := range []int{128, 1024, 4096} {
			for range 4 {
				m.Decode = append(m.Decode, DecodeMeasurement{b, b * c, scatter(inMilliseconds(p.Model.StepTime(Shape{Decodes: b, Context: b * c})))})
			}
		}
	}
	l := p.Model.(Linear)
	handling := 2e-4 // ms per prompt token, before the step
	for _, c := range [][2]int{{16, 0}, {64, 0}, {128, 0}, {256, 0}, {1024, 0}, {2048, 0}, {4096, 0}, {8192, 0}, {1024, 4096}, {2048, 8192}, {2048, 16384}, {4096, 4096}, {1024, 16384}} {
		for range 9 {
			step := max(inMilliseconds(p.LaunchPrefill), inMilliseconds(l.StepTime(Shape{Extends: []Extend{{c[0], c[1]}}})))
			server := scatter(step + handover + handling*float64(c[0]+c[1]))
			beyond := inMilliseconds(p.Ingest+p.Egress) - handover + (inMilliseconds(p.IngestToken)-handling)*float64(c[0]+c[1])
			m.Prefill = append(m.Prefill, PrefillMeasurement{c[0], c[1], server, server + scatter(beyond)})
		}
	}
	for _, n := range []int{8, 64, 160, 200, 224, 256} {
		step := inMilliseconds(p.Model.StepTime(Shape{Decodes: n, Context: 128 * n}))
		front := float64(n) * inMilliseconds(p.EgressEvent+time.Duration(n)*p.EgressStream)
		m.Streams = append(m.Streams, StreamMeasurement{n, step, max(step, front)})
	}
	return m
}

func syntheticProfile() Profile {
	p := H100Llama8B()
	p.KnownError = "not validated"
	p.Model = Linear{DecodeBase: 7, DecodeRequest: 0.02, DecodeContext: 5e-5, PrefillBase: 3, PrefillToken: 0.03, PrefillPair: 6e-7, PrefillContext: 5e-5}
	p.LaunchPrefill, p.Ingest, p.Egress, p.IngestToken = 15*ms, 2*ms, 2*ms, 500*time.Nanosecond
	p.EgressEvent, p.EgressStream = 30*us, 300*time.Nanosecond
	return p
}

func TestCalibrateRecoversCoefficients(t *testing.T) {
	want := syntheticProfile()
	for name, c := range map[string]struct {
		noise    float64
		outliers bool
		within   float64 // of the large coefficients
	}{
		"exact":         {0, false, 0.002},
		"noise":         {0.01, false, 0.03},
		"with outliers": {0.01, true, 0.04},
	} {
		got, report, err := Calibrate(synthetic(want, 1, c.noise, c.outliers))
		require.NoError(t, err, name)
		w, g := want.Model.(Linear), got.Model.(Linear)
		for _, x := range []struct {
			name      string
			want, got float64
			within    float64
		}{
			{"DecodeBase", w.DecodeBase, g.DecodeBase, c.within},
			{"DecodeRequest", w.DecodeRequest, g.DecodeRequest, 2 * c.within},
			{"DecodeContext", w.DecodeContext, g.DecodeContext, c.within},
			{"PrefillToken", w.PrefillToken, g.PrefillToken, 2 * c.within},
			{"PrefillPair", w.PrefillPair, g.PrefillPair, 4 * c.within},
			{"LaunchPrefill", float64(want.LaunchPrefill), float64(got.LaunchPrefill), 2 * c.within},
			{"Ingest + Egress", float64(want.Ingest + want.Egress), float64(got.Ingest + got.Egress), 2 * c.within},
			{"EgressEvent", float64(want.EgressEvent), float64(got.EgressEvent), 0.01},
			{"EgressStream", float64(want.EgressStream), float64(got.EgressStream), 0.01},
		} {
			require.InEpsilon(t, x.want, x.got, x.within, "%s: %s", name, x.name)
		}
		require.InDelta(t, w.PrefillContext, g.PrefillContext, 1e-6, name)
		require.InDelta(t, 500, float64(got.IngestToken), 300*max(c.noise*100, 0.05), name)
		// What matters is the time of steps, inside and outside the measured range.
		for _, s := range []Shape{{Decodes: 48, Context: 48 * 700}, {Decodes: 256, Context: 400000}, {Extends: []Extend{{3000, 0}}}, {Extends: []Extend{{1024, 0}, {1024, 2048}}}} {
			require.InEpsilon(t, float64(w.StepTime(s)), float64(g.StepTime(s)), 0.005+c.within, "%s: %+v", name, s)
		}
		if c.noise == 0 {
			require.Less(t, report.Residuals[0].HeldOutMax, 1e-3)
			require.Less(t, report.Residuals[1].HeldOutMax, 1e-3)
		}
	}
}

func TestCalibrateSeparatesEagerSteps(t *testing.T) {
	p := syntheticProfile()
	l := p.Model.(Linear)
	l.DecodeGraphs, l.DecodeEager = []int{1, 2, 4, 8, 16, 32, 64, 128}, 9
	p.Model = l
	got, _, err := Calibrate(synthetic(p, 1, 0, false))
	require.NoError(t, err)
	require.InDelta(t, 9, got.Model.(Linear).DecodeEager, 0.01)
}

func TestCalibrateFaults(t *testing.T) {
	_, _, err := Calibrate(Measurements{Base: Profile{Model: flat}, Handover: -1,
		Decode:  []DecodeMeasurement{{0, 1, 1}},
		Prefill: []PrefillMeasurement{{1, 0, 5, 4}},
		Streams: []StreamMeasurement{{1, 1, math.NaN()}},
		Batches: []BatchMeasurement{{1, 1, 2, 1}}})
	for _, want := range []string{"decode measurement 0", "prefill measurement 0", "stream measurement 0", "batch measurement 0", "handover is -1ns"} {
		require.ErrorContains(t, err, want)
	}
	m := synthetic(syntheticProfile(), 1, 0, false)
	m.Decode, m.Prefill = m.Decode[:4], m.Prefill[:9]
	_, _, err = Calibrate(m)
	require.ErrorContains(t, err, "the decode measurements do not determine")
	require.ErrorContains(t, err, "the prefill measurements do not determine")
	m.Base.Model = Noise{}
	_, _, err = Calibrate(m)
	require.ErrorContains(t, err, "the base profile's model is a sim.Noise")
	_, err = ReadMeasurements(t.TempDir())
	require.ErrorContains(t, err, "decode_cells.csv")
	require.ErrorContains(t, err, "prefill_batches.csv")
}

func TestFitIsNonNegative(t *testing.T) {
	var s []sample
	for i := 1; i <= 10; i++ {
		s = append(s, sample{[]float64{1, float64(i)}, 10 - 0.1*float64(i)}) // falls with x
	}
	c := fitRelative(s)
	require.Zero(t, c[1])
	require.InDelta(t, 9.5, c[0], 0.3)
	require.Nil(t, fitRelative(s[:1]))
	require.Nil(t, fitRelative([]sample{{[]float64{1, 2}, 1}, {[]float64{1, 2}, 1}}), "one point determines no line")
}
