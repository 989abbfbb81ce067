package chunk

import (
	"encoding/binary"
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// A block that doesn't match its checksum is fetched from another server and appended to the log
// again, as it was: a record without a seq. The place where the damaged copy was found must still
// be the current one by then, so a newer write is never undone; and the checksum that this server
// expected, if it still has it, decides whether the other server's copy is the same content. The
// other members are asked, and of a chunk with too few of them also former ones (salvage.go).

// repairing is one damaged block being fetched.
type repairing struct {
	sh     *Shard
	r      *replica
	block  uint32
	place  blockPlace
	known  bool             // it was looked for in vain before
	epoch  dataplane.Epoch  // of list; 0: there is none yet
	list   []control.CSAddr // who is asked, in turn: the other members, then former ones
	others int              // how many of them are members
	next   int              // of list
	maybe  []dataplane.CSID // they may have it: some time they didn't answer
	tries  int
	until  int64 // no new turn after it
	timer  uring.Timer
	closed bool
	ended  func(result string) // may be nil
}

// How a repair ended, for those who count.
const (
	repairDone = "repaired"
	repairLost = "no good copy"
)

// repairTries is how often servers are asked for a block; one that has a write in flight on it may
// have to be asked again.
const repairTries = 20

// blockPlace is where a block's current content is.
type blockPlace struct {
	inLog bool
	pos   ssdcache.Pos
	crc   uint32 // log: of the block
	word  uint32 // store
	known bool   // the CRC page was in memory
}

func (sh *Shard) placeOf(r *replica, block uint32) blockPlace {
	if pos, ok := sh.log.Lookup(r.slot, block); ok {
		return blockPlace{inLog: true, pos: pos, crc: sh.log.CRC(pos), known: true}
	}
	p := sh.store.cache.get(r.slot*pagesPerSlot + block/wordsPerPage)
	if p == nil {
		return blockPlace{}
	}
	return blockPlace{word: p.word(block), known: true}
}

// accepts says whether content with the given checksum may be put in this place.
func (b blockPlace) accepts(crc uint32) bool { return b.unproven() || b.matches(crc) }

// unproven says that the checksum of what was there is lost, too.
func (b blockPlace) unproven() bool { return !b.inLog && b.word == wordUnknown }

// matches says whether content with the given checksum is what was there.
func (b blockPlace) matches(crc uint32) bool {
	if b.inLog {
		return crc == b.crc
	}
	return wordMatches(b.word, crc)
}

// repair starts to repair a block, unless that is under way or was tried in vain a moment ago.
func (sh *Shard) repair(r *replica, block uint32) {
	if r.slot == noSlot || r.gone || len(sh.repairs) >= maxRepairs || sh.dead != nil || sh.stopping {
		return
	}
	for _, x := range sh.repairs {
		if x.r == r && x.block == block {
			return
		}
	}
	missing := sh.missing(r, block)
	switch {
	case missing == nil:
		sh.event(control.Warning, "crc-mismatch", fmt.Sprintf(
			"cs %d: block %d of chunk %v doesn't match its checksum; repairing it from another member",
			sh.id, block, r.id))
	case sh.env.Now() < missing.again:
		return
	}
	x := &repairing{sh: sh, r: r, block: block, place: sh.placeOf(r, block), known: missing != nil}
	x.timer.Fire = x.ask
	r.refs++
	sh.repairs = append(sh.repairs, x)
	sh.env.Arm(&x.timer, 0)
}

func (x *repairing) end(result string) {
	if x.closed {
		return // by a stop, with the block on its way to the log
	}
	sh := x.sh
	x.closed = true
	sh.env.Disarm(&x.timer)
	if i := slices.Index(sh.repairs, x); i >= 0 {
		sh.repairs = slices.Delete(sh.repairs, i, i+1)
	}
	if !x.known || result == repairDone {
		sh.slog.Info("repair of a block ended", "chunk", x.r.id, "block", x.block, "result", result)
	}
	sh.release(x.r)
	if x.ended != nil {
		x.ended(result)
	}
}

// needed says whether the block still is as it was found.
func (x *repairing) needed() bool {
	return !x.r.gone && x.r.state == active && x.place.known &&
		x.sh.placeOf(x.r, x.block) == x.place
}

// ask asks the next server for the block.
func (x *repairing) ask() {
	sh, r := x.sh, x.r
	switch {
	case !x.needed():
		x.end("not needed any more, or found again later")
		return
	case x.epoch != r.epoch:
		x.sources()
		return
	case x.next == len(x.list) && (x.next == 0 || x.tries >= repairTries ||
		sh.env.Now() >= x.until || x.known && len(x.maybe) > 0):
		x.failed()
		return
	case x.next == len(x.list):
		x.next = 0
	}
	x.tries++
	m, former := x.list[x.next], x.next >= x.others
	x.next++
	h := dataplane.Header{Op: dataplane.OpRead, Chunk: r.id, Epoch: r.epoch,
		Offset: x.block * dataplane.BlockSize, Length: dataplane.BlockSize}
	if former {
		h.Flags, h.Aux = dataplane.FlagRecovery, dataplane.ReadSalvage
	}
	sh.peer(m.CS, m.Addr).callWithin(reachTimeout, h, nil, nil,
		func(a *dataplane.Header, crcs, payload []byte, _ *uring.Buf, err error) {
			if !x.closed {
				x.answered(m.CS, former, a, crcs, payload, err)
			}
		})
}

// answered takes a server's answer.
func (x *repairing) answered(from dataplane.CSID, former bool, a *dataplane.Header,
	crcs, payload []byte, err error) {
	sh, r := x.sh, x.r
	if !x.good(former, a, crcs, payload, err) {
		if x.mayHave(former, a, err) && !slices.Contains(x.maybe, from) {
			x.maybe = append(x.maybe, from)
		}
		sh.env.Arm(&x.timer, int64(settleRetry))
		return
	}
	off := x.block * dataplane.BlockSize
	// A ZERO on its way changes the place only when it is durable; what is appended now comes after.
	if !x.needed() || !sh.log.Room() || r.barrier(off, dataplane.BlockSize) != 0 {
		x.end("not needed any more, or found again later")
		return
	}
	sh.log.Append(&ssdcache.Append{Record: ssdcache.Record{Kind: ssdcache.Data, Slot: r.slot,
		Chunk: r.id, Epoch: r.epoch, Commit: r.commit, Offset: off, Length: dataplane.BlockSize},
		CRCs: crcs, Data: payload, Done: func(a *ssdcache.Append) {
			if a.Err != nil {
				sh.fail(a.Err)
				x.end("failed")
				return
			}
			what := "was repaired"
			if former {
				what = fmt.Sprintf("was repaired: cs %d, which was a member, still has it", from)
			}
			sh.event(control.Info, "block-repaired", fmt.Sprintf(
				"cs %d: block %d of chunk %v %s", sh.id, x.block, r.id, what))
			x.end(repairDone)
		}})
}

// pageDamaged reports a CRC page that isn't what was written: the checksums of its blocks are
// lost, so each comes from another member when it is read.
func (sh *Shard) pageDamaged(slot, block uint32) {
	id := dataplane.ChunkID(0)
	if r := sh.store.owners[slot]; r != nil {
		id = r.id
	}
	sh.event(control.Warning, "crc-page-damaged", fmt.Sprintf(
		"cs %d: the checksums of blocks %d to %d of chunk %v are damaged", sh.id, block,
		block+wordsPerPage-1, id))
}

// readPart reads a part of a local replica for a coordinator; done is called once.
func (sh *Shard) readPart(r *replica, off, n uint32, done func(crcs []byte, buf *uring.Buf,
	err error)) {
	buf := sh.pool.Get(int(n))
	if buf == nil {
		sh.later(func() { done(nil, nil, dataplane.E("read", dataplane.Overloaded, nil)) })
		return
	}
	b := &blockRead{sh: sh, once: true}
	b.wait.ready = func(*crcPage) { b.round() }
	b.done = func(b *blockRead) {
		var err error
		crcs := make([]byte, 0, 4*b.n)
		if b.bad != 0 {
			if r.state == active {
				sh.damaged(r, b.from, b) // says so, once
			} else {
				sh.stats.CRCErrors++
				sh.event(control.Fault, "crc-mismatch", fmt.Sprintf(
					"cs %d: chunk %v is damaged at byte %d, while it was being copied", sh.id, r.id, off))
			}
			err = dataplane.E("read for settling", dataplane.BadCRC, nil)
		}
		for i := range b.n {
			crcs = binary.LittleEndian.AppendUint32(crcs, b.crcs[i])
		}
		done(crcs, buf, err)
		buf.Release()
	}
	b.start(r, off/dataplane.BlockSize, int(n/dataplane.BlockSize), buf.Bytes()[:n])
}

// patchHere is a patch of this server's own replica.
func (sh *Shard) patchHere(r *replica, by any, off uint32, crcs, payload []byte, buf *uring.Buf,
	done func(error)) {
	switch {
	case r.state != sealed || r.sealer != by:
		sh.later(func() { done(dataplane.E("patch", dataplane.NotReady, nil)) })
		return
	case sh.choked(r):
		sh.later(func() { done(dataplane.E("patch", dataplane.Overloaded, nil)) })
		return
	case !sh.makeSlot(r):
		sh.later(func() { done(dataplane.E("patch", dataplane.NoSpace, nil)) })
		return
	}
	r.patch(off, uint32(len(payload)))
	sh.store.touch(r.slot)
	r.refs++
	r.busy++ // a SEAL by others waits for it, too
	sh.log.Append(&ssdcache.Append{Record: ssdcache.Record{Kind: ssdcache.Data, Slot: r.slot,
		Chunk: r.id, Epoch: r.epoch, Offset: off, Length: uint32(len(payload))},
		CRCs: crcs, Data: payload, Buf: buf, Done: func(a *ssdcache.Append) {
			if a.Err != nil {
				sh.fail(a.Err)
			}
			sh.unbusy(r)
			sh.release(r)
			done(a.Err)
		}})
}
