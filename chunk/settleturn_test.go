package chunk

import (
	"testing"

	"pstorage/dataplane"
)

// TestSettlingTakesTurns: a server has more chunks that can't be settled, as a member is away and
// isn't excluded, than it settles at a time, and clients wait for all of them. The chunks without
// that member are settled all the same, and the others as soon as it is back.
func TestSettlingTakesTurns(t *testing.T) {
	const stuck = 3 * maxSettling
	w := newWorldSlots(t, 1, 3, stuck+1, 32<<20, 1<<20)
	var done [stuck]bool
	id := func(i int) dataplane.ChunkID { return chunkA + dataplane.ChunkID(i) }
	for i := range stuck {
		w.md.add(id(i), 2, 1, 3)
		w.mustWrite(id(i), 0, pattern(1, 4096))
	}
	w.md.add(id(stuck), 2, 1, 2)
	w.mustWrite(id(stuck), 0, pattern(1, 4096))
	w.md.refuse = true // nobody is excluded
	w.nodes[2].kill()
	w.nodes[0].restart(false)
	for i := range stuck {
		w.write(id(i), 0, pattern(2, 4096), &done[i])
	}
	w.run(3 * sec)
	ok := false
	w.write(id(stuck), 0, pattern(2, 4096), &ok)
	w.must(func() bool { return ok }, 2*sec, "a write of a chunk with all its members")
	for i := range stuck {
		if done[i] {
			t.Fatal("a write without a member")
		}
	}
	w.nodes[2].restart(false)
	w.must(func() bool {
		for i := range stuck {
			if !done[i] {
				return false
			}
		}
		return true
	}, 10*sec, "the other writes")
	if sh := w.nodes[0].sh; sh.settling != 0 {
		t.Errorf("%d chunks are being settled", sh.settling)
	}
}
