package perf

import "math/bits"

// Hist counts durations in fixed log-linear buckets: 64 to each power of two, so that a
// percentile is at most 1.6 % too high. Adding doesn't allocate. The zero value is empty.
//
// Bucket of v (ns):  v < 64: v itself;  else with e = position of the highest bit of v - 6:
// (e+1)*64 + (v>>e - 64).
type Hist struct {
	counts [histBuckets]uint64
	n      uint64
	sum    uint64
	max    int64
	min    int64
}

const (
	histSub     = 64
	histSubBits = 6
	histBuckets = (40 - histSubBits + 1) * histSub // up to 2^40 ns, 18 minutes
)

func histBucket(v int64) int {
	if v < histSub {
		return int(max(v, 0))
	}
	e := bits.Len64(uint64(v)) - 1 - histSubBits
	return min((e+1)*histSub+int(v>>e)-histSub, histBuckets-1)
}

// histUpper is the largest value that falls in bucket b.
func histUpper(b int) int64 {
	if b < histSub {
		return int64(b)
	}
	e := b/histSub - 1
	return (int64(b%histSub)+histSub+1)<<e - 1
}

// Add counts a duration of ns nanoseconds.
func (h *Hist) Add(ns int64) {
	h.counts[histBucket(ns)]++
	if h.n == 0 || ns < h.min {
		h.min = ns
	}
	h.n++
	h.sum += uint64(max(ns, 0))
	h.max = max(h.max, ns)
}

// Reset empties h.
func (h *Hist) Reset() { *h = Hist{} }

// Count is how many durations were added.
func (h *Hist) Count() uint64 { return h.n }

// Mean is in nanoseconds; 0 if h is empty.
func (h *Hist) Mean() float64 {
	if h.n == 0 {
		return 0
	}
	return float64(h.sum) / float64(h.n)
}

// Max is the longest duration, in nanoseconds.
func (h *Hist) Max() int64 { return h.max }

// Percentile returns the duration in nanoseconds that p percent (0-100) of all durations don't
// exceed; 0 if h is empty.
func (h *Hist) Percentile(p float64) int64 {
	if h.n == 0 {
		return 0
	}
	want := min(max(uint64(p/100*float64(h.n)+0.5), 1), h.n)
	var seen uint64
	for b, c := range h.counts {
		seen += c
		if seen >= want {
			return min(histUpper(b), h.max)
		}
	}
	return h.max
}

// Latency is a summary of a Hist, in microseconds.
type Latency struct {
	Mean float64 `json:"mean_us"`
	P50  float64 `json:"p50_us"`
	P99  float64 `json:"p99_us"`
	P999 float64 `json:"p99_9_us"`
	Max  float64 `json:"max_us"`
}

// Latency summarizes h.
func (h *Hist) Latency() Latency {
	us := func(ns int64) float64 { return float64(ns) / 1000 }
	return Latency{Mean: h.Mean() / 1000, P50: us(h.Percentile(50)), P99: us(h.Percentile(99)),
		P999: us(h.Percentile(99.9)), Max: us(h.max)}
}
