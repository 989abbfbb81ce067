package chunk

import (
	"encoding/binary"
	"math/bits"

	"pstorage/dataplane"
)

// A read, at any active member:
//
//  1. clientRead: lease, bounds, epoch. A chunk that isn't ready is settled first, by the head; so
//     is one whose writes in flight were given up when the head lost a member.
//  2. startRead: a write above the commit mark on one of the blocks: wait for the mark (pumpReads),
//     because the write may yet be undone; unless a client knows better (acked.go).
//  3. blockRead gathers the blocks from log and store and checks them.
//  4. readDone: the lease again, then the answer with the data and its checksums, straight out of
//     the buffer that the disk filled. A damaged block is repaired, and answered BadCRC, or
//     NotReady as long as a chunk with too few members may get it from a former one (salvage.go).

// clientRead takes OpRead.
func (sh *Shard) clientRead(l *link, h *dataplane.Header) {
	if h.Length == 0 || h.Length > dataplane.PartSize || h.Flags&dataplane.FlagData != 0 {
		l.refuse(h, dataplane.Malformed)
		return
	}
	if h.Flags&dataplane.FlagRecovery != 0 {
		sh.recoveryRead(l, h)
		return
	}
	if !sh.leased() {
		l.refuse(h, dataplane.NoLease)
		return
	}
	r := sh.find(h.Chunk)
	if r == nil {
		l.refuse(h, dataplane.Overloaded)
		return
	}
	if r.state == active && h.Epoch != r.epoch {
		if h.Epoch > r.epoch {
			sh.ahead(r, h.Epoch)
		}
		l.refuse(h, epochStatus(h.Epoch, r.epoch))
		return
	}
	if sh.canary.ServeUnsettled && r.state == unsettled && r.slot != noSlot && h.Epoch == r.epoch {
		sh.startRead(sh.newRequest(l, h, r))
		return
	}
	if h.Seq > r.commit || sh.canary.ClaimAll {
		sh.claim(r, h.Seq)
	}
	if r.state == active && (r.commit == r.last || r.hidden(h.Offset, h.Length) == 0 ||
		sh.canary.ReadAbove) {
		sh.startRead(sh.newRequest(l, h, r))
		return
	}
	if r.reads.n >= maxParked {
		l.refuse(h, dataplane.Overloaded)
		return
	}
	q := sh.newRequest(l, h, r)
	q.due = sh.env.Now() + int64(readPatience)
	r.reads.push(q)
	if r.state == active {
		sh.watch(r)
	}
	if r.state != active || r.broken && r.isHead() {
		// The write that it waits for has no one who goes on with it, if its client is gone and the
		// settling was given up for want of a lease.
		sh.settle(r, nil)
	}
}

func epochStatus(asked, held dataplane.Epoch) dataplane.Kind {
	if asked < held {
		return dataplane.StaleEpoch
	}
	return dataplane.NotReady
}

// recoveryRead is a read by a coordinator: of a sealed replica, without lease, as it stands.
func (sh *Shard) recoveryRead(l *link, h *dataplane.Header) {
	r := sh.chunks[h.Chunk]
	switch {
	case l.role != dataplane.RoleCS:
		l.refuse(h, dataplane.Denied)
	case h.Aux == dataplane.ReadSalvage:
		sh.salvageRead(l, h)
	case r == nil:
		l.refuse(h, dataplane.UnknownChunk)
	case r.state != sealed || r.sealer != any(l):
		l.refuse(h, dataplane.NotReady)
	default:
		sh.startRead(sh.newRequest(l, h, r))
	}
}

// startRead reads the blocks that q touches.
func (sh *Shard) startRead(q *request) {
	off, length := blockRange(q.off, q.length)
	q.buf = sh.pool.Get(int(length))
	if q.buf == nil {
		sh.drop(q, dataplane.Overloaded)
		return
	}
	q.rd.once = q.hdr.Flags&dataplane.FlagRecovery != 0
	if !q.rd.once {
		sh.pace.begins(q)
	}
	q.rd.start(q.r, off/dataplane.BlockSize, int(length/dataplane.BlockSize), q.buf.Bytes()[:length])
}

// readDone is the end of every blockRead of a request.
func (sh *Shard) readDone(q *request) {
	if q.merging {
		sh.mergeDone(q)
		return
	}
	r := q.r
	recovery := q.hdr.Flags&dataplane.FlagRecovery != 0
	sh.pace.ends(q, q.rd.bad == 0)
	switch {
	case q.link == nil:
		sh.free(q) // answered when the disk failed
		return
	case recovery && q.hdr.Aux == dataplane.ReadSalvage:
		sh.salvaged(q)
		return
	case q.rd.bad != 0 && (recovery || !q.rd.unsure):
		sh.damaged(r, q.rd.from, &q.rd)
		sh.drop(q, sh.readStatus(q))
		return
	case recovery && (r.state != sealed || r.sealer != any(q.link)):
		sh.drop(q, dataplane.NotReady)
		return
	case !recovery && !sh.leased():
		sh.drop(q, dataplane.NoLease)
		return
	case !recovery && r.state != active && !(sh.canary.ServeUnsettled && r.state == unsettled):
		sh.drop(q, dataplane.NotReady)
		return
	case !recovery && r.epoch != q.hdr.Epoch:
		sh.drop(q, epochStatus(q.hdr.Epoch, r.epoch))
		return
	case !recovery && q.rd.unsure:
		sh.readAgain(q)
		return
	}
	sh.stats.Reads++
	sh.stats.ReadBytes += uint64(q.length)
	h := &sh.out
	*h = q.hdr.Reply(dataplane.OK)
	h.Flags |= dataplane.FlagData
	h.Length = q.length
	first, _ := blockRange(q.off, q.length)
	from := int(q.off - first)
	to := from + int(q.length)
	if aligned(q.off, q.length) {
		for i := range q.rd.n {
			binary.LittleEndian.PutUint32(q.crcs[4*i:], q.rd.crcs[i])
		}
		q.crcLen = 4 * q.rd.n
	} else {
		q.crcLen = dataplane.PutCRCs(q.crcs[:], q.off, q.buf.Bytes()[from:to])
	}
	l := q.link
	q.link = nil
	l.finishBuf(h, q.crcs[:q.crcLen], q.buf, from, to)
	sh.free(q)
}

// readAgain waits for the writes that came while q read, and reads anew: what it has may be of one
// that can still be undone, or older than what was there when it began.
func (sh *Shard) readAgain(q *request) {
	r := q.r
	q.buf.Release()
	q.buf = nil
	if r.hidden(q.off, q.length) == 0 {
		sh.startRead(q)
		return
	}
	q.due = sh.env.Now() + int64(readPatience)
	r.reads.push(q)
	sh.watch(r)
}

// pumpReads starts the waiting reads whose blocks are committed, in order.
func (sh *Shard) pumpReads(r *replica) {
	list := r.reads.cut()
	for q := list; q != nil; {
		next := q.next
		switch {
		case r.state == active && q.hdr.Epoch != r.epoch:
			sh.drop(q, epochStatus(q.hdr.Epoch, r.epoch))
		case r.state == active && r.hidden(q.off, q.length) == 0:
			sh.startRead(q)
		default:
			r.reads.push(q)
		}
		q = next
	}
}

// refuseReads answers all waiting reads of a chunk.
func (sh *Shard) refuseReads(r *replica, status dataplane.Kind) {
	for q := r.reads.cut(); q != nil; {
		next := q.next
		sh.drop(q, status)
		q = next
	}
}

// impatient answers the reads that waited too long for a commit mark: the head knows more.
func (sh *Shard) impatient(r *replica) {
	if r.state != active {
		return // settling has its own end
	}
	now := sh.env.Now()
	for q := r.reads.cut(); q != nil; {
		next := q.next
		if q.due <= now {
			sh.drop(q, dataplane.NotReady)
		} else {
			r.reads.push(q)
		}
		q = next
	}
}

// damaged reports blocks of a replica that don't match their checksums, and starts their repair.
func (sh *Shard) damaged(r *replica, from uint32, rd *blockRead) {
	for bad := rd.bad; bad != 0; bad &= bad - 1 {
		i := bits.TrailingZeros32(bad)
		sh.stats.CRCErrors++
		sh.repair(r, from+uint32(i))
	}
}
