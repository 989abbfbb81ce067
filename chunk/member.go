package chunk

import (
	"pstorage/dataplane"
	"pstorage/uring"
)

// A write at a member that isn't the head:
//
//  1. memberWrite: epoch and checksums. The next seq is taken at once; a later one waits in held,
//     because small writes come straight from the head and large ones along the chain.
//  2. take: forward along the chain if asked to, append to the own log.
//  3. memberAck: durable here, and the next in the chain has answered: answer.

// memberWrite takes OpReplicate.
func (sh *Shard) memberWrite(l *link, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	r := sh.chunks[h.Chunk]
	q := l.arrived()
	status := sh.checkReplicate(r, h, crcs, payload)
	if q != nil && status == dataplane.OK && h.Seq != r.last+1 {
		status = dataplane.Conflict // its turn has passed
	}
	if status != dataplane.OK {
		if q != nil {
			sh.drop(q, status)
			return
		}
		l.refuse(h, status)
		return
	}
	if mark := h.Seq - behind(h); mark > r.commit && r.markTo(mark) {
		sh.markMoved(r)
	}
	if q == nil {
		q = sh.newRequest(l, h, r)
	}
	q.seq = h.Seq
	if h.Seq != r.last+1 {
		if !q.keep(crcs, payload, buf) || !r.flight.put(q) {
			sh.drop(q, dataplane.Overloaded)
		}
		return
	}
	q.crcLen = copy(q.crcs[:], crcs)
	q.data = payload
	sh.take(q, buf)
	sh.takeDue(r)
}

// takeDue takes the writes that came too early, as far as it is their turn. They may be more than
// the log's reserve takes at once: then the rest waits like what isn't received yet.
func (sh *Shard) takeDue(r *replica) {
	for r.state == active && !r.gone && !r.isHead() {
		q := r.flight.get(r.last + 1)
		if q == nil {
			return
		}
		if sh.tight() {
			sh.stall(r)
			return
		}
		r.flight.remove(q.seq)
		sh.takeHeld(q)
	}
}

func (sh *Shard) checkReplicate(r *replica, h *dataplane.Header,
	crcs, payload []byte) dataplane.Kind {
	if status := sh.checkPlace(r, h); status != dataplane.OK {
		return status
	}
	if h.Flags&dataplane.FlagData != 0 && dataplane.CheckCRCs(crcs, h.Offset, payload) >= 0 {
		sh.stats.CRCErrors++
		return dataplane.BadCRC
	}
	return dataplane.OK
}

// checkPlace checks what can be known before the payload is there.
func (sh *Shard) checkPlace(r *replica, h *dataplane.Header) dataplane.Kind {
	switch {
	case sh.dead != nil:
		return dataplane.IOError
	case h.Length == 0 || !aligned(h.Offset, h.Length) || behind(h) > h.Seq ||
		h.Flags&dataplane.FlagData == 0 && h.Flags&dataplane.FlagZero == 0:
		return dataplane.Malformed
	case r == nil:
		return dataplane.UnknownChunk
	case h.Epoch < r.epoch && !sh.canary.OldEpoch:
		return dataplane.StaleEpoch
	case r.state != active || r.isHead():
		return dataplane.NotReady
	case (h.Epoch != r.epoch || h.Aux>>16 != uint32(r.term)) && !sh.canary.OldEpoch:
		return dataplane.NotReady
	case h.Seq <= r.last || h.Seq > r.commit+2*dataplane.MaxInflightPerChunk:
		return dataplane.Conflict
	}
	return dataplane.OK
}

// behind is by how much the head's commit mark is behind the seq of an OpReplicate.
func behind(h *dataplane.Header) dataplane.Seq { return dataplane.Seq(h.Aux & 0xffff) }

// takeHeld takes a request that owns its payload.
func (sh *Shard) takeHeld(q *request) {
	buf := q.buf
	q.buf = nil
	sh.take(q, buf)
	if buf != nil {
		buf.Release()
	}
}

// take accepts the next write of the chunk.
func (sh *Shard) take(q *request, buf *uring.Buf) {
	r := q.r
	q.phase = phaseMember
	r.accept(q.seq, q.off, q.length)
	if !q.relayed && q.hdr.Flags&dataplane.FlagChain != 0 && r.self+1 < len(r.members) {
		h := &sh.out
		*h = q.hdr
		h.ReqID = q.id()
		if next := r.members[r.self+1].peer; next.open {
			if !sh.canary.AckChain {
				q.waiting, q.behind = 1, next
			}
			if r.self+2 == len(r.members) {
				q.direct = 1
			}
			next.send(h, q.crcs[:q.crcLen], q.data, buf)
		} else {
			q.status = dataplane.Unreachable // answered when durable here
		}
	}
	sh.append(q, buf, q.hdr.Flags&dataplane.FlagZero != 0)
	if sh.canary.AckVolatile || q.early() {
		sh.memberAck(q)
	}
}

// chainAnswered: the next member of the chain has the write durable, or not.
func (sh *Shard) chainAnswered(q *request, p *peer, status dataplane.Kind) {
	if q.waiting == 0 {
		return
	}
	if q.direct != 0 {
		p.gauge.waits.add(sh.env.Now() - q.began)
	}
	q.waiting = 0
	if status != dataplane.OK {
		q.status = status
	}
	sh.memberAck(q)
}

// memberAck answers the head, or the one before in the chain.
func (sh *Shard) memberAck(q *request) {
	if q.waiting != 0 || !q.held() && !sh.canary.AckVolatile {
		return
	}
	sh.answer(q, q.status)
	if q.local == 0 {
		sh.free(q)
	}
}

// memberCommit takes OpCommit: the head's commit mark.
func (sh *Shard) memberCommit(h *dataplane.Header) {
	r := sh.chunks[h.Chunk]
	if r == nil || r.state != active || h.Epoch != r.epoch {
		return
	}
	moved := r.markTo(h.Seq)
	if r.memory && h.Aux <= 0xffff {
		moved = r.commitTo(h.Seq-min(behind(h), h.Seq)) || moved
	}
	if moved {
		sh.markMoved(r)
	}
}

func (sh *Shard) markMoved(r *replica) {
	sh.store.touch(r.slot)
	if r.reads.n > 0 {
		sh.pumpReads(r)
	}
}

// abandonHeld gives up the writes that came too early: the head settles and sends no others.
func (sh *Shard) abandonHeld(r *replica) {
	for _, q := range r.flight.slots {
		if q != nil {
			r.flight.remove(q.seq)
			sh.drop(q, dataplane.NotReady)
		}
	}
}

// linkLost ends the waits for a peer that is gone: whoever sent us the write learns of it.
func (sh *Shard) linkLost(p *peer) {
	for _, q := range sh.reqs {
		if q.phase == phaseMember && q.behind == p {
			sh.chainAnswered(q, p, dataplane.Unreachable)
		}
	}
}
