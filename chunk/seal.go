package chunk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// What a member does when a coordinator settles a chunk: SEAL, then patches, then ACTIVATE. Each
// step belongs to whoever sealed last, told apart by connection (or settler, in this process): a
// coordinator whose seal was taken over by another one, or whose member restarted in between, is
// refused, and starts anew.

// seal stops the chunk in every epoch up to the given one. then is called, unless another seal
// comes before, once everything that was accepted is durable: only then what it says stays true.
func (sh *Shard) seal(r *replica, epoch dataplane.Epoch, by any, then func()) dataplane.Kind {
	if sh.dead != nil {
		return dataplane.IOError
	}
	if epoch < r.epoch || r.state == sealed && epoch < r.sealEpoch {
		return dataplane.StaleEpoch
	}
	if r.slot == noSlot && sh.lease.Load() == 0 {
		// The list of chunks with which this process registers may be on its way. A new chunk that
		// isn't on it, and is written to by then, would be taken for lost and be taken from us.
		return dataplane.NotReady
	}
	own := r.settler != nil && by == any(r.settler)
	if c := r.copier; c != nil && c.started && !(own && r.settler.join == c) {
		c.end("the chunk is being settled")
	}
	if s := r.settler; s != nil && !own {
		s.owes = false // another coordinator will activate them all; two would stop each other
	}
	sh.slog.Debug("sealed", "chunk", r.id, "epoch", epoch, "own", own)
	if r.isHead() {
		if !own {
			sh.abandonFlight(r, dataplane.NotReady)
			sh.refuseFlushes(r, dataplane.NotReady)
			r.askedAt = sh.env.Now() // it isn't disturbed at once: it may be about to lead
		}
	} else {
		sh.abandonHeld(r)
	}
	sh.endRound(r)
	overtaken := !own && r.sealWait != nil && r.settler != nil && r.sealer == any(r.settler)
	r.state, r.sealer, r.sealEpoch = sealed, by, epoch
	if !own {
		r.sealedAt = sh.env.Now()
		sh.refuseReads(r, dataplane.NotReady)
	}
	r.breakSeal()
	if overtaken { // it would wait for its own seal for ever
		r.settler.again("seal", dataplane.E("seal here", dataplane.Conflict, nil))
	}
	if r.busy == 0 || sh.canary.SealEarly {
		then()
		return dataplane.OK
	}
	r.sealWait = then
	return dataplane.OK
}

// breakSeal ends the promise to a coordinator that another one has overtaken, or whose chunk isn't
// served any more. He is told at once: what he sealed elsewhere waits for him.
func (r *replica) breakSeal() {
	over, waits := r.sealOver, r.sealWait != nil
	r.sealWait, r.sealOver = nil, nil
	if waits && over != nil {
		over()
	}
}

// tailOf is what a replica answers to a SEAL.
func tailOf(r *replica) memberTail {
	if r.slot == noSlot {
		return memberTail{unknown: true}
	}
	if r.copying() {
		return memberTail{ext: []extent{{0, 0, dataplane.ChunkSize}}} // anything may be missing
	}
	t := memberTail{epoch: r.epoch, last: r.last, commit: r.commit, life: r.life,
		unsure: r.unsure != 0 && r.unsure == r.epoch}
	t.ext = append(t.ext, r.patched...)
	t.ext = append(t.ext, r.uncommitted()...)
	return t
}

const sealExtentSize = 16

// sealFrame takes OpSeal.
func (sh *Shard) sealFrame(l *link, h *dataplane.Header) {
	if h.Flags&dataplane.FlagRecovery != 0 {
		sh.sealTarget(l, h)
		return
	}
	r := sh.find(h.Chunk)
	if r == nil {
		l.refuse(h, dataplane.Overloaded)
		return
	}
	q := *h
	status := sh.seal(r, h.Epoch, l, func() { sh.sealReply(l, &q, r) })
	if status != dataplane.OK {
		l.refuse(h, status)
	} else if r.sealWait != nil {
		r.sealOver = func() { l.refuse(&q, dataplane.Conflict) }
	}
}

func (sh *Shard) sealReply(l *link, h *dataplane.Header, r *replica) {
	sh.replyTail(l, h, tailOf(r))
}

// replyTail answers a SEAL.
func (sh *Shard) replyTail(l *link, h *dataplane.Header, t memberTail) {
	if !l.open {
		return
	}
	a := h.Reply(dataplane.OK)
	if t.unknown {
		a.Status = dataplane.UnknownChunk
		l.c.Send(&a, nil, nil)
		return
	}
	if t.last-t.commit > 0xffff { // not so many are ever in flight: everything is copied
		t.commit, t.ext = t.last-0xffff, []extent{{0, 0, dataplane.ChunkSize}}
	}
	a.Epoch, a.Seq, a.Aux = t.epoch, t.last, uint32(t.life)<<16|uint32(t.last-t.commit)
	if t.unsure {
		a.Flags |= dataplane.FlagRecovery
	}
	if room := min(int(h.Aux), dataplane.PartSize) / sealExtentSize; len(t.ext) > room {
		t.ext = append(t.ext[:0], bounding(t.ext)) // copied as a whole, which is always right
	}
	if len(t.ext) == 0 {
		l.c.Send(&a, nil, nil)
		return
	}
	payload := make([]byte, 0, sealExtentSize*len(t.ext))
	le := binary.LittleEndian
	for _, e := range t.ext {
		payload = le.AppendUint64(payload, uint64(e.seq))
		payload = le.AppendUint32(payload, e.off)
		payload = le.AppendUint32(payload, e.length)
	}
	a.Flags |= dataplane.FlagData
	a.Offset, a.Length = 0, uint32(len(payload))
	l.c.Send(&a, crcsOf(payload), payload)
}

// parseSeal is the coordinator's side of sealReply.
func parseSeal(h *dataplane.Header, crcs, payload []byte) (memberTail, error) {
	if h.Status == dataplane.UnknownChunk {
		return memberTail{unknown: true}, nil
	}
	if h.Status != dataplane.OK {
		return memberTail{}, dataplane.E("seal", h.Status, nil)
	}
	t := memberTail{epoch: h.Epoch, last: h.Seq, commit: h.Seq - behind(h), life: uint16(h.Aux >> 16),
		unsure: h.Flags&dataplane.FlagRecovery != 0}
	if behind(h) > h.Seq || len(payload)%sealExtentSize != 0 ||
		h.Flags&dataplane.FlagData != 0 && dataplane.CheckCRCs(crcs, 0, payload) >= 0 {
		return t, dataplane.E("seal", dataplane.Malformed, nil)
	}
	le := binary.LittleEndian
	for p := payload; len(p) > 0; p = p[sealExtentSize:] {
		e := extent{dataplane.Seq(le.Uint64(p)), le.Uint32(p[8:]), le.Uint32(p[12:])}
		if e.seq > t.last || e.off > dataplane.ChunkSize || e.length > dataplane.ChunkSize-e.off ||
			!aligned(e.off, e.length) {
			return t, dataplane.E("seal", dataplane.Malformed, fmt.Errorf("extent %v", e))
		}
		t.ext = append(t.ext, e)
	}
	return t, nil
}

func crcsOf(payload []byte) []byte {
	crcs := make([]byte, 4*dataplane.Blocks(0, uint32(len(payload))))
	dataplane.PutCRCs(crcs, 0, payload)
	return crcs
}

// patchFrame takes OpPatch: blocks from the member with the longest history.
func (sh *Shard) patchFrame(l *link, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	if sh.patchTarget(l, h, crcs, payload, buf) {
		return
	}
	r := sh.chunks[h.Chunk]
	switch {
	case r == nil || r.state != sealed || r.sealer != any(l) || sh.dead != nil:
		l.refuse(h, dataplane.NotReady)
		return
	case h.Length == 0 || !aligned(h.Offset, h.Length) || h.Flags&dataplane.FlagData == 0:
		l.refuse(h, dataplane.Malformed)
		return
	case dataplane.CheckCRCs(crcs, h.Offset, payload) >= 0:
		l.refuse(h, dataplane.BadCRC)
		return
	case sh.choked(r), r.copying() && sh.store.writesTo(r.slot, h.Offset/dataplane.BlockSize,
		(h.Offset+h.Length)/dataplane.BlockSize):
		l.refuse(h, dataplane.Overloaded)
		return
	case !sh.makeSlot(r):
		l.refuse(h, dataplane.NoSpace)
		return
	}
	r.sealedAt = sh.env.Now()
	q := sh.newRequest(l, h, r)
	q.phase = phaseMember
	q.crcLen = copy(q.crcs[:], crcs)
	q.data = payload
	r.patch(q.off, q.length)
	sh.store.touch(r.slot)
	sh.append(q, buf, false)
}

// makeSlot gives r a slot if it has none.
func (sh *Shard) makeSlot(r *replica) bool {
	if r.slot != noSlot {
		return true
	}
	slot, ok := sh.store.take(r)
	if !ok || sh.full.Load() {
		if ok {
			sh.store.give(slot)
		}
		return false
	}
	sh.dropBefore(r.id)
	r.slot = slot
	if !sh.canary.ForgetSealed {
		delete(sh.strangers, r.id)
	}
	return true
}

// appendRecord appends a record without data; then (may be nil) is called when it is durable.
func (sh *Shard) appendRecord(rec ssdcache.Record, then func(error)) {
	began := sh.env.Now()
	sh.gauges.appendBegins(began)
	sh.log.Append(&ssdcache.Append{Record: rec, Done: func(a *ssdcache.Append) {
		sh.gauges.appendEnds(sh.env.Now(), began)
		if a.Err != nil {
			sh.fail(a.Err)
		}
		if then != nil {
			then(a.Err)
		}
	}})
}

// activateFrame takes OpActivate.
func (sh *Shard) activateFrame(l *link, h *dataplane.Header, crcs, payload []byte) {
	var cfg control.ChunkConfig
	r := sh.chunks[h.Chunk]
	switch {
	case r == nil || r.state != sealed || r.sealer != any(l):
		l.refuse(h, dataplane.NotReady)
		return
	case h.Flags == 0 && h.Length == 0:
		sh.holdTarget(l, h, r)
		return
	case h.Flags&dataplane.FlagData == 0 || dataplane.CheckCRCs(crcs, 0, payload) >= 0 ||
		h.Flags&dataplane.FlagRecovery != 0 && len(payload) < dirtyMapSize:
		l.refuse(h, dataplane.Malformed)
		return
	}
	behind := len(payload)
	if h.Flags&dataplane.FlagRecovery != 0 {
		behind -= dirtyMapSize
	}
	if control.Unmarshal(payload[:behind], &cfg) != nil || cfg.Chunk != h.Chunk ||
		cfg.Epoch != h.Epoch {
		l.refuse(h, dataplane.Malformed)
		return
	}
	q := *h
	o := activateOrder{cfg: &cfg, seq: h.Seq, term: uint16(h.Aux), life: uint16(h.Aux >> 16),
		dirty: decodeDirty(payload[behind:], cfg.Epoch)}
	sh.activate(r, o, l, func(err error) {
		l.reply(&q, dataplane.KindOf(err))
	})
}

// maxSeq keeps arithmetic on seqs far from wrapping around: at a million writes a second a chunk
// would get there in 100 000 years.
const maxSeq = 1 << 62

// activateOrder is what an OpActivate says.
type activateOrder struct {
	cfg   *control.ChunkConfig
	seq   dataplane.Seq
	term  uint16
	life  uint16    // write-ack=memory: memory.go
	dirty *dirtyMap // for a member that was copied to; may be nil
}

// activate starts the chunk at the configuration's epoch, with everything up to seq here and
// committed; done is called when that is durable. by must be who sealed it.
func (sh *Shard) activate(r *replica, o activateOrder, by any, done func(error)) {
	cfg, seq, term, life := o.cfg, o.seq, o.term, o.life
	fail := func(k dataplane.Kind, err error) {
		done(dataplane.E("activate chunk "+r.id.String(), k, err))
	}
	switch {
	case sh.dead != nil:
		fail(dataplane.IOError, sh.dead)
		return
	case r.state != sealed || r.sealer != by:
		fail(dataplane.NotReady, errors.New("not sealed by this coordinator"))
		return
	case seq > maxSeq:
		fail(dataplane.Malformed, fmt.Errorf("seq %d", seq))
		return
	case checkLife(cfg, life) != nil:
		fail(dataplane.Malformed, checkLife(cfg, life))
		return
	case cfg.Epoch < r.sealEpoch || cfg.Epoch < r.epoch:
		fail(dataplane.StaleEpoch, nil)
		return
	case cfg.Epoch == r.epoch && seq < r.last:
		fail(dataplane.Conflict, fmt.Errorf("seq %d, but %d is here", seq, r.last))
		return
	case !sh.makeSlot(r):
		fail(dataplane.NoSpace, nil)
		return
	case !r.configure(sh, cfg):
		fail(dataplane.Invalid, errors.New("this server is not a member"))
		return
	}
	if r.direct && !r.kept {
		sh.keepDirect(r, func(err error) {
			if err != nil {
				fail(dataplane.IOError, err)
				return
			}
			sh.activate(r, o, by, done)
		})
		return
	}
	// What is said here is true already, whether the record becomes durable or not: all members
	// hold everything up to seq, and the metadata servers have committed the epoch.
	r.history.activate(cfg.Epoch, seq, r.dirtyFor(cfg.Epoch, seq, isShort(cfg), o.dirty))
	r.live(cfg, life)
	r.claimed = 0
	r.sealEpoch, r.term, r.blind = cfg.Epoch, term, sh.canary.NoHistory
	sh.store.touch(r.slot)
	rec := ssdcache.Record{Kind: ssdcache.Meta, Slot: r.slot, Chunk: r.id, Epoch: cfg.Epoch, Seq: seq,
		Commit: seq, Meta: []byte{metaActivate}}
	if r.direct {
		rec.Meta[0], r.direct = metaFilled, false
	}
	if r.dirty != nil {
		rec.Meta = r.dirty.append(rec.Meta)
	}
	finish := func() {
		if r.gone || r.state != sealed || r.sealer != by {
			fail(dataplane.NotReady, errors.New("sealed by another coordinator meanwhile"))
			return
		}
		r.state, r.sealer = active, nil
		// A head that others activated settles once more before it writes: over its own
		// connections, of which it then knows that each member was sealed over it.
		r.broken = r.isHead() && (r.settler == nil || by != any(r.settler))
		r.told, r.toldAt = seq, sh.env.Now()
		if sh.tellActive != nil {
			sh.tellActive(r.id)
		}
		sh.meetNext(r, func() { done(nil) })
		sh.activated(r)
	}
	if sh.canary.VolatileActivate {
		finish()
		return
	}
	sh.appendRecord(rec, func(err error) {
		if err != nil {
			fail(dataplane.IOError, err)
			return
		}
		finish()
	})
}

// meetNext connects to the next member of the chain, or finds that it can't, before the first write
// comes along. That can take meetTimeout, as when a cut link to a new member has only just come
// back: the coordinator waits for it, reads of this replica don't.
func (sh *Shard) meetNext(r *replica, then func()) {
	if r.self < 1 || r.self+1 >= len(r.members) || r.members[r.self+1].peer.open {
		then()
		return
	}
	next := r.members[r.self+1].peer
	sh.env.Disarm(&next.redial) // others have reached it: now is better than after a pause
	next.callWithin(meetTimeout, dataplane.Header{Op: dataplane.OpPing}, nil, nil,
		func(*dataplane.Header, []byte, []byte, *uring.Buf, error) { then() })
}

// activated goes on with what waited for the chunk.
func (sh *Shard) activated(r *replica) {
	sh.pumpReads(r)
	if r.settler == nil {
		sh.pumpWrites(r)
	}
}

// sealerLost: a coordinator's connection is gone, with what it sealed and never activated. Such
// chunks stay sealed; what was only asked about is forgotten.
func (sh *Shard) sealerLost(l *link) {
	for id, r := range sh.strangers {
		if r.sealer == any(l) {
			r.sealer = nil
			if r.settler == nil && r.copier == nil && r.queue.n == 0 && r.reads.n == 0 {
				delete(sh.strangers, id)
				delete(sh.chunks, id)
			}
		}
	}
}
