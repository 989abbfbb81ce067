package chunk

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// zero sends a ZERO and waits for its answer.
func (w *world) zero(id dataplane.ChunkID, off, n uint32) {
	w.t.Helper()
	done := false
	w.cl.env.Do(func() {
		w.cl.do(id, dataplane.Header{Op: dataplane.OpZero, Offset: off, Length: n}, nil, 0,
			func([]byte) { done = true })
	})
	w.must(func() bool { return done }, 30*sec, fmt.Sprintf("zero %d at %d", n, off))
}

// raw reads what lies in the slot of a chunk, whatever its checksums say.
func (nd *node) raw(id dataplane.ChunkID, off, n uint32) []byte {
	r := nd.sh.chunks[id]
	b := make([]byte, n)
	nd.store.ReadAt(b, nd.sh.store.sb.block(r.slot, off/dataplane.BlockSize))
	return b
}

func (w *world) punched() bool {
	for _, nd := range w.nodes {
		if !nd.sh.store.holes.idle() {
			return false
		}
	}
	return true
}

// What is zeroed leaves the stores of all members, whole and in parts; what lies around it stays,
// and what is written into it afterwards, too.
func TestZeroGivesSpaceBack(t *testing.T) {
	w := settledInStore(t, 91)
	for m, nd := range w.nodes {
		if got := w.read(chunkA, 0, 4096, m); isZero(got) {
			t.Fatalf("nothing to read at member %d", m)
		}
		if isZero(nd.raw(chunkA, 0, 65536)) {
			t.Fatalf("cs %d: nothing in the store yet, the test shows nothing", nd.cs)
		}
	}
	w.zero(chunkA, 4096, 3*65536) // up to one block into part 3
	w.must(w.punched, 10*sec, "the punches")
	want := pattern(4, 65536)
	clear(want[:4096])
	for m, nd := range w.nodes {
		if p := nd.raw(chunkA, 4096, 3*65536); !isZero(p) {
			t.Errorf("cs %d: the store still holds what was zeroed", nd.cs)
		}
		if isZero(nd.raw(chunkA, 0, 4096)) || isZero(nd.raw(chunkA, 3*65536+4096, 4096)) {
			t.Errorf("cs %d: a neighbour of the zeroed range is gone from the store", nd.cs)
		}
		if got := w.read(chunkA, 3*65536, 65536, m); !bytes.Equal(got, want) {
			t.Errorf("member %d: part 3 reads otherwise than it should", m)
		}
	}
	w.mustWrite(chunkA, 8192, pattern(77, 4096))
	w.zero(chunkA, 0, dataplane.ChunkSize) // the whole chunk
	w.must(w.punched, 10*sec, "the punches of the whole chunk")
	w.mustWrite(chunkA, 5*65536, pattern(78, 8192))
	for _, nd := range w.nodes {
		nd.restart(true)
	}
	w.must(w.punched, 10*sec, "the punches that the power cut took back")
	for m, nd := range w.nodes {
		if !isZero(nd.raw(chunkA, 0, 5*65536)) || !isZero(nd.raw(chunkA, 32<<20, 16<<20)) {
			t.Errorf("cs %d: the store still holds what was zeroed", nd.cs)
		}
		if got := w.read(chunkA, 5*65536, 8192, m); !bytes.Equal(got, pattern(78, 8192)) {
			t.Errorf("member %d: what was written after the ZERO is gone", m)
		}
		if !isZero(w.read(chunkA, 0, 65536, m)) {
			t.Errorf("member %d: not zeros", m)
		}
	}
}

// A crash between a ZERO and its punch costs no space: replay marks the range again, and what the
// log has forgotten is found by the scrubber.
func TestPunchSurvivesCrash(t *testing.T) {
	w := settledInStore(t, 92)
	w.mustWrite(chunkA, 7*65536, pattern(70, 4096))
	w.zero(chunkA, 0, 2*65536)
	for _, nd := range w.nodes {
		if nd.sh.store.holes.idle() {
			t.Fatal("the punch was faster than the crash")
		}
		nd.restart(true)
	}
	w.must(w.punched, 10*sec, "the punches after replay")
	for _, nd := range w.nodes {
		if !isZero(nd.raw(chunkA, 0, 2*65536)) {
			t.Errorf("cs %d: replay didn't give the space back", nd.cs)
		}
	}
	// As if the ZERO had left the log: the marks are gone without a punch.
	w.read(chunkA, 0, 4096, 0)
	w.zero(chunkA, 4*65536, 65536)
	for _, nd := range w.nodes {
		nd.sh.store.holes.unmark(nd.sh.chunks[chunkA].slot, 0, dataplane.BlocksPerChunk)
	}
	w.must(w.punched, 10*sec, "nothing to punch")
	for _, nd := range w.nodes {
		if isZero(nd.raw(chunkA, 4*65536, 65536)) {
			t.Fatal("punched without a mark")
		}
		nd.env.Do(func() {
			nd.sh.scrub.rate = 1 << 40
			nd.sh.ScrubStart()
		})
	}
	w.must(func() bool {
		for _, nd := range w.nodes {
			if nd.sh.Stats().ScrubRunning {
				return false
			}
		}
		return w.punched()
	}, 120*sec, "scrub")
	for m, nd := range w.nodes {
		if !isZero(nd.raw(chunkA, 4*65536, 65536)) {
			t.Errorf("cs %d: the scrubber left the space", nd.cs)
		}
		if got := w.read(chunkA, 3*65536, 65536, m); !bytes.Equal(got, pattern(4, 65536)) {
			t.Errorf("member %d: a neighbour is gone", m)
		}
	}
}

// The space of a dropped chunk comes back although the process died before it was punched.
func TestDroppedSlotIsPunchedAfterCrash(t *testing.T) {
	w := settledInStore(t, 93)
	nd := w.nodes[0]
	r := nd.sh.chunks[chunkA]
	w.read(chunkA, 0, 4096, 0)
	off := nd.sh.store.sb.block(r.slot, 0)
	discards := nd.store.Ops[uring.DiskDiscard]
	nd.env.Do(func() { nd.sh.Forget([]dataplane.ChunkID{chunkA}) })
	delete(w.md.chunks, chunkA)
	w.must(func() bool { return len(nd.sh.leaving) > 0 }, sec, "the drop record")
	if nd.store.Ops[uring.DiskDiscard] != discards {
		t.Fatal("the punch was faster than the crash")
	}
	nd.restart(false)
	w.must(w.punched, 10*sec, "punch")
	b := make([]byte, 65536)
	nd.store.ReadAt(b, off)
	if nd.sh.chunks[chunkA] != nil || !isZero(b) {
		t.Error("the slot's space is still taken")
	}
}

// Random ZEROs and writes with crashes at any time, with a log so small that the store is written
// all the time: punches meet write-backs, reads, and power cuts.
func TestTortureZeros(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	if *seedFlag != 0 {
		w := newWorldWith(t, *seedFlag, 3, ssdcache.MinSize, 1<<20)
		(&torture{w: w, zeros: true}).run(t, *seedFlag)
		return
	}
	punched := uint64(0)
	for seed := range seeds {
		x := &torture{w: newWorldWith(t, seed+500, 3, ssdcache.MinSize, 1<<20), zeros: true}
		x.run(t, seed+500)
		for _, nd := range x.w.nodes {
			punched += nd.sh.store.holes.punched
		}
	}
	if punched == 0 {
		t.Error("nothing was punched: the test shows nothing")
	}
	t.Logf("%d blocks punched by the last processes", punched)
}

// The marks against a plain slice of bits.
func TestHoles(t *testing.T) {
	var h holes
	var want [dataplane.BlocksPerChunk]bool
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		first := uint32(rng.IntN(dataplane.BlocksPerChunk))
		end := first + uint32(rng.IntN(min(300, dataplane.BlocksPerChunk-int(first))+1))
		set := rng.IntN(2) == 0
		if set {
			h.set(first, end)
		} else {
			h.clear(first, end)
		}
		for i := first; i < end; i++ {
			want[i] = set
		}
		n := 0
		for _, b := range want {
			if b {
				n++
			}
		}
		if h.n != n {
			t.Fatalf("%d marks, not %d", h.n, n)
		}
		at := uint32(rng.IntN(dataplane.BlocksPerChunk))
		f, e, ok := h.runFrom(at)
		wf := at
		for wf < dataplane.BlocksPerChunk && !want[wf] {
			wf++
		}
		we := wf
		for we < dataplane.BlocksPerChunk && want[we] {
			we++
		}
		if ok != (wf < dataplane.BlocksPerChunk) || ok && (f != wf || e != we) {
			t.Fatalf("run from %d: %d-%d %v, not %d-%d", at, f, e, ok, wf, we)
		}
	}
}

// A punch and a write-back of the same blocks never meet: whichever comes later waits, and the
// newer content stays.
func TestPunchAndWriteBackTakeTurns(t *testing.T) {
	w := settledInStore(t, 94)
	nd := w.nodes[1]
	w.read(chunkA, 0, 4096, 1)
	st, slot := nd.sh.store, nd.sh.chunks[chunkA].slot
	slow := uring.DiskDiscard
	nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == slow && op.Low {
			f.Delay = 500 * ms
		}
		return f
	}
	buf := nd.pool.Get(8 * 4096)
	defer buf.Release()
	data := buf.Bytes()[:8*4096]
	back := func(tag uint64) *bool {
		copy(data, pattern(tag, len(data)))
		done := new(bool)
		wb := &ssdcache.WriteBack{Slot: slot, Block: 4, Blocks: 8, Data: [][]byte{data},
			CRCs: crcsOf(data), Done: func(*ssdcache.WriteBack) { *done = true }}
		nd.env.Do(func() { st.WriteBack(wb) })
		return done
	}
	// The write-back comes while the punch is in flight.
	discards, writes := nd.store.Ops[uring.DiskDiscard], nd.store.Ops[uring.DiskWrite]
	nd.env.Do(func() { st.holes.mark(slot, 0, 64) })
	w.must(func() bool { return nd.store.Ops[uring.DiskDiscard] > discards }, sec, "the punch begins")
	done := back(1000)
	w.run(100 * ms)
	if nd.store.Ops[uring.DiskWrite] != writes {
		t.Fatal("a write-back into a punch")
	}
	w.must(func() bool { return *done }, 10*sec, "the write-back")
	if !bytes.Equal(nd.raw(chunkA, 4*4096, 8*4096), data) {
		t.Error("the punch took what was written back after it")
	}
	// A ZERO comes while an older write-back is in flight, then a newer one.
	slow = uring.DiskWrite
	done = back(1001)
	discards = nd.store.Ops[uring.DiskDiscard]
	nd.env.Do(func() { st.holes.mark(slot, 0, 64) })
	w.run(300 * ms)
	if nd.store.Ops[uring.DiskDiscard] != discards {
		t.Fatal("a punch while a write-back was in flight")
	}
	w.must(func() bool { return *done }, 10*sec, "the older write-back")
	w.must(w.punched, 10*sec, "the punch after it")
	if !isZero(nd.raw(chunkA, 4*4096, 8*4096)) {
		t.Error("zeroed blocks are still there")
	}
	// A newer write-back takes the mark away.
	slow = uring.DiskSync
	nd.env.Do(func() { st.holes.mark(slot, 0, 64) })
	done = back(1002)
	w.must(func() bool { return *done && w.punched() }, 10*sec, "both")
	if !bytes.Equal(nd.raw(chunkA, 4*4096, 8*4096), data) {
		t.Error("the punch of an older ZERO took what was written back after it")
	}
}
