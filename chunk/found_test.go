package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// Faults that the simulator of whole clusters found, each as a test of its own.

// A chunk that was new here once, and is sealed when its coordinator's connection is lost, stays.
func TestSealedChunkOutlivesItsCoordinator(t *testing.T) {
	w := newWorld(t, 31, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	nd := w.nodes[1]
	if n := len(nd.sh.strangers); n != 0 {
		t.Errorf("%d chunks are held to be unknown after a write", n)
	}
	nd.env.Do(func() {
		l := nd.sh.links[linkKey{dataplane.RoleCS, 1}]
		if l == nil {
			t.Fatal("no connection of the head")
		}
		if st := nd.sh.seal(nd.sh.chunks[chunkA], 1, l, func() {}); st != dataplane.OK {
			t.Fatal(st)
		}
	})
	w.net.Reset(w.nodes[0].ip, nd.ip)
	w.run(sec)
	if r := nd.sh.chunks[chunkA]; r == nil || r.last != 1 {
		t.Fatalf("the chunk was forgotten: %+v", r)
	}
	w.mustWrite(chunkA, 4096, pattern(2, 4096))
	if cfg := w.md.chunks[chunkA]; cfg.Epoch != 1 || len(cfg.Members) != 3 {
		t.Errorf("epoch %d with %d members", cfg.Epoch, len(cfg.Members))
	}
}

// Before its first lease a server takes part in nothing that it didn't have when it started.
func TestNoNewChunksBeforeRegistration(t *testing.T) {
	w := newWorld(t, 32, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	nd := w.nodes[1]
	nd.env.Do(func() {
		nd.sh.SetLease(0)
		fresh := nd.sh.find(chunkA + 1)
		if st := nd.sh.seal(fresh, 1, w, func() {}); st != dataplane.NotReady {
			t.Errorf("a new chunk is sealed: %v", st)
		}
		if st := nd.sh.seal(nd.sh.chunks[chunkA], 1, w, func() {}); st != dataplane.OK {
			t.Errorf("a chunk that is here isn't sealed: %v", st)
		}
	})
}

// A member that was held to be lost and comes back before it is excluded takes part again.
func TestLostMemberComesBack(t *testing.T) {
	w := newWorld(t, 33, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.md.refuse = true // to exclude anybody
	head := w.nodes[0]
	cfg, _ := w.md.get(chunkA)
	head.env.Do(func() {
		head.sh.settle(head.sh.chunks[cfg.Chunk], []dataplane.CSID{3})
	})
	w.mustWrite(chunkA, 4096, pattern(2, 4096))
	w.equal(chunkA, 65536, 0, 1, 2)
}

// A member whose disk failed answers pings; it is reported all the same.
func TestFailedMemberIsReported(t *testing.T) {
	w := newWorld(t, 34, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.nodes[2].env.Do(func() { w.nodes[2].sh.fail(errStopping) })
	done := false
	w.write(chunkA, 4096, pattern(2, 4096), &done)
	w.must(func() bool { return len(w.md.reported) > 0 }, 10*sec, "report")
	if w.md.reported[0] != 3 {
		t.Errorf("cs %d was reported", w.md.reported[0])
	}
}

// oldInStore returns a world of one server on which block 0 of chunkA has version 1 in the store
// and version 2 in the log, block 1 is in the store only, and no CRC page is in memory.
func oldInStore(t *testing.T) *world {
	w := newWorldWith(t, 35, 1, 8<<20, 1<<20)
	w.md.add(chunkA, 1, 1)
	w.mustWrite(chunkA, 0, pattern(1, 8192))
	for i := range uint32(160) { // more than the log holds
		w.mustWrite(chunkA, (i+1)<<16, pattern(9, 65536))
	}
	nd := w.nodes[0]
	w.must(func() bool {
		_, inLog := nd.sh.log.Lookup(0, 0)
		return !inLog
	}, 60*sec, "destage")
	w.mustWrite(chunkA, 0, pattern(2, 4096))
	nd.restart(false)
	w.mustWrite(chunkA, 200<<16, pattern(3, 4096)) // so that it is settled
	if _, inLog := nd.sh.log.Lookup(nd.sh.chunks[chunkA].slot, 0); !inLog {
		t.Fatal("version 2 isn't in the log")
	}
	if nd.sh.store.cache.get(nd.sh.chunks[chunkA].slot*pagesPerSlot) != nil {
		t.Fatal("the CRC page is in memory")
	}
	return w
}

// A read that waits for a CRC page while a ZERO of its blocks arrives must not see what was there
// before the newest write: the ZERO has taken that out of the log's index, and not cleared the old
// block's word yet.
func TestReadWaitsForPageAcrossZero(t *testing.T) {
	w := oldInStore(t)
	var got []byte
	w.cl.env.Do(func() {
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpRead, Length: 8192}, nil, 0,
			func(p []byte) { got = append([]byte{}, p...) })
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpZero, Length: 4096}, nil, 0,
			func([]byte) {})
	})
	w.must(func() bool { return got != nil }, 10*sec, "read")
	if v2 := pattern(2, 4096); !bytes.Equal(got[:4096], v2) && !isZero(got[:4096]) {
		t.Errorf("block 0 was read as %x, neither what it was nor zeros", got[:16])
	}
}

// The same with a write: it may still be undone.
func TestReadWaitsForPageAcrossWrite(t *testing.T) {
	w := oldInStore(t)
	nd := w.nodes[0]
	var got []byte
	w.cl.env.Do(func() {
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpRead, Length: 8192}, nil, 0,
			func(p []byte) {
				if got = append([]byte{}, p...); bytes.Equal(got[:4096], pattern(4, 4096)) {
					if r := nd.sh.chunks[chunkA]; r.last != r.commit {
						t.Error("a write in flight was read")
					}
				}
			})
	})
	w.write(chunkA, 0, pattern(4, 4096), new(bool))
	w.must(func() bool { return got != nil }, 10*sec, "read")
}

// A repair that ends while a ZERO of the block is on its way must not bring the block back.
func TestRepairAcrossZero(t *testing.T) {
	w := oldInStore(t)
	nd := w.nodes[0]
	old := pattern(1, 8192)[4096:]
	w.read(chunkA, 65536, 4096, 0) // has the same CRC page
	r := nd.sh.chunks[chunkA]
	x := &repairing{sh: nd.sh, r: r, block: 1}
	x.timer.Fire = func() { t.Error("the repair asks again") }
	nd.env.Do(func() {
		if x.place = nd.sh.placeOf(r, 1); !x.place.known || x.place.inLog {
			t.Fatalf("block 1 is at %+v", x.place)
		}
		r.refs++
		nd.sh.repairs = append(nd.sh.repairs, x)
	})
	done := false
	w.cl.env.Do(func() {
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpZero, Offset: 4096, Length: 4096}, nil, 0,
			func([]byte) { done = true })
	})
	w.must(func() bool { return r.last != r.commit }, sec, "zero on its way")
	nd.env.Do(func() {
		x.answered(2, false, &dataplane.Header{Offset: 4096, Status: dataplane.OK}, crcsOf(old), old,
			nil)
	})
	w.must(func() bool { return done }, sec, "zero")
	w.run(100 * ms)
	if got := w.read(chunkA, 4096, 4096, 0); !isZero(got) {
		t.Errorf("a zeroed block reads as %x", got[:16])
	}
}

// A copy goes on when it finds damaged blocks, and waits for their repair each time.
func TestCopyOfDamagedChunk(t *testing.T) {
	w := newWorldWith(t, 36, 3, 8<<20, 1<<20)
	w.md.add(chunkA, 1, 1, 2)
	var want []byte
	for i := range uint32(160) { // more than the log holds
		data := pattern(uint64(i+1), 65536)
		w.mustWrite(chunkA, i<<16, data)
		want = append(want, data...)
	}
	head := w.nodes[0]
	w.must(func() bool {
		_, inLog := head.sh.log.Lookup(0, 0)
		return !inLog
	}, 60*sec, "destage")
	spoiled := 0
	for b := range uint32(400) {
		if at, ok := head.sh.SimBlockAt(chunkA, b); ok && b%3 == 0 {
			head.store.FlipBit(at+7, 3)
			spoiled++
		}
	}
	if spoiled < 50 {
		t.Fatalf("only %d blocks are in the store", spoiled)
	}
	cfg, _ := w.md.get(chunkA)
	head.env.Do(func() {
		head.sh.RecoverPush(&control.RecoverPush{Chunks: []control.ChunkConfig{*cfg},
			Targets: []control.CSAddr{{CS: 3, Addr: w.nodes[2].addr()}}})
	})
	w.must(func() bool { return len(w.md.chunks[chunkA].Members) == 3 }, 60*sec, "copy")
	w.mustWrite(chunkA, 0, want[:4096])
	for _, nd := range w.nodes {
		if got := nd.contents(chunkA, 0, uint32(len(want))); !bytes.Equal(got, want) {
			t.Errorf("cs %d has something else", nd.cs)
		}
	}
}

// With write-ack=memory, too, a ZERO that was acknowledged is what is read.
func TestZeroInMemoryIsRead(t *testing.T) {
	w := newWorldWith(t, 37, 2, 8<<20, 1<<20)
	w.md.add(chunkA, 1, 1, 2)
	w.md.chunks[chunkA].Ack = 1
	for i := range uint32(160) { // more than the log holds
		w.mustWrite(chunkA, i<<16, pattern(uint64(i+1), 65536))
	}
	for _, nd := range w.nodes {
		w.must(func() bool {
			_, inLog := nd.sh.log.Lookup(0, 0)
			return !inLog
		}, 60*sec, "destage")
		nd.cache.Fault = func(*uring.DiskOp) simloop.Fault { return simloop.Fault{Delay: 5 * ms} }
	}
	done := false
	w.cl.env.Do(func() {
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpZero, Length: 4096}, nil, 0,
			func([]byte) { done = true })
	})
	w.must(func() bool { return done }, sec, "zero")
	for member := range 2 {
		if got := w.read(chunkA, 0, 4096, member); !isZero(got) {
			t.Errorf("member %d: a zeroed block reads as %x", member, got[:16])
		}
	}
}

// A copy that isn't finished, alone after the others were declared lost, doesn't call the chunk
// lost: they have it.
func TestUnfinishedCopyWaits(t *testing.T) {
	w := newWorld(t, 38, 2)
	w.md.add(chunkA, 1, 1, 2)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	nd := w.nodes[1]
	w.nodes[0].kill()
	nd.env.Do(func() {
		r := nd.sh.chunks[chunkA]
		r.unfinished, r.epoch, r.state = true, 0, unsettled
		nd.sh.settle(r, []dataplane.CSID{1})
	})
	w.run(2 * sec)
	if n := w.md.event("chunk-lost"); n > 0 {
		t.Errorf("the chunk was called lost %d times", n)
	}
	if c := w.md.chunks[chunkA]; c.Epoch != 1 {
		t.Errorf("epoch %d without the member that has the data", c.Epoch)
	}
}

// A CRC page that can't be read is one that is damaged: no reason to give up the disk.
func TestUnreadableCRCPage(t *testing.T) {
	w := newWorldWith(t, 39, 2, 8<<20, 1<<20)
	w.md.add(chunkA, 2, 1, 2)
	for i := range uint32(160) { // more than the log holds
		w.mustWrite(chunkA, i<<16, pattern(uint64(i+1), 65536))
	}
	nd := w.nodes[1]
	w.must(func() bool {
		_, inLog := nd.sh.log.Lookup(0, 0)
		return !inLog
	}, 60*sec, "destage")
	nd.restart(false)
	nd.store.FailRange(nd.sh.store.sb.crcs, crcBytesSlot, simloop.ErrIO, uring.DiskRead)
	w.mustWrite(chunkA, 200<<16, pattern(3, 4096)) // so that it is settled
	ok := func() bool {
		return bytes.Equal(w.read(chunkA, 0, 4096, 1), pattern(1, 65536)[:4096])
	}
	if !ok() || nd.failed != nil {
		t.Fatalf("the disk failed: %v", nd.failed)
	}
	if w.md.event("crc-page-damaged") == 0 {
		t.Error("nothing was reported: the page wasn't read")
	}
}

// A server that starts redoes the ZEROs of its log one by one, which takes time if CRC pages have
// to be read. Nothing may be written back meanwhile: the ZERO of a block would take away the word
// of a newer write to it that is in the store by then.
func TestZerosAreRedoneBeforeWriteBack(t *testing.T) {
	w := newWorldWith(t, 36, 1, 8<<20, 1<<20)
	nd := w.nodes[0]
	w.md.add(chunkA, 1, 1)
	const first, second = 0, wordsPerPage * dataplane.BlockSize // on two CRC pages
	// The other half of it stays: a page of zeros isn't read.
	w.mustWrite(chunkA, first, pattern(1, 8192))
	w.mustWrite(chunkA, second, pattern(1, 4096))
	for i := range uint32(160) { // more than the log holds
		w.mustWrite(chunkA, (i+200)<<16, pattern(9, 65536))
	}
	slot := nd.sh.chunks[chunkA].slot
	w.must(func() bool {
		_, inLog := nd.sh.log.Lookup(slot, second/dataplane.BlockSize)
		return !inLog && nd.sh.store.entries[slot].pages[0] != 0
	}, 60*sec, "destage")
	w.zero(chunkA, first, 4096)
	w.zero(chunkA, second, 4096)
	w.mustWrite(chunkA, second, pattern(2, 4096))
	for i := range uint32(40) { // much to be written back
		w.mustWrite(chunkA, (i+200)<<16, pattern(8, 65536))
	}
	nd.kill()
	sb, slow := newSuperblock(w.slots), 0
	nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == uring.DiskRead && op.Offset == sb.crcPage(slot*pagesPerSlot) {
			f.Delay = 20 * sec
			slow++
		}
		return f
	}
	nd.restart(false)
	if slow == 0 {
		t.Fatal("no CRC page was read to redo a ZERO")
	}
	w.must(func() bool {
		_, inLog := nd.sh.log.Lookup(slot, second/dataplane.BlockSize)
		if inLog {
			w.mustWrite(chunkA, 300<<16, pattern(7, 65536))
		}
		return !inLog
	}, 60*sec, "destage")
	if got := w.read(chunkA, second, 4096, 0); !bytes.Equal(got, pattern(2, 4096)) {
		t.Errorf("the block reads as %x: the ZERO before it was redone too late", got[:16])
	}
}

// A checkpoint that begins while the space of a forgotten chunk is given back, and ends after it,
// doesn't hold on to the chunk's CRC pages: the slot is another chunk's by then.
func TestCheckpointAcrossForget(t *testing.T) {
	w := newWorldWith(t, 37, 1, 8<<20, 1<<20)
	nd := w.nodes[0]
	w.md.add(chunkA, 1, 1)
	w.md.add(chunkA+1, 1, 1)
	for i := range uint32(160) { // more than the log holds
		w.mustWrite(chunkA, i<<16, pattern(1, 65536))
	}
	w.run(10 * sec)
	flushed, checkpoints := false, 0
	nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		switch {
		case op.Kind == uring.DiskDiscard && op.Length == dataplane.ChunkSize:
			f.Delay = 50 * ms
			checkpoints++
			w.sim.After(ms, func() {
				nd.env.Do(func() { nd.sh.store.flush(func(error) { flushed = true }) })
			})
		case op.Kind == uring.DiskSync && checkpoints > 0:
			f.Delay = 500 * ms
		}
		return f
	}
	slot := nd.sh.chunks[chunkA].slot
	nd.env.Do(func() {
		nd.sh.store.cache.get(slot * pagesPerSlot).dirty = true // as by a write-back just now
		nd.sh.Forget([]dataplane.ChunkID{chunkA})
	})
	w.must(func() bool { return nd.sh.store.owners[slot] == nil }, sec, "slot given back")
	if checkpoints == 0 || flushed {
		t.Fatalf("%d checkpoints, ended %v: the test proves nothing", checkpoints, flushed)
	}
	w.mustWrite(chunkA+1, 0, pattern(2, 4096))
	if got := nd.sh.chunks[chunkA+1].slot; got != slot {
		t.Errorf("the new chunk is in slot %d instead of %d", got, slot)
	}
}
