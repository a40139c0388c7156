package sim

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// errorsOf collects relative errors.
type errorsOf struct {
	n         int
	sum, most float64
}

func (e *errorsOf) add(got, want float64) {
	d := math.Abs(got/want - 1)
	e.n++
	e.sum += d
	e.most = max(e.most, d)
}

// values returns the mean and the largest error, NaN if there are none.
func (e *errorsOf) values() (mean, most float64) {
	if e.n == 0 {
		return math.NaN(), math.NaN()
	}
	return e.sum / float64(e.n), e.most
}

// crossValidated returns the errors of the fit c, and those of each group of samples under a fit without them.
func crossValidated(kind string, samples []sample, c []float64, group []int) Residual {
	var in, out errorsOf
	for _, s := range samples {
		in.add(predict(s.x, c), s.y)
	}
	groups := slices.Compact(slices.Sorted(slices.Values(group)))
	for _, g := range groups {
		var rest []sample
		for i, s := range samples {
			if group[i] != g {
				rest = append(rest, s)
			}
		}
		fit := fitRelative(rest)
		if fit == nil {
			out = errorsOf{}
			break
		}
		for i, s := range samples {
			if group[i] == g {
				out.add(predict(s.x, fit), s.y)
			}
		}
	}
	r := Residual{Kind: kind, Cells: in.n}
	r.Mean, r.Max = in.values()
	r.HeldOutMean, r.HeldOutMax = out.values()
	return r
}

// outside returns the errors of the cells that are in no fit, at the server.
func outside(kind string, all []prefillCell, of func(prefillCell) bool, want func(prefillCell) float64) Residual {
	var e errorsOf
	for _, c := range all {
		if of(c) {
			e.add(want(c), c.server)
		}
	}
	r := Residual{Kind: kind, Cells: e.n, Mean: math.NaN(), Max: math.NaN()}
	r.HeldOutMean, r.HeldOutMax = e.values()
	return r
}

// compareBatches puts the prompts sent at once through the engine and compares the last first token. The client sends
// them one after another over connections of their own; that takes a share of the ingest that the measurements do not
// tell, so the requests arrive together here.
func compareBatches(m Measurements, p Profile, report *CalibrationReport) error {
	if len(m.Batches) == 0 {
		return nil
	}
	type key struct{ prompts, tokens int }
	last := map[key][]float64{}
	var order []key
	for _, b := range m.Batches {
		k := key{b.Prompts, b.Tokens}
		if last[k] == nil {
			order = append(order, k)
		}
		last[k] = append(last[k], b.Last)
	}
	var e errorsOf
	for _, k := range order {
		run := MeasuredRun{Requests: make([]MeasuredRequest, k.prompts)}
		for i := range run.Requests {
			run.Requests[i] = MeasuredRequest{Prompt: k.tokens, Output: 1}
		}
		got, err := simulate(p, run)
		if err != nil {
			return fmt.Errorf("sim: calibrate: %w", err)
		}
		var end time.Duration
		for _, r := range got {
			end = max(end, r.first)
		}
		e.add(inMilliseconds(end), medianOf(last[k]))
	}
	r := Residual{Kind: "last first token of prompts at once", Cells: e.n, Mean: math.NaN(), Max: math.NaN()}
	r.HeldOutMean, r.HeldOutMax = e.values()
	report.Residuals = append(report.Residuals, r)
	return nil
}
