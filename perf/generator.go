package perf

import "fmt"

// generator keeps Depth operations of a workload in flight until its time is over. It is pure and
// belongs to one thread: the front end it drives calls complete for every operation it was asked
// to issue, from the same thread, never from inside issue. It doesn't allocate while it runs.
type generator struct {
	w      Workload
	now    func() int64                 // monotonic, ns
	issue  func(slot int, offset int64) // start an operation of w.BlockSize bytes in this slot
	ended  func()                       // called once, when the last operation completed
	rng    uint64                       // xorshift64 state, not 0
	begin  []int64                      // by slot: when its operation was issued
	left   int                          // operations in flight
	issued uint64                       // operations, also those that complete after the time
	seq    int64                        // next block of a sequential workload
	first  int64                        // when it started
	last   int64                        // when the last operation that counts completed
	latest int64                        // when the last one of all completed
	gap    int64                        // the longest time without one, ns
	hist   Hist                         // of operations that completed inside the time
	errs   uint64                       // operations that failed
	err    error                        // the first failure
	ending bool                         // before its time: finish
}

// maxErrors ends a run early: a front end that fails everything isn't worth timing.
const maxErrors = 100

func newGenerator(w Workload, seed uint64, now func() int64) *generator {
	if err := w.Validate(); err != nil {
		panic(fmt.Sprintf("perf: generator of a bad workload: %v", err))
	}
	// One step of splitmix64 spreads small seeds; xorshift must not start at 0.
	seed += 0x9e3779b97f4a7c15
	seed = (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
	seed = (seed ^ seed>>27) * 0x94d049bb133111eb
	return &generator{w: w, now: now, rng: seed | 1, begin: make([]int64, w.Depth)}
}

// start issues the first Depth operations.
func (g *generator) start() {
	g.first = g.now()
	g.latest = g.first
	for slot := range g.begin {
		if slot > 0 && g.over(g.first) {
			break // a pass of fewer blocks than Depth
		}
		g.left++
		g.kick(slot, g.first)
	}
}

func (g *generator) kick(slot int, now int64) {
	blocks := g.w.Size / int64(g.w.BlockSize)
	var block int64
	if g.w.Random() {
		g.rng ^= g.rng << 13
		g.rng ^= g.rng >> 7
		g.rng ^= g.rng << 17
		block = int64(g.rng % uint64(blocks))
	} else {
		block = g.seq % blocks
		g.seq++
	}
	g.begin[slot] = now
	g.issued++
	g.issue(slot, block*int64(g.w.BlockSize))
}

// finish ends the run before its time; operations in flight still count.
func (g *generator) finish() { g.ending = true }

// timed says whether the run lasts as long as its workload says.
func (g *generator) timed() bool { return g.w.Time > 0 && g.w.Count == 0 && !g.ending }

// over says whether the workload's time is over, or all of it has been issued.
func (g *generator) over(now int64) bool {
	if g.ending || g.w.Count > 0 && g.issued >= g.w.Count {
		return true
	}
	if g.w.Time == 0 {
		return g.seq >= g.w.Size/int64(g.w.BlockSize)
	}
	return now-g.first >= int64(g.w.Warm+g.w.Time)
}

// complete is told that the operation in slot is done; short reads are errors.
func (g *generator) complete(slot int, err error) {
	now := g.now()
	over := g.over(now)
	g.gap = max(g.gap, now-g.latest)
	g.latest = now
	switch {
	case err != nil:
		g.errs++
		if g.err == nil {
			g.err = err
		}
	case now-g.first < int64(g.w.Warm): // the way to the servers isn't full yet
	case !over || !g.timed():
		g.last = now
		g.hist.Add(now - g.begin[slot])
	}
	if !over && g.errs < maxErrors {
		g.kick(slot, now)
		return
	}
	g.left--
	if g.left < 0 {
		panic(fmt.Sprintf("perf: slot %d completed twice", slot))
	}
	if g.left == 0 {
		g.ended()
	}
}

// result is valid after ended was called.
func (g *generator) result() (Result, error) {
	if g.errs > 0 {
		return Result{}, fmt.Errorf("%d operations failed, %d succeeded; the first failure: %w",
			g.errs, g.hist.Count(), g.err)
	}
	seconds := float64(g.w.Time) / 1e9
	if !g.timed() {
		seconds = float64(max(g.last-g.first, 1)) / 1e9
	}
	if g.hist.Count() == 0 {
		return Result{}, fmt.Errorf("no operation completed in %v", g.w.Time)
	}
	iops := float64(g.hist.Count()) / seconds
	return Result{Ops: g.hist.Count(), Seconds: seconds, IOPS: iops, Gap: float64(g.gap) / 1000,
		MBps: iops * float64(g.w.BlockSize) / 1e6, Latency: g.hist.Latency()}, nil
}
