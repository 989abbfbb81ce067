package chunk

import (
	"testing"

	"pstorage/dataplane"
)

// TestEarlyWritesWaitForRoom: writes that came before their turn are taken when it comes only as
// far as the log has room, and the rest when it has room again.
func TestEarlyWritesWaitForRoom(t *testing.T) {
	w := newWorld(t, 5, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	sh := w.nodes[2].sh
	r := sh.chunks[chunkA]
	w.must(func() bool { return r.state == active && r.last == 1 }, sec, "the first write")
	l := &link{sh: sh, role: dataplane.RoleCS} // closed: its answers go nowhere
	send := func(seq dataplane.Seq) {
		sh.memberWrite(l, &dataplane.Header{Op: dataplane.OpReplicate, Flags: dataplane.FlagZero,
			Chunk: chunkA, Epoch: r.epoch, Seq: seq, Offset: 4096 * uint32(seq), Length: 4096,
			Aux: uint32(r.term)<<16 | uint32(seq-r.commit)}, nil, nil, nil)
	}
	w.nodes[2].env.Do(func() {
		for seq := dataplane.Seq(5); seq > 2; seq-- {
			send(seq)
		}
		sh.bypass.waiting = maxLined
		send(2)
	})
	if r.last != 2 || r.flight.n != 3 || !r.stalled {
		t.Errorf("without room: last %d, %d wait, stalled %v", r.last, r.flight.n, r.stalled)
	}
	w.nodes[2].env.Do(func() { sh.bypass.waiting = 0 })
	w.must(func() bool { return r.last == 5 && r.flight.n == 0 && l.inflight == 0 }, sec,
		"all of them, answered")
}
