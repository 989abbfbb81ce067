package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
)

// lone is a chunk of three that has come down to its first member, in whose store blocks are
// damaged: block 3 hasn't been written since the others left, block 19 has been.
//
//	cs 3 left at epoch 1; then block 19 was written; cs 2 left at epoch 2
func lone(t *testing.T, seed uint64) *world {
	w := newWorldWith(t, seed, 3, 8<<20, 1<<20)
	w.md.add(chunkA, 1, 1, 2, 3)
	for i := range uint32(4) {
		w.mustWrite(chunkA, i<<16, pattern(uint64(i+1), 65536))
	}
	w.nodes[2].kill()
	w.mustWrite(chunkA, 19<<12, pattern(100, 4096))
	w.mustEpoch(2)
	for i := range uint32(320) { // more than the log holds
		w.mustWrite(chunkA, 32<<20+i<<16, pattern(9, 65536))
	}
	nd := w.nodes[0]
	w.must(func() bool {
		_, a := nd.sh.log.Lookup(nd.sh.chunks[chunkA].slot, 3)
		_, b := nd.sh.log.Lookup(nd.sh.chunks[chunkA].slot, 19)
		return !a && !b
	}, 60*sec, "destage")
	w.nodes[1].kill()
	w.mustWrite(chunkA, 200<<16, pattern(3, 4096))
	w.mustEpoch(3)
	if n := len(w.md.chunks[chunkA].Members); n != 1 {
		t.Fatalf("%d members", n)
	}
	return w
}

func (w *world) mustEpoch(e dataplane.Epoch) {
	w.t.Helper()
	w.must(func() bool { return w.md.chunks[chunkA].Epoch == e }, 60*sec, "exclusion")
}

// status is what the lone member answers to a client's read of a block.
func (w *world) status(block uint32) (st dataplane.Kind, data []byte) {
	w.t.Helper()
	answered := false
	w.cl.env.Do(func() {
		w.cl.ask(1, dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA,
			Epoch: w.md.chunks[chunkA].Epoch, Offset: block << 12, Length: 4096}, nil,
			func(h *dataplane.Header, p []byte) {
				st, data, answered = h.Status, append([]byte{}, p...), true
			})
	})
	w.must(func() bool { return answered }, sec, "answer")
	return st, data
}

// waits has a read of a damaged block wait for those who may have it, for some seconds.
func (w *world) waits(block uint32) {
	w.t.Helper()
	for range 40 {
		if st, _ := w.status(block); st != dataplane.NotReady {
			w.t.Fatalf("block %d: %v while a former member that may have it is away", block, st)
		}
		w.run(200 * ms)
	}
	if n := w.md.event("block-missing"); n != 1 {
		w.t.Fatalf("%d events say that the block is waited for", n)
	}
	if w.md.event("block-lost")+w.md.event("block-repaired") != 0 {
		w.t.Fatal("the block was called lost, or repaired")
	}
}

// become waits until a read of a block is answered like that.
func (w *world) become(block uint32, want dataplane.Kind, content []byte) {
	w.t.Helper()
	w.must(func() bool {
		w.run(100 * ms)
		st, data := w.status(block)
		if st == dataplane.OK && !bytes.Equal(data, content) {
			w.t.Fatalf("block %d: wrong data", block)
		}
		if st != want && st != dataplane.NotReady {
			w.t.Fatalf("block %d: %v", block, st)
		}
		return st == want
	}, 20*sec, "answer "+want.String())
}

// A block that hasn't changed comes from whoever returns first, also if that one left long ago.
func TestSalvageUnchangedBlock(t *testing.T) {
	for former := 1; former <= 2; former++ {
		w := lone(t, uint64(400+former))
		w.nodes[0].flip(chunkA, 3)
		w.waits(3)
		w.nodes[former].restart(former == 1)
		w.become(3, dataplane.OK, pattern(1, 65536)[3<<12:][:4096])
		if w.md.event("block-repaired") != 1 || w.md.event("block-lost") != 0 {
			t.Fatalf("events: %v", w.md.events)
		}
		w.nodes[0].restart(true)
		w.mustWrite(chunkA, 201<<16, pattern(4, 4096))
		w.become(3, dataplane.OK, pattern(1, 65536)[3<<12:][:4096])
	}
}

// A block that was written after a former member left isn't taken from that one, and is waited for
// as long as another one may have it.
func TestSalvageChangedBlock(t *testing.T) {
	w := lone(t, 410)
	w.nodes[0].flip(chunkA, 19)
	w.nodes[2].restart(false)
	w.waits(19)
	w.nodes[1].restart(false)
	w.become(19, dataplane.OK, pattern(100, 4096))
}

// If all who may have a block have something else the read fails, once and for all, and says so;
// a write mends it. One that was dropped isn't waited for.
func TestSalvageLostBlock(t *testing.T) {
	w := lone(t, 420)
	w.nodes[0].flip(chunkA, 19)
	w.nodes[2].restart(false)
	w.waits(19)
	w.md.former[chunkA] = []dataplane.CSID{3} // cs 2 was dropped
	w.become(19, dataplane.BadCRC, nil)
	for range 20 {
		w.run(200 * ms)
		if st, _ := w.status(19); st != dataplane.BadCRC {
			t.Fatalf("a lost block is answered %v", st)
		}
	}
	if n := w.md.event("block-lost"); n != 1 {
		t.Fatalf("%d events", n)
	}
	w.mustWrite(chunkA, 19<<12, pattern(7, 4096))
	w.become(19, dataplane.OK, pattern(7, 4096))
}

// Where the checksums are lost, too, only the history tells what a former member has.
func TestSalvageWithoutChecksum(t *testing.T) {
	w := lone(t, 430)
	nd := w.nodes[0]
	page := nd.sh.store.sb.crcPage(nd.sh.chunks[chunkA].slot * pagesPerSlot)
	nd.restart(false)
	nd.store.FlipBit(page+5, 1)
	w.mustWrite(chunkA, 202<<16, pattern(4, 4096))
	w.nodes[2].restart(false)
	w.become(3, dataplane.OK, pattern(1, 65536)[3<<12:][:4096])
	for range 20 { // its granule has changed
		if st, _ := w.status(18); st != dataplane.NotReady {
			t.Fatalf("a block of a granule that was written since is answered %v", st)
		}
		w.run(200 * ms)
	}
	if w.md.event("crc-page-damaged") == 0 {
		t.Fatal("the damage wasn't seen; the test proves nothing")
	}
}

// A copy to a former member gets over damaged blocks that the former member itself has.
func TestSalvageDuringCopy(t *testing.T) {
	w := lone(t, 440)
	w.nodes[0].flip(chunkA, 18) // of the granule that has changed, not itself
	w.nodes[2].restart(false)
	w.recoverUntil(chunkA, 3, 2)
	w.nodes[1].restart(false)
	w.recoverUntil(chunkA, 2, 3)
	w.equal(chunkA, 4*65536, 0, 1, 2)
	if w.md.event("block-repaired") == 0 {
		t.Fatal("nothing was repaired; the test proves nothing")
	}
}
