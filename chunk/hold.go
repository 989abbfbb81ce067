package chunk

import (
	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// What is on record before the metadata servers are asked to add a member or to move one.
//
// The head has on record that it asks (unsure). The request may be on its way, or in a queue, when
// the head's process ends; committed late, it would make a member of one that lacks what the next
// process has acknowledged without it. That process takes an epoch of its own before it writes,
// whether it has heard of the request or not, and the change can't be committed any more.
//
// If the members that had the chunk before are lost for good between the change and the
// activations, what the target holds is all that is left: in a move of one of two copies the member
// that left forgets, and only the head remains; a chunk that is down to one member has just that
// one, until the one that is added is activated; and who hands the only copy over forgets it. So
// before the metadata servers are asked the
// target makes its copy one that outlives its process: held.
//
//	a held copy     is of the epoch before the change, complete up to the last seq of it at which
//	                all members are sealed
//	at a SEAL       it says so, and that all of the chunk was touched: it is brought to the history
//	                of a member that got on, and is the one to copy from if nobody else is left
//	must not happen that writes are acknowledged without it in the epoch that it is of, and the
//	                change is committed after that: unsure
//	afterwards      a server that isn't a member is told to forget it, or it is copied to anew

// hold makes a complete copy one that outlives the process.
func (h *history) hold() { h.patch(0, dataplane.ChunkSize) }

// held says whether this is such a copy, or as little to be relied on.
func (h *history) held() bool {
	return !h.unfinished && bounding(h.patched).length == dataplane.ChunkSize
}

// beforeAsking is the head's part, before the members are changed.
func (s *settler) beforeAsking(next func()) {
	if s.join == nil {
		next()
		return
	}
	sh, r := s.sh, s.r
	sh.store.touch(r.slot)
	var list []control.CSAddr
	if !sh.canary.ForgetAsked && !sh.canary.TrustPartial {
		list = append(list, control.CSAddr{CS: sh.id})
	}
	if !sh.canary.NoHold && (s.join.leaving != 0 || !sh.canary.NoHoldAdded) {
		list = append(list, s.join.target)
	}
	s.each("put on record what is asked for", list,
		func(_ int, p *peer, done func(error)) {
			h := dataplane.Header{Op: dataplane.OpActivate, Chunk: r.id, Epoch: s.cfg.Epoch,
				Seq: s.verdict.last, Aux: uint32(s.lifeFor()) << 16}
			p.call(h, nil, nil, func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
				// Malformed: a program that knows of no held copies. The only copy isn't given up to it.
				if err == nil && a.Status != dataplane.OK &&
					(a.Status != dataplane.Malformed || s.join.leaving != 0 && len(s.cfg.Members) == 1) {
					err = dataplane.E("hold the copy at "+p.String(), a.Status, nil)
				}
				done(err)
			})
		}, func(_ int, done func(error)) {
			sh.appendRecord(ssdcache.Record{Kind: ssdcache.Meta, Slot: r.slot, Chunk: r.id,
				Epoch: s.cfg.Epoch, Meta: []byte{metaUnsure}}, done)
		}, next)
}

// holdTarget is the target's part.
func (sh *Shard) holdTarget(l *link, h *dataplane.Header, r *replica) {
	q := *h
	switch {
	case sh.dead != nil:
		l.refuse(h, dataplane.IOError)
		return
	case !r.copying() || h.Epoch != r.sealEpoch || h.Epoch <= r.epoch || h.Seq > maxSeq:
		l.refuse(h, dataplane.Conflict)
		return
	case r.direct && !r.kept:
		sh.keepDirect(r, func(err error) {
			switch {
			case err != nil:
				l.reply(&q, dataplane.IOError)
			case r.gone || r.state != sealed || r.sealer != any(l):
				l.reply(&q, dataplane.NotReady)
			default:
				sh.holdTarget(l, &q, r)
			}
		})
		return
	}
	r.history.activate(h.Epoch, h.Seq, nil)
	r.hold()
	// Nothing that was acknowledged is lost if this is all that is left: the life goes on, as long
	// as this process has it.
	r.life = uint16(h.Aux >> 16)
	sh.store.touch(r.slot)
	rec := ssdcache.Record{Kind: ssdcache.Meta, Slot: r.slot, Chunk: r.id, Epoch: h.Epoch,
		Seq: h.Seq, Commit: h.Seq, Meta: []byte{metaActivate, metaHeld}}
	if r.direct {
		rec.Meta[0], r.direct = metaFilled, false
	}
	sh.appendRecord(rec, func(err error) { l.reply(&q, dataplane.KindOf(err)) })
}
