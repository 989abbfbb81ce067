package ssdcache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// do appends changes in one turn and waits until they are reported.
func (r *rig) do(changes ...change) []*Append {
	r.t.Helper()
	var as []*Append
	left := 0
	r.env.Do(func() {
		for _, c := range changes {
			a := r.append(c)
			left++
			done := a.Done
			a.Done = func(a *Append) { left--; done(a) }
			as = append(as, a)
		}
	})
	if !r.sim.Run(func() bool { return left == 0 }, r.sim.Now()+600e9) {
		r.t.Fatal("appends never reported")
	}
	return as
}

// readBack reads a block through the log and returns its tag and whether it was found there.
func (r *rig) readBack(slot, block uint32) (tag uint64, inLog bool, err error) {
	r.t.Helper()
	buf := r.pool.Get(blockSize)
	defer buf.Release()
	op := &ReadOp{Blocks: 1, Buf: buf.Bytes()[:blockSize]}
	fin := false
	op.Done = func(*ReadOp) { fin = true }
	var crc uint32
	r.env.Do(func() {
		var ok bool
		if op.Pos, ok = r.log.Lookup(slot, block); ok {
			crc = r.log.CRC(op.Pos)
			r.log.Read(op)
			inLog = true
			if fin {
				r.t.Fatal("Done called from inside Read")
			}
		}
	})
	if !inLog {
		return r.store.cur[slot][block], false, nil
	}
	if !r.sim.Run(func() bool { return fin }, r.sim.Now()+600e9) {
		r.t.Fatal("read never done")
	}
	if op.Err != nil {
		return 0, true, op.Err
	}
	if dataplane.CRC(op.Buf) != crc {
		return 0, true, dataplane.E("read", dataplane.BadCRC, nil)
	}
	tag, err = tagOf(op.Buf)
	return tag, true, err
}

func openRig(t testing.TB, seed uint64, segments int) *rig {
	r := newRig(t, seed, segments, MinSegment)
	r.mustOpen()
	t.Cleanup(r.dispose)
	return r
}

// TestReadWhereverItIs: from memory before it is written, from the log, after write-back, and
// after the segment was used again, from the store.
func TestReadWhereverItIs(t *testing.T) {
	r := openRig(t, 1, 8)
	op := &ReadOp{Blocks: 3, Buf: r.pool.Get(3 * blockSize).Bytes()[:3*blockSize]}
	fin := 0
	op.Done = func(*ReadOp) { fin++ }
	r.env.Do(func() {
		r.append(change{Data, 1, 2, 1})
		r.append(change{Data, 0, 10, 12}) // large: its memory may be retained
		op.Pos, _ = r.log.Lookup(0, 15)
		r.log.Read(op) // from the open batch
		if tag, _ := tagOf(op.Buf[2*blockSize:]); tag != 2 || fin != 0 {
			t.Fatal("read from memory", tag, fin)
		}
	})
	r.env.Do(func() { r.log.Read(op) }) // from the batch in flight
	if !r.sim.Run(func() bool { return r.acked == 2 && fin == 2 }, 1e12) {
		t.Fatal("not acknowledged or not read")
	}
	if tag, in, err := r.readBack(0, 21); tag != 2 || !in || err != nil {
		t.Fatal("read from the log", tag, in, err)
	}
	r.do(change{Data, 0, 21, 1}, change{Zero, 0, 10, 2}, change{Drop, 1, 0, testBlocks})
	for block, want := range map[uint32]uint64{10: 0, 11: 0, 12: 2, 21: 3} {
		if tag, _, err := r.readBack(0, block); tag != want || err != nil {
			t.Fatalf("block %d: %d %v, want %d", block, tag, err, want)
		}
	}
	if _, in, _ := r.readBack(1, 2); in {
		t.Fatal("dropped slot is still found")
	}
	for i := range uint32(200) { // round the ring
		r.do(change{Data, 2, i % 80, 16})
	}
	if tag, in, err := r.readBack(0, 21); tag != 3 || in || err != nil {
		t.Fatal("read from the store", tag, in, err)
	}
}

// TestCleanBlocksStay: after write-back reads still find the log, until the segment is used again.
func TestCleanBlocksStay(t *testing.T) {
	r := openRig(t, 2, 16)
	for i := range uint32(40) {
		r.do(change{Data, 0, i, 8})
	}
	r.sim.Run(func() bool { return r.log.tail == r.log.head }, r.sim.Now()+100e9)
	if r.log.tail != r.log.head || r.log.stats.Destaged == 0 {
		t.Fatal("an idle log isn't written back:", r.log)
	}
	if tag, in, err := r.readBack(0, 3); tag != 4 || !in || err != nil {
		t.Fatal("clean block:", tag, in, err)
	}
}

// TestPinned: a segment isn't used again while it is read.
func TestPinned(t *testing.T) {
	r := openRig(t, 3, 8)
	r.do(change{Data, 3, 0, 1})
	op := &ReadOp{Blocks: 1, Buf: r.pool.Get(blockSize).Bytes()[:blockSize]}
	fin := false
	op.Done = func(*ReadOp) { fin = true }
	r.disk.Fault = func(o *uring.DiskOp) simloop.Fault {
		if o == &op.op {
			return simloop.Fault{Delay: 30e9}
		}
		return simloop.Fault{}
	}
	r.env.Do(func() {
		op.Pos, _ = r.log.Lookup(3, 0)
		r.log.Read(op)
	})
	for i := 0; r.log.Room() || r.log.tail < r.log.head; i++ {
		if fin {
			t.Fatal("the log went round a segment that is being read")
		}
		if i > 2000 {
			t.Fatal("never full", r.log)
		}
		if r.log.Room() {
			r.do(change{Data, 0, uint32(i) % 80, 16})
		}
		r.sim.Run(func() bool { return false }, r.sim.Now()+10e6)
	}
	room := false
	r.log.o.OnRoom = func() { room = true }
	r.sim.Run(func() bool { return room }, r.sim.Now()+100e9)
	if tag, err := tagOf(op.Buf); !fin || !room || tag != 1 || err != nil {
		t.Fatal(fin, room, tag, err)
	}
}

// TestFull: when the store doesn't take anything the log says so in time; who goes on is refused
// in order; when the store goes on everything does.
func TestFull(t *testing.T) {
	r := openRig(t, 4, 8)
	rooms := 0
	r.log.o.OnRoom = func() { rooms++ }
	r.store.hold = true
	for i := uint32(0); r.log.Pressure() < 1; i++ {
		if r.log.Room() {
			r.do(change{Data, i % testSlots, i % 80, 16})
		} else { // the pace: it knows nothing of the store's speed yet
			r.sim.Run(func() bool { return false }, r.sim.Now()+10e6)
		}
		if i > 10000 {
			t.Fatal("never full")
		}
	}
	if r.log.Room() {
		t.Error("room in a full log")
	}
	rooms = 0
	var last *Append
	n := 0
	for ; ; n++ { // the reserve
		history, acked := len(r.history), r.acked
		last = r.do(change{Data, 0, 0, 16})[0]
		if last.Err != nil {
			r.history, r.acked = r.history[:history], acked
			break
		}
	}
	if n < 2*(MinSegment-1<<16)/(17*blockSize) {
		t.Errorf("reserve took %d appends", n)
	}
	if dataplane.KindOf(last.Err) != dataplane.Overloaded {
		t.Error(last.Err)
	}
	r.store.release()
	if !r.sim.Run(func() bool { return rooms > 0 }, r.sim.Now()+100e9) || !r.log.Room() {
		t.Fatal("no room again", r.log)
	}
	r.do(change{Data, 1, 1, 1})
	r.powerCut()
	r.mustOpen()
	r.check()
}

// TestSmoothBackPressure writes ten times the log's size against a slow store: there is never a
// long time without an acknowledgment, and the log settles at the store's own rate.
func TestSmoothBackPressure(t *testing.T) {
	r := newRig(t, 5, 32, MinSegment)
	r.mustOpen()
	t.Cleanup(r.dispose)
	rng := rand.New(rand.NewPCG(1, 2))
	total := uint64(10 * 32 * MinSegment / (8 * blockSize))
	var worst, last int64
	last = r.sim.Now()
	acked := r.acked
	for r.acked < total {
		if r.log.Room() && uint64(len(r.history))-r.acked < 64 {
			r.env.Do(func() {
				for range 8 {
					r.append(change{Data, rng.Uint32N(testSlots), rng.Uint32N(88), 8})
				}
			})
		}
		if !r.sim.Step() {
			t.Fatal("stuck")
		}
		if r.acked != acked {
			worst = max(worst, r.sim.Now()-last)
			last, acked = r.sim.Now(), r.acked
		}
		if r.sim.Now()-last > 10e9 {
			t.Fatal("no progress for 10 s", r.log)
		}
	}
	if worst > 200e6 {
		t.Errorf("%d ms without progress", worst/1e6)
	}
	r.sim.Run(func() bool { return false }, r.sim.Now()+1e9)
	if r.store.bad != nil {
		t.Fatal(r.store.bad)
	}
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name string
		hurt func(r *rig)
	}{
		{"batch", func(r *rig) {
			r.disk.FailRange(firstBlock*blockSize, 1<<40, simloop.ErrIO, uring.DiskWriteSync)
		}},
		{"superblock", func(r *rig) {
			r.disk.FailRange(0, firstBlock*blockSize, simloop.ErrIO, uring.DiskWriteSync)
		}},
		{"read for write-back", func(r *rig) {
			r.disk.FailRange(firstBlock*blockSize, 1<<40, simloop.ErrIO, uring.DiskRead)
		}},
		{"store", func(r *rig) { r.store.fail = boom }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := openRig(t, 6, 8)
			r.do(change{Data, 0, 0, 16})
			c.hurt(r)
			var results []error
			for range 400 {
				if r.failed != nil {
					break
				}
				r.env.Do(func() {
					for range 3 {
						a := r.append(change{Data, 1, 0, 16})
						a.Done = func(a *Append) { results = append(results, a.Err) }
					}
				})
				r.sim.Run(func() bool { return false }, r.sim.Now()+2e6)
			}
			r.env.Do(func() { // in a failed log
				a := r.append(change{Data, 2, 0, 1})
				a.Done = func(a *Append) { results = append(results, a.Err) }
			})
			r.sim.Run(func() bool { return false }, r.sim.Now()+1e9)
			if r.fails != 1 || dataplane.KindOf(r.failed) != dataplane.IOError {
				t.Fatalf("OnFail %d times, %v", r.fails, r.failed)
			}
			if len(results) != len(r.history)-1 {
				t.Fatalf("%d of %d appends reported", len(results), len(r.history)-1)
			}
			bad := false
			for i, err := range results {
				if err != nil && dataplane.KindOf(err) != dataplane.IOError || bad && err == nil {
					t.Fatalf("append %d: %v (a failure before: %v)", i, err, bad)
				}
				bad = bad || err != nil
			}
			if _, _, err := r.readBack(0, 0); dataplane.KindOf(err) != dataplane.IOError {
				t.Error("read from a failed log:", err)
			}
			if err := r.wait(func(done func(error)) { r.log.Close(done) }); err == nil {
				t.Error("closed without an error")
			}
		})
	}
}

// TestRefusesWrongLogs: nothing is opened, and nothing changed, that isn't this store's log.
func TestRefusesWrongLogs(t *testing.T) {
	for _, c := range []struct {
		name string
		hurt func(r *rig)
		want string
	}{
		{"not formatted", func(r *rig) { r.disk.WriteAt(make([]byte, 2*superSize), 0) }, "no log"},
		{"other owner", func(r *rig) { r.super(func(s *super) { s.owner++ }) }, "another chunk server"},
		{"longer before", func(r *rig) { r.super(func(s *super) { s.segments++ }) }, "cut off"},
		{"version", func(r *rig) {
			b := make([]byte, superSize)
			for i := range int64(2) {
				r.disk.ReadAt(b, i*superSize)
				b[8]++
				le.PutUint32(b[superSize-4:], dataplane.CRC(b[:superSize-4]))
				r.disk.WriteAt(b, i*superSize)
			}
		}, fmt.Sprintf("version %d", version+1)},
		{"damaged superblocks", func(r *rig) {
			r.disk.FlipBit(100, 1)
			r.disk.FlipBit(superSize+100, 1)
		}, "damaged"},
		{"fewer slots", func(r *rig) { r.opt.MaxSlots = 1 }, "slot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := openRig(t, 7, 8)
			r.do(change{Data, 2, 0, 4}, change{Data, 3, 0, 4})
			r.powerCut()
			c.hurt(r)
			before := make([]byte, r.disk.Size())
			r.disk.ReadAt(before, 0)
			err := r.open()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want ...%s...", err, c.want)
			}
			after := make([]byte, r.disk.Size())
			if r.disk.ReadAt(after, 0); string(before) != string(after) {
				t.Error("the disk was changed")
			}
			if r.pool.InUse() != 0 {
				t.Errorf("%d bytes of the pool are lost", r.pool.InUse())
			}
		})
	}
}

// super changes both copies of the superblock.
func (r *rig) super(f func(*super)) {
	b := make([]byte, superSize)
	for i := range int64(2) {
		var s super
		r.disk.ReadAt(b, i*superSize)
		if s.decode(b) == nil {
			f(&s)
			s.put(b)
			r.disk.WriteAt(b, i*superSize)
		}
	}
}

// TestPoolUsedUp: appends go on when others hold all of the pool.
func TestPoolUsedUp(t *testing.T) {
	r := openRig(t, 11, 32)
	r.do(change{Data, 0, 0, 4})
	kept := r.pool.Get(4 * blockSize) // for the appends' own data
	var held []*uring.Buf
	for _, n := range []int{1 << 20, 1 << 18, 1 << 16, 1 << 14, 1 << 12} {
		for b := r.pool.Get(n); b != nil; b = r.pool.Get(n) {
			held = append(held, b)
		}
	}
	kept.Release()
	for i := range uint32(20) {
		if a := r.do(change{Data, 0, i, 4}, change{Data, 1, i, 4})[1]; a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	for _, b := range held {
		b.Release()
	}
	if r.log.spill.InUse() != 0 {
		t.Errorf("%d bytes of the spill are still in use", r.log.spill.InUse())
	}
	r.powerCut()
	r.mustOpen()
	r.check()
}

// TestNextBatch: a small batch waits for the one in flight, a large one doesn't.
func TestNextBatch(t *testing.T) {
	r := newRig(t, 1, 6, MinSegment)
	defer r.dispose()
	r.opt = Options{NextBatch: 4}
	r.mustOpen()
	r.disk.Fault = func(*uring.DiskOp) simloop.Fault { return simloop.Fault{Delay: 1e9} }
	for i, n := range []uint32{1, 3, 1, 9} {
		want := []int{1, 1, 2, 2}[i] // the third makes four; then as many as may are in flight
		r.env.Do(func() { r.append(change{Data, 0, 10 * uint32(i), n}) })
		r.sim.Run(func() bool { return false }, r.sim.Now()+1e6)
		if got := r.disk.InFlight(); got != want {
			t.Fatalf("%d batches in flight after append %d of %d blocks, not %d", got, i, n, want)
		}
	}
	r.disk.Fault = nil
	r.sim.Run(func() bool { return r.acked == 4 }, r.sim.Now()+1e10)
	if r.acked != 4 {
		t.Fatalf("%d of 4 appends were reported", r.acked)
	}
	r.check()
}
