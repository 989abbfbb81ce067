package chunk

import (
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// The side of a copy that gets it. What it holds is believed by nobody before it is activated:
//
//	kind        what is here                     | at a SEAL it says       | after a restart
//	fresh       a slot without epoch; parts go   | anything may be missing | as if it weren't
//	            straight to the store            |                         | here, or the same
//	unfinished  an old replica, some parts       | anything may be         | the same: the log
//	            newer; parts go through the log  | missing; to a head that | and the slot table
//	                                             | copies again: what it   | say so
//	                                             | was                     |
//	held        a complete copy, see hold.go     | epoch and seq; all of   | the same
//	                                             | it was touched          |

// copying says whether this replica is a copy that was never activated. Whatever it holds, some of
// it may be missing.
func (r *replica) copying() bool {
	return r.slot != noSlot && (r.epoch == 0 || r.unfinished)
}

// heldEpoch is what the metadata servers are told: 0 for a copy that was never activated.
func (r *replica) heldEpoch() dataplane.Epoch {
	if r.unfinished {
		return 0
	}
	return r.epoch
}

// sealTarget takes SEAL|FlagRecovery: this server isn't a member at the committed epoch h.Epoch,
// and a copy of the chunk is coming. What is here of it is older, or an unfinished copy.
func (sh *Shard) sealTarget(l *link, h *dataplane.Header) {
	r := sh.chunks[h.Chunk]
	switch {
	case sh.dead != nil:
		l.refuse(h, dataplane.IOError)
		return
	case r != nil && !r.copyable(h.Epoch):
		l.refuse(h, dataplane.StaleEpoch)
		return
	case sh.lease.Load() == 0:
		l.refuse(h, dataplane.NotReady) // see seal: the inventory of its registration is on its way
		return
	case !sh.log.Room():
		l.refuse(h, dataplane.Overloaded)
		return
	}
	asked := dirtyMap{since: dataplane.Epoch(h.Aux), mark: h.Seq}
	if h.Aux != 0 && r != nil && r.slot != noSlot && asked.covers(r.epoch, r.last) {
		sh.sealReturned(l, h, r)
		return
	}
	sh.sealFresh(l, h, r)
}

// copyable says whether a copy made at the epoch may take the place of what is here. Of that epoch
// itself are a held copy, whose addition wasn't committed, and what is left of one after another
// copy to here was begun.
func (r *replica) copyable(epoch dataplane.Epoch) bool {
	return epoch >= r.sealEpoch && (epoch > r.epoch || epoch == r.epoch && (r.held() || r.unfinished))
}

// sealFresh drops what is here and takes a fresh slot.
func (sh *Shard) sealFresh(l *link, h *dataplane.Header, old *replica) {
	q := *h
	var r *replica // nil: refused
	sh.forget(h.Chunk, func(err error) {
		switch {
		case r == nil:
		case err != nil:
			l.reply(&q, dataplane.IOError)
		case r.state != sealed || r.sealer != any(l) || r.gone:
			l.reply(&q, dataplane.NotReady)
		default:
			l.reply(&q, dataplane.OK) // nothing can bring the old replica back
		}
	})
	fresh := sh.find(h.Chunk)
	if fresh == nil {
		l.refuse(h, dataplane.Overloaded)
		return
	}
	if !sh.makeSlot(fresh) {
		sh.forgetStranger(fresh)
		l.refuse(h, dataplane.NoSpace)
		return
	}
	fresh.state, fresh.sealer, fresh.sealEpoch = sealed, l, h.Epoch
	sh.pace.watch()
	if old == nil || old.slot == noSlot {
		l.reply(h, dataplane.OK)
		return
	}
	r = fresh
}

// sealReturned keeps what is here, of a former member, for a copy of what changed. Before anything
// of it is overwritten it is on record that it isn't to be believed.
func (sh *Shard) sealReturned(l *link, h *dataplane.Header, r *replica) {
	sh.unserve(r)
	q := *h
	q.Aux = dataplane.PartSize
	r.state, r.sealer, r.sealEpoch = sealed, l, h.Epoch
	sh.pace.watch()
	answer := func() {
		if r.state != sealed || r.sealer != any(l) || r.gone {
			l.reply(&q, dataplane.NotReady)
			return
		}
		sh.replyTail(l, &q, memberTail{epoch: r.epoch, last: r.last, commit: r.commit,
			ext: slices.Concat(r.patched, r.uncommitted())})
	}
	r.sealWait = func() {
		if r.unfinished {
			answer()
			return
		}
		r.unfinished = !sh.canary.TrustPartial
		sh.store.touch(r.slot)
		sh.appendRecord(ssdcache.Record{Kind: ssdcache.Meta, Slot: r.slot, Chunk: r.id,
			Epoch: r.epoch, Seq: r.last, Commit: r.commit, Meta: []byte{metaUnfinished}},
			func(err error) {
				if err != nil {
					l.reply(&q, dataplane.IOError)
					return
				}
				answer()
			})
	}
	r.sealOver = func() { l.refuse(&q, dataplane.Conflict) }
	if r.busy == 0 {
		f := r.sealWait
		r.sealWait = nil
		f()
	}
}

// unserve ends all service of a replica; it stays on disk.
func (sh *Shard) unserve(r *replica) {
	if r.settler != nil {
		r.settler.end()
	}
	if r.copier != nil {
		r.copier.end("this server isn't a member any more")
	}
	sh.refuseAll(r, dataplane.UnknownChunk)
	if !r.isHead() {
		sh.abandonHeld(r)
	}
	r.breakSeal()
	r.state, r.sealer = unsettled, nil
}

// RetireHeld is for the answer to a registration: this server isn't a member of those chunks any
// more, but may be again. What it holds stays, and serves nobody. held is the inventory that was
// sent: a chunk that has come anew since then isn't meant.
func (sh *Shard) RetireHeld(ids []dataplane.ChunkID, held []control.HeldChunk) {
	epochs := make(map[dataplane.ChunkID]dataplane.Epoch, len(held))
	for _, h := range held {
		epochs[h.Chunk] = h.Epoch
	}
	for _, id := range ids {
		if r := sh.chunks[id]; r != nil && !r.copying() && r.epoch == epochs[id] {
			sh.unserve(r)
		}
	}
}

// ForgetHeld is Forget for the answer to a registration: held is the inventory that was sent. A
// chunk that has come anew since then stays.
func (sh *Shard) ForgetHeld(ids []dataplane.ChunkID, held []control.HeldChunk) {
	epochs := make(map[dataplane.ChunkID]dataplane.Epoch, len(held))
	for _, h := range held {
		epochs[h.Chunk] = h.Epoch
	}
	for _, id := range ids {
		if r := sh.chunks[id]; r != nil && r.heldEpoch() == epochs[id] {
			sh.forget(id, nil)
		}
	}
}

// ForgetPush deletes chunks that no longer exist, or of which this server isn't a member any more
// since the epochs given: then what is newer, or a copy that is coming, stays. A head that gave its
// place up activates the others first.
func (sh *Shard) ForgetPush(p *control.ForgetPush) {
	if sh.stopping {
		return // the next start is told
	}
	for i, id := range p.Chunks {
		r := sh.chunks[id]
		switch {
		case r == nil:
		case i >= len(p.Epochs) || p.Epochs[i] == 0:
			sh.forget(id, nil)
		case r.epoch >= p.Epochs[i] || r.copying():
		case r.settler != nil && r.settler.begun():
			r.settler.forget = p.Epochs[i]
		default:
			sh.forget(id, nil)
		}
	}
}

// patchTarget takes a patch of a copy that isn't an ordinary one: a part for a fresh slot, which
// goes to the store, or the wish to make those durable. False: it is an ordinary one.
func (sh *Shard) patchTarget(l *link, h *dataplane.Header, crcs, payload []byte,
	buf *uring.Buf) bool {
	r := sh.chunks[h.Chunk]
	switch {
	case r == nil || r.state != sealed || r.sealer != any(l) || sh.dead != nil || !r.copying():
		return false
	case h.Length == 0 && h.Flags&dataplane.FlagData == 0:
		sh.syncTarget(l, h, r)
		return true
	case !r.fresh() || buf == nil || len(payload) < directPatch || !aligned(h.Offset, h.Length) ||
		h.Offset%dataplane.PartSize+h.Length > dataplane.PartSize ||
		dataplane.CheckCRCs(crcs, h.Offset, payload) >= 0:
		return false
	}
	first, n := h.Offset/dataplane.BlockSize, h.Length/dataplane.BlockSize
	for b := first; b < first+n; b++ {
		if _, logged := sh.log.Lookup(r.slot, b); logged {
			return false
		}
	}
	if sh.log.InWriteBack(r.slot, first, n) || sh.store.writesTo(r.slot, first, first+n) ||
		sh.store.writes >= copyWrites {
		l.refuse(h, dataplane.Overloaded)
		return true
	}
	sh.writeTarget(l, h, r, crcs, payload, buf)
	return true
}

// fresh says whether parts may go to the store: nothing of the chunk was ever anywhere else, and
// nobody has asked yet to have the parts before made durable.
func (r *replica) fresh() bool { return r.slot != noSlot && r.epoch == 0 && !r.flushed }

// writeTarget writes a part to the store. Nothing that is acknowledged to a client depends on it
// before the flush.
func (sh *Shard) writeTarget(l *link, h *dataplane.Header, r *replica, crcs, payload []byte,
	buf *uring.Buf) {
	q := *h
	buf.Retain()
	r.refs++
	r.busy++
	r.direct = true
	r.directs++
	l.inflight++
	sh.pace.spent += uint64(len(payload))
	sh.pace.note(r)
	sh.store.WriteBack(&ssdcache.WriteBack{Slot: r.slot, Block: h.Offset / dataplane.BlockSize,
		Blocks: len(payload) / dataplane.BlockSize, Data: [][]byte{payload},
		CRCs: slices.Clone(crcs), Done: func(w *ssdcache.WriteBack) {
			buf.Release()
			r.directs--
			a := q.Reply(dataplane.KindOf(w.Err))
			a.Aux = sh.pace.allowance()
			l.finish(&a)
			sh.unbusy(r)
			sh.release(r)
		}})
}

// syncTarget makes the parts in the store durable.
func (sh *Shard) syncTarget(l *link, h *dataplane.Header, r *replica) {
	q := *h
	if !r.direct || r.kept {
		r.flushed = true
		l.reply(&q, dataplane.OK)
		return
	}
	sh.keepDirect(r, func(err error) { l.reply(&q, dataplane.KindOf(err)) })
}

// keepDirect makes durable what was written straight to the store; what comes from now on goes to
// the log. A write that is still under way, as a client's that the head passes on beside the copy,
// isn't covered: then it is done once more at the activation, before which all are answered.
func (sh *Shard) keepDirect(r *replica, done func(error)) {
	r.flushed = true
	whole := r.directs == 0
	r.refs++
	r.busy++
	sh.store.flush(func(err error) {
		r.kept = r.kept || err == nil && whole
		done(err)
		sh.unbusy(r)
		sh.release(r)
	})
}

// unbusy ends something that this server's log or store did for the replica.
func (sh *Shard) unbusy(r *replica) {
	r.busy--
	if r.sealWait != nil && r.busy == 0 {
		done := r.sealWait
		r.sealWait = nil
		done()
	}
}
