package chunk

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Two coordinators of one chunk must not stop each other for ever. Each of these went round and
// round in the simulator.

// push tells node i what the metadata servers want excluded.
func (w *world) push(i int, id dataplane.ChunkID, lost ...dataplane.CSID) {
	cfg, err := w.md.get(id)
	if err != nil {
		w.t.Fatal(err)
	}
	nd := w.nodes[i]
	nd.env.Post(func() {
		nd.sh.SettlePush(&control.SettlePush{Chunks: []control.ChunkConfig{*cfg}, Lost: lost})
	})
}

// The word that a member is to be excluded isn't repeated, as it has come back: whoever was told,
// and couldn't do it at once, gives up, and the head goes on with all members.
func TestExclusionGoesStale(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.md.refuse = true // nobody is excluded
	w.nodes[2].kill()  // one that stays can't be reached
	w.push(1, chunkA, 1)
	r := w.nodes[1].sh.chunks[chunkA]
	w.must(func() bool { return r.settler != nil && r.settler.tries > 3 }, 5*sec, "try")
	if len(r.settler.lost) != 1 {
		t.Fatalf("to be excluded: %v", r.settler.lost)
	}
	w.must(func() bool { return r.settler == nil || len(r.settler.lost) == 0 },
		int64(lostStale)+sec, "forget who was to be excluded")
	w.nodes[2].restart(false)
	w.mustWrite(chunkA, 4096, pattern(2, 4096))
	w.equal(chunkA, dataplane.PartSize, 0, 1, 2)
	if cfg, _ := w.md.get(chunkA); len(cfg.Members) != 3 || cfg.Epoch != 1 {
		t.Errorf("members %v at epoch %d", cfg.Members, cfg.Epoch)
	}
}

// A head whose lease was taken away doesn't seal the members, among whom another one is about to
// go on without it; what waits for it is refused.
func TestNoLeaseNoSettling(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head := w.nodes[0]
	term := w.nodes[1].sh.chunks[chunkA].term
	for i := range 40 { // heartbeats of this world renew the lease every 0.5 s
		head.env.Do(func() {
			head.sh.SetLease(0)
			r := head.sh.chunks[chunkA]
			r.broken = true
			head.sh.settle(r, []dataplane.CSID{})
		})
		w.run(10 * ms)
		for _, nd := range w.nodes[1:] {
			if r := nd.sh.chunks[chunkA]; r.state != active || r.term != term {
				t.Fatalf("round %d: cs %d is %v", i, nd.cs, r.state)
			}
		}
	}
	if s := head.sh.chunks[chunkA].settler; s != nil {
		t.Errorf("the settler of a server without a lease goes on: %d tries", s.tries)
	}
	w.mustWrite(chunkA, 4096, pattern(2, 4096)) // with the next lease
}

// Who owes others their activation leaves that to a coordinator that sealed them later.
func TestOwedActivationIsLeft(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.md.refuse = true
	w.push(1, chunkA, 1)
	w.must(func() bool {
		r := w.nodes[1].sh.chunks[chunkA]
		return r.settler != nil && r.settler.owes
	}, sec, "seal the others")
	other := w.nodes[1]
	other.env.Do(func() {
		r := other.sh.chunks[chunkA]
		other.sh.seal(r, r.epoch, "another coordinator", func() {})
		if r.settler.owes {
			t.Error("it still wants to activate what another coordinator has sealed")
		}
	})
}

// A settling whose own seal waits for the log, and is overtaken by another coordinator's, begins
// anew: nobody else would wake it.
func TestOvertakenSealBeginsAnew(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head := w.nodes[0]
	r := head.sh.chunks[chunkA]
	w.slowLogs(sec / 2)
	done := false
	w.write(chunkA, 4096, pattern(2, 4096), &done)
	w.must(func() bool { return r.busy > 0 }, sec, "a write on its way to the log")
	head.env.Do(func() {
		r.broken = true
		head.sh.settle(r, []dataplane.CSID{})
	})
	w.must(func() bool { return r.sealWait != nil }, sec, "the own seal waits")
	head.env.Do(func() {
		if st := head.sh.seal(r, r.epoch, "another coordinator", func() {}); st != dataplane.OK {
			t.Fatalf("seal: %v", st)
		}
	})
	w.must(func() bool { return done && r.state == active }, 10*sec, "settled by the head")
}

// A coordinator whose SEAL waits for the log of another server, and is overtaken there, hears of it
// at once: what it has sealed elsewhere doesn't wait for the time limit of its request.
func TestOvertakenSealIsAnswered(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head, other := w.nodes[0], w.nodes[2]
	r, theirs := head.sh.chunks[chunkA], other.sh.chunks[chunkA]
	w.slowLogs(sec / 4)
	done := false
	w.write(chunkA, 4096, pattern(2, 4096), &done)
	w.must(func() bool { return theirs.busy > 0 }, sec, "a write on its way to the other's log")
	head.env.Do(func() {
		r.broken = true
		head.sh.settle(r, []dataplane.CSID{})
	})
	w.must(func() bool { return theirs.sealWait != nil }, sec, "the head's seal waits there")
	tries := r.settler.tries
	other.env.Do(func() {
		st := other.sh.seal(theirs, theirs.epoch, "another coordinator", func() {})
		if st != dataplane.OK {
			t.Fatalf("seal: %v", st)
		}
	})
	w.must(func() bool { return r.settler != nil && r.settler.tries > tries }, sec/2,
		"the head begins anew")
	w.must(func() bool { return done && r.state == active }, 4*sec, "settled by the head")
}
