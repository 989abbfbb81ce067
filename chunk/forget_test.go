package chunk

import (
	"testing"

	"pstorage/dataplane"
)

// give has the server hold n chunks more, and returns them.
func (nd *node) give(n int) []dataplane.ChunkID {
	ids := make([]dataplane.ChunkID, n)
	nd.env.Do(func() {
		for i := range ids {
			ids[i] = chunkA + dataplane.ChunkID(i+1)
			if !nd.sh.makeSlot(nd.sh.find(ids[i])) {
				nd.w.t.Fatal("no slot")
			}
		}
	})
	return ids
}

// TestForgetMany: a server is told at once to forget all of a large file. That is more than the log
// takes in one turn, which is no reason to give the disk up; and clients don't wait for it.
func TestForgetMany(t *testing.T) {
	const many = 24_000
	w := newWorldSlots(t, 1, 1, many+1, 32<<20, 1<<20)
	nd := w.nodes[0]
	w.md.add(chunkA, 1, 1)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	ids := nd.give(many)
	before := nd.sh.log.Stats().Appends
	nd.env.Do(func() { nd.sh.Forget(ids) })
	w.run(100 * us)
	if len(nd.sh.Inventory()) != 1 {
		t.Error("forgotten chunks are still there for the metadata servers")
	}
	w.must(func() bool {
		return nd.failed != nil || nd.sh.log.Stats().Appends > before
	}, sec, "the first Drop")
	if nd.failed != nil {
		t.Fatal(nd.failed)
	}
	if n := nd.sh.log.Stats().Appends - before; n > 10 {
		t.Errorf("%d chunks were dropped in one go", n)
	}
	w.must(func() bool { return len(nd.sh.store.free) == 300 }, 2*sec, "free slots")
	w.mustWrite(chunkA, 4096, pattern(2, 4096))
}

// TestForgottenComesBack: a chunk that was forgotten is copied here again before the log has
// dropped what was there. It is gone from the log first, whatever others are before it.
func TestForgottenComesBack(t *testing.T) {
	w := newWorldSlots(t, 2, 1, 64, 32<<20, 1<<20)
	nd := w.nodes[0]
	ids := nd.give(50)
	last := ids[len(ids)-1]
	old := nd.sh.chunks[last]
	nd.env.Do(func() {
		nd.sh.Forget(ids)
		fresh := nd.sh.find(last)
		if !nd.sh.makeSlot(fresh) || fresh.slot == old.slot {
			t.Fatal("no fresh slot")
		}
	})
	w.run(5 * ms)
	if !old.dropped {
		t.Error("the new replica could be in the log before the old one is dropped")
	}
	w.must(func() bool { return len(nd.sh.store.free) == 63 }, sec, "free slots")
	if r := nd.sh.chunks[last]; r == nil || r.gone || r == old {
		t.Error("the new replica was forgotten, too")
	}
}
