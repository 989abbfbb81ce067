package chunk

import (
	"encoding/binary"
	"fmt"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// A damaged block of a chunk that has fewer members than it should may still be at former members,
// which keep what they hold until their places are taken. They are asked by a salvage read, which
// any replica answers in any state, with what it has; who asks decides whether that is the content
// that was lost, and takes nothing else:
//
//	checksum expected | content is taken if
//	------------------+---------------------------------------------------------------------------
//	known             | it has that checksum: what every read relies on (I9). When the former
//	                  | member left, and what was written since, doesn't matter
//	lost              | the dirty map covers the former member's history (dirty.go), and the
//	                  | granule is neither in the map nor touched there out of order
//
// What comes of the search, and what a client's read is answered meanwhile:
//
//	found                                              | repaired      | NotReady: it asks again
//	somebody who may have it doesn't answer, or the    | missing, open | NotReady: it waits,
//	search goes on                                     |               | as writes do
//	everybody has answered, and has other content or a | missing, sure | BadCRC: the read fails
//	damaged one too                                    |               |
//
// Whoever may have it is what the metadata servers say: former members that weren't dropped and
// whose disks haven't failed. So it is people who give a block up, by removing the server for good.

// missingBlock is a damaged block that was looked for in vain. It counts as long as the place is
// the same: a write of the block ends it.
type missingBlock struct {
	block uint32
	epoch dataplane.Epoch
	place blockPlace
	sure  bool  // nobody can have it
	again int64 // not looked for before
}

// missing returns what is known of a block that was looked for in vain; nil: nothing.
func (sh *Shard) missing(r *replica, block uint32) *missingBlock {
	for i := range r.lostBlocks {
		m := &r.lostBlocks[i]
		if m.block == block && m.epoch == r.epoch && m.place == sh.placeOf(r, block) {
			return m
		}
	}
	return nil
}

// miss notes that a block was looked for in vain. It returns whether that, or how sure it is, is
// new.
func (sh *Shard) miss(r *replica, x missingBlock) (news bool) {
	if m := sh.missing(r, x.block); m != nil {
		news = m.sure != x.sure
		*m = x
		return news
	}
	keep := r.lostBlocks[:0]
	for _, m := range r.lostBlocks {
		if m.block != x.block && m.epoch == r.epoch {
			keep = append(keep, m)
		}
	}
	if len(keep) == maxMissing {
		keep = append(keep[:0], keep[1:]...)
	}
	r.lostBlocks = append(keep, x)
	return true
}

// readStatus is what a client's read of damaged blocks is answered. As long as a chunk with too
// few members may get them from a former one the read isn't to fail.
func (sh *Shard) readStatus(q *request) dataplane.Kind {
	r := q.r
	if q.hdr.Flags&dataplane.FlagRecovery != 0 || q.link.role == dataplane.RoleCS || !r.short() ||
		sh.canary.NoSalvage {
		return dataplane.BadCRC
	}
	for i := range q.rd.n {
		if q.rd.bad>>i&1 == 0 {
			continue
		}
		if m := sh.missing(r, q.rd.from+uint32(i)); m == nil || !m.sure {
			return dataplane.NotReady
		}
	}
	return dataplane.BadCRC
}

// short says whether the chunk has fewer members than it should, so that there may be former ones.
func (r *replica) short() bool { return len(r.members) < r.wanted }

// sources finds out who is to be asked.
func (x *repairing) sources() {
	sh, r := x.sh, x.r
	x.epoch, x.list, x.maybe, x.next, x.tries = r.epoch, nil, nil, 0, 0
	x.until = sh.env.Now() + int64(repairPatience)
	for _, m := range r.members {
		if m.peer != nil {
			x.list = append(x.list, control.CSAddr{CS: m.cs}) // it may move meanwhile
		}
	}
	x.others = len(x.list)
	if !r.short() || sh.canary.NoSalvage {
		x.ask()
		return
	}
	sh.md.GetChunk(r.id, func(cfg *control.ChunkConfig, err error) {
		switch {
		case x.closed:
			return
		case err != nil || cfg.Epoch != x.epoch || r.epoch != x.epoch:
			x.end("who was a member isn't known now")
			return
		}
		for _, m := range cfg.Former[:min(len(cfg.Former), dataplane.MaxReplicas)] {
			if m.CS != sh.id && m.CS != 0 {
				x.list = append(x.list, m)
			}
		}
		x.ask()
	})
}

// good says whether an answer has the content that was lost.
func (x *repairing) good(former bool, a *dataplane.Header, crcs, payload []byte, err error) bool {
	if err != nil || a.Status != dataplane.OK || a.Offset != x.block*dataplane.BlockSize ||
		len(payload) != dataplane.BlockSize || dataplane.CheckCRCs(crcs, a.Offset, payload) >= 0 {
		return false
	}
	crc := binary.LittleEndian.Uint32(crcs)
	switch {
	case !former:
		return x.place.accepts(crc)
	case x.place.unproven():
		return x.unchanged(a)
	}
	return x.place.matches(crc) || x.sh.canary.SalvageAny
}

// unchanged says whether the dirty map proves that a former member, which answered a, has what was
// there: the block wasn't written since it left.
func (x *repairing) unchanged(a *dataplane.Header) bool {
	d := x.r.dirty
	return d != nil && a.Epoch < x.r.epoch && d.covers(a.Epoch, a.Seq) && a.Aux&salvageTouched == 0 &&
		!d.set.has(int(x.block*dataplane.BlockSize/dataplane.PartSize))
}

// mayHave says whether a server that didn't give the block may have it all the same.
func (x *repairing) mayHave(former bool, a *dataplane.Header, err error) bool {
	if err != nil {
		return true
	}
	switch a.Status {
	case dataplane.BadCRC, dataplane.UnknownChunk:
		return false
	}
	return !former || a.Status != dataplane.OK // OK: it has something else
}

// failed ends a repair for which all have been asked, in vain.
func (x *repairing) failed() {
	sh, r := x.sh, x.r
	m := missingBlock{block: x.block, epoch: r.epoch, place: x.place, sure: len(x.maybe) == 0}
	m.again = sh.env.Now() + int64(salvagePause)
	if m.sure {
		m.again = sh.env.Now() + int64(salvageRest)
	}
	if sh.miss(r, m) {
		what := fmt.Sprintf("cs %d: block %d (4096 bytes at byte %d) of chunk %v is damaged", sh.id,
			x.block, uint64(x.block)*dataplane.BlockSize, r.id)
		switch {
		case m.sure && len(x.list) == 0:
			sh.event(control.Fault, "block-lost", what+", and no other server has the chunk; "+
				"reads of it fail until it is written")
		case m.sure:
			sh.event(control.Fault, "block-lost", fmt.Sprintf(
				"%s, and cs %s can't give it either; reads of it fail until it is written", what,
				listCS(x.list)))
		default:
			sh.event(control.Fault, "block-missing", fmt.Sprintf("%s; reads of it wait for cs %s, which "+
				"may have it; if that won't come back remove it with rm-cs --force", what,
				listIDs(x.maybe)))
		}
	}
	x.end(repairLost)
}

func listCS(list []control.CSAddr) string {
	ids := make([]dataplane.CSID, len(list))
	for i, m := range list {
		ids[i] = m.CS
	}
	return listIDs(ids)
}

func listIDs(ids []dataplane.CSID) string {
	var b strings.Builder
	for i, id := range ids {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, id)
	}
	return b.String()
}

// salvageTouched in the Aux of an answer to a salvage read: the block was touched above the commit
// mark or out of the order of seqs, or this is a copy that wasn't finished.
const salvageTouched = 1

// salvageRead takes OpRead|FlagRecovery with ReadSalvage.
func (sh *Shard) salvageRead(l *link, h *dataplane.Header) {
	r := sh.chunks[h.Chunk]
	switch {
	case h.Length != dataplane.BlockSize || !aligned(h.Offset, h.Length):
		l.refuse(h, dataplane.Malformed)
	case sh.dead != nil:
		l.refuse(h, dataplane.IOError)
	case sh.lease.Load() == 0:
		l.refuse(h, dataplane.NotReady) // whether what is here is to be believed isn't known yet
	case r == nil || r.slot == noSlot:
		l.refuse(h, dataplane.UnknownChunk)
	default:
		sh.startRead(sh.newRequest(l, h, r))
	}
}

// salvaged answers a salvage read with what is here, and what it is.
func (sh *Shard) salvaged(q *request) {
	r := q.r
	switch {
	case q.rd.bad != 0:
		sh.drop(q, dataplane.BadCRC)
		return
	case r.gone:
		sh.drop(q, dataplane.UnknownChunk)
		return
	}
	h := &sh.out
	*h = q.hdr.Reply(dataplane.OK)
	h.Flags |= dataplane.FlagData
	h.Length, h.Epoch, h.Seq = q.length, r.epoch, r.last
	if r.copying() || r.touched(q.off, q.length) {
		h.Aux = salvageTouched
	}
	binary.LittleEndian.PutUint32(q.crcs[:], q.rd.crcs[0])
	q.crcLen = 4
	l := q.link
	q.link = nil
	l.finishBuf(h, q.crcs[:q.crcLen], q.buf, 0, int(q.length))
	sh.free(q)
}

// touched says whether something above the commit mark or out of the order of seqs is on the
// granules of a range.
func (h *history) touched(off, length uint32) bool {
	var set, all granuleSet
	all.touch(off, length)
	for _, e := range h.uncommitted() {
		set.touch(e.off, e.length)
	}
	for _, e := range h.patched {
		set.touch(e.off, e.length)
	}
	for i := range set {
		if set[i]&all[i] != 0 {
			return true
		}
	}
	return false
}
