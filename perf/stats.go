package perf

import (
	"math"
	"slices"
)

// Median returns the middle of the values (the mean of the middle two), NaN if there are none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Clone(values)
	slices.Sort(s)
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Spread returns the distance between the largest and the smallest value as a share of the
// median: how much to believe the median of so few runs. 0 for fewer than two values.
func Spread(values []float64) float64 {
	if len(values) < 2 {
		return 0
	}
	m := Median(values)
	if m == 0 {
		return 0
	}
	return (slices.Max(values) - slices.Min(values)) / m
}

// Ratios divides ours by the yardstick, round by round, so that noise that both saw falls out.
func Ratios(ours, yardstick []float64) []float64 {
	var out []float64
	for i := range min(len(ours), len(yardstick)) {
		if yardstick[i] > 0 {
			out = append(out, ours[i]/yardstick[i])
		}
	}
	return out
}
