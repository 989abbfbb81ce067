package ssdcache

import (
	"errors"
	"testing"

	"pstorage/uring"
	"pstorage/uring/simloop"
)

// drainUntil drains until done, or for so many steps of the world (0: to the end). It says whether
// it got done.
func (r *rig) drainUntil(steps int) bool {
	r.t.Helper()
	done, err := false, error(nil)
	r.env.Do(func() { r.log.Drain(func(e error) { done, err = true, e }) })
	for i := 0; !done && (steps == 0 || i < steps); i++ {
		if i > 1e6 || !r.sim.Step() {
			r.t.Fatalf("draining never ends: %v", r.log)
		}
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return done
}

// TestDrain empties logs of random contents, with the power cut or the process killed in between:
// nothing is lost, at the end nothing is left in the log, and a new log, of another size and on
// another disk, goes on where it ended.
func TestDrain(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 25
	}
	cut, drained := 0, 0
	for seed := range seeds {
		r := newRig(t, seed, 6+int(seed%5), MinSegment)
		r.opt = Options{BatchesInFlight: 1 + int(seed%3), NextBatch: 1 + int(seed/4%2)*15,
			Sequential: seed%4 == 3}
		r.readers = seed%2 == 0
		for done := false; !done; {
			r.mustOpen()
			r.check()
			r.live(20 + r.rng.IntN(400))
			r.settleDown()
			steps := 0
			if r.rng.IntN(4) > 0 {
				steps = 1 + r.rng.IntN(80)
			}
			if done = r.drainUntil(steps); done {
				break
			}
			if cut++; r.rng.IntN(2) == 0 {
				r.kill()
			} else {
				r.powerCut()
			}
		}
		drained++
		if n := r.log.Undrained(); n != 0 {
			t.Fatalf("seed %d: %d bytes left", seed, n)
		}
		r.successor(seed)
		r.dispose()
	}
	if cut < int(seeds)/3 || drained != int(seeds) {
		t.Fatalf("only %d cuts, %d drained", cut, drained)
	}
}

// settleDown waits until everything appended is durable and nobody reads.
func (r *rig) settleDown() {
	quiet := func() bool {
		return r.acked == uint64(len(r.history)) && !r.log.readsInFlight() && !r.log.cache.working
	}
	if !r.sim.Run(quiet, r.sim.Now()+600e9) {
		r.t.Fatal("never quiet")
	}
	r.sim.Run(func() bool { return false }, r.sim.Now()+20e6) // reads of the store
}

// successor closes the drained log and goes on with a new one.
func (r *rig) successor(seed uint64) {
	t := r.t
	t.Helper()
	batch, mark := r.log.NextBatch(), seed
	if err := r.wait(func(done func(error)) { r.log.Close(done) }); err != nil {
		t.Fatal(err)
	}
	r.kill()
	r.mustOpen() // the old one once more: nothing is in it
	if r.records != 0 || r.log.idx.n != 0 {
		t.Fatalf("seed %d: %d records in a drained log, %d blocks", seed, r.records, r.log.idx.n)
	}
	r.check()
	if err := r.wait(func(done func(error)) { r.log.Close(done) }); err != nil {
		t.Fatal(err)
	}
	r.kill()
	size := int64(firstBlock*blockSize + (9+int(seed%7))*MinSegment)
	r.disk = simloop.NewDisk(r.env, size, 512, simloop.DiskOptions{})
	r.dev = r.disk
	told := int64(0)
	if err := r.wait(func(done func(error)) {
		Format(FormatOptions{Disk: r.dev, Env: r.env, Pool: r.pool, Owner: testOwner,
			SegmentSize: MinSegment, FirstBatch: batch, Mark: mark,
			Progress: func(n, _ int64) { told = n }}, done)
	}); err != nil || told != size {
		t.Fatalf("seed %d: %v, told of %d of %d bytes", seed, err, told, size)
	}
	seen := uint64(0)
	r.opt.Accept = func(m, last uint64) error {
		if m != mark {
			t.Fatalf("seed %d: mark %d, was %d", seed, m, mark)
		}
		seen = last
		return nil
	}
	r.mustOpen()
	if r.opt.Accept = nil; seen != batch-1 || r.records != 0 {
		t.Fatalf("seed %d: the new log ends with batch %d, %d was next; %d records", seed, seen, batch,
			r.records)
	}
	r.check()
	for range 3 {
		r.live(200)
		r.powerCut()
		r.mustOpen()
		r.check()
	}
}

// TestDrainFails: a log that fails while it is drained says so.
func TestDrainFails(t *testing.T) {
	r := newRig(t, 3, 8, MinSegment)
	defer r.dispose()
	r.mustOpen()
	r.live(300)
	r.settleDown()
	r.store.fail = errors.New("boom")
	var err error
	done := false
	r.env.Do(func() { r.log.Drain(func(e error) { done, err = true, e }) })
	if !r.sim.Run(func() bool { return done }, r.sim.Now()+600e9) || err == nil {
		t.Fatalf("done %v, err %v", done, err)
	}
}

// TestDrainFull: a log without a segment to go on to is drained like any other.
func TestDrainFull(t *testing.T) {
	r := newRig(t, 4, 8, MinSegment)
	defer r.dispose()
	r.opt.Hold = true
	r.mustOpen()
	for n := uint32(0); ; n++ { // whatever Room says
		as := r.do(change{kind: Data, slot: n % testSlots, block: n % 6 * 16, n: 16})
		if as[0].Err != nil {
			r.history = r.history[:len(r.history)-1]
			break
		}
	}
	if r.log.ready > r.log.head || r.log.at == 0 {
		t.Fatalf("not full: %v", r.log)
	}
	done, err := false, error(nil)
	r.env.Do(func() {
		r.log.Drain(func(e error) { done, err = true, e })
		r.log.StartWriteBack()
	})
	if !r.sim.Run(func() bool { return done }, r.sim.Now()+600e9) || err != nil {
		t.Fatalf("done %v, err %v: %v", done, err, r.log)
	}
	if n := r.log.Undrained(); n != 0 {
		t.Errorf("%d bytes left", n)
	}
	r.check()
}

// TestDrainedStale: of two batches in flight the first is lost in a crash, and the second stays at
// the beginning of the next segment. If its number is the next one when the log is drained up to
// there, it is still not one of the drained log.
func TestDrainedStale(t *testing.T) {
	for _, clean := range []bool{false, true} {
		r := newRig(t, 5, 8, MinSegment)
		r.mustOpen()
		big := func(slot, block uint32) change {
			return change{kind: Data, slot: slot, block: block, n: 16}
		}
		r.do(big(0, 0))
		r.do(big(1, 0))
		lost := int64(r.log.place(r.log.head, r.log.at)) * blockSize
		r.disk.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
			if op.Kind == uring.DiskWriteSync && op.Offset == lost {
				f.Lost, f.Delay = true, 1e9
			}
			return f
		}
		r.env.Do(func() {
			r.append(big(0, 0))
			r.append(big(1, 0))
		})
		r.sim.Run(func() bool { return false }, r.sim.Now()+500e6)
		if r.acked != 2 || r.log.lastSent != r.log.durable+2 || r.log.newest.start%Pos(
			r.log.segBlocks) != firstBlock || !r.log.newest.done {
			t.Fatalf("acknowledged %d, %v", r.acked, r.log)
		}
		r.disk.Fault = nil
		r.kill()

		r.mustOpen()
		if r.check(); r.replay != 2 {
			t.Fatalf("replayed up to %d", r.replay)
		}
		r.do(big(1, 32))
		r.drainUntil(0)
		if clean {
			if err := r.wait(func(done func(error)) { r.log.Close(done) }); err != nil {
				t.Fatal(err)
			}
		}
		r.kill()
		r.mustOpen()
		if r.records != 0 {
			t.Fatalf("%d records in a drained log", r.records)
		}
		r.check()
		r.do(big(0, 48)) // where the stale one lies
		r.powerCut()
		r.mustOpen()
		r.check()
		r.dispose()
	}
}
