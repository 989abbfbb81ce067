package perf

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// fakeTarget completes operations in the order of their issue, each latency ns after it.
type fakeTarget struct {
	g       *generator
	clock   int64
	latency int64
	queue   []fakeOp
	fail    error
	offsets map[int64]int
	most    int // in flight
}

type fakeOp struct {
	slot int
	due  int64
}

func newFakeTarget(w Workload, latency time.Duration) *fakeTarget {
	f := &fakeTarget{latency: int64(latency), offsets: map[int64]int{}}
	f.g = newGenerator(w, 1, func() int64 { return f.clock })
	f.g.issue = func(slot int, offset int64) {
		f.offsets[offset]++
		f.queue = append(f.queue, fakeOp{slot, f.clock + f.latency})
		f.most = max(f.most, len(f.queue))
	}
	f.g.ended = func() {}
	return f
}

func (f *fakeTarget) run() (Result, error) {
	f.g.start()
	for len(f.queue) > 0 {
		op := f.queue[0]
		f.queue = f.queue[1:]
		f.clock = max(f.clock, op.due)
		f.g.complete(op.slot, f.fail)
	}
	return f.g.result()
}

// TestGeneratorWarm: what ends in the time before isn't counted, and the run is longer by it.
func TestGeneratorWarm(t *testing.T) {
	w := Workload{RW: "write", BlockSize: 4096, Depth: 8, Warm: time.Second / 4, Time: time.Second,
		Size: 1 << 20}
	f := newFakeTarget(w, time.Millisecond)
	r, err := f.run()
	if err != nil {
		t.Fatal(err)
	}
	// Those that end from 250 ms on and before 1250 ms: 8 in each of 1000 of them.
	if r.Ops != 8*1000 || r.IOPS != 8000 || r.Seconds != 1 || f.g.issued != 8*1250 {
		t.Errorf("%d operations in %v s, %v per second, %d issued; want 8000, 1, 8000, 10000",
			r.Ops, r.Seconds, r.IOPS, f.g.issued)
	}
	w.Time = 0
	if err := w.Validate(); err == nil {
		t.Error("a time before a run that has none")
	}
}

func TestGeneratorCounts(t *testing.T) {
	w := Workload{RW: "randread", BlockSize: 4096, Depth: 8, Time: time.Second, Size: 1 << 20}
	f := newFakeTarget(w, time.Millisecond)
	r, err := f.run()
	if err != nil {
		t.Fatal(err)
	}
	// 8 at a time, each 1 ms, for 1 s; those that complete when the time is over don't count.
	if r.Ops != 8*999 || f.most != 8 {
		t.Errorf("%d operations, at most %d in flight; want 7992, 8", r.Ops, f.most)
	}
	if r.IOPS != 7992 || r.Latency.P50 != 1000 || r.Latency.Max != 1000 {
		t.Errorf("result %+v", r)
	}
	if len(f.offsets) != 256 {
		t.Errorf("random reads of 256 blocks met %d of them", len(f.offsets))
	}
	for offset := range f.offsets {
		if offset%4096 != 0 || offset < 0 || offset+4096 > w.Size {
			t.Errorf("offset %d", offset)
		}
	}
}

// The longest standstill counts even if it goes on beyond the end of the run.
func TestGeneratorGap(t *testing.T) {
	w := Workload{RW: "randwrite", BlockSize: 4096, Depth: 4, Time: time.Second, Size: 1 << 20}
	f := newFakeTarget(w, time.Millisecond)
	f.g.issue = func(slot int, _ int64) {
		due := f.clock + f.latency
		if due >= 900e6 { // nothing more for 2 s
			due = 2900e6
		}
		f.queue = append(f.queue, fakeOp{slot, due})
	}
	r, err := f.run()
	if err != nil {
		t.Fatal(err)
	}
	if r.Gap != 2001e3 {
		t.Errorf("longest gap of %.0f µs, want 2001000", r.Gap)
	}
}

func TestGeneratorSequential(t *testing.T) {
	w := Workload{RW: "write", BlockSize: 1 << 20, Depth: 2, Time: time.Second, Size: 10<<20 + 5}
	f := newFakeTarget(w, 10*time.Millisecond)
	if _, err := f.run(); err != nil {
		t.Fatal(err)
	}
	if len(f.offsets) != 10 {
		t.Fatalf("offsets %v, want 10 whole blocks", f.offsets)
	}
	for offset, n := range f.offsets {
		if n < 19 || n > 21 {
			t.Errorf("offset %d written %d times", offset, n)
		}
	}
}

func TestGeneratorOnePass(t *testing.T) {
	for _, depth := range []int{1, 3, 16} {
		w := Workload{RW: "write", BlockSize: 1 << 20, Depth: depth, Size: 10 << 20}
		f := newFakeTarget(w, 10*time.Millisecond)
		r, err := f.run()
		if err != nil {
			t.Fatal(err)
		}
		if r.Ops != 10 || len(f.offsets) != 10 || r.Seconds < 0.0099 {
			t.Errorf("depth %d: %+v, offsets %v; want each of 10 blocks once", depth, r, f.offsets)
		}
	}
}

func TestGeneratorStopsOnErrors(t *testing.T) {
	w := Workload{RW: "randwrite", BlockSize: 4096, Depth: 4, Time: time.Hour, Size: 1 << 20}
	f := newFakeTarget(w, time.Millisecond)
	f.fail = errors.New("disk on fire")
	_, err := f.run()
	if err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("error %v", err)
	}
	if f.g.errs > maxErrors+4 {
		t.Errorf("%d failures before it gave up", f.g.errs)
	}
}

func TestGeneratorAllocatesNothing(t *testing.T) {
	w := Workload{RW: "randread", BlockSize: 4096, Depth: 1, Time: time.Hour, Size: 1 << 20}
	var clock int64
	g := newGenerator(w, 1, func() int64 { clock += 1000; return clock })
	g.issue = func(int, int64) {}
	g.start()
	if n := testing.AllocsPerRun(1000, func() { g.complete(0, nil) }); n != 0 {
		t.Errorf("an operation allocates %v times", n)
	}
}

func TestWorkloadValidate(t *testing.T) {
	good := Workload{RW: "read", BlockSize: 4096, Depth: 1, Time: time.Second, Size: 4096}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Workload){
		"rw":    func(w *Workload) { w.RW = "trim" },
		"bs":    func(w *Workload) { w.BlockSize = 100 },
		"depth": func(w *Workload) { w.Depth = 0 },
		"time":  func(w *Workload) { w.RW, w.Time = "randread", 0 },
		"size":  func(w *Workload) { w.Size = 4095 },
	} {
		w := good
		change(&w)
		if err := w.Validate(); err == nil {
			t.Errorf("bad %s is accepted", name)
		}
	}
}
