package sim

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Measurements are what [Calibrate] fits a profile to. All times are milliseconds, above 0.
type Measurements struct {
	// Base is the profile without its times: name, model, GPU, sizes, what the measurements come from. Its Model is
	// nil or a [Linear] that names the captured sizes (DecodeGraphs, PrefillGraphs); the rest is filled in.
	Base Profile
	// Handover is the part of Prefill.Server that is not the step: passing the request to the scheduler and its token
	// back. One request alone cannot tell it from the step, so it is an assumption.
	Handover time.Duration

	Decode  []DecodeMeasurement
	Prefill []PrefillMeasurement // of one request on an idle server
	Streams []StreamMeasurement  // may be empty: the egress queue is then left out
	Batches []BatchMeasurement   // may be empty: not fitted, but compared with the result
}

// A DecodeMeasurement is the time of a decode step.
type DecodeMeasurement struct {
	Batch    int // requests
	KVTokens int // of all of them
	Step     float64
}

// A PrefillMeasurement is the time to the first token of one request.
type PrefillMeasurement struct {
	New, Cached int     // tokens of the prompt computed and found in the cache
	Server      float64 // from the request's receipt to its first token by the server's own clock
	Client      float64 // from send to the first token at the client
}

// A StreamMeasurement is the time between tokens of one of many streams at the client, beside the engine's step.
type StreamMeasurement struct {
	Streams      int
	Step, Client float64
}

// A BatchMeasurement is the time to the first tokens of several prompts sent at once.
type BatchMeasurement struct {
	Prompts, Tokens int     // prompts, tokens of each
	First, Last     float64 // from the first send to the first and to the last prompt's first token
}

// A CalibrationReport says how well a fitted profile describes the measurements.
type CalibrationReport struct {
	Residuals []Residual
}

// A Residual is the relative error |fit/measured − 1| over the cells of one kind. HeldOut are the errors of cells that
// were left out of the fit one after another (for decode steps all of one batch size), or of those that are in no fit.
type Residual struct {
	Kind                    string
	Cells                   int
	Mean, Max               float64 // NaN if the cells are in no fit
	HeldOutMean, HeldOutMax float64 // NaN if leaving out leaves too few
}

// String returns the report as a table.
func (r CalibrationReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-34s %5s  %-17s %s\n", "relative error", "cells", "fit: mean, max", "held out: mean, max")
	pair := func(mean, most float64) string {
		if math.IsNaN(mean) {
			return "-"
		}
		return fmt.Sprintf("%.1f %%, %.1f %%", 100*mean, 100*most)
	}
	for _, x := range r.Residuals {
		fmt.Fprintf(&b, "%-34s %5d  %-17s %s\n", x.Kind, x.Cells, pair(x.Mean, x.Max), pair(x.HeldOutMean, x.HeldOutMax))
	}
	return b.String()
}

// Calibrate fits a [Linear] model and the delays of a profile to measurements: non-negative robust least squares of
// the relative error; repetitions of a prefill cell enter by their median. Prefill cells whose time is the launch's
// make LaunchPrefill, the others the model. What a cached token costs beyond a read of its KV counts as ingest. The fixed part of the time between a
// request's last byte and its first token that is not the step is split evenly between Ingest and Egress, since the
// ends of the way cannot tell. All faults of the measurements are reported together.
func Calibrate(m Measurements) (Profile, CalibrationReport, error) {
	var report CalibrationReport
	p := m.Base
	var errs []error
	model, ok := p.Model.(Linear)
	if p.Model != nil && !ok {
		errs = append(errs, fmt.Errorf("sim: calibrate: the base profile's model is a %T: want none or a Linear with the captured sizes", p.Model))
	}
	errs = append(errs, m.check())
	if err := errors.Join(errs...); err != nil {
		return Profile{}, report, err
	}
	model = Linear{DecodeGraphs: model.DecodeGraphs, PrefillGraphs: model.PrefillGraphs}
	if p.KnownError == "" {
		p.KnownError = "not validated"
	}

	errs = []error{fitDecode(m, &model, &report), fitPrefill(m, &model, &p, &report), fitStreams(m, &p, &report)}
	p.Model = model
	errs = append(errs, p.validate())
	if err := errors.Join(errs...); err != nil {
		return Profile{}, report, err
	}
	return p, report, compareBatches(m, p, &report)
}

func (m Measurements) check() error {
	var errs []error
	bad := func(kind string, i int, ok bool) {
		if !ok {
			errs = append(errs, fmt.Errorf("sim: calibrate: %s measurement %d has a time or a size out of range", kind, i))
		}
	}
	ms := func(v float64) bool { return v > 0 && !math.IsInf(v, 0) }
	for i, d := range m.Decode {
		bad("decode", i, d.Batch > 0 && d.KVTokens > 0 && ms(d.Step))
	}
	for i, x := range m.Prefill {
		bad("prefill", i, x.New > 0 && x.Cached >= 0 && ms(x.Server) && ms(x.Client) && x.Client >= x.Server && x.Server > inMilliseconds(m.Handover))
	}
	for i, s := range m.Streams {
		bad("stream", i, s.Streams > 0 && ms(s.Step) && ms(s.Client))
	}
	for i, b := range m.Batches {
		bad("batch", i, b.Prompts > 0 && b.Tokens > 0 && ms(b.First) && b.Last >= b.First && ms(b.Last))
	}
	if m.Handover < 0 {
		errs = append(errs, fmt.Errorf("sim: calibrate: handover is %v: want at least 0", m.Handover))
	}
	return errors.Join(errs...)
}

func fitDecode(m Measurements, model *Linear, report *CalibrationReport) error {
	var samples []sample
	var group []int // left out together
	for _, d := range m.Decode {
		n, eager := padded(d.Batch, model.DecodeGraphs)
		if eager { // a step without a graph is another regime
			continue
		}
		samples = append(samples, sample{[]float64{1, float64(n), float64(d.KVTokens)}, d.Step})
		group = append(group, d.Batch)
	}
	c := fitRelative(samples)
	if c == nil {
		return errors.New("sim: calibrate: the decode measurements do not determine three coefficients: want several batch sizes and two contexts for some")
	}
	model.DecodeBase, model.DecodeRequest, model.DecodeContext = short(c[0]), short(c[1]), short(c[2])
	var above []float64
	for _, d := range m.Decode {
		if n, eager := padded(d.Batch, model.DecodeGraphs); eager {
			above = append(above, d.Step-predict([]float64{1, float64(n), float64(d.KVTokens)}, c))
		}
	}
	if len(above) > 0 {
		model.DecodeEager = short(max(0, medianOf(above)))
	}
	report.Residuals = append(report.Residuals, crossValidated("decode step", samples, c, group))
	return nil
}

// prefillCell is the median of the repetitions of one cell.
type prefillCell struct {
	fresh, cached  int
	server, beyond float64 // time at the server, time outside it
}

func cells(measured []PrefillMeasurement) []prefillCell {
	type key struct{ fresh, cached int }
	server, beyond := map[key][]float64{}, map[key][]float64{}
	var order []key
	for _, x := range measured {
		k := key{x.New, x.Cached}
		if server[k] == nil {
			order = append(order, k)
		}
		server[k] = append(server[k], x.Server)
		beyond[k] = append(beyond[k], x.Client-x.Server)
	}
	out := make([]prefillCell, len(order))
	for i, k := range order {
		out[i] = prefillCell{k.fresh, k.cached, medianOf(server[k]), medianOf(beyond[k])}
	}
	return out
}

func fitPrefill(m Measurements, model *Linear, p *Profile, report *CalibrationReport) error {
	handover := inMilliseconds(m.Handover)
	all := cells(m.Prefill)
	row := func(c prefillCell) sample {
		tokens, _ := padded(c.fresh, model.PrefillGraphs)
		n, k := float64(c.fresh), float64(c.cached)
		return sample{[]float64{1, float64(tokens), n*n + 2*n*k, k}, c.server - handover}
	}
	chunked := func(c prefillCell) bool { return p.ChunkedSize > 0 && c.fresh > p.ChunkedSize }
	fastest := math.Inf(1)
	for _, c := range all {
		fastest = min(fastest, c.server-handover)
	}
	var samples, small []sample
	for _, c := range all {
		switch s := row(c); {
		case s.y <= launchBand*fastest:
			small = append(small, s)
		case !chunked(c):
			samples = append(samples, s)
		}
	}
	best := fitRelative(samples)
	if best == nil {
		return errors.New("sim: calibrate: the prefill measurements do not determine four coefficients: want several lengths well above the shortest time, with and without cached tokens")
	}
	launch := launchFloor(small, best)
	// A cached token costs the GPU one read of its KV, as in a decode step. What else it costs is handling the longer
	// prompt (passing it between processes, matching it against the cache), which new tokens need as well and which is
	// over before the step begins.
	handling := min(max(0, best[3]-model.DecodeContext), best[1])
	model.PrefillBase, model.PrefillToken, model.PrefillPair, model.PrefillContext =
		short(best[0]), short(best[1]-handling), short(best[2]), short(best[3]-handling)
	p.LaunchPrefill = milliseconds(launch)
	group := make([]int, len(samples))
	for i := range group {
		group[i] = i
	}
	report.Residuals = append(report.Residuals, crossValidated("prefill step", samples, best, group))
	report.Residuals = append(report.Residuals, outside("prefill bound by its launch", all,
		func(c prefillCell) bool { return row(c).y <= launchBand*fastest },
		func(c prefillCell) float64 { return max(launch, predict(row(c).x, best)) + handover }))
	report.Residuals = append(report.Residuals, outside("prefill in several chunks", all, chunked, func(c prefillCell) float64 {
		sum := handover + handling*float64(c.fresh+c.cached)
		for done := 0; done < c.fresh; done += p.ChunkedSize {
			sum += inMilliseconds(model.StepTime(Shape{Extends: []Extend{{New: min(p.ChunkedSize, c.fresh-done), Context: c.cached + done}}}))
		}
		return sum
	}))

	var gap []sample
	for _, c := range all {
		gap = append(gap, sample{[]float64{1, float64(c.fresh + c.cached)}, max(c.beyond, 1e-3)})
	}
	g := fitRelative(gap)
	if g == nil {
		return errors.New("sim: calibrate: the prefill measurements do not determine the ingest per token: want several prompt lengths")
	}
	p.Ingest = milliseconds((g[0] + handover) / 2)
	p.Egress = milliseconds((g[0] + handover) / 2)
	p.IngestToken = milliseconds(g[1] + handling)
	return nil
}

// launchBand is how close to the fastest prefill cell a cell must be for its time to be the launch's and not the GPU's.
// The launch varies that much, and near it the two blend: such cells would bend the fit.
const launchBand = 1.3

// launchFloor is the median time of the cells that may be bound by their launch, or 0 if the fit of the others describes
// them, too, so that nothing but the GPU is seen.
func launchFloor(small []sample, fit []float64) float64 {
	var times, off []float64
	for _, s := range small {
		times = append(times, s.y)
		off = append(off, s.y/predict(s.x, fit)-1)
	}
	if len(small) == 0 || medianOf(off) < 0.1 {
		return 0
	}
	return medianOf(times)
}

// saturated is how much slower than the engine's steps clients must see tokens for the front process to be what binds.
const saturated = 1.1

func fitStreams(m Measurements, p *Profile, report *CalibrationReport) error {
	var samples []sample
	for _, s := range m.Streams {
		if s.Client > saturated*s.Step {
			n := float64(s.Streams)
			samples = append(samples, sample{[]float64{n, n * n}, s.Client})
		}
	}
	p.EgressEvent, p.EgressStream = 0, 0
	if len(samples) == 0 {
		return nil
	}
	c := fitRelative(samples)
	if c == nil { // one number of streams: no telling how it grows
		per := make([]float64, len(samples))
		for i, s := range samples {
			per[i] = s.y / s.x[0]
		}
		c = []float64{medianOf(per), 0}
	}
	p.EgressEvent, p.EgressStream = milliseconds(c[0]), milliseconds(c[1])
	var with, without errorsOf
	for _, s := range m.Streams {
		n := float64(s.Streams)
		with.add(max(s.Step, predict([]float64{n, n * n}, c)), s.Client)
		without.add(s.Step, s.Client)
	}
	for _, x := range []struct {
		kind string
		e    errorsOf
	}{{"time between tokens at the client", with}, {"the same without the egress queue", without}} {
		r := Residual{Kind: x.kind, Cells: x.e.n, HeldOutMean: math.NaN(), HeldOutMax: math.NaN()}
		r.Mean, r.Max = x.e.values()
		report.Residuals = append(report.Residuals, r)
	}
	return nil
}

// short rounds to five digits, which is more than any measurement has and keeps the JSON readable.
func short(v float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 5, 64), 64)
	if err != nil {
		panic(err) // FormatFloat writes what ParseFloat reads
	}
	return r
}
