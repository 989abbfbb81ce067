package client

import (
	"time"

	"pstorage/dataplane"
)

// This file tells the members of a chunk which writes were acknowledged. When a head has answered a
// write, the other members learn only later that it is committed: with the next write, or after a
// millisecond or two. If the head falls silent in between they would hold reads of that block back
// until the chunk is settled, seconds later, and no hedge would help. So every read carries the
// highest seq that was acknowledged to this client in the chunk's epoch (entry.acked), and for
// readers on other hosts the members are told when a head falls silent (tellAcked).

// recentAcks are the chunks whose head acknowledged something last.
type recentAcks struct {
	ring [64]recentAck
	next int // where the next one goes
}

type recentAck struct {
	ent *entry
	at  int64
}

// tellYoung is how old, in ns, an acknowledgement is at most, when its head was last heard, that
// the others are told of: a head that is well tells them sooner by itself.
const tellYoung = int64(50 * time.Millisecond)

// acknowledged notes that pr answered p, a write, with OK; h is the answer. There is
// no seq with write-ack=memory (earlier chunk servers gave one; Aux isn't 0 then): after a crash of
// all members it may be another write's.
func (p *part) acknowledged(pr *peer, h *dataplane.Header) {
	ent, _ := p.file.entry(p.index)
	if h.Aux != 0 || ent.state != present || ent.chunk != p.chunk ||
		ent.epoch != h.Epoch ||
		h.Seq <= ent.acked {
		return
	}
	ent.acked = h.Seq
	rec, n := &pr.recent, len(pr.recent.ring)
	if last := &rec.ring[(rec.next+n-1)%n]; last.ent == ent {
		last.at = pr.lastRecv
		return
	}
	rec.ring[rec.next] = recentAck{ent, pr.lastRecv}
	rec.next = (rec.next + 1) % n
}

// acked is what a read tells of its chunk; 0: nothing.
func (p *part) acked() dataplane.Seq {
	if ent, _ := p.file.entry(p.index); ent.chunk == p.chunk && ent.epoch == p.epoch {
		return ent.acked
	}
	return 0
}

// tellAcked tells the members of the chunks that pr, now silent, led what it acknowledged last.
func (pr *peer) tellAcked() {
	e := pr.eng
	for i := range pr.recent.ring {
		rec := &pr.recent.ring[i]
		ent := rec.ent
		rec.ent = nil
		if ent == nil || ent.acked == 0 || rec.at < pr.lastRecv-tellYoung ||
			ent.members[0] != pr.id {
			continue
		}
		for _, id := range ent.members[1:ent.n] {
			if to := e.peer(id); to.state == peerUp {
				e.stats.Told++
				e.hdr = dataplane.Header{Op: dataplane.OpCommit, Chunk: ent.chunk, Epoch: ent.epoch,
					Seq: ent.acked}
				to.conn.session.Send(&e.hdr, nil, nil)
			}
		}
	}
}
