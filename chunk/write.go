package chunk

import (
	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// A client's write at the head:
//
//  1. clientWrite: lease, bounds, checksums. If the chunk is ready and nothing is in the way, it
//     goes on at once (the payload still lies in the receive buffer); otherwise the request keeps
//     its payload and waits in the chunk's queue for pumpWrites.
//  2. Blocks that are covered only in part are read and merged (mergeRead, merged), so that from
//     here on there are whole blocks only.
//  3. issue: the write gets its seq, goes to the other members and to the own log.
//  4. appendDone, memberAnswered: who has it durable. All have: advance commits, in the order of
//     seqs, and answers the client.
//  5. The commit mark reaches the other members with the next write, or by itself: tellCommit.
//
// ZERO walks the same path without data. FLUSH only needs the chunk to be ready: everything that
// was acknowledged is durable on all members already; unless with write-ack=memory: memory.go.

// clientWrite takes OpWrite, OpZero and OpFlush.
func (sh *Shard) clientWrite(l *link, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	if status := sh.checkWrite(h, crcs, payload); status != dataplane.OK {
		l.refuse(h, status)
		return
	}
	r := sh.find(h.Chunk)
	if r == nil {
		l.refuse(h, dataplane.Overloaded)
		return
	}
	if r.queue.n == 0 && r.writable() && h.Op != dataplane.OpFlush && !sh.tight() &&
		aligned(h.Offset, h.Length) {
		if status := sh.writeStatus(r, h); status != dataplane.OK {
			l.refuse(h, status)
			return
		}
		q := sh.newRequest(l, h, r)
		q.crcLen = copy(q.crcs[:], crcs)
		q.data = payload
		sh.issue(q, buf)
		return
	}
	if r.queue.n >= maxParked {
		l.refuse(h, dataplane.Overloaded)
		return
	}
	q := sh.newRequest(l, h, r)
	if !q.keep(crcs, payload, buf) {
		sh.drop(q, dataplane.Overloaded)
		return
	}
	r.queue.push(q)
	sh.pumpWrites(r)
}

// checkWrite checks what doesn't depend on the chunk's state.
func (sh *Shard) checkWrite(h *dataplane.Header, crcs, payload []byte) dataplane.Kind {
	switch {
	case !sh.leased():
		return dataplane.NoLease
	case h.Op == dataplane.OpFlush:
		return dataplane.OK
	case h.Length == 0:
		return dataplane.Malformed
	case h.Op == dataplane.OpZero:
		if !aligned(h.Offset, h.Length) || h.Flags&dataplane.FlagData != 0 {
			return dataplane.Invalid
		}
	case h.Flags&dataplane.FlagData == 0:
		return dataplane.Malformed
	case dataplane.Blocks(h.Offset, h.Length) > dataplane.PartSize/dataplane.BlockSize:
		return dataplane.TooLarge // an unaligned part that touches 17 blocks: split it
	case dataplane.CheckCRCs(crcs, h.Offset, payload) >= 0:
		sh.stats.CRCErrors++
		return dataplane.BadCRC
	}
	return dataplane.OK
}

// writeStatus checks a write against the state of an active chunk.
func (sh *Shard) writeStatus(r *replica, h *dataplane.Header) dataplane.Kind {
	switch {
	case h.Epoch > r.epoch:
		sh.ahead(r, h.Epoch)
		return dataplane.NotReady
	case !r.isHead():
		return dataplane.NotHead
	case h.Epoch < r.epoch:
		return dataplane.StaleEpoch
	case uint64(h.Seq) < r.fence && h.Op != dataplane.OpFlush && !sh.canary.NoFileFence:
		return dataplane.Fenced
	case len(r.members) < r.minimum:
		return dataplane.BelowMinimum
	}
	return dataplane.OK
}

// writable says that a write may get its seq now.
func (r *replica) writable() bool {
	return r.state == active && !r.settling() && !r.broken &&
		r.last-r.commit < dataplane.MaxInflightPerChunk
}

// pumpWrites starts what can be started of the chunk's queue, in order; a request overtakes only
// those it has no block in common with.
func (sh *Shard) pumpWrites(r *replica) {
	if r.pumping {
		r.pumpAgain = true
		return
	}
	r.pumping, r.pumpAgain = true, true
	for r.pumpAgain {
		r.pumpAgain = false
		sh.pumpOnce(r)
	}
	r.pumping = false
}

func (sh *Shard) pumpOnce(r *replica) {
	if r.state != active || r.broken {
		if r.queue.n > 0 || r.reads.n > 0 {
			sh.settle(r, nil)
		}
		return
	}
	var before *request
	for q := r.queue.first; q != nil; {
		next := q.next
		switch sh.tryWrite(r, q) {
		case tryBlocked:
			before = q
		case tryTaken:
			r.queue.remove(before, q)
			sh.startTaken(q)
		case tryStop:
			return
		}
		q = next
		if r.state != active || r.settling() {
			return
		}
	}
}

type tryResult uint8

const (
	tryBlocked tryResult = iota // stays in the queue; look at the next
	tryTaken                    // leaves the queue, to be started or refused with q.status
	tryStop                     // nothing can be started now
)

func (sh *Shard) tryWrite(r *replica, q *request) tryResult {
	if !r.writable() {
		return tryStop
	}
	if q.merging || r.queue.conflict(q) {
		return tryBlocked
	}
	if q.status == dataplane.OK {
		q.status = sh.writeStatus(r, &q.hdr)
	}
	switch {
	case q.status != dataplane.OK || q.hdr.Op == dataplane.OpFlush:
		return tryTaken
	case sh.tight():
		sh.stall(r)
		return tryStop
	case !q.merged && !aligned(q.off, q.length):
		if r.barrier(blockRange(q.off, q.length)) == 0 {
			sh.mergeRead(q)
		}
		return tryBlocked
	}
	return tryTaken
}

// startTaken goes on with a request that left the queue.
func (sh *Shard) startTaken(q *request) {
	switch {
	case q.status != dataplane.OK:
		sh.drop(q, q.status)
	case q.hdr.Op == dataplane.OpFlush:
		sh.clientFlush(q)
	default:
		buf := q.buf
		q.buf = nil
		sh.issue(q, buf)
		if buf != nil {
			buf.Release()
		}
	}
}

// conflict says whether a request before q in the queue has a block in common with it.
func (l *requestList) conflict(q *request) bool {
	off, length := blockRange(q.off, q.length)
	for o := l.first; o != q; o = o.next {
		if o.hdr.Op == dataplane.OpFlush {
			continue
		}
		ooff, olen := blockRange(o.off, o.length)
		if ooff < off+length && off < ooff+olen {
			return true
		}
	}
	return false
}

// mergeRead reads the blocks that q covers only in part. Everything earlier on them is committed.
func (sh *Shard) mergeRead(q *request) {
	off, length := blockRange(q.off, q.length)
	buf := sh.pool.Get(int(length))
	if buf == nil {
		sh.stall(q.r)
		return
	}
	q.merging = true
	q.app.Buf = buf // until merged
	q.rd.start(q.r, off/dataplane.BlockSize, int(length/dataplane.BlockSize), buf.Bytes()[:length])
}

// mergeDone lays the payload over what was read, and makes it a write of whole blocks.
func (sh *Shard) mergeDone(q *request) {
	r, buf := q.r, q.app.Buf
	q.merging = false
	q.app.Buf = nil
	if q.status != dataplane.OK { // refused meanwhile: refuseWaiting
		buf.Release()
		r.queue.take(q)
		sh.free(q)
		sh.pumpWrites(r)
		return
	}
	off, length := blockRange(q.off, q.length)
	bad := q.rd.bad
	for i := range int(length / dataplane.BlockSize) {
		at := off + uint32(i)*dataplane.BlockSize
		if q.off <= at && at+dataplane.BlockSize <= q.off+q.length {
			bad &^= 1 << i // covered as a whole: its old content doesn't matter
		}
	}
	if bad != 0 {
		sh.damaged(r, q.rd.from, &q.rd)
		q.status = dataplane.BadCRC
	}
	if bad != 0 || r.state != active || r.broken {
		buf.Release() // after a settling it is read again
		sh.pumpWrites(r)
		return
	}
	copy(buf.Bytes()[q.off-off:], q.data)
	q.buf.Release()
	q.buf, q.data = buf, buf.Bytes()[:length]
	q.off, q.length, q.merged = off, length, true
	q.crcLen = dataplane.PutCRCs(q.crcs[:], off, q.data)
	sh.pumpWrites(r)
}

// issue gives a write its seq and sends it to the other members and the own log. buf holds the
// payload if it isn't nil; the caller keeps its reference.
func (sh *Shard) issue(q *request, buf *uring.Buf) {
	r := q.r
	q.seq = r.last + 1
	q.phase = phaseFlight
	r.accept(q.seq, q.off, q.length)
	if r.copier != nil && !sh.canary.NoDirty {
		r.copier.wrote(q, q.hdr.Op == dataplane.OpZero)
	}
	if !r.flight.put(q) {
		panic("chunk: more writes in flight than the window")
	}
	zero := q.hdr.Op == dataplane.OpZero
	sh.stats.Writes++
	sh.stats.WriteBytes += uint64(q.length)
	if len(r.members) > 1 {
		sh.replicate(q, buf, zero)
	}
	sh.append(q, buf, zero)
	if r.memory {
		if q.waiting == 0 {
			sh.memberDone(q)
		}
		if r.last-r.commit >= flushAt {
			sh.flushRound(r)
		}
	}
}

// replicate sends a write to the other members: small ones to all, large ones along the chain.
func (sh *Shard) replicate(q *request, buf *uring.Buf, zero bool) {
	r := q.r
	h := &sh.out
	*h = dataplane.Header{Op: dataplane.OpReplicate, ReqID: q.id(), Chunk: r.id, Epoch: r.epoch,
		Offset: q.off, Length: q.length, Seq: q.seq,
		Aux: uint32(r.term)<<16 | uint32(q.seq-r.visible())}
	h.Flags = dataplane.FlagData
	if zero {
		h.Flags = dataplane.FlagZero
	}
	h.Flags |= q.hdr.Flags & dataplane.FlagFUA
	r.told, r.toldAt = r.visible(), sh.env.Now()
	to := r.members[1:]
	if q.length > dataplane.SmallWrite && !zero && len(to) > 1 && r.toldAt >= r.noChain {
		h.Flags |= dataplane.FlagChain
		to = to[:1]
	}
	for i := range to {
		if !sh.canary.AckEarly {
			q.waiting |= 1 << (i + 1)
			if h.Flags&dataplane.FlagChain == 0 {
				q.direct |= 1 << (i + 1)
			}
		}
		to[i].peer.send(h, q.crcs[:q.crcLen], q.data, buf)
	}
}

// append gives a write to the own log.
func (sh *Shard) append(q *request, buf *uring.Buf, zero bool) {
	r := q.r
	r.busy++
	q.local = 1
	q.began = sh.env.Now()
	sh.gauges.appendBegins(q.began)
	q.app.Record = ssdcache.Record{Kind: ssdcache.Data, Slot: r.slot, Chunk: r.id, Epoch: r.epoch,
		Seq: q.seq, Commit: r.commit, Offset: q.off, Length: q.length}
	q.app.CRCs, q.app.Data, q.app.Buf = q.crcs[:q.crcLen], q.data, buf
	if zero {
		q.app.Kind = ssdcache.Zero
		q.app.CRCs, q.app.Data, q.app.Buf = nil, nil, nil
	}
	if sh.bypass.takes(q, buf) {
		return
	}
	sh.log.Append(&q.app)
	q.data = nil // copied, or held through buf
}

// appendDone is called when the log has a write durable, in the order of appends.
func (sh *Shard) appendDone(q *request) {
	sh.gauges.appendEnds(sh.env.Now(), q.began)
	if q.app.Kind == ssdcache.Stored {
		sh.bypass.logged(q)
	}
	if q.app.Err != nil {
		sh.fail(q.app.Err)
		q.status = dataplane.IOError
	} else if q.seq != 0 && q.app.Seq == q.seq && q.app.Epoch == q.r.epoch &&
		q.seq > q.r.durable && q.seq <= q.r.last {
		before := q.r.durable
		q.r.durableTo(q.seq)
		sh.store.touch(q.r.slot)
		if q.r.memory {
			sh.logged(q.r, before)
		}
	}
	if q.app.Kind == ssdcache.Zero && q.app.Err == nil {
		// Not before: a checkpoint could make cleared words durable and a crash lose the record.
		q.zero.slot = q.r.slot
		q.zero.block = q.off / dataplane.BlockSize
		q.zero.end = (q.off + q.length) / dataplane.BlockSize
		sh.store.zero(&q.zero)
		return
	}
	sh.localDone(q)
}

// localDone counts what had to happen on this server.
func (sh *Shard) localDone(q *request) {
	if q.local--; q.local > 0 {
		return
	}
	r := q.r
	r.busy--
	switch q.phase {
	case phaseFlight:
		sh.memberDone(q)
	case phaseMember:
		sh.memberAck(q)
	case phaseDone:
		sh.free(q)
	default:
		panic("chunk: append done of a request in no phase")
	}
	if r.sealWait != nil && r.busy == 0 {
		done := r.sealWait
		r.sealWait = nil
		done()
	}
}

// memberAnswered is the answer of a peer to OpReplicate.
func (sh *Shard) memberAnswered(p *peer, h *dataplane.Header) {
	p.gauge.answered = sh.env.Now()
	q := sh.byID(h.ReqID)
	if q == nil || q.seq != h.Seq {
		return // the request was given up; a settling took care of it
	}
	if q.phase == phaseMember {
		sh.chainAnswered(q, p, h.Status)
		return
	}
	r := q.r
	if q.phase != phaseFlight {
		return
	}
	for i := range r.members {
		if r.members[i].peer != p || q.waiting&(1<<i) == 0 {
			continue
		}
		if h.Status != dataplane.OK {
			sh.replicaRefused(r, q, i, h.Status)
			return
		}
		q.waiting &^= 1 << i
		if q.direct&(1<<i) != 0 {
			p.gauge.waits.add(sh.env.Now() - q.began)
		}
		sh.memberDone(q)
		return
	}
}

// replicaRefused: a member didn't take a write. Whatever the reason, its history must be compared
// with ours before it can take another one.
func (sh *Shard) replicaRefused(r *replica, q *request, i int, status dataplane.Kind) {
	sh.slog.Info("member refused a write", "chunk", r.id, "seq", q.seq, "cs", r.members[i].cs,
		"status", status)
	if status == dataplane.Unreachable {
		r.noChain = sh.env.Now() + int64(chainBan)
	}
	if r.state == active {
		sh.settle(r, nil)
	}
}

// memberDone commits what all members have.
func (sh *Shard) memberDone(q *request) {
	r := q.r
	if !q.held() || q.waiting != 0 || q.status != dataplane.OK {
		return
	}
	if r.flight.get(r.visible()+1) == q {
		sh.advance(r)
	}
}

// advance moves the commit mark over all writes that every member has, and answers them.
func (sh *Shard) advance(r *replica) {
	for {
		q := r.flight.get(r.visible() + 1)
		if q == nil || !q.held() || q.waiting != 0 || q.status != dataplane.OK {
			break
		}
		r.advanceMark(q)
		r.flight.remove(q.seq)
		sh.finishWrite(q, dataplane.OK)
	}
	if len(r.members) > 1 && r.told < r.visible() || r.memory && r.commit < r.visible() {
		sh.tellSoon(r)
	}
	if r.reads.n > 0 {
		sh.pumpReads(r)
	}
	if r.queue.n > 0 {
		sh.pumpWrites(r)
	}
}

// finishWrite answers a write that left the flight and frees it, unless the log still uses it.
func (sh *Shard) finishWrite(q *request, status dataplane.Kind) {
	if status == dataplane.OK && !sh.leased() {
		status = dataplane.NoLease
	}
	sh.answer(q, status)
	q.phase = phaseDone
	if q.local == 0 {
		sh.free(q)
	}
}

// abandonFlight gives up the writes in flight of a chunk that somebody else settles: they may or
// may not survive, and the clients write them again. The commit mark says nothing of them: if an
// attempt to settle had activated this member, and ended after that, it is above them.
func (sh *Shard) abandonFlight(r *replica, status dataplane.Kind) {
	for _, q := range r.flight.slots {
		if q != nil && q.seq <= r.last {
			r.flight.remove(q.seq)
			sh.finishWrite(q, status)
		}
	}
}

// tellSoon makes sure that the members learn of the commit mark when writes cease.
func (sh *Shard) tellSoon(r *replica) {
	if r.inTell {
		return
	}
	r.inTell = true
	r.nextTell = nil
	if sh.tellFirst == nil {
		sh.tellFirst = r
		sh.env.Arm(&sh.tellTimer, int64(commitSilence))
	} else {
		sh.tellLast.nextTell = r
	}
	sh.tellLast = r
}

// tellCommit is the timer of tellSoon: it sends OpCommit for chunks that were silent long enough.
func (sh *Shard) tellCommit() {
	list := sh.tellFirst
	sh.tellFirst, sh.tellLast = nil, nil
	silent := sh.env.Now() - int64(commitSilence)
	for r := list; r != nil; {
		next := r.nextTell
		r.nextTell, r.inTell = nil, false
		switch {
		case r.state != active || !r.isHead() || r.allTold():
		case r.toldAt > silent && !r.untold():
			sh.tellSoon(r)
		default:
			h := &sh.out
			*h = dataplane.Header{Op: dataplane.OpCommit, Chunk: r.id, Epoch: r.epoch, Seq: r.visible(),
				Aux: uint32(r.visible() - r.commit)}
			for _, m := range r.members[1:] {
				m.peer.send(h, nil, nil, nil)
			}
			ceased := r.toldAt <= silent
			r.told, r.toldCommit, r.toldAt = r.visible(), r.commit, sh.env.Now()
			switch {
			case !r.memory:
			case ceased:
				sh.flushRound(r)
			default:
				sh.tellSoon(r)
			}
		}
		r = next
	}
}

func aligned(off, length uint32) bool {
	return off%dataplane.BlockSize == 0 && length%dataplane.BlockSize == 0
}

// blockRange widens a range to whole blocks.
func blockRange(off, length uint32) (uint32, uint32) {
	first := off &^ (dataplane.BlockSize - 1)
	end := (off + length + dataplane.BlockSize - 1) &^ (dataplane.BlockSize - 1)
	return first, end - first
}
