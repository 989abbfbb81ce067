package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// stop stops the server in an orderly way.
func (nd *node) stop() {
	nd.w.t.Helper()
	done := false
	nd.env.Do(func() {
		nd.sh.Stop(func(err error) {
			if done = true; err != nil {
				nd.w.t.Error(err)
			}
		})
	})
	nd.w.must(func() bool { return done }, 10*sec, "stop")
	nd.kill()
}

// slow has the disk take d longer for operations of one kind.
func slow(d *simloop.Disk, kind uring.OpKind, by int64) {
	d.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == kind {
			f.Delay = by
		}
		return f
	}
}

// TestStopInACopy: source and target of a copy are stopped while parts of it are being read and
// written, on disks that take long.
func TestStopInACopy(t *testing.T) {
	for _, source := range []bool{true, false} {
		w := newWorld(t, 5, 3)
		w.md.add(chunkA, 1, 1, 2)
		w.md.chunks[chunkA].Wanted = 3
		for i := range uint32(300) { // more than the log keeps from being written back
			w.mustWrite(chunkA, i*65536, pattern(uint64(i+1), 65536))
		}
		w.run(20 * sec)
		w.nodes[0].restart(false) // with nothing in the read cache
		nd, kind := w.nodes[0], uring.DiskRead
		if !source {
			nd, kind = w.nodes[2], uring.DiskWrite
		}
		slow(nd.store, kind, 300*ms)
		w.nodes[0].env.Do(func() {
			cfg, _ := w.md.get(chunkA)
			w.nodes[0].sh.RecoverPush(&control.RecoverPush{Chunks: []control.ChunkConfig{*cfg},
				Targets: []control.CSAddr{{CS: 3, Addr: w.nodes[2].addr()}}})
		})
		w.must(func() bool { return nd.store.InFlight() > 0 }, 10*sec, "a part under way")
		nd.stop()
	}
}

// TestStopWhileForgetting: the space of forgotten chunks is being given back, and the word that
// more of them can go comes at every moment of the stop.
func TestStopWhileForgetting(t *testing.T) {
	for moment := range 40 {
		w := newWorldSlots(t, 6, 1, 64, 32<<20, 1<<20)
		nd := w.nodes[0]
		w.md.add(chunkA, 1, 1)
		w.mustWrite(chunkA, 0, pattern(1, 4096))
		ids := nd.give(20)
		slow(nd.store, uring.DiskDiscard, 20*ms)
		nd.env.Do(func() { nd.sh.Forget(ids[:10]) })
		w.must(func() bool { return nd.store.InFlight() > 0 }, sec, "a slot being given back")
		w.sim.After(int64(moment)*ms, func() {
			nd.env.Post(func() {
				if !nd.env.Dead() {
					nd.sh.ForgetPush(&control.ForgetPush{Chunks: ids[10:]})
				}
			})
		})
		nd.stop()
		nd.restart(false)
		if got := w.read(chunkA, 0, 4096, 0); !bytes.Equal(got, pattern(1, 4096)) {
			t.Errorf("%d ms: other content", moment)
		}
	}
}

// TestStopInARepair: the block from another member is on its way to the log.
func TestStopInARepair(t *testing.T) {
	w := settledInStore(t, 80)
	nd := w.nodes[1]
	nd.store.FlipBit(nd.sh.store.sb.block(nd.sh.chunks[chunkA].slot, 3)+100, 3)
	w.read(chunkA, 0, 4096, 0) // settles
	slow(nd.cache, uring.DiskWriteSync, 20*ms)
	w.cl.env.Do(func() {
		w.cl.ask(2, dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA, Epoch: 1, Offset: 3 * 4096,
			Length: 4096}, nil, func(*dataplane.Header, []byte) {})
	})
	appended := nd.sh.log.Stats().Appends
	w.must(func() bool { return len(nd.sh.repairs) == 1 && nd.cache.InFlight() > 0 }, sec, "a repair")
	if nd.sh.log.Stats().Appends != appended {
		t.Fatal("the block was repaired too soon")
	}
	nd.stop()
}

// TestStopInAMerge: a write of part of a block waits for the rest to be read, at a head that has
// lost a member.
func TestStopInAMerge(t *testing.T) {
	w := newWorld(t, 7, 2)
	w.md.add(chunkA, 1, 1, 2)
	for i := range uint32(300) {
		w.mustWrite(chunkA, i*65536, pattern(uint64(i+1), 65536))
	}
	w.run(20 * sec)
	nd := w.nodes[0]
	nd.restart(false)
	w.mustWrite(chunkA, 40<<20, pattern(1, 4096))
	slow(nd.store, uring.DiskRead, 400*ms)
	done := false
	w.write(chunkA, 512, pattern(2, 512), &done)
	w.must(func() bool { return nd.store.InFlight() > 0 }, sec, "a read")
	w.nodes[1].kill()
	w.must(func() bool { return nd.sh.chunks[chunkA].broken }, sec, "the loss of the member")
	nd.stop()
}

// TestStopInARelay: the rest of a part that is being passed on isn't received any more.
func TestStopInARelay(t *testing.T) {
	w := newWorld(t, 8, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, dataplane.PartSize))
	nd := w.nodes[1]
	nd.env.Do(func() { // what Relay does: there are no pipes here
		r := nd.sh.chunks[chunkA]
		l := nd.sh.links[linkKey{dataplane.RoleCS, 1}]
		q := nd.sh.newRequest(l, &dataplane.Header{Op: dataplane.OpReplicate, Chunk: chunkA,
			Epoch: r.epoch, Length: dataplane.PartSize, Seq: r.last + 1}, r)
		q.seq, q.phase, q.local, q.relayed = r.last+1, phaseMember, 1, true
		q.waiting, q.behind = 1, r.members[r.self+1].peer
		l.arriving = q
	})
	nd.stop()
}
