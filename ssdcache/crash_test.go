package ssdcache

import (
	"math/rand/v2"
	"os"
	"testing"

	"pstorage/uring"
	"pstorage/uring/simloop"
)

// live runs a random workload for some steps of the world.
func (r *rig) live(steps int) {
	write, read := 3, 4 // one in so many steps
	if r.readers && r.rng.IntN(2) == 0 {
		write, read, steps = 12, 1, 2*steps
	}
	for range steps {
		if r.rng.IntN(write) == 0 && r.log.Room() {
			r.env.Do(func() {
				for range 1 + r.rng.IntN(6) {
					r.append(r.randomChange())
				}
			})
		}
		if r.readers && r.rng.IntN(read) == 0 {
			r.env.Do(func() {
				n := 1 + r.rng.Uint32N(4)
				r.readBlocks(r.rng.Uint32N(testSlots), r.rng.Uint32N(24)*r.rng.Uint32N(4), n)
			})
		}
		if r.rng.IntN(50) == 0 {
			r.sim.Run(func() bool { return false }, r.sim.Now()+2e9) // idle
		}
		r.sim.Step()
	}
	if r.store.bad != nil {
		r.t.Fatal(r.store.bad)
	}
}

func (r *rig) mustOpen() {
	r.t.Helper()
	if err := r.open(); err != nil {
		r.t.Fatal(err)
	}
}

// lives is one seed of the crash test: a log that is cut off again and again, each time checked.
// It returns the number of crashes, and what they came across.
type tally struct {
	crashes, acked, lostTail, wraps, destaged, moved, killed, clean, admitted, rescued,
	filled int
}

func lives(t testing.TB, seed uint64, n int, wrap func(uring.Disk) uring.Disk) (sum tally) {
	r := newRig(t, seed, 6+int(seed%5), MinSegment)
	defer r.dispose()
	defer func() {
		if t.Failed() {
			t.Logf("it was seed %d", seed)
		}
	}()
	if wrap != nil {
		r.dev = wrap(r.disk)
	}
	r.opt = Options{BatchesInFlight: 1 + int(seed%3), DestageAt: []float64{0.01, 0.3, 0.6}[seed%3],
		NextBatch: 1 + int(seed/4%2)*15, Sequential: seed%4 == 3}
	r.readers = seed%2 == 0
	for range n {
		r.mustOpen()
		r.check()
		r.live(20 + r.rng.IntN(400))
		if r.failed != nil {
			t.Fatal(r.failed)
		}
		r.checkCopies()
		sum.admitted += int(r.log.stats.Admitted)
		sum.rescued += int(r.log.stats.Rescued)
		sum.acked += int(r.acked)
		if r.acked < uint64(len(r.history)) {
			sum.lostTail++
		}
		if r.log.head >= r.log.segs {
			sum.wraps++
		}
		sum.destaged += int(r.log.stats.Destaged)
		sum.moved += int(r.log.stats.Moved)
		sum.filled += r.store.filled
		sum.crashes++
		switch r.rng.IntN(6) {
		case 0:
			r.kill()
			sum.killed++
		case 1:
			if err := r.wait(func(done func(error)) { r.log.Close(done) }); err != nil {
				t.Fatal(err)
			}
			if r.acked != uint64(len(r.history)) {
				t.Fatalf("closed with %d of %d acknowledged", r.acked, len(r.history))
			}
			r.kill()
			sum.clean++
		default:
			r.powerCut()
		}
	}
	r.mustOpen()
	r.check()
	return sum
}

// TestCrash cuts the power, or kills the process, at random moments of random workloads: every
// acknowledged write is there afterwards, of the others a prefix, and nothing else changed. With
// PSTORAGE_LONG=1 there are 10,000 such moments.
func TestCrash(t *testing.T) {
	seeds := 100
	switch {
	case os.Getenv("PSTORAGE_LONG") != "":
		seeds = 2000
	case testing.Short():
		seeds = 30
	}
	var sum tally
	for seed := range uint64(seeds) {
		s := lives(t, seed, 5, nil)
		sum.crashes += s.crashes
		sum.acked += s.acked
		sum.lostTail += s.lostTail
		sum.wraps += s.wraps
		sum.destaged += s.destaged
		sum.moved += s.moved
		sum.filled += s.filled
		sum.killed += s.killed
		sum.clean += s.clean
		sum.admitted += s.admitted
		sum.rescued += s.rescued
	}
	t.Logf("%+v", sum)
	if sum.lostTail == 0 || sum.wraps == 0 || sum.destaged == 0 || sum.killed == 0 || sum.clean == 0 ||
		sum.moved == 0 || sum.filled == 0 || sum.admitted == 0 || sum.rescued == 0 {
		t.Fatalf("the workload doesn't reach what it should: %+v", sum)
	}
}

// lazyDisk pretends that writes are durable.
type lazyDisk struct{ uring.Disk }

func (d lazyDisk) Submit(op *uring.DiskOp) {
	if op.Kind == uring.DiskWriteSync {
		op.Kind = uring.DiskWrite
	}
	d.Disk.Submit(op)
}

// failure runs f with a TB of its own and says whether it failed.
type failure struct {
	testing.TB
	failed bool
}

func (f *failure) Helper() {}
func (f *failure) Fatal(...any) {
	f.failed = true
	panic(f)
}
func (f *failure) Fatalf(string, ...any) { f.Fatal() }

func fails(t testing.TB, f func(testing.TB)) (failed bool) {
	ft := &failure{TB: t}
	defer func() {
		if p := recover(); p != nil && p != ft {
			panic(p)
		}
		failed = ft.failed
	}()
	f(ft)
	return
}

// TestCrashCanary: a disk that doesn't keep what it acknowledged must be found out, otherwise
// TestCrash proves nothing.
func TestCrashCanary(t *testing.T) {
	for seed := range uint64(30) {
		if fails(t, func(ft testing.TB) {
			lives(ft, seed, 5, func(d uring.Disk) uring.Disk { return lazyDisk{d} })
		}) {
			return
		}
	}
	t.Fatal("a disk that ignores flushes went unnoticed")
}

// TestSameSeedSameLog: the whole thing is deterministic.
func TestSameSeedSameLog(t *testing.T) {
	run := func() uint64 {
		r := newRig(t, 5, 8, MinSegment)
		defer r.dispose()
		r.mustOpen()
		r.live(2000)
		return r.sim.Hash()
	}
	if first, again := run(), run(); first != again {
		t.Fatal("two histories of one seed")
	}
}

// TestTornBatch cuts a single batch of one block at every mixture that the disk may leave, many
// times over, with a second power cut while the log is being opened.
func TestTornBatch(t *testing.T) {
	for seed := range uint64(150) {
		r := newRig(t, seed, 6, MinSegment)
		r.mustOpen()
		r.env.Do(func() { r.append(change{Data, 0, 1, 1}) })
		r.sim.Run(func() bool { return r.acked == 1 }, 1e12)
		r.env.Do(func() { r.append(change{Data, 0, 1, 2}) })
		r.powerCut()
		o := Options{Disk: r.disk, Env: r.env, Pool: r.pool, Owner: testOwner, MaxSlots: testSlots,
			Backing: r.store}
		r.env.Do(func() { Open(o, nil, func(*Log, error) {}) })
		for range r.rng.IntN(12) {
			r.sim.Step()
		}
		r.powerCut()
		r.mustOpen()
		r.check()
		r.dispose()
	}
}

var _ uring.Disk = (*simloop.Disk)(nil)

// TestStaleBatch: a batch that survived behind a torn one was never acknowledged and is cut off
// with it. It must not come back when the torn one's number and place are used again.
func TestStaleBatch(t *testing.T) {
	stale := 0
	for seed := range uint64(60) {
		r := newRig(t, seed, 6, MinSegment)
		r.mustOpen()
		r.do(change{Data, 0, 1, 1})
		r.disk.Fault = func(*uring.DiskOp) simloop.Fault { return simloop.Fault{Delay: 1e9} }
		r.env.Do(func() { r.append(change{Data, 0, 2, 1}) }) // stays in flight
		r.disk.Fault = nil
		r.env.Do(func() { r.append(change{Data, 0, 3, 16}) }) // doesn't wait
		r.sim.Run(func() bool { return r.disk.InFlight() == 1 }, r.sim.Now()+1e8)
		r.powerCut()
		r.mustOpen()
		cutOff := r.replay == 1
		r.check()
		r.do(change{Data, 0, 5, 1}) // as large as the torn one
		if cutOff {
			var b [blockSize]byte
			r.disk.ReadAt(b[:], int64(r.log.place(r.log.head, r.log.at))*blockSize)
			var h header
			if h.decode(b[:]) == nil {
				stale++
			}
		}
		r.powerCut()
		r.mustOpen()
		if cutOff && r.replay != 2 {
			t.Fatalf("seed %d: replayed up to %d", seed, r.replay)
		}
		r.check()
		r.dispose()
	}
	if stale == 0 {
		t.Fatal("no intact batch behind a torn one came up")
	}
}

// TestTornBeforeSegmentEnd: a batch whose header made it but not its data, near the end of a
// segment, where the next one doesn't fit and goes to the next segment.
func TestTornBeforeSegmentEnd(t *testing.T) {
	hit := 0
	for seed := range uint64(60) {
		r := newRig(t, seed, 6, MinSegment)
		r.mustOpen()
		r.do(change{Data, 0, 0, 16})
		r.do(change{Data, 0, 16, 16})
		r.do(change{Data, 0, 32, 16}) // 51 of 64 blocks
		r.env.Do(func() { r.append(change{Data, 0, 50, 8}) })
		r.powerCut()
		var b [blockSize]byte
		at := int64(firstBlock + 64 + 51)
		r.disk.ReadAt(b[:], at*blockSize)
		var h header
		intact := h.decode(b[:]) == nil
		r.mustOpen()
		if intact && r.replay == 3 {
			hit++
		}
		r.check()
		r.do(change{Data, 1, 0, 16})
		r.powerCut()
		r.mustOpen()
		r.check()
		r.dispose()
	}
	if hit == 0 {
		t.Fatal("no batch with an intact header and torn data came up")
	}
}

// TestReuseWaitsForSuperblock: no segment is used again before the tail behind it is durable.
func TestReuseWaitsForSuperblock(t *testing.T) {
	for seed := range uint64(20) {
		r := newRig(t, seed, 6, MinSegment)
		r.opt.DestageAt = 0.1
		r.mustOpen()
		r.disk.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
			if op.Offset < firstBlock*blockSize {
				f.Delay = 1e9
			}
			return f
		}
		for i := 0; r.log.destage.phase != marking || r.log.Room(); i++ {
			if i > 100_000 {
				t.Fatal("never full while the superblock is written", r.log)
			}
			if r.log.Room() {
				r.do(change{Data, 0, uint32(i) % 80, 16})
			} else {
				r.sim.Step()
			}
		}
		for range 6 { // the reserve too
			r.env.Do(func() { r.append(change{Data, 0, 3, 16}) })
		}
		r.sim.Run(func() bool { return false }, r.sim.Now()+1e7)
		r.powerCut()
		r.mustOpen()
		r.check()
		r.dispose()
	}
}

// TestCrashEverywhere cuts one short run, which goes round the ring with write-back under way,
// after every single event, each in two ways.
func TestCrashEverywhere(t *testing.T) {
	r := newRig(t, 21, 6, MinSegment)
	defer r.dispose()
	r.opt.DestageAt = 0.05
	r.mustOpen()
	cuts := 0
	for step := uint64(0); r.log.head < 9 && step < 5000; step++ {
		if step%9 == 0 && r.log.Room() {
			r.env.Do(func() {
				r.append(r.randomChange())
				r.append(r.randomChange())
			})
		}
		r.sim.Step()
		for way := range uint64(2) {
			c := &rig{t: t, rng: rand.New(rand.NewPCG(step, way)), sim: simloop.New(step)}
			c.env = c.sim.NewEnv("cs")
			c.disk = r.disk.CrashClone(c.env, step*2+way)
			c.dev, c.store = c.disk, r.store.crash(c.rng)
			c.history, c.acked = append([]change(nil), r.history...), r.acked
			c.newPool()
			c.mustOpen()
			c.check()
			c.dispose()
			cuts++
		}
	}
	if r.log.head < 9 || r.log.stats.Rounds == 0 {
		t.Fatal("the run didn't go round:", r.log)
	}
	t.Logf("%d cuts, %d appends", cuts, len(r.history))
}
