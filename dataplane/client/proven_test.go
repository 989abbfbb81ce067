package client

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestHeadFirstAfterGrant: who got the right to write a file reads each chunk at its head until
// that has answered, though it is slow or not ready: other members don't know of every write of the
// holder before. Who hasn't got it reads anywhere.
func TestHeadFirstAfterGrant(t *testing.T) {
	w := newWorld(t, 11, 3)
	f := w.file(dataplane.ChunkSize)
	w.write(f, 0, w.random(4096))
	head := w.cs[w.chunks[w.meta.files[f.id].chunks[0]].members[0]-1]
	others := func() (n int) {
		for _, cs := range w.cs {
			if cs != head {
				n += cs.served[dataplane.OpRead]
			}
		}
		return n
	}
	scan := func() {
		for i := range int64(32) {
			w.read(f, i*readRegion, 4096)
		}
	}
	scan()
	before := others()
	if before == 0 {
		t.Fatal("the head served all reads; the test shows nothing")
	}
	grant := func(token uint64) {
		w.env.Do(func() {
			w.eng.leases.meta = &heldBack{}
			w.eng.leases.held = nil
			f.lease.status, f.lease.writers = leaseNone, 1
			f.onLease(&control.LeaseReply{Granted: true, Token: token}, nil)
		})
	}
	grant(5)
	ready := w.sim.Now() + 200e6
	head.refuse = func(h *dataplane.Header) dataplane.Kind {
		if h.Op == dataplane.OpRead && w.sim.Now() < ready {
			return dataplane.NotReady
		}
		return dataplane.OK
	}
	for i := range int64(32) {
		if head.hold = 0; i == 0 {
			head.hold = 300e6 // late enough for a hedge
		}
		w.read(f, i*readRegion, 4096)
		if i == 0 && others() != before {
			t.Fatalf("%d reads at others before the head has answered", others()-before)
		}
	}
	if others() == before {
		t.Error("all reads went to the head, also when it had answered")
	}

	// The next grant; the head's data is damaged, which only it can find.
	grant(6)
	head.refuse = func(h *dataplane.Header) dataplane.Kind {
		if h.Op == dataplane.OpRead {
			return dataplane.BadCRC
		}
		return dataplane.OK
	}
	w.read(f, 0, 4096)

	// A write that the head has answered will do.
	grant(7)
	w.write(f, 0, w.random(4096))
	before = others()
	for i := range int64(32) {
		w.read(f, i*readRegion, 4096)
	}
	if others() == before {
		t.Error("no read went elsewhere when the head had answered a write")
	}
}
