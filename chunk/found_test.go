package chunk

import (
	"testing"

	"pstorage/dataplane"
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
