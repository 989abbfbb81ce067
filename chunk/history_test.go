package chunk

import (
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
)

// history is compared with a naive list of writes.
func TestHistoryAgainstNaive(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		h := history{epoch: 1}
		type write struct {
			off, length uint32
		}
		var all []write
		durable, commit := 0, 0
		for range 500 {
			switch rng.IntN(4) {
			case 0, 1:
				w := write{uint32(rng.IntN(64)) * 4096, uint32(1+rng.IntN(4)) * 4096}
				all = append(all, w)
				h.accept(dataplane.Seq(len(all)), w.off, w.length)
			case 2:
				durable += rng.IntN(len(all) - durable + 1)
				h.durableTo(dataplane.Seq(durable))
			case 3:
				to := rng.IntN(len(all) + 1)
				h.commitTo(dataplane.Seq(to))
				commit = max(commit, min(to, durable))
			}
			if int(h.commit) != commit || int(h.durable) != durable || int(h.last) != len(all) {
				t.Fatalf("marks %d %d %d, want %d %d %d", h.commit, h.durable, h.last, commit, durable,
					len(all))
			}
			if n := len(h.uncommitted()); n != len(all)-commit {
				t.Fatalf("%d uncommitted, want %d", n, len(all)-commit)
			}
			off, length := uint32(rng.IntN(64))*4096, uint32(1+rng.IntN(4))*4096
			want, lo, hi := 0, uint32(1<<31), uint32(0)
			for i := commit; i < len(all); i++ {
				w := all[i]
				if w.off < off+length && off < w.off+w.length {
					want = i + 1
				}
				if i < durable {
					lo, hi = min(lo, w.off), max(hi, w.off+w.length)
				}
			}
			if got := h.above(h.commit, off, length); int(got) != want {
				t.Fatalf("barrier %d, want %d", got, want)
			}
			gotOff, gotLen, inOrder := h.tail()
			if !inOrder {
				t.Fatal("nothing was patched, and the tail isn't in order")
			}
			if hi == 0 && gotLen != 0 || hi > 0 && (gotOff != lo || gotLen != hi-lo) {
				t.Fatalf("tail [%d +%d], want [%d, %d)", gotOff, gotLen, lo, hi)
			}
		}
	}
}

// Whatever the log's records replay to, after whatever checkpoint, covers what was uncommitted.
func TestHistoryReplay(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 600 {
		told := round%2 == 0 // as by programs that say whether a tail is in order, or not
		live := history{}
		live.activate(1, 0, nil)
		type rec struct {
			seq, commit dataplane.Seq
			off         uint32
		}
		var log []rec
		var entry slotEntry
		from := 0
		for range 60 {
			off := uint32(rng.IntN(32)) * 4096
			live.accept(live.last+1, off, 4096)
			log = append(log, rec{live.last, live.commit, off})
			live.durableTo(live.last)
			if rng.IntN(3) == 0 {
				live.commitTo(live.commit + dataplane.Seq(rng.IntN(5)))
			}
			if rng.IntN(20) == 0 { // checkpoint: older records may go
				entry = slotEntry{epoch: live.epoch, last: live.durable, commit: live.commit}
				entry.tailOff, entry.tailLen, entry.inOrder = live.tail()
				entry.inOrder = entry.inOrder && told
				from = rng.IntN(len(log) + 1)
			}
		}
		var back history
		if entry.epoch == 0 {
			back.activate(1, 0, nil)
			from = 0
		} else {
			back.load(&entry)
		}
		for _, r := range log[from:] {
			back.replay(1, r.seq, r.commit, r.off, 4096)
		}
		if told && len(back.patched) > 0 {
			t.Fatalf("%v counts as patched, and nothing was", back.patched)
		}
		if back.last != live.last || back.commit > live.commit {
			t.Fatalf("last %d commit %d, live %d %d", back.last, back.commit, live.last, live.commit)
		}
		for _, e := range live.uncommitted() {
			covered := back.above(back.commit, e.off, e.length) != 0
			for _, p := range back.patched {
				covered = covered || p.overlaps(e.off, e.length)
			}
			if !covered {
				t.Fatalf("extent %v was forgotten", e)
			}
		}
	}
}

// TestPatchesOfUnfinished: whoever copies to an unfinished copy again is told of the parts that it
// has: a head that is gone may have been the only other one with what is in them.
func TestPatchesOfUnfinished(t *testing.T) {
	h := history{}
	h.unfinished = true
	h.replay(1, 0, 0, 4096, 8192)
	h.patch(65536, 4096)
	if len(h.patched) != 2 || h.patched[0] != (extent{0, 4096, 8192}) {
		t.Errorf("%+v", h.patched)
	}
	off, n, inOrder := h.tail()
	if off != 4096 || n != 65536 || inOrder {
		t.Errorf("the slot table keeps %d bytes at %d, in order: %v", n, off, inOrder)
	}
	var back history
	back.load(&slotEntry{epoch: 1, last: 5, commit: 3, tailOff: off, tailLen: n})
	if len(back.patched) != 1 || len(back.ext) > 0 {
		t.Errorf("of a tail with patches came %+v", back)
	}
	h.activate(2, 5, nil)
	if len(h.patched) != 0 {
		t.Errorf("after the activation: %+v", h.patched)
	}
}

// TestLostBehindTail: a disk forgot what it had acknowledged since a checkpoint under writes. What
// the slot table has of those writes is no excuse for what is missing.
func TestLostBehindTail(t *testing.T) {
	live := history{}
	live.activate(1, 0, nil)
	for seq := range dataplane.Seq(20) {
		live.accept(seq+1, uint32(seq)*4096, 4096)
	}
	live.durableTo(10)
	live.commitTo(8)
	entry := slotEntry{epoch: 1, last: live.durable, commit: live.commit}
	entry.tailOff, entry.tailLen, entry.inOrder = live.tail()
	live.durableTo(20)
	live.commitTo(18)

	for _, c := range []struct {
		inOrder, patch bool
		lost           int
	}{
		{true, false, 1},
		{true, true, 0},   // an interrupted settling gave it what it missed
		{false, false, 0}, // written by a program that didn't tell
	} {
		e := entry
		e.inOrder = c.inOrder
		var h history
		h.load(&e)
		if c.patch {
			h.replay(1, 0, 0, 10*4096, 8*4096)
		}
		r, w := &replica{history: h}, &replica{history: live}
		if v := decide(true, []memberTail{tailOf(w), tailOf(r)}); len(v.lost) != c.lost {
			t.Errorf("%+v: %+v", c, v)
		}
	}
}
