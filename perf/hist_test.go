package perf

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestHistBucketsJoin(t *testing.T) {
	for b := range histBuckets - 1 {
		if got := histBucket(histUpper(b)); got != b {
			t.Fatalf("bucket of the upper end %d of bucket %d is %d", histUpper(b), b, got)
		}
		if got := histBucket(histUpper(b) + 1); got != b+1 {
			t.Fatalf("bucket of %d is %d, want %d", histUpper(b)+1, got, b+1)
		}
	}
	for _, v := range []int64{-5, 1 << 62} {
		if b := histBucket(v); b < 0 || b >= histBuckets {
			t.Errorf("bucket of %d is %d", v, b)
		}
	}
}

// TestHistAgainstSort compares percentiles with those of the sorted durations.
func TestHistAgainstSort(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, seed))
	var h Hist
	var all []int64
	for range 20_000 {
		v := int64(rng.ExpFloat64() * 200_000)
		all = append(all, v)
		h.Add(v)
	}
	slices.Sort(all)
	for _, p := range []float64{0, 1, 50, 90, 99, 99.9, 100} {
		exact := all[min(max(int(p/100*float64(len(all))+0.5), 1), len(all))-1]
		got := h.Percentile(p)
		if got < exact || float64(got) > float64(exact)*1.016+1 {
			t.Errorf("p%v = %d, exactly %d (seed %d)", p, got, exact, seed)
		}
	}
	if h.Count() != uint64(len(all)) || h.Max() != all[len(all)-1] {
		t.Errorf("count %d, max %d; want %d, %d", h.Count(), h.Max(), len(all), all[len(all)-1])
	}
}

func TestHistAllocatesNothing(t *testing.T) {
	var h Hist
	v := int64(0)
	if n := testing.AllocsPerRun(1000, func() { v += 997; h.Add(v) }); n != 0 {
		t.Errorf("Add allocates %v times", n)
	}
}
