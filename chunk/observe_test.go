package chunk

import "testing"

func TestWaitHistogram(t *testing.T) {
	var h WaitHistogram
	for i := range WaitBuckets - 1 {
		h.add(WaitBound(i))     // the last of bucket i
		h.add(WaitBound(i) + 1) // the first of the next
	}
	for i, n := range h.Counts {
		want := uint64(2)
		if i == 0 || i == WaitBuckets-1 {
			want = 1
		}
		if n != want {
			t.Errorf("bucket %d has %d, want %d", i, n, want)
		}
	}
	h = WaitHistogram{}
	h.add(-1)
	h.add(0)
	h.add(1 << 62)
	if h.Counts[0] != 2 || h.Counts[WaitBuckets-1] != 1 {
		t.Errorf("%v", h.Counts)
	}
	if n := testing.AllocsPerRun(100, func() { h.add(12345) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestLatencyKeepsItsHistogram: a heartbeat takes the mean, and nothing of the histogram.
func TestLatencyKeepsItsHistogram(t *testing.T) {
	var l latency
	l.add(1000)
	l.add(3000)
	if mean := l.take(); mean != 2000 {
		t.Errorf("mean %d", mean)
	}
	if mean := l.take(); mean != 0 {
		t.Errorf("mean of nothing: %d", mean)
	}
	if l.hist.Counts[0] != 2 || l.hist.SumNs != 4000 {
		t.Errorf("%+v", l.hist)
	}
}
