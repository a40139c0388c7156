package sim

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Grid is a [StepModel] of measured step times, with bilinear interpolation between them.
//
// Below the first point of an axis the value of the first point holds (a step has a floor; reading on below it would
// go to nothing); above the last point the line through the last two goes on, but never falls. [Grid.Covers] tells
// whether a shape lies inside.
//
// A mixed chunk takes the prefill's time with its decodes as new tokens, plus what the KV of the decodes costs by the
// grid: the difference between a decode with that context and one with the smallest.
type Grid struct {
	Decode  DecodeGrid  `json:"decode"`
	Prefill PrefillGrid `json:"prefill"`
}

// A DecodeGrid holds the times of decode steps.
type DecodeGrid struct {
	Batch   []int       `json:"batch"`   // requests, ascending
	Context []int       `json:"context"` // KV tokens per request, ascending
	Times   [][]float64 `json:"ms"`      // [batch][context], milliseconds
}

// A PrefillGrid holds the times of prefill steps of one prompt. A step of several prompts is looked up at the sum of
// their new tokens and at the cached length at which one prompt would have as many pairs of tokens to attend to; for
// several short prompts that is below 0, and the line through the first two cached lengths goes on to there.
type PrefillGrid struct {
	New    []int       `json:"new"`    // tokens computed, ascending
	Cached []int       `json:"cached"` // tokens of the prompt computed before, ascending
	Times  [][]float64 `json:"ms"`     // [new][cached], milliseconds
}

// StepTime implements [StepModel].
func (g Grid) StepTime(s Shape) time.Duration {
	if len(s.Extends) == 0 {
		return milliseconds(g.Decode.at(s))
	}
	ms := g.Prefill.at(s)
	if s.Decodes > 0 {
		floor := s
		floor.Context = 0
		ms += g.Decode.at(s) - g.Decode.at(floor)
	}
	return milliseconds(ms)
}

// Covers reports whether the shape lies inside the grid, so that its time is interpolated.
func (g Grid) Covers(s Shape) bool {
	within := func(axis []int, v float64) bool { return v >= float64(axis[0]) && v <= float64(axis[len(axis)-1]) }
	if s.Decodes > 0 && !(within(g.Decode.Batch, float64(s.Decodes)) && within(g.Decode.Context, float64(s.Context)/float64(s.Decodes))) {
		return false
	}
	if len(s.Extends) == 0 {
		return true
	}
	n, cached := equivalent(s)
	return within(g.Prefill.New, n) && within(g.Prefill.Cached, cached)
}

func (g DecodeGrid) at(s Shape) float64 {
	return bilinear(g.Batch, g.Context, g.Times, float64(s.Decodes), float64(s.Context)/float64(max(s.Decodes, 1)), false)
}

func (g PrefillGrid) at(s Shape) float64 {
	n, cached := equivalent(s)
	return bilinear(g.New, g.Cached, g.Times, n, cached, true)
}

// equivalent returns the one prompt that has as many new tokens and pairs as the extends of the shape together.
func equivalent(s Shape) (n, cached float64) {
	tokens, pairs, _ := prefillWork(s.Extends)
	n = float64(tokens)
	cached = (pairs - n*n) / (2 * n)
	return n + float64(s.Decodes), cached
}

// bilinear interpolates in t[x][y]. below lets the line of the y axis go on below its first point.
func bilinear(xs, ys []int, t [][]float64, x, y float64, below bool) float64 {
	i, fx := position(xs, x, false)
	j, fy := position(ys, y, below)
	row := func(i int) float64 {
		if len(ys) == 1 {
			return t[i][0]
		}
		return along(t[i][j], t[i][j+1], fy)
	}
	if len(xs) == 1 {
		return max(0, row(0))
	}
	return max(0, along(row(i), row(i+1), fx))
}

// along goes on beyond its second point no lower than there.
func along(a, b, f float64) float64 {
	if f > 1 && b < a {
		return b
	}
	return a + f*(b-a)
}

// position returns the segment of the axis that holds v and how far v is along it.
func position(axis []int, v float64, below bool) (i int, f float64) {
	if len(axis) == 1 {
		return 0, 0
	}
	if v < float64(axis[0]) && !below {
		return 0, 0
	}
	i = segment(axis, v)
	return i, (v - float64(axis[i])) / float64(axis[i+1]-axis[i])
}

// segment returns the segment of an axis of at least two points in which v lies, or the nearest.
func segment(axis []int, v float64) int {
	i, _ := slices.BinarySearchFunc(axis, v, func(a int, v float64) int {
		if float64(a) <= v {
			return -1
		}
		return 1
	})
	return min(max(i-1, 0), len(axis)-2)
}

func (g Grid) validate() error {
	return errors.Join(
		checkGrid("decode grid", "batch", "context", g.Decode.Batch, g.Decode.Context, 1, g.Decode.Times),
		checkGrid("prefill grid", "new", "cached", g.Prefill.New, g.Prefill.Cached, 0, g.Prefill.Times))
}

func checkGrid(name, x, y string, xs, ys []int, least int, t [][]float64) error {
	errs := []error{ascending(name+": "+x, xs, 1), ascending(name+": "+y, ys, least)}
	if len(xs) == 0 || len(ys) == 0 {
		errs = append(errs, fmt.Errorf("sim: %s has %d points of %s and %d of %s: want at least one of each", name, len(xs), x, len(ys), y))
	}
	if len(t) != len(xs) {
		errs = append(errs, fmt.Errorf("sim: %s has %d rows of times for %d points of %s", name, len(t), len(xs), x))
	}
	for i, row := range t {
		if len(row) != len(ys) {
			errs = append(errs, fmt.Errorf("sim: %s: row %d has %d times for %d points of %s", name, i, len(row), len(ys), y))
		}
		for _, ms := range row {
			if !(ms > 0) || math.IsInf(ms, 0) {
				errs = append(errs, fmt.Errorf("sim: %s: row %d has the time %v ms: want a finite number above 0", name, i, ms))
			}
		}
	}
	return errors.Join(errs...)
}
