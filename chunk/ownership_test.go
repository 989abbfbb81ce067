package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// The slot table says that a chunk is gone when its Drop is durable, not before: after a power cut
// in between its activation record would bring it back without what had left the log.
func TestForgetCutOff(t *testing.T) {
	for _, copied := range []bool{false, true} {
		forgetCutOff(t, copied)
	}
}

// forgetCutOff forgets a chunk, for a copy to here if copied is set.
func forgetCutOff(t *testing.T, copied bool) {
	w := settledInStore(t, 81)
	w.read(chunkA, 0, 4096, 0) // activates it: the record is in the log
	nd := w.nodes[2]
	nd.cache.Fault = func(op *uring.DiskOp) simloop.Fault {
		if op.Kind == uring.DiskWriteSync {
			return simloop.Fault{Delay: 60 * sec, Lost: true}
		}
		return simloop.Fault{}
	}
	flushed := false
	nd.env.Do(func() {
		nd.sh.Forget([]dataplane.ChunkID{chunkA})
		nd.sh.store.touch(0) // as for a neighbour's sake
		if copied && !nd.sh.makeSlot(nd.sh.find(chunkA)) {
			t.Error("no slot for the copy")
		}
		nd.sh.store.flush(func(err error) { flushed = err == nil })
	})
	w.must(func() bool { return flushed }, 10*sec, "checkpoint")
	nd.cache.Fault = nil
	nd.restart(true)
	r := nd.sh.chunks[chunkA]
	if r == nil {
		t.Fatalf("copied %v: the chunk is gone, the record of that was never written", copied)
	}
	got := nd.contents(chunkA, 0, 8*65536)
	for i := range 8 {
		if !bytes.Equal(got[i*65536:(i+1)*65536], pattern(uint64(i+1), 65536)) {
			t.Fatalf("copied %v: at epoch %d, seq %d part %d has other content", copied, r.epoch,
				r.last, i)
		}
	}
}

// A chunk that was forgotten stays forgotten, although its slot is in use for so long that the log
// has lost the record of it.
func TestForgottenWhileInUse(t *testing.T) {
	const chunkB, parts = chunkA + 1, 128
	w := newWorld(t, 82, 1)
	w.md.add(chunkA, 1, 1)
	w.md.add(chunkB, 1, 1)
	nd := w.nodes[0]
	w.mustWrite(chunkA, 0, pattern(1, 65536))
	for i := range uint32(parts) {
		w.mustWrite(chunkB, i*65536, pattern(uint64(i), 65536))
	}
	w.run(5 * sec)
	nd.restart(false)
	w.read(chunkA, 0, 4096, 0)
	readB := func(first, end uint32) {
		for i := first; i < end; i++ {
			w.read(chunkB, i*65536, 65536, 0)
		}
		w.run(10 * sec) // until an idle log is written back
	}
	readB(0, parts/2)
	flushed, gone := false, false
	nd.env.Do(func() {
		nd.sh.chunks[chunkA].refs++ // a read that takes long
		nd.sh.store.flush(func(error) { flushed = true })
	})
	w.must(func() bool { return flushed }, sec, "checkpoint")
	nd.env.Do(func() { nd.sh.forget(chunkA, func(error) { gone = true }) })
	w.must(func() bool { return gone }, sec, "the record")
	// Copies for the read cache fill segments of the log, and nothing else happens.
	readB(parts/2, parts)
	nd.restart(true)
	if r := nd.sh.chunks[chunkA]; r != nil {
		t.Fatalf("the chunk is back at epoch %d, seq %d", r.epoch, r.last)
	}
}

// A chunk in two slots of the table: what was here when a copy to here began, and the copy. Which
// of them is left, and with what checksums, doesn't depend on the order of the slots.
func TestChunkInTwoSlots(t *testing.T) {
	const member = dataplane.Epoch(3)
	activation := func(slot uint32, kind byte) *ssdcache.Record {
		return &ssdcache.Record{Kind: ssdcache.Meta, Slot: slot, Chunk: chunkA, Epoch: 5,
			Seq: 9, Meta: []byte{kind}}
	}
	drop := func(slot uint32) *ssdcache.Record {
		return &ssdcache.Record{Kind: ssdcache.Drop, Slot: slot, Chunk: chunkA}
	}
	for _, old := range []uint32{2, 4} {
		fresh := 6 - old
		copied := []*ssdcache.Record{drop(old), activation(fresh, metaFilled)}
		for _, c := range []struct {
			name  string
			log   []*ssdcache.Record
			slot  uint32 // noSlot: none
			page  uint32
			epoch dataplane.Epoch
		}{
			{"no record", nil, old, 77, member},
			{"what was here is dropped", []*ssdcache.Record{drop(old)}, noSlot, 0, 0},
			{"the copy is active", copied, fresh, 88, 5},
			{"the copy is active, all of it is in the log",
				[]*ssdcache.Record{drop(old), activation(fresh, metaActivate)}, fresh, 0, 5},
		} {
			w := newWorld(t, 83, 1)
			sh := w.nodes[0].sh
			o := &opener{sh: sh, unread: map[uint32]bool{}, kept: map[uint32]slotEntry{}}
			for slot := range w.slots {
				b := make([]byte, entrySize)
				e := slotEntry{chunk: chunkA}
				switch slot {
				case old:
					e.epoch, e.last, e.commit, e.pages[1] = member, 5, 5, 77
					e.put(b, slot)
				case fresh:
					e.pages[1] = 88
					e.put(b, slot)
				}
				o.entry(slot, b)
			}
			for _, rec := range c.log {
				o.record(rec)
			}
			r := sh.chunks[chunkA]
			switch {
			case r == nil && c.slot == noSlot:
			case r == nil || r.slot != c.slot || r.epoch != c.epoch ||
				sh.store.entries[r.slot].pages[1] != c.page:
				t.Errorf("old in slot %d, %s: %+v", old, c.name, r)
			}
			for slot, r := range sh.store.owners {
				if (r != nil) != (uint32(slot) == c.slot) {
					t.Errorf("old in slot %d, %s: slot %d has %+v", old, c.name, slot, r)
				}
			}
		}
	}
}

// A slot of which the log still has another chunk's blocks, of a copy that a power cut ended, is
// given to a new chunk, and a power cut comes when the slot table has that, and the log hasn't: the
// new chunk begins with zeros all the same, at the next start and at the one after it.
func TestNewChunkOverResidueCutOff(t *testing.T) {
	const chunkB = chunkA + 1
	w, x := degraded(t, 8100, 4)
	nd := w.nodes[3]
	began := nd.sh.log.Durable()
	w.recover(chunkA, 4)
	w.must(func() bool { return nd.sh.log.Durable() > began+3 }, 10*sec, "copy")
	nd.restart(true)
	x.stopped = true
	nd.cache.Fault = func(op *uring.DiskOp) simloop.Fault {
		if op.Kind == uring.DiskWriteSync {
			return simloop.Fault{Delay: 60 * sec, Lost: true}
		}
		return simloop.Fault{}
	}
	w.md.add(chunkB, 1, 4)
	done := false
	w.write(chunkB, 0, pattern(1, 4096), &done)
	w.must(func() bool {
		r := nd.sh.chunks[chunkB]
		return r != nil && r.slot != noSlot
	}, 10*sec, "the slot")
	flushed := false
	nd.env.Do(func() { nd.sh.store.flush(func(err error) { flushed = err == nil }) })
	w.must(func() bool { return flushed }, 10*sec, "checkpoint")
	nd.cache.Fault = nil
	zeros := make([]byte, dataplane.PartSize)
	for start := range 2 {
		nd.restart(true)
		w.mustWrite(chunkB, writerSpan, pattern(uint64(start), 4096))
		for g := range uint32(writerSpan / dataplane.PartSize) {
			got := w.read(chunkB, g*dataplane.PartSize, dataplane.PartSize, 0)
			if g == 0 { // the write that was cut off is sent again
				clear(got[:4096])
			}
			if !bytes.Equal(got, zeros) {
				t.Fatalf("start %d: part %d of the new chunk isn't zeros", start, g)
			}
		}
		if got := w.read(chunkB, writerSpan, 4096, 0); !bytes.Equal(got, pattern(uint64(start), 4096)) {
			t.Fatalf("start %d: what was written afterwards isn't there", start)
		}
	}
}

// A slot that the log was too full to drop at the start is free as soon as there is room.
func TestResidueOfFullLog(t *testing.T) {
	w := newWorld(t, 84, 1)
	nd := w.nodes[0]
	st := nd.sh.store
	nd.env.Do(func() {
		slot := st.free[len(st.free)-1]
		st.free = st.free[:len(st.free)-1]
		st.residue[slot] = false
		if capacity, used := nd.sh.Capacity(); used != 0 || capacity == 0 {
			t.Errorf("%d bytes used of %d", used, capacity)
		}
		nd.sh.pumpNow()
	})
	w.must(func() bool { return len(st.free) == int(w.slots) }, sec, "the slot is free")
	if len(st.residue) != 0 {
		t.Errorf("residue %v", st.residue)
	}
}

// The log doesn't lose a ZERO before its words are in a checkpoint, however long it takes to read
// the page that they are in.
func TestZeroOfSlowPage(t *testing.T) {
	const chunkB = chunkA + 1
	w := newWorld(t, 85, 1)
	w.md.add(chunkA, 1, 1)
	w.md.add(chunkB, 1, 1)
	nd := w.nodes[0]
	w.mustWrite(chunkA, 0, pattern(1, 65536))
	fill := func(at uint32) {
		for i := range uint32(24) {
			w.mustWrite(chunkB, at+i*65536, pattern(uint64(i), 65536))
		}
	}
	fill(0)
	w.run(10 * sec)
	nd.restart(false)
	w.mustWrite(chunkA, 32<<20, pattern(2, 4096)) // active; another page
	fill(4 << 20)
	w.run(5 * sec)
	page := nd.sh.store.sb.crcPage(nd.sh.chunks[chunkA].slot * pagesPerSlot)
	nd.store.Fault = func(op *uring.DiskOp) simloop.Fault {
		if op.Kind == uring.DiskRead && op.Offset == page {
			return simloop.Fault{Delay: 8 * sec}
		}
		return simloop.Fault{}
	}
	done := false
	w.cl.env.Do(func() {
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpZero, Length: 65536}, nil, 0,
			func([]byte) { done = true })
	})
	w.run(100 * ms)
	fill(8 << 20)
	w.must(func() bool { return done }, 20*sec, "the ZERO")
	nd.store.Fault = nil
	nd.restart(true)
	if got := w.read(chunkA, 0, 65536, 0); !bytes.Equal(got, make([]byte, 65536)) {
		t.Fatal("what was zeroed is back")
	}
}

// A ZERO stays one although a write-back of older data is under way to its blocks, which waits for
// another page than theirs.
func TestZeroDuringWriteBackOverTwoPages(t *testing.T) {
	const at = (wordsPerPage - 8) * dataplane.BlockSize // the first 8 blocks are of the first page
	w := newWorld(t, 86, 1)
	w.md.add(chunkA, 1, 1)
	nd := w.nodes[0]
	w.mustWrite(chunkA, 0, pattern(1, 65536))
	fill := func(at uint32) {
		for i := range uint32(24) {
			w.mustWrite(chunkA, at+i*65536, pattern(uint64(i), 65536))
		}
	}
	fill(32 << 20)
	w.run(10 * sec)
	nd.restart(false)
	w.mustWrite(chunkA, 60<<20, pattern(2, 4096))
	w.run(5 * sec)
	page := nd.sh.store.sb.crcPage(nd.sh.chunks[chunkA].slot * pagesPerSlot)
	nd.store.Fault = func(op *uring.DiskOp) simloop.Fault {
		if op.Kind == uring.DiskRead && op.Offset == page {
			return simloop.Fault{Delay: 5 * sec}
		}
		return simloop.Fault{}
	}
	w.mustWrite(chunkA, at, pattern(3, 65536))
	fill(48 << 20)
	w.must(func() bool {
		return nd.sh.store.writesTo(nd.sh.chunks[chunkA].slot, wordsPerPage, wordsPerPage+1)
	}, 10*sec, "the write-back")
	done := false
	w.cl.env.Do(func() {
		h := dataplane.Header{Op: dataplane.OpZero, Offset: wordsPerPage * dataplane.BlockSize,
			Length: 8 * dataplane.BlockSize}
		w.cl.do(chunkA, h, nil, 0, func([]byte) { done = true })
	})
	w.must(func() bool { return done }, sec, "the ZERO")
	w.run(10 * sec)
	nd.store.Fault = nil
	got := w.read(chunkA, at, 65536, 0)
	if want := pattern(3, 65536); !bytes.Equal(got[:32768], want[:32768]) {
		t.Error("what wasn't zeroed is other content")
	}
	if !isZero(got[32768:]) {
		t.Error("what was zeroed is back")
	}
}

// A process that ends between writing the staging area and its sync leaves it in the disk's cache.
// The next one syncs it before it writes anything in place: else a power cut could take the staging
// area, and some of what was in place.
func TestStagingAreaIsDurableBeforeUse(t *testing.T) {
	w := settledInStore(t, 87)
	w.read(chunkA, 0, 4096, 1)
	nd := w.nodes[1]
	st := nd.sh.store
	was := nd.store.Ops
	nd.env.Do(func() {
		st.touch(nd.sh.chunks[chunkA].slot)
		st.flush(nil)
	})
	w.must(func() bool { return nd.store.Ops[uring.DiskSync] > was[uring.DiskSync] }, sec, "the sync")
	if nd.kill(); nd.store.Ops[uring.DiskWrite] != was[uring.DiskWrite]+1 {
		t.Fatal("not the sync of the staging area")
	}
	nd.newEnv()
	nd.store.Attach(nd.env)
	nd.cache.Attach(nd.env)
	was = nd.store.Ops
	nd.open()
	w.must(func() bool { return nd.store.Ops[uring.DiskWrite] > was[uring.DiskWrite] }, sec,
		"a page in place")
	if nd.store.Ops[uring.DiskSync] == was[uring.DiskSync] {
		t.Error("written in place from a staging area that wasn't synced")
	}
}
