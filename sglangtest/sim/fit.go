package sim

import (
	"math"
	"slices"
)

// A sample is one measurement of a quantity that is linear in the coefficients: y ≈ Σ x·coefficient, y > 0.
type sample struct {
	x []float64
	y float64
}

// fitRelative fits the coefficients, none below 0, by least squares of the relative error, and gives samples that lie
// outside the bulk less weight (Huber's weights, iterated; 1.345 standard deviations, which loses 5 % of efficiency on
// normal errors). It needs at least as many samples as coefficients, and returns nil if they do not determine them.
func fitRelative(samples []sample) []float64 {
	if len(samples) == 0 || len(samples) < len(samples[0].x) {
		return nil
	}
	w := make([]float64, len(samples))
	for i, s := range samples {
		w[i] = 1 / s.y
	}
	var c []float64
	for range 50 {
		next := nonNegative(samples, w)
		if next == nil {
			return nil
		}
		done := c != nil
		for i := range next {
			done = done && math.Abs(next[i]-c[i]) <= 1e-10*math.Abs(next[i])
		}
		if c = next; done {
			break
		}
		r := make([]float64, len(samples))
		for i, s := range samples {
			r[i] = math.Abs(predict(s.x, c)/s.y - 1)
		}
		scale := 1.345 * max(1.4826*medianOf(r), 1e-6)
		for i, s := range samples {
			w[i] = math.Sqrt(min(1, scale/max(r[i], 1e-300))) / s.y
		}
	}
	return c
}

// nonNegative solves min Σ (w·(x·c − y))² with c ≥ 0. As long as a coefficient comes out negative, the most negative
// one (by what it contributes) is held at 0.
func nonNegative(samples []sample, w []float64) []float64 {
	free := make([]int, len(samples[0].x))
	for i := range free {
		free[i] = i
	}
	for len(free) > 0 {
		c := leastSquares(samples, w, free)
		if c == nil {
			return nil
		}
		worst, most := -1, 0.0
		for k, i := range free {
			if v := c[i] * largest(samples, i); v < most {
				worst, most = k, v
			}
		}
		if worst < 0 {
			return c
		}
		free = slices.Delete(free, worst, worst+1)
	}
	return nil
}

func largest(samples []sample, i int) (v float64) {
	for _, s := range samples {
		v = max(v, math.Abs(s.x[i]))
	}
	return v
}

// leastSquares solves the normal equations for the free coefficients; the others are 0. Columns are scaled, as they
// differ by eight orders of magnitude. It returns nil if the equations are singular.
func leastSquares(samples []sample, w []float64, free []int) []float64 {
	n := len(free)
	scale := make([]float64, n)
	for k, i := range free {
		if scale[k] = largest(samples, i); scale[k] == 0 {
			return nil
		}
	}
	a := make([][]float64, n)
	for i := range a {
		a[i] = make([]float64, n+1)
	}
	for s, m := range samples {
		for i := range n {
			xi := w[s] * w[s] * m.x[free[i]] / scale[i]
			for j := range n {
				a[i][j] += xi * m.x[free[j]] / scale[j]
			}
			a[i][n] += xi * m.y
		}
	}
	for i := range n {
		p := i
		for k := i + 1; k < n; k++ {
			if math.Abs(a[k][i]) > math.Abs(a[p][i]) {
				p = k
			}
		}
		a[i], a[p] = a[p], a[i]
		if math.Abs(a[i][i]) < 1e-12*a0(a, i) {
			return nil
		}
		for k := range n {
			if k != i {
				f := a[k][i] / a[i][i]
				for j := i; j <= n; j++ {
					a[k][j] -= f * a[i][j]
				}
			}
		}
	}
	c := make([]float64, len(samples[0].x))
	for k, i := range free {
		c[i] = a[k][n] / a[k][k] / scale[k]
	}
	return c
}

// a0 is the size that the pivot of row i is compared with.
func a0(a [][]float64, i int) (v float64) {
	for k := range i + 1 {
		v = max(v, math.Abs(a[k][k]))
	}
	return v
}

func predict(x, c []float64) (y float64) {
	for i, v := range x {
		y += v * c[i]
	}
	return y
}

// medianOf returns the median, the mean of the middle two for an even number.
func medianOf(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n == 0 {
		return math.NaN()
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}
